"""
Connections made ahead of time, for code that only knows endpoints.

A I{parked} transport is connected, and handshaken where there is TLS, before
anybody asks; L{PooledEndpoint.connect} builds the caller's protocol on it.  A
transport serves one protocol and is never given to another, so this is sound
for every protocol that may sit idle after connecting, whatever state it leaves
behind.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionDone, NoProtocol
from twisted.internet.interfaces import (
    IFileDescriptorReceiver,
    IHalfCloseableProtocol,
    IHandshakeListener,
    ILoggingContext,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import ConnectFailed, PoolDown
from connpool.interfaces import IPoolable
from connpool.pool.lease import Lease
from connpool.pool.pool import ConnectionPool
from connpool.pool.states import State

__all__ = ["GREETING_BYTES", "PooledEndpoint"]

#: How many bytes a parked transport may receive, such as a server's greeting.
GREETING_BYTES = 16 * 1024


@implementer(IPoolable, IHalfCloseableProtocol, IHandshakeListener, IFileDescriptorReceiver)
class _Parked(Protocol):
    """
    A transport that waits for its protocol, and then is in front of it.
    """

    _protocol: Any = None
    _beginning: Any = None
    _lease: Lease | None = None
    _factory: Any = None
    _secure = False

    def __init__(self) -> None:
        self._received: list[bytes] = []
        self._count = 0

    def become(self, reactor: Any, lease: Lease, factory: Any, protocol: Any) -> None:
        """
        Hand the transport over.  What natively comes from the network, the end
        of the handshake and the greeting, comes in the next turn.
        """
        self._lease = lease
        self._factory = factory
        self._protocol = protocol
        try:
            protocol.makeConnection(self.transport)
        except BaseException:
            self._protocol = None
            raise
        if self._protocol is not None and (self._received or self._secure):
            self._beginning = reactor.callLater(0, self._begin)

    def _begin(self) -> None:
        """
        Replay what happened while nobody was there.
        """
        self._beginning = None
        if self._secure and IHandshakeListener.providedBy(self._protocol):
            self._protocol.handshakeCompleted()
        data, self._received = b"".join(self._received), []
        if data and not getattr(self.transport, "disconnecting", False):
            self._protocol.dataReceived(data)

    def _beginNow(self) -> None:
        """
        Replay at once, because something else happens now.
        """
        if self._beginning is not None:
            self._beginning.cancel()
            self._begin()

    def _keep(self, data: bytes) -> bool:
        """
        @return: whether C{data} still fits.
        """
        self._received.append(data)
        self._count += len(data)
        return self._count <= GREETING_BYTES

    # -- IPoolable

    def isReusable(self) -> bool:
        """
        Never.
        """
        return False

    def reset(self) -> None:
        """
        Not called: it is not reusable.
        """

    def validate(self) -> bool:
        """
        Say yes: a parked connection cannot be asked anything.
        """
        return True

    def idleDataReceived(self, data: bytes) -> bool:
        """
        A greeting.
        """
        return self._keep(data)

    def goodbye(self) -> None:
        """
        Nobody was introduced.
        """

    # -- what comes from the transport

    def logPrefix(self) -> str:
        """
        The caller's protocol's.
        """
        if self._protocol is None:
            return "parked"
        if ILoggingContext.providedBy(self._protocol):
            return str(self._protocol.logPrefix())
        return type(self._protocol).__name__

    def dataReceived(self, data: bytes) -> None:
        """
        For the caller's protocol, now or after the greeting.
        """
        if self._protocol is not None and self._beginning is None:
            self._protocol.dataReceived(data)
        elif not self._keep(data) and self._protocol is None:
            self.transport.abortConnection()  # type: ignore[union-attr]  # data came by it

    def handshakeCompleted(self) -> None:
        """
        For the caller's protocol, when there is one.
        """
        self._secure = True
        if self._protocol is not None and IHandshakeListener.providedBy(self._protocol):
            self._beginNow()
            self._protocol.handshakeCompleted()

    def readConnectionLost(self) -> None:
        """
        For a caller's protocol that can have half a connection; for any other
        this is the end of it, as it is natively.
        """
        self._beginNow()
        transport: Any = self.transport
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._protocol.readConnectionLost()
        elif isinstance(transport, FileDescriptor):
            transport.connectionLost(Failure(ConnectionDone()))
        else:
            transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """
        See L{readConnectionLost}.
        """
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._protocol.writeConnectionLost()

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """
        For a caller's protocol that can have descriptors.
        """
        if IFileDescriptorReceiver.providedBy(self._protocol):
            self._beginNow()
            self._protocol.fileDescriptorReceived(descriptor)
        else:
            os.close(descriptor)

    def connectionLost(self, reason: Failure = ConnectionDone) -> None:  # type: ignore[assignment]  # Twisted's own default
        """
        The end of the lease.
        """
        if self._protocol is None:
            return
        self._beginNow()
        protocol, self._protocol = self._protocol, None
        self._lease = None
        protocol.connectionLost(reason)
        self._factory.doStop()


@implementer(IStreamClientEndpoint)
class PooledEndpoint:
    """
    An endpoint whose connections are made ahead of time.

    It fails as the wrapped endpoint does when that cannot connect, and with a
    L{connpool.pool.PoolError} where the pool says no.

    @ivar pool: the L{ConnectionPool} of parked transports.
    @param reactor: the clock.
    @param endpoint: where to connect, see L{ConnectionPool}.
    @param minIdle: how many are kept ready once somebody connected.
    @param idleTimeout: seconds after which a parked transport is replaced by a
        fresh one: less than the server waits for a client's first word.
    @param limits: see L{Settings}; C{maxSize} counts parked and used ones.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: Any,
        *,
        minIdle: int = 1,
        idleTimeout: float | None = 20.0,
        name: str | None = None,
        observers: Any = (),
        **limits: Any,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        factory = Factory.forProtocol(_Parked)
        # a destination that is down would be two log lines for each dial
        factory.noisy = False
        self.pool = ConnectionPool(
            reactor,
            endpoint,
            factory,
            name=name,
            observers=observers,
            **limits,
            minIdle=minIdle,
            idleTimeout=idleTimeout,
            # minIdle keeps connections from expiring, but not from aging
            maxLifetime=idleTimeout,
            maxUses=1,
        )

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """
        See L{IStreamClientEndpoint.connect}.
        """

        def build(lease: Lease) -> Any:
            parked = lease.protocol
            try:
                protocol = protocolFactory.buildProtocol(parked.transport.getPeer())
                if protocol is None:
                    raise NoProtocol
                parked.become(self._reactor, lease, protocolFactory, protocol)
            except BaseException:
                lease.discard()
                raise
            return protocol

        def failed(reason: Failure) -> Failure:
            protocolFactory.doStop()
            cause = getattr(reason.value, "__cause__", None)
            if reason.check(ConnectFailed, PoolDown) and isinstance(cause, ConnectError):
                return Failure(cause)
            return reason

        protocolFactory.doStart()
        return self.pool.acquire().addCallback(build).addErrback(failed)

    def close(self) -> Deferred[None]:
        """
        Close what is parked.  Connections in use are their protocols' alone from
        now on.

        @return: fires when nothing is parked any more.
        """
        core = self.pool.shell.core
        for slot in list(core.inventory.slots):
            if slot.state is State.LEASED:
                core.detach(slot)
        return self.pool.close()

    def __repr__(self) -> str:
        return f"<PooledEndpoint {self._endpoint!r}>"
