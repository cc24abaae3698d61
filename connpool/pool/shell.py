"""
Doing what the core decided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import ConnectFailed, PoolClosed
from connpool.pool.clock import steady
from connpool.pool.connection import Connection, site
from connpool.pool.core import Core
from connpool.pool.lease import Lease
from connpool.pool.observation import Watch
from connpool.pool.owners import Holder
from connpool.pool.states import Action, Phase, State, Waiter
from connpool.pool.timers import NEVER

__all__ = ["Acquire", "Shell"]

LEASED = State.LEASED


class Acquire(Waiter):
    """
    A waiter with the Deferred that it waits with.
    """

    __slots__ = ("code", "deferred", "holder", "offset", "pool", "stack")

    def __init__(self, pool: Shell, now: float, code: Any, offset: int) -> None:
        super().__init__(now)
        self.pool = pool
        self.code = code
        self.offset = offset
        self.holder: Holder | None = None
        self.stack = ""
        self.deferred: Deferred[Lease] = Deferred(self._cancelled)

    def _cancelled(self, _: Any) -> None:
        self.pool._left(self)


class Shell:
    """
    A pool's reactor side: the loop that asks L{Core.next} and acts, the one
    timer, and what connections report.
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
        self._seconds = steady(reactor)
        self._core = core
        self._factory = factory
        self._prepare = prepare
        self._watch = watch
        self._dispatching = False
        self._timer: Any = None
        self._closers: list[Deferred[None]] = []
        self._readies: dict[Deferred[None], int] = {}
        #: Called after each batch of decisions; the keyed pool wants to know.
        self.settled: Callable[[], None] | None = None

    def settle(self) -> None:
        """
        Do whatever there is to do: a loop, not a recursion, however deep the
        callers' callbacks call back.
        """
        if self._dispatching:
            return
        core = self._core
        self._dispatching = True
        core.calm = False
        try:
            while (action := core.next(self._seconds())) is not None:
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
            self._arm()
        if self._readies:
            self._fireReady()
        if self.settled is not None:
            self.settled()
        if core.phase is Phase.CLOSED and self._closers:
            # last, when no timer is left: whoever waited may look
            closers, self._closers = self._closers, []
            for closer in closers:
                closer.callback(None)

    def _arm(self) -> None:
        """
        Have one timer that is not later than the next deadline.
        """
        core = self._core
        now = self._seconds()
        when = core.wakeAt(now)
        if when >= core.armed > now and when != NEVER:
            return  # it wakes up for nothing once, and is set again then
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        core.armed = when
        if when != NEVER:
            self._timer = self._reactor.callLater(max(0.0, when - now), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._core.armed = NEVER
        self.settle()

    def _serve(self, action: Action) -> None:
        waiter, connection = action.waiter, action.slot
        connection.code = waiter.code
        connection.offset = waiter.offset
        self._watch.waited(waiter)
        self._watch.began(connection, self._seconds(), waiter)
        lease = Lease(self, connection)  # type: ignore[arg-type]
        waiter.deferred.callback(lease)

    def _reject(self, action: Action) -> None:
        waiter = action.waiter
        if waiter.deferred.called:
            return  # cancelled by the errback of one before it
        self._watch.waited(waiter)
        self._watch.tell("acquireFailed", action.error, self._seconds() - waiter.since)
        waiter.deferred.errback(Failure(action.error))

    def _dial(self, action: Action) -> None:
        self._watch.tell("connectionCreated", action.slot.number)
        action.slot.dial(
            self,
            self._factory,
            self._prepare,
            tcpKeepAlive=self._core.settings.tcpKeepAlive,
        )

    def _failDial(self, action: Action) -> None:
        seconds = self._core.settings.connectTimeout
        action.slot.life.fail(
            Failure(TimeoutError(f"not connected, handshaken and prepared within {seconds:g} s"))
        )

    def _check(self, action: Action) -> None:
        poolable = action.slot.poolable
        self._await(
            action.slot, "validate", (lambda: True) if poolable is None else poolable.validate
        )

    def _overdue(self, action: Action) -> None:
        connection = action.slot
        pending = connection.pending
        what = "validate" if connection.validating else "reset"
        if pending is not None:
            pending.cancel()
        # if the canceller did not make it fail
        self._core.checked(connection, self._seconds(), what)

    def _close(self, action: Action) -> None:
        action.slot.why = action.detail
        action.slot.close(Failure(ConnectionDone(f"the pool closed it: {action.detail}")))

    def _abort(self, action: Action) -> None:
        action.slot.why = action.slot.why or action.detail
        action.slot.abort(Failure(ConnectionDone(f"the pool aborted it: {action.slot.why}")))

    def _leak(self, action: Action) -> None:
        self._watch.leak(action.slot, self._seconds())

    def _lost(self, action: Action) -> None:
        self._log.error(
            "pool {name}: connection {number} did not end although it was aborted; "
            "it is not counted any more",
            name=self.name,
            number=action.slot.number,
        )

    def _closed(self, action: Action) -> None:
        self._watch.tell("poolClosed")

    def _fireReady(self) -> None:
        core = self._core
        over = core.phase not in {Phase.OPEN, Phase.PAUSED}
        for ready, count in list(self._readies.items()):
            if ready in self._readies and (over or core.live >= count):
                del self._readies[ready]
                if over:
                    ready.errback(PoolClosed(f"pool {self.name} is {core.phase.value}"))
                else:
                    ready.callback(None)
        core.warm = max(self._readies.values(), default=0)

    def _left(self, waiter: Acquire) -> None:
        """
        A waiter's Deferred was cancelled.
        """
        self._core.leave(waiter)
        self._watch.waited(waiter)
        self.settle()

    # -- what connections say (see Owner)

    def connectionReady(self, connection: Connection) -> None:
        """
        See L{Owner}.
        """
        now = self._seconds()
        took = now - connection.since
        self._core.ready(connection, now)
        self._watch.tell("connectionReady", connection.number, took)

    def connectionFailed(self, connection: Connection, reason: Failure, *, gone: bool) -> None:
        """
        See L{Owner}.
        """
        error = ConnectFailed(
            f"pool {self.name} cannot connect to {connection.destination.endpoint!r}: "
            f"{reason.getErrorMessage() or reason.type}"
        )
        error.__cause__ = reason.value
        connection.why = connection.why or "failed"
        self._core.failed(connection, self._seconds(), error, gone=gone)
        if gone:
            self._watch.tell("connectionClosed", connection.number, connection.why)

    def connectionGone(self, connection: Connection, reason: Failure) -> None:
        """
        See L{Owner}.
        """
        if connection.state is State.GONE:
            return  # detached, or a dial that failed
        if connection.state is LEASED:
            self._watch.ended(connection, self._seconds())
        self._core.gone(connection, self._seconds())
        self._watch.tell("connectionClosed", connection.number, connection.why or "peer")

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
            if connection.state is not State.IDLE:
                return
        self._log.info(
            "pool {name}: {count} bytes came on an idle connection last used at {where}; closed",
            name=self.name,
            count=len(data),
            where=site(connection.code, connection.offset),
        )
        self._core.discard(connection, self._seconds(), "data")
        self.settle()

    def idleEnd(self, connection: Connection) -> None:
        """
        See L{Owner}.
        """
        self._core.discard(connection, self._seconds(), "peer")
        self.settle()

    # -- checks of IPoolable

    def _await(self, connection: Connection, what: str, check: Callable[[], Any]) -> None:
        """
        Run a reset or validation that the core has booked.
        """

        def passed(result: Any) -> None:
            refused = what == "validate" and not result
            ended(what if refused else None)

        def failed(reason: Failure) -> None:
            self._log.info(
                "{what}() of {protocol!r} failed: {error}",
                what=what,
                protocol=connection.protocol,
                error=reason.getErrorMessage(),
            )
            ended(what)

        def ended(failure: str | None) -> None:
            if connection.pending is pending:
                connection.pending = None
                self._core.checked(connection, self._seconds(), failure)
                self.settle()

        connection.validating = what == "validate"
        pending = maybeDeferred(check)
        connection.pending = pending
        pending.addCallbacks(passed, failed)


_VERBS: dict[str, Callable[[Shell, Action], None]] = {
    "serve": Shell._serve,
    "reject": Shell._reject,
    "dial": Shell._dial,
    "fail": Shell._failDial,
    "check": Shell._check,
    "overdue": Shell._overdue,
    "close": Shell._close,
    "abort": Shell._abort,
    "leak": Shell._leak,
    "lost": Shell._lost,
    "closed": Shell._closed,
}
