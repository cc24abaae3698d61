"""
Text to an address, names included.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint, TCP6ClientEndpoint, clientFromString
from twisted.internet.interfaces import IReactorPluggableNameResolver, IStreamClientEndpoint
from zope.interface import directlyProvides, providedBy

from connpool.addresses.goaddress import (
    Found,
    TCPAddr,
    UDPAddr,
    isDomainName,
    parseLiteral,
    parseWanted,
)
from connpool.addresses.hostport import splitHostPort
from connpool.addresses.names import resolverOf
from connpool.addresses.servicenames import Services, systemServices
from connpool.addresses.zones import checkZone
from connpool.errors import AddressError

__all__ = ["clientEndpoint", "resolveTCPAddr", "resolveUDPAddr", "systemServices"]


class Resolver(Protocol):
    """
    The part of L{connpool.addresses.NameResolver} that is needed here.
    """

    def lookUp(self, host: str) -> Deferred[list[Found]]:
        """
        See L{connpool.addresses.NameResolver.lookUp}.
        """


def resolveTCPAddr(
    reactor: Any,
    network: str,
    address: str,
    resolver: Resolver | None = None,
    services: Services = systemServices,
) -> Deferred[TCPAddr]:
    """
    Go's C{net.ResolveTCPAddr}.

    @param network: C{tcp}, C{tcp4}, C{tcp6}, or C{""} for C{tcp}.
    @param address: C{host:port}; both may be empty, the port may be the name
        of a service.
    @param resolver: for names; the reactor's shared one unless given.
    @return: fires with the address, IPv4 first where a name has both; fails
        with L{AddressError} or L{LookupFailed}, whose texts are Go's.  It can
        be cancelled, and ends in any case.
    """
    return _resolve(reactor, "tcp", network, address, resolver, services)


def resolveUDPAddr(
    reactor: Any,
    network: str,
    address: str,
    resolver: Resolver | None = None,
    services: Services = systemServices,
) -> Deferred[UDPAddr]:
    """
    Go's C{net.ResolveUDPAddr}: as L{resolveTCPAddr}, with C{udp}, C{udp4},
    C{udp6}.
    """
    return _resolve(reactor, "udp", network, address, resolver, services)


def _resolve(
    reactor: Any,
    protocol: str,
    network: str,
    address: str,
    resolver: Resolver | None,
    services: Services,
) -> Deferred[Any]:
    try:
        wanted = parseWanted(protocol, network, address, services)
        literal = wanted.literal()
    except AddressError as e:
        return fail(e)
    if literal is not None:
        return succeed(literal)
    return (resolver or resolverOf(reactor)).lookUp(wanted.host).addCallback(wanted.choose)


def _numbersOnly(_name: str, _protocol: str) -> int | None:
    return None


class _WithResolver:
    """
    A reactor whose names are looked up by L{connpool.addresses.NameResolver}.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.nameResolver = resolverOf(reactor)
        directlyProvides(self, providedBy(reactor), IReactorPluggableNameResolver)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def clientEndpoint(reactor: Any, text: str, timeout: float = 30.0) -> IStreamClientEndpoint:
    """
    The endpoint that C{--to} names.

    @param text: C{HOST:PORT} (exactly one colon outside brackets; the port may be
        the name of a service), tried on every address of the name; or any client
        endpoint string, such as C{unix:/run/x.sock} or C{tls:example.com:443}.
    @param timeout: seconds for each attempt to connect to C{HOST:PORT}.
    @raise AddressError: for a text that is neither; one line.
    """
    try:
        # unix:http is an endpoint, not a machine with the name of a kind
        host, port = splitHostPort(text, services=_numbersOnly)
    except AddressError:
        kind = text.partition(":")[0]
        try:
            endpoint: IStreamClientEndpoint = clientFromString(reactor, text)
            return endpoint
        except Exception as e:
            if isinstance(e, ValueError) and "Unknown endpoint type" in str(e):
                host, port = splitHostPort(text)
                return _hostEndpoint(reactor, text, host, port, timeout)
            raise AddressError(f"{text!r} is not a {kind}: endpoint: {e}") from None
    return _hostEndpoint(reactor, text, host, port, timeout)


def _hostEndpoint(
    reactor: Any, text: str, host: str, port: int, timeout: float
) -> IStreamClientEndpoint:
    checkZone(host)
    if "%" in host:
        # a zone: HostnameEndpoint would lose it
        return TCP6ClientEndpoint(reactor, host, port, timeout=timeout)
    if parseLiteral(host) is None and not isDomainName(host):
        raise AddressError(
            f"{text!r}: {host!r} is not a host name or address; "
            "a name is made of letters, digits and hyphens"
        )
    return HostnameEndpoint(_WithResolver(reactor), host, port, timeout=timeout)
