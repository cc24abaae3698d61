"""
The most bytes a second that go to one destination.

Theory of operation
===================
All connections to a destination have one L{Pace}.  Whoever is about to send waits for his
turn (L{Pace.turn}), which comes when nothing is owed, and then owes what he sends
(L{Pace.spend}); so the average holds whatever the portions are, and nobody waits in the middle
of a C{DATA}, which would keep answers waiting.  Portions are an eighth of a second's worth, so that
the line is not taken whole for long.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from connpool.tokenbucket import TokenBucket
from connpool.transfer.wire.frames import MAX_DATA_BYTES
from connpool.waiting import Waiters

__all__ = ["Pace"]

#: Portions of a second's worth, and the smallest one.
_PORTIONS_A_SECOND, _LEAST_PORTION_BYTES = 8, 4096


class Pace:
    """
    @param rate: bytes a second; 0 for no limit.
    @ivar rate: the same, as it is now.
    @ivar portion: bytes that make sense at once: a power of two.
    """

    def __init__(self, clock: Any, rate: int = 0) -> None:
        self._clock = clock
        self._waiters = Waiters()
        self._call: Any = None
        self.change(rate)

    def change(self, rate: int) -> None:
        """
        Have another rate from now on, for those that wait already, too.
        """
        self.rate = rate
        portion = MAX_DATA_BYTES
        if rate:
            self._bucket = TokenBucket(rate, 1 / _PORTIONS_A_SECOND)
            portion = 1 << max(rate // _PORTIONS_A_SECOND, 1).bit_length() - 1
        self.portion = min(max(portion, _LEAST_PORTION_BYTES), MAX_DATA_BYTES)
        self._next()

    @property
    def waiting(self) -> bool:
        """
        Tell whether anybody waits for a turn.
        """
        return len(self._waiters) > 0

    def turn(self) -> Deferred[None] | None:
        """
        Wait until nothing is owed.  What is sent then must be spent in the same turn of the
        reactor.

        @return: L{None} if that is now.
        """
        if not self.rate or (not self.waiting and not self._owed()):
            return None
        turn = self._waiters.wait()
        turn.addBoth(self._left)
        self._schedule()
        return turn

    def spend(self, count: int) -> None:
        """
        Owe C{count} bytes.
        """
        if self.rate:
            self._bucket.take(count, self._clock.seconds())

    def _owed(self) -> float:
        """
        @return: seconds until nothing is owed.
        """
        return self._bucket.take(0, self._clock.seconds()) if self.rate else 0.0

    def _next(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        while self.waiting and not self._owed():
            self._waiters.wakeOne()
        self._schedule()

    def _schedule(self) -> None:
        if self.waiting and self._call is None:
            # a clock's grain: not again at once for what a rounding leaves
            self._call = self._clock.callLater(max(self._owed(), 0.001), self._next)

    def _left(self, result: Any) -> Any:
        if not self.waiting and self._call is not None:
            # the last one was cancelled
            if self._call.active():
                self._call.cancel()
            self._call = None
        return result
