"""
Log lines for what happens again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

__all__ = ["GATHER_SECONDS", "LogGathered", "LogOnce", "LogRarely"]

T = TypeVar("T")

#: Seconds in which events are gathered after one, and how many do not wait for their end.
GATHER_SECONDS, MAX_GATHERED = 0.05, 512


class LogOnce:
    """
    Says a trouble when it begins or changes, not each time it is met.

    @param say: logs one text.
    @ivar trouble: the present one; empty for none.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.trouble = ""

    def met(self, trouble: str) -> None:
        """
        Log C{trouble} unless it was the last one that was met.
        """
        if trouble != self.trouble:
            self.trouble = trouble
            self._say(trouble)

    def over(self) -> bool:
        """
        Forget the trouble, so that the next one is logged.

        @return: whether there was one.
        """
        ended, self.trouble = bool(self.trouble), ""
        return ended


class LogRarely:
    """
    Says the first of many like events, then at most one an interval, with the
    number of those that were not said.  Needs no timer: what is left over is said
    with the next event, or by L{flush}.

    @param say: logs one event: its text, and how many were not said since the last
        line.
    @param interval: seconds between two lines, at least.
    """

    def __init__(self, say: Callable[[str, int], None], interval: float = 60.0) -> None:
        self._say = say
        self._interval = interval
        self._next: float | None = None
        self._latest = ""
        self.unsaid = 0

    def happened(self, event: str, now: float) -> None:
        """
        Log C{event}, or count it.

        @param now: seconds.  A clock that is set back brings a line early, not late.
        """
        if self._next is None or not self._next - self._interval <= now < self._next:
            self._next = now + self._interval
            unsaid, self.unsaid = self.unsaid, 0
            self._say(event, unsaid)
        else:
            self.unsaid += 1
            self._latest = event

    def flush(self) -> None:
        """
        Log the latest event if it was only counted.
        """
        if self.unsaid:
            unsaid, self.unsaid = self.unsaid - 1, 0
            self._say(self._latest, unsaid)


class LogGathered(Generic[T]):
    """
    Says an event at once, and those that follow within L{GATHER_SECONDS} together at
    the end of that time: one line takes the log as long as some small files take us.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param say: logs events, in their order.
    """

    def __init__(self, clock: Any, say: Callable[[list[T]], None]) -> None:
        self._clock = clock
        self._say = say
        self._gathered: list[T] = []
        self._next = 0.0
        self._call: Any = None

    def happened(self, events: Iterable[T]) -> None:
        """
        Log C{events}, now or with those that follow.
        """
        self._gathered += events
        many = len(self._gathered) >= MAX_GATHERED
        if many or self._call is None:
            wait = self._next - self._clock.seconds()
            # a clock that is set back holds nothing up
            if 0 < wait <= GATHER_SECONDS and not many:
                self._call = self._clock.callLater(wait, self.flush)
            else:
                self.flush()

    def flush(self) -> None:
        """
        Log what waits.
        """
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()
        gathered, self._gathered = self._gathered, []
        self._next = self._clock.seconds() + GATHER_SECONDS
        if gathered:
            self._say(gathered)
