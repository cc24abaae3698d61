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

from connpool.errors import ConnectFailed, PoolError
from connpool.pool.destination import Destination
from connpool.pool.inventory import Inventory
from connpool.pool.refusals import closed, outage, overloaded, timedOut
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
        self._idle = inventory.idle
        self.name = name
        self.phase = Phase.OPEN
        self.calm = False
        self.watched = False  # somebody wants to see every lease: no calm path
        self.expecting = 0  # while calm: waiters whose connections are returning
        self.refusing = False  # paused, and told not to queue
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
        self._pop = self._idle.pop if settings.order == "lifo" else self._idle.popleft
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
        self._fifo = settings.queue == "fifo"
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
        while self._idle:
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
                    if self.floor and len(self._idle) - self.inventory.dead < self.floor:
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
            (self._idle.append if self.settings.order == "lifo" else self._idle.appendleft)(slot)
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
            self._idle.append(slot)
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
        waiter who came first, where there is nothing else to decide.

        @return: the waiter; or L{None}, then L{returned} is to be called.
        """
        if not (self.calm and self.expecting and slot.plain and slot.state is RETURNING):
            return None
        if any(wire.disconnecting for wire in slot.wires) or slot.shelved:
            return None
        if slot.unread is not None and slot.unread(0):
            return None
        waiter = self.queue.oldest()
        assert waiter is not None
        self.expecting -= 1
        self.inventory.returning -= 1
        self.inventory.agenda.cancel(waiter)
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
            self._idle.append(slot)
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
            self._ended(slot, now)
            self.releases += 1
        self.inventory.check(slot, now)

    def setAside(self, slot: Slot, now: float) -> None:
        """
        A leased slot came back, to be reset when all that was sent to its user is
        delivered.
        """
        self.calm = False
        self._ended(slot, now)
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
            self._ended(slot, now)
        elif slot.state is IDLE:
            self.supply.died(slot, now, self.acquires)
        self.inventory.close(slot, reason, now, abort=reason == "expired")

    def condemn(self, slot: Slot, now: float) -> None:
        """
        A slot's destination is of no use, though it accepts connections: count that
        as a failed dial, and let nothing that leads there be leased again.
        """
        self.calm = False
        destination = slot.destination
        destination.failed(now, now, self.settings.pause)
        others = [each for each in self.inventory.slots if each.destination is destination]
        self.inventory.doom([each for each in others if each is not slot], "condemned", now)

    def _ended(self, slot: Slot, now: float) -> None:
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
        if self.calm and self._fifo and self.expecting < self.inventory.returning:
            # a read that is being delivered ends by itself: nothing to decide till then
            self.queue.join(waiter)
            self.expecting += 1
            if timeout is not None:
                self.inventory.agenda.enter(waiter, waiter.since + timeout)
            return waiter.deadline < self.armed or self.armed <= waiter.since
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

    @property
    def _full(self) -> bool:
        """
        Tell whether nothing can be served, expired or dialled.
        """
        return (
            len(self._idle) == self.inventory.dead
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

    def _reject(self, waiter: Any, error: PoolError) -> None:
        """
        C{waiter} is out of the queue: tell it why.
        """
        self.inventory.agenda.cancel(waiter)
        self.inventory.counts["rejected"] += 1
        self.inventory.todo.append(Action("reject", waiter=waiter, error=error))

    def _rejectAll(self, error: Callable[[], PoolError]) -> None:
        while (waiter := self.queue.oldest()) is not None:
            self._reject(waiter, error())

    # -- the life of a slot

    def ready(self, slot: Slot, now: float) -> None:
        """
        A dial succeeded: connected, handshaken, prepared.
        """
        if slot.state is not CONNECTING:
            return  # given up meanwhile: it is about to be closed
        self.calm = False
        took = now - slot.since
        self.dialBuckets[int(took * 1e6).bit_length()] += 1
        self.dialTotal += took
        slot.bornAt = now
        if self.supply.connected(slot, now):
            self._begin(slot, now)

    def _begin(self, slot: Slot, now: float) -> None:
        """
        The dial of a slot proved good: use it.
        """
        slot.fit = True
        slot.plain = slot.plain and slot.doom is None and self._maxUses == NEVER
        self.upkeep.began(slot, now)
        replaced = slot.replaces
        slot.replaces = None
        if replaced is not None:
            self.supply.retire(*replaced, now)
        self.inventory.rest(slot, now)

    def proved(self, slot: Slot, now: float) -> None:
        """
        The first bytes came from a slot's server.
        """
        slot.proven = True
        destination = slot.destination
        destination.early = 0
        if destination.barren:
            self.calm = False
            destination.recovered()

    def failed(self, slot: Slot, now: float, error: ConnectFailed, *, gone: bool) -> None:
        """
        A dial failed.

        @param gone: there is no socket; else it is being aborted.
        """
        if slot.state is not CONNECTING:
            # elided or closed before: not the destination's fault
            if gone:
                self.gone(slot, now)
            return
        self.calm = False
        self.inventory.counts["dialFailures"] += 1
        self.lastError = (now, error.__cause__ or error)
        slot.destination.failed(slot.since, now, self.settings.pause)
        replaced = slot.replaces
        self.supply.owed = 0
        if gone:
            self.inventory.forget(slot, "failed")
        else:
            self.inventory.close(slot, "failed", now, abort=True)
        if replaced is not None:
            self.supply.retire(*replaced, now)
        self._without(error, now)

    def _without(self, error: ConnectFailed, now: float) -> None:
        """
        A dial failed, or its connection ended at once: fail those who wait if there
        is nothing to wait for.
        """
        if self.settings.onDown != "fail" or self.supply.promising:
            return
        if any(not destination.down(now) for destination in self.supply.destinations):
            return  # there is another one to try
        waiter = self.queue.oldest()
        if waiter is not None:
            self._reject(waiter, error)
        if outage(self, now) is not None:
            self._rejectAll(lambda: outage(self, now) or error)

    def gone(self, slot: Slot, now: float, error: ConnectFailed | None = None) -> None:
        """
        A slot's socket is gone.

        @param error: for those who wait, if that counts as a failed dial; L{None}: it
            was our side that hung up.
        """
        state = slot.state
        if state is GONE:
            return
        self.calm = False
        if state is CLOSING:
            self.inventory.forget(slot, None)
            return
        barren = False
        if state is CONNECTING:
            # a probe that did not last
            slot.destination.failed(slot.since, now, self.settings.pause, barren=True)
            barren = True
            if slot.replaces is not None:
                self.supply.retire(*slot.replaces, now)
        elif error is not None:
            barren = self.supply.barren(slot, now, self.queue)
        if state is LEASED:
            self._ended(slot, now)
        elif not barren and state is not CHECKING:
            self.supply.died(slot, now, self.acquires)
        self.inventory.forget(slot, "peer")
        if barren and error is not None:
            self.lastError = (now, error.__cause__ or error)
            self._without(error, now)

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
            return self._finish(now)

    def _serve(self, now: float) -> Action | None:
        queue = self.queue
        if len(self._idle) == self.inventory.dead or not len(queue):
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
            self._reject(shed, overloaded(self, shed, now))
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
            self._reject(item, timedOut(self, item, now))
        elif isinstance(item, Lifetime):
            self.supply.overdue(item)
        elif isinstance(item, Slowness):
            self.supply.slow(item.slot, now)
        elif isinstance(item, Probation):
            self.supply.proved(item.slot.destination, now)
            if item.slot.state is CONNECTING:
                self._begin(item.slot, now)
        elif isinstance(item, Pulse):
            self.upkeep.keepAlive(item.slot, now)
        elif isinstance(item, Slot):
            self.upkeep.overdue(item, now)
        else:
            self._endOfPatience(now)
        return True

    def _finish(self, now: float) -> Action | None:
        """
        The end of draining and of closing.
        """
        if self.phase is Phase.DRAINING and not len(self.queue) and not self.inventory.leased:
            if not self.inventory.checking and not self.inventory.returning:
                self.close(now, None)
                return self.next(now)
        elif self.phase is Phase.CLOSING and not self.inventory.slots:
            self.phase = Phase.CLOSED
            self.inventory.agenda.cancel(self.end)
            return Action("closed")
        return None

    def settle(self) -> None:
        """
        There is nothing more to do now: decide whether the calm path may be
        taken until the next event.
        """
        self.expecting = 0
        room = self.supply.started and len(self.inventory.slots) < self.settings.maxSize
        self.floor = self.settings.minIdle if room else 0
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

    def evict(self, now: float) -> bool:
        """
        Close the coldest connection, to make room for another pool's.

        @return: whether there was one.
        """
        slot = self.inventory.coldest() or next(iter(self.inventory.probes), None)
        if slot is None:
            return False
        self.calm = False
        self.inventory.close(slot, "evicted", now)
        return True

    # -- the pool as a whole

    def purge(self, now: float, reason: str = "stale", over: float = 0.0) -> None:
        """
        Let no connection that exists now be leased again.

        @param over: replace them within so many seconds instead, one after another.
        """
        self.calm = False
        self.inventory.generation += 1
        if over > 0:
            dialled = [slot for slot in self.inventory.slots if slot.state is not CLOSING]
            self.supply.replaceWithin(dialled, over, reason, now)
            return
        self.supply.owed = 0
        self.supply.retiring.clear()
        self.inventory.doom(list(self.inventory.slots), reason, now)

    def pause(self, *, queue: bool) -> None:
        """
        Hand nothing out and dial nothing until L{resume}.
        """
        self.calm = False
        if self.phase is Phase.OPEN:
            self.phase = Phase.PAUSED
        self.refusing = not queue

    def resume(self) -> None:
        """
        The end of L{pause}.
        """
        self.calm = False
        if self.phase is Phase.PAUSED:
            self.phase = Phase.OPEN

    def drain(self, now: float, timeout: float | None) -> None:
        """
        Accept no acquire, serve those that wait, then close.
        """
        self.calm = False
        if self.phase in {Phase.OPEN, Phase.PAUSED}:
            self.phase = Phase.DRAINING
        if self.phase is Phase.DRAINING:
            self._hurry(now, timeout)

    def close(self, now: float, timeout: float | None) -> None:
        """
        Reject who waits, close what is idle, give leases C{timeout} to come back.
        """
        self.calm = False
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSING
        self._hurry(now, timeout)
        self._rejectAll(lambda: closed(self))
        for slot in list(self.inventory.slots):
            if slot.state is IDLE or slot.state is CONNECTING:
                self.inventory.close(slot, "pool", now)
            else:
                slot.plain = False

    def _hurry(self, now: float, timeout: float | None) -> None:
        if timeout is not None and now + timeout < self.end.deadline:
            self.inventory.agenda.enter(self.end, now + timeout)

    def _endOfPatience(self, now: float) -> None:
        """
        Leases did not come back in time.
        """
        draining = self.phase is Phase.DRAINING
        self.close(now, None)
        for slot in list(self.inventory.slots):
            if slot.state in {LEASED, RETURNING, CHECKING}:
                self.inventory.close(slot, "pool", now, abort=True)
            elif not draining and slot.state is CLOSING and slot.doom != "aborted":
                self.inventory.abort(slot, now)
