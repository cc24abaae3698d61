"""
Holes in the file of a partial.
"""

from __future__ import annotations

from connpool.transfer.holes import dataRanges
from connpool.transfer.syscalls import Syscalls

__all__ = ["clear", "makeHole"]

_CLEARED_BYTES = 1 << 20


def makeHole(
    syscalls: Syscalls, fd: int, start: int, end: int, *, alone: bool
) -> list[tuple[int, int]]:
    """
    Make a file reach to C{end} at least, so that a hole there is believed after a restart.

    @param alone: whether nobody writes to the file at this moment; else it is as long as it is:
        what is written behind its end just now would be cut.
    @return: the ranges that have data all the same, to be given to L{clear}: a sender wrote
        there and took it back.
    """
    size = syscalls.fstat(fd).st_size
    written = list(dataRanges(fd, start, min(end, size), syscalls.lseek))
    if alone and size < end:
        syscalls.ftruncate(fd, end)
    return written


def clear(syscalls: Syscalls, fd: int, ranges: list[tuple[int, int]]) -> None:
    """
    Write zeros over C{ranges}.
    """
    for start, end in ranges:
        for at in range(start, end, _CLEARED_BYTES):
            syscalls.writeAll(fd, bytes(min(_CLEARED_BYTES, end - at)), at)
