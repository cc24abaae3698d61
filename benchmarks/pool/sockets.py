"""
Sections over real sockets: the time to a first byte, and request after request.
"""

from __future__ import annotations

import asyncio
import importlib.util
import select
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from benchmarks.pool.cases import theLoop
from benchmarks.pool.measures import drive
from benchmarks.section import Column, Figures, Section, Wanted
from benchmarks.setup import Setup
from benchmarks.spread import ratios

__all__ = ["firstByte", "requests"]

ECHO = """
import sys
from twisted.internet import asyncioreactor; asyncioreactor.install()
from twisted.internet import reactor, ssl
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
class Echo(Protocol):
    def dataReceived(self, data): self.transport.write(data)
factories = [Factory.forProtocol(Echo)]
if len(sys.argv) > 1:
    options = ssl.PrivateCertificate.loadPEM(open(sys.argv[1], "rb").read()).options()
    factories.append(TLSMemoryBIOFactory(options, False, Factory.forProtocol(Echo)))
ports = [reactor.listenTCP(0, each, interface="127.0.0.1") for each in factories]
print(*(port.getHost().port for port in ports), flush=True)
reactor.run()
"""


def _asking() -> Any:
    """
    Make the class of protocols that ask and wait for an answer.
    """
    from twisted.internet.defer import Deferred
    from twisted.internet.protocol import Protocol

    class Asking(Protocol):
        answer: Any = None

        def ask(self) -> Any:
            self.answer = Deferred()
            self.transport.write(b"x")  # type: ignore[union-attr]  # it is connected
            return self.answer

        def dataReceived(self, data: bytes) -> None:
            if self.answer is not None:
                answer, self.answer = self.answer, None
                answer.callback(data)

    return Asking


def _handingOn() -> Any:
    """
    Make the class of protocols that are handed on between reads, and do nothing else of
    what a pool does: each request waits until the read of the last answer is delivered,
    and the kernel is asked for more.
    """
    from twisted.internet.defer import Deferred

    class ByHand(_asking()):  # type: ignore[misc]  # a class made here
        free: Any = None

        def connectionMade(self) -> None:
            poll = select.poll()
            poll.register(self.transport.fileno(), select.POLLIN | select.POLLRDHUP)
            self.unread = poll.poll

        def handedOn(self) -> Any:
            self.free = Deferred()
            return self.free

        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            if self.free is not None and not self.unread(0):
                free, self.free = self.free, None
                free.callback(None)

    return ByHand


@attrs.frozen
class _Way:
    """
    @ivar run: on the loop of Twisted.
    @ivar count: what the time is divided by.
    @ivar pause: seconds after it.
    @ivar without: why it cannot run.
    @ivar clock: the seconds that count.
    """

    name: str
    run: Callable[[], Awaitable[Any]]
    count: int = 1
    pause: float = 0.0
    without: str | None = None
    clock: Callable[[], float] = time.perf_counter

    def missing(self) -> str | None:
        return self.without

    def once(self) -> dict[str, float]:
        way = self

        class Driven:
            twisted = True

            async def run(self) -> None:
                await way.run()

        async def measure() -> float:
            start = self.clock()
            await drive(Driven().run())
            seconds = self.clock() - start
            await asyncio.sleep(way.pause)
            return seconds

        return {"us": theLoop().run_until_complete(measure()) / self.count * 1e6}


def _closed(*closing: Any) -> None:
    async def close() -> None:
        for each in closing:
            await each.asFuture(asyncio.get_event_loop())
        await asyncio.sleep(0.05)

    theLoop().run_until_complete(close())


def _us(row: Figures) -> list[float]:
    return row["us"]


@contextmanager
def requests(setup: Setup) -> Iterator[Section]:
    """
    Microseconds of processor time, the server's included, for a request and its answer,
    one after another: on a connection that is held, on one that is handed on by hand, and
    with an acquire and a release around each.
    """
    theLoop()
    from twisted.internet import reactor
    from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
    from twisted.internet.protocol import Factory, Protocol, ServerFactory

    from connpool.pool import ConnectionPool

    class Echo(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)  # type: ignore[union-attr]  # it is connected

    port = reactor.listenTCP(0, ServerFactory.forProtocol(Echo), interface="127.0.0.1")
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    pool = ConnectionPool(reactor, endpoint, Factory.forProtocol(_asking()), maxSize=10)
    count = 100 if setup.quick else 1_000
    kept: list[Any] = []

    async def held() -> None:
        async with pool.lease() as protocol:
            for _ in range(count):
                await protocol.ask()

    async def pooled() -> None:
        for _ in range(count):
            async with pool.lease() as protocol:
                await protocol.ask()

    async def byHand() -> None:
        if not kept:
            kept.append(await connectProtocol(endpoint, _handingOn()()))
        (protocol,) = kept
        for _ in range(count):
            await protocol.ask()
            await protocol.handedOn()

    clock = time.process_time
    ways = [
        _Way("one connection that is held", held, count, clock=clock),
        _Way("one connection, handed on by hand", byHand, count, clock=clock),
        _Way("ours, acquire and release around each", pooled, count, clock=clock),
    ]
    names = [way.name for way in ways]
    bars = [
        Wanted(
            text,
            *((names[over], names[under]), lambda a, b: ratios(_us(a), _us(b)), 1.03),
            atMost=True,
            unit="x",
        )
        for text, over, under in (
            ("a request, pooled / held", 2, 0),
            ("a request without a pool, by hand / held", 1, 0),
        )
    ]
    title = "Requests over real sockets, one after another"
    columns = [Column("us of CPU each", _us, "{:.1f}")]
    note = (
        "By hand is the least that keeps the rest of a read from the next request: one wait "
        "for the end of the read and one question to the kernel, without a cap, a queue, a "
        "timeout, counters or a look at the transport."
    )
    yield Section(title, ways, columns, bars, note)
    for protocol in kept:
        protocol.transport.loseConnection()
    _closed(pool.close(0), port.stopListening())


@contextmanager
def firstByte(setup: Setup) -> Iterator[Section]:
    """
    From asking for a connection to the first byte of an echo.
    """
    theLoop()
    secure = importlib.util.find_spec("trustme") is not None
    with setup.work(setup.memory) as work:
        pem: list[str] = []
        root: Any = None
        if secure:
            import trustme
            from twisted.internet import ssl

            authority = trustme.CA()
            certificate = authority.issue_cert("localhost")
            certificate.private_key_and_cert_chain_pem.write_to_path(str(work / "echo.pem"))
            pem = [str(work / "echo.pem")]
            root = ssl.trustRootFromCertificates(
                [ssl.Certificate.loadPEM(authority.cert_pem.bytes())]
            )
        server = subprocess.Popen(
            [sys.executable, "-c", ECHO, *pem], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        try:
            ports = [int(word) for word in server.stdout.readline().split()]
            yield from _firstByte(setup, ports, root)
        finally:
            server.terminate()
            server.wait(10)
            server.stdout.close()


def _firstByte(setup: Setup, ports: list[int], root: Any) -> Iterator[Section]:
    from twisted.internet import reactor, ssl
    from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
    from twisted.internet.protocol import Factory

    from connpool.pool import ConnectionPool, PooledEndpoint

    factory = Factory.forProtocol(_asking())
    factory.noisy = False
    ways: list[_Way] = []
    closing: list[Any] = []
    for index, kind in enumerate(("plain", "TLS")):
        if index >= len(ports):
            without = "the package trustme, which makes certificates, is not installed"
            ways.append(_Way(kind, _never, without=without))
            continue
        endpoint: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", ports[index])
        if kind == "TLS":
            endpoint = wrapClientTLS(ssl.optionsForClientTLS("localhost", root), endpoint)
        pool = ConnectionPool(reactor, endpoint, factory, minIdle=1)
        parked = PooledEndpoint(reactor, endpoint, minIdle=4, maxSize=20)
        parked.pool.start()
        closing += [pool, parked.pool]

        async def pooled(pool: Any = pool) -> None:
            async with pool.lease() as protocol:
                await protocol.ask()

        async def connected(source: Any) -> None:
            protocol = await source.connect(factory)
            await protocol.ask()
            protocol.transport.loseConnection()

        ways += [
            _Way(f"{kind}, fresh", lambda e=endpoint: connected(e), pause=0.004),
            _Way(f"ours, {kind}, pooled", pooled, pause=0.004),
            _Way(f"ours, {kind}, parked", lambda e=parked: connected(e), pause=0.004),
        ]
    theLoop().run_until_complete(asyncio.sleep(0.2))
    columns = (
        Column("p50 us", _us, "{:.0f}"),
        Column("p99 us", lambda row: [sorted(row["us"])[int(len(row["us"]) * 0.99)]], "{:.0f}"),
    )
    bars = [
        Wanted(
            "first byte, plain, parked / fresh",
            ("ours, plain, parked", "plain, fresh"),
            *(lambda a, b: ratios(_us(a), _us(b)), 1.0),
            atMost=True,
            unit="x",
        )
    ]
    title = "From asking for a connection to the first byte"
    yield Section(title, ways, columns, bars, rounds=setup.samples)
    _closed(*(pool.close(0) for pool in closing))


async def _never() -> None:
    """
    Stand for what cannot run.
    """
