"""
The protocol around the user's protocol, through which a pool sees a connection.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from twisted.internet.interfaces import (
    IFileDescriptorReceiver,
    IHalfCloseableProtocol,
    IHandshakeListener,
    ILoggingContext,
    IProtocol,
    IProtocolFactory,
)
from twisted.python.failure import Failure
from zope.interface import alsoProvides, directlyProvides, implementer, providedBy

from connpool.pool.states import State

__all__ = ["Guard", "GuardFactory"]

IDLE = State.IDLE
RETURNING = State.RETURNING


class Guarded(Protocol):
    """
    A connection, as far as its guard knows it.  See L{connpool.pool.connection}.
    """

    owner: Any
    state: State
    guard: Any
    wanted: bool
    tcpKeepAlive: bool
    reading: bool
    proven: bool
    delays: int

    def handshaken(self) -> None:
        """
        TLS is up.
        """

    def ebb(self, why: str) -> None:
        """
        It ends soon.
        """

    def lost(self, reason: Failure, protocol: Any) -> None:
        """
        The transport is gone.
        """


@implementer(IProtocol, IHandshakeListener)
class Guard:
    """
    The protocol that the endpoint sees, in front of the user's.

    It costs a leased connection one call and few comparisons for each chunk,
    and lets the pool see everything that happens on an idle one.
    """

    def __init__(self, connection: Guarded, protocol: Any) -> None:
        self._connection = connection
        self.protocol = protocol
        self.transport: Any = None
        self.handshaken = False
        # decided when it is built, as Twisted's own endpoint wrappers do
        optional = (IHalfCloseableProtocol, IFileDescriptorReceiver)
        self._optional = [each for each in optional if each.providedBy(protocol)]
        if self._optional:
            directlyProvides(self, *self._optional)

    def logPrefix(self) -> str:
        """
        The user's protocol's.
        """
        if ILoggingContext.providedBy(self.protocol):
            return str(self.protocol.logPrefix())
        return type(self.protocol).__name__

    def connectionMade(self) -> None:
        """
        Not called: L{makeConnection} goes to the user's protocol.
        """

    def makeConnection(self, transport: Any) -> None:
        """
        Connect the user's protocol.
        """
        self.transport = transport
        wrapper = getattr(transport, "protocol", None)
        if self._optional and getattr(wrapper, "_wrappedProtocol", None) is self:
            # of several interfaces Twisted's wrapper mirrors the last only, and
            # that is IHandshakeListener; TCP asks it for the others
            alsoProvides(wrapper, *self._optional)
        if self._connection.tcpKeepAlive:
            keepAlive = getattr(transport, "setTcpKeepAlive", None)
            if keepAlive is not None:
                keepAlive(True)
        self.protocol.makeConnection(transport)
        if self._connection.guard is not self:
            # its dial was given up before
            transport.abortConnection()

    def handshakeCompleted(self) -> None:
        """
        TLS is up.
        """
        if IHandshakeListener.providedBy(self.protocol):
            self.protocol.handshakeCompleted()
        if not self.handshaken:
            self.handshaken = True
            if self._connection.guard is self:
                self._connection.handshaken()

    def dataReceived(self, data: bytes) -> None:
        """
        The user's protocol's, unless nobody asked for anything.  A connection that
        is given back meanwhile is handed on only when all of this is delivered.
        """
        connection = self._connection
        state = connection.state
        if state is IDLE or state is RETURNING:
            connection.delays = 0
            connection.owner.idleData(connection, data)
            return
        if not connection.proven:
            connection.owner.firstBytes(connection)
        if connection.reading:
            self.protocol.dataReceived(data)
            return
        connection.reading = True
        try:
            self.protocol.dataReceived(data)
        except BaseException as e:
            connection.reading = False
            self._endsSoon(f"its own protocol raised {e!r}")  # the reactor closes it
            raise
        if connection.state is RETURNING:
            connection.owner.readDelivered(connection)
        else:
            connection.reading = False

    def _endsSoon(self, why: str) -> bool:
        """
        Let nobody have the connection again.

        @return: whether somebody has it now.
        """
        connection = self._connection
        if connection.state is IDLE or connection.state is RETURNING:
            connection.owner.idleEnd(connection)
            return False
        connection.ebb(why)
        return True

    def readConnectionLost(self) -> None:
        """
        The peer sends no more.
        """
        if self._endsSoon("the peer sends no more"):
            self.protocol.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """
        Our side sends no more.
        """
        self.protocol.writeConnectionLost()

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """
        A descriptor came over a UNIX socket.  The bytes that came with it are
        delivered after it, so the read under way is not over.
        """
        connection = self._connection
        if connection.state is IDLE or connection.state is RETURNING:
            os.close(descriptor)
            connection.owner.idleEnd(connection)
            return
        connection.reading = True
        try:
            self.protocol.fileDescriptorReceived(descriptor)
        finally:
            connection.reading = False
            if connection.state is RETURNING:
                connection.owner.readDelivered(connection, 1)

    def connectionLost(self, reason: Failure) -> None:
        """
        The socket is gone: the slot is free before the user's code runs.
        """
        connection = self._connection
        if connection.guard is self:
            connection.lost(reason, self.protocol)
        else:
            self.protocol.connectionLost(reason)


@implementer(IProtocolFactory)
class GuardFactory:
    """
    The user's factory, with a L{Guard} around what it builds.
    """

    def __init__(self, connection: Guarded, factory: Any) -> None:
        self._connection = connection
        self._factory = factory
        # such as IProtocolNegotiationFactory, which TLS asks for
        directlyProvides(self, *providedBy(factory))

    def buildProtocol(self, address: Any) -> Guard | None:
        """
        @return: L{None} where the user's factory refuses.
        """
        protocol = self._factory.buildProtocol(address)
        if protocol is None:
            return None
        guard = Guard(self._connection, protocol)
        if self._connection.wanted:
            self._connection.guard = guard
        return guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._factory, name)

    def __repr__(self) -> str:
        return f"<pooled {self._factory!r}>"
