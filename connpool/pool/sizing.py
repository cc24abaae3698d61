"""
The number of connections: when to dial, and which dials and connections are
too many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence, Sized
from typing import Any

from connpool.pool.destination import Destination
from connpool.pool.inventory import Inventory
from connpool.pool.settings import Settings
from connpool.pool.states import Action, Slot, State
from connpool.pool.timers import NEVER

__all__ = ["Supply"]

CONNECTING, IDLE, LEASED, CHECKING, CLOSING, GONE = State


class Supply:
    """
    Dials and retirements, so that an inventory follows the demand: the acquires
    that wait, and C{minIdle}.

    @ivar settings: the pool's.
    @ivar destinations: where it dials, in the order of preference.
    @ivar started: whether C{minIdle} counts yet.
    @ivar retiring: connections past their lifetime that wait for a replacement.
    @ivar owed: dials in place of connections that closed at the cap, where
        there was no room for a replacement beside the old one.
    @ivar warm: how many live connections somebody waits for.
    @ivar wasted: how many times a connection died unused since the last acquire.
    @ivar refillAt: no dial that nobody waits for before this time.
    """

    settings: Settings

    def __init__(
        self,
        inventory: Inventory,
        endpoints: Sequence[Any],
        newSlot: Callable[[int, int, Destination, float], Slot],
    ) -> None:
        self._inventory = inventory
        self._newSlot = newSlot
        self.born = 0
        self.destinations = [Destination(endpoint) for endpoint in endpoints]
        self.started = False
        self.retiring: deque[Slot] = deque()
        self.owed = 0
        self.warm = 0
        self.wasted = 0
        self.acquiresThen = 0
        self.refillAt = -NEVER

    @property
    def promising(self) -> int:
        """
        Connections that may serve who waits, now or when they come back; used
        once, none comes back.
        """
        return (
            self._inventory.live
            if self.settings.maxUses != 1
            else self._inventory.idleCount + self._inventory.checking
        )

    def _want(self, now: float, waiting: Sized) -> int:
        """
        Count the dials that the demand asks for beside those that run.
        """
        want = (
            len(waiting)
            + self.owed
            - self._inventory.idleCount
            - len(self._inventory.dials)
            - self._inventory.checking
        )
        if now < self.refillAt:
            return want
        minIdle = self.settings.minIdle if self.started else 0
        return max(want + minIdle, self.warm - self._inventory.live - self._inventory.connecting)

    def died(self, slot: Slot, now: float, acquires: int) -> None:
        """
        An idle connection ended by itself.  If nobody ever used it, the next one
        may fare likewise: a server that accepts and closes, or says no after
        the handshake as TLS 1.3 does, would be dialled thousands of times a
        second to keep C{minIdle}.  So from the second in a row, a back-off lies
        between its birth and the next that nobody waits for.
        """
        if slot.uses or now < self.refillAt:
            return
        if self.acquiresThen != acquires:
            self.acquiresThen = acquires
            self.wasted = 0
        pause = self.settings.pause(self.wasted) if self.wasted else 0.0
        if now - slot.bornAt < pause:
            self.refillAt = slot.bornAt + pause
            self.wasted += 1
        else:
            self.wasted = 1

    def dial(self, now: float, waiting: Sized, *, draining: bool) -> Action | None:
        """
        Begin a dial if one is wanted and may be made.

        @param waiting: the acquires that wait.
        @param draining: nobody but these matters any more.
        """
        if self._inventory.connecting >= self.settings.maxConnecting:
            return None
        if len(self._inventory.slots) >= self.settings.maxSize:
            self._makeRoom(now)
            return None
        want = len(waiting) - len(self._inventory.dials) if draining else self._want(now, waiting)
        replaces = None
        if want <= 0:
            replaces = None if draining else self._nextRetiring(now)
            if replaces is None:
                return None
        for destination in self.destinations:
            if destination.open(now, self.settings.maxConnecting):
                break
        else:
            if replaces is not None:
                self.retire(replaces, now)
            return None
        if self._inventory.budget is not None and not self._inventory.budget.claim():
            if replaces is not None:
                self.retire(replaces, now)
            return None
        return Action("dial", self._begin(destination, replaces, now))

    def dialAt(self, now: float, waiting: Sized) -> float:
        """
        @return: when a pause ends after which there is something to dial.
        """
        when = NEVER
        if len(self._inventory.slots) < self.settings.maxSize:
            if self._want(now, waiting) > 0:
                for destination in self.destinations:
                    if destination.down(now):
                        when = min(when, destination.retryAt)
            elif now < self.refillAt and self._want(self.refillAt, waiting) > 0:
                when = self.refillAt
        return when

    def _begin(self, destination: Destination, replaces: Slot | None, now: float) -> Slot:
        self.born += 1
        slot = self._newSlot(self.born, self._inventory.generation, destination, now)
        slot.replaces = replaces
        self._inventory.slots[slot] = None
        self._inventory.connecting += 1
        destination.connecting += 1
        if replaces is None:
            self._inventory.dials[slot] = None
            if self.owed:
                self.owed -= 1
        self._inventory.counts["dials"] += 1
        self._inventory.agenda.enter(slot, now + self.settings.connectTimeout)
        return slot

    def _nextRetiring(self, now: float) -> Slot | None:
        """
        @return: a live slot that is to be replaced, off the list of those.
        """
        while self.retiring:
            slot = self.retiring.popleft()
            if (
                slot.state is IDLE
                and not slot.uses
                and self._inventory.idleCount > self.settings.minIdle
            ):
                # its replacement would begin to be idle anew: nothing would ever expire
                self._inventory.close(slot, "lifetime", now)
            elif slot.state in {IDLE, LEASED, CHECKING} and slot.doom is None:
                return slot
        return None

    def _makeRoom(self, now: float) -> None:
        """
        At the cap the old one closes first.
        """
        while (slot := self._nextRetiring(now)) is not None:
            self.retire(slot, now)
            self.owed += 1

    def retire(self, slot: Slot, now: float) -> None:
        """
        A slot's lifetime is over and its replacement is not waited for.
        """
        if slot.state is IDLE:
            self._inventory.close(slot, "lifetime", now)
        elif slot.state in {LEASED, CHECKING}:
            slot.doom = slot.doom or "lifetime"
            slot.plain = False

    def elide(self, now: float, waiting: Sized) -> None:
        """
        A connection came back: end the newest dial if nobody needs it now.
        """
        if self._inventory.dials and not len(waiting) and not self.warm:
            needed = max(0, self.settings.minIdle + self.owed - self._inventory.idleCount)
            if len(self._inventory.dials) > needed:
                slot = next(reversed(self._inventory.dials))
                self._inventory.counts["elided"] += 1
                self._inventory.close(slot, "elided", now)
