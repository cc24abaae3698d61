"""
What is known about a partial after a restart.

Theory of operation
===================
The journal is append-only.  Its first record describes the offer; a
checkpoint appends the digests of the blocks that were verified since, after
the data was synced and before anybody is told; C{committing} says that
publishing began.  Nothing is believed about a block but its digest: it is read
again and hashed, because sizes and times prove nothing.

A journal of another version, or one that somebody edited, is not an error: the
partial's blocks are hashed as they lie there, and the sender, who compares
digests with its source, sends again what differs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import attrs
import msgspec

from connpool.errors import NameRefused
from connpool.transfer.names import RelativeName
from connpool.transfer.records import Offer
from connpool.transfer.stores.lines import decodeLine, encodeLine, linesOf

__all__ = [
    "MAX_JOURNAL",
    "Committing",
    "Journal",
    "blocksRecord",
    "committingRecord",
    "continues",
    "header",
]

VERSION = 1
#: Bytes that are read of a journal: twice what 65,536 blocks take.
MAX_JOURNAL = 16 << 20

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
    durability: Literal["none", "data", "full"]
    protocol: str
    key: str | None


@attrs.frozen
class Committing:
    """
    @ivar size: bytes of the file whose publishing began.
    @ivar root: the digest that was verified.
    """

    size: int
    root: bytes | None


@attrs.frozen
class Journal:
    """
    @ivar offer: what the partial was opened for, without its resume key;
        L{None} if that cannot be read.
    @ivar digests: block number to digest.
    """

    offer: Offer | None
    digests: dict[int, bytes]
    committing: Committing | None

    @classmethod
    def read(cls, data: bytes) -> Journal:
        """
        Never fails: what cannot be understood is not there.
        """
        offer: Offer | None = None
        digests: dict[int, bytes] = {}
        committing: Committing | None = None
        for _, line in linesOf(data):
            record = decodeLine(line)
            if not isinstance(record, dict):
                continue
            try:
                if "offer" in record and record.get("version") == VERSION:
                    offer = _offer(record["offer"])
                    if not record.get("keep"):
                        digests, committing = {}, None
                elif "blocks" in record:
                    for block, digest in record["blocks"]:
                        digests[int(block)] = bytes.fromhex(digest)
                elif "committing" in record:
                    size, root = record["committing"]
                    committing = Committing(
                        int(size), None if root is None else bytes.fromhex(root)
                    )
            except (ValueError, TypeError, NameRefused):
                continue
        if offer is None:
            return cls(None, {}, None)
        return cls(offer, digests, committing)


def _offer(values: Any) -> Offer:
    stored = msgspec.convert(values, _Stored)
    return Offer(
        name=RelativeName.parse(stored.name, profile="posix"),
        key=None if stored.key is None else bytes.fromhex(stored.key),
        **{field: getattr(stored, field) for field in _OFFER},
    )


def continues(offer: Offer, older: Offer) -> bool:
    """
    Whether blocks of C{older} are blocks of C{offer}.
    """
    return (
        offer.size == older.size
        and offer.digest == older.digest
        and offer.blockSize == older.blockSize
    )


def header(offer: Offer, *, keep: bool) -> bytes:
    """
    The first record, and one that replaces it.  The resume key is not in it:
    the file's name is its hash.

    @param keep: whether what was recorded before still holds.
    """
    values: dict[str, Any] = {field: getattr(offer, field) for field in _OFFER}
    values["name"] = offer.name.path
    values["key"] = None if offer.key is None else offer.key.hex()
    return encodeLine({"version": VERSION, "offer": values, "keep": keep})


def blocksRecord(digests: list[tuple[int, bytes]]) -> bytes:
    """
    The record of a checkpoint.
    """
    return encodeLine({"blocks": [(block, digest.hex()) for block, digest in digests]})


def committingRecord(committing: Committing) -> bytes:
    """
    The record before publishing.
    """
    root = None if committing.root is None else committing.root.hex()
    return encodeLine({"committing": [committing.size, root]})
