"""
A bounded table of sessions in which no network crowds out the others.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from connpool.addresses.zones import isLinkLocal
from connpool.datagram.info import DatagramInfo

__all__ = ["SessionTable", "sourceOf"]

S = TypeVar("S")


def sourceOf(info: DatagramInfo) -> bytes:
    """
    @return: the asker's address, link and port, as bytes.
    """
    zone = info.zone.to_bytes(4, "big") if info.zone else b""
    return info.address + zone + info.port.to_bytes(2, "big")


def _networkOf(info: DatagramInfo) -> bytes:
    """
    The network that a share of the table belongs to: an IPv4 /24 or IPv6 /48; a
    link-local address is its own, for all of them are in one.
    """
    address = info.address
    if isLinkLocal(address):
        return address + info.zone.to_bytes(4, "big")
    return address[:3] if len(address) == 4 else address[:6]


class SessionTable(Generic[S]):
    """
    Sessions by key, those of one network together.  When the table is full, the
    network with the most sessions loses the one that it used longest ago.

    @param size: sessions that are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._networks: dict[bytes, OrderedDict[bytes, S]] = {}

    def __len__(self) -> int:
        return self._count

    def get(self, info: DatagramInfo, key: bytes) -> S | None:
        """
        @return: the session, which counts as used now.
        """
        network = self._networks.get(_networkOf(info))
        if network is None or key not in network:
            return None
        network.move_to_end(key)
        return network[key]

    def put(self, info: DatagramInfo, key: bytes, session: S) -> None:
        """
        Add a session, or replace it.
        """
        network = self._networks.setdefault(_networkOf(info), OrderedDict())
        self._count += key not in network
        network[key] = session
        network.move_to_end(key)
        if self._count > self._size:
            self._dropOne()

    def pop(self, info: DatagramInfo, key: bytes) -> None:
        """
        Forget a session.
        """
        name = _networkOf(info)
        network = self._networks.get(name)
        if network is not None and network.pop(key, None) is not None:
            self._count -= 1
            if not network:
                del self._networks[name]

    def _dropOne(self) -> None:
        # at most as many networks as there are sessions
        name, network = max(self._networks.items(), key=lambda item: len(item[1]))
        network.popitem(last=False)
        self._count -= 1
        if not network:
            del self._networks[name]
