"""
Connection pools side by side, in one process and on one event loop.

    python benchmarks/pool.py [--rounds 7] [--cancels 100000] [--out DIR]

makes virtual environments below DIR (benchmarks/results), installs the peers
from the package index, runs, and writes pool.json, pool.txt and pool.svg there.
The package index has another project called connpool; its import name is ours,
so it runs in an environment and a process of its own (pool_same.py).

cycle     microseconds for an acquire and a release, idle connections there
flat      cost of a cycle with 10,000 idle, of a hand-over with 8,192 waiters,
          against 10
contended microseconds an operation, 8 connections; clients yield while they hold
          and again before they ask, else those that hold take turns with
          themselves; overtaken: by how many later ones the unluckiest was.
          The floors are the queue of Twisted and that of asyncio: a coroutine of
          Twisted costs more than a task, whatever pool it uses
storm     acquires cancelled at random moments, and how many slots are lost; when a
          holder is cancelled ours closes its connection and dials another, the
          others hand it to the next as it is
spike     HikariCP's: 50 requests at once, 5 idle, 150 ms to dial, 2 ms to use
down      dials in 2 seconds while every dial fails and 100 callers retry
stale     hand-outs of connections that the server closed while they were idle
          (dead) or sent something to (dirty), 50 ms before, default settings
bytes     from asking for a connection to the first byte of an echo, p50 and p99
requests  microseconds for a request and its answer over real sockets, one after
          another: on a connection that is held, and with an acquire and a release
          around each, in which the pool lets the read be delivered and asks the kernel
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
    "asyncpg==0.32.0",
    "generic-connection-pool==0.8.1",
    "psycopg[binary,pool]==3.3.9",
    "sqlalchemy==2.1.9",
    "redis==8.1.0",
    "trustme>=1.2",
]
SAME_NAME = ["connpool==1.0.14", "twisted"]


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
    code = coroutine.cr_frame.f_locals.get("self")
    if code is not None and code.twisted:
        from twisted.internet.defer import Deferred

        return Deferred.fromCoroutine(coroutine).asFuture(asyncio.get_event_loop())
    return asyncio.ensure_future(coroutine)


async def contended(
    kinds: list[Any], clients: int, total: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """
    @return: name to microseconds an operation, of each round, and the most overtaken.
    """
    from pool_peers import turn

    peers = [kind(8) for kind in kinds]
    results: dict[str, dict[str, Any]] = {
        peer.name: {"us": [], "overtaken": 0, "twisted": peer.twisted} for peer in peers
    }
    for peer in peers:
        await drive(peer.start())
    for round_ in range(rounds):
        for peer in peers if round_ % 2 else peers[::-1]:
            asked = served = most = 0

            class Client:
                twisted = peer.twisted

                async def run(self, peer: Any = peer) -> None:
                    nonlocal asked, served, most
                    for _ in range(total // clients):
                        ticket = asked
                        asked += 1
                        async with peer.use():
                            most = max(most, served - ticket)
                            served += 1
                            await turn(self.twisted)
                        await turn(self.twisted)

            async def all_(client: Any = Client) -> None:
                await asyncio.gather(*[drive(client().run()) for _ in range(clients)])

            seconds = await timed(all_)
            mine = results[peer.name]
            mine["us"].append(seconds / (total // clients * clients) * 1e6)
            mine["overtaken"] = max(mine["overtaken"], most)
    for peer in peers:
        await drive(peer.stop())
    return results


async def storm(kinds: list[Any], cancels: int) -> dict[str, Any]:
    """
    Waiters that are cancelled before, while and after they are served.

    @return: name to microseconds a cancelled acquire, and slots lost.
    """
    from pool_peers import turn

    results = {}
    for kind in kinds:
        peer = kind(8)
        await drive(peer.start())
        dice = random.Random(1)

        class Client:
            twisted = peer.twisted

            async def run(self, peer: Any = peer) -> None:
                async with peer.use():
                    await turn(self.twisted)

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

    class Holder:
        twisted = peer.twisted

        async def run(self) -> None:
            async with peer.use():
                held.append(1)
                await wait(gate, self.twisted)

    return Holder()


async def wait(gate: Any, twisted: bool) -> None:
    """
    Wait in a coroutine of Twisted or of asyncio until a future has a result.
    """
    if twisted:
        from twisted.internet.defer import Deferred

        opened: Deferred[None] = Deferred()
        gate.add_done_callback(lambda _: opened.called or opened.callback(None))
        await opened
    else:
        await asyncio.shield(gate)


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


async def stale(kinds: list[Any]) -> dict[str, dict[str, int]]:
    """
    @return: name to hand-outs, and how many were of dead and of dirty connections.
    """
    served: list[asyncio.StreamWriter] = []

    async def serve(_: Any, writer: asyncio.StreamWriter) -> None:
        served.append(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    results = {}
    for kind in kinds:
        peer = kind(10)
        peer.port = server.sockets[0].getsockname()[1]
        await drive(peer.start())
        counts = results[peer.name] = {"handed out": 0, "dead": 0, "dirty": 0}

        class Client:
            twisted = peer.twisted

            async def run(self, gate: Any = None, peer: Any = peer, counts: Any = counts) -> None:
                async with peer.use() as one:
                    counts["handed out"] += 1
                    counts["dead"] += one.closed
                    counts["dirty"] += one.unread and not one.closed
                    one.unread = False
                    await wait(gate, self.twisted)
                    if one.closed:
                        one.failed = True
                        raise ConnectionError("closed")

        async def everybody(client: Any = Client) -> None:
            gate = asyncio.get_running_loop().create_future()
            holders = [drive(client().run(gate)) for _ in range(10)]
            await asyncio.wait(holders, timeout=0.1)
            gate.set_result(None)
            await asyncio.gather(*holders, return_exceptions=True)

        await everybody()
        counts.update(dict.fromkeys(counts, 0))
        for round_ in range(20):
            alive = [writer for writer in served if not writer.is_closing()]
            for index, writer in enumerate(alive):
                if index % 2:
                    writer.close() if round_ % 2 else writer.write(b"!")
            await asyncio.sleep(0.05)
            await everybody()
        await drive(peer.stop())
        for writer in served:
            writer.close()
        served.clear()
    server.close()
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


# -- running


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    @return: everything.
    """
    from pool_bytes import firstByte, requests
    from pool_peers import (
        FLOORS,
        OTHERS,
        OURS,
        AsyncioConnectionPool,
        AsyncioQueue,
        AsyncpgPool,
        GenericConnectionPool,
        HTTPPool,
        Ours,
        OursTry,
        PsycopgPool,
        RedisPool,
        TwistedQueue,
    )

    Ours.limits = {"maxConnecting": 10_000}
    few = [Ours, AsyncioConnectionPool, GenericConnectionPool]
    rivals = [*few, AsyncpgPool, PsycopgPool, RedisPool]
    results: dict[str, Any] = {"load": os.getloadavg()}

    def sameName(what: str, *args: int) -> dict[str, Any]:
        if not arguments.same:
            return {}
        ran = subprocess.run(
            [arguments.same, str(HERE / "pool_same.py"), what, *map(str, args)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        return json.loads(ran.stdout)  # type: ignore[no-any-return]

    def step(name: str) -> None:
        print(f"{name} …", flush=True)

    step("cycle")
    kinds = [*FLOORS, *OURS, *OTHERS]
    results["cycle"] = await cycle(
        kinds, arguments.rounds, arguments.count, lambda: sameName("cycle", arguments.count)
    )
    step("flat")
    results["flat"] = await flat(OursTry)
    step("contended")
    results["contended"] = {}
    for clients in (64, 1024, 8192):
        size = clients, max(8_192, clients * 2), min(5, arguments.rounds)
        queues = [AsyncioQueue, TwistedQueue]
        results["contended"][clients] = await contended([*rivals, *queues], *size)
        results["contended"][clients] |= sameName("contended", *size)
    step("storm")
    results["storm"] = await storm([Ours], arguments.cancels)
    cancels = min(arguments.cancels, 20_000)
    results["storm"] |= await storm([*few[1:], RedisPool, AsyncioQueue], cancels)
    results["storm"] |= sameName("storm", cancels)
    Ours.limits = {}
    step("spike")
    results["spike"] = await spike(rivals) | sameName("spike")
    step("stale")
    results["stale"] = await stale(rivals) | sameName("stale")
    step("down")
    results["down"] = await down(few)
    step("bytes")
    results["bytes"] = await firstByte(arguments.samples, arguments.out)
    step("requests")
    results["requests"] = await requests(1_000)
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
        same = environment(arguments.out / "venv-connpool", *SAME_NAME)
        return subprocess.run(
            [str(python), str(HERE / "pool.py"), *sys.argv[1:], "--inside", "--same", str(same)],
            check=False,
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        ).returncode
    from pool_report import plot, report
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
