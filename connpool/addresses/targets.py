"""
The one address of a name that is measured.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.internet.defer import Deferred

from connpool.addresses.goaddress import Found
from connpool.addresses.hostport import splitHostPort
from connpool.addresses.names import resolverOf
from connpool.addresses.resolve import Resolver
from connpool.addresses.servicenames import Services, systemServices
from connpool.addresses.zones import checkZone, isLinkLocal, socketAddress
from connpool.errors import LookupFailed

__all__ = ["hasRoute", "resolveTarget"]


def hasRoute(host: str, port: int) -> bool:
    """
    Ask the system for the way to an address, without sending anything.

    @param host: an address literal.
    @return: whether there is one, with an address of ours to send from.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect(socketAddress(host, port))
    except OSError:
        return False
    return True


def resolveTarget(
    reactor: Any,
    protocol: str,
    text: str,
    *,
    family: int = 0,
    zone: str = "",
    resolver: Resolver | None = None,
    services: Services = systemServices,
    routed: Callable[[str, int], bool] = hasRoute,
) -> Deferred[tuple[str, int]]:
    """
    Look C{HOST:PORT} up.

    A name may have addresses of a family that this machine has not: of those to
    which there is a route the IPv4 one is taken first, as Go does; if there is a
    route to none, the first one of all.

    @param protocol: C{tcp} or C{udp}.
    @param text: the host is a name or a literal, the port a number or the name of
        a service.
    @param family: 4, 6, or 0 for both.
    @param zone: the link of link-local addresses that name none.
    @return: fires with the address literal, zone included, and the port; fails
        with L{AddressError<connpool.errors.AddressError>} or
        L{LookupFailed<connpool.errors.LookupFailed>}.
    @raise AddressError: C{text} is not C{HOST:PORT}.
    """
    host, port = splitHostPort(text, protocol, services)

    def choose(found: Sequence[Found]) -> tuple[str, int]:
        fitting = sorted(
            (each for each in found if family in {0, each[0].version}),
            key=lambda each: each[0].version,
        )
        if not fitting:
            raise LookupFailed(f"{host} has no IPv{family} address")
        hosts = [_withZone(ip, its or zone) for ip, its in fitting]
        chosen = next((each for each in hosts if routed(each, port)), hosts[0])
        checkZone(chosen)
        return chosen, port

    return (resolver or resolverOf(reactor)).lookUp(host).addCallback(choose)


def _withZone(ip: IPv4Address | IPv6Address, zone: str) -> str:
    return f"{ip}%{zone}" if zone and isLinkLocal(ip.packed) else str(ip)
