"""
The outcomes of dials, and of the connections that they made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from connpool.errors import ConnectFailed, PoolError
from connpool.pool.refusals import Known, outage
from connpool.pool.states import Slot, State
from connpool.pool.timers import NEVER
from connpool.pool.upkeep import Upkeep

__all__ = ["begin", "condemn", "failed", "lost", "proved", "ready"]

CONNECTING, IDLE, LEASED, RETURNING, CHECKING, CLOSING, GONE = State


class Dialling(Known, Protocol):
    """
    The part of L{Core} that dials change.
    """

    calm: bool
    acquires: int
    upkeep: Upkeep
    dialBuckets: list[int]
    dialTotal: float

    def reject(self, waiter: Any, error: PoolError) -> None:
        """
        Fail a waiter that is out of the queue.
        """

    def rejectAll(self, error: Callable[[], PoolError]) -> None:
        """
        Fail all that wait.
        """

    def ended(self, slot: Slot, now: float) -> None:
        """
        Record how long a lease was held.
        """


def ready(core: Dialling, slot: Slot, now: float) -> None:
    """
    A dial succeeded: connected, handshaken, prepared.
    """
    if slot.state is not CONNECTING:
        return  # given up meanwhile: it is about to be closed
    core.calm = False
    took = now - slot.since
    core.dialBuckets[int(took * 1e6).bit_length()] += 1
    core.dialTotal += took
    slot.bornAt = now
    if core.supply.connected(slot, now):
        begin(core, slot, now)


def begin(core: Dialling, slot: Slot, now: float) -> None:
    """
    The dial of a slot proved good: use it.
    """
    slot.fit = True
    slot.plain = slot.plain and slot.doom is None and (core.settings.maxUses or NEVER) == NEVER
    core.upkeep.began(slot, now)
    replaced = slot.replaces
    slot.replaces = None
    if replaced is not None:
        core.supply.retire(*replaced, now)
    core.inventory.rest(slot, now)


def proved(core: Dialling, slot: Slot) -> None:
    """
    The first bytes came from a slot's server.
    """
    slot.proven = True
    destination = slot.destination
    destination.early = 0
    if destination.barren:
        core.calm = False
        destination.recovered()


def failed(core: Dialling, slot: Slot, now: float, error: ConnectFailed, *, gone: bool) -> None:
    """
    A dial failed.

    @param gone: there is no socket; else it is being aborted.
    """
    if slot.state is not CONNECTING:
        # elided or closed before: not the destination's fault
        if gone:
            lost(core, slot, now)
        return
    core.calm = False
    core.inventory.counts["dialFailures"] += 1
    core.lastError = (now, error.__cause__ or error)
    slot.destination.failed(slot.since, now, core.settings.pause)
    replaced = slot.replaces
    core.supply.owed = 0
    if gone:
        core.inventory.forget(slot, "failed")
    else:
        core.inventory.close(slot, "failed", now, abort=True)
    if replaced is not None:
        core.supply.retire(*replaced, now)
    without(core, error, now)


def without(core: Dialling, error: ConnectFailed, now: float) -> None:
    """
    A dial failed, or its connection ended at once: fail those who wait if there
    is nothing to wait for.
    """
    if core.settings.onDown != "fail" or core.supply.promising:
        return
    if any(not destination.down(now) for destination in core.supply.destinations):
        return  # there is another one to try
    waiter = core.queue.oldest()
    if waiter is not None:
        core.reject(waiter, error)
    if outage(core, now) is not None:
        core.rejectAll(lambda: outage(core, now) or error)


def lost(core: Dialling, slot: Slot, now: float, error: ConnectFailed | None = None) -> None:
    """
    A slot's socket is gone.

    @param error: for those who wait, if that counts as a failed dial; L{None}: it
        was our side that hung up.
    """
    state = slot.state
    if state is GONE:
        return
    core.calm = False
    if state is CLOSING:
        core.inventory.forget(slot, None)
        return
    barren = False
    if state is CONNECTING:
        # a probe that did not last
        slot.destination.failed(slot.since, now, core.settings.pause, barren=True)
        barren = True
        if slot.replaces is not None:
            core.supply.retire(*slot.replaces, now)
    elif error is not None:
        barren = core.supply.barren(slot, now, core.queue)
    if state is LEASED:
        core.ended(slot, now)
    elif not barren and state is not CHECKING:
        core.supply.died(slot, now, core.acquires)
    core.inventory.forget(slot, "peer")
    if barren and error is not None:
        core.lastError = (now, error.__cause__ or error)
        without(core, error, now)


def condemn(core: Dialling, slot: Slot, now: float) -> None:
    """
    A slot's destination is of no use, though it accepts connections: count that
    as a failed dial, and let nothing that leads there be leased again.
    """
    core.calm = False
    destination = slot.destination
    destination.failed(now, now, core.settings.pause)
    others = [each for each in core.inventory.slots if each.destination is destination]
    core.inventory.doom([each for each in others if each is not slot], "condemned", now)
