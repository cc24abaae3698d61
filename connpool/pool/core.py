"""
The decisions of a pool; it does nothing itself.

Theory of operation
===================

Everything here is plain state and plain calls: no reactor, no transport, no
clock; whoever calls says what time it is.  L{ConnectionPool} is the shell that
acts.

- A I{slot} is one connection from the decision to dial it until its socket is
  gone.  It is in one state at a time and counted in C{size} all that time, so
  C{leased + idle + connecting + checking + closing <= maxSize} holds because
  nothing but L{Core.next} begins a slot, and it looks at C{size} first.
- Events (a connection came back, was lost, failed; a waiter came, left) change
  the state at once and completely.  What has to be done as a consequence is
  asked for with L{Core.next}, one action at a time, until it returns L{None}.
  It decides each action from the state at that moment.  So between two actions
  anything may call anything: there is no plan that could be out of date, and
  no moment at which a connection is promised to a waiter who has not got it.
- C{calm} says that there is nothing to decide: nobody waits, no dial runs,
  nothing is paused, closing or over the cap.  Then L{Core.take} and
  L{Core.give} are the whole of an acquire and a release: no action, no timer,
  no scan.  Every event that needs more begins with C{calm = False}; only
  L{Core.settle}, after the last action, sets it again.
- Idle connections stand in a deque in the order in which they became idle, so
  the coldest is always at the left end, whatever end they are taken from.  One
  that dies there stays as a tombstone until it is met or until tombstones are
  half of the deque.
- All deadlines, of waiters, dials, checks, closings and lifetimes, are in one
  L{Agenda}; with the left end of the idle deque, that says when L{Core.next}
  has something to do although nothing happened (L{Core.wakeAt}).

Known flaws
===========

- Deadlines are monotonic (see L{connpool.pool.clock}), but Twisted's timers run
  by the wall clock: when that is set back, what the pool does unasked, such as
  timing out, is late until anything else happens to it.
- The pool is not fork-safe: a child process must not use its parent's pool.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from connpool.errors import PoolError
from connpool.pool.destination import Destination
from connpool.pool.inventory import Inventory
from connpool.pool.outcomes import begin
from connpool.pool.phases import endOfPatience, finish
from connpool.pool.refusals import overloaded, timedOut
from connpool.pool.settings import Settings
from connpool.pool.sizing import Supply
from connpool.pool.states import (
    Action,
    End,
    Lifetime,
    Phase,
    Probation,
    Pulse,
    Slot,
    Slowness,
    State,
    Waiter,
)
from connpool.pool.timers import NEVER
from connpool.pool.unread import endsToo
from connpool.pool.upkeep import Upkeep
from connpool.pool.waiters import CodelQueue, FifoQueue

__all__ = ["Core"]

#: Deadlines this close are due: float arithmetic of two clocks may be off by an ulp.
SLACK_SECONDS = 1e-6

#: A connection that passed a check is not validated again for this long: it is
#: on its way to the acquire that asked for it.
FIT_SECONDS = 0.5

CONNECTING, IDLE, LEASED, RETURNING, CHECKING, CLOSING, GONE = State


class Core:
    """
    The decisions of one pool.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        endpoints: Sequence[Any],
        newSlot: Callable[[int, int, Destination, float], Slot] = Slot,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self.inventory = inventory = Inventory()
        self.supply = Supply(inventory, endpoints, newSlot)
        self.upkeep = Upkeep(inventory, uniform, SLACK_SECONDS)
        self.idle = inventory.idle
        self.name = name
        self.phase = Phase.OPEN
        self.calm = False
        self.watched = False  # somebody wants to see every lease: no calm path
        self.expecting = 0  # while calm: those in the queue, whose connections are returning
        self.refusing = False  # paused, and told not to queue
        self.direct = False  # while calm: returning connections may be passed on as they are
        self.floor = 0  # with fewer idle than this, there is something to dial
        self.armed = NEVER  # when the shell calls "next" in any case; it keeps this
        self.end = End()
        # counters and histograms, see PoolStats
        self.acquires = 0
        self.waited = 0
        self.releases = 0
        self.useBuckets = [0] * 64
        self.useTotal = 0.0
        self.waitBuckets = [0] * 64
        self.waitTotal = 0.0
        self.waitMost = 0.0
        self.dialBuckets = [0] * 64
        self.dialTotal = 0.0
        self.lastError: tuple[float, BaseException] | None = None
        self.queue: FifoQueue = FifoQueue()
        self._queueOf: tuple[Any, ...] | None = None
        self.configure(settings)

    # -- settings

    def configure(self, settings: Settings) -> None:
        """
        Take new settings.  Connections keep the lifetime they were born with.
        """
        self.calm = False
        self.settings = self.inventory.settings = self.supply.settings = settings
        self._pop = self.idle.pop if settings.order == "lifo" else self.idle.popleft
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
        queueOf = (settings.queue, settings.queueTarget, settings.queueInterval)
        if queueOf != self._queueOf:
            self._queueOf = queueOf
            waiting = list(self.queue)
            self.queue = (
                CodelQueue(settings.queueTarget, settings.queueInterval)
                if settings.queue == "codel"
                else FifoQueue()
            )
            for waiter in waiting:
                self.queue.join(waiter)

    def start(self) -> None:
        """
        Keep C{minIdle} connections from now on, and look whether the destination is
        there; a pool that was closed begins anew.
        """
        self.calm = False
        self.supply.started = self.supply.kept = True
        if self.phase is Phase.CLOSED:
            self.phase = Phase.OPEN

    # -- acquire and release

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
            for wire in slot.wires:
                if wire.disconnecting:
                    self.calm = False
                    self.inventory.close(slot, "peer", now, popped=True)
                    break
            else:
                unread = slot.unread
                if unread is not None and (news := unread(0)) and self._held(slot, news, now):
                    continue
                if now - slot.since < self._stale or self._fresh(slot, now):
                    slot.state = LEASED
                    slot.since = now
                    slot.uses += 1
                    self.acquires += 1
                    if self.floor and len(self.idle) - self.inventory.dead < self.floor:
                        self.calm = False
                    return slot
                if slot.state is IDLE:
                    return None  # it is back: those that are validated have to do
        return None

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
        A leased connection came back and is good.

        @return: whether there is something to decide (L{next}).
        """
        held = now - slot.since
        self.useBuckets[int(held * 1e6).bit_length()] += 1
        self.useTotal += held
        self.releases += 1
        slot.asked = True
        if self.calm and slot.plain:
            slot.since = now
            if slot.reading:
                slot.state = RETURNING
                self.inventory.returning += 1
                return False
            slot.state = IDLE
            self.idle.append(slot)
            # no timer yet for the first that can expire
            return bool(self.expecting) or (
                self.armed > now + self.idleTimeout
                and self.inventory.idleCount > self.settings.minIdle
            )
        self._park(slot, now)
        return True

    def passOn(self, slot: Slot, now: float) -> Any:
        """
        The read in which a slot was given back has been delivered: lease it to the
        waiter who came first of those that expect it, where there is nothing else to decide.

        @return: the waiter; or L{None}, then L{returned} is to be called.
        """
        if not (self.calm and slot.plain) or slot.shelved:
            return None
        for wire in slot.wires:
            if wire.disconnecting:
                return None
        unread = slot.unread
        if unread is not None and unread(0):
            return None
        waiter = self.queue.oldest()
        assert waiter is not None
        self.expecting -= 1
        self.inventory.returning -= 1
        self._waitEnded(waiter, now)
        slot.state = LEASED
        slot.since = now
        slot.uses += 1
        self.acquires += 1
        return waiter

    def _waitEnded(self, waiter: Waiter, now: float) -> None:
        waited = now - waiter.since
        self.waitBuckets[int(waited * 1e6).bit_length()] += 1
        self.waitTotal += waited
        self.waitMost = max(self.waitMost, waited)
        self.waited += 1

    def returned(self, slot: Slot, now: float) -> bool:
        """
        The read in which a slot was given back has been delivered.

        @return: whether there is something to decide (L{next}).
        """
        if slot.state is not RETURNING:
            return False
        if self.calm and slot.plain and not slot.shelved and not self.expecting:
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

    # -- waiting

    def join(self, waiter: Waiter, timeout: float | None) -> bool:
        """
        Let C{waiter} wait.

        @return: whether there is something to do (L{next}).  At the cap with
            nothing idle there is not: it is an event, or the timer that is
            armed already, that ends this wait.
        """
        self.calm = False
        self.supply.started = True
        self.queue.join(waiter)
        if timeout is not None:
            self.inventory.agenda.enter(waiter, waiter.since + timeout)
        armed = self.armed
        late = waiter.deadline < armed or armed <= waiter.since
        if late or self.inventory.todo or self.inventory.probes:
            return True
        # a read that is being delivered ends by itself
        return not self._full and self.inventory.returning < len(self.queue)

    def expect(self, waiter: Waiter) -> None:
        """
        Let C{waiter} wait for one of the connections that are returning: the reads
        that are being delivered end by themselves, so until then nothing is decided
        and no deadline passes.
        """
        self.queue.join(waiter)
        self.expecting += 1

    def unexpect(self) -> None:
        """
        There is something to decide: those who wait for returning connections are
        waiters as any others, with a deadline.
        """
        self.expecting = 0
        for waiter in self.queue:
            if waiter.patience is not None:
                self.inventory.agenda.enter(waiter, waiter.since + waiter.patience)
                waiter.patience = None

    @property
    def _full(self) -> bool:
        """
        Tell whether nothing can be served, expired or dialled.
        """
        return (
            len(self.idle) == self.inventory.dead
            and len(self.inventory.slots) >= self.settings.maxSize
        )

    def leave(self, waiter: Waiter) -> None:
        """
        C{waiter} does not want to wait any more.  Its dial goes on.
        """
        if self.queue.leave(waiter):
            self.calm = False
            self.inventory.counts["cancels"] += 1
            self.inventory.agenda.cancel(waiter)

    def reject(self, waiter: Any, error: PoolError) -> None:
        """
        C{waiter} is out of the queue: tell it why.
        """
        self.inventory.agenda.cancel(waiter)
        self.inventory.counts["rejected"] += 1
        self.inventory.todo.append(Action("reject", waiter=waiter, error=error))

    def rejectAll(self, error: Callable[[], PoolError]) -> None:
        while (waiter := self.queue.oldest()) is not None:
            self.reject(waiter, error())

    # -- what comes next

    def next(self, now: float) -> Action | None:
        """
        Decide one thing and return it; the state says already that it is so.

        @return: L{None} when nothing is to be done before L{wakeAt}.
        """
        while True:
            if self.inventory.todo:
                return self.inventory.todo.popleft()
            if action := self._serve(now):
                return action
            if (
                self.phase is Phase.OPEN
                and self._full
                and not self.supply.retiring
                and not self.inventory.todo
                and not self.inventory.probes
                and len(self.inventory.slots) - self.inventory.closing <= self.settings.maxSize
                and self.inventory.agenda.first() > now + SLACK_SECONDS
            ):
                return None
            if self._due(now) or self.inventory.todo:
                continue
            if self.phase is Phase.OPEN or self.phase is Phase.DRAINING:
                draining = self.phase is Phase.DRAINING
                if action := self.supply.dial(now, self.queue, draining=draining):
                    return action
            if self.inventory.todo:
                continue
            return finish(self, now)

    def _serve(self, now: float) -> Action | None:
        queue = self.queue
        if len(self.idle) == self.inventory.dead or not len(queue):
            return None
        if self.phase is not Phase.OPEN and self.phase is not Phase.DRAINING:
            return None
        budget = self.inventory.budget
        if budget is not None and budget.starving:
            slot = self.inventory.coldest()
            if slot is not None and budget.yields(next(iter(queue)).since, now):
                self.inventory.close(slot, "evicted", now)
                return self.inventory.todo.popleft()
        slot = self.take(now)
        if slot is None:
            return None
        waiter = queue.pop(now)
        while (shed := queue.shed(now)) is not None:
            self.inventory.counts["dropped"] += 1
            self.reject(shed, overloaded(self, shed, now))
        assert isinstance(waiter, Waiter)
        self.inventory.agenda.cancel(waiter)
        self._waitEnded(waiter, now)
        return Action("serve", slot, waiter)

    def _due(self, now: float) -> bool:
        """
        Do what deadlines ask for.

        @return: whether anything was due.
        """
        item = self.inventory.agenda.pop(now + SLACK_SECONDS)
        if item is None:
            return self.supply.shrink(now, SLACK_SECONDS)
        if isinstance(item, Waiter):
            self.queue.leave(item)
            self.inventory.counts["timeouts"] += 1
            self.reject(item, timedOut(self, item, now))
        elif isinstance(item, Lifetime):
            self.supply.overdue(item)
        elif isinstance(item, Slowness):
            self.supply.slow(item.slot, now)
        elif isinstance(item, Probation):
            self.supply.proved(item.slot.destination, now)
            if item.slot.state is CONNECTING:
                begin(self, item.slot, now)
        elif isinstance(item, Pulse):
            self.upkeep.keepAlive(item.slot, now)
        elif isinstance(item, Slot):
            self.upkeep.overdue(item, now)
        else:
            endOfPatience(self, now)
        return True

    def settle(self) -> None:
        """
        There is nothing more to do now: decide whether the calm path may be
        taken until the next event.
        """
        room = self.supply.started and len(self.inventory.slots) < self.settings.maxSize
        self.floor = self.settings.minIdle if room else 0
        self.direct = not self.floor and self.settings.queue == "fifo"
        self.calm = (
            self.phase is Phase.OPEN
            and not len(self.queue)
            and not self.inventory.connecting
            and not self.supply.retiring
            and not self.watched
            and not (self.inventory.budget is not None and self.inventory.budget.starving)
            and len(self.inventory.slots) - self.inventory.closing <= self.settings.maxSize
        )

    def wakeAt(self, now: float) -> float:
        """
        @return: when L{next} has something to do although nothing happens.
        """
        when = self.inventory.agenda.first()
        if self.idleTimeout != NEVER and self.inventory.idleCount > self.settings.minIdle:
            coldest = self.inventory.coldest()
            if coldest is not None:
                when = min(when, coldest.since + self.idleTimeout)
        if self.phase is Phase.OPEN or self.phase is Phase.DRAINING:
            when = min(when, self.supply.dialAt(now, self.queue))
        return when

    def mayDial(self, now: float) -> bool:
        """
        Tell whether somebody who waits could be dialled for now, but for the limits
        that pools share.
        """
        return self.phase in {Phase.OPEN, Phase.DRAINING} and self.supply.mayDial(now)
