"""
One large file on its way out: what is still to be sent, and by whom.

Theory of operation
===================
What the receiver lacks is cut into I{extents}, ranges of whole blocks of about
16 MiB.  Each connection takes the next extent when it is ready for one, so a slow
connection never delays the end by more than its own extent.  Blocks that must
be sent again (a wrong digest, a lost connection, something else in the source)
become extents of their own.

Blocks that were held from an earlier attempt are compared with the source
meanwhile (L{Extents.compared}); those that differ are revoked.  C{COMMIT} is
due when nothing is left to send, in flight or to compare.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import attrs

from connpool.errors import DigestMismatch, ProtocolError
from connpool.transfer.digests import Digest, blockCount, rootOf
from connpool.transfer.holes import MAX_HOLE_BLOCKS, zeroDigest

__all__ = ["EXTENT_BYTES", "MAX_REPAIRS", "Extent", "Extents"]

#: An extent, at least one block.
EXTENT_BYTES = 16 << 20
#: How often one block may be asked for again before we say that the path
#: damages it for good.
MAX_REPAIRS = 16


@attrs.define(eq=False)
class Extent:
    """
    @ivar start: offset in the file.
    @ivar end: where it ends; both at block boundaries or the file's end.
    @ivar primary: must go over the session's first connection.
    @ivar hole: of whole blocks that are holes.
    """

    start: int
    end: int
    primary: bool = False
    hole: bool = False


class Extents:
    """
    @param size: bytes of the file.
    @param held: blocks the receiver says it holds, with their digests.
    @param holes: runs of whole blocks that are holes, and are told so: the first of each, and
        the one after its last.
    @ivar digests: of all blocks that were read or compared so far.
    """

    def __init__(
        self,
        size: int,
        blockSize: int,
        digest: Digest,
        held: Mapping[int, bytes],
        extentBytes: int = EXTENT_BYTES,
        holes: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.size = size
        self.blockSize = blockSize
        self._digest = digest
        self._count = blockCount(size, blockSize)
        if held and max(held) >= self._count:
            raise ProtocolError("the receiver holds blocks beyond the end of the file")
        self.digests: dict[int, bytes] = {}
        self.unchecked: dict[int, bytes] = dict(held)
        self._holes: set[int] = set()
        for first, last in holes:
            self._holes.update(range(first, last))
        if self._holes:
            zero = zeroDigest(digest, blockSize)
            self.digests.update(dict.fromkeys(self._holes, zero))
            for block in [b for b, d in held.items() if d == zero and b in self._holes]:
                del self.unchecked[block]
        self._extentBytes = max(1, extentBytes // blockSize) * blockSize
        self._todo: deque[Extent] = deque()
        self._inFlight = 0
        self._repairs: dict[int, int] = {}
        self._queue((b for b in range(self._count) if b not in held), primary=False)

    def take(self, primary: bool) -> Extent | None:
        """
        Take the next extent for a connection.
        """
        todo = self._todo
        if not todo:
            return None
        if primary or not todo[0].primary:
            self._inFlight += 1
            return todo.popleft()
        for extent in todo:
            if not extent.primary:
                todo.remove(extent)
                self._inFlight += 1
                return extent
        return None

    @property
    def waiting(self) -> bool:
        """
        Tell whether there is anything to take.
        """
        return bool(self._todo)

    def sent(self, extent: Extent) -> None:
        """
        Note that an extent is written to a connection.
        """
        self._inFlight -= 1

    def lost(self, extent: Extent) -> None:
        """
        Send an extent again by another connection: its own broke.
        """
        self._inFlight -= 1
        self._todo.appendleft(extent)

    def repair(self, blocks: Iterable[int]) -> None:
        """
        Send blocks again that the receiver asks for.

        @raise DigestMismatch: one was asked for too often.
        """
        blocks = list(blocks)
        for block in blocks:
            if block >= self._count:
                raise ProtocolError(f"the receiver asks for block {block} of {self._count}")
            count = self._repairs[block] = self._repairs.get(block, 0) + 1
            if count > MAX_REPAIRS:
                raise DigestMismatch(
                    f"block {block} arrived damaged {MAX_REPAIRS} times; "
                    "something between the two sides changes the bytes"
                )
            # the receiver lost what it held: nothing to compare with any more
            self.unchecked.pop(block, None)
        self._queue(blocks, primary=False)

    def compared(self, block: int, digest: bytes) -> bool:
        """
        Compare a held block with the source.

        @return: whether it must be revoked, and was queued.
        """
        held = self.unchecked.pop(block, None)
        if held is None:
            return False
        if held == digest:
            self.digests[block] = digest
            return False
        self._queue([block], primary=True)
        return True

    @property
    def complete(self) -> bool:
        """
        Tell whether C{COMMIT} is due.
        """
        return not (self._todo or self._inFlight or self.unchecked)

    def root(self) -> bytes:
        """
        Compute the root over all blocks.
        """
        blocks = (self.digests[block] for block in range(self._count))
        return rootOf(self._digest, self.size, self.blockSize, blocks)

    def _queue(self, blocks: Iterable[int], *, primary: bool) -> None:
        last: Extent | None = None
        for block in blocks:
            start = block * self.blockSize
            end = min(start + self.blockSize, self.size)
            hole = block in self._holes
            most = self.blockSize * MAX_HOLE_BLOCKS if hole else self._extentBytes
            if (
                last is not None
                and (last.end, last.hole) == (start, hole)
                and end - last.start <= most
            ):
                last.end = end
            else:
                last = Extent(start, end, primary, hole)
                self._todo.append(last)
