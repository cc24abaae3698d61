"""
The connections of a pool, counted by state.

Nothing is decided here; every change of state is booked completely at once.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Protocol

from connpool.pool.settings import Settings
from connpool.pool.states import Action, Slot, State
from connpool.pool.timers import Agenda

__all__ = ["Budget", "Inventory"]

CONNECTING, IDLE, LEASED, CHECKING, CLOSING, GONE = State


class Budget(Protocol):
    """
    A limit that several pools share (see L{KeyedConnectionPool}).

    @ivar starving: whether a pool waits for room: then every return counts, and
        no pool is calm.
    """

    @property
    def starving(self) -> bool: ...

    def claim(self) -> bool:
        """
        @return: whether there may be one more slot.  If not, the pool is asked
            to go on when there is room.
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
    @ivar dials: those that connect and may turn out to be surplus.
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
        self.checking = 0
        self.closing = 0
        self.dials: dict[Slot, None] = {}
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
        Make a slot idle.
        """
        self._leaveState(slot)
        slot.state = IDLE
        slot.since = now
        self.idle.append(slot)

    def coldest(self) -> Slot | None:
        """
        @return: the connection that has been idle for longest.
        """
        while self.idle:
            slot = self.idle[0]
            if slot.state is IDLE:
                return slot
            self.idle.popleft()
            self.dead -= 1
        return None

    def check(self, slot: Slot, now: float) -> None:
        """
        Count a slot as being reset or validated.
        """
        slot.state = CHECKING
        slot.since = now
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
        if slot.lifetime is not None:
            self.agenda.cancel(slot.lifetime)
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
        elif state is CHECKING:
            self.checking -= 1
        elif state is CLOSING:
            self.closing -= 1
        elif state is IDLE:
            self.dead += 1
            if self.dead > 16 and self.dead * 2 > len(self.idle):
                alive = [other for other in self.idle if other.state is IDLE and other is not slot]
                self.idle.clear()
                self.idle.extend(alive)
                self.dead = 0
        self.agenda.cancel(slot)

    def forget(self, slot: Slot, reason: str | None) -> None:
        """
        The end of a slot.
        """
        self._leaveState(slot)
        if reason is not None:
            self.closed[reason] += 1
        if slot.lifetime is not None:
            self.agenda.cancel(slot.lifetime)
        slot.state = GONE
        del self.slots[slot]
        if self.budget is not None:
            self.budget.free()

    def watch(self, slot: Slot, now: float) -> None:
        """
        Report C{slot} if it is still leased after C{leakThreshold}.
        """
        if self.settings.leakThreshold is not None:
            self.agenda.enter(slot, now + self.settings.leakThreshold)
