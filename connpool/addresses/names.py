"""
Looking names up, with an end in every case.

Twisted's resolver hands names to the reactor's thread pool, where ten slow
look-ups stall all work with files; it has no timeout, cannot be cancelled,
and never answers for a label of more than 63 characters.  This one has
threads of its own, at most L{THREADS}; what waits longer than the timeout,
for a thread or for the answer, fails.  A thread that the C library never
lets go keeps its slot until it does, but not the program: the threads are
daemons.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet import address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.addresses.goaddress import Found, isDomainName, parseLiteral
from connpool.errors import LookupFailed

__all__ = ["NameResolver", "resolverOf"]

#: Look-ups of one resolver at once.
THREADS = 8

#: Seconds a look-up may take.
TIMEOUT_SECONDS = 10.0


def getAddresses(host: str) -> list[Found]:
    """
    Ask the system; blocks.

    @raise OSError: if there is no answer.
    """
    found: dict[Found, None] = {}
    for *_, socketAddress in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
        ip = ip_address(str(socketAddress[0]).partition("%")[0])
        zone = ""
        if len(socketAddress) == 4 and socketAddress[3]:
            zone = socket.if_indextoname(int(socketAddress[3]))
        mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
        found[mapped or ip, zone] = None
    return list(found)


def explain(host: str, error: BaseException) -> LookupFailed:
    """
    Go's text for what the system said.
    """
    number = getattr(error, "errno", None)
    if number in {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)}:
        why = "no such host"
    elif number == socket.EAI_AGAIN:
        why = "server misbehaving"
    else:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return LookupFailed(f"lookup {host}: {why}")


class _Lookup:
    """
    One question.
    """

    def __init__(self, host: str, cancelled: Callable[[_Lookup], None]) -> None:
        self.host = host
        self.answer: Deferred[list[Found]] = Deferred(lambda _: cancelled(self))
        self.timer: Any = None
        self.over = False

    def end(self, result: list[Found] | Failure) -> None:
        """
        Answer, once.
        """
        if self.over:
            return
        self.over = True
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.answer.callback(result)


@implementer(IHostnameResolver)
class NameResolver:
    """
    Looks names up in threads of its own.

    It can also be a reactor's C{nameResolver}.

    @param reactor: measures time and takes calls from threads.
    @param timeout: seconds a look-up may take, waiting for a thread included.
    @param ask: runs in the thread: from a name to its addresses, or L{OSError}.
    """

    def __init__(
        self,
        reactor: Any,
        timeout: float = TIMEOUT_SECONDS,
        threads: int = THREADS,
        ask: Callable[[str], Sequence[Found]] = getAddresses,
    ) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._threads = threads
        self._ask = ask
        self._waiting: deque[_Lookup] = deque()
        self._busy = 0

    def lookUp(self, host: str) -> Deferred[list[Found]]:
        """
        @param host: a name; an address is its own answer.
        @return: its addresses in the system's order, at least one; fails with
            L{LookupFailed}, also after the timeout.  It can be cancelled.
        """
        literal = parseLiteral(host)
        lookup = _Lookup(host, self._cancelled)
        if literal is not None:
            lookup.end([literal])
        elif not isDomainName(host):
            lookup.end(Failure(LookupFailed(f"lookup {host}: no such host")))
        else:
            lookup.timer = self._reactor.callLater(self._timeout, self._late, lookup)
            self._waiting.append(lookup)
            self._begin()
        return lookup.answer

    def _begin(self) -> None:
        while self._waiting and self._busy < self._threads:
            lookup = self._waiting.popleft()
            if lookup.over:
                continue
            thread = threading.Thread(
                target=self._run, args=(lookup,), name=f"lookup {lookup.host}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as e:  # the system has no thread left
                lookup.end(Failure(explain(lookup.host, e)))
            else:
                self._busy += 1

    def _run(self, lookup: _Lookup) -> None:
        """
        In the thread.
        """
        result: list[Found] | Failure
        try:
            result = list(self._ask(lookup.host))
            if not result:
                raise LookupFailed(f"lookup {lookup.host}: no such host")
        except LookupFailed:
            result = Failure()
        except Exception as e:
            result = Failure(explain(lookup.host, e))
        self._reactor.callFromThread(self._ran, lookup, result)

    def _ran(self, lookup: _Lookup, result: list[Found] | Failure) -> None:
        self._busy -= 1
        lookup.end(result)
        self._begin()

    def _late(self, lookup: _Lookup) -> None:
        self._forget(lookup)
        lookup.end(Failure(LookupFailed(f"lookup {lookup.host}: i/o timeout")))

    def _cancelled(self, lookup: _Lookup) -> None:
        self._forget(lookup)
        lookup.end(Failure(CancelledError()))

    def _forget(self, lookup: _Lookup) -> None:
        if lookup in self._waiting:
            self._waiting.remove(lookup)

    # -- IHostnameResolver

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[Any]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        lookup = self.lookUp(hostName)
        resolution = _Resolution(hostName, lookup)
        resolutionReceiver.resolutionBegan(resolution)
        wanted = tuple(addressTypes or (address.IPv4Address, address.IPv6Address))

        def tell(found: list[Found]) -> None:
            for ip, zone in found:
                make: Any = address.IPv6Address
                if isinstance(ip, IPv4Address):
                    make = address.IPv4Address
                host = f"{ip}%{zone}" if zone else str(ip)
                if make in wanted:
                    resolutionReceiver.addressResolved(make(transportSemantics, host, portNumber))

        # no address is how this interface says failure
        lookup.addCallbacks(tell, lambda _: None)
        lookup.addCallback(lambda _: resolutionReceiver.resolutionComplete())
        return resolution


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str, lookup: Deferred[list[Found]]) -> None:
        self.name = name
        self._lookup = lookup

    def cancel(self) -> None:
        self._lookup.cancel()


_resolvers: WeakKeyDictionary[Any, NameResolver] = WeakKeyDictionary()


def resolverOf(reactor: Any) -> NameResolver:
    """
    The one resolver that everything running on C{reactor} shares.
    """
    if reactor not in _resolvers:
        _resolvers[reactor] = NameResolver(reactor)
    return _resolvers[reactor]
