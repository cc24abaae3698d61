"""
The answers to an offer: C{REJECT} and C{RECEIPT}, which end it, and the lists of blocks behind
C{ACCEPT} and C{REPAIR} (and C{REVOKE}, by which a sender takes blocks back).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from connpool.errors import ProtocolError, Skipped, TransferError
from connpool.transfer.digests import MAX_BLOCKS
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Extension, ReceiptMessage, Reject, encode

if TYPE_CHECKING:
    from connpool.transfer.identities import Identity
    from connpool.transfer.records import Receipt

__all__ = [
    "NUMBER_BYTES",
    "RUN_BYTES",
    "heldRuns",
    "packBlocks",
    "readHeld",
    "receiptFrame",
    "rejectFrame",
    "unpackBlocks",
]

#: Bytes of a run of blocks in C{ACCEPT}, and of a block number in C{REPAIR} and C{REVOKE}.
RUN_BYTES, NUMBER_BYTES = 8, 4


def rejectFrame(number: int, why: TransferError) -> bytes:
    """
    Say that the file of stream C{number} is not taken, or not any more.
    """
    detail = " ".join(str(why).split())[:1024]
    skipped = (Extension("skipped", False, b""),) if isinstance(why, Skipped) else ()
    return encode(Type.REJECT, number, Reject(why.code, why.retryable, detail, skipped))


def receiptFrame(
    number: int, receipt: Receipt, identity: Identity | None, there: bytes | None = None
) -> bytes:
    """
    Say that the file of stream C{number} is stored, with its name as the sender may use it:
    the directory of a sender is the operator's business.

    @param there: value of the extension C{earlier}, for a receipt that an earlier offer got.
    """
    name = receipt.name
    if identity is not None and identity.directory is not None:
        name = name.removeprefix(identity.directory.path + "/")
    message = ReceiptMessage(
        receipt.status,  # type: ignore[arg-type]  # records have it as text
        name.encode("utf-8"),
        receipt.size,
        receipt.durability,  # type: ignore[arg-type]  # records have it as text
        receipt.filesystem,
        receipt.integrity,  # type: ignore[arg-type]  # records have it as text
        receipt.digest,
        bytes.fromhex(receipt.root) if receipt.root is not None else None,
        int(receipt.finished * 1000),
        () if there is None else (Extension("earlier", False, there),),
    )
    return encode(Type.RECEIPT, number, message)


def heldRuns(digests: Mapping[int, bytes]) -> tuple[int, bytes]:
    """
    The data part of C{ACCEPT}.

    @return: the number of runs, and runs and digests as they go on the wire.
    """
    runs: list[list[int]] = []
    for block in sorted(digests):
        if runs and block == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    wire = [struct.pack(">II", *run) for run in runs]
    wire += [digests[block] for block in sorted(digests)]
    return len(runs), b"".join(wire)


def readHeld(runs: int, wire: bytes, length: int) -> dict[int, bytes]:
    """
    Inverse of L{heldRuns}.

    @param length: bytes of a digest.
    @raise ProtocolError: if the lengths or the order are wrong.
    """
    at = runs * RUN_BYTES
    if at > len(wire):
        raise ProtocolError("the list of held blocks is cut off")
    held: dict[int, bytes] = {}
    least = 0
    for first, count in struct.iter_unpack(">II", wire[:at]):
        if first < least or not 0 < count <= MAX_BLOCKS - first:
            raise ProtocolError("the list of held blocks is out of order")
        if at + count * length > len(wire):
            raise ProtocolError("the digests of held blocks are cut off")
        least = first + count
        for block in range(first, least):
            held[block] = wire[at : at + length]
            at += length
    if at != len(wire):
        raise ProtocolError("bytes follow the digests of held blocks")
    return held


def packBlocks(blocks: Iterable[int]) -> bytes:
    """
    Block numbers as C{REPAIR} and C{REVOKE} carry them.
    """
    numbers = list(blocks)
    return struct.pack(f">{len(numbers)}I", *numbers)


def unpackBlocks(wire: bytes) -> list[int]:
    """
    Inverse of L{packBlocks}.

    @raise ProtocolError: if it is not a list of block numbers.
    """
    if len(wire) % NUMBER_BYTES or not wire or len(wire) > NUMBER_BYTES * MAX_BLOCKS:
        raise ProtocolError("that is not a list of blocks")
    blocks = [number for (number,) in struct.iter_unpack(">I", wire)]
    if max(blocks) >= MAX_BLOCKS:
        raise ProtocolError(f"there is no block {max(blocks)}")
    return blocks
