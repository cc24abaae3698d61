"""
Text to an address, names included.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, succeed

from connpool.addresses.goaddress import (
    Found,
    TCPAddr,
    UDPAddr,
    parseWanted,
)
from connpool.addresses.names import resolverOf
from connpool.addresses.servicenames import Services, systemServices
from connpool.errors import AddressError

__all__ = ["resolveTCPAddr", "resolveUDPAddr", "systemServices"]


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
