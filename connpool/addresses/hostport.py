"""
C{HOST:PORT} and C{[HOST]:PORT}.
"""

from __future__ import annotations

import os
import re
from typing import Any

from connpool.addresses.servicenames import Services, systemServices
from connpool.errors import AddressError

__all__ = ["joinHostPort", "parsePortNumber", "placeOf", "splitHostPort"]

#: RFC 6335 5.1, and the underscore and dot of a few old names.
_SERVICE = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9_.+-]{0,31}")


def parsePortNumber(
    text: str, protocol: str = "tcp", *, least: int = 1, services: Services = systemServices
) -> int:
    """
    @param text: a number, or the name of a service.
    @param protocol: C{tcp} or C{udp}, for names.
    @param least: the smallest number that is taken.
    @return: the port.
    @raise AddressError: for anything else.
    """
    if text.isascii() and text.isdigit():
        if len(text) <= 5 and least <= int(text) <= 65535:
            return int(text)
    elif _SERVICE.fullmatch(text):
        port = services(text, protocol)
        if port is not None:
            return port
        raise AddressError(
            f"no {protocol} service is named {text!r}; the port must be a number from {least} "
            "to 65535 or a name of /etc/services"
        )
    raise AddressError(f"the port must be a number from {least} to 65535 or the name of a service")


def splitHostPort(
    text: str, protocol: str = "tcp", services: Services = systemServices
) -> tuple[str, int]:
    """
    Split C{HOST:PORT}.

    Exactly one colon stands outside brackets; an IPv6 literal is written in
    brackets, with its zone if it has one: C{[fe80::1%eth0]:8640}.

    @param protocol: C{tcp} or C{udp}, where the port is the name of a service.
    @return: the host as written, without brackets, and the port, 1 to 65535.
    @raise AddressError: for anything else.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        raise AddressError(f"{text!r} has no port; write HOST:PORT")
    if host.startswith("["):
        if not host.endswith("]"):
            raise AddressError(f"{text!r}: missing ']'; write [ADDRESS]:PORT")
        host = host[1:-1]
        if "[" in host or "]" in host:
            raise AddressError(f"{text!r}: brackets inside brackets; write [ADDRESS]:PORT")
    elif ":" in host:
        raise AddressError(f"{text!r} has too many colons; write an IPv6 address as [ADDRESS]:PORT")
    elif "[" in host or "]" in host:
        raise AddressError(f"{text!r}: unexpected bracket; write HOST:PORT or [ADDRESS]:PORT")
    if not host:
        raise AddressError(f"{text!r} has no host; write HOST:PORT")
    try:
        return host, parsePortNumber(port, protocol, services=services)
    except AddressError as e:
        raise AddressError(f"{text!r}: {e}") from None


def joinHostPort(host: str, port: int) -> str:
    """
    The inverse of L{splitHostPort}.
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def placeOf(address: Any) -> str:
    """
    Show an address to people.

    @param address: of a listener or a connection, as Twisted has it.
    @return: C{HOST:PORT} or the path of a socket.
    """
    if hasattr(address, "port"):
        return joinHostPort(address.host, address.port)
    return os.fsdecode(getattr(address, "name", None) or "a socket of systemd")
