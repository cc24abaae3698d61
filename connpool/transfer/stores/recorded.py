"""
The bytes of a partial that are there, and those that were recorded.

Pure: where they lie, and how they get there, is the partial's business.
"""

from __future__ import annotations

from collections.abc import Iterable

from connpool.errors import StoreError, TooLarge
from connpool.transfer.records import Offer, Stump
from connpool.transfer.stores.ranges import Ranges, blockRange

__all__ = ["Recorded", "verifyDeclared"]


def verifyDeclared(older: Offer, offer: Offer, held: int) -> None:
    """
    Check that the size of C{older} was not known, and may be that of C{offer}.

    @param held: the end of the bytes that came.
    """
    if older.size is not None or offer.size is None:
        raise StoreError(f'"{older.name}": its size is known, and stays')
    if offer.size < held:
        raise TooLarge(f'"{older.name}": {held} bytes came, more than the {offer.size} declared')


class Recorded:
    """
    The bytes of one partial.

    @param blockSize: bytes of a block.
    @ivar size: bytes of the file; L{None} while nobody knows.
    @ivar held: what was written.
    @ivar durable: the part of it that the last checkpoint made safe.
    @ivar digests: block number to digest.
    @ivar stump: the unfinished block, as far as it was recorded.
    """

    def __init__(self, blockSize: int, size: int | None) -> None:
        self._blockSize = blockSize
        self.size = size
        self.held = Ranges()
        self.durable = Ranges()
        self.digests: dict[int, bytes] = {}
        self.stump: Stump | None = None
        self._unsaved: list[int] = []
        self._unsavedStump = False

    def resume(self, digests: dict[int, bytes], stump: Stump | None, held: Ranges) -> None:
        """
        Hold what an earlier process had recorded.
        """
        self.digests.update(digests)
        self.stump = stump
        for start, end in held:
            self.held.add(start, end)
            self.durable.add(start, end)

    def record(self, block: int, digest: bytes, end: int | None = None) -> None:
        """
        Note the digest of a block, or of its bytes before C{end}.
        """
        if end is not None and end < self._whole(block)[1]:
            self.stump = Stump(block, end, digest)
            self._unsavedStump = True
            return
        self.digests[block] = digest
        self._unsaved.append(block)
        if self.stump is not None and self.stump.block == block:
            self.stump = None

    def discard(self, start: int, end: int) -> None:
        """
        Forget bytes, and the blocks that they are of.
        """
        self.held.remove(start, end)
        self.durable.remove(start, end)
        for block in range(start // self._blockSize, -(-end // self._blockSize)):
            self.digests.pop(block, None)
        if self.stump is not None:
            first, last = self.span(self.stump.block)
            if start < last and first < end:
                self.stump = None

    def span(self, block: int) -> tuple[int, int]:
        """
        Return the bytes of C{block} that were recorded.
        """
        start, end = self._whole(block)
        if self.stump is not None and self.stump.block == block:
            end = self.stump.end
        return start, end

    def digest(self, block: int, end: int) -> bytes | None:
        """
        Return what was recorded for the bytes of C{block} before C{end}; L{None} if nothing
        is any more.
        """
        if block in self.digests:
            return self.digests[block] if end == self._whole(block)[1] else None
        stump = self.stump
        return (
            stump.digest if stump is not None and (stump.block, stump.end) == (block, end) else None
        )

    # -- checkpoints

    @property
    def unsaved(self) -> bool:
        """
        Tell whether a checkpoint has something to make safe.
        """
        return bool(self._unsaved) or self._unsavedStump

    def save(self) -> tuple[list[tuple[int, bytes]], Stump | None]:
        """
        Return the blocks and the stump that a checkpoint makes safe: it begins.
        """
        blocks = sorted({block for block in self._unsaved if block in self.digests})
        stump = self.stump if self._unsavedStump else None
        self._unsaved, self._unsavedStump = [], False
        return [(block, self.digests[block]) for block in blocks], stump

    def saved(self, blocks: Iterable[tuple[int, bytes]], stump: Stump | None) -> None:
        """
        A checkpoint has made these safe.
        """
        there = [block for block, _ in blocks if block in self.digests]
        for start, end in Ranges.ofBlocks(there, self._blockSize, self.size):
            self.durable.add(start, end)
        if stump is not None:
            start = self._whole(stump.block)[0]
            if self.held.covers(start, stump.end):
                self.durable.add(start, stump.end)

    def unsave(self, blocks: Iterable[tuple[int, bytes]], stump: Stump | None) -> None:
        """
        A checkpoint has failed: the next one makes these safe.
        """
        self._unsaved += [block for block, _ in blocks]
        self._unsavedStump |= stump is not None and stump is self.stump

    def _whole(self, block: int) -> tuple[int, int]:
        return blockRange(block, self._blockSize, self.size)
