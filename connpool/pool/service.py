"""
A pool that starts and stops with a Twisted application.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from zope.interface import implementer

from connpool.interfaces import IConnecting, IReadiness, IStatsSource
from connpool.pool.acquire import checkedTimeout
from connpool.pool.keyed import KeyedConnectionPool
from connpool.pool.pool import ConnectionPool

__all__ = ["ConnectionPoolService"]


@implementer(IConnecting, IReadiness, IStatsSource)
class ConnectionPoolService(Service):
    """
    Starting warms the pool to C{minIdle}, stopping drains it, starting again begins
    anew.

    @param pool: the pool.
    @param drainTimeout: seconds leases have to come back; L{None}: for ever.
    """

    kind = "pool"

    def __init__(
        self, pool: ConnectionPool | KeyedConnectionPool, drainTimeout: float | None = 30.0
    ) -> None:
        if not isinstance(pool, (ConnectionPool, KeyedConnectionPool)):
            raise TypeError(f"pool={pool!r} is no pool; pass a ConnectionPool")
        self.pool = pool
        self.name = pool.name
        self._drainTimeout = checkedTimeout(drainTimeout, "drainTimeout")

    def startService(self) -> None:
        """
        Dial ahead.
        """
        super().startService()
        self.pool.start()

    def stopService(self) -> Deferred[None]:
        """
        @return: fires when no connection is left.
        """
        super().stopService()
        return self.pool.drain(self._drainTimeout)

    def stats(self) -> Any:
        """
        See L{IStatsSource.stats}.
        """
        return self.pool.stats()

    def destinations(self) -> list[str]:
        """
        See L{IConnecting.destinations}.
        """
        return self.pool.destinations()

    def trouble(self) -> str | None:
        """
        See L{IReadiness.trouble}.
        """
        return self.pool.trouble()
