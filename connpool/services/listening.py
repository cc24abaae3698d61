"""
A listener that starts or says in one line why not, and stops without losing
what runs.

Twisted's own C{StreamServerEndpointService} logs a port in use and lives on
(Twisted #4731), cannot be restarted (#5071), hides its port, and leaves open
connections behind when it stops.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.addresses import Listen, parseListen, placeOf
from connpool.addresses.descriptions import complaint
from connpool.addresses.inherited import checkInherited
from connpool.addresses.zones import checkZone
from connpool.errors import AddressError, StartFailed
from connpool.interfaces import IDrainable, IReloadable, IStatsSource
from connpool.services.access import Access, Gate, ListenerStats, Words
from connpool.services.startfailure import failStart

__all__ = ["ListeningService", "ShownSource", "describeListenError", "placeOf", "readListen"]

#: Seconds that a store may take before late connections are aborted.
SETTLE_SECONDS = 5.0
#: Twisted's endpoints that are not for a service, and why.
_UNFIT = {
    "haproxy": "believes whoever sends a header; write proxied:ENDPOINT:trusted=ADDRESSES",
    "stdio": "has one client and no port to close; write unix:PATH",
}


def readListen(text: str | Listen, *, datagrams: bool = False, streams: bool = True) -> Listen:
    """
    Read an endpoint description, as C{--listen} takes it.

    @param datagrams: whether C{udp:} is taken.
    @param streams: whether anything else is.
    @raise AddressError: for a text that is no such description.
    """
    if isinstance(text, Listen):
        return text
    listen = parseListen(text)
    if listen.kind in _UNFIT:
        raise AddressError(f"{text!r}: {listen.kind}: {_UNFIT[listen.kind]}")
    if listen.datagram and not datagrams:
        raise AddressError(f"{text!r}: this does not speak UDP; use tcp:")
    if not listen.datagram:
        _tryEndpoint(listen)
        if not streams:
            raise AddressError(f"{text!r}: this service speaks UDP; use udp:")
    return listen


def _tryEndpoint(listen: Listen) -> None:
    """
    Have the endpoint's own parser look at its description.  No reactor yet: importing
    it here would defeat C{--reactor}.
    """
    text = listen.description
    try:
        serverFromString(None, text)
    except AttributeError:
        pass  # a parser that wants a reactor; the start asks it again
    except Exception as e:
        if isinstance(e, LookupError) and listen.kind == "systemd":
            return  # systemd passes sockets at the start, not to compose --check
        raise AddressError(f"{text!r}: {complaint(e)}") from None


def describeListenError(description: str, error: BaseException | None) -> str:
    """
    Say why nothing can listen on C{description}, in one line with the remedy.
    """
    if isinstance(error, AddressError):
        return str(error)
    cause = error.socketError if isinstance(error, CannotListenError) else error
    number = getattr(cause, "errno", None)
    why = os.strerror(number) if isinstance(number, int) else str(cause).partition("\n")[0]
    remedies = {
        errno.EADDRINUSE: "another program has this port; stop it or choose another port",
        errno.EACCES: "ports below 1024 and that path need more rights; choose another",
        errno.EADDRNOTAVAIL: "this machine has no such address; see interface=",
    }
    remedy = f"; {remedies[number]}" if number in remedies else ""
    # the reason first: a daemonizing twistd shows 100 bytes of it
    return f"{why}: {description}{remedy}"


@implementer(IStatsSource)
class ShownSource(Service):
    """
    Shows the numbers of something that is no service where others look for
    numbers: among the services.
    """

    def __init__(self, source: IStatsSource) -> None:
        self.kind = source.kind
        self.stats = source.stats


@implementer(IReloadable, IStatsSource)
class ListeningService(MultiService):
    """
    Listens on several endpoints for one factory.

    Everything is bound in C{privilegedStartService}; if one endpoint cannot
    be, none stays open.  It can be started again after a stop.

    @param reactor: also the clock of the drain.
    @param listens: what to listen on.
    @param factory: builds the protocols; those that provide L{IDrainableProtocol} are
        asked to finish when the service stops.
    @param access: who may connect.
    @param drainTimeout: seconds that a stop waits for connections to end
        before it aborts them.
    @param answers: said to refused peers; see L{Gate}.
    @param settle: called before connections are aborted that did not end; they
        are as soon as its Deferred fires, which never fails, or after L{SETTLE_SECONDS}.
    """

    kind = "listener"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        listens: Sequence[Listen | str],
        factory: Any,
        *,
        access: Access | None = None,
        drainTimeout: float = 60.0,
        name: str = "listener",
        answers: Mapping[str, Words] | None = None,
        settle: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        super().__init__()
        self._settle = settle
        self.name = name
        self.drainTimeout = drainTimeout
        self.gate = Gate(factory, access or Access(), name, answers, clock=reactor)
        self._reactor = reactor
        self._listens = [readListen(each) for each in listens]
        self._ports: list[IListeningPort] = []
        self._endpoints: list[Any] = []

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        if not self._ports:
            # twist starts services without the privileged step
            self._listen()
        super().startService()

    def _listen(self) -> None:
        ports: list[IListeningPort] = []
        self._endpoints = []
        for listen in self._listens:
            results: list[Any] = []
            try:
                checkZone(listen.keywords.get("interface", ""))
                if listen.kind == "systemd":
                    checkInherited(listen)
                endpoint = serverFromString(self._reactor, listen.description)
                endpoint.listen(self.gate).addBoth(results.append)
            except Exception as e:
                results.append(Failure(e))
            if not results or isinstance(results[0], Failure):
                for port in ports:
                    maybeDeferred(port.stopListening)
                if not results:
                    failStart(f"{self.name}: {listen.description} did not open at once")
                failStart(
                    f"{self.name}: {describeListenError(listen.description, results[0].value)}"
                )
            ports.append(results[0])
            self._endpoints.append(endpoint)
        self._ports = ports
        for old in list(self):
            old.disownServiceParent()
        for layer in self._layers():
            if IStatsSource.providedBy(layer):
                ShownSource(layer).setServiceParent(self)

    @property
    def listens(self) -> bool:
        """
        True while something is open.
        """
        return bool(self._ports)

    def getHosts(self) -> list[IAddress]:
        """
        @return: the address of each endpoint, in the order given.
        @raise StartFailed: while the service does not listen.
        """
        if not self._ports:
            raise StartFailed(f"{self.name} does not listen; start the service first")
        return [port.getHost() for port in self._ports]

    def getHost(self) -> IAddress:
        """
        @return: the address of the first endpoint.
        """
        return self.getHosts()[0]

    def _layers(self) -> Iterator[Any]:
        """
        The endpoints, and the ones inside: proxied: and secured: wrap one another.
        """
        layers = list(self._endpoints)
        while layers:
            endpoint = layers.pop()
            layers += filter(None, [getattr(endpoint, "endpoint", None)])
            yield endpoint

    def reload(self) -> None:
        mistakes = []
        for endpoint in self._layers():
            certificate = getattr(endpoint, "certificate", None)
            if IReloadable.providedBy(certificate):
                try:
                    certificate.reload()
                except AddressError as e:
                    mistakes.append(e)
        if mistakes:
            raise mistakes[0]

    def stopService(self) -> Deferred[None]:
        super().stopService()
        ports, self._ports = self._ports, []
        closing = [maybeDeferred(port.stopListening) for port in ports]
        done = DeferredList(closing, consumeErrors=True)
        return done.addCallback(lambda _: self._drain())

    def _drain(self) -> Deferred[None]:
        gate: IDrainable = self.gate
        end = gate.drain()
        if self.drainTimeout <= 0:
            gate.abort()
            return end
        late = self._reactor.callLater(self.drainTimeout, self._late)

        def stopClock(_: None) -> None:
            if late.active():
                late.cancel()

        return end.addBoth(stopClock)

    def _late(self) -> None:
        late = self._reactor.callLater(min(self.drainTimeout, SETTLE_SECONDS), self._abort)

        def settled(_: None) -> None:
            if late.active():
                late.cancel()
                self._abort()

        self._settle().addCallback(settled)

    def _abort(self) -> None:
        if not self.gate.stats().connections:
            return
        self._log.warn(
            "{name}: {n} connections did not end within {seconds} s; aborting them",
            name=self.name,
            n=self.gate.stats().connections,
            seconds=self.drainTimeout,
        )
        self.gate.abort()

    def stats(self) -> ListenerStats:
        return self.gate.stats()
