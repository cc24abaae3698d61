"""
A limit on bytes per second.
"""

from __future__ import annotations

__all__ = ["Throttle"]

#: Seconds' worth of bytes that pass at once.
BURST = 0.1


class Throttle:
    """
    Says how long to wait.  What was taken beyond the rate is a debt that the
    next one waits for, so the average holds whatever the pieces are.  A clock that
    is set back makes no debt.

    @param rate: bytes/s, above 0.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._paid = self._now = 0.0

    def take(self, count: int, now: float) -> float:
        """
        @return: seconds to wait after taking C{count} bytes; 0 for none.
        """
        self._paid -= max(0.0, self._now - now)
        self._now = now
        self._paid = max(self._paid, now) + count / self._rate
        return max(0.0, self._paid - now - BURST)
