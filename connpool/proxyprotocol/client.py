"""
Saying who is calling: a client endpoint that sends a PROXY header first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from connpool.interfaces import ISingleUseEndpoint
from connpool.proxyprotocol.header import encodeV1, encodeV2

__all__ = ["ProxyHeaderEndpoint"]

Address = IPv4Address | IPv6Address | UNIXAddress

#: A connected transport to the header that goes first on it.
HeaderFor = Callable[[Any], bytes]


@implementer(IProtocol)
class _Announced:
    """
    Writes the header before the application's protocol sees the transport.
    """

    def __init__(self, headerFor: HeaderFor, inner: Any) -> None:
        self._headerFor = headerFor
        self.inner = inner
        directlyProvides(
            self,
            IProtocol,
            *(
                each
                for each in (IHalfCloseableProtocol, IHandshakeListener)
                if each in providedBy(inner)
            ),
        )

    def makeConnection(self, transport: Any) -> None:
        transport.write(self._headerFor(transport))
        self.inner.makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        self.inner.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.inner.connectionLost(reason)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@implementer(IProtocolFactory)
class _AnnouncingFactory:
    def __init__(self, headerFor: HeaderFor, wrapped: IProtocolFactory) -> None:
        self._headerFor = headerFor
        self._wrapped = wrapped

    def doStart(self) -> None:
        self._wrapped.doStart()

    def doStop(self) -> None:
        self._wrapped.doStop()

    def buildProtocol(self, addr: IAddress) -> Any:
        inner = self._wrapped.buildProtocol(addr)
        return None if inner is None else _Announced(self._headerFor, inner)


@implementer(IStreamClientEndpoint, ISingleUseEndpoint)
class ProxyHeaderEndpoint:
    """
    Connects through another endpoint and sends a PROXY header before anything
    else, in one segment with the first data where the protocol writes at once.

    Around a C{tls:} endpoint the header goes inside the TLS stream; for one
    before it, wrap this endpoint with L{twisted.internet.endpoints.wrapClientTLS}.

    @param source: the client on whose behalf this connection is made, and
    @param destination: where that client connected to; both L{None} for a
        connection on our own behalf: LOCAL in v2, UNKNOWN in v1.
    @param version: of the protocol, 1 or 2.
    @param own: say the connection's own two addresses instead: the lists of a
        server know nobody who comes with LOCAL.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        source: Address | None = None,
        destination: Address | None = None,
        version: int = 2,
        *,
        own: bool = False,
    ) -> None:
        self._endpoint = endpoint
        encode = encodeV1 if version == 1 else encodeV2
        if own:
            self._headerFor: HeaderFor = lambda link: encode(link.getHost(), link.getPeer())
        else:
            header = encode(source, destination)
            self._headerFor = lambda _: header

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        def unwrap(announced: Any) -> IProtocol:
            inner: IProtocol = announced.inner
            return inner

        factory = _AnnouncingFactory(self._headerFor, protocolFactory)
        return self._endpoint.connect(factory).addCallback(unwrap)
