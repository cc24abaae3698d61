"""
Many small files, one sync.

Theory of operation
===================
A sync costs milliseconds whatever it syncs, so files that must be durable wait
for each other: while one batch is on its way to the disk the next collects.
One thread takes a batch through the same order as a single file: write them
all, sync them all, publish them all, sync each directory once, append the done
records with one sync, acknowledge them all.

The contents are synced one by one, or all together by C{syncfs}, which also
writes whatever else is dirty on that file system.  Which is quicker depends on
the file system and on what else goes on, so both are tried and the time for a
file decides (L{SyncChoice}).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from connpool.transfer.records import Offer, Receipt
from connpool.waiting import Waiters

__all__ = ["Batch", "GroupCommit", "Small", "SyncChoice"]

#: Files and bytes of one batch: each file holds a descriptor, and the first
#: waits for the last.
BATCH_FILES = 256
BATCH_BYTES = 32 << 20


@attrs.define(eq=False)
class Small:
    """
    A whole file that waits for its batch.
    """

    offer: Offer
    data: bytes
    root: bytes | None
    done: Deferred[Receipt]


Batch = Sequence[Small]


class SyncChoice:
    """
    The choice between C{syncfs} and a sync of each file, for a batch.

    Keeps a running mean of seconds a file for both ways, takes the quicker
    and tries the other now and then.
    """

    #: Batches smaller than this are synced file by file and teach nothing.
    LEAST_FILES = 8
    #: Every so many batches the slower way is tried again.
    RETRY_BATCHES = 32
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
        for way in (True, False):
            if way not in self._mean:
                return way
        quicker = self._mean[True] < self._mean[False]
        return not quicker if self._count % self.RETRY_BATCHES == 0 else quicker

    def took(self, together: bool, files: int, seconds: float) -> None:
        """
        A batch was synced.
        """
        if files >= self.LEAST_FILES:
            each = seconds / files
            mean = self._mean.get(together, each)
            self._mean[together] = mean + self._WEIGHT * (each - mean)


class GroupCommit:
    """
    The small files that wait for a sync, and the batch that has its turn.

    @param run: takes a batch and returns a Deferred of as many receipts or
        Failures.
    @param callLater: the reactor's.
    """

    def __init__(
        self,
        run: Callable[[Batch], Deferred[list[Receipt | Failure]]],
        callLater: Callable[..., Any],
    ) -> None:
        self._run = run
        self._callLater = callLater
        self._queue: deque[Small] = deque()
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

    def add(self, small: Small) -> None:
        """
        Let C{small} take part in the next batch.
        """
        self._queue.append(small)
        if not self._busy:
            self._busy = True
            # what else arrived in this turn of the reactor comes along
            self._callLater(0, self._start)

    def _start(self) -> None:
        batch: list[Small] = []
        size = 0
        while self._queue and len(batch) < BATCH_FILES and size < BATCH_BYTES:
            batch.append(self._queue.popleft())
            size += len(batch[-1].data)
        self._run(batch).addBoth(self._finished, batch)

    def _finished(self, results: list[Receipt | Failure] | Failure, batch: Batch) -> None:
        if self._queue:
            self._start()
        else:
            self._busy = False
        if isinstance(results, Failure):
            results = [results] * len(batch)
        for small, result in zip(batch, results, strict=True):
            small.done.callback(result)
        if not self._busy:
            self._draining.wake()
