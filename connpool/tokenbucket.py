"""
Limits on how often something may happen.

Buckets are kept by the generic cell rate algorithm (ITU-T I.371, appendix): one
number a bucket, the time at which it will be full again.
"""

from __future__ import annotations

from array import array

__all__ = ["TokenBucket", "TokenBuckets"]


class TokenBuckets:
    """
    A fixed number of token buckets, all of one rate and size.

    @ivar interval: seconds in which a token comes.
    @ivar depth: seconds in which an empty bucket fills; a hair more, so that a
        full one holds all of its burst.
    @ivar full: when each will be full again, in seconds.

    @param rate: tokens per second, above 0.
    @param burst: tokens of a full bucket.
    """

    def __init__(self, slots: int, rate: float, burst: float) -> None:
        self.interval = 1.0 / rate
        self.depth = (burst + 1e-6) / rate
        self.full = array("d", bytes(8 * slots))

    def free(self, slot: int, now: float) -> int:
        """
        @return: how many tokens the bucket holds.
        """
        return int((now + self.depth - max(self.full[slot], now)) / self.interval)

    def take(self, slot: int, count: int, now: float) -> None:
        """
        Take tokens.  Those that are not there become a debt.
        """
        self.full[slot] = max(self.full[slot], now) + count * self.interval

    def wait(self, slot: int, now: float) -> float:
        """
        @return: seconds until the bucket owes nothing; 0 if it does not.
        """
        return max(0.0, self.full[slot] - now - self.depth)


class TokenBucket:
    """
    One bucket whose takers wait.  Tokens that are taken beyond the rate are a debt
    that the next taker waits for, so the average holds whatever the portions are.
    A clock that is set back makes no debt.

    @param rate: tokens per second, above 0.
    @param burst: seconds' worth of tokens that a full bucket holds.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._buckets = TokenBuckets(1, rate, burst * rate)
        self._now = 0.0

    def take(self, count: int, now: float) -> float:
        """
        @return: seconds to wait after taking C{count} tokens; 0 for none.
        """
        buckets = self._buckets
        buckets.full[0] -= max(0.0, self._now - now)
        self._now = now
        buckets.take(0, count, now)
        return buckets.wait(0, now)
