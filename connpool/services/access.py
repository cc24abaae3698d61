"""
The gate in front of every stream service: addresses that may connect, how many at once,
and the connections that are left when the service stops.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import attrs
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolNegotiationFactory,
    ISSLTransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from zope.interface import directlyProvides, implementer, providedBy

from connpool.addresses import Networks, UnknownAddress
from connpool.addresses.networks import networkOf
from connpool.addresses.tls import ACCESS_DENIED
from connpool.interfaces import IDrainable, IDrainableProtocol, IStatsSource
from connpool.logonce import LogRarely
from connpool.services.limits import defaultConnections
from connpool.waiting import Waiters

__all__ = ["Access", "Gate", "ListenerStats", "Words"]

NOBODY = Networks()
#: Refused addresses that one log line names.
LOGGED_ADDRESSES = 16
#: Refused connections that are listened to at once, and seconds for each.
HEARD_CONNECTIONS, HEARD_SECONDS = 16, 1.0


def _networks(given: Networks | Sequence[str]) -> Networks:
    return given if isinstance(given, Networks) else Networks.parse(given)


@attrs.frozen
class Access:
    """
    The addresses that may connect, and the limits of connections.

    @ivar allow: networks that may, also as texts ("192.0.2.0/24", "any"); empty
        means everybody.
    @ivar deny: networks that may not; wins.
    @ivar maxConnections: connections at once, all peers together; by default what
        open files allow.
    @ivar maxPerPeer: connections at once from one IPv4 address or IPv6 /64;
        L{None} for no limit.
    @ivar option: the option that C{allow} came by, for messages.
    """

    allow: Networks = attrs.field(default=NOBODY, converter=_networks)
    deny: Networks = attrs.field(default=NOBODY, converter=_networks)
    maxConnections: int = attrs.field(factory=defaultConnections)
    maxPerPeer: int | None = None
    option: str = "--allow"

    def permits(self, address: IAddress) -> bool:
        """
        Decide whether C{address} may connect.
        """
        return not self.objection(address)

    def objection(self, address: IAddress) -> str:
        """
        Say why C{address} may not connect.  A unix socket's client may: the
        socket's permissions said so.  A client whose address is not known
        (a proxy said so) may only where no list says who may and who may not.

        @return: the reason, which names the option; empty if it may.
        """
        if isinstance(address, UNIXAddress):
            return ""
        if isinstance(address, UnknownAddress):
            unlimited = not (self.allow or self.deny)
            return "" if unlimited else f"an unknown address is in no {self.option}"
        host = getattr(address, "host", "")
        if host in self.deny:
            return "--deny names it"
        if self.allow and host not in self.allow:
            return f"{self.option} does not name it"
        return ""


@attrs.frozen
class Words:
    """
    The bytes that a refused peer is sent.

    @ivar usual: to most.
    @ivar signatures: the beginnings of another protocol that may be spoken on the port.
    @ivar other: to those who begin so.
    """

    usual: bytes = b""
    signatures: tuple[bytes, ...] = ()
    other: bytes = b""


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
    Says that nobody is served here, in less than a packet, and hangs up: at once, or at the
    first bytes, where these decide what is said.  L{None} in its place is a traceback under
    C{ssl:} endpoints: Twisted's TLS wrapper cannot take it.

    @param alert: a record for a peer whose TLS handshake has not begun; empty to abort.
    @param heard: those that are listened to, C{None} if nobody can be.
    """

    def __init__(
        self, words: Words, alert: bytes, clock: Any = None, heard: set[_Refused] | None = None
    ) -> None:
        self._words = words
        self._alert = alert
        self._clock = clock
        self._heard = set() if heard is None else heard
        self._late: Any = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if ISSLTransport.providedBy(transport):
            from twisted.protocols.tls import TLSMemoryBIOProtocol

            if isinstance(transport, TLSMemoryBIOProtocol):
                # a handshake is work that whoever is refused shall not cause
                self._refuseHandshake(transport)
                return
        if self._words.other and self._clock is not None and len(self._heard) < HEARD_CONNECTIONS:
            self._heard.add(self)
            self._late = self._clock.callLater(HEARD_SECONDS, self._say, self._words.usual)
        else:
            self._say(self._words.usual)

    def dataReceived(self, data: bytes) -> None:
        if self in self._heard:
            words = self._words
            self._say(words.other if data.startswith(words.signatures) else words.usual)

    def connectionLost(self, reason: Any = None) -> None:
        self._heard.discard(self)
        if self._late is not None and self._late.active():
            self._late.cancel()

    def _say(self, answer: bytes) -> None:
        self._heard.discard(self)
        transport: Any = self.transport
        if answer:
            transport.write(answer)
        transport.loseConnection()

    def _refuseHandshake(self, transport: Any) -> None:
        if self._alert:
            transport.transport.write(self._alert)
            transport.transport.loseConnection()
        else:
            # a close that the other side would have to answer
            transport.abortConnection()


@implementer(IDrainable, IProtocolNegotiationFactory, IStatsSource)
class Gate(Factory):
    """
    Wraps a service's factory, and alone counts its connections and ends them.

    @param answers: said to refused peers: C{"address"} to those that
        C{access} leaves out (before a TLS handshake they get an alert instead), C{"limit"} to
        those that are too many.
    @param seconds: monotonic, times the log lines.
    @param clock: L{twisted.internet.interfaces.IReactorTime}; without one no first bytes are
        waited for.
    """

    kind = "listener"
    noisy = False
    _log = Logger()

    def __init__(
        self,
        factory: Any,
        access: Access,
        name: str,
        answers: Mapping[str, Words] | None = None,
        seconds: Callable[[], float] = time.monotonic,
        clock: Any = None,
    ) -> None:
        self._answers = answers or {}
        self._seconds = seconds
        self._clock = clock
        self._heard: set[_Refused] = set()
        self._rarely = LogRarely(self._logRefusals)
        #: refused addresses since the last line, the first ones of them
        self._turnedAway: Counter[str] = Counter()
        self.factory = factory
        self.access = access
        self.name = name
        self._visits: set[_Visit] = set()
        self._perPeer: Counter[str] = Counter()
        self._accepted = self._refusedAddress = self._refusedLimit = self._healthChecks = 0
        self._drained = Waiters()

    def logPrefix(self) -> str:
        """
        The beginning of Twisted's "starting on PORT" line.
        """
        return self.name

    def acceptableProtocols(self) -> list[bytes]:
        """
        @return: the application protocols that TLS in front may agree on (RFC 7301).
        """
        inner = IProtocolNegotiationFactory(self.factory, None)
        return [] if inner is None else list(inner.acceptableProtocols())

    def doStart(self) -> None:
        self.factory.doStart()

    def doStop(self) -> None:
        self.factory.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        access = self.access
        peer = networkOf(getattr(addr, "host", ""))
        objection = "" if addr is None else access.objection(addr)
        if objection and isinstance(addr, UnknownAddress) and addr.healthCheck:
            self._healthChecks += 1
            return _Refused(Words(), b"")
        if objection:
            self._refusedAddress += 1
            host = str(getattr(addr, "host", "unknown"))
            if host in self._turnedAway or len(self._turnedAway) < LOGGED_ADDRESSES:
                self._turnedAway[host] += 1
            self._rarely.happened(objection, self._seconds())
            return self._refused("address", ACCESS_DENIED if "address" in self._answers else b"")
        if len(self._visits) >= access.maxConnections or (
            access.maxPerPeer is not None and peer and self._perPeer[peer] >= access.maxPerPeer
        ):
            self._refusedLimit += 1
            return self._refused("limit", b"")
        protocol = self.factory.buildProtocol(addr)
        if protocol is None:
            return None
        visit = _Visit(self, protocol, peer)
        self._visits.add(visit)
        self._perPeer[peer] += 1
        self._accepted += 1
        return visit

    def _refused(self, why: str, alert: bytes) -> _Refused:
        return _Refused(self._answers.get(why, Words()), alert, self._clock, self._heard)

    def _logRefusals(self, objection: str, unsaid: int) -> None:
        """
        Log who was refused since the last line.
        """
        hosts = [f"{host} ({n})" if n > 1 else host for host, n in self._turnedAway.items()]
        self._turnedAway.clear()
        count = unsaid + 1
        self._log.warn(
            "{name} refused {n} connection{s} from {hosts}: {why}",
            name=self.name,
            n=count,
            s="s" * (count > 1),
            hosts=", ".join(hosts),
            why=objection,
        )

    def _left(self, visit: _Visit) -> None:
        self._visits.discard(visit)
        self._perPeer[visit.peer] -= 1
        if not self._perPeer[visit.peer]:
            del self._perPeer[visit.peer]
        if not self._visits:
            self._drained.wake()

    def drain(self) -> Deferred[None]:
        self._rarely.flush()
        drained = self._drained.wait()
        for visit in list(self._visits):
            if visit.transport is not None and IDrainableProtocol.providedBy(visit):
                visit.drain()
        if not self._visits:
            self._drained.wake()
        return drained

    def abort(self) -> None:
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
