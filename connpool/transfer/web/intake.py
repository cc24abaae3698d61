"""
The bytes of one upload on their way in: in order, in requests that end anywhere.

Theory of operation
===================
Each run is written and hashed where it is.  A block is recorded when it is written; the
unfinished block is recorded up to where it came, so a restart loses nothing that was
checkpointed.

The blocks of a request that brings a digest wait until that matched; if it does not, the
request's bytes are discarded, and the hashes go back to where they were before it.

A write that fails leaves the hashes ahead of the disk: such an intake is of no use any more,
and the next one goes on from what was recorded.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from connpool.errors import DigestMismatch, TransferError
from connpool.transfer.digests import digestNamed, rootOf
from connpool.transfer.receive.reception import Incoming, storeFailure
from connpool.transfer.records import Receipt
from connpool.transfer.web.digests import Digests
from connpool.waiting import Waiters

__all__ = ["Intake", "Notes"]

#: Bytes that are read back at once.
_READ_BYTES = 1 << 20


@attrs.frozen
class Notes:
    """
    The text that is kept with an upload until it is published.

    @ivar metadata: as the client wrote it.
    @ivar verified: digests that matched cover every byte so far.
    @ivar whole: the SHA-256 of the whole file is wanted.
    """

    metadata: str = ""
    verified: bool = True
    whole: bool = False

    @classmethod
    def read(cls, text: str) -> Notes:
        """
        Read what L{text} wrote.
        """
        flags, _, metadata = text.partition(" ")
        return cls(metadata, "v" in flags, "w" in flags)

    @property
    def text(self) -> str:
        """
        The text itself.
        """
        return f"{'v' * self.verified}{'w' * self.whole} {self.metadata}"


class Intake:
    """
    The bytes of one upload, up to C{offset}; C{incoming} is the reception's hand on its partial.
    """

    def __init__(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self._partial: Any = incoming.partial
        assert incoming.offer.digest is not None
        self._digest = digestNamed(incoming.offer.digest)
        self._blockSize = incoming.offer.blockSize
        self.notes = Notes.read(incoming.offer.metadata)
        self.offset = self._recorded = 0
        #: the error of the store, after which this is of no use
        self._failed: TransferError | None = None
        #: of the block that the offset is in, and of the whole file if all of it came here
        self._block = self._digest.new()
        self._whole: Any = hashlib.sha256() if self.notes.whole else None
        #: blocks that are finished but not recorded: number, digest, end
        self._finished: deque[tuple[int, bytes, int]] = deque()
        self._changed = Waiters()
        #: of the request under way, L{None} between two; and our offset and hashes before it
        self._digests: Digests | None = None
        self._before: tuple[int, Any, Any] = (0, None, None)

    async def open(self) -> None:
        """
        Go on from what was recorded; bytes behind it are discarded, and come again.
        """
        partial, size, block = self._partial, self.incoming.offer.size, 0
        while block in partial.digests:
            block += 1
        start = block * self._blockSize
        self.offset = start if size is None else min(start, size)
        stump = partial.stump if partial.stump and partial.stump.block == block else None
        if stump is not None:
            self.offset = stump.end
        self._recorded = self.offset
        for first, last in list(partial.held):
            if last > self.offset:
                partial.discard(max(first, self.offset), last)
        if self._written < self.offset:
            raise _damaged()
        if stump is not None:
            await self._readBack(start, stump.end, self._block)
            if self._block.digest() != stump.digest:
                raise _damaged()
        if self.offset:
            self._whole = None

    # -- one request

    def begin(self, digests: Digests) -> None:
        """
        Let a request follow the one before; C{digests} are of its bytes.
        """
        self._digests = digests
        whole = None if self._whole is None else self._whole.copy()
        self._before = self.offset, self._block.copy(), whole

    def write(self, view: memoryview) -> Deferred[None] | None:
        """
        Take the bytes that follow, as L{connpool.transfer.web.put.WholeFile.write}.
        """
        self._check()
        assert self._digests is not None
        if len(view) and not self._digests.vouches:
            self._unverified()
        try:
            written = self.incoming.write(self.offset, view)
        except TransferError as e:
            if e.retryable:
                self._fail(e)
            raise
        self._cut(view)
        self._digests.update(view)
        if self._whole is not None:
            self._whole.update(view)
        if written is None:
            self._record()
            return None
        return written.addBoth(self._done)

    def _cut(self, view: memoryview) -> None:
        """
        Hash the blocks.
        """
        at = 0
        while at < len(view):
            piece = view[at : at + self._blockSize - self.offset % self._blockSize]
            self._block.update(piece)
            at += len(piece)
            self.offset += len(piece)
            if not self.offset % self._blockSize:
                block = self.offset // self._blockSize - 1
                self._finished.append((block, self._block.digest(), self.offset))
                self._block = self._digest.new()

    def _done(self, result: Any) -> Any:
        if isinstance(result, Failure):
            self._fail(storeFailure(result))
        else:
            self._record()
        self._changed.wake()
        return result

    async def keep(self, verified: bool) -> None:
        """
        Record what the request has brought, C{verified} if a digest that matched vouches for it.
        """
        await self.quiet()
        if not verified and self.offset > self._before[0]:
            self._unverified()
        self._digests = None
        self._record()
        self._check()
        if self._recorded < self.offset:
            self._partial.record(self.offset // self._blockSize, self._block.digest(), self.offset)
            self._recorded = self.offset

    async def drop(self) -> None:
        """
        Discard what the request has brought.
        """
        await self.quiet()
        end = self.offset
        self.offset, self._block, self._whole = self._before
        self._digests = None
        self._finished.clear()
        if end > self.offset:
            self._partial.discard(self.offset, end)

    async def quiet(self) -> None:
        """
        Wait until all that came is written.
        """
        while self._failed is None and self._written < self.offset:
            await self._changed.wait()
        self._check()

    # -- all of them

    async def checkpoint(self) -> int:
        """
        Make safe what is recorded, and return the offset, which a restart keeps.
        """
        await self._partial.checkpoint()
        self._check()
        return self._recorded

    async def lastByte(self) -> bytes:
        """
        Read the byte before the offset.
        """
        found: bytes = await self._partial.read(self.offset - 1, self.offset)
        return found

    async def commit(self, sha256: bytes | None = None) -> Receipt:
        """
        Publish the file, all of which is recorded; C{sha256} is what the client has told of it.
        """
        partial, block = self._partial, self.offset // self._blockSize
        await partial.settled()
        if self._written < self.offset:
            raise _damaged()
        if self.offset % self._blockSize and block not in partial.digests:
            partial.record(block, self._block.digest())
        computed = root = None
        if self.notes.whole or sha256 is not None:
            if self._whole is None:
                self._whole = hashlib.sha256()
                await self._readBack(0, self.offset, self._whole)
            computed = self._whole.digest()
        if sha256 not in {None, computed}:
            raise DigestMismatch("the bytes that came have another sha-256 than was told")
        if self.notes.verified or sha256 is not None:
            blocks = (partial.digests[block] for block in range(len(partial.digests)))
            root = rootOf(self._digest, self.offset, self._blockSize, blocks)
        return await self.incoming.commit(root, computed)

    # -- inside

    @property
    def _written(self) -> int:
        """
        The end of the bytes that are on the disk, all of them.
        """
        held = self._partial.held
        return held[0][1] if held and not held[0][0] else 0

    def _record(self) -> None:
        """
        Record the blocks that are finished and written.
        """
        if self._digests or self._failed is not None:
            return
        try:
            while self._finished and self._finished[0][2] <= self._written:
                block, digest, self._recorded = self._finished.popleft()
                self._partial.record(block, digest)
        except TransferError as e:
            self._fail(e)
        else:
            self.incoming.checkpoint(lambda failure: self._fail(storeFailure(failure)))

    def _unverified(self) -> None:
        if self.notes.verified:
            self.notes = attrs.evolve(self.notes, verified=False)
            self.incoming.note(self.notes.text)

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _fail(self, why: TransferError) -> None:
        self._failed = self._failed or why
        self._changed.wake()

    async def _readBack(self, start: int, end: int, hasher: Any) -> None:
        """
        Hash bytes that came before.
        """
        for at in range(start, end, _READ_BYTES):
            hasher.update(await self._partial.read(at, min(at + _READ_BYTES, end)))


def _damaged() -> DigestMismatch:
    return DigestMismatch("bytes that came before were damaged on the disk; send the file again")
