"""
The jobs of a run: files found, read if small, begun again if a connection broke.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import ChangedSource, SourceError, TransferError
from connpool.transfer.digests import Digest, chooseBlockSize, rootsOfBlocks
from connpool.transfer.iothreads import InThread
from connpool.transfer.send.keys import Run
from connpool.transfer.send.source import grew, openRegular, readRoot, readWhole, unchanged
from connpool.transfer.send.walking import DIRECTORY, FILE, LINK, STDIN, Found, Walk

__all__ = ["AbsolutePaths", "Job", "JobList", "Small"]

#: The files and bytes that are prepared in one trip to a thread.
_BATCH_FILES, _BATCH_BYTES = 256, 1 << 20
#: Bytes of a transfer's id.
_ID_BYTES = 16
#: Times that a file is begun that somebody writes to; seconds from the first time to the second,
#: at least, and twice as many to the third.
CHANGED_TRIES, _CHANGED_SECONDS = 3, 0.5


@attrs.define(eq=False)
class Job:
    """
    One file of a run.

    @ivar status: as it was when it was opened last.
    @ivar tries: how often it was begun again, for a reason of its own.
    @ivar due: when it may be begun again.
    @ivar kept: blocks that the receiver had safe, at the most.
    @ivar accepted: whether the receiver took it before, in this run.
    @ivar root: of the content, where a dry run depends on it.
    @ivar spent: whether some of it was read that cannot be read again.
    @ivar fresh: key to use instead of the one that belongs to it: that one got a receipt
        for another content.
    @ivar listed: number of the inode that its directory listed.
    @ivar begun: when it was opened last.
    @ivar grew: whether it got longer since it was opened first, and is sent as it was then.
    @ivar asked: whether the receiver was asked if it has it.
    @ivar checksum: root of the content, where it is asked by that.
    @ivar held: descriptor of a file that was renamed while it was sent.
    """

    path: str
    name: bytes
    transferId: bytes = attrs.field(factory=lambda: secrets.token_bytes(_ID_BYTES))
    status: os.stat_result | None = None
    key: bytes = b""
    tries: int = 0
    due: float = 0.0
    kept: int = 0
    accepted: bool = False
    spent: bool = False
    fresh: bytes = b""
    listed: int | None = None
    held: int | None = None
    root: bytes | None = None
    begun: float = 0.0
    grew: bool = False
    asked: bool = False
    checksum: bytes = b""

    def letGo(self) -> None:
        """
        Close the descriptor that is held.
        """
        if self.held is not None:
            os.close(self.held)
            self.held = None

    @property
    def size(self) -> int | None:
        """
        Bytes; L{None} for standard input.
        """
        return None if self.status is None else self.status.st_size


@attrs.frozen(eq=False)
class Small:
    """
    A file that goes in one piece.
    """

    job: Job
    data: bytes
    root: bytes


class _Unasked:
    """
    In the place of a content: the receiver is asked first.
    """


class AbsolutePaths:
    """
    Absolute paths.  Those of one directory mostly come one after the other.
    """

    def __init__(self) -> None:
        #: a directory, and its absolute path with a slash at the end; for several threads
        self._latest: tuple[str | None, bytes] = None, b""

    def of(self, path: str) -> bytes:
        """
        Return C{os.path.abspath} of it.
        """
        directory, slash, last = path.rpartition("/")
        if not slash or last in {"", ".", ".."} or path.startswith("//"):
            return os.fsencode(os.path.abspath(path))
        latest, absolute = self._latest
        if directory != latest:
            absolute = os.fsencode(os.path.join(os.path.abspath(directory or "/"), ""))
            self._latest = directory, absolute
        return absolute + os.fsencode(last)


#: Files with what became of their reading, directories and links.
_Prepared = list[tuple[Job | Found, "Small | TransferError | _Unasked | None"]]


class JobList:
    """
    Jobs in order, some of them read already.

    @param found: the files; advanced in a thread.
    @param failed: told about a file that cannot be sent.
    @param passedOver: told about a link, which is not sent.
    @param growing: whether a file that only gets longer is sent as it was at first.
    @ivar update: whether the receiver is asked about each file first: C{times}, C{checksum}, or
        empty.
    @ivar asking: files that it is to be asked about.
    """

    def __init__(
        self,
        found: Walk,
        run: Run,
        inThread: InThread,
        failed: Callable[[Job, TransferError], None],
        passedOver: Callable[[Found], None] = lambda _: None,
        update: str = "",
        *,
        growing: bool = False,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._found = found
        self.run = run
        self._inThread = inThread
        self._failed = failed
        self._again: deque[Job] = deque()
        self._passedOver = passedOver
        self._absolute = AbsolutePaths()
        self._ended = False
        self._filling = False
        #: by the number of their parts
        self._directories: dict[int, list[Found]] = {}
        self.update = update
        self._growing = growing
        self._seconds = seconds
        self.asking: deque[Job] = deque()
        self.small: deque[Small] = deque()
        self.large: deque[Job] = deque()
        self.later: list[Job] = []

    @property
    def _exhausted(self) -> bool:
        return self._ended and not self._found.unfinished

    @property
    def empty(self) -> bool:
        """
        Tell whether nothing is left, not even to be looked for.
        """
        return self.filesDone and not self._directories

    @property
    def filesDone(self) -> bool:
        """
        Tell whether directories are all that may be left.
        """
        return (
            self._exhausted
            and not (self._again or self.asking or self.small or self.large or self.later)
            and not self._filling
        )

    @property
    def wantsMore(self) -> bool:
        """
        Tell whether looking for more makes sense now.
        """
        return not self._filling and (bool(self._again) or not self._exhausted)

    def keep(self, directory: Found) -> None:
        """
        Make a directory in the end.
        """
        depth = directory.name.count(b"/")
        self._directories.setdefault(depth, []).append(directory)

    def deepest(self) -> list[Found]:
        """
        Take the directories that have nothing below them that is still left.
        """
        return self._directories.pop(max(self._directories), []) if self._directories else []

    def open(self, job: Job) -> int:
        """
        Open the file and note what it is now.  One of a tree that is not what was listed was
        moved.

        @return: a descriptor.
        @raise SourceError: it cannot be sent.
        """
        fd = self._open(job)
        self._giveKey(job)
        return fd

    def _open(self, job: Job) -> int:
        before, job.begun = job.status, self._seconds()
        if job.held is not None:
            fd, job.held = job.held, None
            job.status = os.fstat(fd)
        else:
            try:
                fd, job.status = openRegular(job.path)
            except SourceError:
                self.moved(job)
                raise
        if job.listed != job.status.st_ino:
            self.moved(job)
            job.listed = None
        if self._growing and before is not None and grew(fd, before):
            job.status = before
        return fd

    def _giveKey(self, job: Job, root: bytes = b"", *, afresh: bool = False) -> None:
        assert job.status is not None
        job.key = job.fresh or self.run.key(
            self._absolute.of(job.path), job.status, job.name, root, afresh=afresh
        )

    def resumeKey(self, job: Job) -> bytes:
        """
        Compute the key of an opened file's partial.
        """
        assert job.status is not None
        return self.run.resumeKey(self._absolute.of(job.path), job.status, job.name)

    def moved(self, job: Job) -> None:
        """
        A file changed: if it is one of a tree, its content may have another name there now.
        """
        if job.listed is not None:
            self._found.moved()

    def again(self, job: Job) -> None:
        """
        Begin a file again: its connection broke, or it changed.
        """
        self._again.append(job)

    def changed(self, job: Job) -> float | None:
        """
        Begin a file again that changed, when whoever writes to it may be done: not before as
        long has passed as the last try took.

        @return: the time at which; L{None} if that was tried often enough.
        """
        job.tries += 1
        if job.tries >= CHANGED_TRIES:
            return None
        now: float = self._seconds()
        job.status = None
        due: float = now + max(_CHANGED_SECONDS * 2 ** (job.tries - 1), now - job.begun)
        self.delay(job, due)
        return due

    def delay(self, job: Job, due: float) -> None:
        """
        Begin a file again at C{due}.
        """
        job.due = due
        self.later.append(job)

    def wake(self, now: float) -> None:
        """
        Begin those again that are due.
        """
        for job in [job for job in self.later if job.due <= now]:
            self.later.remove(job)
            self._again.append(job)

    async def abandon(self, why: TransferError) -> None:
        """
        Fail what is left.
        """
        left = [*self._again, *self.asking, *(small.job for small in self.small)]
        left += [*self.large, *self.later]
        self._again.clear()
        self.asking.clear()
        self.small.clear()
        self.large.clear()
        self.later.clear()
        told = bool(left)
        for job in left:
            self._failed(job, why)
        while not self._exhausted:
            # in a thread: a whole disk may be left
            batch = await self._inThread(lambda: list(islice(self._found, _BATCH_FILES)))
            self._ended = not batch
            for found in batch:
                if found.kind == LINK:
                    self._passedOver(found)
                elif found.kind == DIRECTORY:
                    self.keep(found)
                else:
                    told = True
                    self._failed(Job(found.path, found.name), found.error or why)
        while directories := self.deepest():
            # the files say it for the directories that they are in
            for found in () if told else directories:
                self._failed(Job(found.path, found.name), why)

    def close(self) -> None:
        """
        Let go of every descriptor.
        """
        for job in [*self._again, *self.large, *self.later]:
            job.letGo()

    def fill(self, largest: int, digest: Digest, afresh: bool = False) -> Deferred[None]:
        """
        Read the next small files and find the next large ones.

        @param largest: bytes of a file that is read.
        @param afresh: see L{Run.key}.
        """
        again = [self._again.popleft() for _ in range(min(len(self._again), _BATCH_FILES))]
        self._filling = True

        def prepared(jobs: _Prepared) -> None:
            # those that did not fit into this batch come first in the next
            self._again.extendleft(reversed(again))
            self._filled(jobs)

        return self._inThread(lambda: self._prepare(again, largest, digest, afresh)).addCallback(
            prepared
        )

    def _filled(self, prepared: _Prepared) -> None:
        self._filling = False
        for job, result in prepared:
            if isinstance(job, Found):
                (self.keep if job.kind == DIRECTORY else self._passedOver)(job)
            elif isinstance(result, Small):
                self.small.append(result)
            elif isinstance(result, _Unasked):
                self.asking.append(job)
            elif result is None:
                self.large.append(job)
            elif isinstance(result, ChangedSource):
                self.moved(job)
                if self.changed(job) is None:
                    self._failed(job, result)
            else:
                self._failed(job, result)

    def _prepare(self, again: list[Job], largest: int, digest: Digest, afresh: bool) -> _Prepared:
        """
        Read the next files, in a thread, one batch at a time; C{again} keeps those that did
        not fit.
        """
        prepared: _Prepared = []
        total = 0
        # one look at the system's source of random bytes, which takes its time
        ids = secrets.token_bytes(_ID_BYTES * _BATCH_FILES)
        rootOf = rootsOfBlocks(digest)
        while total < _BATCH_BYTES and len(prepared) < _BATCH_FILES:
            if again:
                job = again.pop(0)
            else:
                found = None if self._exhausted else next(self._found, None)
                if found is None:
                    self._ended = True
                    break
                if found.kind != FILE:
                    prepared.append((found, None))
                    continue
                at = _ID_BYTES * len(prepared)
                job = Job(found.path, found.name, ids[at : at + _ID_BYTES], listed=found.inode)
                if found.error is not None:
                    prepared.append((job, found.error))
                    continue
            try:
                result = self._read(job, largest, digest, rootOf, afresh)
            except TransferError as e:
                prepared.append((job, e))
                continue
            if isinstance(result, Small):
                total += len(result.data)
            prepared.append((job, result))
        return prepared

    def _read(
        self,
        job: Job,
        largest: int,
        digest: Digest,
        rootOf: Callable[[bytes], bytes],
        afresh: bool,
    ) -> Small | _Unasked | None:
        """
        @return: L{None} if it is too large to go in one piece.
        """
        if job.path == STDIN:
            return None
        if job.held is not None:
            return None  # it is read where it was begun
        fd = self._open(job)
        try:
            assert job.status is not None
            if self.update and not job.asked:
                if self.update == "checksum":
                    size = job.status.st_size
                    job.checksum = readRoot(fd, size, digest, chooseBlockSize(size))
                return _Unasked()
            if job.status.st_size > largest:
                return None
            data = readWhole(fd, job.status, largest, self._growing)
            job.grew = self._growing and not unchanged(fd, job.status)
        finally:
            os.close(fd)
        root = rootOf(data)
        self._giveKey(job, root, afresh=afresh)
        return Small(job, data, root)
