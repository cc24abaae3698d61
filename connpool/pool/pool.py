"""
The pool: what L{Core} decides, done with endpoints, transports and Deferreds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from sys import _getframe
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import AcquireTimeout, ForeignLease, LeaseError
from connpool.interfaces import IConnectionPool, ILease, ISingleUseEndpoint, IStatsSource
from connpool.pool.connection import Connection
from connpool.pool.core import Core
from connpool.pool.explaining import explain
from connpool.pool.lease import Lease, Scope
from connpool.pool.observation import Watch
from connpool.pool.refusals import refusal
from connpool.pool.settings import Settings
from connpool.pool.shell import Acquire, Shell
from connpool.pool.states import Phase, State
from connpool.pool.stats import PoolStats, snapshot

__all__ = ["UNSET", "ConnectionPool"]

LEASED = State.LEASED


class _Unset:
    def __repr__(self) -> str:
        return "the pool's acquireTimeout"


#: For a timeout: the pool's C{acquireTimeout}.
UNSET: Any = _Unset()

_numbers = itertools.count(1)


@implementer(IConnectionPool, IStatsSource)
class ConnectionPool(Shell):
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
    @raise ValueError: for a limit out of range.
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
        endpoints: Sequence[Any] = (
            [endpoint] if IStreamClientEndpoint.providedBy(endpoint) else list(endpoint)
        )
        if not endpoints:
            raise ValueError("endpoint=[] is out of range: it must be one endpoint or several")
        settings = Settings(**limits)
        for each in endpoints:
            if ISingleUseEndpoint.providedBy(each) and settings.maxUses != 1:
                raise ValueError(
                    f"endpoint={each!r} is out of range: its connections speak for one client, "
                    "so maxUses must be 1"
                )
        core = Core(
            f"{next(_numbers)}" if name is None else name,
            settings,
            endpoints,
            Connection,
        )
        super().__init__(reactor, core, factory, prepare, Watch(self, core, observers))

    def __repr__(self) -> str:
        return (
            f"<ConnectionPool {self.name}: {self._core.phase.value}, {self._core.size} connections>"
        )

    # -- acquire and release

    def acquire(self, timeout: float | None = UNSET) -> Deferred[Lease]:
        """
        See L{IConnectionPool.acquire}.
        """
        frame = _getframe(1)
        core = self._core
        if core.calm and (connection := core.take(self._seconds())) is not None:
            connection.code = frame.f_code  # type: ignore[attr-defined]
            connection.offset = frame.f_lasti  # type: ignore[attr-defined]
            if not core.calm:
                self.settle()
            return succeed(Lease(self, connection))  # type: ignore[arg-type]
        return self._acquire(timeout, frame.f_code, frame.f_lasti)

    def tryAcquire(self) -> Lease | None:
        """
        See L{IConnectionPool.tryAcquire}.
        """
        core = self._core
        if core.calm or core.phase is Phase.OPEN:
            connection: Any = core.take(self._seconds())
            if connection is not None:
                frame = _getframe(1)
                connection.code = frame.f_code
                connection.offset = frame.f_lasti
                lease = Lease(self, connection)
                if not core.calm:
                    self._watch.began(connection, connection.since)
                    self.settle()
                return lease
            if not core.calm:
                self.settle()
        return None

    def lease(self, timeout: float | None = UNSET) -> Scope:
        """
        See L{IConnectionPool.lease}.
        """
        frame = _getframe(1)
        return Scope(self, timeout, frame.f_code, frame.f_lasti)

    def run(
        self, f: Callable[..., Any], *args: Any, timeout: float | None = UNSET, **kwargs: Any
    ) -> Deferred[Any]:
        """
        See L{IConnectionPool.run}.
        """
        frame = _getframe(1)
        return self._run(frame, timeout, lambda protocol: f(protocol, *args, **kwargs))

    def _run(self, frame: Any, timeout: float | None, f: Callable[[Any], Any]) -> Deferred[Any]:
        """
        @param frame: the caller's.
        """

        def use(lease: Lease) -> Deferred[Any]:
            def used(result: Any) -> Any:
                connection, lease._connection = lease._connection, None
                if connection is not None:
                    self._leave(connection, lease, failed=isinstance(result, Failure))
                return result

            return maybeDeferred(f, lease.protocol).addBoth(used)

        return self._acquire(timeout, frame.f_code, frame.f_lasti).addCallback(use)

    def release(self, lease: ILease) -> None:
        """
        See L{IConnectionPool.release}.
        """
        self._mine(lease).release()

    def discard(self, lease: ILease) -> None:
        """
        See L{IConnectionPool.discard}.
        """
        self._mine(lease).discard()

    def detach(self, lease: ILease) -> Any:
        """
        See L{IConnectionPool.detach}.
        """
        return self._mine(lease).detach()

    def _mine(self, lease: ILease) -> Lease:
        if not isinstance(lease, Lease) or lease._pool is not self:
            raise ForeignLease(
                f"{lease!r} is no lease of pool {self.name}; give it back where it came from"
            )
        return lease

    def _acquire(self, timeout: float | None, code: Any, offset: int) -> Deferred[Lease]:
        """
        Acquire what the calm path has not.
        """
        core = self._core
        if timeout is UNSET:
            timeout = core.settings.acquireTimeout
        elif timeout is not None and not (timeout >= 0 and math.isfinite(timeout)):
            raise ValueError(
                f"timeout={timeout!r} is out of range: it must be seconds, "
                "0 or more and finite, or None"
            )
        now = self._seconds()
        self._watch.tell("acquireStarted")
        if len(core.idle) > core.dead and core.phase is Phase.OPEN and not len(core.queue):
            # not calm, but there is no queue to stand in either
            connection: Any = core.take(now)
            if connection is not None:
                connection.code = code
                connection.offset = offset
                lease = Lease(self, connection)
                if not core.calm:
                    self._watch.began(connection, now)
                    self.settle()
                return succeed(lease)
        error = refusal(core, now)
        if error is not None:
            core.counts["rejected"] += 1
            self._watch.tell("acquireFailed", error, 0.0)
            return fail(error)
        waiter = Acquire(self, now, code, offset)
        self._watch.waits(waiter)
        if core.join(waiter, timeout) or self.settled is not None:
            self.settle()
        if core.settings.debug and not waiter.deferred.called:
            self._watch.nested(waiter)
        return waiter.deferred

    def _giveBack(self, connection: Connection, lease: Lease | None) -> None:
        """
        A lease ended well.
        """
        if connection.state is not LEASED:
            return  # the connection was lost before
        core = self._core
        if connection.plain and not core.watched:
            for wire in connection.wires:
                if wire.disconnecting or wire.producer is not None:
                    break
            else:
                connection.resume()
                if connection.state is LEASED and core.give(connection, self._seconds()):
                    self.settle()
                return
        self._watch.ended(connection, self._seconds(), lease)
        if connection.busy():
            core.discard(
                connection,
                self._seconds(),
                "peer" if any(wire.disconnecting for wire in connection.wires) else "discarded",
            )
        elif connection.poolable is not None:
            self._reset(connection)
        else:
            connection.resume()
            if connection.state is LEASED:
                core.give(connection, self._seconds())
        self.settle()

    def _throwAway(
        self, connection: Connection, lease: Lease | None, reason: str = "discarded"
    ) -> None:
        """
        A lease ended and its connection is of no use.
        """
        if connection.state is LEASED:
            self._watch.ended(connection, self._seconds(), lease)
            self._core.discard(connection, self._seconds(), reason)
            self.settle()

    def _leave(self, connection: Connection, lease: Lease | None, *, failed: bool) -> None:
        """
        A block that used a lease ended.
        """
        if failed and connection.poolable is None:
            self._throwAway(connection, lease)
        else:
            self._giveBack(connection, lease)

    def _detach(self, connection: Connection, lease: Lease) -> Any:
        """
        See L{ILease.detach}.
        """
        if connection.state is not LEASED:
            raise LeaseError(f"this connection of pool {self.name} is closed; acquire another one")
        self._core.detach(connection)
        self._watch.ended(connection, self._seconds(), lease)
        self.settle()
        return connection.protocol

    def _later(self, f: Callable[..., Any], *args: Any) -> None:
        """
        Call C{f} in the reactor's thread.  The garbage collector runs anywhere,
        in any thread, between any two byte codes.
        """
        later = getattr(self._reactor, "callFromThread", None)
        if later is not None:
            later(f, *args)
        else:
            self._reactor.callLater(0, f, *args)

    def _reclaim(self, connection: Connection) -> None:
        if connection.state is LEASED:
            self._watch.leaked(connection)
            self._throwAway(connection, None, "leaked")

    # -- IPoolable

    def _reset(self, connection: Connection) -> None:
        """
        Ask the protocol whether its connection may be used again.
        """
        try:
            reusable = connection.poolable.isReusable()
        except Exception:
            self._log.failure("isReusable() of {protocol!r} failed", protocol=connection.protocol)
            reusable = False
        if connection.state is not LEASED:
            return
        if not reusable:
            self._core.discard(connection, self._seconds())
            return
        connection.resume()
        self._core.check(connection, self._seconds())
        self._await(connection, "reset", connection.poolable.reset)

    # -- the pool as a whole

    def start(self) -> None:
        """
        See L{IConnectionPool.start}.
        """
        self._core.start()
        self.settle()

    def whenReady(self, count: int | None = None, timeout: float | None = None) -> Deferred[None]:
        """
        See L{IConnectionPool.whenReady}.
        """
        ready: Deferred[None] = Deferred(self._unready)
        settings = self._core.settings
        if count is not None and count > settings.maxSize:
            raise ValueError(
                f"count={count!r} is out of range: it must be at most maxSize={settings.maxSize}"
            )
        self._readies[ready] = settings.minIdle if count is None else count
        self._fireReady()
        self.start()
        if timeout is not None:

            def late(_: Any, seconds: float) -> Any:
                raise AcquireTimeout(f"pool {self.name} was not ready within {seconds:g} s")

            ready.addTimeout(timeout, self._reactor, late)
        return ready

    def _unready(self, ready: Deferred[None]) -> None:
        self._readies.pop(ready, None)
        self._fireReady()

    def stats(self) -> PoolStats:
        """
        See L{IStatsSource.stats}.
        """
        return snapshot(self._core, self._seconds())

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
        return self._core.settings

    def reconfigure(self, **changes: Any) -> None:
        """
        See L{IConnectionPool.reconfigure}.
        """
        self._core.configure(attrs.evolve(self._core.settings, **changes))
        self._watch.configured()
        self.settle()

    def purge(self) -> None:
        """
        See L{IConnectionPool.purge}.
        """
        self._core.purge(self._seconds())
        self._watch.tell("poolPurged", self._core.generation)
        self.settle()

    def pause(self, *, queue: bool = True) -> None:
        """
        See L{IConnectionPool.pause}.
        """
        self._core.pause(queue=queue)
        self._watch.tell("poolPaused")

    def resume(self) -> None:
        """
        See L{IConnectionPool.resume}.
        """
        self._core.resume()
        self._watch.tell("poolResumed")
        self.settle()

    def drain(self, timeout: float | None = None) -> Deferred[None]:
        """
        See L{IConnectionPool.drain}.
        """
        self._core.drain(self._seconds(), timeout)
        return self._whenClosed()

    def close(self, timeout: float | None = None) -> Deferred[None]:
        """
        See L{IConnectionPool.close}.
        """
        patience = self._core.settings.closeTimeout if timeout is None else timeout
        self._core.close(self._seconds(), patience)
        return self._whenClosed()

    def _whenClosed(self) -> Deferred[None]:
        closer: Deferred[None] = Deferred()
        if self._core.phase is Phase.CLOSED:
            closer.callback(None)
        else:
            self._closers.append(closer)
            self.settle()
        return closer
