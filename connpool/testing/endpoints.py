"""
Endpoints and transports without sockets, for tests with a L{task.Clock}.

C{tests/pool/test_fakes.py} holds them to what real TCP does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Attempt", "FakeEndpoint", "FakeTransport"]


@implementer(ITCPTransport)
class FakeTransport:
    """
    Our end of a connection whose other end is the test.

    @ivar written: what the protocol wrote.
    @ivar disconnecting: whether the protocol asked to close.
    @ivar connected: whether the socket is open.
    @ivar reading: whether the protocol reads.
    @ivar producer: the registered producer.
    @ivar keepAlive: whether TCP keepalive is on.
    @ivar stubborn: closing does not finish by itself, only C{abortConnection}
        or L{finish} ends it; as with a peer that does not read.
    @ivar abrupt: it is gone before C{loseConnection} returns, as real TCP is
        when the peer closed its side before.
    @ivar kernel: the bytes that arrived and that the reactor has not delivered.
    @ivar kernelEnd: whether the peer's end is behind them.
    @ivar zombie: not even aborting ends it; no real transport should.
    """

    def __init__(self, later: Callable[..., Any] | None, gone: Callable[[], None]) -> None:
        self._later = later
        self._gone = gone
        self.protocol: Any = None
        self.written = b""
        self.disconnecting = False
        self.aborting = False
        self.connected = True
        self.reading = True
        self.producer: Any = None
        self.keepAlive = False
        self.noDelay = False
        self.stubborn = False
        self.zombie = False
        self.abrupt = False
        self.kernel = b""
        self.kernelEnd = False

    # what the peer does

    def arrive(self, data: bytes, *, end: bool = False) -> None:
        """
        The peer sent C{data}, and maybe its end; the reactor sees it in its next turn.
        """
        if not (self.kernel or self.kernelEnd) and self._later is not None:
            self._later(0, self.deliver)
        self.kernel += data
        self.kernelEnd = self.kernelEnd or end

    def deliver(self) -> None:
        """
        Let the reactor deliver what arrived.
        """
        if self.reading and not self.disconnecting:
            data, self.kernel = self.kernel, b""
            end, self.kernelEnd = self.kernelEnd, False
            if data:
                self.receive(data)
            if end:
                self.endReading()

    def pollUnread(self, milliseconds: int) -> list[tuple[int, int]]:
        """
        See L{connpool.pool.unread.unreadOf}: what arrived is not a socket's here.
        """
        if not self.kernel and not self.kernelEnd:
            return []
        bytesOnly, end = 1, 0x2000
        flags = (bytesOnly if self.kernel else 0) | (end if self.kernelEnd else 0)
        return [(0, flags)]

    def receive(self, data: bytes) -> None:
        """
        The peer sent C{data}.
        """
        if self.connected and self.reading and not self.disconnecting:
            self.protocol.dataReceived(data)

    def endReading(self) -> None:
        """
        The peer sends no more: a half-close where the protocol can have one.
        """
        if not self.connected or not self.reading:
            return
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
        else:
            self.finish()

    def finish(self, reason: BaseException | None = None) -> None:
        """
        The socket is gone.
        """
        if self.connected:
            self.connected = False
            self._gone()
            self.protocol.connectionLost(Failure(reason or ConnectionDone()))

    # what the protocol does

    def write(self, data: bytes) -> None:
        """
        Take C{data} for the test to see.
        """
        if self.connected and not self.disconnecting:
            self.written += data

    def writeSequence(self, data: Any) -> None:
        """
        See L{write}.
        """
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """
        Close at the next turn, unless C{stubborn}.
        """
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self.reading = False
            if self.abrupt:
                self.finish()
            elif not self.stubborn and self._later is not None:
                self._later(0, self.finish)

    def abortConnection(self) -> None:
        """
        Close at the next turn.
        """
        if self.connected and not self.aborting:
            self.disconnecting = self.aborting = True
            self.reading = False
            if not self.zombie and self._later is not None:
                self._later(0, self.finish, ConnectionAborted())

    def loseWriteConnection(self) -> None:
        """
        Nothing more is written.
        """

    def pauseProducing(self) -> None:
        """
        Do not read.
        """
        self.reading = False

    def resumeProducing(self) -> None:
        """
        Read.
        """
        if self.connected and not self.disconnecting:
            self.reading = True

    def stopProducing(self) -> None:
        """
        Close.
        """
        self.loseConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        Somebody writes at the peer's pace.
        """
        self.producer = producer

    def unregisterProducer(self) -> None:
        """
        The end of that.
        """
        self.producer = None

    def getPeer(self) -> IPv4Address:
        """
        A fixed address.
        """
        return IPv4Address("TCP", "192.0.2.1", 5432)

    def getHost(self) -> IPv4Address:
        """
        A fixed address.
        """
        return IPv4Address("TCP", "192.0.2.2", 40000)

    def getTcpNoDelay(self) -> bool:
        """
        See L{ITCPTransport}.
        """
        return self.noDelay

    def setTcpNoDelay(self, enabled: bool) -> None:
        """
        See L{ITCPTransport}.
        """
        self.noDelay = enabled

    def getTcpKeepAlive(self) -> bool:
        """
        See L{ITCPTransport}.
        """
        return self.keepAlive

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """
        See L{ITCPTransport}.
        """
        self.keepAlive = enabled


class Attempt:
    """
    One call of L{FakeEndpoint.connect}.

    @ivar pending: whether it has no outcome yet.
    @ivar cancelled: whether the caller cancelled it.
    @ivar transport: once it succeeded.
    """

    def __init__(self, endpoint: FakeEndpoint, factory: Any) -> None:
        self._endpoint = endpoint
        self._factory = factory
        self.pending = True
        self.cancelled = False
        self.transport: FakeTransport | None = None
        self.deferred: Deferred[Any] = Deferred(self._cancel)

    def _cancel(self, deferred: Deferred[Any]) -> None:
        self.pending = False
        self.cancelled = True
        self._endpoint.pending.pop(self, None)
        deferred.errback(CancelledError())

    def succeed(self) -> FakeTransport | None:
        """
        The peer accepts.

        @return: the transport; L{None} if the factory refused.
        """
        self.pending = False
        self._endpoint.pending.pop(self, None)
        protocol = self._factory.buildProtocol(FakeTransport(None, _nothing).getPeer())
        if protocol is None:
            self.deferred.errback(Failure(ConnectError(string="the factory refused")))
            return None
        transport = self._endpoint.open()
        self.transport = transport
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.deferred.callback(protocol)
        return transport

    def fail(self, reason: BaseException | None = None) -> None:
        """
        The peer refuses.
        """
        self.pending = False
        self._endpoint.pending.pop(self, None)
        self.deferred.errback(Failure(reason or ConnectError(string="refused")))


@implementer(IStreamClientEndpoint)
class FakeEndpoint:
    """
    An endpoint whose outcomes the test decides.

    @ivar answer: C{"hold"}: attempts wait for L{Attempt.succeed} or
        L{Attempt.fail}; C{"accept"}, C{"refuse"}: at once.
    @ivar attempts: all of them.
    @ivar pending: those without an outcome, in order.
    @ivar transports: all that were opened.
    @ivar opened: how many are open now, and C{most}: were at once.
    @ivar abrupt: see L{FakeTransport}.
    """

    def __init__(self, clock: Any = None, answer: str = "accept") -> None:
        self._later = None if clock is None else clock.callLater
        self.answer = answer
        self.attempts: list[Attempt] = []
        self.pending: dict[Attempt, None] = {}
        self.transports: list[FakeTransport] = []
        self.opened = 0
        self.most = 0
        self.abrupt = False

    def connect(self, factory: Any) -> Deferred[Any]:
        """
        See L{IStreamClientEndpoint}.
        """
        attempt = Attempt(self, factory)
        self.attempts.append(attempt)
        self.pending[attempt] = None
        if self.answer == "accept":
            attempt.succeed()
        elif self.answer == "refuse":
            attempt.fail()
        return attempt.deferred

    def open(self) -> FakeTransport:
        """
        @return: one more transport.
        """
        self.opened += 1
        self.most = max(self.most, self.opened)
        transport = FakeTransport(self._later, self._closed)
        transport.abrupt = self.abrupt
        self.transports.append(transport)
        return transport

    def _closed(self) -> None:
        self.opened -= 1


def _nothing() -> None:
    """
    For a transport nobody counts.
    """
