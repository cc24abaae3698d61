"""
Echo (RFC 862): every datagram comes back as it was.
"""

from __future__ import annotations

import os
import struct
from collections import Counter

from zope.interface import implementer

from connpool.datagram.info import DatagramInfo
from connpool.datagram.wire import Reply, Wire
from connpool.interfaces import IReflector

__all__ = ["Echo", "EchoWire"]


@implementer(IReflector)
class Echo:
    excess = 0
    wants: frozenset[str] = frozenset()
    symmetricPorts: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()

    def reflects(self, firstBytes: bytes) -> bool:
        return True

    def respond(self, data: bytes, info: DatagramInfo) -> bytes | None:
        return data


class EchoWire(Wire):
    """
    The prober's side: an 8-byte token of the run, a 4-byte number, padding.
    """

    minimum = 12

    def __init__(self, size: int, key: bytes | None = None) -> None:
        super().__init__(size, key)
        self._token = os.urandom(8)
        self._padding = bytes(i & 0xFF for i in range(size - 12))

    def request(self, number: int) -> bytes:
        return self._token + struct.pack("!I", number & 0xFFFFFFFF) + self._padding

    def reply(self, data: bytes) -> Reply | None:
        if data[:8] != self._token or data[12:] != self._padding:
            return None
        return Reply(int.from_bytes(data[8:12], "big"))
