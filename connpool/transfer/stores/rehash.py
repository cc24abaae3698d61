"""
Reading again what an earlier process wrote.

What lies in a partial is believed when its blocks were read and hashed; whether
there is a digest to compare with is the caller's business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from connpool.transfer.digests import digestNamed
from connpool.transfer.holes import isHole, zeroDigest
from connpool.transfer.records import Offer
from connpool.transfer.syscalls import Syscalls

__all__ = ["REHASH_SLICE_BYTES", "blocksIn", "digestsOf"]

#: Bytes that are read before others have their turn.
REHASH_SLICE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20


def blocksIn(status: os.stat_result, offer: Offer) -> range:
    """
    Return the blocks of C{offer} that may lie whole in a file of this status.
    """
    # somebody may have made it sparse and huge
    end = min(status.st_size, status.st_blocks * 512)
    if offer.size is None or end < offer.size:
        return range(end // offer.blockSize)
    return range(-(-offer.size // offer.blockSize))


def digestsOf(
    syscalls: Syscalls,
    fd: int,
    algorithm: str,
    spans: Iterable[tuple[int, int]],
    goesOn: Callable[[], bool],
) -> list[bytes | None]:
    """
    Hash what lies on the disk.

    @param spans: the beginning and the end of each block.
    @param goesOn: asked before each block.
    @return: the digest of each block, as far as it came; L{None} for one that
        cannot be read or is not whole.
    """
    digest = digestNamed(algorithm)
    found: list[bytes | None] = []
    for at, end in spans:
        if not goesOn():
            break
        start, hasher = at, digest.new()
        if isHole(fd, at, end, syscalls.lseek):
            # past the end of the file it is none: nothing is there
            there = end <= syscalls.fstat(fd).st_size
            if there and not (end - at) & (end - at - 1):
                found.append(zeroDigest(digest, end - at))
                continue
        try:
            while start < end and (
                data := syscalls.pread(fd, min(end - start, _CHUNK_BYTES), start)
            ):
                hasher.update(data)
                start += len(data)
        except OSError:
            pass
        found.append(hasher.digest() if start == end else None)
    return found
