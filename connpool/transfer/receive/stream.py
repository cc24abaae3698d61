"""
One stream of a receiver's session: from C{OFFER} to its only answer.

Theory of operation
===================
A L{Delivery} ends exactly once: with C{RECEIPT}, with C{REJECT}, or silently
when the sender cancelled or is gone.  What the end needs (waiting for writes,
suspending the partial) goes on after it; L{Delivery.gone} says when nothing of it is
left.

I{Take-over.}  A resume key has one delivery at a time.  A newer one with the
same key registers itself at once, then ends the older and waits until that is
gone, and only then asks the store for the partial; so queued writes of the
older connection are done or dropped before the newer one reads what is held.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import (
    Cancelled,
    ConflictTakeover,
    DigestMismatch,
    ProtocolError,
    Skipped,
    StoreError,
    TransferError,
)
from connpool.transfer.identities import Identity
from connpool.transfer.receive.blockmap import heldRuns, packBlocks, unpackBlocks
from connpool.transfer.receive.incoming import Incoming
from connpool.transfer.receive.upload import Upload
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.wire.frames import Frame, Type
from connpool.transfer.wire.messages import (
    Accept,
    Cancel,
    Commit,
    Digests,
    Extension,
    Progress,
    Receipting,
    Reject,
    Repair,
    encode,
)

__all__ = ["COMPARE_RATE", "Delivery", "asTransferError", "receiptFrame", "rejectFrame"]

#: Bytes/s at which a sender compares what is held with its file, at least.
COMPARE_RATE = 8 << 20
#: Bytes of a block number in C{REVOKE}.
_NUMBER_BYTES = 4


class Delivery:
    """
    @param session: whose stream it is.
    @param number: the stream.
    @param claim: what it must be alone with, L{None} if it cannot be resumed.
    """

    _log = Logger()

    def __init__(self, session: Any, number: int, offer: Offer, claim: Any) -> None:
        self._session = session
        self._number = number
        self.offer = offer
        self._claim = claim
        self._upload: Upload | None = None
        self._committing = False
        self._ending = False
        self._why = TransferError()
        self._isGone = False
        self._waiters: list[Deferred[None]] = []
        self._place: Deferred[None] | None = None
        self._comparing: Any = None
        self.epoch = 0

    @property
    def receiving(self) -> bool:
        """
        Tell whether it is the sender's turn.
        """
        return self._upload is not None and not self._ending and not self._committing

    @property
    def comparing(self) -> bool:
        """
        Tell whether the sender may be reading what is held, and send nothing.
        """
        return self.receiving and self._comparing is not None and self._comparing.active()

    # -- beginning

    async def begin(self) -> None:
        """
        Open the partial and answer the offer.
        """
        registry = self._session.registry
        older = None
        if self._claim is not None:
            older = registry.claims.get(self._claim)
            registry.claims[self._claim] = self
        try:
            if older is not None:
                self.epoch = older.epoch + 1
                await older.evict()
            if not self._ending:
                found = await registry.reception.begin(
                    self.offer, self._session.peer, self.fail, self._waitsFor
                )
                if await self._opened(found):
                    return
        except CancelledError:
            pass  # it ended before others made way
        except TransferError as e:
            self._reject(e)
        except Exception:
            self._log.failure("opening a partial failed")
            self._reject(TransferError("the receiver failed; see its log"))
        self._left()

    def _waitsFor(self, place: Deferred[None]) -> None:
        self._place = place

    async def _opened(self, found: Incoming | Receipt) -> bool:
        """
        @return: whether there is something to receive.
        """
        if isinstance(found, Receipt):
            there = await self._session.earlier(self.offer, found)
            self._answer(receiptFrame(self._number, found, self.offer.identity, there))
            return False
        if self._ending:
            # cancelled or taken over meanwhile
            await found.suspend(self._why)
            return False
        registry = self._session.registry
        try:
            self._upload = Upload(
                found,
                self._session.digest,
                registry.lanes,
                registry.clock.seconds,
                self._repair,
                self._storeFailed,
            )
        except TransferError as e:
            await found.abort(e)
            raise
        runs, wire = heldRuns(self._upload.board.verified)
        accept = Accept("resume" if runs else "new", self.epoch, runs)
        self._session.send(encode(Type.ACCEPT, self._number, accept, len(wire)), wire)
        if runs:
            held = len(self._upload.board.verified) * self.offer.blockSize
            self._comparing = registry.clock.callLater(
                held / COMPARE_RATE, self._session.receivingChanged
            )
        self._session.receivingChanged()
        return True

    # -- frames

    def write(self, lane: Any, offset: int, view: memoryview) -> Deferred[None] | None:
        """
        Bytes of a run.
        """
        if self._ending or self._committing:
            return None
        if self._upload is None:
            raise ProtocolError("DATA before ACCEPT")
        return self._upload.write(lane, offset, view)

    def frameReceived(self, frame: Frame, message: Any) -> None:
        """
        Any other frame of this stream.
        """
        if self._ending:
            return
        if frame.type is Type.CANCEL:
            self._cancel(message)
            return
        if self._upload is None:
            raise ProtocolError(f"{frame.type.name} before ACCEPT")
        if self._committing:
            raise ProtocolError(f"{frame.type.name} after COMMIT")
        if frame.length != len(frame.data):
            raise ProtocolError(f"{frame.type.name} carries more than the file has blocks")
        if frame.type is Type.DIGESTS:
            first: Digests = message
            self._upload.digests(first.first, frame.data)
        elif frame.type is Type.REVOKE:
            self._upload.revoke(unpackBlocks(frame.data))
        elif frame.type is Type.COMMIT:
            self._committing = True
            self._session.receivingChanged()
            d = Deferred.fromCoroutine(self._commit(message))
            d.addErrback(lambda f: self._log.failure("a commit failed", failure=f))
        else:
            raise ProtocolError(f"{frame.type.name} is not for a receiver")

    def takes(self, kind: Type, length: int) -> bool:
        """
        Tell whether a run of block digests or numbers is to be kept now.
        """
        if self._upload is None or self._ending or self._committing:
            return False
        each = self._session.digest.length if kind is Type.DIGESTS else _NUMBER_BYTES
        return length <= each * self._upload.board.most

    async def _commit(self, message: Commit) -> None:
        assert self._upload is not None
        try:
            receipt = await self._upload.commit(message.size, message.root)
        except TransferError as e:
            if self._ending:
                return  # what ended it says whether to keep it
            if isinstance(e, DigestMismatch | ProtocolError):
                await self._endBy(e, keep=False)
            elif self._upload.incoming.ended:
                self._reject(e)
                self._left()
            else:
                await self._endBy(e, keep=True)
            return
        except Exception as e:
            self._log.failure("publishing failed")
            self._reject(TransferError(f"the receiver failed: {type(e).__name__}; see its log"))
            self._left()
            return
        self._committing = False
        if receipt is None:
            self._session.receivingChanged()
            return
        self._session.stored()
        self._answer(receiptFrame(self._number, receipt, self.offer.identity))
        self._left()

    def progress(self) -> None:
        """
        Say how it goes.
        """
        if self._ending:
            return
        upload = self._upload
        if upload is not None:
            # also when nothing comes any more
            upload.checkpoint()
        message = (
            Progress("receive", 0, "place" if self.queued else "disk")
            if upload is None
            else Progress(upload.phase, upload.durable, _slow(upload))  # type: ignore[arg-type]
        )
        self._session.send(encode(Type.PROGRESS, self._number, message))

    def laneLost(self, lane: Any) -> None:
        """
        A joined connection is gone.
        """
        if self._upload is not None:
            self._upload.laneLost(lane)

    # -- ends

    def fail(self, why: TransferError, keep: bool = True) -> None:
        """
        End it with C{REJECT}.  What is being published goes on.
        """
        if not self._ending and not self._publishing:
            d = Deferred.fromCoroutine(self._endBy(why, keep))
            d.addErrback(lambda f: self._log.failure("ending a transfer failed", failure=f))

    async def evict(self) -> None:
        """
        Make way for a newer delivery of the same file.
        """
        self.fail(ConflictTakeover("a newer connection of this sender has taken the transfer over"))
        if not self._isGone:
            d: Deferred[None] = Deferred()
            self._waiters.append(d)
            await d

    @property
    def queued(self) -> bool:
        """
        Tell whether it waits for others to make way.
        """
        return self._place is not None and not self._place.called

    @property
    def _publishing(self) -> bool:
        return self._upload is not None and self._upload.phase == "publish"

    def _cancel(self, message: Cancel) -> None:
        if self._publishing:
            return  # too late: the answer will say so
        self._why = Cancelled(f"the sender cancelled: {message.code!a}")
        self._close()
        self._session.ended(self._number)
        if self._upload is not None:
            d = Deferred.fromCoroutine(self._leave(self._why, message.keep))
            d.addErrback(lambda f: self._log.failure("cancelling failed", failure=f))

    async def _endBy(self, why: TransferError, keep: bool) -> None:
        self._reject(why)
        await self._leave(why, keep)

    async def _leave(self, why: TransferError, keep: bool) -> None:
        if self._upload is not None:
            try:
                await self._upload.end(why, keep)
            finally:
                self._left()

    def _reject(self, why: TransferError) -> None:
        self._why = why
        self._answer(rejectFrame(self._number, why))

    def _answer(self, wire: bytes) -> None:
        if not self._ending:
            self._close()
            self._session.send(wire)
            self._session.ended(self._number)

    def _close(self) -> None:
        self._ending = True
        if self._place is not None:
            self._place.cancel()
        if self._comparing is not None and self._comparing.active():
            self._comparing.cancel()

    def _left(self) -> None:
        if self._isGone:
            return
        self._isGone = True
        claims = self._session.registry.claims
        if self._claim is not None and claims.get(self._claim) is self:
            del claims[self._claim]
        waiters, self._waiters = self._waiters, []
        for d in waiters:
            d.callback(None)

    def _repair(self, blocks: list[int]) -> None:
        wire = packBlocks(blocks)
        self._session.send(encode(Type.REPAIR, self._number, Repair(), len(wire)), wire)

    def _storeFailed(self, why: TransferError) -> None:
        # after an I/O error what is held is not to be trusted; a full disk is none
        self.fail(why, keep=why.retryable)


def asTransferError(failure: Failure) -> TransferError:
    """
    @return: what a sender is told of a store's failure.
    """
    if isinstance(failure.value, TransferError):
        return failure.value
    Logger(__name__).failure("storing a file failed", failure=failure)
    return StoreError(f"the store failed: {type(failure.value).__name__}")


def rejectFrame(number: int, why: TransferError) -> bytes:
    """
    C{REJECT}.
    """
    detail = " ".join(str(why).split())[:1024]
    skipped = (Extension("skipped", False, b""),) if isinstance(why, Skipped) else ()
    return encode(Type.REJECT, number, Reject(why.code, why.retryable, detail, skipped))


def receiptFrame(
    number: int, receipt: Receipt, identity: Identity | None, there: bytes | None = None
) -> bytes:
    """
    C{RECEIPT}, with the name as the sender may use it: its directory is the
    operator's business.

    @param there: value of the extension C{earlier}, for a receipt that an earlier offer got.
    """
    name = receipt.name
    if identity is not None and identity.directory is not None:
        name = name.removeprefix(identity.directory.path + "/")
    message = Receipting(
        receipt.status,  # type: ignore[arg-type]
        name.encode("utf-8"),
        receipt.size,
        receipt.durability,  # type: ignore[arg-type]
        receipt.filesystem,
        receipt.integrity,  # type: ignore[arg-type]
        receipt.digest,
        bytes.fromhex(receipt.root) if receipt.root is not None else None,
        int(receipt.finished * 1000),
        () if there is None else (Extension("earlier", False, there),),
    )
    return encode(Type.RECEIPT, number, message)


def _slow(upload: Upload) -> str:
    """
    The word for the thing that the receiver waits for, if it does.
    """
    word = upload.incoming.slowedBy
    return "" if word == "peer" else word
