"""
What is measured of a pool.  Coroutines for Twisted and for asyncio at the same time: nothing
below waits except through the peer itself or L{drive}.

Each takes the kind of a peer, makes one, and returns figures by name.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.pool.peers import turn

__all__ = [
    "contended",
    "cycle",
    "down",
    "drive",
    "flatIdle",
    "flatWaiting",
    "idle",
    "spike",
    "stale",
    "storm",
    "timed",
]


async def timed(run: Callable[[], Awaitable[Any]]) -> float:
    """
    @return: seconds of processor time, without the collector: what else runs on the
        machine counts little.
    """
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        await run()
        return time.process_time() - start
    finally:
        gc.enable()


def drive(coroutine: Any) -> asyncio.Future[Any]:
    """
    Run a coroutine that may await Deferreds or futures, but not both.
    """
    code = coroutine.cr_frame.f_locals.get("self")
    if code is not None and code.twisted:
        from twisted.internet.defer import Deferred

        return Deferred.fromCoroutine(coroutine).asFuture(asyncio.get_event_loop())
    return asyncio.ensure_future(coroutine)


async def cycle(kind: Any, count: int) -> dict[str, float]:
    """
    Microseconds for an acquire and a release, idle connections there.
    """
    peer = kind(10)
    await drive(peer.start())
    await drive(peer.cycles(200))
    seconds = await timed(lambda: drive(peer.cycles(count)))
    await drive(peer.stop())
    return {"us": seconds / count * 1e6}


async def contended(kind: Any, clients: int, total: int) -> dict[str, float]:
    """
    Microseconds an operation, 8 connections; clients yield while they hold and again before
    they ask, else those that hold take turns with themselves; overtaken: by how many later
    ones the unluckiest was.
    """
    peer = kind(8)
    await drive(peer.start())
    asked = served = most = 0
    each = max(total // clients, 1)

    class Client:
        twisted = peer.twisted

        async def run(self) -> None:
            nonlocal asked, served, most
            for _ in range(each):
                ticket = asked
                asked += 1
                async with peer.use():
                    most = max(most, served - ticket)
                    served += 1
                    await turn(self.twisted)
                await turn(self.twisted)

    async def everybody() -> None:
        await asyncio.gather(*[drive(Client().run()) for _ in range(clients)])

    seconds = await timed(everybody)
    await drive(peer.stop())
    return {"us": seconds / (each * clients) * 1e6, "overtaken": most}


async def storm(kind: Any, cancels: int) -> dict[str, float]:
    """
    Microseconds an acquire that is cancelled before, while or after it is served, and how
    many of 8 slots are lost.
    """
    peer = kind(8)
    await drive(peer.start())
    dice = random.Random(1)

    class Client:
        twisted = peer.twisted

        async def run(self) -> None:
            async with peer.use():
                await turn(self.twisted)

    async def batch() -> int:
        tasks = [drive(Client().run()) for _ in range(200)]
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
    start = time.process_time()
    while done < cancels:
        done += 100
        if await batch():
            break
    seconds = time.process_time() - start
    gc.collect()
    await asyncio.sleep(0.05)

    held: list[int] = []
    gate = asyncio.get_event_loop().create_future()
    holders = [drive(_keeper(peer, held, gate).run()) for _ in range(8)]
    await asyncio.wait(holders, timeout=0.5)
    lost = 8 - len(held)
    gate.set_result(None)
    for holder in holders:
        holder.cancel()
    await asyncio.gather(*holders, return_exceptions=True)
    return {"us": seconds / done * 1e6, "cancels": done, "lost": lost}


def _keeper(peer: Any, held: list[int], gate: Any) -> Any:
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


async def spike(kind: Any) -> dict[str, float]:
    """
    HikariCP's: 50 requests at once, 5 idle, 150 ms to dial, 2 ms to use.  Dials during it,
    and milliseconds until all are done.
    """
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
        warm = [drive(_keeper(peer, held, gate).run()) for _ in range(5)]
        await asyncio.wait(warm, timeout=0.2)
        gate.set_result(None)
        await asyncio.gather(*warm)
    peer.delay = 0.15
    before = peer.dials

    class Client:
        twisted = peer.twisted

        async def run(self) -> None:
            async with peer.use():
                if self.twisted:
                    from twisted.internet import reactor, task

                    await task.deferLater(reactor, 0.002, lambda: None)
                else:
                    await asyncio.sleep(0.002)

    start = time.perf_counter()
    await asyncio.gather(*[drive(Client().run()) for _ in range(50)])
    took = time.perf_counter() - start
    dials = peer.dials - before
    opened = peer.endpoint.most if peer.twisted else 5 + dials
    await asyncio.sleep(0.2)
    await drive(peer.stop())
    return {"dials": dials, "opened": opened, "ms": took * 1e3}


async def stale(kind: Any) -> dict[str, float]:
    """
    Hand-outs of connections that the server closed while they were idle (dead) or sent
    something to (dirty), 50 ms before, default settings.
    """
    served: list[asyncio.StreamWriter] = []

    async def serve(_: Any, writer: asyncio.StreamWriter) -> None:
        served.append(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    peer = kind(10)
    peer.port = server.sockets[0].getsockname()[1]
    await drive(peer.start())
    counts = {"handed": 0, "dead": 0, "dirty": 0}

    class Client:
        twisted = peer.twisted

        async def run(self, gate: Any = None) -> None:
            async with peer.use() as one:
                counts["handed"] += 1
                counts["dead"] += one.closed
                counts["dirty"] += one.unread and not one.closed
                one.unread = False
                await wait(gate, self.twisted)
                if one.closed:
                    one.failed = True
                    raise ConnectionError("closed")

    async def everybody() -> None:
        gate = asyncio.get_running_loop().create_future()
        holders = [drive(Client().run(gate)) for _ in range(10)]
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
    server.close()
    return {name: float(count) for name, count in counts.items()}


async def down(kind: Any) -> dict[str, float]:
    """
    Dials in 2 seconds while every dial fails and 100 callers retry.
    """
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

        async def run(self) -> None:
            async with peer.use():
                pass

    async def caller() -> None:
        while time.perf_counter() < end:
            try:
                await asyncio.wait_for(drive(Client().run()), 0.5)
            except Exception:
                await asyncio.sleep(0.05)

    await asyncio.gather(*[caller() for _ in range(100)])
    return {"dials": peer.dials - before}


async def flatIdle(kind: Any, idle: int, count: int) -> dict[str, float]:
    """
    Microseconds for a cycle with many idle connections.
    """
    peer = kind(idle)
    await drive(peer.start())
    seconds = await timed(lambda: drive(peer.cycles(count)))
    await drive(peer.stop())
    return {"us": seconds / count * 1e6}


async def flatWaiting(kind: Any, waiting: int) -> dict[str, float]:
    """
    Microseconds for a hand-over with many waiters.
    """
    count = min(waiting, 1000) - 1
    seconds, repeats = 0.0, max(1000 // waiting, 1)
    for _ in range(repeats):
        peer = kind(1)
        await drive(peer.start())
        box: list[Any] = [peer.pool.tryAcquire()]
        waiters = [peer.pool.acquire() for _ in range(waiting)]
        for waiter in waiters[: waiting - 1]:
            waiter.addCallback(box.append)
        gc.collect()
        start = time.process_time()
        for _ in range(count):
            box.pop().release()
        seconds += time.process_time() - start
        for waiter in waiters:
            waiter.addErrback(lambda _: None)
        await drive(peer.stop())
    return {"us": seconds / count / repeats * 1e6}


async def idle(kind: Any, count: int) -> dict[str, float]:
    """
    Bytes for each idle connection, stub included, and timers.
    """
    from twisted.internet import reactor

    gc.collect()
    timers = len(reactor.getDelayedCalls())
    tracemalloc.start()
    peer = kind(count)
    await drive(peer.start())
    if hasattr(peer, "endpoint"):
        peer.endpoint.attempts.clear()
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    armed = len(reactor.getDelayedCalls()) - timers
    await drive(peer.stop())
    return {"bytes": used / count, "timers": armed}
