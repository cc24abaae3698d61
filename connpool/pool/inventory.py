"""
The connections of a pool, counted by state.

Nothing is decided here; every change of state is booked completely at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Protocol

from connpool.pool.settings import Settings
from connpool.pool.states import Action, Slot, State
from connpool.pool.timers import NEVER, Agenda

__all__ = ["Budget", "Inventory"]

#: How often in a row a connection may be held back for bytes that nobody reads.
MOST_DELAYS = 3

CONNECTING, IDLE, LEASED, RETURNING, CHECKING, CLOSING, GONE = State


class Budget(Protocol):
    """
    A limit that several pools share (see L{KeyedConnectionPool}).

    @ivar limit: the limit in words.
    @ivar starving: whether a pool waits for room: then every return counts, and
        no pool is calm.
    """

    @property
    def limit(self) -> str: ...

    @property
    def starving(self) -> bool: ...

    def claim(self) -> bool:
        """
        @return: whether there may be one more slot.  If not, the pool is asked
            to go on when there is room.
        """

    def spare(self) -> bool:
        """
        @return: whether there may be one more slot that nobody waits for.
        """

    def yields(self, since: float, now: float) -> bool:
        """
        @param since: when the oldest acquire of this pool began to wait.
        @return: whether a place must go to another pool, where somebody waits who
            may use it and came earlier.
        """

    def free(self) -> None:
        """
        A slot is gone.
        """


class Inventory:
    """
    The slots of one pool.

    @ivar slots: all of them, in the order of dialling.
    @ivar idle: those that are idle, the coldest first, and C{dead} tombstones.
    @ivar dials: those that connect for somebody, and may turn out to be surplus.
    @ivar probes: those that connect to see whether a destination is there again.
    @ivar todo: what the shell has to do about changes already booked.
    """

    settings: Settings

    def __init__(self) -> None:
        self.budget: Budget | None = None
        self.generation = 0
        self.agenda = Agenda()
        self.todo: deque[Action] = deque()
        # "leased" is what remains of "size"
        self.slots: dict[Slot, None] = {}
        self.idle: deque[Slot] = deque()
        self.dead = 0
        self.connecting = 0
        self.returning = 0
        self.checking = 0
        self.closing = 0
        self.dials: dict[Slot, None] = {}
        self.probes: dict[Slot, None] = {}
        # see PoolStats
        self.counts: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()

    @property
    def size(self) -> int:
        """
        Slots of any state.
        """
        return len(self.slots)

    @property
    def idleCount(self) -> int:
        """
        Idle slots.
        """
        return len(self.idle) - self.dead

    @property
    def leased(self) -> int:
        """
        Leased slots.
        """
        return (
            len(self.slots)
            - len(self.idle)
            + self.dead
            - self.connecting
            - self.returning
            - self.checking
            - self.closing
        )

    @property
    def live(self) -> int:
        """
        Slots whose connection is ready for use or in use.
        """
        return len(self.slots) - self.connecting - self.closing

    def rest(self, slot: Slot, now: float) -> None:
        """
        Make a slot idle, or let it wait until the read under way is delivered.
        """
        shelved = slot.shelved  # it was validated in the background: that is no use
        self._leaveState(slot)
        if not shelved:
            slot.since = now
        if slot.reading:
            slot.state = RETURNING
            slot.shelved = shelved
            self.returning += 1
        else:
            slot.state = IDLE
            if shelved:
                self.dead -= 1
            else:
                self.idle.append(slot)

    def doom(self, slots: Iterable[Slot], reason: str, now: float) -> None:
        """
        Let slots not be leased again: close what is idle or connecting now, the rest
        when it comes back.
        """
        for slot in slots:
            if slot.state is IDLE or slot.state is CONNECTING:
                self.close(slot, reason, now)
            elif slot.state is not CLOSING:
                slot.doom = slot.doom or reason
                slot.plain = False

    def setAside(self, slot: Slot, now: float) -> None:
        """
        Let a leased slot wait until the read under way is delivered.
        """
        self._leaveState(slot)
        slot.state = RETURNING
        slot.since = now
        self.returning += 1

    def hold(self, slot: Slot, now: float) -> None:
        """
        Let an idle slot, off the deque, wait for what the kernel holds for it.
        """
        if slot.delayedAt != slot.uses:
            slot.delayedAt = slot.uses
            slot.delays = 0
        slot.delays += 1
        if slot.delays > MOST_DELAYS:
            self.close(slot, "data", now, popped=True)
            return
        slot.state = RETURNING
        slot.since = now
        self.returning += 1
        self.todo.append(Action("hold", slot))

    def coldest(self) -> Slot | None:
        """
        @return: the connection that has been idle for longest.
        """
        while self.idle:
            slot = self.idle[0]
            if slot.state is IDLE:
                return slot
            if slot.shelved:
                return next((each for each in self.idle if each.state is IDLE), None)
            self.idle.popleft()
            self.dead -= 1
        return None

    def check(self, slot: Slot, now: float, *, shelve: bool = False) -> None:
        """
        Count a slot as being reset or validated.

        @param shelve: it is idle, and keeps its place and its age.
        """
        if shelve:
            slot.shelved = True
            self.dead += 1
        elif slot.state is RETURNING:
            self.returning -= 1
        if not shelve:
            slot.since = now
        slot.state = CHECKING
        self.checking += 1
        self.agenda.enter(slot, now + self.settings.resetTimeout)

    def close(
        self, slot: Slot, reason: str, now: float, *, popped: bool = False, abort: bool = False
    ) -> None:
        """
        Begin to close a slot: it stays counted until L{forget}.

        @param popped: it was idle and is off the deque already.
        """
        if slot.state in {CLOSING, GONE}:
            return
        if not popped:
            self._leaveState(slot)
        self._forgetEntries(slot)
        self.closed[reason] += 1
        slot.state = CLOSING
        slot.since = now
        slot.doom = "aborted" if abort else None
        self.closing += 1
        self.agenda.enter(slot, now + self.settings.closeTimeout)
        self.todo.append(Action("abort" if abort else "close", slot, detail=reason))

    def abort(self, slot: Slot, now: float) -> None:
        """
        A closing slot takes too long.
        """
        slot.doom = "aborted"
        self.counts["aborted"] += 1
        self.agenda.enter(slot, now + self.settings.closeTimeout)
        self.todo.append(Action("abort", slot))

    def _leaveState(self, slot: Slot) -> None:
        """
        Take C{slot} out of the counts of its state.
        """
        state = slot.state
        if state is CONNECTING:
            self.connecting -= 1
            slot.destination.connecting -= 1
            self.dials.pop(slot, None)
            self.probes.pop(slot, None)
        elif state is RETURNING:
            self.returning -= 1
        elif state is CHECKING:
            self.checking -= 1
        elif state is CLOSING:
            self.closing -= 1
        elif state is IDLE:
            self._bury(slot)
        slot.shelved = False
        self.agenda.cancel(slot)

    def _bury(self, slot: Slot) -> None:
        """
        Make the entry of an idle slot a tombstone.
        """
        self.dead += 1
        if self.dead > 16 and self.dead * 2 > len(self.idle):
            kept = [each for each in self.idle if each is not slot and _hasPlace(each)]
            self.idle.clear()
            self.idle.extend(kept)
            self.dead = sum(each.shelved for each in kept)

    def forget(self, slot: Slot, reason: str | None) -> None:
        """
        The end of a slot.
        """
        self._leaveState(slot)
        if reason is not None:
            self.closed[reason] += 1
        self._forgetEntries(slot)
        slot.state = GONE
        del self.slots[slot]
        if self.budget is not None:
            self.budget.free()

    def _forgetEntries(self, slot: Slot) -> None:
        for entry in (slot.lifetime, slot.probation, slot.pulse):
            if entry is not None:
                self.agenda.cancel(entry)

    def watch(self, slot: Slot, now: float) -> None:
        """
        Report C{slot} if it is still leased after C{leakThreshold}, and reclaim it
        after C{leaseTimeout}: whichever comes first is on the agenda.

        @param now: when the lease began, or the threshold passed.
        """
        end = NEVER
        for limit in (self.settings.leakThreshold, self.settings.leaseTimeout):
            if limit is not None and slot.since + limit > now:
                end = min(end, slot.since + limit)
        self.agenda.enter(slot, end)


def _hasPlace(slot: Slot) -> bool:
    """
    Tell whether an entry among the idle ones is no tombstone.
    """
    return slot.state is IDLE or slot.shelved
