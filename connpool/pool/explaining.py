"""
One paragraph about what a pool is doing.
"""

from __future__ import annotations

from typing import Any

from connpool.pool.connection import site
from connpool.pool.core import Core
from connpool.pool.refusals import figures, placeOf, trouble
from connpool.pool.states import Phase, State

__all__ = ["explain"]


def explain(core: Core, now: float) -> str:
    """
    @return: the state of C{core}, and why the oldest waiter waits.
    """
    parts = [f"Pool {core.name} is {core.phase.value}: {figures(core)}."]
    oldest: Any = next(iter(core.queue), None)
    if oldest is not None:
        waits = (
            f"An acquire at {site(oldest.code, oldest.offset)} waits for {now - oldest.since:.3g} s"
        )
        parts.append(f"{waits} because {_why(core, now)}.")
    longest: Any = max(
        (slot for slot in core.inventory.slots if slot.state is State.LEASED),
        key=lambda slot: now - slot.since,
        default=None,
    )
    if longest is not None:
        parts.append(
            f"The longest lease is held for {now - longest.since:.3g} s "
            f"since {site(longest.code, longest.offset)}."
        )
        limit = core.settings.leaseTimeout
        if limit is not None:
            left = max(0.0, longest.since + limit - now)
            parts.append(f"The pool ends it in {left:.3g} s (leaseTimeout).")
    parts.extend(_limits(core))
    if now < core.supply.wastedUntil:
        parts.append(
            "Connections ended before anybody used them, so the next that nobody waits for "
            f"is made in {core.supply.wastedUntil - now:.3g} s; does the server accept this client?"
        )
    parts.extend(
        f"{placeOf(each.endpoint)} failed {each.failures} times in a row ({trouble(core, now)}) "
        f"and is dialled again in {max(0.0, each.retryAt - now):.3g} s."
        for each in core.supply.destinations
        if each.failures
    )
    parts.extend(
        f"{placeOf(each.endpoint)} takes too long to connect; others are used, and it is "
        f"tried again in {max(0.0, each.retryAt - now):.3g} s."
        for each in core.supply.destinations
        if each.slow
    )
    return " ".join(parts)


def _limits(core: Core) -> list[str]:
    """
    The limits that act by themselves, as far as there is something to say.
    """
    counts, closed = core.inventory.counts, core.inventory.closed
    parts = []
    if counts["leasesExpired"]:
        parts.append(f"{counts['leasesExpired']} leases were ended after leaseTimeout.")
    if core.settings.keepaliveTime is not None:
        parts.append(
            f"Idle connections are validated about every {core.settings.keepaliveTime:g} s "
            f"(keepaliveTime), {counts['keepalives']} times so far."
        )
    reasons = [slot.lifetime.reason for slot in core.inventory.slots if slot.lifetime is not None]
    for reason, why in (("stale", "after a purge"), ("failback", "for an earlier destination")):
        if reason in reasons:
            parts.append(f"{reasons.count(reason)} connections are to be replaced {why}.")
    if closed["condemned"]:
        parts.append(f"{closed['condemned']} connections led to a destination that was bad.")
    if core.inventory.probes:
        parts.append(f"{len(core.inventory.probes)} dials are probes that nobody waits for.")
    return parts


def _why(core: Core, now: float) -> str:
    if core.phase is Phase.PAUSED:
        return "the pool is paused"
    if core.inventory.connecting:
        return f"{core.inventory.connecting} dials are on their way"
    if core.inventory.leased >= core.settings.maxSize:
        return "all connections are leased; give them back sooner, or raise maxSize"
    if core.inventory.returning:
        return f"{core.inventory.returning} connections return when their read is delivered"
    if core.inventory.checking:
        return f"{core.inventory.checking} connections are being reset or validated"
    if core.inventory.size >= core.settings.maxSize and core.inventory.closing:
        return f"{core.inventory.closing} connections are still closing"
    if all(destination.down(now) for destination in core.supply.destinations):
        return "the destination is down"
    return "the limit shared with other keys is reached"
