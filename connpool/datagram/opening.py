"""
From a C{udp:} description to open ports; Twisted has no endpoints for datagrams.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TypeVar

from twisted.internet.error import CannotListenError, InvalidAddressError

from connpool.addresses import Listen
from connpool.addresses.inherited import inheritedSocket
from connpool.addresses.zones import checkZone
from connpool.datagram.port import SturdyPort
from connpool.errors import AddressError

__all__ = ["openPorts"]

EVERYWHERE = ["0.0.0.0", "::"]  # noqa: S104 - a description without interface= asks for these

P = TypeVar("P", bound=SturdyPort)


def openPorts(listen: Listen, make: Callable[..., P]) -> list[P]:
    """
    Open the ports of a C{udp:} description.

    Without C{interface=} that is every address of the machine, which takes two
    sockets of the same port, one for IPv4 and one for IPv6 (where there is IPv6).

    @param make: builds a port that does not listen yet, from the keywords
        C{port}, C{interface}, C{reusePort} or C{adopt}, C{port} and C{interface}.
    @return: ports that listen.  If one fails, none stays open.
    @raise CannotListenError: the system refused.
    @raise AddressError: the interface is not an address, or systemd passed no
        such socket.
    """
    if listen.arguments[0] == "systemd":
        adopted = _inherited(listen)
        host, port = adopted.getsockname()[:2]
        ports = [make(adopt=adopted, port=port, interface=host)]
        ports[0].startListening()
        return ports
    port = int(listen.arguments[0])
    reuse = listen.keywords.get("reusePort") == "yes"
    interface = listen.keywords.get("interface", "")
    try:
        checkZone(interface)
    except AddressError as e:
        raise AddressError(f"{listen.description!r}: {e}") from None
    opened: list[P] = []
    for address in [interface] if interface else EVERYWHERE:
        new = make(port=port, interface=address, reusePort=reuse)
        try:
            new.startListening()
        except InvalidAddressError:
            raise AddressError(
                f"{listen.description!r}: {address!r} is not an address; write for example "
                r"interface=127.0.0.1 or interface=\:\:1"
            ) from None
        except CannotListenError as e:
            if opened and e.socketError.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                break  # a machine without IPv6
            for other in opened:
                other.stopListening()
            raise
        opened.append(new)
        port = new.getHost().port
    return opened


def _inherited(listen: Listen) -> socket.socket:
    """
    The datagram socket that systemd passed under a name or index.
    """
    # a copy, so that a stopped service can start again
    sock = inheritedSocket(listen)
    if sock.type != socket.SOCK_DGRAM or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        sock.close()
        raise AddressError(f"{listen.description!r}: not a UDP socket; use ListenDatagram=")
    return sock
