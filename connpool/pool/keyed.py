"""
Many pools under one limit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from sys import _getframe
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import Deferred, fail, gatherResults
from zope.interface import implementer

from connpool.errors import PoolClosed
from connpool.interfaces import IStatsSource
from connpool.pool.acquire import UNSET, checkedTimeout
from connpool.pool.clock import steady
from connpool.pool.core import Core
from connpool.pool.lease import Lease, Scope, use
from connpool.pool.pool import ConnectionPool

__all__ = ["KeyedConnectionPool", "KeyedPoolStats"]


@attrs.frozen(kw_only=True)
class KeyedPoolStats:
    """
    A keyed pool at one moment.

    @ivar state: C{open} or C{closed}.
    @ivar maxTotal: the cap over all keys.
    @ivar size: all connections of all keys.
    @ivar keys: keys that have a connection or a waiter.
    @ivar starving: keys that wait for room under the cap.
    @ivar evictions: idle connections closed to make room for another key.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset({"maxTotal", "size", "keys", "starving"})

    state: str
    maxTotal: int
    size: int
    keys: int
    starving: int
    evictions: int


@implementer(IStatsSource)
class KeyedConnectionPool:
    """
    One L{ConnectionPool} for each key, and C{maxTotal} for all together.

    When the total is reached and a key needs a connection, the connection that
    has been idle for longest in a key that was not used lately is closed to
    make room; if none is idle, keys are served in the order in which they began
    to need one.  A key without connections and waiters takes no memory: its
    pool is closed, the next acquire makes another.

    While no key starves, the keys' pools are as calm as any other pool, and what
    they do is not looked at.  When one begins to, all become uneasy, so that
    no return of a connection is missed.

    @param reactor: see L{ConnectionPool}, as everything not listed here.
    @param endpointFor: a key to its endpoint, or endpoints.
    @param factory: for the protocols of all keys.
    @param maxTotal: connections of any state and any key.
    @param limits: of each key's pool; C{minIdle} yields to keys that wait.
    @raise ValueError: for a limit out of range.
    """

    kind = "pool"

    def __init__(
        self,
        reactor: Any,
        endpointFor: Callable[[Any], Any],
        factory: Any,
        *,
        maxTotal: int = 100,
        name: str = "keyed",
        **limits: Any,
    ) -> None:
        if isinstance(maxTotal, bool) or not isinstance(maxTotal, int) or maxTotal < 1:
            raise ValueError(
                f"maxTotal={maxTotal!r} is out of range: it must be a whole number of at least 1"
            )
        self.name = name
        self._reactor = reactor
        self._seconds = steady(reactor)
        self._endpointFor = endpointFor
        self._factory = factory
        self._maxTotal = maxTotal
        self._limits = limits
        self._pools: dict[Hashable, ConnectionPool] = {}
        self._size = 0
        # keys that may have something idle, and how often each had been acquired from
        # when it was put at the end: one used since then gets a second chance
        self._idlers: OrderedDict[Hashable, int] = OrderedDict()
        self._calm: set[Core] = set()
        self._starving: OrderedDict[Hashable, None] = OrderedDict()
        # keys kept for their failure state only
        self._lingering: OrderedDict[Hashable, float] = OrderedDict()
        self._turn: Core | None = None  # whom the room is for that just became free
        self._evicting = 0
        self._evictions = 0
        self._feeding = False
        self._closed = False
        # the limits are checked now, not at the first acquire
        ConnectionPool(reactor, _Nowhere(), factory, **limits)

    def acquire(self, key: Hashable, timeout: float | None = UNSET) -> Deferred[Lease]:
        """
        L{IConnectionPool.acquire} of C{key}'s pool.
        """
        if self._closed:
            return fail(self._refusal())
        frame = _getframe(1)
        return self._pool(key).shell.acquire(checkedTimeout(timeout), frame.f_code, frame.f_lasti)

    def tryAcquire(self, key: Hashable) -> Lease | None:
        """
        L{IConnectionPool.tryAcquire} of C{key}'s pool.
        """
        pool = self._pools.get(key)
        if pool is None:
            return None
        frame = _getframe(1)
        return pool.shell.tryAcquire(frame.f_code, frame.f_lasti)

    def lease(self, key: Hashable, timeout: float | None = UNSET) -> Scope:
        """
        L{IConnectionPool.lease} of C{key}'s pool.

        @raise PoolClosed: the keyed pool is closed.
        """
        if self._closed:
            raise self._refusal()
        frame = _getframe(1)
        return _KeyedScope(self, key, timeout, frame)

    def run(
        self,
        key: Hashable,
        f: Callable[..., Any],
        *args: Any,
        timeout: float | None = UNSET,
        **kwargs: Any,
    ) -> Deferred[Any]:
        """
        L{IConnectionPool.run} of C{key}'s pool.
        """
        if self._closed:
            return fail(self._refusal())
        frame = _getframe(1)
        d = self._pool(key).shell.acquire(checkedTimeout(timeout), frame.f_code, frame.f_lasti)
        return d.addCallback(use, lambda protocol: f(protocol, *args, **kwargs))

    def pools(self) -> dict[Hashable, ConnectionPool]:
        """
        @return: the pools that exist now.
        """
        return dict(self._pools)

    def stats(self) -> KeyedPoolStats:
        """
        See L{IStatsSource.stats}.
        """
        return KeyedPoolStats(
            state="closed" if self._closed else "open",
            maxTotal=self._maxTotal,
            size=self._size,
            keys=len(self._pools) - len(self._lingering),
            starving=len(self._starving),
            evictions=self._evictions,
        )

    def purge(self) -> None:
        """
        L{IConnectionPool.purge} of every key.
        """
        for pool in self.pools().values():
            pool.purge()

    def drain(self, timeout: float | None = None) -> Deferred[None]:
        """
        L{IConnectionPool.drain} of every key.
        """
        self._closed = True
        return _all([pool.drain(timeout) for pool in self.pools().values()])

    def close(self, timeout: float | None = None) -> Deferred[None]:
        """
        L{IConnectionPool.close} of every key.
        """
        self._closed = True
        return _all([pool.close(timeout) for pool in self.pools().values()])

    def _refusal(self) -> PoolClosed:
        return PoolClosed(f"pool {self.name} is closed; acquire from another")

    def _pool(self, key: Hashable) -> ConnectionPool:
        pool = self._pools.get(key)
        if pool is None:
            self._sweep()
            pool = ConnectionPool(
                self._reactor,
                self._endpointFor(key),
                self._factory,
                name=f"{self.name}[{key!r}]",
                **self._limits,
            )
            pool.shell.core.inventory.budget = _Share(self, key, pool.shell.core)
            pool.shell.settled = lambda: self._settled(key, pool)
            self._pools[key] = pool
        return pool

    def _settled(self, key: Hashable, pool: ConnectionPool) -> None:
        """
        C{pool} has done what there was to do.
        """
        if self._pools.get(key) is not pool:
            return
        core = pool.shell.core
        if not len(core.queue):
            self._starving.pop(key, None)
        if core.inventory.size:
            self._idlers[key] = core.acquires
            self._idlers.move_to_end(key)
        else:
            self._idlers.pop(key, None)
        if core.calm:
            self._calm.add(core)
        if core.inventory.size or len(core.queue):
            self._lingering.pop(key, None)
        else:
            self._vanish(key, pool)
        self._feed()

    def _vanish(self, key: Hashable, pool: ConnectionPool) -> None:
        """
        C{key} has nothing left; but while its destination is down, that is
        remembered: else every acquire would dial.
        """
        until = max(each.retryAt for each in pool.shell.core.supply.destinations)
        if until > self._seconds():
            self._lingering[key] = until
        else:
            self._lingering.pop(key, None)
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        """
        Whoever still has the pool from L{pools} must not dial past the total.
        """
        pool = self._pools.pop(key)
        self._calm.discard(pool.shell.core)
        pool.close()

    def _sweep(self) -> None:
        """
        Forget the failures of keys whose back-off is over.
        """
        now = self._seconds()
        for _ in range(min(2, len(self._lingering))):
            key, until = self._lingering.popitem(last=False)
            if until > now:
                self._lingering[key] = until
            else:
                self._drop(key)

    def _starve(self, key: Hashable) -> None:
        """
        C{key} needs room that is not there.
        """
        for core in self._calm:
            core.calm = False
        self._calm.clear()
        self._starving.setdefault(key, None)

    def _feed(self) -> None:
        """
        Give room to keys that need it, and make room.
        """
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._starving:
                if self._size < self._maxTotal:
                    key, _none = self._starving.popitem(last=False)
                    pool = self._pools[key]
                    self._turn = pool.shell.core
                    pool.shell.settle()
                    self._turn = None
                elif self._evicting >= len(self._starving) or not self._evict():
                    break
        finally:
            self._feeding = False

    def _evict(self) -> bool:
        """
        Close one idle connection.
        """
        while self._idlers:
            key, acquires = next(iter(self._idlers.items()))
            pool = self._pools[key]
            core = pool.shell.core
            if core.acquires != acquires:
                self._idlers[key] = core.acquires
                self._idlers.move_to_end(key)
            elif core.evict(self._seconds()):
                self._evictions += 1
                self._evicting += 1
                pool.shell.settle()
                return True
            else:
                del self._idlers[key]  # until something comes back to it
        return False


class _KeyedScope(Scope):
    """
    A scope whose pool is looked up when it is entered: between, it may vanish.
    """

    __slots__ = ("_key", "_keyed")

    def __init__(self, keyed: KeyedConnectionPool, key: Hashable, timeout: Any, frame: Any) -> None:
        super().__init__(None, checkedTimeout(timeout), frame.f_code, frame.f_lasti)  # type: ignore[arg-type]
        self._keyed = keyed
        self._key = key

    async def __aenter__(self) -> Any:
        if self._connection is None:
            if self._keyed._closed:
                raise self._keyed._refusal()
            self.owner = self._keyed._pool(self._key).shell
        return await super().__aenter__()


class _Nowhere:
    """
    In place of an endpoint, when limits are checked before there is one.
    """

    def connect(self, factory: Any) -> Deferred[Any]:
        """
        Not called.
        """
        raise NotImplementedError


class _Share:
    """
    One key's access to the total.  See L{connpool.pool.inventory.Budget}.
    """

    def __init__(self, keyed: KeyedConnectionPool, key: Hashable, core: Core) -> None:
        self._keyed = keyed
        self._key = key
        self._core = core

    @property
    def starving(self) -> bool:
        """
        See L{Budget}.
        """
        return bool(self._keyed._starving)

    def claim(self) -> bool:
        """
        See L{Budget.claim}.
        """
        keyed = self._keyed
        if keyed._size < keyed._maxTotal and (not keyed._starving or keyed._turn is self._core):
            keyed._turn = None  # one at a time, and nobody before who waits for longer
            keyed._size += 1
            return True
        if len(self._core.queue):
            # only who waits: for minIdle alone two keys would evict each other for ever
            keyed._starve(self._key)
        return False

    def spare(self) -> bool:
        """
        See L{Budget.spare}.
        """
        keyed = self._keyed
        if keyed._starving or keyed._size >= keyed._maxTotal:
            return False
        keyed._size += 1
        return True

    def yields(self, since: float, now: float) -> bool:
        """
        See L{Budget.yields}.
        """
        return False

    def free(self) -> None:
        """
        See L{Budget.free}.
        """
        self._keyed._size -= 1
        if self._keyed._evicting:
            self._keyed._evicting -= 1


def _all(ends: list[Deferred[None]]) -> Deferred[None]:
    """
    @return: fires when all have.
    """
    return gatherResults(ends, consumeErrors=True).addCallback(lambda _: None)
