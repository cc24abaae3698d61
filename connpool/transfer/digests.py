"""
Digests by name, over blocks and over whole files.

A file is cut into blocks of equal size (the last may be shorter); each has a
digest of its own, so one wrong block can be found and sent again, and blocks
can be checked in any order.  The root is a digest over the block digests::

    root = H("cpt1-root" 00 | size as u64 | block size as u64 | d0 | d1 | ...)

with C{H} the algorithm of the blocks (docs/protocol.rst, "Digests").
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import attrs
import blake3

from connpool.errors import Unsupported

__all__ = [
    "BLOCK_SIZE",
    "DIGESTS",
    "MAX_BLOCKS",
    "Digest",
    "blockCount",
    "chooseBlockSize",
    "digestNamed",
    "rootOf",
    "rootsOfBlocks",
]

#: Bytes of a block, doubled until a file has at most L{MAX_BLOCKS}.
BLOCK_SIZE = 1 << 20
MAX_BLOCKS = 65_536

#: A file of unknown size may reach a terabyte with these.
_UNKNOWN_BLOCK_SIZE = 16 << 20

_CONTEXT = b"cpt1-root\0"
_SIZES = struct.Struct(">QQ")


@attrs.frozen
class Digest:
    """
    An algorithm.

    @ivar name: as on the wire and in receipts.
    @ivar new: makes an object with C{update} and C{digest}, of some data if that is given.
    @ivar length: bytes of a digest.
    @ivar strong: whether it withstands somebody who wants a collision.
    """

    name: str
    new: Callable[..., Any] = attrs.field(repr=False)
    length: int
    strong: bool = True

    def of(self, data: bytes | memoryview) -> bytes:
        """
        The digest of one block.
        """
        return self.new(data).digest()  # type: ignore[no-any-return]  # hashers have no common type


def _xxh3(data: bytes | memoryview = b"") -> Any:
    from xxhash import xxh3_128  # few ask for it

    return xxh3_128(data)


#: What this installation can compute, preferred ones first.
DIGESTS: dict[str, Digest] = {
    "blake3": Digest("blake3", blake3.blake3, 32),
    "sha256": Digest("sha256", hashlib.sha256, 32),
}
if find_spec("xxhash") is not None:  # the extra "xxhash"
    DIGESTS["xxh3"] = Digest("xxh3", _xxh3, 16, strong=False)


def digestNamed(name: str) -> Digest:
    """
    @raise Unsupported: if this installation cannot compute it.
    """
    try:
        return DIGESTS[name]
    except KeyError:
        hint = "; install the extra xxhash" if name == "xxh3" else ""
        raise Unsupported(
            f"digest {name!r} is not available here, only {', '.join(DIGESTS)}{hint}"
        ) from None


def chooseBlockSize(size: int | None, smallest: int = BLOCK_SIZE) -> int:
    """
    The block size for a file of C{size} bytes, L{None} if not known.
    """
    if size is None:
        return max(smallest, _UNKNOWN_BLOCK_SIZE) if smallest == BLOCK_SIZE else smallest
    block = smallest
    while block * MAX_BLOCKS < size:
        block *= 2
    return block


def blockCount(size: int, blockSize: int) -> int:
    """
    The blocks of a file; none if it is empty.
    """
    return -(-size // blockSize)


def rootOf(digest: Digest, size: int, blockSize: int, blocks: Iterable[bytes]) -> bytes:
    """
    The root over the digests of all blocks, in order.
    """
    return digest.of(_CONTEXT + _SIZES.pack(size, blockSize) + b"".join(blocks))


def rootsOfBlocks(digest: Digest) -> Callable[[bytes | memoryview], bytes]:
    """
    Get ready for many files that have one block of L{BLOCK_SIZE} at most.

    @return: computes the root of such a file of its content; not for two threads at once.
    """
    of = digest.of
    if hasattr(hasher := digest.new(), "reset"):  # where a new one takes as long as 1 KiB
        reset, update, result = hasher.reset, hasher.update, hasher.digest

        def of(data: bytes | memoryview) -> bytes:
            reset()
            update(data)
            return result()  # type: ignore[no-any-return]  # hashers have no common type

    def root(data: bytes | memoryview) -> bytes:
        size = len(data)
        return of(_CONTEXT + _SIZES.pack(size, BLOCK_SIZE) + (of(data) if size else b""))

    return root
