"""
A pool that starts and stops with a Twisted application.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from zope.interface import implementer

from connpool.interfaces import IReadiness, IStatsSource
from connpool.pool.pool import ConnectionPool
from connpool.pool.refusals import outage

__all__ = ["ConnectionPoolService"]


@implementer(IReadiness, IStatsSource)
class ConnectionPoolService(Service):
    """
    Starting warms the pool to C{minIdle}, stopping drains it; it cannot be
    started again then.

    @param pool: the pool.
    @param drainTimeout: seconds leases have to come back; L{None}: for ever.
    """

    kind = "pool"

    def __init__(self, pool: ConnectionPool, drainTimeout: float | None = 30.0) -> None:
        self.pool = pool
        self.name = pool.name
        self._drainTimeout = drainTimeout

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

    def trouble(self) -> str | None:
        """
        See L{IReadiness.trouble}.
        """
        error = outage(self.pool.shell.core, self.pool.shell.seconds())
        return None if error is None else str(error)
