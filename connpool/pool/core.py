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
- C{calm} says that there is nothing to decide: no dial runs, nothing is paused,
  closing or over the cap, and whoever waits can only wait for a connection to come
  back.  Then L{Core.take}, L{Core.give}, L{Core.expect} and L{Core.passOn} are the
  whole of an acquire and a release: no action, no timer, no scan.  Every event that
  needs more begins with C{calm = False}; only L{Core.settle}, after the last action,
  sets it again.
- Idle connections stand in a deque in the order in which they became idle, so
  the coldest is always at the left end, whatever end they are taken from.  One
  that dies there stays as a tombstone until it is met or until tombstones are
  half of the deque.
- All deadlines, of dials, checks, closings and lifetimes, are in one L{Agenda}; with
  the left end of the idle deque and the front of the queue, that says when
  L{Core.next} has something to do although nothing happened (L{Core.wakeAt}).

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
from connpool.pool.lending import SLACK_SECONDS, Lending
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
from connpool.pool.upkeep import Upkeep
from connpool.pool.waiters import CodelQueue, FifoQueue

__all__ = ["Core"]

CONNECTING, IDLE, LEASED, RETURNING, CHECKING, CLOSING, GONE = State


class Core(Lending):
    """
    The decisions of one pool.
    """

    __slots__ = (
        "__weakref__",
        "_queueOf",
        "dialBuckets",
        "dialTotal",
        "end",
        "lastError",
        "name",
        "refusing",
        "upkeep",
    )

    def __init__(
        self,
        name: str,
        settings: Settings,
        endpoints: Sequence[Any],
        newSlot: Callable[[int, int, Destination, float], Slot] = Slot,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        inventory = Inventory()
        super().__init__(inventory, Supply(inventory, endpoints, newSlot))
        self.upkeep = Upkeep(inventory, uniform, SLACK_SECONDS)
        self.name = name
        self.refusing = False  # paused, and told not to queue
        self.end = End()
        # see PoolStats
        self.dialBuckets = [0] * 64
        self.dialTotal = 0.0
        self.lastError: tuple[float, BaseException] | None = None
        self._queueOf: tuple[Any, ...] | None = None
        self.configure(settings)

    # -- settings

    def configure(self, settings: Settings) -> None:
        """
        Take new settings.  Connections keep the lifetime they were born with.
        """
        super().configure(settings)
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
                self._stand(waiter)

    def start(self) -> None:
        """
        Keep C{minIdle} connections from now on, and look whether the destination is
        there; a pool that was closed begins anew.
        """
        self.calm = False
        self.supply.started = self.supply.kept = True
        if self.phase is Phase.CLOSED:
            self.phase = Phase.OPEN

    # -- waiting

    def _stand(self, waiter: Waiter) -> None:
        """
        Put C{waiter} into the queue, and its end on the agenda if need be.
        """
        if not self.queue.join(waiter):
            self.inventory.agenda.enter(waiter, waiter.until)

    def join(self, waiter: Waiter) -> bool:
        """
        Let C{waiter} wait.

        @return: whether there is something to do (L{next}).  At the cap with
            nothing idle there is not: it is an event, or the timer that is
            armed already, that ends this wait.
        """
        self.calm = False
        self.supply.started = True
        self._stand(waiter)
        armed = self.armed
        late = waiter.until < armed or armed <= waiter.since
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
            len(self.idle) == self.inventory.dead
            and len(self.inventory.slots) >= self.settings.maxSize
        )

    def leave(self, waiter: Waiter) -> None:
        """
        C{waiter} does not want to wait any more.  Its dial goes on.
        """
        if self.queue.leave(waiter):
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
                and self._first() > now + SLACK_SECONDS
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
        waiter = queue.following(now)
        while (shed := queue.shed(now)) is not None:
            self.inventory.counts["dropped"] += 1
            self.reject(shed, overloaded(self, shed, now))
        assert isinstance(waiter, Waiter)
        self._waitEnded(waiter, now)
        return Action("serve", slot, waiter)

    def _due(self, now: float) -> bool:
        """
        Do what deadlines ask for.

        @return: whether anything was due.
        """
        due = now + SLACK_SECONDS
        agenda = self.inventory.agenda
        waits = self.queue.until()
        first = waits <= due and waits <= agenda.first()
        item = self.queue.oldest() if first else agenda.pop(due)
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
        settings = self.settings
        room = len(self.inventory.slots) < settings.maxSize
        self.floor = settings.minIdle if room and self.supply.started else 0
        self.direct = not self.floor and settings.queue == "fifo"
        self.places = 0 if room else NEVER if settings.maxWaiting is None else settings.maxWaiting
        self.calm = (
            self.phase is Phase.OPEN
            and (not self.queue or (self.direct and self._full))
            and not self.inventory.connecting
            and not self.supply.retiring
            and not self.watched
            and not (self.inventory.budget is not None and self.inventory.budget.starving)
            and len(self.inventory.slots) - self.inventory.closing <= settings.maxSize
        )

    def _first(self) -> float:
        """
        Tell when the first deadline is.
        """
        return min(self.inventory.agenda.first(), self.queue.until())

    def wakeAt(self, now: float) -> float:
        """
        @return: when L{next} has something to do although nothing happens.
        """
        when = self._first()
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
