"""
Many small files, one sync.

Theory of operation
===================
A sync costs milliseconds whatever it syncs, so files that must be durable wait
for each other: while one batch is on its way to the disk the next collects.
One thread takes a batch through all its steps (L{connpool.transfer.stores.commit}), so
a file that is sent again meanwhile finds its receipt.  Where a disk is slow, files that
need no sync go the same way.
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

__all__ = ["GroupCommit", "batchFiles"]

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
