"""
One deadline after the other, for what mostly comes in time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Alarm"]


class Alarm:
    """
    A deadline that is moved often: its timer is moved only when it fires, or is due too late.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._due: float | None = None
        self._late: Callable[[], Any] = self.clear
        self._timer: Any = None

    def set(self, seconds: float, late: Callable[[], Any]) -> None:
        """
        Call C{late} after C{seconds}, instead of the one before.
        """
        self._due, self._late = self._clock.seconds() + seconds, late
        if self._timer is None:
            self._timer = self._clock.callLater(seconds, self._tick)
        elif self._timer.getTime() > self._due:
            self._timer.reset(seconds)

    def clear(self) -> None:
        """
        Expect nothing for now.
        """
        self._due = None

    def stop(self) -> None:
        """
        Expect nothing any more.
        """
        self._due = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _tick(self) -> None:
        self._timer = None
        if self._due is None:
            return
        left = self._due - self._clock.seconds()
        if left > 0:
            self._timer = self._clock.callLater(left, self._tick)
        else:
            self._due = None
            self._late()
