"""
Those who want to know when a pool is ready.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from connpool.errors import PoolClosed
from connpool.pool.core import Core
from connpool.pool.states import Phase

__all__ = ["Readiness"]


class Readiness:
    """
    Deferreds that wait until so many connections are live.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._wanted: dict[Deferred[None], int] = {}

    def __len__(self) -> int:
        return len(self._wanted)

    def when(self, count: int) -> Deferred[None]:
        """
        Return a Deferred that L{tell} fires.
        """
        ready: Deferred[None] = Deferred(self._left)
        self._wanted[ready] = count
        return ready

    def tell(self) -> None:
        """
        Fire those who have what they wait for; all fail once the pool is closing.
        """
        core = self._core
        over = core.phase not in {Phase.OPEN, Phase.PAUSED}
        for ready, count in list(self._wanted.items()):
            if ready in self._wanted and (over or core.inventory.live >= count):
                del self._wanted[ready]
                if over:
                    ready.errback(PoolClosed(f"pool {core.name} is {core.phase.value}"))
                else:
                    ready.callback(None)
        core.supply.warm = max(self._wanted.values(), default=0)

    def _left(self, ready: Deferred[Any]) -> None:
        self._wanted.pop(ready, None)
        self.tell()
