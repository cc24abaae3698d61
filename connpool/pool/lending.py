"""
Leases: connections that go out, come back and go from hand to hand.

While a pool is calm (see L{connpool.pool.core}) this is all that happens in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from connpool.pool.inventory import Inventory
from connpool.pool.settings import Settings
from connpool.pool.sizing import Supply
from connpool.pool.states import Action, Phase, Slot, State, Waiter
from connpool.pool.timers import NEVER
from connpool.pool.unread import endsToo
from connpool.pool.waiters import FifoQueue

__all__ = ["SLACK_SECONDS", "Lending"]

#: Deadlines this close are due: float arithmetic of two clocks may be off by an ulp.
SLACK_SECONDS = 1e-6

#: A connection that passed a check is not validated again for this long: it is
#: on its way to the acquire that asked for it.
FIT_SECONDS = 0.5

CONNECTING, IDLE, LEASED, RETURNING, CHECKING, CLOSING, GONE = State


class Lending:
    """
    The part of L{Core} that has leases.

    @ivar calm: whether there is nothing to decide.
    @ivar watched: whether somebody wants to see every lease: then nothing is calm.
    @ivar direct: while calm, whether what comes back may be passed on as it is.
    @ivar places: while calm, how many may wait because nothing can be dialled.
    @ivar floor: with fewer idle than this, there is something to dial.
    @ivar armed: when the shell calls L{Core.next} in any case; it keeps this.
    @ivar acquires: see L{PoolStats}, as for the other counters and the histograms.
    """

    # slots are read faster than more than 30 attributes
    __slots__ = (
        "_maxUses",
        "_pop",
        "_stale",
        "_validateAfter",
        "acquires",
        "armed",
        "calm",
        "direct",
        "floor",
        "idle",
        "idleTimeout",
        "inventory",
        "phase",
        "places",
        "queue",
        "releases",
        "settings",
        "supply",
        "useBuckets",
        "useTotal",
        "waitBuckets",
        "waitMost",
        "waitTotal",
        "waited",
        "watched",
    )

    settings: Settings

    def __init__(self, inventory: Inventory, supply: Supply) -> None:
        self.inventory = inventory
        self.supply = supply
        self.idle: deque[Slot] = inventory.idle
        self.queue = FifoQueue()
        self.phase = Phase.OPEN
        self.calm = False
        self.watched = False
        self.direct = False
        self.places = 0.0
        self.floor = 0
        self.armed = NEVER
        self.acquires = 0
        self.waited = 0
        self.releases = 0
        self.useBuckets = [0] * 64
        self.useTotal = 0.0
        self.waitBuckets = [0] * 64
        self.waitTotal = 0.0
        self.waitMost = 0.0

    def configure(self, settings: Settings) -> None:
        """
        Take new settings.  Connections keep the lifetime they were born with.
        """
        self.calm = False
        self.settings = self.inventory.settings = self.supply.settings = settings
        self._pop: Callable[[], Slot] = (
            self.idle.pop if settings.order == "lifo" else self.idle.popleft
        )
        self.idleTimeout = NEVER if settings.idleTimeout is None else settings.idleTimeout
        self._validateAfter = (
            NEVER if settings.validateAfterIdle is None else settings.validateAfterIdle
        )
        # idle for this long, a connection is looked at before it is handed out
        self._stale = min(self.idleTimeout - SLACK_SECONDS, self._validateAfter)
        self._maxUses = NEVER if settings.maxUses is None else settings.maxUses
        for slot in self.inventory.slots:
            slot.plain = slot.plain and self._maxUses == NEVER
            if slot.state is LEASED:
                self.inventory.watch(slot, 0.0)

    def take(self, now: float) -> Slot | None:
        """
        Lease an idle connection.

        @return: the slot, leased; or L{None} if there is none that can be
            handed out as it is.
        """
        while self.idle:
            slot = self._pop()
            if slot.state is not IDLE:
                self.inventory.dead -= 1
                continue
            if slot.wire.disconnecting:
                self.calm = False
                self.inventory.close(slot, "peer", now, popped=True)
                continue
            unread = slot.unread
            if unread is not None and (news := unread(0)) and self._held(slot, news, now):
                continue
            if now - slot.since < self._stale or self._fresh(slot, now):
                slot.state = LEASED
                slot.since = now
                slot.uses += 1
                self.acquires += 1
                if self.floor and len(self.idle) - self.inventory.dead < self.floor:
                    self._short(now)
                return slot
            if slot.state is IDLE:
                return None  # it is back: those that are validated have to do
        return None

    def _short(self, now: float) -> None:
        """
        Fewer are idle than are to be: decide about it, unless that is coming anyhow.
        """
        if not now < self.armed <= self.supply.refillAt:
            self.calm = False
            self.supply.taken(now)

    def _held(self, slot: Slot, news: list[Any], now: float) -> bool:
        """
        The kernel holds something for a slot that is off the deque.  Bytes for one
        that nobody used are a greeting; anything else the reactor gets first.
        """
        if not slot.asked and not endsToo(news):
            return False
        self.calm = False
        self.inventory.hold(slot, now)
        return True

    def _fresh(self, slot: Slot, now: float) -> bool:
        """
        Decide about a slot that was idle for long and is off the deque: close
        it, begin to validate it, or (L{True}) hand it out.  It goes back if enough
        are being validated for those who wait.
        """
        self.calm = False
        age = now - slot.since
        # what minIdle keeps does not expire; slot itself is off the deque
        if (
            age >= self.idleTimeout - SLACK_SECONDS
            and self.inventory.idleCount >= self.settings.minIdle
        ):
            self.inventory.close(slot, "idle", now, popped=True)
            return False
        if age < self._validateAfter or (slot.fit and age < FIT_SECONDS):
            slot.fit = False
            return True
        inventory = self.inventory
        if inventory.checking >= max(1, len(self.queue)):
            (self.idle.append if self.settings.order == "lifo" else self.idle.appendleft)(slot)
        else:
            inventory.check(slot, now)
            inventory.todo.append(Action("check", slot))
        return False

    def give(self, slot: Slot, now: float) -> bool:
        """
        While calm, a plain leased connection came back and is good; nobody waits for
        it, or not before the read under way is delivered.

        @return: whether there is something to decide (L{next}): no timer is set for
            the first that can expire.
        """
        held = now - slot.since
        self.useBuckets[int(held * 1e6).bit_length()] += 1
        self.useTotal += held
        self.releases += 1
        slot.asked = True
        slot.since = now
        if slot.reading:
            slot.state = RETURNING
            self.inventory.returning += 1
            return False
        slot.state = IDLE
        self.idle.append(slot)
        return (
            self.armed > now + self.idleTimeout and self.inventory.idleCount > self.settings.minIdle
        )

    def accept(self, slot: Slot, now: float) -> None:
        """
        A leased connection came back and is good, and there may be something to decide.
        """
        self.ended(slot, now)
        self.releases += 1
        self._park(slot, now)

    def passOn(self, slot: Slot, now: float) -> Any:
        """
        A slot is given back, or the read in which it was has been delivered, and
        somebody waits: lease it to the waiter who came first, where there is nothing
        else to decide.

        @return: the waiter; or L{None}, then L{give} or L{returned} is to be called.
        """
        if not (self.calm and slot.plain) or slot.shelved:
            return None
        if slot.wire.disconnecting:
            return None
        unread = slot.unread
        if unread is not None and unread(0):
            return None
        if slot.state is RETURNING:
            self.inventory.returning -= 1
        else:
            self.ended(slot, now)
            self.releases += 1
            slot.asked = True
        waiter = self.queue.popitem(last=False)[0]
        self._waitEnded(waiter, now)
        slot.state = LEASED
        slot.since = now
        slot.uses += 1
        self.acquires += 1
        return waiter

    def _waitEnded(self, waiter: Waiter, now: float) -> None:
        if waiter.deadline != NEVER:
            self.inventory.agenda.cancel(waiter)
        waited = now - waiter.since
        self.waitBuckets[int(waited * 1e6).bit_length()] += 1
        self.waitTotal += waited
        if waited > self.waitMost:  # noqa: PLR1730 - max() would be a call
            self.waitMost = waited
        self.waited += 1

    def returned(self, slot: Slot, now: float) -> bool:
        """
        The read in which a slot was given back has been delivered.

        @return: whether there is something to decide (L{next}).
        """
        if self.calm and slot.plain and not slot.shelved and not self.queue:
            self.inventory.returning -= 1
            slot.state = IDLE
            self.idle.append(slot)
            return (
                self.armed > slot.since + self.idleTimeout
                and self.inventory.idleCount > self.settings.minIdle
            )
        self._park(slot, now)
        return True

    def _park(self, slot: Slot, now: float) -> None:
        """
        Make a leased or checked slot idle, unless it has to go.
        """
        self.calm = False
        slot.asked = True
        reason = slot.doom
        if reason is None:
            if slot.uses >= self._maxUses:
                reason = "uses"
            elif len(self.inventory.slots) - self.inventory.closing > self.settings.maxSize:
                reason = "shrunk"
            elif self.phase is Phase.CLOSING:
                reason = "pool"
        if reason is not None:
            self.inventory.close(slot, reason, now)
            return
        self.inventory.rest(slot, now)
        self.supply.elide(now, self.queue)

    def check(self, slot: Slot, now: float) -> None:
        """
        A slot that came back is being reset.
        """
        if slot.state is LEASED:
            self.ended(slot, now)
            self.releases += 1
        self.inventory.check(slot, now)

    def setAside(self, slot: Slot, now: float) -> None:
        """
        A leased slot came back, to be reset when all that was sent to its user is
        delivered.
        """
        self.calm = False
        self.ended(slot, now)
        self.releases += 1
        self.inventory.setAside(slot, now)

    def checked(self, slot: Slot, now: float, failed: str | None) -> None:
        """
        A reset or validation ended.

        @param failed: what failed: C{reset} or C{validate}; L{None}: it passed.
        """
        self.calm = False
        if slot.state is not CHECKING:
            return
        if failed is None:
            slot.fit = True
            self._park(slot, now)
        else:
            self.inventory.counts[failed] += 1
            self.inventory.close(slot, failed, now)

    def discard(self, slot: Slot, now: float, reason: str = "discarded") -> None:
        """
        A slot, idle or leased, is of no use any more.
        """
        self.calm = False
        if slot.state is LEASED:
            self.inventory.counts["discards"] += 1
            self.ended(slot, now)
        elif slot.state is IDLE:
            self.supply.died(slot, now, self.acquires)
        self.inventory.close(slot, reason, now, abort=reason == "expired")

    def ended(self, slot: Slot, now: float) -> None:
        """
        Record how long the lease that ends now was held.
        """
        held = now - slot.since
        self.useBuckets[int(held * 1e6).bit_length()] += 1
        self.useTotal += held

    def detach(self, slot: Slot) -> None:
        """
        A leased slot's connection belongs to the caller from now on.
        """
        self.calm = False
        self.inventory.counts["detaches"] += 1
        self.inventory.forget(slot, "detached")

    def expect(self, waiter: Waiter) -> bool:
        """
        Let C{waiter} wait, while calm and with nothing idle, for one of
        the connections that return when their read is delivered; or, at the cap, for
        one that is given back.

        @return: whether it does.
        """
        inventory = self.inventory
        if not self.direct:
            return False
        waiting = len(self.queue)
        if waiting >= self.places and waiting >= inventory.returning:
            return False
        if not self.queue.join(waiter):
            inventory.agenda.enter(waiter, waiter.until)
        return True
