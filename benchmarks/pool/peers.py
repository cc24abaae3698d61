"""
Pools under one face.

Each peer pools stub connections that cost nothing, so that only the pool is
measured.  What a peer does in its own cycle that ours does not (SQLAlchemy: a
rollback and events; redis-py: metrics) is part of what its users pay.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import Deferred, DeferredQueue, succeed


class Peer:
    """
    A pool.

    @ivar dials: connections made so far.
    @ivar delay: seconds that making one takes.
    @ivar broken: whether making one fails.
    @ivar port: what to connect to on the loopback interface; 0: nothing.
    @cvar twisted: whether its coroutines await Deferreds, not futures.
    @cvar package: without which it cannot run.
    """

    name = ""
    package = ""
    twisted = False
    port = 0

    def __init__(self, size: int) -> None:
        self.size = size
        self.dials = 0
        self.delay = 0.0
        self.broken = False

    async def make(self) -> Any:
        """
        Dial, for those whose dialling is a coroutine.
        """
        self.dials += 1
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.broken:
            raise OSError("refused")
        if self.port:
            loop = asyncio.get_running_loop()
            return (await loop.create_connection(Wire, "127.0.0.1", self.port))[1]
        return Stub()

    async def start(self) -> None:
        """
        Make the pool, in the running loop.
        """

    async def cycles(self, count: int) -> None:
        """
        Acquire and release so often.
        """
        for _ in range(count):
            async with self.use():
                pass

    def use(self) -> Any:
        """
        An async context manager around one use.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """
        Close.
        """


class Stub:
    """
    A connection.

    @ivar closed: whether the other end closed it.
    @ivar unread: whether bytes came that nobody asked for.
    @ivar failed: whether somebody tried to use it when it was closed.
    """

    closed = False
    unread = False
    failed = False


class Wire(Stub, asyncio.Protocol):
    """
    A real one.
    """

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.unread = True

    def connection_lost(self, reason: Exception | None) -> None:
        self.closed = True


class Nothing:
    """
    What a stub returns: nothing, awaited or not.
    """

    def __await__(self) -> Any:
        return iter(())

    def __bool__(self) -> bool:
        return False


class Floor(Peer):
    """
    What a Twisted program writes by hand and is proud of.
    """

    name = "floor: deque + await succeed()"
    twisted = True

    async def cycles(self, count: int) -> None:
        idle = deque([Stub() for _ in range(self.size)])
        for _ in range(count):
            one = idle.pop()
            await succeed(one)
            idle.append(one)


class Queue(Peer):
    """
    A queue of idle ones: what programs use for want of a pool.
    """

    queue: Any
    #: puts one back
    back: Callable[[Stub], object]

    async def start(self) -> None:
        for _ in range(self.size):
            self.back(Stub())

    @asynccontextmanager
    async def use(self) -> Any:
        one = await self.queue.get()
        try:
            yield one
        finally:
            self.back(one)

    async def cycles(self, count: int) -> None:
        for _ in range(count):
            one = await self.queue.get()
            self.back(one)


class TwistedQueue(Queue):
    name = "DeferredQueue"
    twisted = True

    async def start(self) -> None:
        self.queue = DeferredQueue()
        self.back = self.queue.put
        await super().start()


class AsyncioQueue(Queue):
    name = "asyncio.Queue"

    async def start(self) -> None:
        self.queue = asyncio.Queue()
        self.back = self.queue.put_nowait
        await super().start()


class AsyncioConnectionPool(Peer):
    name = "asyncio-connection-pool"
    package = "asyncio_connection_pool"

    async def start(self) -> None:
        from asyncio_connection_pool import ConnectionPool, ConnectionStrategy

        peer = self

        class Strategy(ConnectionStrategy):  # type: ignore[type-arg]  # its base is not typed
            async def make_connection(self) -> Any:
                return await peer.make()

            def connection_is_closed(self, conn: Any) -> bool:
                return conn.closed  # type: ignore[no-any-return]  # not typed

            async def close_connection(self, conn: Any) -> None:
                pass

        self.pool = ConnectionPool(strategy=Strategy(), max_size=self.size)
        self.use = self.pool.get_connection


class GenericConnectionPool(Peer):
    name = "generic-connection-pool"
    package = "generic_connection_pool"

    async def start(self) -> None:
        from generic_connection_pool.asyncio import BaseConnectionManager, ConnectionPool

        peer = self

        class Making(BaseConnectionManager):  # type: ignore[type-arg]  # its base is not typed
            async def create(self, endpoint: Any) -> Any:
                return await peer.make()

            async def dispose(self, endpoint: Any, conn: Any) -> None:
                pass

            async def check_aliveness(self, endpoint: Any, conn: Any) -> bool:
                return not conn.closed

        self.pool = ConnectionPool(
            Making(), max_size=self.size, total_max_size=self.size, idle_timeout=60.0
        )

    def use(self) -> Any:
        return self.pool.connection("one")

    async def stop(self) -> None:
        await self.pool.close()


class PsycopgPool(Peer):
    name = "psycopg_pool"
    package = "psycopg_pool"

    async def start(self) -> None:
        import logging

        from psycopg.pq import TransactionStatus
        from psycopg_pool import AsyncConnectionPool

        logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
        peer = self

        class Status:
            def __init__(self, wire: Any) -> None:
                self.wire = wire

            @property
            def transaction_status(self) -> Any:
                failed = self.wire.failed
                return TransactionStatus.UNKNOWN if failed else TransactionStatus.IDLE

        class Connection(Stub):
            _pool = None
            pgconn: Any

            @classmethod
            async def connect(cls, *_: Any, **__: Any) -> Any:
                one = cls()
                one.pgconn = Status(await peer.make())
                return one

            async def close(self) -> None:
                pass

            async def __aenter__(self) -> Any:
                return self

            async def __aexit__(self, *_: Any) -> None:
                pass

        self.pool = AsyncConnectionPool(
            "", connection_class=Connection, min_size=1, max_size=self.size, open=False
        )
        await self.pool.open()

    @asynccontextmanager
    async def use(self) -> Any:
        async with self.pool.connection() as one:
            yield one.pgconn.wire

    async def stop(self) -> None:
        await self.pool.close()


class AsyncpgPool(Peer):
    name = "asyncpg"
    package = "asyncpg"

    async def start(self) -> None:
        from asyncpg import Connection, create_pool

        peer = self

        class Protocol:
            queries_count = 0

            def _is_cancelling(self) -> bool:
                return False

        class Fake(Connection):  # type: ignore[misc]  # its base is not typed
            def __init__(self, wire: Any) -> None:
                self.wire = wire
                self._protocol = Protocol()
                self._proxy = self._pool_holder = None
                self._pool_release_ctr = 0
                self._listeners: dict[Any, Any] = {}
                self._log_listeners: list[Any] = []

            def __del__(self) -> None:
                pass

            def is_closed(self) -> bool:
                return self.wire.closed  # type: ignore[no-any-return]  # not typed

            async def reset(self, **_: Any) -> None:
                pass  # a round trip for those who have a server

            def terminate(self) -> None:
                if holder := self._pool_holder and self._pool_holder():
                    holder._release_on_close()

            async def close(self, **_: Any) -> None:
                self.terminate()

        async def connect(*_: Any, **__: Any) -> Any:
            return Fake(await peer.make())

        self.pool = create_pool(
            min_size=0, max_size=self.size, connect=connect, connection_class=Fake
        )
        await self.pool

    @asynccontextmanager
    async def use(self) -> Any:
        async with self.pool.acquire() as one:
            yield one.wire

    async def stop(self) -> None:
        self.pool.terminate()


class SQLAlchemyPool(Peer):
    name = "SQLAlchemy QueuePool (sync)"
    package = "sqlalchemy"

    async def start(self) -> None:
        from sqlalchemy.pool import QueuePool

        class DBAPI(Stub):
            def rollback(self) -> None:
                pass

            def close(self) -> None:
                pass

        self.pool = QueuePool(DBAPI, pool_size=self.size, max_overflow=0)

    async def cycles(self, count: int) -> None:
        for _ in range(count):
            self.pool.connect().close()


class RedisPool(Peer):
    name = "redis-py BlockingConnectionPool"
    package = "redis"

    async def start(self) -> None:
        from redis.asyncio import BlockingConnectionPool

        peer = self

        class Connection(Stub):
            pid = 0
            db = 0
            host, port = "localhost", 0

            def __init__(self, **_: Any) -> None:
                self.kwargs: dict[str, Any] = {}
                self.wire: Any = None

            async def connect(self) -> None:
                if self.wire is None:
                    self.wire = await peer.make()

            def should_reconnect(self) -> bool:
                return False

            async def can_read(self) -> bool:
                if self.wire.closed:
                    raise ConnectionError("closed")
                return self.wire.unread  # type: ignore[no-any-return]  # not typed

            async def disconnect(self, *_: Any, **__: Any) -> None:
                self.wire = None

            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return lambda *_, **__: Nothing()

        self.pool = BlockingConnectionPool(
            connection_class=Connection, max_connections=self.size, timeout=None
        )

    @asynccontextmanager
    async def use(self) -> Any:
        one = await self.pool.get_connection()
        try:
            yield one.wire
        finally:
            await self.pool.release(one)


class HTTPPool(Peer):
    name = "Twisted HTTPConnectionPool"
    twisted = True

    async def start(self) -> None:
        from twisted.internet import reactor
        from twisted.web.client import HTTPConnectionPool

        class Quiet:
            state = "QUIESCENT"
            transport = None

        self.pool: Any = HTTPConnectionPool(reactor, persistent=True)
        self.pool.maxPersistentPerHost = self.size
        self.idle = [Quiet() for _ in range(self.size)]
        for each in self.idle:
            self.pool._putConnection("key", each)

    async def cycles(self, count: int) -> None:
        for _ in range(count):
            one = await self.pool.getConnection("key", None)
            self.pool._putConnection("key", one._clientProtocol)

    async def stop(self) -> None:
        for call in self.pool._timeouts.values():
            call.cancel()


class Ours(Peer):
    """
    Ours on the same loop: coroutines of Twisted, driven by Deferreds.
    """

    name = "ours: async with"
    twisted = True
    limits: dict[str, Any] = {}

    async def start(self) -> None:
        from twisted.internet import reactor
        from twisted.internet.endpoints import TCP4ClientEndpoint
        from twisted.internet.protocol import Factory, Protocol

        from connpool.pool import ConnectionPool
        from connpool.testing import FakeEndpoint

        class Real(Stub, Protocol):
            def dataReceived(self, data: bytes) -> None:
                self.unread = True

            def connectionLost(self, reason: Any = None) -> None:
                self.closed = True

        peer = self

        class Endpoint(FakeEndpoint):
            def connect(self, factory: Any) -> Any:
                connecting = super().connect(factory)
                peer.dials += 1
                if self.answer == "hold":
                    attempt = self.attempts[-1]
                    reactor.callLater(peer.delay, peer.outcome, attempt)
                return connecting

        self.endpoint: Any = Endpoint(reactor, "accept")
        if self.port:
            self.endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        limits = {"maxSize": self.size, "acquireTimeout": None} | self.limits
        self.pool = ConnectionPool(reactor, self.endpoint, Factory.forProtocol(Real), **limits)
        self.use = self.pool.lease
        leases = [await self.pool.acquire() for _ in range(self.size)]
        for lease in leases:
            lease.release()

    def outcome(self, attempt: Any) -> None:
        """
        The end of a delayed dial.
        """
        if attempt.pending:
            attempt.fail(OSError("refused")) if self.broken else attempt.succeed()

    async def stop(self) -> None:
        await self.pool.close(0)


class OursAcquire(Ours):
    name = "ours: await acquire()"

    async def cycles(self, count: int) -> None:
        for _ in range(count):
            (await self.pool.acquire()).release()


class OursTry(Ours):
    name = "ours: tryAcquire()"

    async def cycles(self, count: int) -> None:
        for _ in range(count):
            self.pool.tryAcquire().release()


def turn(twisted: bool) -> Any:
    """
    One turn of the loop.
    """
    if not twisted:
        return asyncio.sleep(0)
    turned: Deferred[None] = Deferred()
    asyncio.get_running_loop().call_soon(turned.callback, None)
    return turned


FLOORS = [Floor, TwistedQueue, AsyncioQueue]
OURS = [OursTry, OursAcquire, Ours]
OTHERS = [
    AsyncioConnectionPool,
    AsyncpgPool,
    PsycopgPool,
    SQLAlchemyPool,
    RedisPool,
    HTTPPool,
    GenericConnectionPool,
]
