"""
Doing what the core decided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import LeaseError
from connpool.pool import checks, outcomes
from connpool.pool.acquire import UNSET, Acquire
from connpool.pool.arguments import checkCount
from connpool.pool.clock import steady
from connpool.pool.connection import Connection, site
from connpool.pool.core import Core
from connpool.pool.failures import CLEAN, EARLY, dialFailure
from connpool.pool.inventory import MOST_DELAYS
from connpool.pool.lease import Lease
from connpool.pool.observation import Watch
from connpool.pool.readiness import Readiness
from connpool.pool.refusals import late, refusal, unreachable
from connpool.pool.states import Action, Phase, State
from connpool.pool.timers import NEVER
from connpool.pool.turns import Turns
from connpool.waiting import Waiters

__all__ = ["Shell"]

LEASED = State.LEASED
CLOSING = State.CLOSING


class Shell:
    """
    A pool's reactor side: the loop that asks L{Core.next} and acts, the one
    timer, and what connections and leases report (see L{Owner}).

    @ivar core: the decisions.
    @ivar watch: the observers.
    @ivar turns: the connections that return after some turns of the reactor.
    @ivar settled: called after each batch of decisions; the keyed pool wants to
        know.
    """

    def __init__(
        self,
        reactor: Any,
        core: Core,
        factory: Any,
        prepare: Callable[[Any], Any] | None,
        watch: Watch,
    ) -> None:
        self.name = core.name
        self._log = Logger()
        self._reactor = reactor
        self.seconds = steady(reactor)
        self.core = core
        self.factory = factory
        self.prepare = prepare
        self.watch = watch
        self._dispatching = False
        self._timer: Any = None
        self._closers = Waiters()
        self.turns = Turns(reactor, self._turned)
        self._readiness = Readiness(core)
        self.settled: Callable[[], None] | None = None

    def settle(self) -> None:
        """
        Do whatever there is to do: a loop, not a recursion, however deep the
        callers' callbacks call back.
        """
        core = self.core
        if self._dispatching:
            core.calm = False  # for the one that dispatches
            return
        self._dispatching = True
        core.calm = False
        try:
            while (action := core.next(now := self.seconds())) is not None:
                try:
                    _VERBS[action.verb](self, action)
                except Exception:
                    self._log.failure(
                        "pool {name} could not {verb}", name=self.name, verb=action.verb
                    )
                del action
        finally:
            self._dispatching = False
            core.settle()
            # as of then: what fell due since then was not decided
            self._arm(now)
        if self._readiness:
            self._readiness.tell()
        if self.settled is not None:
            self.settled()
        if core.phase is Phase.CLOSED:
            self.turns.stop()
        if core.phase is Phase.CLOSED and len(self._closers):
            self._closers.wake()  # last, when no timer is left: whoever waited may look

    def _arm(self, now: float) -> None:
        """
        Have one timer that is not later than the next deadline.

        @param now: when it was decided that there is nothing to do before.
        """
        core = self.core
        when = core.wakeAt(now)
        if when >= core.armed > now and (when != NEVER or core.inventory.leased):
            return  # it wakes up for nothing once, and is set again then
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        core.armed = when
        if when != NEVER:
            wait = max(0.0, when - self.seconds())
            self._timer = self._reactor.callLater(wait, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.core.armed = NEVER
        self.settle()

    def _serve(self, action: Action) -> None:
        waiter, connection = action.waiter, action.slot
        self.watch.began(connection, self.seconds(), waiter)
        self.watch.waited(waiter)
        connection.code = waiter.code
        connection.offset = waiter.offset
        waiter.callback(self._lend(connection))

    def _passedOn(self, connection: Connection, now: float) -> bool:
        """
        Give C{connection} to the one who waits for longest, if there is nothing else to
        decide.

        @return: whether it was.
        """
        waiter = self.core.passOn(connection, now)
        if waiter is None:
            return False
        connection.code = waiter.code
        connection.offset = waiter.offset
        scope = waiter.scope
        self._dispatching = True
        try:
            if scope is None or not scope.hold(waiter, connection):
                waiter.callback(Lease(self, connection))
            else:
                waiter.callback(connection)
        finally:
            self._dispatching = False
        if not self.core.calm:
            self.settle()
        return True

    def _reject(self, action: Action) -> None:
        waiter = action.waiter
        if waiter.called:
            return  # cancelled by the errback of one before it
        self.watch.waited(waiter)
        self.watch.tell("acquireFailed", action.error, self.seconds() - waiter.since)
        waiter.errback(Failure(action.error))

    def _dial(self, action: Action) -> None:
        self.watch.tell("connectionCreated", action.slot.number)
        action.slot.dial(
            self,
            self.factory,
            self.prepare,
            tcpKeepAlive=self.core.settings.tcpKeepAlive,
        )

    def _failDial(self, action: Action) -> None:
        seconds = self.core.settings.connectTimeout
        action.slot.life.fail(
            Failure(TimeoutError(f"not connected, handshaken and prepared within {seconds:g} s"))
        )

    def _check(self, action: Action) -> None:
        poolable = action.slot.poolable
        checks.run(
            self, action.slot, "validate", (lambda: True) if poolable is None else poolable.validate
        )

    def _overdue(self, action: Action) -> None:
        connection = action.slot
        pending = connection.pending
        what = "validate" if connection.validating else "reset"
        if pending is not None:
            pending.cancel()
        # if the canceller did not make it fail
        self.core.checked(connection, self.seconds(), what)

    def _close(self, action: Action) -> None:
        action.slot.why = action.detail
        # a goodbye after half a request, or on what is broken, would never be answered
        action.slot.polite = action.detail in CLEAN
        action.slot.close(Failure(ConnectionDone(f"the pool closed it: {action.detail}")))

    def _abort(self, action: Action) -> None:
        action.slot.why = action.slot.why or action.detail
        action.slot.abort(Failure(ConnectionDone(f"the pool aborted it: {action.slot.why}")))

    def _leak(self, action: Action) -> None:
        self.watch.leak(action.slot, self.seconds())

    def _lost(self, action: Action) -> None:
        self._log.error(
            "pool {name}: connection {number} did not end although it was aborted; "
            "it is not counted any more",
            name=self.name,
            number=action.slot.number,
        )

    def _closed(self, action: Action) -> None:
        self.watch.tell("poolClosed")

    def _left(self, waiter: Acquire) -> None:
        """
        A waiter's Deferred was cancelled.
        """
        self.core.leave(waiter)
        self.watch.waited(waiter)
        if not self.core.calm:
            self.settle()

    # -- what connections say (see Owner)

    def connectionReady(self, connection: Connection) -> None:
        """
        See L{Owner}.
        """
        now = self.seconds()
        took = now - connection.since
        outcomes.ready(self.core, connection, now)
        self.watch.tell("connectionReady", connection.number, took)

    def connectionFailed(self, connection: Connection, reason: Failure, *, gone: bool) -> None:
        """
        See L{Owner}.
        """
        error = dialFailure(self.name, connection, reason)
        connection.why = connection.why or "failed"
        outcomes.failed(self.core, connection, self.seconds(), error, gone=gone)
        if gone:
            self.watch.tell("connectionClosed", connection.number, connection.why)

    def connectionGone(self, connection: Connection, reason: Failure) -> None:
        """
        See L{Owner}.
        """
        if connection.state is State.GONE:
            return  # detached, or a dial that failed
        if connection.state is LEASED:
            self.watch.ended(connection, self.seconds())
        early = None if connection.busy() else dialFailure(self.name, connection, reason, EARLY)
        outcomes.lost(self.core, connection, self.seconds(), early)
        self.watch.tell("connectionClosed", connection.number, connection.why or "peer")

    def idleData(self, connection: Connection, data: bytes) -> None:
        """
        See L{Owner}.  Bytes nobody asked for belong to an answer that somebody
        else gave up on; the next lease must not read them (redis-py #2624).
        """
        if connection.poolable is not None:
            try:
                if connection.poolable.idleDataReceived(data):
                    return
            except Exception:
                self._log.failure(
                    "idleDataReceived() of {protocol!r} failed", protocol=connection.protocol
                )
            if connection.state not in {State.IDLE, State.RETURNING}:
                return
        self._log.info(
            "pool {name}: {count} bytes came on an idle connection last used at {where}; closed",
            name=self.name,
            count=len(data),
            where=site(connection.code, connection.offset),
        )
        self.core.discard(connection, self.seconds(), "data")
        self.settle()

    def firstBytes(self, connection: Connection) -> None:
        """
        See L{Owner}.
        """
        outcomes.proved(self.core, connection)
        if not self.core.calm:
            self.settle()

    def readDelivered(self, connection: Connection, turns: int = 0) -> None:
        """
        See L{Owner}.
        """
        if turns := connection.turnsToReturn or turns:
            self.turns.let(connection, turns)
        elif self._return(connection):
            self.settle()

    def _return(self, connection: Connection) -> bool:
        """
        All that was read for a connection has been delivered.

        @return: whether there is something to decide.
        """
        connection.reading = False
        if connection.state is not State.RETURNING:
            return False
        now = self.seconds()
        if self.core.queue and not self._dispatching and self._passedOn(connection, now):
            return False
        if not connection.unreset:
            return self.core.returned(connection, now)
        if connection.delays < MOST_DELAYS and self._unread(connection):
            connection.delays += 1
            self.turns.let(connection, 2)
            return False
        checks.reset(self, connection)
        return True

    def _unread(self, connection: Connection) -> bool:
        return connection.unread is not None and bool(connection.unread(0))

    def _turned(self, connections: list[Connection]) -> None:
        for connection in connections:
            connection.trust()
            self._return(connection)
        self.settle()

    def _hold(self, action: Action) -> None:
        self.turns.let(action.slot, 2)

    def idleEnd(self, connection: Connection) -> None:
        """
        See L{Owner}.
        """
        self.core.discard(connection, self.seconds(), "peer")
        self.settle()

    # -- leases (see Owner)

    def acquire(
        self, timeout: float | None, code: Any, offset: int, scope: Any = None
    ) -> Deferred[Any]:
        """
        Acquire what the calm path has not.
        """
        core = self.core
        now = self.seconds()
        if not core.calm:
            self.watch.tell("acquireStarted")
        if core.idle and (lease := self.tryAcquire(code, offset)) is not None:
            return succeed(lease)
        if timeout is UNSET:
            timeout = core.settings.acquireTimeout
        until = NEVER if timeout is None else now + timeout
        waiter = Acquire(self._left, now, until, code, offset, scope)
        if core.calm and until > now < core.armed and core.expect(waiter):
            # a read that is being delivered ends by itself, before any time is over
            if until < core.armed and len(core.queue) > core.inventory.returning:
                self._arm(now)
            return waiter
        error = refusal(core, now)
        if error is not None:
            core.inventory.counts["rejected"] += 1
            self.watch.tell("acquireFailed", error, 0.0)
            if core.inventory.todo:
                self.settle()
            return fail(error)
        self.watch.waits(waiter)
        if core.join(waiter) or self.settled is not None:
            self.settle()
        if core.settings.debug and not waiter.called:
            self.watch.nested(waiter)
        return waiter

    def tryAcquire(self, code: Any, offset: int) -> Lease | None:
        """
        See L{IConnectionPool.tryAcquire}.
        """
        core = self.core
        if core.queue or core.phase is not Phase.OPEN:
            return None
        connection: Any = core.take(self.seconds())
        if connection is None:
            if core.inventory.todo:
                self.settle()
            return None
        connection.code = code
        connection.offset = offset
        lease = self._lend(connection)
        if not core.calm:
            self.watch.began(connection, connection.since)
            self.settle()
        return lease

    def giveBack(self, connection: Connection, lease: Lease | None) -> None:
        """
        A lease ended well.
        """
        core = self.core
        if connection.plain:
            connection.resume()
        if connection.state is not LEASED:
            return  # the connection was lost before
        wire = connection.wire
        if core.calm and connection.plain and not wire.disconnecting and wire.producer is None:
            now = self.seconds()
            if connection.reading or not core.queue:
                if core.give(connection, now):
                    self.settle()
            elif self._dispatching or not self._passedOn(connection, now):
                core.accept(connection, now)
                self.settle()
            return
        self.watch.ended(connection, self.seconds(), lease)
        if connection.busy():
            core.discard(
                connection,
                self.seconds(),
                "peer" if connection.wire.disconnecting else "discarded",
            )
        elif connection.poolable is None:
            connection.resume()  # not done yet where it is not plain
            if connection.state is LEASED:
                core.accept(connection, self.seconds())
        elif connection.reading or self._unread(connection):
            connection.unreset = True
            connection.delays = 0
            core.setAside(connection, self.seconds())
            connection.resume()
            if not connection.reading:
                self.turns.let(connection, 2)
        else:
            checks.reset(self, connection)
        self.settle()

    def throwAway(
        self, connection: Connection, lease: Lease | None, reason: str = "discarded"
    ) -> None:
        """
        A lease ended and its connection is of no use.
        """
        if connection.state is LEASED:
            self.watch.ended(connection, self.seconds(), lease)
            self.core.discard(connection, self.seconds(), reason)
            self.settle()

    def leave(self, connection: Connection, lease: Lease | None, *, failed: bool) -> None:
        """
        A block that used a lease ended.
        """
        if failed and connection.poolable is None:
            self.throwAway(connection, lease)
        else:
            self.giveBack(connection, lease)

    def detach(self, connection: Connection, lease: Lease) -> Any:
        """
        See L{ILease.detach}.
        """
        if connection.state is not LEASED:
            raise LeaseError(f"this connection of pool {self.name} is closed; acquire another one")
        self.core.detach(connection)
        self.watch.ended(connection, self.seconds(), lease)
        self.settle()
        return connection.protocol

    def later(self, f: Callable[..., Any], *args: Any) -> None:
        """
        Call C{f} in the reactor's thread.  The garbage collector runs anywhere,
        in any thread, between any two byte codes.
        """
        later = getattr(self._reactor, "callFromThread", None)
        if later is not None:
            later(f, *args)
        else:
            self._reactor.callLater(0, f, *args)

    def reclaim(self, connection: Connection) -> None:
        if connection.state is LEASED:
            self.watch.leaked(connection)
            self.throwAway(connection, None, "leaked")

    def _lend(self, connection: Connection) -> Lease:
        lease = Lease(self, connection)
        if self.core.settings.leaseTimeout is not None:
            connection.tenant = ref(lease)
        return lease

    def _expire(self, action: Action) -> None:
        """
        A lease was held for too long: end it, then tell its owner.
        """
        connection = action.slot
        limit: Any = self.core.settings.leaseTimeout
        lease = connection.tenant()
        self.watch.expired(connection, limit)
        self.throwAway(connection, None, "expired")
        if lease is not None:
            lease.expire(limit)

    def condemn(self, connection: Connection) -> None:
        """
        See L{Owner}.
        """
        if connection.state is LEASED:
            outcomes.condemn(self.core, connection, self.seconds())

    def condemnNumber(self, number: int, *, destinationBad: bool) -> None:
        """
        See L{IConnectionPool.condemn}.
        """
        for connection in list(self.core.inventory.slots):
            if connection.number == number and connection.state not in {CLOSING, State.GONE}:
                if destinationBad:
                    outcomes.condemn(self.core, connection, self.seconds())
                if connection.state is LEASED:
                    connection.doom = connection.doom or "condemned"
                    connection.plain = False
                else:
                    self.core.discard(connection, self.seconds(), "condemned")
                self.settle()

    def releasedTwice(self) -> None:
        """
        See L{Owner}.
        """
        self.core.inventory.counts["doubleReleases"] += 1

    # -- the pool as a whole

    def trouble(self) -> str | None:
        """
        See L{IReadiness.trouble}.
        """
        return unreachable(self.core, self.seconds())

    def whenReady(self, count: int | None, timeout: float | None) -> Deferred[None]:
        """
        See L{IConnectionPool.whenReady}.
        """
        settings = self.core.settings
        if count is not None:
            checkCount("count", count, settings.maxSize, "maxSize")
        ready = self._readiness.when(settings.minIdle if count is None else count)
        self._readiness.tell()
        if self.core.phase is not Phase.CLOSED:
            self.core.start()
        self.settle()
        if timeout is not None:

            def expire(_: Any, seconds: float) -> Any:
                text = f"pool {self.name} was not ready within {seconds:g} s"
                raise late(self.core, text, self.seconds())

            ready.addTimeout(timeout, self._reactor, expire)
        return ready

    def whenClosed(self) -> Deferred[None]:
        """
        @return: fires when no connection is left.
        """
        if self.core.phase is Phase.CLOSED:
            return succeed(None)
        closed = self._closers.wait()
        self.settle()
        return closed


_VERBS: dict[str, Callable[[Shell, Action], None]] = {
    "serve": Shell._serve,
    "reject": Shell._reject,
    "dial": Shell._dial,
    "fail": Shell._failDial,
    "check": Shell._check,
    "overdue": Shell._overdue,
    "close": Shell._close,
    "abort": Shell._abort,
    "hold": Shell._hold,
    "leak": Shell._leak,
    "expire": Shell._expire,
    "lost": Shell._lost,
    "closed": Shell._closed,
}
