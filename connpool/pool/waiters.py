"""
The queues in which acquires wait.

Both are O(1) to join, to leave from anywhere and to serve from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from connpool.pool.states import Waiter
from connpool.pool.timers import NEVER

__all__ = ["CodelQueue", "FifoQueue"]


class FifoQueue:
    """
    First come, first served.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: OrderedDict[Waiter, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._entries)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self._entries

    def join(self, waiter: Waiter) -> None:
        """
        Stand at the end.
        """
        self._entries[waiter] = None

    def leave(self, waiter: Waiter) -> bool:
        """
        @return: whether C{waiter} was in the queue.
        """
        try:
            del self._entries[waiter]
        except KeyError:
            return False
        return True

    def oldest(self) -> Waiter | None:
        """
        Take the waiter that came first.
        """
        return self._entries.popitem(last=False)[0] if self._entries else None

    def pop(self, now: float) -> Waiter | None:
        """
        Take the waiter to serve next.
        """
        return self._entries.popitem(last=False)[0] if self._entries else None

    def shed(self, now: float) -> Waiter | None:
        """
        Take a waiter that had better be refused than served, if there is one.
        """
        return None


class CodelQueue(FifoQueue):
    """
    Controlled delay (Nichols and Jacobson, "Controlling Queue Delay", 2012)
    with adaptive LIFO (Maurer, "Fail at Scale", 2015).

    A queue that empties is a burst and is served in order.  When the oldest
    waiter has been over C{target} for a whole C{interval}, the queue is a
    standing one: then the newest is served, whose caller still waits for the
    answer, and those that have waited for more than C{interval} are shed.

    @ivar overloaded: whether the queue is a standing one now.
    """

    __slots__ = ("_above", "_interval", "_target", "overloaded")

    def __init__(self, target: float, interval: float) -> None:
        super().__init__()
        self._target = target
        self._interval = interval
        self._above = NEVER
        self.overloaded = False

    def pop(self, now: float) -> Waiter | None:
        """
        The newest while overloaded, else the oldest.
        """
        if not self._entries:
            return None
        self._observe(now)
        return self._entries.popitem(last=self.overloaded)[0]

    def shed(self, now: float) -> Waiter | None:
        """
        While overloaded, the oldest if it waited longer than the interval.
        """
        if not self.overloaded or not self._entries:
            return None
        oldest = next(iter(self._entries))
        if now - oldest.since <= self._interval:
            return None
        del self._entries[oldest]
        return oldest

    def _observe(self, now: float) -> None:
        """
        Decide from the oldest waiter's wait whether this is overload.
        """
        if now - next(iter(self._entries)).since < self._target:
            self._above = NEVER
            self.overloaded = False
        elif self._above == NEVER:
            self._above = now + self._interval
        elif now >= self._above:
            self.overloaded = True
