"""
The parts of a file: their size, and when each may leave and be forgotten here.

Pure: no bytes, no engine.  A part I{leaves} when all its bytes are here, whatever is known of
their digests; it is I{settled} when the engine has it and its blocks are verified, and then it
may go into the log; its room here is given back when it is there.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import islice
from operator import itemgetter

import attrs

from connpool.transfer.stores.ranges import Ranges

__all__ = ["LEAVING", "MAX_PARTS", "PART_BYTES", "Leaving", "PartPlan", "partBytes"]

#: The least that a part has, but for the last one.
PART_BYTES = 8 << 20
#: Times so large are the parts of a file of unknown size: 625 GiB in all.
UNKNOWN_FACTOR = 8
#: Parts of one upload, as S3 has it.
MAX_PARTS = 10_000
#: Parts of one upload that are on their way at once.
LEAVING = 4


def partBytes(size: int | None, blockSize: int, least: int = PART_BYTES) -> int:
    """
    Return the bytes of a part, a multiple of the block's.
    """
    wanted = UNKNOWN_FACTOR * least if size is None else max(least, -(-size // MAX_PARTS))
    return -(-wanted // blockSize) * blockSize


@attrs.define
class Leaving:
    """
    A part that is here.

    @ivar slot: the number of its room in the spool.
    @ivar state: C{filling}, C{leaving} or C{there}.
    @ivar version: grows when bytes of it are discarded: what was sent before is of no use.
    """

    slot: int
    state: str = "filling"
    version: int = 0
    etag: str = ""
    crc: int = 0


class PartPlan:
    """
    The parts of one upload.

    @ivar size: of the file; L{None} until it is known.
    @ivar bytes: of a part.
    @ivar here: number to the part, of those that are in the spool.
    @ivar logged: numbers of those that the log has.
    """

    def __init__(self, size: int | None, blockSize: int, partSize: int) -> None:
        self.size = size
        self.bytes = partSize
        self._blockSize = blockSize
        self.here: dict[int, Leaving] = {}
        self.logged: set[int] = set()

    def span(self, number: int) -> tuple[int, int]:
        """
        Return the beginning and the end of a part, which are numbered from 1.
        """
        end = number * self.bytes
        return end - self.bytes, end if self.size is None else min(end, self.size)

    def length(self, number: int) -> int:
        start, end = self.span(number)
        return end - start

    def blocks(self, number: int) -> range:
        start, end = self.span(number)
        return range(start // self._blockSize, -(-end // self._blockSize))

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """
        Yield the number of each part between C{start} and C{end} and what is of it.
        """
        for number in range(start // self.bytes + 1, -(-end // self.bytes) + 1):
            yield number, max(start, (number - 1) * self.bytes), min(end, number * self.bytes)

    @property
    def leaving(self) -> int:
        return sum(part.state == "leaving" for part in self.here.values())

    def isCrowded(self, held: Ranges, *, busy: bool) -> bool:
        """
        Tell whether so many whole parts wait for the engine that no new one shall be begun: a
        receiver that dies costs no more than these and those that are being filled.

        @param busy: whether the log is being written.
        """
        whole = sum(held.covers(*self.span(number)) for number in self.here)
        return (busy or self.leaving > 0) and whole >= LEAVING

    def departing(self, held: Ranges) -> list[int]:
        """
        Return the parts that may leave now; they count as leaving from now on.
        """
        whole = (
            number
            for number, part in sorted(self.here.items(), key=itemgetter(0))
            if part.state == "filling" and held.covers(*self.span(number))
        )
        ready = list(islice(whole, LEAVING - self.leaving))
        for number in ready:
            self.here[number].state = "leaving"
        return ready

    def settled(self, verified: Container[int] | None) -> list[int]:
        """
        Return the parts that may go into the log.

        @param verified: the blocks that are; L{None} if nobody asks.
        """
        return [
            number
            for number, part in sorted(self.here.items())
            if part.state == "there"
            and (verified is None or all(block in verified for block in self.blocks(number)))
        ]

    def missing(self) -> list[int]:
        """
        Return the parts that are not in the log, of a file whose size is known.
        """
        assert self.size is not None
        return [number for number, *_ in self.pieces(0, self.size) if number not in self.logged]

    def discard(self, start: int, end: int) -> list[int]:
        """
        Note that bytes come again.

        @return: the parts that are not here any more, and have to come as a whole.
        """
        lost = []
        for number, *_ in self.pieces(start, end):
            part = self.here.get(number)
            if part is not None:
                part.state, part.version = "filling", part.version + 1
            elif number in self.logged:
                lost.append(number)
            self.logged.discard(number)
        return lost
