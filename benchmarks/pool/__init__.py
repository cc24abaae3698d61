"""
Connection pools beside each other, in one process and on one event loop.

Peers pool stub connections that cost nothing, so that only the pool is measured.  The
package index has another project called connpool; its import name is ours, so it runs in
an environment and a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

from benchmarks.pool import measures, peers
from benchmarks.pool.cases import SAME_NAME, Case, Elsewhere, theLoop
from benchmarks.pool.sockets import firstByte, requests
from benchmarks.processes import Failed
from benchmarks.section import Column, Figures, Section, Wanted
from benchmarks.setup import Make, Setup, environment
from benchmarks.spread import ratios

__all__ = ["PEERS", "SECTIONS", "SHORT"]

#: What C{--install} installs.
PEERS = (
    "asyncio-connection-pool==1.1.1",
    "asyncpg==0.32.0",
    "generic-connection-pool==0.8.1",
    "psycopg[binary,pool]==3.3.9",
    "sqlalchemy==2.1.9",
    "redis==8.1.0",
    "trustme>=1.2",
)

_FEW = (peers.Ours, peers.AsyncioConnectionPool, peers.GenericConnectionPool)
_RIVALS = (*_FEW, peers.AsyncpgPool, peers.PsycopgPool, peers.RedisPool)
_OURS = peers.Ours.name
_RIVAL = peers.AsyncioConnectionPool.name
#: So that a start with thousands of connections is no matter of dialling.
_MANY = {"maxConnecting": 10_000}


def _us(row: Figures) -> list[float]:
    return row["us"]


def _of(name: str) -> Callable[[Figures], list[float]]:
    return lambda row: row[name]


_US = Column("us of CPU", _us)


def _elsewhere(setup: Setup, what: str, *numbers: int) -> Elsewhere:
    """
    Return the other connpool, in an environment of its own.
    """
    if not setup.install:
        return Elsewhere(None, what)
    try:
        return Elsewhere(environment("venv-connpool", SAME_NAME, "twisted"), what, numbers)
    except Failed as e:
        return Elsewhere(None, what, without=str(e))


def _cases(
    kinds: Sequence[Any], measure: Callable[..., Any], *numbers: Any, limits: Any = None
) -> list[Any]:
    async def limited(kind: Any, *numbers: Any) -> Any:
        peers.Ours.limits = limits or {}
        return await measure(kind, *numbers)

    theLoop()
    return [Case(kind.name, kind, limited, numbers) for kind in kinds]


def _exactly(text: str, of: str, limit: float, name: str = _OURS) -> Wanted:
    """
    Return the bar that a count of ours is at most so high in every round.
    """
    return Wanted(text, (name,), lambda row: [max(row[of])], limit, atMost=True, exact=True)


def _fastest(ours: Figures, *others: Figures) -> list[float]:
    fastest = min(others, key=lambda row: median(_us(row)))
    return ratios(_us(ours), _us(fastest))


@contextmanager
def _cycle(setup: Setup) -> Iterator[Section]:
    kinds = [*peers.FLOORS, *peers.OURS, *peers.OTHERS]
    cases = _cases(kinds, measures.cycle, setup.count, limits=_MANY)
    cases.append(_elsewhere(setup, "cycle", setup.count))
    floor, attempt = peers.Floor.name, peers.OursTry.name
    bars = [
        Wanted(
            "async with: ours / the fastest peer",
            *((_OURS,), _fastest, 0.6),
            atMost=True,
            unit="x",
            among=tuple(kind.name for kind in peers.OTHERS),
        ),
        Wanted(
            "tryAcquire and release / a deque and an awaited Deferred",
            *((attempt, floor), lambda a, b: ratios(_us(a), _us(b)), 3.5),
            atMost=True,
            unit="x",
        ),
    ]
    yield Section("Acquire and release", cases, [_US], bars)


@contextmanager
def _flat(setup: Setup) -> Iterator[Section]:
    idle = {10: "ours, 10 idle", 10_000: "ours, 10,000 idle"}
    waiting = {10: "ours, 10 waiting", 8_192: "ours, 8,192 waiting"}
    kind = peers.OursTry

    async def limited(kind: Any, measure: Any, *numbers: Any) -> Any:
        peers.Ours.limits = _MANY
        return await measure(kind, *numbers)

    theLoop()
    cases = [
        Case(name, kind, limited, (measures.flatIdle, number, setup.count))
        for number, name in idle.items()
    ]
    cases += [
        Case(name, kind, limited, (measures.flatWaiting, number))
        for number, name in waiting.items()
    ]
    bars = [
        Wanted(
            f"{many} / {few}",
            *((many, few), lambda a, b: ratios(_us(a), _us(b)), 1.2),
            atMost=True,
            unit="x",
        )
        for few, many in (tuple(idle.values()), tuple(waiting.values()))
    ]
    rounds = setup.rounds if setup.quick else max(9, setup.rounds)
    yield Section("Many against few", cases, [_US], bars, rounds=rounds)


@contextmanager
def _contended(clients: int, setup: Setup) -> Iterator[Section]:
    total = clients if setup.quick else max(8_192, clients * 2)
    kinds = [*_RIVALS, peers.AsyncioQueue, peers.TwistedQueue]
    cases = _cases(kinds, measures.contended, clients, total, limits=_MANY)
    cases.append(_elsewhere(setup, "contended", clients, total))
    bars = [
        Wanted(
            f"{clients:,} clients: ours / {_RIVAL}",
            *((_OURS, _RIVAL), lambda a, b: ratios(_us(a), _us(b)), 1.2),
            atMost=True,
            unit="x",
        ),
        _exactly("overtaken", "overtaken", 0),
    ]
    columns = [_US, Column("overtaken", _of("overtaken"), "{:.0f}")]
    note = (
        "The floors are the queues of Twisted and of asyncio: a coroutine of Twisted costs "
        "more than a task, whatever pool it uses."
    )
    title = f"{clients:,} clients contend for 8 connections"
    yield Section(title, cases, columns, bars, note)


@contextmanager
def _storm(setup: Setup) -> Iterator[Section]:
    ours = _cases([peers.Ours], measures.storm, setup.cancels, limits=_MANY)
    few = min(setup.cancels, 20_000)
    others = _cases([*_FEW[1:], peers.RedisPool, peers.AsyncioQueue], measures.storm, few)
    cases = [*ours, *others, _elsewhere(setup, "storm", few)]
    columns = [
        Column("us of CPU a cancel", _us, "{:.1f}"),
        Column("cancels", _of("cancels"), "{:,.0f}"),
        Column("lost of 8", _of("lost"), "{:.0f}"),
    ]
    bars = [_exactly(f"slots lost in {setup.cancels:,} cancels", "lost", 0)]
    note = (
        "Acquires are cancelled at random moments. When a holder is cancelled ours closes its "
        "connection and dials another; the others hand it to the next as it is."
    )
    title = "Storm of cancels"
    yield Section(title, cases, columns, bars, note, rounds=1, warm=False)


@contextmanager
def _spike(setup: Setup) -> Iterator[Section]:
    cases = [*_cases(_RIVALS, measures.spike), _elsewhere(setup, "spike")]
    columns = [
        Column("dials", _of("dials"), "{:.0f}"),
        Column("opened", _of("opened"), "{:.0f}"),
        Column("ms", _of("ms"), "{:.0f}"),
    ]
    bars = [_exactly("dials", "dials", 6)]
    title = "HikariCP's spike: 50 requests at once, 5 idle, 150 ms to dial, 2 ms to use"
    yield Section(title, cases, columns, bars, rounds=1, warm=False)


@contextmanager
def _stale(setup: Setup) -> Iterator[Section]:
    cases = [*_cases(_RIVALS, measures.stale), _elsewhere(setup, "stale")]
    columns = [
        Column("handed out", _of("handed"), "{:.0f}"),
        Column("dead", _of("dead"), "{:.0f}"),
        Column("dirty", _of("dirty"), "{:.0f}"),
    ]
    bars = [
        _exactly("dead ones handed out", "dead", 0),
        _exactly("dirty ones handed out", "dirty", 0),
    ]
    note = (
        "The server closed them (dead) or sent something to them (dirty) 50 ms before; "
        "everybody has default settings."
    )
    title = "Connections that went bad while they were idle"
    yield Section(title, cases, columns, bars, note, rounds=1, warm=False)


@contextmanager
def _down(_: Setup) -> Iterator[Section]:
    columns = [Column("dials", _of("dials"), "{:.0f}")]
    title = "Dials in 2 seconds while every dial fails and 100 callers retry"
    cases = _cases(_FEW, measures.down)
    yield Section(title, cases, columns, rounds=1, warm=False)


@contextmanager
def _idle(setup: Setup) -> Iterator[Section]:
    count = 200 if setup.quick else 2_000
    cases = _cases([peers.Ours, peers.HTTPPool], measures.idle, count, limits=_MANY)
    columns = [
        Column("bytes each", _of("bytes"), "{:,.0f}"),
        Column("timers", _of("timers"), "{:,.0f}"),
    ]
    bars = [_exactly("armed timers", "timers", 1)]
    title = f"{count:,} idle connections"
    yield Section(title, cases, columns, bars, rounds=1, warm=False)


SECTIONS: dict[str, Make] = {
    "cycle": _cycle,
    "flat": _flat,
    "contended-64": partial(_contended, 64),
    "contended-1024": partial(_contended, 1024),
    "contended-8192": partial(_contended, 8192),
    "storm": _storm,
    "spike": _spike,
    "stale": _stale,
    "down": _down,
    "bytes": firstByte,
    "requests": requests,
    "idle": _idle,
}

#: Those of the short table and the short chart.
SHORT = ("cycle", "contended-1024", "storm", "spike", "stale")
