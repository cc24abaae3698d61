"""
Whether a store's writes run on the reactor's thread.

Handing a write to a thread and back costs more than writing into the page
cache, so writes run inline while they are quick.  One that took long (the
kernel throttles writers, a network file system hangs) moves the store to its
own threads, where it delays nobody, until a run of quick ones shows that the
disk is calm again.
"""

from __future__ import annotations

__all__ = ["Pace"]

#: Seconds that a write may take inline.
LIMIT = 0.005
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
        self.inline = True

    def took(self, seconds: float) -> None:
        """
        A write was done.
        """
        if seconds >= self._limit:
            self.inline = False
            self._quick = 0
        elif not self.inline:
            self._quick += 1
            if self._quick >= self._calm:
                self.inline = True
