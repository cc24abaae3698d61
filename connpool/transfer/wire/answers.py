"""
The two answers that end an offer: C{REJECT} and C{RECEIPT}.
"""

from __future__ import annotations

from connpool.errors import Skipped, TransferError
from connpool.transfer.identities import Identity
from connpool.transfer.records import Receipt
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Extension, ReceiptMessage, Reject, encode

__all__ = ["receiptFrame", "rejectFrame"]


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
