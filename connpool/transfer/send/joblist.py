"""
The files of a run: found, read if small, begun again if a connection broke.
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import ChangedSource, SourceError, TransferError
from connpool.transfer.digests import BLOCK_SIZE, Digest, rootOf
from connpool.transfer.hashing import InThread
from connpool.transfer.send.keys import Run
from connpool.transfer.send.source import openRegular, unchanged
from connpool.transfer.send.walking import STDIN, Found

__all__ = ["Job", "Small", "WorkList", "openJob", "resumeKey"]

#: What is prepared in one trip to a thread.
_BATCH_FILES, _BATCH_BYTES = 256, 1 << 20


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
    """

    path: str
    name: bytes
    transferId: bytes = attrs.field(factory=lambda: secrets.token_bytes(16))
    status: os.stat_result | None = None
    key: bytes = b""
    tries: int = 0
    due: float = 0.0
    kept: int = 0
    accepted: bool = False
    spent: bool = False
    root: bytes | None = None

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


def openJob(job: Job, run: Run) -> int:
    """
    Open the file and note what it is now.

    @return: a descriptor.
    @raise SourceError: it cannot be sent.
    """
    fd, job.status = openRegular(job.path)
    job.key = run.key(_absolute(job), job.status, job.name)
    return fd


def resumeKey(job: Job, run: Run) -> bytes:
    """
    The key of an opened file's partial.
    """
    assert job.status is not None
    return run.resumeKey(_absolute(job), job.status, job.name)


def _absolute(job: Job) -> bytes:
    return os.fsencode(os.path.abspath(job.path))


class WorkList:
    """
    Jobs in order, some of them read already.

    @param found: the files; advanced in a thread.
    @param failed: told about a file that cannot be sent.
    """

    def __init__(
        self,
        found: Iterator[Found],
        run: Run,
        inThread: InThread,
        failed: Callable[[Job, TransferError], None],
    ) -> None:
        self._found = found
        self.run = run
        self._inThread = inThread
        self._failed = failed
        self._again: deque[Job] = deque()
        self._exhausted = False
        self._filling = False
        self.small: deque[Small] = deque()
        self.large: deque[Job] = deque()
        self.later: list[Job] = []

    @property
    def empty(self) -> bool:
        """
        Whether nothing is left, not even to be looked for.
        """
        return (
            self._exhausted
            and not (self._again or self.small or self.large or self.later)
            and not self._filling
        )

    @property
    def wantsMore(self) -> bool:
        """
        Whether looking for more makes sense now.
        """
        return not self._filling and (bool(self._again) or not self._exhausted)

    def again(self, job: Job) -> None:
        """
        Its connection broke, or it changed: begin it again.
        """
        self._again.append(job)

    def delay(self, job: Job, due: float) -> None:
        """
        Begin it again at C{due}.
        """
        job.due = due
        self.later.append(job)

    def wake(self, now: float) -> None:
        """
        Those that are due go on.
        """
        for job in [job for job in self.later if job.due <= now]:
            self.later.remove(job)
            self._again.append(job)

    def drop(self, path: str, why: TransferError) -> bool:
        """
        Give up one file that has not been begun.

        @return: whether there was one.
        """
        for jobs in (self._again, self.large, self.later):
            for job in jobs:
                if job.path == path:
                    jobs.remove(job)
                    self._failed(job, why)
                    return True
        return False

    async def abandon(self, why: TransferError) -> None:
        """
        Fail what is left.
        """
        left = [*self._again, *(small.job for small in self.small), *self.large, *self.later]
        self._again.clear()
        self.small.clear()
        self.large.clear()
        self.later.clear()
        for job in left:
            self._failed(job, why)
        while not self._exhausted:
            # in a thread: a whole disk may be left
            batch = await self._inThread(lambda: list(islice(self._found, _BATCH_FILES)))
            self._exhausted = not batch
            for found in batch:
                self._failed(Job(found.path, found.name), found.error or why)

    def fill(self, largest: int, digest: Digest) -> Deferred[None]:
        """
        Read the next small files and find the next large ones.

        @param largest: bytes of a file that is read.
        """
        again = [self._again.popleft() for _ in range(min(len(self._again), _BATCH_FILES))]
        self._filling = True

        def prepared(jobs: list[tuple[Job, Small | TransferError | None]]) -> None:
            # those that did not fit into this batch come first in the next
            self._again.extendleft(reversed(again))
            self._filled(jobs)

        return self._inThread(lambda: self._prepare(again, largest, digest)).addCallback(prepared)

    def _filled(self, prepared: list[tuple[Job, Small | TransferError | None]]) -> None:
        self._filling = False
        for job, result in prepared:
            if isinstance(result, Small):
                self.small.append(result)
            elif result is None:
                self.large.append(job)
            elif isinstance(result, ChangedSource):
                job.tries += 1
                if job.tries < 3:
                    self._again.append(job)
                else:
                    self._failed(job, result)
            else:
                self._failed(job, result)

    def _prepare(
        self, again: list[Job], largest: int, digest: Digest
    ) -> list[tuple[Job, Small | TransferError | None]]:
        """
        In a thread, one at a time.  Leaves in C{again} what it did not come to.
        """
        prepared: list[tuple[Job, Small | TransferError | None]] = []
        total = 0
        while total < _BATCH_BYTES and len(prepared) < _BATCH_FILES:
            if again:
                job = again.pop(0)
            else:
                found = None if self._exhausted else next(self._found, None)
                if found is None:
                    self._exhausted = True
                    break
                job = Job(found.path, found.name)
                if found.error is not None:
                    prepared.append((job, found.error))
                    continue
            try:
                result = self._read(job, largest, digest)
            except TransferError as e:
                prepared.append((job, e))
                continue
            if result is not None:
                total += len(result.data)
            prepared.append((job, result))
        return prepared

    def _read(self, job: Job, largest: int, digest: Digest) -> Small | None:
        """
        @return: L{None} if it is too large to go in one piece.
        """
        if job.path == STDIN:
            return None
        fd = openJob(job, self.run)
        try:
            assert job.status is not None
            size = job.status.st_size
            if size > largest:
                return None
            try:
                data = os.read(fd, size + 1) if size else b""
            except OSError as e:
                raise SourceError(f"cannot read it: {e.strerror}") from None
            if len(data) != size or not unchanged(fd, job.status):
                raise ChangedSource("the file changed while it was read, 3 times; send it again")
        finally:
            os.close(fd)
        blocks = [digest.of(data)] if data else []
        return Small(job, data, rootOf(digest, size, BLOCK_SIZE, blocks))
