"""
Server endpoints whose clients come through a proxy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import attrs
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    ILoggingContext,
    IProtocol,
    IProtocolFactory,
    IProtocolNegotiationFactory,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from zope.interface import implementer

from connpool.addresses import Networks, joinHostPort
from connpool.interfaces import IStatsSource
from connpool.proxyprotocol.connection import Policy, ProxiedConnection
from connpool.proxyprotocol.header import MAX_HEADER, Header

__all__ = ["ProxiedEndpoint", "ProxiedFactory", "ProxyStats", "Trusted"]

#: Connections of one listener that wait for their header at once.
MAX_PENDING = 1024

#: Seconds between two log lines about refusals of one listener.
LOG_INTERVAL_SECONDS = 60.0


@attrs.frozen
class Trusted:
    """
    The proxies whose headers are believed.

    @ivar networks: proxies by address.
    @ivar unix: whether every client of a unix socket is one.
    """

    networks: Networks
    unix: bool = False

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Trusted:
        """
        @param texts: CIDR networks, addresses, and C{unix}.
        @raise AddressError: for a text that is none of these.
        """
        words = [text.strip() for text in texts]
        return cls(Networks.parse(word for word in words if word != "unix"), "unix" in words)

    def __contains__(self, address: IAddress | None) -> bool:
        if isinstance(address, UNIXAddress):
            return self.unix
        return getattr(address, "host", "") in self.networks


def _shown(peer: IAddress) -> str:
    """
    For logs.
    """
    if isinstance(peer, IPv4Address | IPv6Address):
        return joinHostPort(peer.host, peer.port)
    return "a unix socket"


@attrs.frozen
class ProxyStats:
    """
    @ivar pending: connections that wait for their header now.
    @ivar headers: headers that were taken.
    @ivar local: of these, LOCAL ones (health checks).
    @ivar unknown: of these, ones that named no client address.
    @ivar bare: connections of trusted peers served without a header.
    @ivar untrusted: connections refused because the peer is not trusted.
    @ivar missing: refused because something else came instead of a header.
    @ivar malformed: refused for a header with a mistake in it.
    @ivar rejected: refused for a header where none may be sent.
    @ivar late: refused because the header did not come in time.
    @ivar lost: gone before the header was complete.
    @ivar crowded: refused because too many waited already.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset({"pending"})

    pending: int = 0
    headers: int = 0
    local: int = 0
    unknown: int = 0
    bare: int = 0
    untrusted: int = 0
    missing: int = 0
    malformed: int = 0
    rejected: int = 0
    late: int = 0
    lost: int = 0
    crowded: int = 0


@implementer(IProtocolFactory, IProtocolNegotiationFactory, ILoggingContext)
class ProxiedFactory:
    """
    Wraps a factory: its protocols are built when the client is known.

    @param clock: measures C{timeout}.
    @param maxHeader: bytes of a v2 header at most.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        wrapped: IProtocolFactory,
        trusted: Trusted,
        policy: Policy = Policy.REQUIRE,
        timeout: float = 5.0,
        maxHeader: int = MAX_HEADER,
    ) -> None:
        self.clock = clock
        self.wrapped = wrapped
        self.trusted = trusted
        self.policy = policy
        self.timeout = timeout
        self.maxHeader = maxHeader
        self.counts: Counter[str] = Counter()
        self._pending: set[ProxiedConnection] = set()
        self._unlogged = 0
        self._nextLine = clock.seconds()

    def doStart(self) -> None:
        self.wrapped.doStart()

    def doStop(self) -> None:
        for connection in list(self._pending):
            connection.transport.abortConnection()
        self.wrapped.doStop()

    def logPrefix(self) -> str:
        wrapped: Any = self.wrapped
        named = ILoggingContext.providedBy(wrapped)
        return f"{wrapped.logPrefix() if named else type(wrapped).__name__} (PROXY)"

    def acceptableProtocols(self) -> list[bytes]:
        """
        @return: the application protocols that TLS around this may agree on (RFC 7301).
        """
        inner = IProtocolNegotiationFactory(self.wrapped, None)
        return [] if inner is None else list(inner.acceptableProtocols())

    def buildProtocol(self, addr: IAddress | None) -> IProtocol:
        # never None, which Twisted's TLS wrapper cannot take
        return ProxiedConnection(self, trusted=addr in self.trusted)

    def admits(self, connection: ProxiedConnection) -> bool:
        """
        Decide whether a new connection may go on; if it is to send a header, it is
        pending from now on.
        """
        if not connection.proxyInfo.trusted:
            if self.policy is Policy.REQUIRE:
                self.refused(connection, "untrusted", "it is not one of the trusted= proxies")
                return False
        elif self.policy is not Policy.REJECT:
            if len(self._pending) >= MAX_PENDING:
                self.refused(connection, "crowded", f"{MAX_PENDING} wait for their header already")
                return False
            self._pending.add(connection)
        return True

    def refused(self, connection: ProxiedConnection, counter: str, why: str) -> None:
        """
        Count a refusal, and log one line a minute at most.
        """
        self.counts[counter] += 1
        self._unlogged += 1
        now = self.clock.seconds()
        # not less either: the clock may be set back
        if self._nextLine - LOG_INTERVAL_SECONDS <= now < self._nextLine:
            return
        self._nextLine = now + LOG_INTERVAL_SECONDS
        count, self._unlogged = self._unlogged, 0
        self._log.warn(
            "refused {count} connections behind proxies, the last from {peer}: {why}",
            count=count,
            peer=_shown(connection.proxyInfo.peer),
            why=why,
        )

    def left(self, connection: ProxiedConnection) -> None:
        """
        C{connection} waits for its header no longer.
        """
        self._pending.discard(connection)

    def headerCame(self, header: Header) -> None:
        """
        Count it.
        """
        self.counts["headers"] += 1
        if header.local:
            self.counts["local"] += 1
        elif header.source is None or isinstance(header.source, UNIXAddress):
            self.counts["unknown"] += 1

    def stats(self) -> ProxyStats:
        """
        As of now.
        """
        return ProxyStats(pending=len(self._pending), **self.counts)


@implementer(IStreamServerEndpoint, IStatsSource)
class ProxiedEndpoint:
    """
    A server endpoint behind proxies that send PROXY headers.

    @param reactor: the clock of C{timeout}.
    @param endpoint: what is listened on.
    @param trusted: whose headers are believed.
    @param timeout: seconds a trusted peer has for its whole header.
    @param maxHeader: bytes of a v2 header at most.
    @ivar name: for metrics; set it where one process has several.
    """

    kind = "proxy"
    name = "proxy"

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamServerEndpoint,
        trusted: Trusted,
        policy: Policy = Policy.REQUIRE,
        timeout: float = 5.0,
        maxHeader: int = MAX_HEADER,
    ) -> None:
        self._reactor = reactor
        self.endpoint = endpoint
        self.trusted = trusted
        self.policy = policy
        self.timeout = timeout
        self.maxHeader = maxHeader
        self._factory: ProxiedFactory | None = None

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        self._factory = ProxiedFactory(
            self._reactor,
            protocolFactory,
            self.trusted,
            self.policy,
            self.timeout,
            self.maxHeader,
        )
        return self.endpoint.listen(self._factory)

    def stats(self) -> ProxyStats:
        return self._factory.stats() if self._factory is not None else ProxyStats()
