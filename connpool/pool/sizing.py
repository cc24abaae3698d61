"""
How many connections there should be: when to dial, and which dials and
connections are too many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from connpool.pool.destination import Destination
from connpool.pool.inventory import Inventory
from connpool.pool.states import Action, Phase, Slot, State
from connpool.pool.timers import NEVER
from connpool.pool.waiters import FifoQueue

__all__ = ["Supply"]

CONNECTING, IDLE, LEASED, CHECKING, CLOSING, GONE = State


class Supply(Inventory):
    """
    An inventory that follows the demand.

    @ivar queue: the acquires that wait: they, and C{minIdle}, are the demand.
    @ivar started: whether C{minIdle} counts yet.
    @ivar retiring: connections past their lifetime that wait for a replacement.
    @ivar owed: dials in place of connections that closed at the cap, where
        there was no room for a replacement beside the old one.
    @ivar warm: how many live connections somebody waits for.
    @ivar wasted: how many times a connection died unused since the last acquire.
    @ivar refillAt: no dial that nobody waits for before this time.
    """

    queue: FifoQueue

    def __init__(
        self,
        endpoints: Sequence[Any],
        newSlot: Callable[[int, int, Destination, float], Slot],
    ) -> None:
        super().__init__()
        self._newSlot = newSlot
        self._born = 0
        self.destinations = [Destination(endpoint) for endpoint in endpoints]
        self.phase = Phase.OPEN
        self.started = False
        self.retiring: deque[Slot] = deque()
        self.owed = 0
        self.warm = 0
        self.wasted = 0
        self._acquiresThen = 0
        self.refillAt = -NEVER

    def start(self) -> None:
        """
        Keep C{minIdle} connections from now on.
        """
        self.calm = False
        self.started = True

    @property
    def promising(self) -> int:
        """
        Connections that may serve who waits, now or when they come back; used
        once, none comes back.
        """
        return self.live if self.settings.maxUses != 1 else self.idleCount + self.checking

    def _want(self, now: float) -> int:
        """
        How many more dials the demand asks for.
        """
        want = len(self.queue) + self.owed - self.idleCount - len(self.dials) - self.checking
        if now < self.refillAt:
            return want
        minIdle = self.settings.minIdle if self.started else 0
        return max(want + minIdle, self.warm - self.live - self.connecting)

    def _died(self, slot: Slot, now: float) -> None:
        """
        An idle connection ended by itself.  If nobody ever used it, the next one
        may fare likewise: a server that accepts and closes, or says no after
        the handshake as TLS 1.3 does, would be dialled thousands of times a
        second to keep C{minIdle}.  So from the second in a row, a back-off lies
        between its birth and the next that nobody waits for.
        """
        if slot.uses or now < self.refillAt:
            return
        if self._acquiresThen != self.acquires:
            self._acquiresThen = self.acquires
            self.wasted = 0
        pause = self.settings.pause(self.wasted) if self.wasted else 0.0
        if now - slot.bornAt < pause:
            self.refillAt = slot.bornAt + pause
            self.wasted += 1
        else:
            self.wasted = 1

    def _dial(self, now: float) -> Action | None:
        if self.phase not in {Phase.OPEN, Phase.DRAINING}:
            return None
        if self.connecting >= self.settings.maxConnecting:
            return None
        if len(self.slots) >= self.settings.maxSize:
            self._makeRoom(now)
            return None
        opened = self.phase is Phase.OPEN
        want = self._want(now) if opened else len(self.queue) - len(self.dials)
        replaces = None
        if want <= 0:
            replaces = self._nextRetiring(now) if opened else None
            if replaces is None:
                return None
        for destination in self.destinations:
            if destination.open(now, self.settings.maxConnecting):
                break
        else:
            if replaces is not None:
                self._retire(replaces, now)
            return None
        if self.budget is not None and not self.budget.claim():
            if replaces is not None:
                self._retire(replaces, now)
            return None
        return Action("dial", self._begin(destination, replaces, now))

    def _dialAt(self, now: float) -> float:
        """
        @return: when a pause ends after which there is something to dial.
        """
        when = NEVER
        opened = self.phase is Phase.OPEN or self.phase is Phase.DRAINING
        if opened and len(self.slots) < self.settings.maxSize:
            if self._want(now) > 0:
                for destination in self.destinations:
                    if destination.down(now):
                        when = min(when, destination.retryAt)
            elif now < self.refillAt and self._want(self.refillAt) > 0:
                when = self.refillAt
        return when

    def _begin(self, destination: Destination, replaces: Slot | None, now: float) -> Slot:
        self._born += 1
        slot = self._newSlot(self._born, self.generation, destination, now)
        slot.replaces = replaces
        self.slots[slot] = None
        self.connecting += 1
        destination.connecting += 1
        if replaces is None:
            self.dials[slot] = None
            if self.owed:
                self.owed -= 1
        self.counts["dials"] += 1
        self.agenda.enter(slot, now + self.settings.connectTimeout)
        return slot

    def _nextRetiring(self, now: float) -> Slot | None:
        """
        @return: a live slot that is to be replaced, off the list of those.
        """
        while self.retiring:
            slot = self.retiring.popleft()
            if slot.state is IDLE and not slot.uses and self.idleCount > self.settings.minIdle:
                # its replacement would begin to be idle anew: nothing would ever expire
                self._close(slot, "lifetime", now)
            elif slot.state in {IDLE, LEASED, CHECKING} and slot.doom is None:
                return slot
        return None

    def _makeRoom(self, now: float) -> None:
        """
        At the cap the old one closes first.
        """
        while (slot := self._nextRetiring(now)) is not None:
            self._retire(slot, now)
            self.owed += 1

    def _retire(self, slot: Slot, now: float) -> None:
        """
        A slot's lifetime is over and its replacement is not waited for.
        """
        if slot.state is IDLE:
            self._close(slot, "lifetime", now)
        elif slot.state in {LEASED, CHECKING}:
            slot.doom = slot.doom or "lifetime"
            slot.plain = False

    def _elide(self, now: float) -> None:
        """
        A connection came back: end the newest dial if nobody needs it now.
        """
        if self.dials and not len(self.queue) and not self.warm:
            needed = max(0, self.settings.minIdle + self.owed - self.idleCount)
            if len(self.dials) > needed:
                slot = next(reversed(self.dials))
                self.counts["elided"] += 1
                self._close(slot, "elided", now)

    def evict(self, now: float) -> bool:
        """
        Close the coldest connection, to make room for another pool's.

        @return: whether there was one.
        """
        slot = self.coldest()
        if slot is None:
            return False
        self._close(slot, "evicted", now)
        return True
