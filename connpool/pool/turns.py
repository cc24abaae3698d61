"""
Connections that wait for the reactor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from connpool.pool.connection import Connection

__all__ = ["Turns"]


class Turns:
    """
    Lets connections return after some turns of the reactor, with one call for all.

    @param done: called with those whose turns are over.
    @ivar waiting: the connections, and how many turns each has left.
    """

    def __init__(self, reactor: Any, done: Callable[[list[Connection]], None]) -> None:
        self._reactor = reactor
        self._done = done
        self._next: Any = None
        self.waiting: dict[Connection, int] = {}

    def let(self, connection: Connection, turns: int) -> None:
        """
        Let C{connection} return after so many turns, at least 1.
        """
        if self._next is None:
            self._next = self._reactor.callLater(0, self._turn)
        self.waiting[connection] = turns

    def stop(self) -> None:
        """
        Forget them all.
        """
        self.waiting.clear()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _turn(self) -> None:
        self._next = None
        waiting, self.waiting = self.waiting, {}
        over = []
        for connection, turns in waiting.items():
            if turns > 1:
                self.let(connection, turns - 1)
            else:
                over.append(connection)
        self._done(over)
