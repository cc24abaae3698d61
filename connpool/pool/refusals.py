"""
Why an acquire gets an error instead of a connection, in words for operators.
"""

from __future__ import annotations

from typing import Any, Protocol

from connpool.addresses import joinHostPort
from connpool.errors import (
    AcquireTimeout,
    Overloaded,
    PoolClosed,
    PoolDown,
    PoolError,
    PoolPaused,
    TooManyWaiters,
)
from connpool.pool.inventory import Inventory
from connpool.pool.settings import Settings
from connpool.pool.sizing import Supply
from connpool.pool.states import Phase, Waiter
from connpool.pool.timers import NEVER

__all__ = [
    "closed",
    "figures",
    "late",
    "outage",
    "overloaded",
    "placeOf",
    "places",
    "refusal",
    "timedOut",
    "trouble",
    "unreachable",
]


class Known(Protocol):
    """
    The part of L{Core} that an explanation needs.
    """

    name: str
    settings: Settings
    inventory: Inventory
    supply: Supply
    phase: Phase
    refusing: bool
    queue: Any
    lastError: tuple[float, BaseException] | None


def placeOf(endpoint: Any) -> str:
    """
    @return: an endpoint in words: host and port where it tells them, as Twisted's do
        in attributes that have no public name.
    """
    # ours say what they wrap, Twisted's do not
    wrapped = getattr(endpoint, "endpoint", None) or getattr(endpoint, "_wrappedEndpoint", None)
    if wrapped is not None:
        return placeOf(wrapped)
    port = getattr(endpoint, "_port", None)
    for attribute in ("_hostText", "_host"):
        host = getattr(endpoint, attribute, None)
        if isinstance(host, str) and isinstance(port, int):
            return joinHostPort(host, port)
    path = getattr(endpoint, "_path", None)
    return repr(endpoint) if path is None else str(path)


def places(core: Known) -> list[str]:
    """
    @return: the endpoints in words, without those that have none.
    """
    known = [placeOf(each.endpoint) for each in core.supply.destinations]
    return [place for place in known if not place.startswith("<")]


def figures(core: Known) -> str:
    """
    The gauges.
    """
    inventory = core.inventory
    return (
        f"size {inventory.size} of {core.settings.maxSize}, leased {inventory.leased}, "
        f"idle {inventory.idleCount}, connecting {inventory.connecting}, "
        f"returning {inventory.returning}, "
        f"checking {inventory.checking}, closing {inventory.closing}, waiting {len(core.queue)}"
    )


def trouble(core: Known, now: float) -> str:
    """
    The last failed dial.
    """
    if core.lastError is None:
        return "no dial failed"
    at, error = core.lastError
    return (
        f"last dial failed {now - at:.3g} s ago: {str(error).rstrip('.') or type(error).__name__}"
    )


def refusal(core: Known, now: float) -> PoolError | None:
    """
    @return: why an acquire that finds no idle connection may not wait.
    """
    if core.phase not in {Phase.OPEN, Phase.PAUSED}:
        return closed(core)
    if core.phase is Phase.PAUSED:
        if core.refusing:
            return PoolPaused(f"pool {core.name} is paused; resume() it")
    elif error := outage(core, now):
        return error
    limit = core.settings.maxWaiting
    if limit is not None and len(core.queue) - _room(core) >= limit:
        return TooManyWaiters(
            f"{len(core.queue)} acquires wait for pool {core.name} already "
            f"(maxWaiting={limit}): {figures(core)}"
        )
    return None


def _room(core: Known) -> int:
    """
    Count the acquires that need not wait for a lease to end: these do not count
    against C{maxWaiting}, else a pool with C{maxWaiting=0} would never dial.
    """
    free = core.settings.maxSize - core.inventory.size
    return (
        core.inventory.idleCount
        + core.inventory.returning
        + core.inventory.checking
        + len(core.inventory.dials)
        + max(0, free)
    )


def closed(core: Known) -> PoolClosed:
    """
    The pool closes or drains.
    """
    return PoolClosed(f"pool {core.name} is {core.phase.value}; acquire from another")


def outage(core: Known, now: float) -> PoolDown | None:
    """
    @return: the error for acquires while there is nothing to wait for: no
        connection that may serve them, and no dial due.
    """
    if core.settings.onDown != "fail" or core.inventory.connecting:
        return None
    wait = NEVER
    for destination in core.supply.destinations:
        if not destination.down(now):
            return None
        wait = min(wait, destination.retryAt - now)
    if core.supply.promising:
        return None
    error = PoolDown(_unreachable(core, now, wait), wait)
    if core.lastError is not None:
        error.__cause__ = core.lastError[1]
    return error


def _unreachable(core: Known, now: float, wait: float) -> str:
    where = ", ".join(places(core)) or "its destination"
    return (
        f"pool {core.name} cannot reach {where} ({trouble(core, now)}); "
        f"it tries again in {wait:.3g} s"
    )


def unreachable(core: Known, now: float) -> str | None:
    """
    @return: the text for operators while nothing can be reached: the last dial to
        every destination failed, and no connection is left.
    """
    if not core.supply.down():
        return None
    wait = min(each.retryAt for each in core.supply.destinations) - now
    return _unreachable(core, now, max(0.0, wait))


def timedOut(core: Known, waiter: Waiter, now: float) -> AcquireTimeout:
    """
    C{waiter} has waited long enough.
    """
    text = f"no connection of pool {core.name} within {now - waiter.since:.3g} s"
    if core.phase is Phase.PAUSED:
        return late(core, f"{text}, because it is paused; resume() it", now)
    budget = core.inventory.budget
    if budget is not None and budget.starving and core.inventory.size < core.settings.maxSize:
        shared = f"the total shared with other keys is reached ({budget.limit})"
        return late(core, f"{text}, because {shared}; raise maxTotal", now)
    return late(core, text, now)


def late(core: Known, text: str, now: float) -> AcquireTimeout:
    """
    Something did not come in time.  A failed dial is the cause only if it was the
    latest (HikariCP #1819 blamed one of six days ago).
    """
    text = f"{text}: {figures(core)}"
    if core.lastError is None or not any(each.failures for each in core.supply.destinations):
        return AcquireTimeout(text)
    error = AcquireTimeout(f"{text}; {trouble(core, now)}")
    error.__cause__ = core.lastError[1]
    return error


def overloaded(core: Known, waiter: Waiter, now: float) -> Overloaded:
    """
    C{waiter} is shed.
    """
    return Overloaded(
        f"pool {core.name} is overloaded: this acquire waited {now - waiter.since:.3g} s; "
        f"ask less often, or raise maxSize: {figures(core)}"
    )
