"""
The facts about a datagram beside its bytes.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Iterable

__all__ = ["DatagramInfo"]

#: Linux numbers that Python 3.11's socket module lacks.
IP_PKTINFO = 8
SO_TIMESTAMPNS = 35

_MAPPED = b"\0" * 10 + b"\xff\xff"


class DatagramInfo:
    """
    The sender, destination and circumstances of one datagram.

    One instance is used again for every datagram of a port: copy it to keep it.

    @ivar address: the asker's address, packed: 4 or 16 bytes.  An IPv4-mapped
        IPv6 address is its IPv4 address.
    @ivar port: the asker's port.
    @ivar zone: index of the link on which a link-local asker is; otherwise 0.
    @ivar sockaddr: the peer that an answer goes to, in the form the port has it; differs
        from the asker behind a proxy.
    @ivar destination: the address that was asked, packed; L{None} where the
        port is bound to one address anyway.
    @ivar local: our own address that an answer leaves from, packed; differs from
        C{destination} for broadcast, and is L{None} for multicast.
    @ivar interface: index of the interface the datagram came in by; 0 if not known.
    @ivar ttl: TTL or hop limit on arrival; L{None} if not asked for.
    @ivar tos: TOS or traffic class on arrival, DSCP in the upper six bits and
        ECN in the lower two; L{None} if not asked for.
    @ivar kernelTime: when the kernel received it, nanoseconds since the epoch;
        L{None} if not asked for.
    """

    __slots__ = (
        "_host",
        "address",
        "destination",
        "interface",
        "kernelTime",
        "local",
        "port",
        "sockaddr",
        "tos",
        "ttl",
        "zone",
    )

    def __init__(self) -> None:
        self._host: str | None = None
        self.address = b""
        self.port = 0
        self.zone = 0
        self.sockaddr: object = None
        self.forget()

    def forget(self) -> None:
        """
        Drop the last datagram's circumstances, which do not hold for the next.
        """
        self.destination: bytes | None = None
        self.local: bytes | None = None
        self.interface = 0
        self.ttl: int | None = None
        self.tos: int | None = None
        self.kernelTime: int | None = None

    @property
    def unicast(self) -> bool:
        """
        True if the datagram was sent to one address of ours alone.
        """
        return self.destination == self.local

    @property
    def host(self) -> str:
        """
        The asker's address as text.
        """
        if self._host is None:
            family = socket.AF_INET if len(self.address) == 4 else socket.AF_INET6
            self._host = socket.inet_ntop(family, self.address)
        return self._host

    @property
    def receivedAt(self) -> int:
        """
        The kernel's time of receipt, or else now; nanoseconds since the epoch.
        """
        return time.time_ns() if self.kernelTime is None else self.kernelTime

    def asker(self, address: bytes, port: int, zone: int = 0) -> None:
        """
        Set the asker.
        """
        self.address = address[12:] if address[:12] == _MAPPED else address
        self.port = port
        self.zone = zone
        self._host = None

    def read(self, messages: Iterable[tuple[int, int, bytes]]) -> None:
        """
        Take in control messages, as C{(level, type, data)}.
        """
        for level, kind, data in messages:
            if level == socket.IPPROTO_IP:
                if kind == IP_PKTINFO:
                    self.interface = int.from_bytes(data[:4], sys.byteorder)
                    self.local = bytes(data[4:8])
                    self.destination = bytes(data[8:12])
                    if not any(data[:8]) and data[8] < 224:
                        # it waited in the socket before we asked for this: the
                        # kernel kept only the header.  Broadcasts to a subnet look
                        # the same, but no answer can leave from such an address
                        self.local = self.destination
                elif kind == socket.IP_TTL:
                    self.ttl = data[0]
                elif kind == socket.IP_TOS:
                    self.tos = data[0]
            elif level == socket.IPPROTO_IPV6:
                if kind == socket.IPV6_PKTINFO:
                    self.destination = bytes(data[:16])
                    self.interface = int.from_bytes(data[16:20], sys.byteorder)
                    many = data[0] == 0xFF or (data[:12] == _MAPPED and data[12] >= 224)
                    self.local = None if many else self.destination
                elif kind == socket.IPV6_HOPLIMIT:
                    self.ttl = data[0]
                elif kind == socket.IPV6_TCLASS:
                    self.tos = data[0]
            elif level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = struct.unpack("qq", data[:16])
                self.kernelTime = seconds * 1_000_000_000 + nanoseconds
