"""
A place where the pool dials, and whether it is down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from connpool.pool.timers import NEVER

__all__ = ["Destination"]


class Destination:
    """
    One endpoint and its failure state, shared by every dial to it.

    While it is down there is one dial for each step of the backoff; when one
    succeeds, dials are let through slowly: one, two, four at once … up to the
    limit (postgres.js #1179: 25 connections that each had a backoff of their
    own made 12,500 dials a second).

    Its state changes on evidence only: a dial that succeeded, failed or takes too
    long, a connection that ended before the server said anything, a byte from it.

    @ivar endpoint: the stream client endpoint.
    @ivar connecting: dials that run.
    @ivar failures: failed steps in a row.
    @ivar barren: whether the last failure was a connection that was accepted and
        ended before a byte came: then a connection alone is no proof.
    @ivar early: how many connections in a row ended before a byte came; one is
        nothing to conclude from.
    @ivar slow: how many dials in a row took too long while there was another
        destination.
    @ivar retryAt: no dial before this time.
    """

    __slots__ = (
        "_stepAt",
        "barren",
        "connecting",
        "early",
        "endpoint",
        "failures",
        "retryAt",
        "slow",
        "window",
    )

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint
        self.connecting = 0
        self.failures = 0
        self.barren = False
        self.early = 0
        self.slow = 0
        self.retryAt = 0.0
        self.window: int | None = None
        self._stepAt = -NEVER

    @property
    def healthy(self) -> bool:
        """
        Tell whether nothing speaks against a dial for somebody who waits.
        """
        return not self.failures and not self.slow

    def open(self, now: float, limit: int) -> bool:
        """
        @param limit: the pool's C{maxConnecting}.
        @return: whether one more dial may start.
        """
        window = limit if self.window is None else min(self.window, limit)
        return now >= self.retryAt and self.connecting < window

    def down(self, now: float) -> bool:
        """
        Tell whether the last dial failed and the next one is not due.
        """
        return self.failures > 0 and now < self.retryAt

    def failed(
        self, startedAt: float, now: float, pause: Callable[[int], float], *, barren: bool = False
    ) -> None:
        """
        A dial failed.  Dials that ran side by side make one step.

        @param pause: the number of failed steps to the seconds before the next.
        @param barren: it was accepted first.
        """
        self.window = 1
        if self.failures and startedAt < self._stepAt:
            return
        self.barren = barren
        self.slow = 0
        self.failures += 1
        self._stepAt = now
        self.retryAt = now + pause(self.failures)

    def lagged(self, now: float, pause: Callable[[int], float]) -> None:
        """
        A dial takes too long, while others could be dialled.
        """
        if not self.failures:
            self.slow += 1
            self.retryAt = now + pause(self.slow)

    def connected(self, now: float, limit: int, pause: Callable[[int], float]) -> None:
        """
        A dial succeeded.
        """
        if self.failures and self.barren:
            # not before the next step, unless this one proves itself
            self._stepAt = now
            self.retryAt = now + pause(self.failures)
            return
        self.recovered()
        if self.window is not None:
            self.window += 1  # each of a round adds one: rounds of 1, 2, 4, …
            if self.window >= limit:
                self.window = None

    def recovered(self) -> None:
        """
        The server is there: it said something, or kept a connection for a while.
        """
        self.failures = 0
        self.barren = False
        self.slow = 0
        self.retryAt = 0.0
