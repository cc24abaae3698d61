"""
The gate in front of every stream service: who may connect, how many at once,
and who is still here when the service stops.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import attrs
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IAddress, IProtocol, ISSLTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from zope.interface import directlyProvides, implementer, providedBy

from connpool.addresses import Networks, UnknownAddress
from connpool.addresses.networks import networkOf
from connpool.interfaces import IDrainable, IStatsSource

__all__ = ["Access", "Gate", "ListenerStats"]

NOBODY = Networks()


@attrs.frozen
class Access:
    """
    The clients that may connect, and how many at once.

    @ivar allow: networks that may; empty means everybody.
    @ivar deny: networks that may not; wins.
    @ivar maxConnections: connections at once, all peers together.
    @ivar maxPerPeer: connections at once from one IPv4 address or IPv6 /64;
        L{None} for no limit.
    """

    allow: Networks = NOBODY
    deny: Networks = NOBODY
    maxConnections: int = 1000
    maxPerPeer: int | None = None

    def permits(self, address: IAddress) -> bool:
        """
        Tell whether C{address} may connect.  A unix socket's client may: the
        socket's permissions said so.  A client whose address is not known
        (a proxy said so) may only where no list says who may and who may not.
        """
        if isinstance(address, UNIXAddress):
            return True
        if isinstance(address, UnknownAddress):
            return not (self.allow or self.deny)
        host = getattr(address, "host", "")
        return host not in self.deny and (not self.allow or host in self.allow)


@attrs.frozen
class ListenerStats:
    """
    @ivar connections: open now.
    @ivar accepted: let in since the start.
    @ivar refusedAddress: turned away by allow and deny.
    @ivar refusedLimit: turned away by a connection limit.
    @ivar healthChecks: of a proxy itself, with no client, where a list says who may
        connect: closed, and no refusal.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset({"connections"})

    connections: int
    accepted: int
    refusedAddress: int
    refusedLimit: int
    healthChecks: int = 0


class _Visit:
    """
    One connection that was let in.

    Stands between transport and protocol only to see the end; everything else
    goes straight through, and the protocol holds the real transport.
    """

    def __init__(self, gate: Gate, protocol: IProtocol, peer: str) -> None:
        self._gate = gate
        self._protocol = protocol
        self.peer = peer
        self.transport: Any = None
        directlyProvides(self, providedBy(protocol))

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self._protocol.makeConnection(transport)

    def connectionLost(self, reason: Any) -> None:
        try:
            self._protocol.connectionLost(reason)
        finally:
            # last: a drain that ends here must find nothing of it left
            self._gate._left(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)


class _Refused(Protocol):
    """
    Hangs up.  L{None} in its place is a traceback under C{ssl:} endpoints:
    Twisted's TLS wrapper cannot take it.
    """

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if ISSLTransport.providedBy(transport):
            # a close that the other side would have to answer
            transport.abortConnection()
        else:
            transport.loseConnection()


@implementer(IDrainable, IStatsSource)
class Gate(Factory):
    """
    Wraps a service's factory.
    """

    kind = "listener"
    noisy = False
    _log = Logger()

    def __init__(self, factory: Any, access: Access, name: str) -> None:
        self.factory = factory
        self.access = access
        self.name = name
        self._visits: set[_Visit] = set()
        self._perPeer: Counter[str] = Counter()
        self._accepted = self._refusedAddress = self._refusedLimit = self._healthChecks = 0
        self._drained: list[Deferred[None]] = []

    def logPrefix(self) -> str:
        """
        Return the beginning of Twisted's "starting on PORT" line.
        """
        return self.name

    def doStart(self) -> None:
        self.factory.doStart()

    def doStop(self) -> None:
        self.factory.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        access = self.access
        peer = networkOf(getattr(addr, "host", ""))
        if addr is not None and not access.permits(addr):
            if isinstance(addr, UnknownAddress):
                self._healthChecks += 1
            else:
                self._refusedAddress += 1
            return _Refused()
        if len(self._visits) >= access.maxConnections or (
            access.maxPerPeer is not None and peer and self._perPeer[peer] >= access.maxPerPeer
        ):
            self._refusedLimit += 1
            return _Refused()
        protocol = self.factory.buildProtocol(addr)
        if protocol is None:
            return None
        visit = _Visit(self, protocol, peer)
        self._visits.add(visit)
        self._perPeer[peer] += 1
        self._accepted += 1
        return visit

    def _left(self, visit: _Visit) -> None:
        self._visits.discard(visit)
        self._perPeer[visit.peer] -= 1
        if not self._perPeer[visit.peer]:
            del self._perPeer[visit.peer]
        if not self._visits:
            waiting, self._drained = self._drained, []
            for d in waiting:
                d.callback(None)

    def drain(self) -> Deferred[None]:
        gone: Deferred[None] = Deferred()
        ends: list[Deferred[Any]] = [gone]
        if IDrainable.providedBy(self.factory):
            ends.append(maybeDeferred(self.factory.drain))
        if self._visits:
            self._drained.append(gone)
        else:
            gone.callback(None)
        return DeferredList(ends, consumeErrors=True).addCallback(lambda _: None)

    def abort(self) -> None:
        if IDrainable.providedBy(self.factory):
            self.factory.abort()
        for visit in list(self._visits):
            if visit.transport is not None:
                visit.transport.abortConnection()

    def stats(self) -> ListenerStats:
        return ListenerStats(
            len(self._visits),
            self._accepted,
            self._refusedAddress,
            self._refusedLimit,
            self._healthChecks,
        )
