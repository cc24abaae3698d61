"""
The queues in which acquires wait.

Both are O(1) to join, to leave from anywhere and to serve from.
"""

from __future__ import annotations

from collections import OrderedDict

from connpool.pool.states import Waiter
from connpool.pool.timers import NEVER

__all__ = ["CodelQueue", "FifoQueue"]


class FifoQueue(OrderedDict[Waiter, None]):
    """
    First come, first served.

    Most waiters have the same patience, so the queue is in the order of their ends
    too, and only the first one's has to be looked at: a waiter costs no timer and no
    entry in a heap.
    """

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        super().__init__()
        self._latest = NEVER

    def join(self, waiter: Waiter) -> bool:
        """
        Stand at the end.

        @return: whether nobody before has to go later.  If not, the end of this one
            must be on an agenda, since L{until} may not tell it in time.
        """
        ordered = not self or waiter.until >= self._latest
        if ordered:
            self._latest = waiter.until
        self[waiter] = None
        return ordered

    def leave(self, waiter: Waiter) -> bool:
        """
        @return: whether C{waiter} was in the queue.
        """
        try:
            del self[waiter]
        except KeyError:
            return False
        return True

    def oldest(self) -> Waiter | None:
        """
        Take the waiter that came first.
        """
        return self.popitem(last=False)[0] if self else None

    def until(self) -> float:
        """
        Return when the oldest has to go.  None that joined in order goes before, and
        the others are on an agenda.
        """
        return next(iter(self)).until if self else NEVER

    def following(self, now: float) -> Waiter | None:
        """
        Take the waiter to serve next.
        """
        return self.popitem(last=False)[0] if self else None

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

    def following(self, now: float) -> Waiter | None:
        """
        The newest while overloaded, else the oldest.
        """
        if not self:
            return None
        self._observe(now)
        return self.popitem(last=self.overloaded)[0]

    def shed(self, now: float) -> Waiter | None:
        """
        While overloaded, the oldest if it waited longer than the interval.
        """
        if not self.overloaded or not self:
            return None
        oldest = next(iter(self))
        if now - oldest.since <= self._interval:
            return None
        del self[oldest]
        return oldest

    def _observe(self, now: float) -> None:
        """
        Decide from the oldest waiter's wait whether this is overload.
        """
        if now - next(iter(self)).since < self._target:
            self._above = NEVER
            self.overloaded = False
        elif self._above == NEVER:
            self._above = now + self._interval
        elif now >= self._above:
            self.overloaded = True
