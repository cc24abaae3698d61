"""
A place where the pool dials, and whether it is down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Destination"]


class Destination:
    """
    One endpoint and its failure state, shared by every dial to it.

    While it is down there is one dial for each step of the backoff; when one
    succeeds, dials are let through slowly: one, two, four at once … up to the
    limit (postgres.js #1179: 25 connections that each had a backoff of their
    own made 12,500 dials a second).

    @ivar endpoint: the stream client endpoint.
    @ivar connecting: dials that run.
    @ivar failures: failed steps in a row.
    @ivar retryAt: no dial before this time.
    """

    __slots__ = ("_stepAt", "connecting", "endpoint", "failures", "retryAt", "window")

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint
        self.connecting = 0
        self.failures = 0
        self.retryAt = 0.0
        self.window: int | None = None
        self._stepAt = 0.0

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

    def failed(self, startedAt: float, now: float, pause: Callable[[int], float]) -> None:
        """
        A dial failed.  Dials that ran side by side make one step.

        @param pause: the number of failed steps to the seconds before the next.
        """
        self.window = 1
        if self.failures and startedAt < self._stepAt:
            return
        self.failures += 1
        self._stepAt = now
        self.retryAt = now + pause(self.failures)

    def succeeded(self, limit: int) -> None:
        """
        A dial succeeded.
        """
        self.failures = 0
        self.retryAt = 0.0
        if self.window is not None:
            self.window += 1  # each of a round adds one: rounds of 1, 2, 4, …
            if self.window >= limit:
                self.window = None
