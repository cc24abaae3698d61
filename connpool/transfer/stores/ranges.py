"""
Sets of byte ranges.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

__all__ = ["Ranges", "blockRange"]


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

    def copy(self) -> Ranges:
        """
        Return one of its own with the same bytes.
        """
        copied = Ranges()
        copied._starts, copied._ends = self._starts[:], self._ends[:]
        copied.total = self.total
        return copied

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
