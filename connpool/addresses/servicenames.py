"""
Names of services, which stand for ports.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

__all__ = ["Services", "systemServices"]

#: Service name and protocol (C{tcp} or C{udp}) to port, or L{None}.
Services = Callable[[str, str], int | None]


def systemServices(name: str, protocol: str) -> int | None:
    """
    @return: the port of a service, from this machine's list (C{/etc/services}).
    """
    try:
        return socket.getservbyname(name, protocol)
    except (OSError, UnicodeError, ValueError):
        return None
