"""
The bytes of a partial: sets of ranges, and the ranges and blocks that were recorded.

Pure: where the bytes lie, and how they get there, is the partial's business.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from connpool.errors import StoreError, TooLarge, TransferError
from connpool.transfer.records import Offer, Stump

__all__ = ["Holding", "Ranges", "Recorded", "blockRange", "verifyDeclared"]


def blockRange(block: int, blockSize: int, size: int | None) -> tuple[int, int]:
    """
    Return the beginning and the end of C{block}; the last one ends at C{size}, if that
    is known.
    """
    start = block * blockSize
    end = start + blockSize
    return start, end if size is None else min(end, size)


class Ranges(Sequence[tuple[int, int]]):
    """
    Sorted, disjoint C{(start, end)} pairs; touching ones are joined.

    Appending at the end costs the same whatever is held.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        #: Bytes in all ranges.
        self.total = 0
        for start, end in pairs:
            self.add(start, end)

    @classmethod
    def ofBlocks(cls, blocks: Iterable[int], blockSize: int, size: int | None) -> Ranges:
        """
        Return the bytes of C{blocks}, which ascend and begin before C{size}.
        """
        ranges = cls()
        starts, ends = ranges._starts, ranges._ends
        following = -1
        for block in blocks:
            if block == following:
                ends[-1] += blockSize
            else:
                starts.append(block * blockSize)
                ends.append(starts[-1] + blockSize)
            following = block + 1
        if size is not None and ends:
            ends[-1] = min(ends[-1], size)
        ranges.total = sum(ends) - sum(starts)
        return ranges

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, int]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, int] | list[tuple[int, int]]:
        if isinstance(index, slice):
            return list(zip(self._starts[index], self._ends[index], strict=True))
        return self._starts[index], self._ends[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Ranges({list(self)})"

    @property
    def end(self) -> int:
        """
        The end of the last range; 0 if there is none.
        """
        return self._ends[-1] if self._ends else 0

    def add(self, start: int, end: int) -> None:
        """
        Take in C{start} to C{end}.
        """
        if start >= end:
            return
        starts, ends = self._starts, self._ends
        if not ends or start > ends[-1]:
            starts.append(start)
            ends.append(end)
            self.total += end - start
            return
        first = bisect_left(ends, start)
        last = bisect_right(starts, end)
        if first < last:
            start = min(start, starts[first])
            end = max(end, ends[last - 1])
            self.total -= sum(ends[first:last]) - sum(starts[first:last])
        starts[first:last] = [start]
        ends[first:last] = [end]
        self.total += end - start

    def remove(self, start: int, end: int) -> None:
        """
        Leave out C{start} to C{end}.
        """
        if start >= end:
            return
        starts, ends = self._starts, self._ends
        first = bisect_right(ends, start)
        last = bisect_left(starts, end)
        if first >= last:
            return
        kept = []
        if starts[first] < start:
            kept.append((starts[first], start))
        if ends[last - 1] > end:
            kept.append((end, ends[last - 1]))
        self.total -= sum(ends[first:last]) - sum(starts[first:last])
        self.total += sum(b - a for a, b in kept)
        starts[first:last] = [a for a, _ in kept]
        ends[first:last] = [b for _, b in kept]

    def overlaps(self, start: int, end: int) -> bool:
        """
        Tell whether any byte from C{start} to C{end} is in.
        """
        if not self._ends or start >= self._ends[-1] or start >= end:
            return False
        first = bisect_right(self._ends, start)
        return self._starts[first] < end

    def covers(self, start: int, end: int) -> bool:
        """
        Tell whether every byte from C{start} to C{end} is in.
        """
        if start >= end:
            return True
        first = bisect_right(self._ends, start)
        return first < len(self._ends) and self._starts[first] <= start and end <= self._ends[first]


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


class Holding:
    """
    The part of a partial that is the same in each store: what it holds, and whether it may
    still be written.

    @ivar offer: the one that it was opened for, with what was declared since.
    @ivar _gate: the answer to "may this still be written": L{None}, or why not.
    @ivar _flying: ranges that are being written.
    """

    def __init__(self, offer: Offer, recorded: Recorded | None = None) -> None:
        self.offer = offer
        self._gate: TransferError | None = None
        self._flying = Ranges()
        self._has(recorded or Recorded(offer.blockSize, offer.size))

    def _has(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self.held, self.durable = recorded.held, recorded.durable
        self.digests = recorded.digests

    @property
    def writable(self) -> bool:
        """
        Tell whether it may still be written.
        """
        return self._gate is None

    def goOnFrom(self, older: Holding) -> None:
        """
        Hold what C{older} does, which is not written any more.
        """
        self._has(older._recorded)

    @property
    def stump(self) -> Stump | None:
        return self._recorded.stump

    def record(self, block: int, digest: bytes, end: int | None = None) -> None:
        self._verifyOpen()
        self._recorded.record(block, digest, end)

    def discard(self, start: int, end: int) -> Sequence[tuple[int, int]]:
        self._verifyOpen()
        self._recorded.discard(start, end)
        return ()

    def _verifyOpen(self) -> None:
        if self._gate is not None:
            raise self._gate

    def _verifyFree(self, start: int, end: int) -> None:
        """
        Check that the bytes may be written.
        """
        self._verifyOpen()
        name, size = self.offer.name, self.offer.size
        if size is not None and end > size:
            raise TooLarge(f'"{name}": more bytes arrive than the {size} announced')
        if self.held.overlaps(start, end) or self._flying.overlaps(start, end):
            raise StoreError(f'"{name}": bytes {start} to {end} are held already')
