"""
Many small files, one sync.

Theory of operation
===================
A sync costs milliseconds whatever it syncs, so files that must be durable wait
for each other: while one batch is on its way to the disk the next collects.
One thread takes a batch through all its steps (L{connpool.transfer.stores.commit}), so
a file that is sent again meanwhile finds its receipt.  Where a disk is slow, files that
need no sync go the same way.

The contents are synced all together by C{syncfs}, which also writes whatever else is
dirty on that file system, or one by one after all writing was begun
(C{sync_file_range}).  Which is quicker depends on the file system and on what else goes
on: where C{syncfs} is slow both are tried, and the time for a file decides (L{SyncChoice}).
"""

from __future__ import annotations

import resource
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from connpool.waiting import Waiters

__all__ = ["GroupCommit", "SyncChoice", "batchFiles"]

#: Files of one batch, at least where so many wait, and at most: a sync costs the same for
#: any number, and each file holds a descriptor.
LEAST_FILES, MOST_FILES = 256, 1024
#: The share of the descriptors that a process may have.
_DESCRIPTORS_SHARE = 8
#: Bytes of one batch.
BATCH_BYTES = 32 << 20

T = TypeVar("T")


def batchFiles() -> int:
    """
    Return the number of files that may go together under the limit on open files.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_FILES
    return min(max(LEAST_FILES, soft // _DESCRIPTORS_SHARE), MOST_FILES)


@attrs.define(eq=False)
class _Request:
    """
    Files that are answered together.

    @ivar left: files that have no outcome.
    """

    left: int
    outcomes: list[Any]
    done: Deferred[list[Any]]


class SyncChoice:
    """
    The choice between C{syncfs} and a sync of each file, for a batch.

    Keeps a running mean of seconds a file for both ways, takes the quicker
    and tries the other now and then.  C{syncfs} has no rival while it is quick.
    """

    #: Batches smaller than this are synced file by file and teach nothing.
    LEAST_FILES = 8
    #: Every so many batches the slower way is tried again.
    RETRY_BATCHES = 32
    #: Seconds a file that no disk needs less for, one by one.
    QUICK_SECONDS = 0.0001
    _WEIGHT = 0.3

    def __init__(self) -> None:
        self._mean: dict[bool, float] = {}
        self._count = 0

    def together(self, files: int) -> bool:
        """
        Tell whether C{syncfs} is the way for a batch of C{files}.
        """
        if files < self.LEAST_FILES:
            return False
        self._count += 1
        if self._mean.get(True, 0.0) < self.QUICK_SECONDS:
            return True
        if False not in self._mean:
            return False
        retry = self._count % self.RETRY_BATCHES == 0
        return self.quicker(files) != retry

    def quicker(self, files: int) -> bool:
        """
        Tell whether C{syncfs} is known for the quicker way for C{files}, or nothing is known.
        """
        alone = self._mean.get(False, float("inf"))
        return files >= self.LEAST_FILES and self._mean.get(True, 0.0) < alone

    def took(self, together: bool, files: int, seconds: float) -> None:
        """
        A batch was synced.
        """
        if files >= self.LEAST_FILES:
            each = seconds / files
            mean = self._mean.get(together, each)
            self._mean[together] = mean + self._WEIGHT * (each - mean)


class GroupCommit(Generic[T]):
    """
    The small files, or directories, that wait for a thread, and the batch that has its turn.

    @param run: takes a batch and returns a Deferred of as many outcomes.
    @param callLater: the reactor's.
    @param size: returns the bytes that one holds.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Deferred[list[Any]]],
        callLater: Callable[..., Any],
        size: Callable[[T], int] = lambda _: 0,
    ) -> None:
        self._run = run
        self._callLater = callLater
        self._size = size
        self._queue: deque[tuple[T, _Request, int]] = deque()
        self._busy = False
        self._draining = Waiters()

    def drained(self) -> Deferred[None]:
        """
        Return a Deferred that fires when no file is under way.
        """
        drained = self._draining.wait()
        if not self._busy:
            self._draining.wake()
        return drained

    def add(self, files: Sequence[T]) -> Deferred[list[Any]]:
        """
        Let C{files} take part in the next batches.

        @return: fires with as many outcomes.
        """
        request = _Request(len(files), [None] * len(files), Deferred())
        self._queue.extend((file, request, index) for index, file in enumerate(files))
        if not self._busy:
            self._busy = True
            # what else arrived in this turn of the reactor comes along
            self._callLater(0, self._start)
        return request.done

    def _start(self) -> None:
        batch: list[tuple[T, _Request, int]] = []
        size, most = 0, batchFiles()
        while self._queue and len(batch) < most and size < BATCH_BYTES:
            batch.append(self._queue.popleft())
            size += self._size(batch[-1][0])
        self._run([file for file, _, _ in batch]).addBoth(self._finished, batch)

    def _finished(
        self, outcomes: list[Any] | Failure, batch: list[tuple[T, _Request, int]]
    ) -> None:
        if self._queue:
            self._start()
        else:
            self._busy = False
        if isinstance(outcomes, Failure):
            outcomes = [outcomes] * len(batch)
        for (_, request, index), outcome in zip(batch, outcomes, strict=True):
            request.outcomes[index] = outcome
            request.left -= 1
            if not request.left:
                request.done.callback(request.outcomes)
        if not self._busy:
            self._draining.wake()
