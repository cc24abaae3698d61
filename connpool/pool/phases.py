"""
The pool as a whole: purged, paused, drained, closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from connpool.errors import PoolError
from connpool.pool.refusals import Known, closed
from connpool.pool.states import Action, End, Phase, State

__all__ = ["close", "drain", "endOfPatience", "evict", "finish", "pause", "purge", "resume"]

CONNECTING, IDLE, LEASED, RETURNING, CHECKING, CLOSING, GONE = State


class Phased(Known, Protocol):
    """
    The part of L{Core} that has phases.
    """

    calm: bool
    end: End

    def rejectAll(self, error: Callable[[], PoolError]) -> None:
        """
        Fail all that wait.
        """

    def next(self, now: float) -> Action | None:
        """
        Decide what comes next.
        """


def purge(core: Phased, now: float, reason: str = "stale", over: float = 0.0) -> None:
    """
    Let no connection that exists now be leased again.

    @param over: replace them within so many seconds instead, one after another.
    """
    core.calm = False
    core.inventory.generation += 1
    if over > 0:
        dialled = [slot for slot in core.inventory.slots if slot.state is not CLOSING]
        core.supply.replaceWithin(dialled, over, reason, now)
        return
    core.supply.owed = 0
    core.supply.retiring.clear()
    core.inventory.doom(list(core.inventory.slots), reason, now)


def pause(core: Phased, *, queue: bool) -> None:
    """
    Hand nothing out and dial nothing until L{resume}.
    """
    core.calm = False
    if core.phase is Phase.OPEN:
        core.phase = Phase.PAUSED
    core.refusing = not queue


def resume(core: Phased) -> None:
    """
    The end of L{pause}.
    """
    core.calm = False
    if core.phase is Phase.PAUSED:
        core.phase = Phase.OPEN


def drain(core: Phased, now: float, timeout: float | None) -> None:
    """
    Accept no acquire, serve those that wait, then close.
    """
    core.calm = False
    if core.phase in {Phase.OPEN, Phase.PAUSED}:
        core.phase = Phase.DRAINING
    if core.phase is Phase.DRAINING:
        hurry(core, now, timeout)


def close(core: Phased, now: float, timeout: float | None) -> None:
    """
    Reject who waits, close what is idle, give leases C{timeout} to come back.
    """
    core.calm = False
    if core.phase is Phase.CLOSED:
        return
    core.phase = Phase.CLOSING
    hurry(core, now, timeout)
    core.rejectAll(lambda: closed(core))
    for slot in list(core.inventory.slots):
        if slot.state is IDLE or slot.state is CONNECTING:
            core.inventory.close(slot, "pool", now)
        else:
            slot.plain = False


def hurry(core: Phased, now: float, timeout: float | None) -> None:
    if timeout is not None and now + timeout < core.end.deadline:
        core.inventory.agenda.enter(core.end, now + timeout)


def endOfPatience(core: Phased, now: float) -> None:
    """
    Leases did not come back in time.
    """
    draining = core.phase is Phase.DRAINING
    close(core, now, None)
    for slot in list(core.inventory.slots):
        if slot.state in {LEASED, RETURNING, CHECKING}:
            core.inventory.close(slot, "pool", now, abort=True)
        elif not draining and slot.state is CLOSING and slot.doom != "aborted":
            core.inventory.abort(slot, now)


def finish(core: Phased, now: float) -> Action | None:
    """
    The end of draining and of closing.
    """
    if core.phase is Phase.DRAINING and not len(core.queue) and not core.inventory.leased:
        if not core.inventory.checking and not core.inventory.returning:
            close(core, now, None)
            return core.next(now)
    elif core.phase is Phase.CLOSING and not core.inventory.slots:
        core.phase = Phase.CLOSED
        core.inventory.agenda.cancel(core.end)
        return Action("closed")
    return None


def evict(core: Phased, now: float) -> bool:
    """
    Close the coldest connection, to make room for another pool's.

    @return: whether there was one.
    """
    slot = core.inventory.coldest() or next(iter(core.inventory.probes), None)
    if slot is None:
        return False
    core.calm = False
    core.inventory.close(slot, "evicted", now)
    return True
