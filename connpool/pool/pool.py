"""
The pool: what L{Core} decides, done with endpoints, transports and Deferreds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from sys import _getframe
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from connpool.errors import ForeignLease
from connpool.interfaces import IConnecting, IConnectionPool, ILease, IStatsSource
from connpool.pool import phases
from connpool.pool.acquire import UNSET, checkedTimeout
from connpool.pool.arguments import (
    asEndpoints,
    checkCallable,
    checkFactory,
    checkLimits,
    checkReactor,
    checkSingleUse,
)
from connpool.pool.connection import Connection
from connpool.pool.core import Core
from connpool.pool.explaining import explain
from connpool.pool.lease import Lease, Scope, use
from connpool.pool.observation import Watch
from connpool.pool.refusals import places
from connpool.pool.settings import Settings
from connpool.pool.shell import Shell
from connpool.pool.stats import PoolStats, snapshot

__all__ = ["ConnectionPool"]

_numbers = itertools.count(1)


@implementer(IConnecting, IConnectionPool, IStatsSource)
class ConnectionPool:
    """
    See L{IConnectionPool}.

    Nothing is dialled, and no timer armed, before the first acquire or L{start}.

    @param reactor: the clock: C{seconds} and C{callLater}.
    @param endpoint: an L{IStreamClientEndpoint}, or several: the first that is
        not down is dialled.
    @param factory: an ordinary factory for the user's protocols.
    @param prepare: called with each new protocol before it is handed out, to
        log in or say hello; may return a Deferred or be a coroutine function.
    @param name: for logs, errors and metrics.
    @param observers: see L{IPoolObserver}.
    @param limits: see L{Settings}.
    @ivar name: the same.
    @ivar shell: the inside, for the rest of this package.
    @raise ValueError: for a limit out of range.
    @raise TypeError: for an argument that is of no use.
    """

    kind = "pool"

    def __init__(
        self,
        reactor: Any,
        endpoint: Any,
        factory: Any,
        *,
        prepare: Callable[[Any], Any] | None = None,
        name: str | None = None,
        observers: Iterable[Any] = (),
        **limits: Any,
    ) -> None:
        checkReactor(reactor)
        endpoints = asEndpoints(endpoint)
        checkFactory(factory)
        if prepare is not None:
            checkCallable("prepare", prepare, "one that takes a protocol, or None")
        checkLimits(limits)
        settings = Settings(**limits)
        checkSingleUse(endpoints, settings)
        self.name = f"{next(_numbers)}" if name is None else name
        core = Core(self.name, settings, endpoints, Connection)
        self._core: Any = core  # its slots are connections
        self.shell = Shell(reactor, core, factory, prepare, Watch(self, core, observers))
        self._seconds = self.shell.seconds

    def __repr__(self) -> str:
        size = self._core.inventory.size
        return f"<ConnectionPool {self.name}: {self._core.phase.value}, {size} connections>"

    # -- acquire and release

    def acquire(self, timeout: float | None = UNSET) -> Deferred[Lease]:
        """
        See L{IConnectionPool.acquire}.
        """
        frame = _getframe(1)
        core = self._core
        if timeout is not UNSET:
            checkedTimeout(timeout)
        connection: Any
        if core.calm and (connection := core.take(self._seconds())) is not None:
            connection.code = frame.f_code
            connection.offset = frame.f_lasti
            if not core.calm:
                self.shell.settle()
            return succeed(Lease(self.shell, connection))
        return self.shell.acquire(timeout, frame.f_code, frame.f_lasti)

    def tryAcquire(self) -> Lease | None:
        """
        See L{IConnectionPool.tryAcquire}.
        """
        core = self._core
        frame = _getframe(1)
        connection: Any
        if core.calm and (connection := core.take(self._seconds())) is not None:
            connection.code = frame.f_code
            connection.offset = frame.f_lasti
            if not core.calm:
                self.shell.settle()
            return Lease(self.shell, connection)
        return self.shell.tryAcquire(frame.f_code, frame.f_lasti)

    def lease(self, timeout: float | None = UNSET) -> Scope:
        """
        See L{IConnectionPool.lease}.
        """
        frame = _getframe(1)
        if timeout is not UNSET:
            checkedTimeout(timeout)
        return Scope(self.shell, timeout, frame.f_code, frame.f_lasti)

    def run(
        self, f: Callable[..., Any], *args: Any, timeout: float | None = UNSET, **kwargs: Any
    ) -> Deferred[Any]:
        """
        See L{IConnectionPool.run}.
        """
        frame = _getframe(1)
        checkCallable("f", f, "one that takes a protocol")
        d = self.shell.acquire(checkedTimeout(timeout), frame.f_code, frame.f_lasti)
        return d.addCallback(use, lambda protocol: f(protocol, *args, **kwargs))

    def release(self, lease: ILease) -> None:
        """
        See L{IConnectionPool.release}.
        """
        self._mine(lease).release()

    def discard(self, lease: ILease, *, destinationBad: bool = False) -> None:
        """
        See L{IConnectionPool.discard}.
        """
        self._mine(lease).discard(destinationBad=destinationBad)

    def condemn(self, number: int, *, destinationBad: bool = False) -> None:
        """
        See L{IConnectionPool.condemn}.
        """
        self.shell.condemnNumber(number, destinationBad=destinationBad)

    def detach(self, lease: ILease) -> Any:
        """
        See L{IConnectionPool.detach}.
        """
        return self._mine(lease).detach()

    def _mine(self, lease: ILease) -> Lease:
        if not isinstance(lease, Lease) or lease.owner is not self.shell:
            raise ForeignLease(
                f"{lease!r} is no lease of pool {self.name}; give it back where it came from"
            )
        return lease

    # -- the pool as a whole

    def start(self) -> None:
        """
        See L{IConnectionPool.start}.
        """
        self._core.start()
        self.shell.settle()

    def whenReady(self, count: int | None = None, timeout: float | None = None) -> Deferred[None]:
        """
        See L{IConnectionPool.whenReady}.
        """
        return self.shell.whenReady(count, checkedTimeout(timeout))

    def stats(self) -> PoolStats:
        """
        See L{IStatsSource.stats}.
        """
        return snapshot(self._core)

    def trouble(self) -> str | None:
        """
        See L{IReadiness.trouble}.
        """
        return self.shell.trouble()

    def destinations(self) -> list[str]:
        """
        See L{IConnecting.destinations}.
        """
        return places(self._core)

    def explain(self) -> str:
        """
        See L{IConnectionPool.explain}.
        """
        return explain(self._core, self._seconds())

    @property
    def settings(self) -> Settings:
        """
        See L{IConnectionPool.settings}.
        """
        settings: Settings = self._core.settings
        return settings

    def reconfigure(self, **changes: Any) -> None:
        """
        See L{IConnectionPool.reconfigure}.
        """
        checkLimits(changes)
        settings = attrs.evolve(self._core.settings, **changes)
        checkSingleUse([each.endpoint for each in self._core.supply.destinations], settings)
        self._core.configure(settings)
        self.shell.watch.configured()
        self.shell.settle()

    def purge(self, over: float = 0.0) -> None:
        """
        See L{IConnectionPool.purge}.
        """
        if checkedTimeout(over, "over") is None:
            raise ValueError("over=None is out of range: it must be seconds, 0 or more")
        phases.purge(self._core, self._seconds(), over=over)
        self.shell.watch.tell("poolPurged", self._core.inventory.generation)
        self.shell.settle()

    def pause(self, *, queue: bool = True) -> None:
        """
        See L{IConnectionPool.pause}.
        """
        phases.pause(self._core, queue=queue)
        self.shell.watch.tell("poolPaused")

    def resume(self) -> None:
        """
        See L{IConnectionPool.resume}.
        """
        phases.resume(self._core)
        self.shell.watch.tell("poolResumed")
        self.shell.settle()

    def drain(self, timeout: float | None = None) -> Deferred[None]:
        """
        See L{IConnectionPool.drain}.
        """
        phases.drain(self._core, self._seconds(), checkedTimeout(timeout))
        return self.shell.whenClosed()

    def close(self, timeout: float | None = None) -> Deferred[None]:
        """
        See L{IConnectionPool.close}.
        """
        checkedTimeout(timeout)
        patience = self._core.settings.closeTimeout if timeout is None else timeout
        phases.close(self._core, self._seconds(), patience)
        return self.shell.whenClosed()
