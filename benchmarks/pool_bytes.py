"""
The time to a first byte over real sockets, for C{benchmarks/pool.py}.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ECHO = """
import sys
from twisted.internet import asyncioreactor; asyncioreactor.install()
from twisted.internet import reactor, ssl
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
class Echo(Protocol):
    def dataReceived(self, data): self.transport.write(data)
plain = Factory.forProtocol(Echo)
options = ssl.PrivateCertificate.loadPEM(open(sys.argv[1], "rb").read()).options()
secure = TLSMemoryBIOFactory(options, False, Factory.forProtocol(Echo))
ports = [reactor.listenTCP(0, each, interface="127.0.0.1") for each in (plain, secure)]
print(*(port.getHost().port for port in ports), flush=True)
reactor.run()
"""


async def requests(count: int) -> dict[str, float]:
    """
    @return: microseconds a request, one after another over real sockets: on one
        connection that is held, and with an acquire and a release around each.
    """
    from pool import drive
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.endpoints import TCP4ClientEndpoint
    from twisted.internet.protocol import Factory, Protocol, ServerFactory

    from connpool.pool import ConnectionPool

    class Echo(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)  # type: ignore[union-attr]

    class Asking(Protocol):
        answer: Any = None

        def ask(self) -> Any:
            self.answer = Deferred()
            self.transport.write(b"x")  # type: ignore[union-attr]
            return self.answer

        def dataReceived(self, data: bytes) -> None:
            answer, self.answer = self.answer, None
            answer.callback(data)

    port = reactor.listenTCP(0, ServerFactory.forProtocol(Echo), interface="127.0.0.1")
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    pool = ConnectionPool(reactor, endpoint, Factory.forProtocol(Asking), maxSize=10)

    class Way:
        twisted = True

        async def held(self) -> None:
            async with pool.lease() as protocol:
                for _ in range(count):
                    await protocol.ask()

        async def pooled(self) -> None:
            for _ in range(count):
                async with pool.lease() as protocol:
                    await protocol.ask()

    figures: dict[str, list[float]] = {"held": [], "pooled": []}
    for _ in range(9):
        for way, seconds in figures.items():
            start = time.perf_counter()
            await drive(getattr(Way(), way)())
            seconds.append((time.perf_counter() - start) / count * 1e6)
    await pool.close(0).asFuture(asyncio.get_event_loop())
    await asyncio.sleep(0.05)
    await port.stopListening().asFuture(asyncio.get_event_loop())
    medians = {way: statistics.median(seconds) for way, seconds in figures.items()}
    pairs = zip(figures["pooled"], figures["held"], strict=True)
    return medians | {"ratio": statistics.median(mine / low for mine, low in pairs)}


async def firstByte(count: int, where: Path) -> dict[str, Any]:
    """
    @return: for plain and TLS: fresh, pooled, parked: p50 and p99, microseconds.
    """
    import trustme
    from pool import drive
    from twisted.internet import reactor, ssl
    from twisted.internet.defer import Deferred
    from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
    from twisted.internet.protocol import Factory, Protocol

    from connpool.pool import ConnectionPool, PooledEndpoint

    authority = trustme.CA()
    pem = where / "echo.pem"
    pem.write_bytes(authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    server = subprocess.Popen(
        [sys.executable, "-c", ECHO, str(pem)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    plain, secure = (int(word) for word in server.stdout.readline().split())
    pem.unlink()
    root = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(authority.cert_pem.bytes())])

    class Asking(Protocol):
        answer: Any = None

        def ask(self) -> Any:
            self.answer = Deferred()
            self.transport.write(b"x")  # type: ignore[union-attr]
            return self.answer

        def dataReceived(self, data: bytes) -> None:
            if self.answer is not None:
                answer, self.answer = self.answer, None
                answer.callback(data)

    factory = Factory.forProtocol(Asking)
    results: dict[str, Any] = {}
    for kind, port in (("plain", plain), ("TLS", secure)):
        endpoint: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        if kind == "TLS":
            endpoint = wrapClientTLS(ssl.optionsForClientTLS("localhost", root), endpoint)
        pool = ConnectionPool(reactor, endpoint, factory, minIdle=1)
        parked = PooledEndpoint(reactor, endpoint, minIdle=4, maxSize=20)
        parked.pool.start()

        class Ways:
            twisted = True

            def __init__(self, way: str) -> None:
                self.way = way

            async def run(
                self, endpoint: Any = endpoint, pool: Any = pool, parked: Any = parked
            ) -> None:
                if self.way == "pooled":
                    async with pool.lease() as protocol:
                        await protocol.ask()
                    return
                source = endpoint if self.way == "fresh" else parked
                protocol = await source.connect(factory)
                await protocol.ask()
                protocol.transport.loseConnection()

        times: dict[str, list[float]] = {way: [] for way in ("fresh", "pooled", "parked")}
        await asyncio.sleep(0.2)
        for _ in range(count):
            for way, figures in times.items():
                start = time.perf_counter()
                await drive(Ways(way).run())
                figures.append((time.perf_counter() - start) * 1e6)
                await asyncio.sleep(0.004)
        for way, figures in times.items():
            figures.sort()
            results[f"{kind}, {way}"] = {
                "p50": figures[len(figures) // 2],
                "p99": figures[int(len(figures) * 0.99)],
            }
        await pool.close(0).asFuture(asyncio.get_event_loop())
        await parked.pool.close(0).asFuture(asyncio.get_event_loop())
    server.terminate()
    server.wait(10)
    server.stdout.close()
    return results
