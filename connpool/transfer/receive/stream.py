"""
One stream of a receiver's session: from C{OFFER} to its only answer.

Theory of operation
===================
Whether a file is over, and why, is known here alone.  A L{Stream} is a machine::

    waiting -> receiving <-> verifying -> publishing -> ended

It waits until the store has opened a partial (others may have to make way first), and
receives while it is the sender's turn.  C{COMMIT} has the bytes verified, and either asks
for blocks once more or publishes the file.  Every state but publishing can be ended from
outside: by the sender, by a store that fails, or by a newer connection that takes over.

It ends exactly once: with C{RECEIPT}, with C{REJECT}, or silently when the sender
cancelled.  What the end needs (waiting for writes, suspending the partial) goes on after
it; the store knows when a partial is let go of.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, Protocol

from automat import TypeMachineBuilder
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger

from connpool.errors import Cancelled, DigestMismatch, ProtocolError, TransferError
from connpool.transfer.receive.offers import Sender, earlierOf
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.upload import Upload
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.wire.frames import (
    NUMBER_BYTES,
    Frame,
    Type,
    heldRanges,
    packBlocks,
    unpackBlocks,
)
from connpool.transfer.wire.messages import (
    Accept,
    Cancel,
    Commit,
    Progress,
    Repair,
    encode,
    receiptFrame,
    rejectFrame,
)

__all__ = ["COMPARE_BYTES_PER_SECOND", "Owner", "Phase", "Stream"]

#: Speed at which a sender compares its file with the blocks that are held, at least.
COMPARE_BYTES_PER_SECOND = 8 << 20


class Phase(Enum):
    """
    The states of a stream.
    """

    WAITING = "waiting"
    RECEIVING = "receive"
    VERIFYING = "verify"
    PUBLISHING = "publish"
    ENDED = "ended"


class Owner(Protocol):
    """
    The session that a stream belongs to.
    """

    def send(self, *parts: bytes) -> None:
        """
        Write to the sender, unless it is gone.
        """

    def receivingChanged(self) -> None:
        """
        It became, or is no longer, the sender's turn.
        """

    def stored(self) -> None:
        """
        The file is stored: a sign of life.
        """

    def ended(self, number: int) -> None:
        """
        The stream is over.
        """


class _Life(Protocol):
    """
    The things that happen to a stream.
    """

    def opened(self, upload: Upload) -> None:
        """
        The store has opened a partial.
        """

    def committed(self, message: Commit) -> None:
        """
        The sender has sent everything.
        """

    def incomplete(self) -> None:
        """
        Blocks are wrong or missing, and were asked for.
        """

    def whole(self, root: bytes) -> None:
        """
        All blocks are right.
        """

    def finish(self, wire: bytes) -> None:
        """
        The store has given its answer.
        """

    def end(self, why: TransferError, keep: bool, wire: bytes) -> None:
        """
        Something else than the store ends it.

        @param keep: whether the verified blocks stay, to be resumed.
        @param wire: the answer; empty for none.
        """


class Stream:
    """
    One file that comes in C{DATA} frames.

    @param number: of the stream.
    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @ivar phase: its state, set by the machine alone.
    """

    _log = Logger()

    def __init__(
        self,
        owner: Owner,
        number: int,
        offer: Offer,
        sender: Sender,
        reception: Reception,
        clock: Any,
    ) -> None:
        self._owner = owner
        self._number = number
        self.offer = offer
        self._sender = sender
        self._reception = reception
        self._clock = clock
        self._life: _Life = _machine(self)
        self.phase = Phase.WAITING
        self._upload: Upload | None = None
        self._why = TransferError()
        self._place: Deferred[None] | None = None
        self._comparing: Any = None

    @property
    def receiving(self) -> bool:
        """
        Tell whether it is the sender's turn.
        """
        return self.phase is Phase.RECEIVING

    @property
    def over(self) -> bool:
        """
        Tell whether nothing more of the file is taken.
        """
        return self.phase is Phase.PUBLISHING or self.phase is Phase.ENDED

    @property
    def comparing(self) -> bool:
        """
        Tell whether the sender may be reading what is held, and send nothing.
        """
        return self.receiving and self._comparing is not None and self._comparing.active()

    @property
    def queued(self) -> bool:
        """
        Tell whether it waits for others to make way.
        """
        return self._place is not None and not self._place.called

    # -- beginning

    async def begin(self) -> None:
        """
        Open the partial and answer the offer.
        """
        sender, reception = self._sender, self._reception
        try:
            found = await reception.begin(self.offer, sender.peer, self.fail, self._waitsFor)
            if isinstance(found, Receipt):
                there = await earlierOf(reception.store, sender, self.offer, found)
                self._life.finish(receiptFrame(self._number, found, sender.identity, there))
                return
            try:
                upload = Upload(found, sender.digest, self)
            except TransferError as e:
                await found.abort(e)
                raise
            self._life.opened(upload)
        except CancelledError:
            pass  # it ended before others made way
        except TransferError as e:
            self._life.finish(rejectFrame(self._number, e))
        except Exception:
            self._log.failure("opening a partial failed")
            self._refuse(TransferError("the receiver failed; see its log"))

    def _waitsFor(self, place: Deferred[None]) -> None:
        self._place = place
        if self.over:
            place.cancel()

    def _refuse(self, why: TransferError) -> None:
        self._life.finish(rejectFrame(self._number, why))

    def _accept(self, upload: Upload) -> None:
        self._upload = upload
        verified = upload.blockmap.verified
        ranges, wire = heldRanges(verified)
        accept = Accept("resume" if ranges else "new", upload.incoming.partial.epoch, ranges)
        self._owner.send(encode(Type.ACCEPT, self._number, accept, len(wire)), wire)
        if ranges:
            seconds = len(verified) * self.offer.blockSize / COMPARE_BYTES_PER_SECOND
            self._comparing = self._clock.callLater(seconds, self._owner.receivingChanged)

    # -- frames

    def write(self, lane: Any, offset: int, view: memoryview) -> Deferred[None] | None:
        """
        Take bytes of C{DATA}.

        @return: L{None} when C{view} is not needed any more, or a Deferred that fires then.
        """
        if self.phase is Phase.WAITING:
            raise ProtocolError("DATA before ACCEPT")
        if self._upload is None or not self.receiving:
            return None
        return self._upload.write(lane, offset, view)

    def saved(self, count: int) -> None:
        """
        Count bytes of content that did not travel, because they came compressed.
        """
        if self._upload is not None:
            self._upload.incoming.saved += count
            self._reception.quotas.savedBytes += count

    def skip(self, lane: Any, start: int, length: int) -> Deferred[None]:
        """
        Take a hole.

        @return: fires when the next frame may be read.
        """
        if self.phase is Phase.WAITING:
            raise ProtocolError("HOLE before ACCEPT")
        if self._upload is None or not self.receiving:
            return succeed(None)
        return self._upload.skip(lane, start, start + length) or succeed(None)

    def frameReceived(self, frame: Frame, message: Any) -> None:
        """
        Take any other frame of this stream.
        """
        if self.phase is Phase.ENDED:
            return
        if frame.type is Type.CANCEL:
            cancel: Cancel = message
            self._life.end(Cancelled(f"the sender cancelled: {cancel.code!a}"), cancel.keep, b"")
            return
        if self._upload is None:
            raise ProtocolError(f"{frame.type.name} before ACCEPT")
        if not self.receiving:
            raise ProtocolError(f"{frame.type.name} after COMMIT")
        if frame.length != len(frame.data):
            raise ProtocolError(f"{frame.type.name} carries more than the file has blocks")
        if frame.type is Type.DIGESTS:
            self._upload.digests(message.first, frame.data)
        elif frame.type is Type.REVOKE:
            self._upload.revoke(unpackBlocks(frame.data))
        elif frame.type is Type.COMMIT:
            self._life.committed(message)
        else:
            raise ProtocolError(f"{frame.type.name} is not for a receiver")

    def takes(self, kind: Type, length: int) -> bool:
        """
        Tell whether a list of block digests or numbers is to be kept now.
        """
        if self._upload is None or not self.receiving:
            return False
        each = self._sender.digest.length if kind is Type.DIGESTS else NUMBER_BYTES
        return length <= each * self._upload.blockmap.most

    async def _verify(self, message: Commit) -> None:
        assert self._upload is not None
        try:
            whole = await self._upload.verify(message.size, message.root)
        except TransferError as e:
            self.fail(e, keep=not isinstance(e, DigestMismatch | ProtocolError))
        except Exception as e:
            self._log.failure("verifying failed")
            self.fail(TransferError(f"the receiver failed: {type(e).__name__}; see its log"))
        else:
            if whole:
                self._life.whole(message.root)
            else:
                self._life.incomplete()

    async def _publish(self, root: bytes) -> None:
        assert self._upload is not None
        try:
            await self._upload.incoming.checkpointed()
            receipt = await self._upload.incoming.commit(root)
        except TransferError as e:
            self._refuse(e)
        except Exception as e:
            self._log.failure("publishing failed")
            self._refuse(TransferError(f"the receiver failed: {type(e).__name__}; see its log"))
        else:
            self._owner.stored()
            self._life.finish(receiptFrame(self._number, receipt, self._sender.identity))

    def repair(self, blocks: list[int]) -> None:
        """
        Ask for blocks once more.
        """
        wire = packBlocks(blocks)
        self._owner.send(encode(Type.REPAIR, self._number, Repair(), len(wire)), wire)

    def progress(self) -> None:
        """
        Say how it goes.
        """
        upload = self._upload
        if upload is not None:
            # also when nothing comes any more; it may fail, and end the stream
            upload.checkpoint()
        if self.phase is Phase.ENDED:
            return
        if upload is None:
            message = Progress("receive", 0, "place" if self.queued else "disk")
        else:
            slow = upload.incoming.slowedBy
            phase: Any = self.phase.value
            message = Progress(phase, upload.durable, "" if slow == "peer" else slow)
        self._owner.send(encode(Type.PROGRESS, self._number, message))

    def laneLost(self, lane: Any) -> None:
        """
        Forget a joined connection that is gone.
        """
        if self._upload is not None:
            self._upload.laneLost(lane)

    # -- ends

    def fail(self, why: TransferError, keep: bool = True) -> None:
        """
        End it with C{REJECT}.  A file that is being published goes on.
        """
        self._life.end(why, keep, rejectFrame(self._number, why))

    def storeFailed(self, why: TransferError) -> None:
        """
        End it because the store failed.
        """
        # after an I/O error the blocks that are held cannot be trusted; a full disk is none
        self.fail(why, keep=why.retryable)

    def _close(self, wire: bytes) -> None:
        self.phase = Phase.ENDED
        if self._place is not None:
            self._place.cancel()
        if self._comparing is not None and self._comparing.active():
            self._comparing.cancel()
        if wire:
            self._owner.send(wire)
        self._owner.ended(self._number)

    def _run(self, task: Coroutine[Deferred[Any], Any, None]) -> None:
        d = Deferred.fromCoroutine(task)
        d.addErrback(lambda f: self._log.failure("a transfer failed", failure=f))


def _makeMachine() -> Callable[[Stream], _Life]:
    builder = TypeMachineBuilder(_Life, Stream)
    waiting = builder.state("waiting")
    receiving = builder.state("receiving")
    verifying = builder.state("verifying")
    publishing = builder.state("publishing")
    ended = builder.state("ended")

    @waiting.upon(_Life.opened).to(receiving)
    def accept(_life: _Life, stream: Stream, upload: Upload) -> None:
        stream.phase = Phase.RECEIVING
        stream._accept(upload)
        stream._owner.receivingChanged()

    @receiving.upon(_Life.committed).to(verifying)
    def verify(_life: _Life, stream: Stream, message: Commit) -> None:
        stream.phase = Phase.VERIFYING
        stream._owner.receivingChanged()
        stream._run(stream._verify(message))

    @verifying.upon(_Life.incomplete).to(receiving)
    def receive(_life: _Life, stream: Stream) -> None:
        stream.phase = Phase.RECEIVING
        stream._owner.receivingChanged()

    @verifying.upon(_Life.whole).to(publishing)
    def publish(_life: _Life, stream: Stream, root: bytes) -> None:
        stream.phase = Phase.PUBLISHING
        stream._run(stream._publish(root))

    @waiting.upon(_Life.finish).to(ended)
    @publishing.upon(_Life.finish).to(ended)
    def finish(_life: _Life, stream: Stream, wire: bytes) -> None:
        stream._close(wire)

    @waiting.upon(_Life.end).to(ended)
    @receiving.upon(_Life.end).to(ended)
    @verifying.upon(_Life.end).to(ended)
    def end(_life: _Life, stream: Stream, why: TransferError, keep: bool, wire: bytes) -> None:
        stream._why = why
        stream._close(wire)
        if stream._upload is not None:
            stream._run(stream._upload.letGo(why, keep))

    @ended.upon(_Life.opened).loop()
    def tooLate(_life: _Life, stream: Stream, upload: Upload) -> None:
        stream._run(upload.letGo(stream._why, True))

    # what comes too late changes nothing
    publishing.upon(_Life.end).loop().returns(None)
    for late in (_Life.incomplete, _Life.whole, _Life.finish, _Life.end):
        ended.upon(late).loop().returns(None)
    return builder.build()


_machine = _makeMachine()
