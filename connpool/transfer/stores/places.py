"""
The offsets of the receipts in one file.

Theory of operation
===================
A place is 64 bits: 32 that say whose it may be, and the offset in the file.
Those that came of late are in a dictionary, the others in a sorted array, 8
bytes each, which can be kept in a file and read back as it is.  Two keys may
have the same 32 bits, so a place is a hint: what lies there decides.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from zlib import crc32

__all__ = ["Places"]

#: Places that are worth sorting in.
MANY = 1 << 15

_WHOSE, _OFFSET = 0xFFFFFFFF << 32, 0xFFFFFFFF


class Places:
    """
    @ivar known: bytes of the file whose receipts were noted.
    """

    __slots__ = ("_recent", "_sorted", "known")

    def __init__(self) -> None:
        self.known = 0
        self._sorted = array("Q")
        self._recent: dict[bytes, int] = {}

    @property
    def many(self) -> bool:
        """
        Tell whether it is time for L{sort}: for a file that grows, all of them
        together take time in proportion to it.
        """
        return len(self._recent) >= max(MANY, len(self._sorted) >> 2)

    @property
    def recent(self) -> int:
        """
        The number of those that have not been sorted in.
        """
        return len(self._recent)

    def note(self, identity: bytes, offset: int) -> None:
        """
        @param identity: at least 4 bytes that look random.
        """
        self._recent[identity] = int.from_bytes(identity[:4], "big") << 32 | offset & _OFFSET

    def of(self, identity: bytes) -> Sequence[int]:
        """
        @return: offsets at which its receipt may lie.
        """
        place = self._recent.get(identity)
        if place is None and not self._sorted:
            return ()
        found = [] if place is None else [place & _OFFSET]
        if self._sorted:
            whose = int.from_bytes(identity[:4], "big") << 32
            at = bisect_left(self._sorted, whose)
            while at < len(self._sorted) and self._sorted[at] & _WHOSE == whose:
                found.append(self._sorted[at] & _OFFSET)
                at += 1
        return found

    def sort(self) -> bytes:
        """
        Sort in what came of late.

        @return: what L{restore} takes.
        """
        self._sorted = array("Q", sorted([*self._sorted, *self._recent.values()]))
        self._recent = {}
        data = array("Q", [self.known, *self._sorted]).tobytes()
        return array("Q", [crc32(data)]).tobytes() + data

    def restore(self, kept: bytes, size: int) -> bool:
        """
        @param kept: anything.
        @param size: bytes of the file.
        @return: whether it is about this file.
        """
        if len(kept) % 8 or len(kept) < 16:
            return False
        places = array("Q", kept)
        if places[0] != crc32(kept[8:]) or places[1] > size:
            return False
        self.known = places[1]
        self._sorted = places[2:]
        return True
