"""
Marks that the prober's datagrams carry: DSCP, TTL, and the link they leave by.
"""

from __future__ import annotations

import errno
import socket

import attrs

from connpool.addresses.zones import linkNames
from connpool.errors import AddressError

__all__ = ["Marking", "parseDSCP"]

#: Code points by name: RFC 2474, 2597, 3246, 5865, 8622.
CODE_POINTS = {
    **{f"CS{n}": n << 3 for n in range(8)},
    **{f"AF{n}{drop}": n << 3 | drop << 1 for n in range(1, 5) for drop in range(1, 4)},
    "BE": 0,
    "LE": 1,
    "VA": 44,
    "EF": 46,
}


def parseDSCP(text: str) -> int:
    """
    @param text: a name such as C{EF} or C{AF41}, or a number.
    @return: the code point, 0 to 63.
    @raise AddressError: for anything else.
    """
    found = CODE_POINTS.get(text.upper())
    if found is None and text.isascii() and text.isdigit() and len(text) <= 2:
        found = int(text)
    if found is None or found > 63:
        raise AddressError(
            f"{text!r} is not a DSCP; write a number from 0 to 63 or a name such as EF or AF41"
        )
    return found


@attrs.frozen
class Marking:
    """
    @ivar dscp: 0 to 63; L{None} for the system's default.
    @ivar ttl: TTL or hop limit, 1 to 255; L{None} for the system's default.
    @ivar interface: name of the link that datagrams leave and come by; empty for
        the one that routing chooses.
    """

    dscp: int | None = None
    ttl: int | None = None
    interface: str = ""

    def apply(self, sock: socket.socket) -> None:
        """
        Set up a socket of either family.

        @raise AddressError: there is no such link, or this process may not choose.
        """
        six = sock.family == socket.AF_INET6
        level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
        if self.dscp is not None:
            option = socket.IPV6_TCLASS if six else socket.IP_TOS
            sock.setsockopt(level, option, self.dscp << 2)
        if self.ttl is not None:
            option = socket.IPV6_UNICAST_HOPS if six else socket.IP_TTL
            sock.setsockopt(level, option, self.ttl)
        if self.interface:
            # Linux alone has it
            bindToDevice = getattr(socket, "SO_BINDTODEVICE", None)
            if bindToDevice is None:
                raise AddressError(
                    f"interface {self.interface!r}: this system cannot choose a link; name a "
                    "source address"
                )
            name = self.interface.encode(errors="surrogateescape") + b"\0"
            try:
                sock.setsockopt(socket.SOL_SOCKET, bindToDevice, name)
            except OSError as e:
                if e.errno in {errno.ENODEV, errno.EINVAL}:
                    links = ", ".join(linkNames())
                    why = f"this machine has no such link; its links: {links}"
                else:
                    why = f"{e.strerror}; this system or user cannot choose a link"
                raise AddressError(f"interface {self.interface!r}: {why}") from None
