"""
The decision whether a store's writes run on the reactor's thread.

Handing a write to a thread and back costs more than writing into the page
cache, so writes run inline while they are quick.  When the recent ones took
long (the kernel throttles writers, a network file system hangs) the store moves
to its own threads, where it delays nobody, until a run of quick ones shows that
the disk is calm again.

A running mean decides, so that one write of 100 ms moves the store, and one
that another program delayed by some milliseconds does not.
"""

from __future__ import annotations

__all__ = ["Pace"]

#: Seconds that writes may take inline, on average.
LIMIT = 0.005
#: Weight of the latest write in that average.
_WEIGHT = 0.125
#: Quick writes in a row that end the time in threads.
CALM = 32


class Pace:
    """
    @ivar inline: whether the next write runs inline.
    """

    def __init__(self, limit: float = LIMIT, calm: int = CALM) -> None:
        self._limit = limit
        self._calm = calm
        self._quick = 0
        self._mean = 0.0
        self.inline = True

    def took(self, seconds: float) -> None:
        """
        A write was done.
        """
        self._mean += _WEIGHT * (seconds - self._mean)
        if self.inline:
            if self._mean >= self._limit:
                self.inline = False
                self._quick = 0
        elif seconds >= self._limit:
            self._quick = 0
        else:
            self._quick += 1
            if self._quick >= self._calm:
                self.inline = True
                self._mean = 0.0
