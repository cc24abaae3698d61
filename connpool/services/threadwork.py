"""
Work in threads that a stop waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread

__all__ = ["ThreadWork"]

T = TypeVar("T")


class ThreadWork:
    """
    The functions that run in threads for one service.
    """

    def __init__(self) -> None:
        self._working: set[Deferred[Any]] = set()

    def run(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """
        Run C{function} in a thread.  Cancelling ends the wait only; a stop
        waits for the thread, so that nobody else finds its work half done.
        """
        waiting: Deferred[T] = Deferred()
        working = deferToThread(function, *arguments)
        self._working.add(working)

        def ended(result: Any) -> None:
            self._working.discard(working)
            if not waiting.called:
                waiting.callback(result)

        working.addBoth(ended)
        return waiting

    def ended(self) -> Deferred[Any]:
        """
        @return: fires when all that runs now has ended.
        """
        return DeferredList(list(self._working))
