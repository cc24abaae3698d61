"""
A pool in front of an upstream.

Each client gets an upstream connection of its own that was dialled, and
handshaken where there is TLS, ahead of time.  What this saves is the connect
and handshake time of a far upstream; what it protects is an upstream that must
not see more than so many connections.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    INegotiated,
    IPushProducer,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.addresses import Listen, joinHostPort, tokenize
from connpool.addresses.clientstrings import clientString
from connpool.errors import AddressError, WrongSetting
from connpool.interfaces import IReloadable
from connpool.pool import ConnectionPoolService, PooledEndpoint, Settings
from connpool.proxyprotocol import ProxyHeaderEndpoint
from connpool.sendqueue import unconfirmedBytes
from connpool.services.access import Access
from connpool.services.listening import ListeningService, readListen
from connpool.services.startfailure import failStart

__all__ = ["HEADER_VERSIONS", "PoolRelay", "RelayFactory", "checkRelay"]

#: Versions of the PROXY protocol, as C{--proxy-header} names them.
HEADER_VERSIONS = {"v1": 1, "v2": 2}

#: What a client may send before it has an upstream; more stays in the kernel.
EARLY_BYTES = 64 * 1024

#: How often a connection that is to be cut is asked whether all has arrived.
CONFIRM_POLL_SECONDS = 0.05

#: A reload replaces the upstream connections within this.
RELOAD_SECONDS = 30.0


@implementer(IPushProducer)
class _Source:
    """
    The transport that one end's bytes come from, without its C{stopProducing}: how an
    end ends the other is decided here, not by the transport that is lost.
    """

    def __init__(self, transport: Any) -> None:
        self.pauseProducing = transport.pauseProducing
        self.resumeProducing = transport.resumeProducing

    def stopProducing(self) -> None:
        """
        See L{_Side.connectionLost}.
        """


class _Side(Protocol):
    """
    One end of a relayed connection.

    @ivar peer: the other end.
    @ivar relay: who brought them together.
    @ivar ended: whether this end sends no more.
    """

    peer: _Side | None = None
    relay: RelayFactory
    ended = False
    _breaking: Any = None
    _limit: Any = None
    _unsent: list[int]

    def pipeTo(self, peer: _Side) -> None:
        """
        From now on what comes here goes there, at the pace at which it goes.
        """
        self.peer = peer
        transport: Any = peer.transport
        transport.registerProducer(_Source(self.transport), True)

    def dataReceived(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.transport.write(data)  # type: ignore[union-attr]  # it has one until it has no peer
            if self._limit is not None:
                self._limit.reset(self.relay.closeTimeout)

    def readConnectionLost(self) -> None:
        """
        This end sends no more, but may still receive.
        """
        self.ended = True
        peer = self.peer
        if peer is None:
            self.transport.loseConnection()  # type: ignore[union-attr]  # it is connected
            return
        transport: Any = peer.transport
        transport.unregisterProducer()
        if peer.ended:
            peer._finish()
            self._finish()
        elif INegotiated.providedBy(transport) or ISSLTransport.providedBy(transport):
            # TLS cannot end one direction
            transport.loseConnection()
        else:
            transport.loseWriteConnection()
            peer._bound()

    def writeConnectionLost(self) -> None:
        """
        We passed an end on.
        """

    def _finish(self) -> None:
        """
        Close this end when all is written, which must not take for ever.
        """
        transport: Any = self.transport
        transport.unregisterProducer()
        self._bound()
        transport.loseConnection()  # if this end has ended, it is lost before this returns

    def _break(self) -> None:
        """
        The other end was cut: cut this one, so that half an answer does not look like
        a whole one; but first deliver what came before.
        """
        transport: Any = self.transport
        transport.unregisterProducer()
        self._bound()
        self._cut()

    def _cut(self) -> None:
        """
        Reset the connection when its peer has confirmed all that was sent.
        """
        self._breaking = None
        lowest: Any = self.transport
        while (below := getattr(lowest, "transport", None)) is not None:
            lowest = below
        reactor = self.relay.reactor
        if lowest in reactor.getWriters() or unconfirmedBytes(getattr(lowest, "socket", None)):
            self._breaking = reactor.callLater(CONFIRM_POLL_SECONDS, self._cut)
        else:
            transport: Any = self.transport
            transport.abortConnection()

    def _bound(self) -> None:
        """
        One direction or more has ended: from now on silence has a limit.  An
        end that is gone for good looks like one that only sends no more.
        """
        if self._limit is None:
            self._unsent = self._queues()
            self._limit = self.relay.reactor.callLater(self.relay.closeTimeout, self._silent)

    def _queues(self) -> list[int]:
        return [
            unconfirmedBytes(getattr(side.transport, "socket", None))
            for side in (self, self.peer)
            if side is not None
        ]

    def _silent(self) -> None:
        """
        Nothing came; but who reads slowly what was sent is not silent.
        """
        self._limit = None
        if self._queues() != self._unsent:
            self._bound()
            return
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        for call in (self._limit, self._breaking):
            if call is not None:
                call.cancel()
        self._limit = self._breaking = None
        peer, self.peer = self.peer, None
        if peer is not None:
            peer.peer = None
            if reason.check(ConnectionDone):
                peer._finish()
            else:
                peer._break()


@implementer(IHalfCloseableProtocol)
class _Upstream(_Side):
    """
    The end that the pool made.
    """


@implementer(IHalfCloseableProtocol)
class _Client(_Side):
    """
    The end that came to us.
    """

    factory: RelayFactory
    _connecting: Deferred[Any] | None = None
    _early = b""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if (keepAlive := getattr(transport, "setTcpKeepAlive", None)) is not None:
            keepAlive(True)
        self._connecting = self.factory.upstreamFor(transport)
        self._connecting.addCallbacks(self._connected, self._failed)

    def _connected(self, upstream: _Upstream) -> None:
        self._connecting = None
        transport: Any = self.transport
        self.relay = upstream.relay = self.factory
        upstream.pipeTo(self)
        self.pipeTo(upstream)
        self.factory.succeeded()
        early, self._early = self._early, b""
        if early:
            super().dataReceived(early)
        if self.ended:
            super().readConnectionLost()
        else:
            transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        """
        Keep the first bytes until there is an upstream; reading goes on, so that a
        client that leaves is seen.
        """
        if self._connecting is None:
            super().dataReceived(data)
            return
        self._early += data
        if len(self._early) >= EARLY_BYTES:
            transport: Any = self.transport
            transport.pauseProducing()

    def readConnectionLost(self) -> None:
        """
        The client sends no more.  One that has asked for something still waits for
        its answer; one that has not has left.
        """
        if self._connecting is not None and self._early:
            self.ended = True
        elif self._connecting is not None:
            self._connecting.cancel()
            transport: Any = self.transport
            transport.loseConnection()
        else:
            super().readConnectionLost()

    def _failed(self, reason: Failure) -> None:
        self._connecting = None
        if not reason.check(CancelledError):
            transport: Any = self.transport
            self.factory.failed(transport.getPeer(), reason)
            transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        super().connectionLost(reason)


@attrs.define(eq=False, repr=False, slots=False)
class RelayFactory(Factory):
    """
    Connects each client with an upstream connection of its own.

    @param upstreamFor: a client's transport to a Deferred of its upstream.
    @param closeTimeout: seconds of silence on what is left when one end, or one
        direction, has ended.
    @param name: for logs.
    """

    protocol = _Client  # type: ignore[assignment]  # Twisted names the type, not what it makes
    noisy = False
    _log = Logger()

    reactor: Any
    upstreamFor: Callable[[Any], Deferred[Any]]
    closeTimeout: float
    name: str
    _troubled: int = attrs.field(default=0, init=False)

    def failed(self, client: Any, reason: Failure) -> None:
        """
        A client got no upstream.  Logged once until one gets one.
        """
        self._troubled += 1
        if self._troubled == 1:
            where = joinHostPort(client.host, client.port) if hasattr(client, "port") else client
            self._log.warn(
                "{name}: no upstream for {client}, others are not logged: {error}",
                name=self.name,
                client=where,
                error=reason.getErrorMessage(),
            )

    def succeeded(self) -> None:
        """
        A client got an upstream.
        """
        if self._troubled:
            self._log.info(
                "{name}: upstream again; {count} clients got none",
                name=self.name,
                count=self._troubled,
            )
            self._troubled = 0


@implementer(IReloadable)
class PoolRelay(MultiService):
    """
    The listeners, the pool, and what connects them.

    @param listen: descriptions of stream endpoints to listen on; at least one.
    @param upstream: client endpoint descriptions; those after the first are for fail-over.
    @param access: the addresses that may connect, and how many at once.
    @param minIdle: upstream connections kept ready.
    @param maxSize: upstream connections at once, ready ones included.
    @param maxConnecting: upstream connections being made at once.
    @param idleTimeout: seconds after which a ready connection is replaced.
    @param acquireTimeout: seconds that a client waits for a connection.
    @param connectTimeout: seconds for connect and TLS handshake.
    @param maxWaiting: clients that wait at once.
    @param proxyHeader: C{v1} or C{v2}: tell the upstream who the client is.
    @param closeTimeout: seconds of silence after which a half-closed connection ends.
    @param drainTimeout: seconds a stop waits for clients to finish.
    @param name: in logs and metrics.
    @raise AddressError: for a description that is none; one line.
    @raise WrongSetting: for values that do not go together; one line.
    @ivar listening: the listeners, with C{getHost()}.
    @ivar pool: the pool of upstream connections.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        listen: Sequence[Listen | str],
        upstream: Sequence[str],
        *,
        access: Access | None = None,
        minIdle: int = 2,
        maxSize: int = 100,
        maxConnecting: int = 4,
        idleTimeout: float = 20.0,
        acquireTimeout: float = 30.0,
        connectTimeout: float = 15.0,
        maxWaiting: int = 1000,
        proxyHeader: str | None = None,
        closeTimeout: float = 60.0,
        drainTimeout: float = 60.0,
        name: str = "connpool",
    ) -> None:
        super().__init__()
        self._name = name
        listens = [readListen(each) for each in listen]
        kinds = checkRelay(listens, upstream, minIdle, maxSize, proxyHeader)
        self._version = None if proxyHeader is None else HEADER_VERSIONS[proxyHeader]
        upstreams = [self._upstream(reactor, text) for text in upstream]
        self._secured: Any = None
        if self._version and kinds[0] == "tls":
            # the header goes before TLS: only what is below can be made ahead
            self._secured = upstreams[0]
            upstreams = [self._secured.endpoint]
        self._pooled = PooledEndpoint(
            reactor,
            upstreams if len(upstreams) > 1 else upstreams[0],
            # two services of one parent cannot have one name
            name=f"{name}-upstream",
            minIdle=minIdle,
            maxSize=maxSize,
            maxConnecting=maxConnecting,
            idleTimeout=idleTimeout,
            acquireTimeout=acquireTimeout,
            connectTimeout=connectTimeout,
            maxWaiting=maxWaiting,
        )
        self.pool = self._pooled.pool
        self.listening = ListeningService(
            reactor,
            listens,
            RelayFactory(reactor, self._connect, closeTimeout, name),
            access=access or Access(),
            drainTimeout=drainTimeout,
            name=name,
        )
        self.listening.setServiceParent(self)
        ConnectionPoolService(self.pool, drainTimeout=drainTimeout).setServiceParent(self)
        self._upstreams = ", ".join(upstream)

    def _upstream(self, reactor: Any, text: str) -> IStreamClientEndpoint:
        try:
            endpoint: IStreamClientEndpoint = clientString(reactor, text)
            return endpoint
        except Exception as e:
            failStart(f"{self._name}: --upstream {text!r}: {e}")

    def _connect(self, client: Any) -> Deferred[Any]:
        """
        @return: an upstream for a client's transport.
        """
        endpoint: IStreamClientEndpoint = self._pooled
        if self._version is not None:
            endpoint = ProxyHeaderEndpoint(
                endpoint, client.getPeer(), client.getHost(), self._version
            )
        if self._secured is not None:
            endpoint = self._secured.over(endpoint)
        factory = Factory.forProtocol(_Upstream)
        # else two lines in the log for each dial
        factory.noisy = False
        return endpoint.connect(factory)

    def reload(self) -> None:
        """
        Replace the upstream connections one after another: addresses are looked up
        anew, certificates checked again.
        """
        self.pool.purge(over=RELOAD_SECONDS)

    def startService(self) -> None:
        super().startService()
        hosts: list[Any] = self.listening.getHosts()
        self._log.info(
            "{name} listens on {places}, upstream {upstreams}: {settings}",
            name=self._name,
            places=", ".join(
                joinHostPort(host.host, host.port) if hasattr(host, "port") else str(host)
                for host in hosts
            ),
            upstreams=self._upstreams,
            settings=_inShort(self.pool.settings),
        )


def _inShort(settings: Settings) -> str:
    return (
        f"{settings.minIdle} ready, at most {settings.maxSize}, "
        f"each replaced after {settings.maxLifetime:g} s unused"
    )


def _kindOf(text: str) -> str:
    """
    @return: the prefix of an upstream's description.
    @raise AddressError: for a text that is no client endpoint.
    """
    try:
        with warnings.catch_warnings():
            # no reactor yet: importing it here would defeat --reactor
            warnings.simplefilter("ignore", DeprecationWarning)
            clientString(None, text)
    except AttributeError:
        pass  # a parser that wants a reactor; it is asked again when there is one
    except Exception as e:
        why = str(e).partition("\n")[0] or type(e).__name__
        raise AddressError(f"--upstream: {text!r}: {why}") from None
    try:
        return tokenize(text)[0][0]
    except AddressError as e:
        raise AddressError(f"--upstream: {e}") from None


def checkRelay(
    listen: Sequence[Listen],
    upstream: Sequence[str],
    minIdle: int,
    maxSize: int,
    proxyHeader: str | None,
) -> list[str]:
    """
    Check the values of a L{PoolRelay} that do not all go together.

    @return: the prefix of each upstream's description.
    @raise AddressError: for an upstream that is no client endpoint; one line.
    @raise WrongSetting: for values that do not go together; one line.
    """
    if not listen:
        raise WrongSetting("--listen: say where, for example tcp:5432:interface=127.0.0.1")
    if not upstream:
        raise WrongSetting("--upstream: say where to, for example tcp:db.example:5432")
    if minIdle > maxSize:
        raise WrongSetting(f"--min-idle: {minIdle} is more than --max-size {maxSize}")
    kinds = [_kindOf(text) for text in upstream]
    if proxyHeader is not None:
        if proxyHeader not in HEADER_VERSIONS:
            known = ", ".join(HEADER_VERSIONS)
            raise WrongSetting(f"--proxy-header: {proxyHeader!r} is not one of {known}")
        # the header comes before TLS, and whose TLS is known after dialling
        if "ssl" in kinds or ("tls" in kinds and len(kinds) > 1):
            raise WrongSetting(
                "--proxy-header: with TLS there can be one --upstream only, a tls: one"
            )
    return kinds
