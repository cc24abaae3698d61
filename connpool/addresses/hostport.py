"""
C{HOST:PORT} and C{[HOST]:PORT}.
"""

from __future__ import annotations

import os
from typing import Any

from connpool.errors import AddressError

__all__ = ["joinHostPort", "placeOf", "splitHostPort"]


def splitHostPort(text: str) -> tuple[str, int]:
    """
    Split C{HOST:PORT}.

    Exactly one colon stands outside brackets; an IPv6 literal is written in
    brackets, with its zone if it has one: C{[fe80::1%eth0]:8640}.

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
    if not (port.isascii() and port.isdigit()) or not 1 <= int(port[:6]) <= 65535 or len(port) > 5:
        raise AddressError(f"{text!r}: the port must be a number from 1 to 65535")
    return host, int(port)


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
