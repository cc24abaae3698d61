"""
The blocks of a file that is being received: absent, arriving, complete or verified.

Theory of operation
===================
Bytes of a block arrive in order over one I{lane} (a connection), one block a
lane at a time; each is hashed as it arrives and may be checked in any order.  A
block goes

    absent -> arriving -> complete -> verified

and back to absent when its digest is wrong or its lane ends.  What does not
continue a block that is arriving is dropped without complaint: nothing is lost
by it, because the sender's C{COMMIT} is answered by the list of what is missing.
A verified block never changes, whatever arrives; only L{Blockmap.revoke} takes it back.

Pure: no store, no clock, no hashing.  Costs O(1) a piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from connpool.errors import ProtocolError, TooLarge
from connpool.transfer.digests import MAX_BLOCKS, blockCount

__all__ = ["DIGESTS_AHEAD", "Arrival", "Blockmap"]

#: Digests that are kept of blocks whose bytes have not begun to come.
DIGESTS_AHEAD = 1024


@attrs.define(eq=False)
class Arrival:
    """
    A block on its way.

    @ivar lane: the connection it comes by.
    @ivar block: its number.
    @ivar next: the offset in the file that comes next.
    @ivar end: the offset at which the block ends, as far as is known.
    @ivar hasher: computes its digest.
    @ivar busy: pieces being written or hashed.
    @ivar dropped: its bytes shall be forgotten once nothing is busy.
    """

    lane: Any
    block: int
    next: int
    end: int
    hasher: Any
    busy: int = 0
    dropped: bool = False


class Blockmap:
    """
    The blocks of one file.

    @ivar size: bytes of the file, L{None} until known.
    @ivar verified: digests of the blocks that are right: those of the partial, which alone
        adds and removes them.
    @ivar expected: digests the sender told for blocks that are not verified.
    @ivar computed: digests of complete blocks that the sender told none for.
    """

    def __init__(self, size: int | None, blockSize: int, verified: Mapping[int, bytes]) -> None:
        if blockSize & (blockSize - 1):
            raise ProtocolError(f"the block size {blockSize} is not a power of two")
        if size is not None and blockCount(size, blockSize) > MAX_BLOCKS:
            raise ProtocolError(f"a block size of {blockSize} makes more than {MAX_BLOCKS} blocks")
        self.size = size
        self.blockSize = blockSize
        self.verified = verified
        self.expected: dict[int, bytes] = {}
        self.computed: dict[int, bytes] = {}
        self.arriving: dict[int, Arrival] = {}
        #: the block that came last by each lane
        self.latest: dict[Any, Arrival] = {}

    @property
    def most(self) -> int:
        """
        The number of blocks that the file has, at the most.
        """
        return MAX_BLOCKS if self.size is None else blockCount(self.size, self.blockSize)

    def place(self, offset: int, lane: Any, newHasher: Any) -> tuple[Arrival | None, int]:
        """
        Find the block of the bytes at C{offset}.

        @return: the arrival they continue or begin, or L{None} to drop them;
            and the offset at which the block ends.
        @raise ProtocolError: outside the file.
        """
        block, within = divmod(offset, self.blockSize)
        end = self.span(block)[1]
        if offset >= end or block >= MAX_BLOCKS:
            if self.size is None:
                raise TooLarge(
                    f"{MAX_BLOCKS} blocks of {self.blockSize} bytes are all there can be"
                )
            raise ProtocolError(f"offset {offset} is not in a file of {self.size} bytes")
        arrival = self.arriving.get(block)
        if arrival is None:
            if within or not self.absent(block):
                return None, end
            arrival = self.arriving[block] = Arrival(lane, block, offset, end, newHasher())
            self.latest[lane] = arrival
        elif arrival.lane is not lane or arrival.next != offset or arrival.dropped:
            return None, end
        return arrival, end

    def absent(self, block: int) -> bool:
        """
        Tell whether nothing is there of C{block}.
        """
        return not (block in self.verified or block in self.computed or block in self.arriving)

    def span(self, block: int) -> tuple[int, int]:
        """
        The beginning and the end of a block in the file.
        """
        start = block * self.blockSize
        end = start + self.blockSize
        return start, end if self.size is None else min(end, self.size)

    def finish(self, arrival: Arrival, digest: bytes) -> bool | None:
        """
        Decide about a block that is complete and written.

        @return: whether it is right; L{None} while the sender has not told.
        """
        del self.arriving[arrival.block]
        expected = self.expected.pop(arrival.block, None)
        if expected is None:
            self.computed[arrival.block] = digest
            return None
        return expected == digest

    def tell(self, first: int, digests: Iterable[bytes]) -> tuple[dict[int, bytes], list[int]]:
        """
        Take digests that the sender tells.

        @return: the complete blocks that are right by them, with their digests, and the
            wrong ones.
        @raise ProtocolError: outside the file.
        """
        right: dict[int, bytes] = {}
        wrong = []
        for block, digest in enumerate(digests, first):
            if block >= MAX_BLOCKS or (self.size is not None and self.span(block)[0] >= self.size):
                raise ProtocolError(f"there is no block {block} in this file")
            if block in self.verified:
                continue
            computed = self.computed.pop(block, None)
            if computed is None:
                if block in self.arriving or len(self.expected) < DIGESTS_AHEAD:
                    self.expected[block] = digest
            elif computed == digest:
                right[block] = digest
            else:
                wrong.append(block)
        return right, wrong

    def revoke(self, block: int) -> bool:
        """
        Forget a block: the sender's file has something else there.

        @return: whether bytes of it are held and must be forgotten.
        """
        self.expected.pop(block, None)
        return self.computed.pop(block, None) is not None or block in self.verified

    def missing(self) -> list[int]:
        """
        The blocks that are not verified; the size must be known.
        """
        assert self.size is not None
        count = blockCount(self.size, self.blockSize)
        if len(self.verified) == count:
            return []
        return [block for block in range(count) if block not in self.verified]
