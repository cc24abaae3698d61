"""
Getting one file from a receiver.

Theory of operation
===================
A file comes in pieces of a mebibyte, some of them asked for ahead.  What is missing comes
first; then the pieces that an earlier run left are compared by their digests, which is quicker
than having them come, and those that differ come too.  All pieces are of one version of the
file, which the receiver names, so what is published is what it had at one moment; if somebody
writes to it meanwhile, all of it is compared once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, FirstError, gatherResults

from connpool.errors import ChangedSource, DigestMismatch, Exists, TransferError
from connpool.transfer.digests import chooseBlockSize, rootOf
from connpool.transfer.fetch.localfile import LocalFile, ThereAlready
from connpool.transfer.fetch.remote import Remote
from connpool.transfer.iothreads import InThread

__all__ = ["Fetched", "fetchFile"]

#: Bytes of a piece, and pieces that are asked for ahead.
PIECE_BYTES, AHEAD = 1 << 20, 8
#: Times that a file is begun whose content changes, and that a damaged piece is asked for.
CHANGED_TRIES, DAMAGED_TRIES = 3, 3


@attrs.frozen
class Fetched:
    """
    A file that is here.

    @ivar status: C{stored}, or C{duplicate}: it was here already.
    @ivar size: bytes.
    @ivar came: bytes that came in this run.
    @ivar digest: name of the algorithm.
    @ivar root: over the digests of its blocks; L{None} of a file whose blocks are larger than a
        piece.
    """

    status: str
    size: int
    came: int
    digest: str
    root: bytes | None


@attrs.define(eq=False)
class _Fetch:
    """
    The pieces of one version of a file.
    """

    remote: Remote
    name: str
    inThread: InThread
    progress: Callable[[int, int], Any]
    size: int = 0
    modified: int = 0
    version: bytes = b""
    digests: dict[int, bytes] = attrs.field(factory=dict)
    done: int = 0
    came: int = 0

    async def begin(self) -> None:
        """
        Find out which version there is.
        """
        content = (await self.remote.read(self.name, 0, 0, None)).content
        self.size, self.modified, self.version = content.size, content.modified, content.version
        self.digests.clear()
        self.done = 0

    def end(self, piece: int) -> int:
        return min((piece + 1) * PIECE_BYTES, self.size)

    async def each(self, pieces: Iterable[int], act: Callable[[int], Any]) -> None:
        """
        Call C{act} for all C{pieces}, some at once.
        """
        left = iter(pieces)

        async def work() -> None:
            for piece in left:
                await act(piece)

        working: list[Deferred[None]] = [Deferred.fromCoroutine(work()) for _ in range(AHEAD)]
        try:
            await gatherResults(working, consumeErrors=True)
        except FirstError as e:
            e.subFailure.raiseException()
        finally:
            for d in working:
                d.cancel()
            await DeferredList(working, consumeErrors=True)

    async def fetch(self, piece: int, file: LocalFile) -> None:
        """
        Have a piece come.
        """
        start, end = piece * PIECE_BYTES, self.end(piece)
        for tried in range(1, DAMAGED_TRIES + 1):
            try:
                answer = await self.remote.read(self.name, start, end, self.version)
                break
            except DigestMismatch:
                if tried == DAMAGED_TRIES:
                    raise
        await self.inThread(lambda: file.write(start, answer.data))
        self.came += len(answer.data)
        self._isRight(piece, answer.content.digest)

    def _isRight(self, piece: int, digest: bytes) -> None:
        self.digests[piece] = digest
        self.done += self.end(piece) - piece * PIECE_BYTES
        self.progress(self.done, self.size)

    async def isSame(self, piece: int, file: LocalFile | ThereAlready) -> bool:
        """
        Compare a piece that is here.
        """
        start, end = piece * PIECE_BYTES, self.end(piece)
        theirs = self.remote.read(self.name, start, end, self.version, digestOnly=True)
        digest = (await theirs).content.digest
        ours: bytes = await self.inThread(lambda: file.digestOf(start, end, self.remote.digest))
        if ours == digest:
            self._isRight(piece, digest)
        return ours == digest

    @property
    def pieces(self) -> range:
        return range(-(-self.size // PIECE_BYTES))

    def result(self, status: str) -> Fetched:
        blockSize, root = chooseBlockSize(self.size), None
        if blockSize == PIECE_BYTES:
            digests = [self.digests[piece] for piece in self.pieces]
            root = rootOf(self.remote.digest, self.size, blockSize, digests)
        return Fetched(status, self.size, self.came, self.remote.digest.name, root)


async def fetchFile(
    remote: Remote,
    name: str,
    target: str,
    inThread: InThread,
    *,
    replace: bool = False,
    progress: Callable[[int, int], Any] = lambda _done, _size: None,
) -> Fetched:
    """
    Get a file.

    @param name: at the receiver, below what may be read there.
    @param target: where it goes; its directory exists.
    @param inThread: runs a function in a thread.
    @param replace: put it in the place of another content that has the name.
    @param progress: called with the bytes that are here and verified, and the file's.
    @raise Exists: another content has the name.
    @raise TransferError: why it did not come; what did is kept, and gone on with.
    """
    for tried in range(1, CHANGED_TRIES + 1):
        fetch = _Fetch(remote, name, inThread, progress)
        try:
            return await _fetched(fetch, target, replace)
        except ChangedSource:
            if tried == CHANGED_TRIES:
                raise
    raise AssertionError("it was tried often enough")


async def _fetched(fetch: _Fetch, target: str, replace: bool) -> Fetched:
    await fetch.begin()
    there = ThereAlready.open(target)
    if there is not None:
        with there:
            same = there.size == fetch.size and await _isSame(fetch, there)
        if same:
            return fetch.result("duplicate")
        if not replace:
            raise Exists(f'"{fetch.name}": another content has that name here; see --replace')
        fetch.digests.clear()
        fetch.done = 0
    with LocalFile.open(target) as file:
        file.resize(fetch.size)
        held = -(-file.held // PIECE_BYTES) if file.held == fetch.size else file.held // PIECE_BYTES

        async def come(piece: int) -> None:
            await fetch.fetch(piece, file)

        async def compare(piece: int) -> None:
            if not await fetch.isSame(piece, file):
                await fetch.fetch(piece, file)

        await fetch.each(fetch.pieces[held:], come)
        await fetch.each(fetch.pieces[:held], compare)
        # it has not become another one since its first piece was read
        await fetch.remote.read(fetch.name, 0, 0, fetch.version)
        await fetch.inThread(lambda: file.publish(fetch.modified, replace))
    return fetch.result("stored")


async def _isSame(fetch: _Fetch, there: ThereAlready) -> bool:
    async def compare(piece: int) -> None:
        if not await fetch.isSame(piece, there):
            raise _Differs

    try:
        await fetch.each(fetch.pieces, compare)
    except _Differs:
        return False
    return True


class _Differs(TransferError):
    pass
