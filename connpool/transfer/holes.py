"""
Holes: ranges of a file to which nothing was written.  They read as zeros and take no space.

Theory of operation
===================
The kernel tells where data begins and ends (C{SEEK_DATA}, C{SEEK_HOLE}).  It is asked block by
block, never for a list of all ranges of a file: there may be millions.  A file system that
cannot tell says that everything is data, which costs time and is never wrong.

A block that is one hole has the digest of as many zeros.  For whole blocks there are few
lengths, all powers of two, and each digest is computed once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import attrs

from connpool.errors import ProtocolError
from connpool.transfer.digests import Digest, digestNamed

__all__ = [
    "MAX_HOLE_BLOCKS",
    "MAX_HOLE_BLOCK_BYTES",
    "MAX_ZERO_BYTES",
    "KnownDigest",
    "dataFrom",
    "dataRanges",
    "feedZeros",
    "holeRuns",
    "isHole",
    "isSparse",
    "piecesOf",
    "verifyHole",
    "zeroDigest",
]

#: A hole within a block that is smaller than this is sent as zeros: it is not worth a frame.
_WORTH_BYTES = 64 << 10
#: Bytes of a hole that is a part of one block, at most: they are hashed when they come.
MAX_ZERO_BYTES = 16 << 20
#: Blocks of a hole, at most, and bytes of each of them: the digest of these is computed once.
MAX_HOLE_BLOCKS = 1024
MAX_HOLE_BLOCK_BYTES = 256 << 20

_ZEROS = bytes(1 << 20)

Seek = Callable[[int, int, int], int]


def isSparse(status: os.stat_result) -> bool:
    """
    Tell whether a file may have holes, by what it takes on disk.
    """
    return status.st_blocks * 512 < status.st_size


def dataFrom(fd: int, start: int, end: int, seek: Seek = os.lseek) -> int:
    """
    Find the first data from C{start} on.  The position of C{fd} changes.

    @param seek: C{os.lseek}, or what stands in its place.
    @return: where it is; C{end} if there is none before that.
    """
    if start >= end or not hasattr(os, "SEEK_DATA"):
        return start
    try:
        return min(seek(fd, start, os.SEEK_DATA), end)
    except OSError as e:
        return end if e.errno == errno.ENXIO else start


def dataRanges(fd: int, start: int, end: int, seek: Seek = os.lseek) -> Iterator[tuple[int, int]]:
    """
    Find the data between C{start} and C{end}, as L{dataFrom} does.
    """
    while (first := dataFrom(fd, start, end, seek)) < end:
        try:
            # where there is no SEEK_DATA, there is no SEEK_HOLE either
            past = seek(fd, first, os.SEEK_HOLE) if hasattr(os, "SEEK_DATA") else end
            start = min(max(past, first + 1), end)
        except OSError:  # it cannot tell
            start = end
        yield first, start


def isHole(fd: int, start: int, end: int, seek: Seek = os.lseek) -> bool:
    """
    Tell whether there is no data between C{start} and C{end}, and some byte.
    """
    return start < end and dataFrom(fd, start, end, seek) >= end


def holeRuns(fd: int, size: int, blockSize: int) -> list[tuple[int, int]]:
    """
    Find the blocks that are holes as a whole.

    @return: runs of them: the first and the one after the last.  The last block of a file is
        in none if it is shorter than the others.
    """
    runs: list[tuple[int, int]] = []
    after, whole = 0, size // blockSize if blockSize <= MAX_HOLE_BLOCK_BYTES else 0
    for first, last in [*_dataBlocks(fd, whole, blockSize), (whole, whole)]:
        if first > after:
            runs.append((after, first))
        after = max(last, after)
    return runs


def _dataBlocks(fd: int, whole: int, blockSize: int) -> Iterator[tuple[int, int]]:
    """
    Find runs of blocks with data: the first of each and the one after its last.
    """
    block = 0
    while block < whole:
        found = next(dataRanges(fd, block * blockSize, whole * blockSize), None)
        if found is None:
            return
        first, block = found[0] // blockSize, -(-found[1] // blockSize)
        yield first, block


def piecesOf(fd: int, start: int, end: int, blockSize: int) -> list[tuple[int, int, bool]]:
    """
    Cut a part of a file into data and holes.

    @return: beginning, end, and C{True} for a hole, which lies within one block.
    """
    holes, at = [], start
    for first, last in [*dataRanges(fd, start, end), (end, end)]:
        while at < first:
            until = min(first, (at // blockSize + 1) * blockSize, at + MAX_ZERO_BYTES)
            if until - at >= _WORTH_BYTES:
                holes.append((at, until))
            at = until
        at = last
    pieces, at = [], start
    for first, last in holes:
        if at < first:
            pieces.append((at, first, False))
        pieces.append((first, last, True))
        at = last
    if at < end:
        pieces.append((at, end, False))
    return pieces


def verifyHole(start: int, end: int, blockSize: int, size: int | None) -> None:
    """
    Check a range that a sender calls a hole: it costs us little whoever says it.

    @param size: of the file; L{None} if it is not known.
    @raise ProtocolError: it is neither whole blocks nor a part of one, or too much.
    """
    whole = end - start >= blockSize
    first, within = divmod(start, blockSize)
    count, rest = divmod(end - start, blockSize)
    if size is None or end > size:
        why = f"not in a file of {size} bytes"
    elif whole and (within or rest or count > MAX_HOLE_BLOCKS or blockSize > MAX_HOLE_BLOCK_BYTES):
        why = f"not of whole blocks, {MAX_HOLE_BLOCKS} at most"
    elif not whole and (end > (first + 1) * blockSize or end - start > MAX_ZERO_BYTES):
        why = f"not a part of one block, of {MAX_ZERO_BYTES} bytes at most"
    else:
        return
    raise ProtocolError(f"a hole from {start} to {end} is {why}")


def feedZeros(hasher: Any, count: int) -> None:
    """
    Hash C{count} zeros.
    """
    for _ in range(count // len(_ZEROS)):
        hasher.update(_ZEROS)
    hasher.update(memoryview(_ZEROS)[: count % len(_ZEROS)])


def zeroDigest(digest: Digest, blockSize: int) -> bytes:
    """
    Return the digest of a whole block of zeros.
    """
    return _zeroDigest(digest.name, blockSize)


@lru_cache(maxsize=128)  # more than there are digests and powers of two
def _zeroDigest(name: str, blockSize: int) -> bytes:
    hasher = digestNamed(name).new()
    feedZeros(hasher, blockSize)
    found: bytes = hasher.digest()
    return found


@attrs.frozen
class KnownDigest:
    """
    In the place of a hasher, where the digest is known.
    """

    value: bytes

    def digest(self) -> bytes:
        """
        The digest.
        """
        return self.value
