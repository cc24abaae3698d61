"""
One connection that may begin with a PROXY header.

Theory of operation.  L{ProxiedConnection} is the protocol of the socket's
transport and the transport of the application's protocol.  Which of three
things happens to incoming bytes is the C{_receive} attribute:

  - C{_readHeader}: from a trusted proxy.  The application does not exist yet,
    so it cannot speak first and cannot take the proxy for its client; its
    protocol is built when the header is complete, from the client's address.
  - C{_sniff}: from a peer that must not send a header.  The application
    exists from the start; bytes are held back only as long as they look like
    the beginning of a header, and a whole beginning ends the connection.
  - C{_pass}: to the application.

and C{_discard}: the connection was refused and is being closed.

One timer bounds the first two, and a close that the peer does not answer.

Known flaw: a protocol that hands its connection over by setting
C{transport.protocol} sets it here, where nobody looks; Twisted's own wrappers
(L{twisted.protocols.policies}) have the same.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import Any, Protocol

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from connpool.addresses import UnknownAddress
from connpool.errors import HeaderError
from connpool.proxyprotocol.header import Header, HeaderParser, NotAHeader, hasStart, isStart

__all__ = ["Policy", "ProxiedConnection", "ProxyInfo"]


class Policy(Enum):
    """
    The headers that peers of a C{proxied:} endpoint may or must send.

    Untrusted headers are never believed: a peer that is not trusted and sends
    one is disconnected under every policy.

    @cvar REQUIRE: trusted peers must send one, everyone else is disconnected.
    @cvar USE: trusted peers may send one; others are served without and
        never wait.
    @cvar IGNORE: as C{USE}, but what the header says is not used.
    @cvar REJECT: nobody may send one.
    """

    REQUIRE = "require"
    USE = "use"
    IGNORE = "ignore"
    REJECT = "reject"


@attrs.frozen
class ProxyInfo:
    """
    The circumstances of a connection beside its client's address.

    @ivar peer: the socket's own peer: the proxy, if there is one.
    @ivar host: the socket's own address here.
    @ivar trusted: whether C{peer} is a trusted proxy.
    @ivar header: what the proxy said; L{None} if it sent nothing.
    """

    peer: IAddress
    host: IAddress
    trusted: bool
    header: Header | None = None


class Owner(Protocol):
    """
    The listener that connections belong to.

    @ivar clock: measures C{timeout}.
    @ivar wrapped: builds the application's protocols.
    @ivar timeout: seconds that a header may take.
    @ivar maxHeader: bytes that a v2 header may have.
    @ivar counts: events, by name.
    """

    clock: Any
    wrapped: IProtocolFactory
    policy: Policy
    timeout: float
    maxHeader: int
    counts: Counter[str]

    def admits(self, connection: ProxiedConnection, /) -> bool:
        """
        Decide whether a new connection may go on.
        """

    def refused(self, connection: ProxiedConnection, counter: str, why: str, /) -> None:
        """
        Note that a connection was refused.
        """

    def left(self, connection: ProxiedConnection, /) -> None:
        """
        Note that a connection waits for its header no longer.
        """

    def headerCame(self, header: Header, /) -> None:
        """
        Note a header.
        """


@implementer(IProtocol, IHandshakeListener)
class ProxiedConnection:
    """
    See the module.

    C{getPeer()} and C{getHost()} give what the header says.  When it names no
    IP address (LOCAL, UNKNOWN, a unix socket at the proxy), C{getPeer()} is an
    L{UnknownAddress}, which no rule takes for anybody.

    @ivar proxyInfo: the rest.
    """

    proxyInfo: ProxyInfo

    def __init__(self, factory: Owner, *, trusted: bool) -> None:
        self.factory = factory
        self.transport: Any = None
        self._trusted = trusted
        self._inner: Any = None
        self._peer: IAddress
        self._host: IAddress
        self._receive: Any = self._discard
        self._held = b""
        self._paused = False
        self._ended = False
        self._handshaken = False
        self._timer: Any = None

    # -- the socket's protocol

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        directlyProvides(self, providedBy(transport), IProtocol, IHandshakeListener)
        self._peer = transport.getPeer()
        self._host = transport.getHost()
        self.proxyInfo = ProxyInfo(self._peer, self._host, self._trusted)
        factory = self.factory
        if not factory.admits(self):
            self._close()
        elif self._trusted and factory.policy is not Policy.REJECT:
            self._parser = HeaderParser(factory.maxHeader)
            self._receive = self._readHeader
            self._startTimer()
        else:
            self._receive = self._sniff
            self._open()

    def dataReceived(self, data: bytes) -> None:
        self._receive(data)

    def handshakeCompleted(self) -> None:
        """
        The TLS below, if any, is ready.
        """
        self._handshaken = True
        if IHandshakeListener.providedBy(self._inner):
            self._inner.handshakeCompleted()

    def readConnectionLost(self) -> None:
        self._flush()
        self._inner.readConnectionLost()

    def writeConnectionLost(self) -> None:
        self._inner.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stopTimer()
        self.factory.left(self)
        if self._receive == self._readHeader:
            self.factory.counts["lost"] += 1
        inner, self._inner = self._inner, None
        if inner is None:
            return
        if self._receive == self._sniff and self._held:
            inner.dataReceived(self._held)
        self._receive = self._discard
        inner.connectionLost(reason)

    # -- what happens to incoming bytes

    def _readHeader(self, data: bytes) -> None:
        try:
            found = self._parser.feed(data)
        except NotAHeader:
            if self.factory.policy is Policy.REQUIRE:
                self._refuse("missing", "it sent something else than a PROXY header")
            else:
                self._serveBare()
            return
        except HeaderError as e:
            self._refuse("malformed", str(e))
            return
        if found is None:
            return
        header, rest = found
        self._believe(header)
        self.factory.headerCame(header)
        self._open(rest)

    def _sniff(self, data: bytes) -> None:
        self._held += data
        if hasStart(self._held):
            self._held = b""
            self._refuse("rejected", "it sent a PROXY header and may not")
        elif isStart(self._held):
            self._startTimer()
        else:
            self._flush()

    def _pass(self, data: bytes) -> None:
        self._inner.dataReceived(data)

    def _discard(self, data: bytes) -> None:
        """
        The connection is being closed.
        """

    # -- decisions

    def _believe(self, header: Header) -> None:
        self.proxyInfo = attrs.evolve(self.proxyInfo, header=header)
        if self.factory.policy is Policy.IGNORE:
            return
        if isinstance(header.source, IPv4Address | IPv6Address):
            assert header.destination is not None
            self._peer, self._host = header.source, header.destination
        else:
            self._peer = UnknownAddress(healthCheck=header.local)

    def _serveBare(self) -> None:
        """
        A trusted peer that does without a header, where it may.
        """
        self.factory.counts["bare"] += 1
        self._open(self._parser.unread())

    def _open(self, data: bytes = b"") -> None:
        """
        Build the application's protocol and hand it what has come so far.
        """
        self.factory.left(self)
        if self._receive == self._readHeader:
            self._stopTimer()
            self._receive = self._pass
        inner: Any = self.factory.wrapped.buildProtocol(self._peer)
        if inner is None:
            self._close()
            return
        self._inner = inner
        provided = [IProtocol, IHandshakeListener]
        if IHalfCloseableProtocol.providedBy(inner):
            provided.append(IHalfCloseableProtocol)
        directlyProvides(self, providedBy(self.transport), *provided)
        inner.makeConnection(self)
        if self._handshaken and IHandshakeListener.providedBy(inner):
            inner.handshakeCompleted()
        self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        """
        Bytes that the transport has handed out already: the application may
        have paused or closed since.
        """
        if not data or self._inner is None or self._ended:
            return
        if self._paused:
            self._held = data
        else:
            self._inner.dataReceived(data)

    def _flush(self) -> None:
        """
        Give the application the bytes that were held back: they are its own.
        """
        if self._receive == self._sniff:
            self._stopTimer()
            self._receive = self._pass
        held, self._held = self._held, b""
        self._deliver(held)

    def _refuse(self, counter: str, why: str) -> None:
        self.factory.refused(self, counter, why)
        self.factory.left(self)
        self._close()

    def _close(self) -> None:
        self._receive = self._discard
        self._startTimer()
        self.transport.loseConnection()

    # -- the timer

    def _startTimer(self) -> None:
        if self._timer is None:
            factory = self.factory
            self._timer = factory.clock.callLater(factory.timeout, self._late)

    def _stopTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _late(self) -> None:
        self._timer = None
        if self._receive == self._sniff:
            self._flush()
        elif self._receive == self._discard:
            self.transport.abortConnection()
        elif self.factory.policy is Policy.REQUIRE or self._parser.unread():
            self._refuse("late", "its PROXY header did not come in time")
        else:
            self._serveBare()

    # -- the application's transport

    def getPeer(self) -> IAddress:
        """
        The client.
        """
        return self._peer

    def getHost(self) -> IAddress:
        """
        The address that the client connected to.
        """
        return self._host

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def writeSequence(self, data: list[bytes]) -> None:
        self.transport.writeSequence(data)

    def loseConnection(self) -> None:
        self._ended = True
        self.transport.loseConnection()

    def abortConnection(self) -> None:
        self._ended = True
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        self._paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        if self._held and self._receive == self._pass:
            # first what came with the header, and not from inside this call
            self.factory.clock.callLater(0, self._resume)
        else:
            self.transport.resumeProducing()

    def _resume(self) -> None:
        if self._inner is None or self._paused:
            return
        self._flush()
        if not self._paused and self._inner is not None:
            self.transport.resumeProducing()

    def __getattr__(self, name: str) -> Any:
        if name == "transport":
            raise AttributeError(name)
        return getattr(self.transport, name)
