"""
One paragraph about what a pool is doing.
"""

from __future__ import annotations

from typing import Any

from connpool.pool.connection import site
from connpool.pool.core import Core
from connpool.pool.refusals import figures, trouble
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
    if now < core.supply.refillAt:
        parts.append(
            "Connections ended before anybody used them, so the next that nobody waits for "
            f"is made in {core.supply.refillAt - now:.3g} s; does the server accept this client?"
        )
    parts.extend(
        f"{each.endpoint!r} failed {each.failures} times in a row ({trouble(core, now)}) "
        f"and is dialled again in {max(0.0, each.retryAt - now):.3g} s."
        for each in core.supply.destinations
        if each.failures
    )
    return " ".join(parts)


def _why(core: Core, now: float) -> str:
    if core.phase is Phase.PAUSED:
        return "the pool is paused"
    if core.inventory.connecting:
        return f"{core.inventory.connecting} dials are on their way"
    if core.inventory.leased >= core.settings.maxSize:
        return "all connections are leased; give them back sooner, or raise maxSize"
    if core.inventory.checking:
        return f"{core.inventory.checking} connections are being reset or validated"
    if core.inventory.size >= core.settings.maxSize and core.inventory.closing:
        return f"{core.inventory.closing} connections are still closing"
    if all(destination.down(now) for destination in core.supply.destinations):
        return "the destination is down"
    return "the limit shared with other keys is reached"
