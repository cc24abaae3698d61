"""
The knowledge about a partial after a restart.

Theory of operation
===================
The journal is append-only.  A description of the offer comes first, and again
when it changes; one that does not continue what was there begins anew.  A
checkpoint appends the digests of the blocks that were verified since, after
the data was synced and before anybody is told.  C{committing} says that
publishing began, as long as it is the last record: whatever follows says that
it came to nothing.  C{stump} says how much of an unfinished block there is; the
next one, or the whole block, takes its place.  Nothing is believed about a block
but its digest: it is read again and hashed, because sizes and times prove nothing.

A journal of another version, one that somebody edited, or one too long to be
read is not an error: the partial's blocks are hashed as they lie there, and the
sender compares digests with its source, and sends again what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import attrs
import msgspec

from connpool.errors import NameRefused
from connpool.transfer.names import RelativeName
from connpool.transfer.records import Offer, Stump
from connpool.transfer.stores.ranges import Ranges, blockRange
from connpool.transfer.stores.recordlines import decodeLine, encodeLine, linesOf

__all__ = [
    "MAX_JOURNAL_BYTES",
    "UNREADABLE",
    "Committing",
    "Journal",
    "blocksRecord",
    "committingRecord",
    "continues",
    "header",
    "stumpRecord",
]

VERSION = 1
#: Bytes of a journal that is read: twice what 65,536 blocks take at worst.
MAX_JOURNAL_BYTES = 16 << 20
#: Blocks to a record: half a record is lost with its other half.
_RECORD_BLOCKS = 1024

_OFFER = (
    "transferId",
    "size",
    "principal",
    "modified",
    "executable",
    "digest",
    "blockSize",
    "ifExists",
    "durability",
    "protocol",
    "metadata",
    "sha256",
)


class _Stored(msgspec.Struct):
    name: str
    transferId: str
    size: Annotated[int, msgspec.Meta(ge=0)] | None
    principal: str
    modified: int | None
    executable: bool
    digest: str | None
    blockSize: Annotated[int, msgspec.Meta(gt=0)]
    ifExists: Literal["rename", "replace", "refuse", "skip"]
    durability: Literal["none", "data", "full", "best"]
    protocol: str
    key: str | None
    metadata: str = ""
    sha256: str | None = None


_Number = Annotated[int, msgspec.Meta(ge=0)]
_Blocks = list[tuple[_Number, str]]


@attrs.frozen
class Committing:
    """
    The record before publishing.

    @ivar size: bytes of the file whose publishing began.
    @ivar root: the digest that was verified.
    @ivar inode: its number, to know it by under its new name.
    """

    size: int
    root: bytes | None
    inode: int


@attrs.frozen
class Journal:
    """
    The contents of one journal.

    @ivar offer: what the partial was opened for, without its resume key;
        L{None} if that cannot be read.
    @ivar digests: block number to digest.
    @ivar stump: the unfinished block, if it is known.
    """

    offer: Offer | None
    digests: dict[int, bytes]
    committing: Committing | None
    stump: Stump | None = None

    @classmethod
    def read(cls, data: bytes) -> Journal:
        """
        Never fails: what cannot be understood is not there.
        """
        offer: Offer | None = None
        digests: dict[int, bytes] = {}
        committing: Committing | None = None
        stump: Stump | None = None
        for _, line in linesOf(data):
            record = decodeLine(line)
            if not isinstance(record, dict):
                continue
            try:
                if "offer" in record:
                    known = record.get("version") == VERSION
                    described = _offer(record["offer"]) if known else None
                    if described is None or offer is None or not _describesAgain(described, offer):
                        digests, stump = {}, None
                    offer, committing = described, None
                elif "blocks" in record:
                    for block, digest in msgspec.convert(record["blocks"], _Blocks):
                        digests[block] = bytes.fromhex(digest)
                    committing = None
                elif "stump" in record:
                    stump, committing = _stump(record["stump"]), None
                elif "committing" in record:
                    committing = _committing(record["committing"])
            except (ValueError, NameRefused):
                continue
        if stump is not None and stump.block in digests:
            stump = None
        return UNREADABLE if offer is None else cls(offer, digests, committing, stump)

    def describes(self, offer: Offer) -> bool:
        """
        Tell whether nothing has to be said about C{offer}.
        """
        return (
            self.offer is not None
            and self.committing is None
            and header(self.offer) == header(offer)
        )

    @property
    def received(self) -> int:
        """
        Bytes that were recorded.
        """
        if self.offer is None:
            return 0
        received = len(self.digests) * self.offer.blockSize
        if self.stump is not None:
            received += self.stump.end - self.stump.block * self.offer.blockSize
        return received if self.offer.size is None else min(received, self.offer.size)

    def whole(self, offer: Offer, size: int) -> tuple[dict[int, bytes], Stump | None, Ranges]:
        """
        Return the digests of the blocks of C{offer} that may be whole where there are
        C{size} bytes, in order; the stump; and the bytes of all of them.
        """
        digests = {}
        for block in sorted(self.digests):
            start, end = blockRange(block, offer.blockSize, offer.size)
            if start < end <= size:
                digests[block] = self.digests[block]
        ranges = Ranges.ofBlocks(digests, offer.blockSize, offer.size)
        stump = self.stump
        if stump is not None:
            start, end = blockRange(stump.block, offer.blockSize, offer.size)
            if start < stump.end <= min(end, size):
                ranges.add(start, stump.end)
            else:
                stump = None
        return digests, stump, ranges

    def record(self) -> bytes:
        """
        Return a journal that says the same of the blocks, each thing once.
        """
        assert self.offer is not None
        return (
            header(self.offer)
            + blocksRecord(sorted(self.digests.items()))
            + stumpRecord(self.stump)
        )


#: Of which nothing is known.
UNREADABLE = Journal(None, {}, None)


def _offer(values: Any) -> Offer:
    stored = msgspec.convert(values, _Stored)
    return Offer(
        name=RelativeName.parse(stored.name, profile="posix"),
        key=None if stored.key is None else bytes.fromhex(stored.key),
        **{field: getattr(stored, field) for field in _OFFER},
    )


def continues(offer: Offer, older: Offer) -> bool:
    """
    Tell whether blocks of C{older} are blocks of C{offer}.
    """
    return (
        offer.size == older.size
        and offer.digest == older.digest
        and offer.blockSize == older.blockSize
    )


def _describesAgain(offer: Offer, older: Offer) -> bool:
    """
    Tell whether C{offer} is C{older} once more, or with the size that was not known.
    """
    return continues(
        offer, older if older.size is not None else attrs.evolve(older, size=offer.size)
    )


def header(offer: Offer) -> bytes:
    """
    The record that describes C{offer}.  The resume key is not in it: the file's
    name is its hash.
    """
    values: dict[str, Any] = {field: getattr(offer, field) for field in _OFFER}
    values["name"] = offer.name.path
    values["key"] = None if offer.key is None else offer.key.hex()
    return encodeLine({"version": VERSION, "offer": values})


def blocksRecord(digests: Sequence[tuple[int, bytes]]) -> bytes:
    """
    The records of a checkpoint.
    """
    pairs = [(block, digest.hex()) for block, digest in digests]
    return b"".join(
        encodeLine({"blocks": pairs[start : start + _RECORD_BLOCKS]})
        for start in range(0, len(pairs), _RECORD_BLOCKS)
    )


def stumpRecord(stump: Stump | None) -> bytes:
    """
    The record of an unfinished block; nothing if there is none.
    """
    if stump is None:
        return b""
    return encodeLine({"stump": [stump.block, stump.end, stump.digest.hex()]})


def _stump(values: Any) -> Stump:
    block, end, digest = msgspec.convert(values, tuple[_Number, _Number, str])
    return Stump(block, end, bytes.fromhex(digest))


def committingRecord(committing: Committing) -> bytes:
    """
    The record before publishing.
    """
    root = None if committing.root is None else committing.root.hex()
    return encodeLine({"committing": [committing.size, root, committing.inode]})


def _committing(values: Any) -> Committing:
    size, root, inode = msgspec.convert(values, tuple[int, str | None, int])
    return Committing(size, None if root is None else bytes.fromhex(root), inode)
