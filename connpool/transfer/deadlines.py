"""
Deadlines for a peer that shall keep sending.

One lazily armed timer a transfer; a chunk costs two additions, no timer call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from connpool.errors import TooSlow, TransferError, TransferTimeout

__all__ = ["Pace"]


class Pace:
    """
    Watches that bytes keep coming.

    A peer is late when nothing came for C{idleTimeout} seconds, or when less
    than C{minimumRate} bytes/s came on average over such a span (a slow-loris
    sends one byte just in time).  Time in which we did not read does not count.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param idleTimeout: seconds, above 0.
    @param minimumRate: bytes/s; 0 for none.
    @param late: called once with the error that ends the transfer.
    """

    def __init__(
        self,
        clock: Any,
        idleTimeout: float,
        minimumRate: float,
        late: Callable[[TransferError], Any],
    ) -> None:
        self._clock = clock
        self._idleTimeout = idleTimeout
        self._minimumRate = minimumRate
        self._late = late
        self._call: Any = None
        self._bytes = 0
        self._last = self._began = self._stopped = clock.seconds()

    def start(self) -> None:
        """
        Begin, or go on after L{stop}.
        """
        if self._call is None:
            now = self._clock.seconds()
            # time that passed before counts: else a peer that stops us now and then is never late
            self._last = min(self._last + now - self._stopped, now)
            self._began += now - self._stopped
            self._wait(now)

    def stop(self) -> None:
        """
        Expect nothing for now: we do not read, or it is over.
        """
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
            self._stopped = self._clock.seconds()

    def arrived(self, count: int) -> None:
        """
        Note that C{count} bytes came.
        """
        self._bytes += count
        self._last = self._clock.seconds()

    def _check(self) -> None:
        self._call = None
        now = self._clock.seconds()
        if now - self._last >= self._idleTimeout:
            self._late(TransferTimeout(f"nothing came for {self._idleTimeout:g} s"))
            return
        span = now - self._began
        if span >= self._idleTimeout:
            if self._bytes < self._minimumRate * span:
                self._late(
                    TooSlow(
                        f"{self._bytes / span:.0f} bytes/s over {span:.0f} s; "
                        f"at least {self._minimumRate:g} are asked for"
                    )
                )
                return
            self._began, self._bytes = now, 0
        self._wait(now)

    def _wait(self, now: float) -> None:
        due = min(self._last, self._began) + self._idleTimeout
        self._call = self._clock.callLater(max(due - now, 0.001), self._check)
