"""
Connection pools side by side, in one process and on one event loop.

    python benchmarks/pool.py [--rounds 7] [--cancels 100000] [--out DIR]

makes virtual environments below DIR (benchmarks/results), installs the peers
from the package index, runs, and writes pool.json, pool.txt and pool.svg there.
The package index has another project called connpool; its import name is ours,
so it runs in an environment and a process of its own, between our rounds.

cycle     microseconds for an acquire and a release, idle connections there
flat      cost of a cycle with 10,000 idle, of a hand-over with 8,192 waiters,
          against 10
contended operations a second, 8 connections, holders yield once
storm     acquires cancelled at random moments, and how many slots are lost; when a
          holder is cancelled ours closes its connection and dials another, the
          others hand it to the next as it is
spike     HikariCP's: 50 requests at once, 5 idle, 150 ms to dial, 2 ms to use
down      dials in 2 seconds while every dial fails and 100 callers retry
bytes     from asking for a connection to the first byte of an echo, p50 and p99
idle      memory and timers for 2,000 idle connections

Figures are medians of interleaved rounds; ratios are of figures of one round.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = [
    "asyncio-connection-pool==1.1.1",
    "generic-connection-pool==0.8.1",
    "psycopg[binary,pool]==3.3.9",
    "sqlalchemy==2.1.9",
    "redis==8.1.0",
    "trustme>=1.2",
]
SAME_NAME = "connpool==1.0.14"


def environment(where: Path, *requirements: str) -> Path:
    """
    @return: the Python of a virtual environment that has C{requirements}.
    """
    python = where / "bin" / "python"
    done = where / "installed"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", str(where)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        done.write_text(wanted)
    return python


def timed(run: Callable[[], Awaitable[Any]]) -> Awaitable[float]:
    """
    @return: seconds.
    """

    async def measure() -> float:
        gc.collect()
        gc.disable()
        try:
            start = time.perf_counter()
            await run()
            return time.perf_counter() - start
        finally:
            gc.enable()

    return measure()


# -- what is measured; coroutines for Twisted and for asyncio at the same time:
# nothing below waits except through the peer itself or drive()


async def cycle(kinds: list[Any], rounds: int, count: int, between: Any) -> dict[str, Any]:
    """
    @return: name to microseconds of each round.
    """
    peers = []
    for kind in kinds:
        peer = kind(10)
        try:
            await drive(peer.start())
            await drive(peer.cycles(200))
        except Exception as e:
            print(f"  {kind.name}: does not run: {e!r}", flush=True)
            continue
        peers.append(peer)
    results: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for round_ in range(rounds):
        for peer in peers if round_ % 2 else peers[::-1]:
            seconds = await timed(lambda peer=peer: drive(peer.cycles(count)))
            results[peer.name].append(seconds / count * 1e6)
        for name, value in between().items():
            results.setdefault(name, []).append(value)
    for peer in peers:
        await drive(peer.stop())
    return results


def drive(coroutine: Any) -> asyncio.Future[Any]:
    """
    Run a coroutine that may await Deferreds or futures, but not both.
    """
    from twisted.internet.defer import Deferred

    code = coroutine.cr_frame.f_locals.get("self")
    if code is not None and code.twisted:
        return Deferred.fromCoroutine(coroutine).asFuture(asyncio.get_event_loop())
    return asyncio.ensure_future(coroutine)


async def contended(kinds: list[Any], clients: int, total: int) -> dict[str, float]:
    """
    @return: name to operations a second.
    """
    from pool_peers import pause

    results = {}
    for kind in kinds:
        peer = kind(8)
        await drive(peer.start())

        class Client:
            twisted = peer.twisted

            async def run(self, peer: Any = peer) -> None:
                for _ in range(total // clients):
                    async with peer.use():
                        await (pause() if self.twisted else asyncio.sleep(0))

        async def all_(client: Any = Client) -> None:
            await asyncio.gather(*[drive(client().run()) for _ in range(clients)])

        results[peer.name] = total // clients * clients / await timed(all_)
        await drive(peer.stop())
    return results


async def storm(kinds: list[Any], cancels: int) -> dict[str, Any]:
    """
    Waiters that are cancelled before, while and after they are served.

    @return: name to microseconds a cancelled acquire, and slots lost.
    """
    from pool_peers import pause

    results = {}
    for kind in kinds:
        peer = kind(8)
        await drive(peer.start())
        dice = random.Random(1)

        class Client:
            twisted = peer.twisted

            async def run(self, peer: Any = peer) -> None:
                async with peer.use():
                    await (pause() if self.twisted else asyncio.sleep(0))

        async def batch(client: Any = Client, dice: Any = dice) -> int:
            tasks = [drive(client().run()) for _ in range(200)]
            victims = dice.sample(tasks, 100)
            for index, victim in enumerate(victims):
                victim.cancel()
                if index % 10 == 0:
                    await asyncio.sleep(0)
            await asyncio.wait(tasks, timeout=2)
            stuck = [task for task in tasks if not task.done()]
            for task in stuck:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return len(stuck)

        done = 0
        start = time.perf_counter()
        while done < cancels:
            done += 100
            if await batch():
                break
        seconds = time.perf_counter() - start
        gc.collect()
        await asyncio.sleep(0.05)

        held: list[int] = []
        gate = asyncio.get_event_loop().create_future()
        holders = [drive(keeper(peer, held, gate).run()) for _ in range(8)]
        await asyncio.wait(holders, timeout=0.5)
        results[peer.name] = {
            "cancels": done,
            "us": seconds / done * 1e6,
            "lost": 8 - len(held),
        }
        gate.set_result(None)
        for holder in holders:
            holder.cancel()
        await asyncio.gather(*holders, return_exceptions=True)
    return results


def keeper(peer: Any, held: list[int], gate: Any) -> Any:
    """
    Somebody who takes a connection and keeps it until the gate opens.
    """
    from twisted.internet.defer import Deferred

    class Holder:
        twisted = peer.twisted

        async def run(self) -> None:
            async with peer.use():
                held.append(1)
                if self.twisted:
                    opened: Deferred[None] = Deferred()
                    gate.add_done_callback(lambda _: opened.called or opened.callback(None))
                    await opened
                else:
                    await asyncio.shield(gate)

    return Holder()


async def spike(kinds: list[Any]) -> dict[str, Any]:
    """
    @return: name to dials during the spike and milliseconds until all are done.
    """
    results = {}
    for kind in kinds:
        peer = kind(5)
        await drive(peer.start())
        if peer.twisted:
            peer.pool.reconfigure(maxSize=50)
            peer.endpoint.answer = "hold"
        else:
            peer.size = 50
            await drive(peer.stop())
            await drive(peer.start())
            gate = asyncio.get_event_loop().create_future()
            held: list[int] = []
            warm = [drive(keeper(peer, held, gate).run()) for _ in range(5)]
            await asyncio.wait(warm, timeout=0.2)
            gate.set_result(None)
            await asyncio.gather(*warm)
        peer.delay = 0.15
        before = peer.dials

        class Client:
            twisted = peer.twisted

            async def run(self, peer: Any = peer) -> None:
                async with peer.use():
                    if self.twisted:
                        from twisted.internet import reactor, task

                        await task.deferLater(reactor, 0.002, lambda: None)
                    else:
                        await asyncio.sleep(0.002)

        start = time.perf_counter()
        await asyncio.gather(*[drive(Client().run()) for _ in range(50)])
        took = time.perf_counter() - start
        opened = peer.endpoint.most if peer.twisted else 5 + peer.dials - before
        results[peer.name] = {
            "dials": peer.dials - before,
            "opened": opened,
            "ms": took * 1e3,
        }
        await asyncio.sleep(0.2)
        await drive(peer.stop())
    return results


async def down(kinds: list[Any]) -> dict[str, int]:
    """
    @return: name to dials in 2 seconds while the destination refuses.
    """
    results = {}
    for kind in kinds:
        peer = kind(25)
        await drive(peer.start())
        if peer.twisted:
            peer.pool.purge()
            await asyncio.sleep(0.05)
            peer.endpoint.answer = "hold"
        peer.broken = True
        before = peer.dials
        end = time.perf_counter() + 2

        class Client:
            twisted = peer.twisted

            async def run(self, peer: Any = peer) -> None:
                async with peer.use():
                    pass

        async def caller(client: Any = Client, end: float = end) -> None:
            while time.perf_counter() < end:
                try:
                    await asyncio.wait_for(drive(client().run()), 0.5)
                except Exception:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*[caller() for _ in range(100)])
        results[peer.name] = peer.dials - before
    return results


async def flat(kind: Any) -> dict[str, float]:
    """
    @return: cost with many against cost with few.
    """
    figures: dict[int, list[float]] = {10: [], 10_000: []}
    peers = {}
    for idle in figures:
        peers[idle] = kind(idle)
        await drive(peers[idle].start())
    for _ in range(9):
        for idle, peer in peers.items():
            figures[idle].append(await timed(lambda peer=peer: drive(peer.cycles(20_000))))
    handed: dict[int, list[float]] = {10: [], 8_192: []}
    for _ in range(9):
        for waiting, figures_ in handed.items():
            peer = kind(1)
            await drive(peer.start())
            pool = peer.pool
            lease = pool.tryAcquire()
            waiters = [pool.acquire() for _ in range(waiting)]
            box: list[Any] = [lease]
            for waiter in waiters[: waiting - 1]:
                waiter.addCallback(box.append)
            gc.collect()
            start = time.perf_counter()
            for _ in range(min(waiting, 1000) - 1):
                box.pop().release()
            figures_.append((time.perf_counter() - start) / (min(waiting, 1000) - 1))
            for waiter in waiters:
                waiter.addErrback(lambda _: None)
            await drive(peer.stop())
    return {
        "idle 10,000 : 10": statistics.median(figures[10_000]) / statistics.median(figures[10]),
        "waiting 8,192 : 10": statistics.median(handed[8_192]) / statistics.median(handed[10]),
    }


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


async def firstByte(count: int, where: Path) -> dict[str, Any]:
    """
    @return: for plain and TLS: fresh, pooled, parked: p50 and p99, microseconds.
    """
    import trustme
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


async def idle(kinds: list[Any]) -> dict[str, Any]:
    """
    @return: name to bytes for each idle connection, stub included, and timers.
    """
    from twisted.internet import reactor

    results = {}
    for kind in kinds:
        gc.collect()
        timers = len(reactor.getDelayedCalls())
        tracemalloc.start()
        peer = kind(2_000)
        await drive(peer.start())
        if hasattr(peer, "endpoint"):
            peer.endpoint.attempts.clear()
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        results[peer.name] = {
            "bytes": used / 2_000,
            "timers": len(reactor.getDelayedCalls()) - timers,
        }
        await drive(peer.stop())
    return results


# -- telling


def median(figures: list[float]) -> float:
    """
    @return: the median.
    """
    return statistics.median(figures)


def report(results: dict[str, Any]) -> str:
    """
    @return: a table.
    """
    lines = [f"Python {sys.version.split()[0]}, load {results['load'][0]:.2f}", ""]
    cycles = results["cycle"]
    floor = cycles["floor: deque + await succeed()"]
    lines.append(f"{'cycle':42}{'us':>9}{'x floor':>10}")
    for name, figures in sorted(cycles.items(), key=lambda item: median(item[1])):
        ratio = median([mine / low for mine, low in zip(figures, floor, strict=False)])
        lines.append(f"  {name:40}{median(figures):9.2f}{ratio:10.1f}")
    ours, rival = cycles["ours: async with"], fastest(cycles)
    ratio = median([a / b for a, b in zip(ours, cycles[rival], strict=False)])
    lines += [f"  async with: {ratio:.2f} x the fastest peer ({rival}); the bar is 0.8", ""]
    lines.append("flat (many against few; the bar is 1.2)")
    lines += [f"  {name:40}{value:9.2f}" for name, value in results["flat"].items()]
    lines += [
        "",
        f"{'contended, operations a second':42}"
        + "".join(f"{clients:>10}" for clients in results["contended"]),
    ]
    names = next(iter(results["contended"].values()))
    for name in names:
        row = "".join(f"{each[name]:10.0f}" for each in results["contended"].values())
        lines.append(f"  {name:40}{row}")
    lines += ["", f"{'storm':42}{'us':>9}{'cancels':>10}{'lost of 8':>11}"]
    for name, each in results["storm"].items():
        lines.append(f"  {name:40}{each['us']:9.1f}{each['cancels']:10}{each['lost']:11}")
    lines += ["", f"{'spike':42}{'dials':>9}{'opened':>10}{'ms':>9}"]
    for name, each in results["spike"].items():
        lines.append(f"  {name:40}{each['dials']:9}{each['opened']:10}{each['ms']:9.0f}")
    lines += ["", f"{'down: dials in 2 s':42}"]
    lines += [f"  {name:40}{value:9}" for name, value in results["down"].items()]
    lines += ["", f"{'first byte, us':42}{'p50':>9}{'p99':>9}"]
    for name, each in results["bytes"].items():
        lines.append(f"  {name:40}{each['p50']:9.0f}{each['p99']:9.0f}")
    lines += ["", f"{'2,000 idle':42}{'bytes':>9}{'timers':>9}"]
    for name, each in results["idle"].items():
        lines.append(f"  {name:40}{each['bytes']:9.0f}{each['timers']:9}")
    return "\n".join(lines) + "\n"


def fastest(cycles: dict[str, list[float]]) -> str:
    """
    @return: the fastest real pool of others.
    """
    no = ("ours", "floor", "DeferredQueue", "asyncio.Queue")
    return min(
        (name for name in cycles if not name.startswith(no)), key=lambda name: median(cycles[name])
    )


def plot(cycles: dict[str, list[float]]) -> str:
    """
    @return: an SVG of the cycles, on a logarithmic scale.
    """
    from math import log10

    rows = sorted(((median(figures), name) for name, figures in cycles.items()))
    height = 26 * len(rows) + 50
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}">',
        "<style>text { font: 13px sans-serif }</style>",
        '<text x="10" y="20">microseconds for acquire and release (logarithmic)</text>',
    ]
    for index, (value, name) in enumerate(rows):
        top = 36 + 26 * index
        width = 40 + 180 * log10(max(value, 0.1) * 10)
        color = "#3572a5" if name.startswith("ours") else "#b0b0b0"
        out.append(f'<text x="250" y="{top + 14}" text-anchor="end">{name}</text>')
        out.append(f'<rect x="258" y="{top}" width="{width:.0f}" height="18" fill="{color}"/>')
        out.append(f'<text x="{264 + width:.0f}" y="{top + 14}">{value:.2f}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


# -- running


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    @return: everything.
    """
    from pool_peers import (
        FLOORS,
        OTHERS,
        OURS,
        AsyncioConnectionPool,
        AsyncioQueue,
        GenericConnectionPool,
        HTTPPool,
        Ours,
        OursTry,
        RedisPool,
    )

    for kind in (*FLOORS, *OTHERS):
        kind.twisted = kind.name in {"floor: deque + await succeed()", "DeferredQueue"}
    HTTPPool.twisted = True
    for kind in OURS:
        kind.twisted = True
    Ours.limits = {"maxConnecting": 10_000}
    rivals = [Ours, AsyncioConnectionPool, GenericConnectionPool]
    results: dict[str, Any] = {"load": os.getloadavg()}

    def sameName(*more: str) -> dict[str, Any]:
        if not arguments.same:
            return {}
        ran = subprocess.run(
            [arguments.same, str(HERE / "pool_same.py"), str(arguments.count), *more],
            check=True,
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        return json.loads(ran.stdout)  # type: ignore[no-any-return]

    def step(name: str) -> None:
        print(f"{name} …", flush=True)

    step("cycle")
    kinds = [*FLOORS, *OURS, *OTHERS]
    results["cycle"] = await cycle(kinds, arguments.rounds, arguments.count, sameName)
    step("flat")
    results["flat"] = await flat(OursTry)
    step("contended")
    results["contended"] = {
        str(clients): await contended([*rivals, AsyncioQueue], clients, max(16_384, clients * 2))
        for clients in (64, 1024, 8192)
    }
    step("storm")
    results["storm"] = await storm([Ours], arguments.cancels)
    few = min(arguments.cancels, 20_000)
    results["storm"] |= await storm([*rivals[1:], RedisPool, AsyncioQueue], few)
    results["storm"] |= sameName("--storm", str(few))
    Ours.limits = {}
    step("spike")
    results["spike"] = await spike(rivals)
    step("down")
    results["down"] = await down(rivals)
    step("bytes")
    results["bytes"] = await firstByte(arguments.samples, arguments.out)
    step("idle")
    Ours.limits = {"maxConnecting": 10_000}
    results["idle"] = await idle([Ours, HTTPPool])
    return results


def main() -> int:
    """
    @return: an exit code.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=20_000, help="cycles in a round")
    parser.add_argument("--cancels", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=200, help="connections for first bytes")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--same", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    if not arguments.inside:
        arguments.out.mkdir(parents=True, exist_ok=True)
        python = environment(arguments.out / "venv-pool", str(HERE.parent), *PEERS)
        same = environment(arguments.out / "venv-connpool", SAME_NAME)
        return subprocess.run(
            [str(python), str(HERE / "pool.py"), *sys.argv[1:], "--inside", "--same", str(same)],
            check=False,
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        ).returncode
    from twisted.internet import asyncioreactor

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)
    results = loop.run_until_complete(measure(arguments))
    text = report(results)
    print(text)
    (arguments.out / "pool.json").write_text(json.dumps(results, indent=1))
    (arguments.out / "pool.txt").write_text(text)
    (arguments.out / "pool.svg").write_text(plot(results["cycle"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
