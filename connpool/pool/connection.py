"""
One connection: its life, and the protocol around the user's protocol that sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from automat import TypeMachineBuilder
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    INegotiated,
    ISSLTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.interfaces import IPoolable
from connpool.pool.arguments import lacking
from connpool.pool.guard import Guard, GuardFactory
from connpool.pool.states import Slot, State
from connpool.pool.unread import unreadOf
from connpool.pool.wires import layers, upgraded, wireOf

__all__ = ["Connection", "Owner", "site"]

_log = Logger()


def site(code: Any, offset: int) -> str:
    """
    @param code: a frame's C{f_code}.
    @param offset: its C{f_lasti}; finding the line only when somebody asks
        costs a lease next to nothing.
    @return: C{file:line}.
    """
    if code is None:
        return "unknown"
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return f"{code.co_filename}:{line}"
    return f"{code.co_filename}:{code.co_firstlineno}"


class Owner(Protocol):
    """
    The pool, as far as its connections and their leases see it.

    Of what a connection reports, the first three only book what happened;
    L{settle} follows once the connection's own state is final.

    @ivar name: the pool's.
    @ivar core: its decisions.
    @ivar seconds: its clock.
    """

    name: str
    core: Any
    seconds: Callable[[], float]

    def connectionReady(self, connection: Connection) -> None:
        """
        Connected, handshaken and prepared.
        """

    def connectionFailed(self, connection: Connection, reason: Failure, *, gone: bool) -> None:
        """
        It will not become ready.  C{gone}: and there is no socket.
        """

    def connectionGone(self, connection: Connection, reason: Failure) -> None:
        """
        There is no socket any more.
        """

    def settle(self) -> None:
        """
        Do what follows.
        """

    def idleData(self, connection: Connection, data: bytes) -> None:
        """
        Bytes came although nobody asked for any.
        """

    def idleEnd(self, connection: Connection) -> None:
        """
        The peer closed its side although nobody was talking.
        """

    def firstBytes(self, connection: Connection) -> None:
        """
        The server has said something.
        """

    def readDelivered(self, connection: Connection, turns: int = ...) -> None:
        """
        A read is over during which the connection was given back; or will be when so many
        turns of the reactor are.
        """

    def acquire(self, timeout: Any, code: Any, offset: int, scope: Any = ...) -> Deferred[Any]:
        """
        Lease a connection.

        @param code: the code object that asks, and
        @param offset: the place in it.
        @param scope: the scope that asks, if one does.
        """

    def giveBack(self, connection: Connection, lease: Any) -> None:
        """
        A lease ended well.
        """

    def throwAway(self, connection: Connection, lease: Any, reason: str = ...) -> None:
        """
        A lease ended and its connection is of no use.
        """

    def leave(self, connection: Connection, lease: Any, *, failed: bool) -> None:
        """
        A block that used a lease ended.
        """

    def detach(self, connection: Connection, lease: Any) -> Any:
        """
        See L{ILease.detach}.
        """

    def later(self, f: Callable[..., Any], *args: Any) -> None:
        """
        Call C{f} in the reactor's thread.  The garbage collector runs anywhere,
        in any thread, between any two byte codes.
        """

    def reclaim(self, connection: Connection) -> None:
        """
        A lease was garbage-collected without having ended.
        """

    def condemn(self, connection: Connection) -> None:
        """
        A lease's destination is of no use, though it accepts connections.
        """

    def releasedTwice(self) -> None:
        """
        A lease was given back that had ended.
        """


class _Life(Protocol):
    """
    The events in the life of a connection.
    """

    def connected(self) -> None:
        """
        The endpoint delivered; nothing has to be shaken.
        """

    def secure(self) -> None:
        """
        The endpoint delivered; a TLS handshake is on its way.
        """

    def handshaken(self) -> None:
        """
        TLS is up.
        """

    def prepared(self) -> None:
        """
        The user's C{prepare} is done.
        """

    def fail(self, reason: Failure) -> None:
        """
        The dial is of no use: refused, out of time, not wanted any more.
        """

    def part(self) -> None:
        """
        Close politely.
        """

    def parted(self) -> None:
        """
        The goodbye was said.
        """

    def abort(self) -> None:
        """
        Close now.
        """

    def lost(self, reason: Failure) -> None:
        """
        The socket is gone.
        """


class Connection(Slot):
    """
    The core's L{Slot} with its transport and protocols.

    @ivar attempt: the endpoint's Deferred while it is pending.
    @ivar guard: the guard of the transport in use.
    @ivar protocol: the user's.
    @ivar poolable: the user's protocol as L{IPoolable}, or L{None}.
    @ivar layered: whether something, such as TLS, lies between it and its socket.
    @ivar turnsToReturn: the turns of the reactor after a read in which it is given
        back, before it can be handed on.
    @ivar code: the code object that acquired the lease, and
    @ivar offset: the place in it.
    @ivar holder: with C{debug}, who holds it, and
    @ivar stack: where it was acquired.
    @ivar suspected: whether its lease was reported as a leak.
    @ivar polite: whether it is closed while nobody is in the middle of anything.
    @ivar unreset: whether it was given back and its reset has not begun.
    @ivar tenant: with C{leaseTimeout}, a weak reference to the lease.
    @ivar validating: whether the check that runs is a validation.
    @ivar why: the reason for which it was closed.
    """

    __slots__ = (
        "attempt",
        "code",
        "failure",
        "guard",
        "holder",
        "layered",
        "life",
        "offset",
        "owner",
        "pending",
        "polite",
        "poolable",
        "prepare",
        "protocol",
        "resume",
        "stack",
        "suspected",
        "tcpKeepAlive",
        "tenant",
        "turnsToReturn",
        "unreset",
        "validating",
        "wanted",
        "why",
    )

    owner: Owner

    def dial(self, owner: Owner, factory: Any, prepare: Any, *, tcpKeepAlive: bool) -> None:
        """
        Begin.
        """
        self.owner = owner
        self.prepare = prepare
        self.tcpKeepAlive = tcpKeepAlive
        self.guard: Guard | None = None
        self.protocol: Any = None
        self.poolable: Any = None
        self.pending: Deferred[Any] | None = None
        self.failure: Failure | None = None
        self.code: Any = None
        self.offset = 0
        self.holder: Any = None
        self.suspected = False
        self.layered = False
        self.turnsToReturn = 2
        self.validating = False
        self.tenant: Callable[[], Any] = _nothing
        self.unreset = False
        self.polite = True
        self.stack = ""
        self.why = ""
        self.resume: Callable[[], Any] = _nothing
        self.life: _Life = _machine(self)
        self.wanted = True
        self.attempt: Deferred[Any] | None = None
        attempt = maybeDeferred(self.destination.endpoint.connect, GuardFactory(self, factory))
        attempt.addCallbacks(self._delivered, self._refused)
        if not attempt.called:
            self.attempt = attempt
            if not self.wanted:
                # given up by somebody whom connect() called
                attempt.cancel()

    def close(self, reason: Failure) -> None:
        """
        End a dial, or close a connection politely.
        """
        self.life.fail(reason)
        self.life.part()

    def abort(self, reason: Failure) -> None:
        """
        End a dial, or close a connection now.
        """
        self.life.fail(reason)
        self.life.abort()

    def ebb(self, why: str) -> None:
        """
        It ends soon.  Who has the connection may go on with it; nobody can have it
        after that.
        """
        self.doom = self.doom or "peer"
        self.plain = False
        if self.state is State.CONNECTING:
            self.life.fail(Failure(ConnectionDone(why)))
            self.owner.settle()

    def handshaken(self) -> None:
        """
        TLS is up.
        """
        if self.protocol is not None and not self.layered:
            # startTLS() came after the dial
            self.layered = True
            self.turnsToReturn = max(self.turnsToReturn, 1)
            self.wire = upgraded(self.wire)
        self.life.handshaken()
        self.owner.settle()

    def trust(self) -> None:
        """
        It was kept by its server over the turns after a read in which it was given back.

        The kernel is asked in any case.  But a server that closes after each answer
        may do so a moment later: once it has kept a connection over two turns, in
        which the reactor looked at all sockets, it is trusted.  TLS delivers one
        read in several pieces, all within one turn.
        """
        if self.unread is not None:
            self.turnsToReturn = 1 if self.layered else 0

    def busy(self) -> bool:
        """
        Tell whether it cannot become idle: it is dying, or a producer writes to it.
        """
        return self.wire.disconnecting or self.wire.producer is not None

    def lost(self, reason: Failure, protocol: Any) -> None:
        """
        The transport is gone.
        """
        self.failure = reason
        self.life.lost(reason)
        try:
            protocol.connectionLost(reason)
        finally:
            self.owner.settle()

    def _delivered(self, result: Any) -> None:
        """
        The endpoint has a connection.
        """
        self.attempt = None
        guard = self.guard
        if guard is None:
            reason = TypeError(f"{self.destination.endpoint!r} did not use the factory")
            self.life.fail(Failure(reason))
        elif self.failure is not None:
            self.life.fail(self.failure)
        elif self.wanted:
            self._adopt(guard)
        self.owner.settle()

    def _refused(self, reason: Failure) -> None:
        """
        The endpoint has none.
        """
        self.attempt = None
        self.life.fail(reason)
        self.owner.settle()

    def _adopt(self, guard: Guard) -> None:
        """
        C{guard}'s transport is this connection's.
        """
        transport = guard.transport
        self.protocol = guard.protocol
        self.poolable = IPoolable(guard.protocol, None)
        if self.poolable is not None and (missing := lacking(self.poolable)):
            text = f"{self.poolable!r} provides IPoolable without {', '.join(missing)}(); define it"
            self.life.fail(Failure(TypeError(text)))
            return
        self.plain = self.poolable is None
        self.wire = wireOf(transport)
        *above, lowest = layers(transport)
        self.layered = bool(above)
        self.unread = unreadOf(lowest)
        if hasattr(lowest, "pollUnread"):
            self.trust()  # without a socket, it knows all that will come
        self.resume = getattr(transport, "resumeProducing", _nothing)
        secure = INegotiated.providedBy(transport) or ISSLTransport.providedBy(transport)
        if secure and not guard.handshaken:
            self.life.secure()
        else:
            self.life.connected()

    def _prepare(self) -> None:
        """
        Run the user's C{prepare}.
        """
        if self.prepare is None:
            self._prepared()
            return
        self.pending = pending = maybeDeferred(self.prepare, self.protocol)
        pending.addCallbacks(self._prepared, self._unprepared)
        pending.addBoth(lambda _: self.owner.settle())

    def _prepared(self, _: Any = None) -> None:
        self.asked = self.prepare is not None
        if self.wire.disconnecting:
            # else it would be dialled again at once, as long as somebody waits
            self._unprepared(Failure(ConnectionDone("its own protocol closed it")))
        else:
            self.life.prepared()

    def _unprepared(self, reason: Failure) -> None:
        self.life.fail(reason)

    def _stop(self) -> None:
        """
        Cancel what the pool waits for; its outcome does not matter any more.
        """
        pending, self.pending = self.pending, None
        if pending is not None and not pending.called:
            pending.cancel()

    def _hangUp(self) -> None:
        """
        Close, letting what was written go out.
        """
        assert self.guard is not None
        self.guard.transport.loseConnection()

    def _abort(self) -> None:
        """
        Close without waiting for anything.
        """
        self._stop()
        if self.guard is not None:
            transport = self.guard.transport
            getattr(transport, "abortConnection", transport.loseConnection)()

    def _goodbye(self) -> None:
        """
        Let the protocol say goodbye first, if it wants to.
        """
        self._stop()
        if self.poolable is None or not self.polite or self.busy():
            self.life.parted()
            return
        self.pending = said = maybeDeferred(self.poolable.goodbye)
        said.addErrback(self._rude)
        said.addBoth(self._parted)

    def _parted(self, _: Any) -> None:
        self.life.parted()
        self.owner.settle()

    def _rude(self, reason: Failure) -> None:
        if not reason.check(CancelledError):
            _log.info(
                "goodbye() of {protocol!r} failed: {error}",
                protocol=self.protocol,
                error=reason.getErrorMessage(),
            )


def _nothing() -> None:
    """
    For transports that cannot be paused.
    """


def _makeMachine() -> Callable[[Connection], _Life]:
    builder = TypeMachineBuilder(_Life, Connection)
    dialling = builder.state("dialling")
    handshaking = builder.state("handshaking")
    preparing = builder.state("preparing")
    live = builder.state("live")
    parting = builder.state("parting")
    closing = builder.state("closing")
    aborting = builder.state("aborting")
    gone = builder.state("gone")

    @dialling.upon(_Life.connected).to(preparing)
    @handshaking.upon(_Life.handshaken).to(preparing)
    def prepare(_life: _Life, connection: Connection) -> None:
        connection._prepare()

    dialling.upon(_Life.secure).to(handshaking).returns(None)

    @preparing.upon(_Life.prepared).to(live)
    def ready(_life: _Life, connection: Connection) -> None:
        connection.pending = None
        connection.owner.connectionReady(connection)

    # a dial that fails: without a transport it is gone, else it is aborted

    @dialling.upon(_Life.fail).to(aborting)
    @handshaking.upon(_Life.fail).to(aborting)
    @preparing.upon(_Life.fail).to(aborting)
    def fail(life: _Life, connection: Connection, reason: Failure) -> None:
        connection.wanted = False
        guard = connection.guard
        if guard is not None and (guard.transport is None or connection.failure is not None):
            # never connected, or lost before the endpoint delivered it
            guard = connection.guard = None
        attempt, connection.attempt = connection.attempt, None
        if attempt is not None:
            attempt.cancel()
        connection.owner.connectionFailed(connection, reason, gone=guard is None)
        if guard is None:
            connection._stop()
            life.lost(reason)
        else:
            connection._abort()

    @handshaking.upon(_Life.lost).to(gone)
    @preparing.upon(_Life.lost).to(gone)
    def lostEarly(_life: _Life, connection: Connection, reason: Failure) -> None:
        connection.owner.connectionFailed(connection, reason, gone=True)
        connection._stop()

    dialling.upon(_Life.lost).loop().returns(None)

    # a connection that was ready

    @live.upon(_Life.part).to(parting)
    def part(_life: _Life, connection: Connection) -> None:
        connection._goodbye()

    @parting.upon(_Life.parted).to(closing)
    def hangUp(_life: _Life, connection: Connection) -> None:
        connection.pending = None
        connection._hangUp()

    @live.upon(_Life.abort).to(aborting)
    @parting.upon(_Life.abort).to(aborting)
    @closing.upon(_Life.abort).to(aborting)
    def abort(_life: _Life, connection: Connection) -> None:
        connection._abort()

    @live.upon(_Life.lost).to(gone)
    @parting.upon(_Life.lost).to(gone)
    @closing.upon(_Life.lost).to(gone)
    @aborting.upon(_Life.lost).to(gone)
    def lost(_life: _Life, connection: Connection, reason: Failure) -> None:
        connection.owner.connectionGone(connection, reason)
        connection._stop()

    # what comes too late, or is asked for twice, changes nothing
    for state in (dialling, live, parting, closing, aborting, gone):
        state.upon(_Life.handshaken).loop().returns(None)
    for state in (aborting, gone):
        state.upon(_Life.prepared).loop().returns(None)
        state.upon(_Life.connected).loop().returns(None)
        state.upon(_Life.secure).loop().returns(None)
    for state in (live, parting, closing, aborting, gone):
        state.upon(_Life.fail).loop().returns(None)
    for state in (parting, closing, aborting, gone):
        state.upon(_Life.part).loop().returns(None)
    for state in (closing, aborting, gone):
        state.upon(_Life.parted).loop().returns(None)
    for state in (aborting, gone):
        state.upon(_Life.abort).loop().returns(None)
    gone.upon(_Life.lost).loop().returns(None)
    preparing.upon(_Life.handshaken).loop().returns(None)  # renegotiation
    return builder.build()


_machine = _makeMachine()
