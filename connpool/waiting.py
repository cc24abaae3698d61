"""
The Deferreds that wait for one event.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

__all__ = ["Tasks", "Waiters"]

_T = TypeVar("_T")


class Waiters:
    """
    Deferreds that wait for an event, in the order in which they came.  One that
    is cancelled leaves at once, in constant time.
    """

    def __init__(self) -> None:
        self._waiting: dict[Deferred[None], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self) -> Deferred[None]:
        """
        @return: fires at the next L{wake}, or in its turn by L{wakeOne}.
        """
        d: Deferred[None] = Deferred(self._left)
        self._waiting[d] = None
        return d

    def wake(self) -> None:
        """
        Let all go on.  Those that come to wait meanwhile wait for the next time.
        """
        waiting, self._waiting = self._waiting, {}
        for d in waiting:
            if not d.called:
                d.callback(None)

    def wakeOne(self) -> None:
        """
        Let the oldest one go on, if one waits.
        """
        for d in self._waiting:
            del self._waiting[d]
            d.callback(None)
            return

    def fail(self, why: BaseException) -> None:
        """
        Fail all that wait.
        """
        waiting, self._waiting = self._waiting, {}
        for d in waiting:
            if not d.called:
                d.errback(why)

    def _left(self, d: Deferred[None]) -> None:
        self._waiting.pop(d, None)


class Tasks:
    """
    The work that is under way.
    """

    def __init__(self) -> None:
        self._count = 0
        self._idle = Waiters()

    def __len__(self) -> int:
        return self._count

    def during(self, work: Deferred[_T] | Coroutine[Deferred[Any], Any, _T]) -> Deferred[_T]:
        """
        Count C{work} until it is over.
        """
        self._count += 1
        d = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
        return d.addBoth(self._over)

    async def idle(self) -> None:
        """
        Wait until there is none.
        """
        while self._count:
            await self._idle.wait()

    def _over(self, result: _T) -> _T:
        self._count -= 1
        if not self._count:
            self._idle.wake()
        return result
