"""
The names under which a server is asked over HTTP.

A web page that somebody visits can point a name of its own at our address (DNS rebinding),
and is then of the same origin as we are; but it cannot choose another C{Host} than that name.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from ipaddress import ip_address

from connpool.addresses.goaddress import isDomainName

__all__ = ["hostOf", "isHost", "isOwnHost", "withOwnHosts"]

_PORT = re.compile(r"(:[0-9]*)?")


def hostOf(header: str) -> str:
    """
    The host of a C{Host} header (RFC 9110 section 7.2), lower case, without
    port, brackets and final dot; empty for what is none.
    """
    host, bracket, port = header.strip().lower().partition("]")
    if bracket:
        return host[1:] if host.startswith("[") and _PORT.fullmatch(port) else ""
    host, colon, port = host.partition(":")
    return host.removesuffix(".") if _PORT.fullmatch(colon + port) else ""


def isHost(text: str) -> bool:
    """
    Tell whether clients could ask for a server by this name or address.
    """
    return isDomainName(text) or _isAddress(text)


def withOwnHosts(names: Iterable[str]) -> frozenset[str]:
    """
    @param names: that an operator gives.
    @return: these, C{localhost} and this machine's own names, in lower case.
    """
    own = socket.gethostname().lower()
    short = own.partition(".")[0]
    given = {name.lower().removesuffix(".") for name in names}
    # the last is what multicast DNS makes of it (RFC 6762)
    ours = {own, short, f"{short}.local"} if short else set()
    return frozenset({"localhost", *ours, *given} - {""})


def isOwnHost(host: str, names: frozenset[str]) -> bool:
    """
    Tell whether C{host}, as L{hostOf} gives it, is an address or one of C{names}.
    """
    return host in names or _isAddress(host)


def _isAddress(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
