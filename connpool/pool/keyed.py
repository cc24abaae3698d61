"""
Many pools under one limit.
"""

from __future__ import annotations

import heapq
import inspect
import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from sys import _getframe
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred, fail, gatherResults
from zope.interface import implementer

from connpool.errors import PoolClosed
from connpool.interfaces import IConnecting, IStatsSource
from connpool.pool import phases
from connpool.pool.acquire import UNSET, checkedTimeout
from connpool.pool.arguments import checkCallable
from connpool.pool.clock import steady
from connpool.pool.core import Core
from connpool.pool.keyedstats import COUNTERS_OF_KEYS, GAUGES_OF_KEYS, KeyedPoolStats
from connpool.pool.lease import Lease, Scope, use
from connpool.pool.pool import ConnectionPool

__all__ = ["KeyedConnectionPool", "KeyedPoolStats"]


@implementer(IConnecting, IStatsSource)
class KeyedConnectionPool:
    """
    One L{ConnectionPool} for each key, and C{maxTotal} for all together.

    When the total is reached and a key needs a connection, the connection that
    has been idle for longest in a key that was not used lately is closed to make
    room.  A place that becomes free goes to the longest waiter among the keys that
    may use it now: below their C{maxSize}, with a destination that is not in
    back-off.  A connection that comes back serves its own key, unless such a waiter
    of another key came C{fairAfter} earlier; then its place goes there.
    A key without connections and waiters takes no memory: its
    pool is closed, the next acquire makes another.

    While no key starves, the keys' pools are as calm as any other pool, and what
    they do is not looked at.  When one begins to, all become uneasy, so that
    no return of a connection is missed.

    @param reactor: see L{ConnectionPool}, as everything not listed here.
    @param endpointFor: a key to its endpoint, or endpoints.
    @param factory: for the protocols of all keys.
    @param prepare: called with each new protocol and, if it takes two arguments, its
        key.
    @param maxTotal: connections of any state and any key.
    @param fairAfter: seconds.
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
        prepare: Callable[..., Any] | None = None,
        maxTotal: int = 100,
        fairAfter: float = 0.1,
        name: str = "keyed",
        **limits: Any,
    ) -> None:
        self.name = name
        self._prepare = prepare
        self._setTotal(maxTotal)
        self._setFairAfter(fairAfter)
        self._reactor = reactor
        self._seconds = steady(reactor)
        self._endpointFor = endpointFor
        self._factory = factory
        self._limits = limits
        self._pools: dict[Hashable, ConnectionPool] = {}
        self._size = 0
        # keys that may have something idle, and how often each had been acquired from
        # when it was put at the end: one used since then gets a second chance
        self._idlers: OrderedDict[Hashable, int] = OrderedDict()
        self._calm: set[Core] = set()
        # keys that need room: since when their oldest acquire waits
        self._starving: dict[Hashable, float] = {}
        self._oldest: list[tuple[float, int, Hashable]] = []
        self._serial = itertools.count()
        self._past: Counter[str] = Counter()  # of keys that are gone
        self._started = False
        self._pausing: bool | None = None  # paused, and whether acquires queue
        # keys kept for their failure state only
        self._lingering: OrderedDict[Hashable, float] = OrderedDict()
        self._turn: Core | None = None  # whom the room is for that just became free
        self._evicting = 0
        self._evictions = 0
        self._feeding = False
        self._closed = False
        checkCallable("endpointFor", endpointFor, "one from a key to its endpoint")
        # the limits are checked now, not at the first acquire
        ConnectionPool(reactor, _Nowhere(), factory, prepare=prepare, **limits)

    def acquire(self, key: Hashable, timeout: float | None = UNSET) -> Deferred[Lease]:
        """
        L{IConnectionPool.acquire} of C{key}'s pool.
        """
        return self._acquire(key, timeout, _getframe(1))

    def _acquire(self, key: Hashable, timeout: float | None, frame: FrameType) -> Deferred[Lease]:
        if self._closed:
            return fail(self._refusal())
        checkedTimeout(timeout)
        try:
            shell = self._pool(key).shell
        except Exception:
            return fail()  # there is no endpoint
        return shell.acquire(timeout, frame.f_code, frame.f_lasti)

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
        checkCallable("f", f, "one that takes a protocol")
        d = self._acquire(key, timeout, _getframe(1))
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
        each = [pool.stats() for pool in self._pools.values()]
        sums = {
            name: sum(getattr(one, name) for one in each)
            for name in GAUGES_OF_KEYS + COUNTERS_OF_KEYS
        }
        sums.update((name, sums[name] + self._past[name]) for name in COUNTERS_OF_KEYS)
        paused = "paused" if self._pausing is not None else "open"
        return KeyedPoolStats(
            state="closed" if self._closed else paused,
            maxTotal=self._maxTotal,
            size=self._size,
            keys=len(self._pools) - len(self._lingering),
            starving=len(self._starving),
            evictions=self._evictions,
            down=sum(one.down for one in each),
            **sums,
        )

    def trouble(self) -> str | None:
        """
        See L{IReadiness.trouble}: only if no key can be reached.
        """
        troubles = [pool.trouble() for pool in self._pools.values()]
        return troubles[0] if troubles and all(troubles) else None

    def destinations(self) -> list[str]:
        """
        See L{IConnecting.destinations}: those of the first ten keys.
        """
        some = [each.destinations() for each in itertools.islice(self._pools.values(), 10)]
        return list(dict.fromkeys(itertools.chain.from_iterable(some)))

    def explain(self) -> str:
        """
        L{IConnectionPool.explain} of the first ten keys, after the numbers of all.
        """
        keys = list(self._pools.values())
        more = f" {len(keys) - 10} more keys are not shown." if len(keys) > 10 else ""
        return (
            f"Pool {self.name}: {self._size} of maxTotal={self._maxTotal} connections, "
            f"{len(keys)} keys, {len(self._starving)} of them wait for room. "
            + " ".join(pool.explain() for pool in keys[:10])
            + more
        )

    def start(self) -> None:
        """
        L{IConnectionPool.start} of every key, and of those to come.
        """
        self._started = True
        self._closed = False
        for pool in self.pools().values():
            pool.start()

    def whenReady(
        self, key: Hashable, count: int | None = None, timeout: float | None = None
    ) -> Deferred[None]:
        """
        L{IConnectionPool.whenReady} of C{key}'s pool.
        """
        if self._closed:
            return fail(self._refusal())
        return self._pool(key).whenReady(count, checkedTimeout(timeout))

    def reconfigure(self, **changes: Any) -> None:
        """
        L{IConnectionPool.reconfigure} of every key, and of those to come; also
        C{maxTotal} and C{fairAfter}.

        @raise ValueError: for a limit out of range; nothing has changed then.
        """
        mine = {name: changes.pop(name) for name in ("maxTotal", "fairAfter") if name in changes}
        limits = {**self._limits, **changes}
        ConnectionPool(self._reactor, _Nowhere(), self._factory, **limits)
        if "fairAfter" in mine:
            self._setFairAfter(mine["fairAfter"])
        if "maxTotal" in mine:
            self._setTotal(mine["maxTotal"])
        self._limits = limits
        for pool in self.pools().values():
            pool.reconfigure(**changes)
        self._feed()

    def _setTotal(self, maxTotal: Any) -> None:
        if isinstance(maxTotal, bool) or not isinstance(maxTotal, int) or maxTotal < 1:
            raise ValueError(
                f"maxTotal={maxTotal!r} is out of range: it must be a whole number of at least 1"
            )
        self._maxTotal = maxTotal

    def _setFairAfter(self, fairAfter: Any) -> None:
        if not isinstance(fairAfter, (int, float)) or not 0 <= fairAfter < math.inf:
            raise ValueError(
                f"fairAfter={fairAfter!r} is out of range: it must be seconds, 0 or more"
            )
        self._fairAfter = fairAfter

    def pause(self, *, queue: bool = True) -> None:
        """
        L{IConnectionPool.pause} of every key, and of those to come.
        """
        self._pausing = queue
        for pool in self.pools().values():
            pool.pause(queue=queue)

    def resume(self) -> None:
        """
        L{IConnectionPool.resume} of every key.
        """
        self._pausing = None
        for pool in self.pools().values():
            pool.resume()

    def purge(self, over: float = 0.0) -> None:
        """
        L{IConnectionPool.purge} of every key.
        """
        for pool in self.pools().values():
            pool.purge(over)

    def drain(self, timeout: float | None = None) -> Deferred[None]:
        """
        L{IConnectionPool.drain} of every key.
        """
        checkedTimeout(timeout)
        self._closed = True
        return _all([pool.drain(timeout) for pool in self.pools().values()])

    def close(self, timeout: float | None = None) -> Deferred[None]:
        """
        L{IConnectionPool.close} of every key.
        """
        checkedTimeout(timeout)
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
                prepare=_withKey(self._prepare, key),
                name=f"{self.name}[{key!r}]",
                **self._limits,
            )
            pool.shell.core.inventory.budget = _Share(self, key, pool.shell.core)
            pool.shell.settled = lambda: self._settled(key, pool)
            self._pools[key] = pool
            if self._pausing is not None:
                pool.pause(queue=self._pausing)
            if self._started:
                pool.shell.core.start()  # what follows is up to whoever asked for the key
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
        stats = pool.stats()
        self._past.update({name: getattr(stats, name) for name in COUNTERS_OF_KEYS})
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
        if key not in self._starving:
            oldest = next(iter(self._pools[key].shell.core.queue))
            self._starving[key] = oldest.since
            heapq.heappush(self._oldest, (oldest.since, next(self._serial), key))

    def _longest(self, now: float) -> Hashable | None:
        """
        @return: the key with the longest waiter that may use a place now.  One that
            may not asks again when its back-off is over or a slot of its own is free.
        """
        while self._oldest:
            since, _, key = self._oldest[0]
            if self._starving.get(key) != since:
                heapq.heappop(self._oldest)  # it was served, or left
                continue
            core = self._pools[key].shell.core
            oldest = next(iter(core.queue), None)
            if oldest is not None and oldest.since == since and core.mayDial(now):
                return key
            heapq.heappop(self._oldest)
            del self._starving[key]
            if oldest is not None and core.mayDial(now):
                self._starve(key)  # the one that waited longest has left
        return None

    def yields(self, key: Hashable, since: float, now: float) -> bool:
        """
        @return: whether a place of C{key}, whose oldest waiter came at C{since}, must
            go to another key.
        """
        if self._evicting >= len(self._starving):
            return False
        longest = self._longest(now)
        if longest is None or longest == key:
            return False
        if self._starving[longest] > since - self._fairAfter:
            return False
        self._evictions += 1
        self._evicting += 1
        return True

    def _feed(self) -> None:
        """
        Give room to keys that need it, and make room.
        """
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._starving:
                key = self._longest(self._seconds())
                if key is None:
                    break
                if self._size < self._maxTotal:
                    del self._starving[key]
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
            elif phases.evict(core, self._seconds()):
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
        super().__init__(None, checkedTimeout(timeout), frame.f_code, frame.f_lasti)  # type: ignore[arg-type]  # its pool is set when it is entered
        self._keyed = keyed
        self._key = key

    async def __aenter__(self) -> Any:
        if self._held is None:
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
    def limit(self) -> str:
        """
        See L{Budget}.
        """
        return f"maxTotal={self._keyed._maxTotal}"

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
        return self._keyed.yields(self._key, since, now)

    def free(self) -> None:
        """
        See L{Budget.free}.
        """
        self._keyed._size -= 1
        if self._keyed._evicting:
            self._keyed._evicting -= 1


def _withKey(prepare: Callable[..., Any] | None, key: Hashable) -> Callable[[Any], Any] | None:
    """
    @return: C{prepare} for one key.
    """
    if prepare is None:
        return None
    try:
        inspect.signature(prepare).bind(None, key)
    except (TypeError, ValueError):
        return prepare
    return lambda protocol: prepare(protocol, key)


def _all(ends: list[Deferred[None]]) -> Deferred[None]:
    """
    @return: fires when all have.
    """
    return gatherResults(ends, consumeErrors=True).addCallback(lambda _: None)
