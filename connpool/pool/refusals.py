"""
Why an acquire gets an error instead of a connection, in words for operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from connpool.errors import (
    AcquireTimeout,
    Overloaded,
    PoolClosed,
    PoolDown,
    PoolError,
    PoolPaused,
    TooManyWaiters,
)
from connpool.pool.states import Phase, Waiter
from connpool.pool.timers import NEVER

if TYPE_CHECKING:
    from connpool.pool.core import Core

__all__ = ["closed", "figures", "outage", "overloaded", "refusal", "timedOut", "trouble"]


def figures(core: Core) -> str:
    """
    The gauges.
    """
    return (
        f"size {core.size} of {core.settings.maxSize}, leased {core.leased}, "
        f"idle {core.idleCount}, connecting {core.connecting}, checking {core.checking}, "
        f"closing {core.closing}, waiting {len(core.queue)}"
    )


def trouble(core: Core, now: float) -> str:
    """
    The last failed dial.
    """
    if core.lastError is None:
        return "no dial failed"
    at, error = core.lastError
    return f"last dial failed {now - at:.3g} s ago: {str(error) or type(error).__name__}"


def refusal(core: Core, now: float) -> PoolError | None:
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


def _room(core: Core) -> int:
    """
    How many acquires need not wait for a lease to end: these do not count
    against C{maxWaiting}, else a pool with C{maxWaiting=0} would never dial.
    """
    free = core.settings.maxSize - core.size
    return core.idleCount + core.checking + len(core.dials) + max(0, free)


def closed(core: Core) -> PoolClosed:
    """
    The pool closes or drains.
    """
    return PoolClosed(f"pool {core.name} is {core.phase.value}; acquire from another")


def outage(core: Core, now: float) -> PoolDown | None:
    """
    @return: the error for acquires while there is nothing to wait for: no
        connection that may serve them, and no dial due.
    """
    if core.settings.onDown != "fail" or core.promising or core.connecting:
        return None
    wait = NEVER
    for destination in core.destinations:
        if not destination.down(now):
            return None
        wait = min(wait, destination.retryAt - now)
    error = PoolDown(
        f"pool {core.name} cannot reach its destination ({trouble(core, now)}); "
        f"it tries again in {wait:.3g} s",
        wait,
    )
    if core.lastError is not None:
        error.__cause__ = core.lastError[1]
    return error


def timedOut(core: Core, waiter: Waiter, now: float) -> AcquireTimeout:
    """
    C{waiter} has waited long enough.  A failed dial is the cause only if it
    was the latest (HikariCP #1819 blamed one of six days ago).
    """
    text = f"no connection of pool {core.name} within {now - waiter.since:.3g} s: {figures(core)}"
    if core.lastError is None or not any(each.failures for each in core.destinations):
        return AcquireTimeout(text)
    error = AcquireTimeout(f"{text}; {trouble(core, now)}")
    error.__cause__ = core.lastError[1]
    return error


def overloaded(core: Core, waiter: Waiter, now: float) -> Overloaded:
    """
    C{waiter} is shed.
    """
    return Overloaded(
        f"pool {core.name} is overloaded: this acquire waited {now - waiter.since:.3g} s; "
        f"ask less often, or raise maxSize: {figures(core)}"
    )
