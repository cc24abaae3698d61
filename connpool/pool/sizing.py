"""
The number of connections: when to dial, and where, and which dials and
connections are too many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence, Sized
from typing import Any

from connpool.pool.destination import Destination
from connpool.pool.inventory import Inventory
from connpool.pool.settings import Settings
from connpool.pool.states import Action, Lifetime, Probation, Slot, Slowness, State
from connpool.pool.timers import NEVER

__all__ = ["Supply"]

CONNECTING, IDLE, LEASED, RETURNING, CHECKING, CLOSING, GONE = State

#: A dial that takes longer is slow, while there is another destination.
SLOW_DIAL_SECONDS = 1.0

#: A probe's connection must last this long before it proves anything.
PROBATION_SECONDS = 1.0

#: A probe for which there was no room is tried again after this.
NO_ROOM_SECONDS = 1.0

#: A connection that was idle is replaced this long after it was taken: whoever took it
#: is not to wait for the dial of the next.
LULL_SECONDS = 0.002


class Supply:
    """
    Dials and retirements, so that an inventory follows the demand: the acquires
    that wait, and C{minIdle}.

    Somebody who waits is served by the first destination that is healthy.  An
    earlier one that is not is I{probed} by a dial of the pool's own, which nobody
    waits for and which gives its place up when somebody needs it; so is a dial
    that takes too long from then on.  A probe's connection proves its destination
    only after a while: some servers accept and close.

    @ivar settings: the pool's.
    @ivar destinations: where it dials, in the order of preference.
    @ivar started: whether C{minIdle} counts yet.
    @ivar kept: whether somebody wants to know whether the destination is there,
        also when nobody acquires.
    @ivar retiring: connections that are to be replaced, and why.
    @ivar owed: dials in place of connections that closed at the cap, where
        there was no room for a replacement beside the old one.
    @ivar warm: how many live connections somebody waits for.
    @ivar wasted: how many times a connection died unused since the last acquire.
    @ivar refillAt: no dial that nobody waits for before this time.
    @ivar wastedUntil: the same, where it is because of these.
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
        self.kept = False
        self.retiring: deque[tuple[Slot, str]] = deque()
        self.owed = 0
        self.warm = 0
        self.wasted = 0
        self.acquiresThen = 0
        self.refillAt = -NEVER
        self.wastedUntil = -NEVER

    @property
    def promising(self) -> bool:
        """
        Tell whether a connection may serve whoever waits, now or when it comes
        back.  One that will be thrown away then is nothing to wait for.
        """
        most = self.settings.maxUses or NEVER
        return any(
            slot.state is IDLE
            or (
                slot.state in {LEASED, RETURNING, CHECKING}
                and slot.doom is None
                and slot.uses < most
            )
            for slot in self._inventory.slots
        )

    def down(self) -> bool:
        """
        Tell whether the last dial to every destination failed, and nothing is left.
        """
        return all(each.failures for each in self.destinations) and not self.promising

    def _want(self, now: float, waiting: Sized) -> int:
        """
        Count the dials that the demand asks for beside those that run.
        """
        inventory = self._inventory
        want = (
            len(waiting)
            + self.owed
            - len(inventory.idle)
            + inventory.dead
            - len(inventory.dials)
            - inventory.returning
            - inventory.checking
        )
        if now < self.refillAt:
            return want
        minIdle = self.settings.minIdle if self.started else 0
        want = max(want + minIdle, self.warm - inventory.live - inventory.connecting)
        if want <= 0 and self.kept and not inventory.slots and self.down():
            return 1
        return want

    # -- dials

    def dial(self, now: float, waiting: Sized, *, draining: bool) -> Action | None:
        """
        Begin a dial if one is wanted and may be made.

        @param waiting: the acquires that wait.
        @param draining: nobody but these matters any more.
        """
        inventory = self._inventory
        want = len(waiting) - len(inventory.dials) if draining else self._want(now, waiting)
        if len(inventory.slots) >= self.settings.maxSize:
            if want > 0 and inventory.probes:
                self._giveUpProbe(now)
            else:
                self._makeRoom(now)
                if want <= 0 and not draining and self._probed(now, waiting) is not None:
                    self._makeRoomForProbe(now)
            return None
        if inventory.connecting - len(inventory.probes) >= self.settings.maxConnecting:
            return None if draining else self._probe(now, waiting)
        replaces = None
        destination = self._choose(now) if want > 0 else None
        if destination is None and not draining:
            replaces = self._nextRetiring(now) if want <= 0 else None
            if replaces is None:
                return self._probe(now, waiting)
            destination = self._choose(now)
        if destination is None or not self._claim():
            if replaces is not None:
                self.retire(*replaces, now)
            return None
        return Action("dial", self._begin(destination, replaces, now))

    def _choose(self, now: float) -> Destination | None:
        """
        @return: the destination for somebody who waits: the first that is
            healthy; if none is, the first slow one, or one whose pause is over.
        """
        limit = self.settings.maxConnecting
        for each in self.destinations:
            if each.healthy:
                return each if each.open(now, limit) else None
        for each in self.destinations:
            if not each.failures and each.connecting < limit:
                return each
        return next((each for each in self.destinations if each.open(now, limit)), None)

    def mayDial(self, now: float) -> bool:
        """
        Tell whether there is room, and a destination that is not in back-off.
        """
        inventory = self._inventory
        return (
            len(inventory.slots) < self.settings.maxSize
            and inventory.connecting - len(inventory.probes) < self.settings.maxConnecting
            and self._choose(now) is not None
        )

    def _claim(self) -> bool:
        budget = self._inventory.budget
        return budget is None or budget.claim()

    def _suspects(self, waiting: Sized) -> Iterable[Destination]:
        """
        The destinations before the first healthy one, if the pool is in use.
        """
        if not (self._inventory.slots or len(waiting)):
            return
        if not any(each.healthy for each in self.destinations):
            return
        for each in self.destinations:
            if each.healthy:
                return
            yield each

    def _probed(self, now: float, waiting: Sized) -> Destination | None:
        """
        @return: the destination that is to be probed now.
        """
        for each in self._suspects(waiting):
            if now >= each.retryAt and not each.connecting:
                return each
        return None

    def _probe(self, now: float, waiting: Sized) -> Action | None:
        destination = self._probed(now, waiting)
        if destination is None:
            return None
        budget = self._inventory.budget
        if budget is not None and not budget.spare():
            destination.retryAt = now + NO_ROOM_SECONDS
            return None
        return Action("dial", self._begin(destination, None, now, probe=True))

    def _giveUpProbe(self, now: float) -> None:
        """
        Somebody needs the place of a probe.
        """
        probe = next(reversed(self._inventory.probes))
        probe.destination.retryAt = now + NO_ROOM_SECONDS
        self._inventory.counts["elided"] += 1
        self._inventory.close(probe, "elided", now)

    def _makeRoomForProbe(self, now: float) -> None:
        """
        Close an idle connection to a later destination, if there is one.
        """
        slot = self._inventory.coldest()
        if slot is not None and not self._inventory.closing:
            self._inventory.close(slot, "failback", now)

    def dialAt(self, now: float, waiting: Sized) -> float:
        """
        @return: when a pause ends after which there is something to dial.
        """
        when = NEVER
        if len(self.destinations) > 1:
            for each in self._suspects(waiting):
                if not each.connecting:
                    # one that is due already found no room: look again later
                    due = each.retryAt if each.retryAt > now else now + NO_ROOM_SECONDS
                    when = min(when, due)
        if len(self._inventory.slots) < self.settings.maxSize:
            if self._want(now, waiting) > 0:
                for destination in self.destinations:
                    if now < destination.retryAt:
                        when = min(when, destination.retryAt)
            elif now < self.refillAt and self._want(self.refillAt, waiting) > 0:
                when = min(when, self.refillAt)
        return when

    def _begin(
        self,
        destination: Destination,
        replaces: tuple[Slot, str] | None,
        now: float,
        *,
        probe: bool = False,
    ) -> Slot:
        inventory = self._inventory
        self.born += 1
        slot = self._newSlot(self.born, inventory.generation, destination, now)
        slot.replaces = replaces
        inventory.slots[slot] = None
        inventory.connecting += 1
        destination.connecting += 1
        if probe:
            inventory.probes[slot] = None
        elif replaces is None:
            inventory.dials[slot] = None
            if self.owed:
                self.owed -= 1
        inventory.counts["dials"] += 1
        inventory.agenda.enter(slot, now + self.settings.connectTimeout)
        if not probe and len(self.destinations) > 1:
            slot.probation = Slowness(slot)
            inventory.agenda.enter(slot.probation, now + SLOW_DIAL_SECONDS)
        return slot

    def slow(self, slot: Slot, now: float) -> None:
        """
        A dial takes too long: if it could go elsewhere, nobody waits for it.
        """
        others = (each for each in self.destinations if each is not slot.destination)
        if slot.state is CONNECTING and any(each.healthy for each in others):
            slot.destination.lagged(now, self.settings.pause)
            self._inventory.dials.pop(slot, None)
            self._inventory.probes[slot] = None

    def connected(self, slot: Slot, now: float) -> bool:
        """
        A dial succeeded.

        @return: whether it is ready; else it is a probe that has to last first.
        """
        destination = slot.destination
        agenda = self._inventory.agenda
        if slot.probation is not None:
            agenda.cancel(slot.probation)
            slot.probation = None
        if slot not in self._inventory.probes:
            destination.connected(now, self.settings.maxConnecting, self.settings.pause)
            if destination.failures:
                slot.probation = Probation(slot)
                agenda.enter(slot.probation, destination.retryAt)
            return True
        if not destination.failures and now - slot.since > SLOW_DIAL_SECONDS:
            return True  # it answers, but too slowly to be used while there is another
        failBack = self.settings.failBack
        slot.probation = Probation(slot)
        agenda.enter(slot.probation, now + min(PROBATION_SECONDS, failBack or NEVER))
        agenda.cancel(slot)
        return False

    def proved(self, destination: Destination, now: float) -> None:
        """
        A destination is there again: go back to it.
        """
        destination.connected(now, self.settings.maxConnecting, self.settings.pause)
        destination.recovered()
        if self.settings.failBack is not None:
            place = self.destinations.index(destination)
            later = self.destinations[place + 1 :]
            slots = [slot for slot in self._inventory.slots if slot.destination in later]
            self.replaceWithin(slots, self.settings.failBack, "failback", now)

    def barren(self, slot: Slot, now: float, waiting: Sized) -> bool:
        """
        A connection ended before its server said anything.

        @return: whether that counts as a failed dial: somebody has it, or waits while
            nobody ever had it, and it is not older than the pause that follows.
        """
        if slot.proven or not (slot.state is LEASED or (len(waiting) and not slot.uses)):
            return False
        pause = self.settings.pause(slot.destination.failures + 1)
        if now - slot.bornAt > pause:
            return False
        slot.destination.early += 1
        if slot.destination.early < 2:
            return False
        slot.destination.failed(slot.bornAt, now, lambda _: pause, barren=True)
        return True

    def taken(self, now: float) -> None:
        """
        An idle connection was taken, and there are too few now.
        """
        if now >= self.refillAt:
            self.refillAt = now + LULL_SECONDS

    def died(self, slot: Slot, now: float, acquires: int) -> None:
        """
        An idle connection ended by itself.  If nobody ever used it, the next one
        may fare likewise: a server that accepts and closes, or says no after
        the handshake as TLS 1.3 does, would be dialled thousands of times a
        second to keep C{minIdle}.  So from the second in a row, a back-off lies
        between its birth and the next that nobody waits for.
        """
        if slot.uses or now < self.wastedUntil:
            return
        if self.acquiresThen != acquires:
            self.acquiresThen = acquires
            self.wasted = 0
        pause = self.settings.pause(self.wasted) if self.wasted else 0.0
        if now - slot.bornAt < pause:
            self.refillAt = self.wastedUntil = slot.bornAt + pause
            self.wasted += 1
        else:
            self.wasted = 1

    # -- retirements

    def replaceWithin(
        self, slots: Collection[Slot], seconds: float, reason: str, now: float
    ) -> None:
        """
        Let connections be replaced one after another.
        """
        for index, slot in enumerate(slots, 1):
            due = now + seconds * index / len(slots)
            if slot.lifetime is None:
                slot.lifetime = Lifetime(slot, reason)
            elif slot.lifetime.deadline <= due:
                continue
            slot.lifetime.reason = reason
            self._inventory.agenda.enter(slot.lifetime, due)

    def overdue(self, entry: Lifetime) -> None:
        """
        The time for a replacement has come.
        """
        slot = entry.slot
        if slot.state in {CLOSING, GONE} or slot.uses >= (self.settings.maxUses or NEVER):
            return  # one that goes after its lease anyhow needs no replacement now
        if entry.reason != "failback" or self._preferred(slot.destination):
            self.retiring.append((slot, entry.reason))

    def _preferred(self, than: Destination) -> bool:
        """
        Tell whether an earlier destination is healthy.
        """
        return any(each.healthy for each in self.destinations[: self.destinations.index(than)])

    def _nextRetiring(self, now: float) -> tuple[Slot, str] | None:
        """
        @return: a live slot that is to be replaced, and why, off the list of those.
        """
        while self.retiring:
            slot, reason = self.retiring.popleft()
            if slot.state is IDLE and not slot.uses and self._spare:
                # its replacement would begin to be idle anew: nothing would ever expire
                self._inventory.close(slot, reason, now)
            elif slot.state in {IDLE, LEASED, RETURNING, CHECKING} and slot.doom is None:
                return slot, reason
        return None

    @property
    def _spare(self) -> bool:
        return self._inventory.idleCount > self.settings.minIdle

    def _makeRoom(self, now: float) -> None:
        """
        At the cap the old one closes first.
        """
        while (item := self._nextRetiring(now)) is not None:
            self.retire(*item, now)
            self.owed += 1

    def retire(self, slot: Slot, reason: str, now: float) -> None:
        """
        A slot's time is over and its replacement is not waited for.
        """
        if slot.state is IDLE:
            self._inventory.close(slot, reason, now)
        elif slot.state in {LEASED, RETURNING, CHECKING}:
            slot.doom = slot.doom or reason
            slot.plain = False

    def elide(self, now: float, waiting: Sized) -> None:
        """
        A connection came back: end the newest dial if nobody needs it now.
        """
        inventory = self._inventory
        if inventory.dials and not len(waiting) and not self.warm:
            needed = max(0, self.settings.minIdle + self.owed - inventory.idleCount)
            if len(inventory.dials) > needed:
                inventory.counts["elided"] += 1
                inventory.close(next(reversed(inventory.dials)), "elided", now)

    def shrink(self, now: float, slack: float) -> bool:
        """
        End what is over the cap, or was idle for long enough: dials first, then the
        coldest connection.

        @return: whether there was something.
        """
        inventory = self._inventory
        over = len(inventory.slots) - inventory.closing > self.settings.maxSize
        surplus = inventory.probes or inventory.dials
        if over and surplus:
            inventory.close(next(reversed(surplus)), "shrunk", now)
            return True
        idleTimeout = self.settings.idleTimeout
        if not (over or (self._spare and idleTimeout is not None)):
            return False
        slot = inventory.coldest()
        if slot is None:
            return False
        if over:
            inventory.close(slot, "shrunk", now)
            return True
        if idleTimeout is not None and now - slot.since >= idleTimeout - slack:
            inventory.close(slot, "idle", now)
            return True
        return False
