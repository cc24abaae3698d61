"""
Log lines for what happens again and again.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["LogOnce", "LogRarely"]


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
