"""
IPv6 zones: the link that a link-local address is on (RFC 4007).

A zone is text, the name or number of a link, until a socket needs its index.
Python's sockets drop a zone that is only text in the host of a pair, so what
goes to C{bind}, C{connect} or C{sendto} is made here.
"""

from __future__ import annotations

import errno
import socket

from connpool.errors import AddressError

__all__ = ["checkZone", "isLinkLocal", "linkNames", "socketAddress", "zoneIndex", "zoneName"]

#: The index of a link has 32 bits.
MAX_INDEX = (1 << 32) - 1


def isLinkLocal(packed: bytes) -> bool:
    """
    @param packed: an address of 4 or 16 bytes.
    @return: whether it is in fe80::/10, where an address means nothing without
        its link.
    """
    return len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80


def linkNames() -> list[str]:
    """
    @return: the links of this machine, loopback last.
    """
    try:
        names = [name for _, name in socket.if_nameindex()]
    except OSError:
        return []
    return sorted(names, key=lambda name: name == "lo")


def zoneIndex(zone: str) -> int:
    """
    @param zone: the name or number of a link.
    @return: its index.
    @raise OSError: C{ENODEV}, no such link.
    """
    try:
        return socket.if_nametoindex(zone)
    except (OSError, ValueError):
        if zone.isascii() and zone.isdigit() and len(zone) <= 10 and int(zone) <= MAX_INDEX:
            return int(zone)
        raise OSError(errno.ENODEV, "No such device") from None


def zoneName(zone: str) -> str:
    """
    @param zone: the name or number of a link.
    @return: its name, if it has one.
    """
    try:
        return socket.if_indextoname(int(zone))
    except (OSError, ValueError, OverflowError):
        return zone


def socketAddress(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """
    @param host: an address literal, with a zone or without.
    @return: the address as Python's sockets want it.
    @raise OSError: C{ENODEV}, its zone is no link of this machine.
    """
    bare, _, zone = host.partition("%")
    return (bare, port, 0, zoneIndex(zone)) if zone else (host, port)


def checkZone(host: str) -> None:
    """
    Refuse an address that cannot be used for want of its link.  Text that is no
    address is left alone.

    @raise AddressError: C{host} is link-local and has no zone, or its zone is no
        link of this machine; names the links to choose from.
    """
    bare, _, zone = host.partition("%")
    try:
        linkLocal = isLinkLocal(socket.inet_pton(socket.AF_INET6, bare))
    except (OSError, ValueError):
        return
    links = ", ".join(linkNames()) or "none"
    if zone:
        try:
            zoneIndex(zone)
        except OSError:
            raise AddressError(
                f"{host}: this machine has no link {zone!r}; its links: {links}"
            ) from None
    elif linkLocal:
        raise AddressError(
            f"{host} is link-local: say on which link, as in {bare}%LINK; "
            f"links of this machine: {links}"
        )
