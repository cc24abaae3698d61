"""
What a sender asks for, and what it knows of each stream.

A stream is told the receiver's answers by its L{SenderSession} and passes on what they
mean to the L{Transmission}, last of all waking it: state is final before
anything else runs.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from connpool.errors import DigestMismatch, ProtocolError, TransferError, Unsupported
from connpool.transfer.digests import BLOCK_SIZE, blockCount, digestNamed, rootOf
from connpool.transfer.native.blocks import packBlocks, readHeld, unpackBlocks
from connpool.transfer.native.frames import Frame, Type
from connpool.transfer.native.hashing import InThread
from connpool.transfer.native.messages import Accept, Ack, Progress, Receipting, Revoke, encode
from connpool.transfer.native.outgoing import EXTENT, Outgoing
from connpool.transfer.native.reading import ReadAhead, blockDigests, readFully
from connpool.transfer.native.sender import SenderSession
from connpool.transfer.native.work import Job, Small

if TYPE_CHECKING:
    from connpool.transfer.native.transmission import Transmission

__all__ = ["Asked", "Lane", "LargeStream", "SmallStream"]


@attrs.frozen
class Asked:
    """
    What the user wants done with every file.

    @ivar ifExists: one of L{IF_EXISTS}, or empty for the receiver's rule.
    @ivar durability: one of L{DURABILITIES}.
    @ivar dry: only ask.
    @ivar blockSize: smallest bytes of a block.
    @ivar extent: bytes of an extent.
    """

    ifExists: str = ""
    durability: str = "full"
    dry: bool = False
    blockSize: int = BLOCK_SIZE
    extent: int = EXTENT


class Lane:
    """
    One connection that carries runs.
    """

    def __init__(self, session: SenderSession, run: InThread, primary: bool = False) -> None:
        self.session = session
        self.reader = ReadAhead(run)
        self.primary = primary


def _anotherContent() -> DigestMismatch:
    return DigestMismatch("the receipt is for another content")


class SmallStream:
    """
    The answer to one C{PUT}.
    """

    def __init__(self, transmission: Transmission, small: Small) -> None:
        # not the content: up to 64 MiB are on their way
        self._transmission = transmission
        self.job = small.job
        self.size = len(small.data)
        self._root = small.root

    def frameReceived(self, frame: Frame, message: Any) -> None:
        raise ProtocolError(f"{frame.type.name} for a PUT")

    def stored(self, receipt: Receipting | Ack) -> None:
        self._transmission.smallAnswered(self)
        if isinstance(receipt, Receipting) and receipt.root != self._root:
            self._transmission.refused(self.job, _anotherContent(), again=False)
        else:
            self._transmission.stored(self.job, receipt, self._root, self.size)

    def rejected(self, why: TransferError, retryable: bool) -> None:
        self._transmission.smallAnswered(self)
        # damaged on the way: what a large file repairs block by block
        again = retryable or isinstance(why, DigestMismatch)
        self._transmission.refused(self.job, why, again)


class LargeStream:
    """
    A file that goes in runs.

    @ivar outgoing: L{None} until it is accepted.
    @ivar touched: lanes beside the first that carried some of it.
    """

    def __init__(self, transmission: Transmission, job: Job, fd: int, blockSize: int) -> None:
        self._transmission = transmission
        self.job = job
        self.fd = fd
        self.blockSize = blockSize
        self.number = transmission.session.open(self)
        self.outgoing: Outgoing | None = None
        self.touched: set[Lane] = set()
        self.committed = False
        self.over = False
        self.comparing = False
        self.busy = 0

    def frameReceived(self, frame: Frame, message: Any) -> None:
        transmission = self._transmission
        if isinstance(message, Progress):
            transmission.progressed(self, message)
        elif isinstance(message, Accept):
            if self.outgoing is not None:
                raise ProtocolError("ACCEPT twice")
            if message.state == "dry":
                transmission.session.forget(self.number)
                self.end()
                transmission.wouldTake(self.job)
                return
            digest = transmission.session.digest
            held = readHeld(message.runs, frame.data, digest.length)
            size = self.job.size
            if size is None and held:
                raise ProtocolError("the receiver holds blocks of a file that cannot be resumed")
            self.outgoing = Outgoing(
                size or 0, self.blockSize, digest, held, transmission.asked.extent
            )
            if size is not None:
                kept = sum(min(self.blockSize, size - b * self.blockSize) for b in held)
                transmission.resumed(self.job, kept)
            if held:
                self.comparing = True
                transmission.spawn(self._compare(sorted(held)))
        elif frame.type is Type.REPAIR:
            if self.outgoing is None:
                raise ProtocolError("REPAIR before ACCEPT")
            self.committed = False
            try:
                if self.job.size is None:
                    raise DigestMismatch("standard input arrived damaged and cannot be read again")
                self.outgoing.repair(unpackBlocks(frame.data))
            except DigestMismatch as e:
                self.giveUp(e, keep=True)
                transmission.refused(self.job, e, again=False)
        transmission.wake()

    def stored(self, receipt: Receipting | Ack) -> None:
        if not isinstance(receipt, Receipting):
            raise ProtocolError("ACK for an OFFER")
        if self.job.size is None:
            self.end()
            self._transmission.stored(self.job, receipt, receipt.root, receipt.size)
        elif self.committed and self.outgoing is not None:
            self._judge(receipt, self.outgoing.root())
        else:
            # it had all of it before, it says: nothing goes any more
            self.committed, self.outgoing = True, None
            self._transmission.spawn(self._reread(receipt))

    def _judge(self, receipt: Receipting, root: bytes) -> None:
        self.end()
        if receipt.root != root:
            self._transmission.refused(self.job, _anotherContent(), again=False)
        else:
            self._transmission.stored(self.job, receipt, root, receipt.size)

    async def _reread(self, receipt: Receipting) -> None:
        """
        Whether the receiver has what we have: our source may go by its word.
        """
        transmission, size, blockSize = self._transmission, self.job.size, self.blockSize
        assert size is not None
        self.hold(1)
        try:
            digest = digestNamed(receipt.digest or "")
            buffer = memoryview(bytearray(min(blockSize, 1 << 20)))
            count, step = blockCount(size, blockSize), max(1, (64 << 20) // blockSize)
            digests: list[bytes] = []
            for at in range(0, count, step):
                blocks = range(at, min(at + step, count))
                digests += await transmission.inThread(
                    partial(blockDigests, self.fd, digest, size, blockSize, blocks, buffer)
                )
                # it shall not take us for gone
                await transmission.session.ping()
                if self.over:
                    return
            self._judge(receipt, rootOf(digest, size, blockSize, digests))
        except (Unsupported, OSError):
            self.end()
            transmission.refused(self.job, _anotherContent(), again=False)
        finally:
            self.hold(-1)

    def rejected(self, why: TransferError, retryable: bool) -> None:
        self.end()
        self._transmission.refused(self.job, why, retryable)

    def giveUp(self, why: TransferError, keep: bool) -> None:
        """
        Cancel it on our side.
        """
        if not self.over:
            self._transmission.session.cancel(self.number, why.code, keep)
            self.end()

    def end(self) -> None:
        """
        The stream is over.
        """
        if not self.over:
            self.over = True
            self._transmission.streamOver(self)
            self._maybeClose()

    def hold(self, change: int) -> None:
        """
        Somebody reads from the descriptor, or does not any more.
        """
        self.busy += change
        self._maybeClose()

    def _maybeClose(self) -> None:
        # a thread may still be reading
        if self.over and not self.busy and self.fd > 0:
            os.close(self.fd)
            self.fd = -1

    async def _compare(self, blocks: list[int]) -> None:
        """
        Read what the receiver holds and see whether it is still the same.
        """
        outgoing = self.outgoing
        assert outgoing is not None
        digest, size = self._transmission.session.digest, self.blockSize
        step = max(1, (8 << 20) // size)
        self.hold(1)
        try:
            buffer = memoryview(bytearray(min(size, 1 << 20)))

            def hash_(some: list[int]) -> list[bytes]:
                found = []
                for block in some:
                    hasher = digest.new()
                    at, end = block * size, min((block + 1) * size, outgoing.size)
                    while at < end:
                        view = buffer[: end - at]
                        count = readFully(self.fd, view, at)
                        hasher.update(view[:count])
                        if not count:
                            break
                        at += count
                    found.append(hasher.digest())
                return found

            for at in range(0, len(blocks), step):
                some = blocks[at : at + step]
                digests = await self._transmission.inThread(partial(hash_, some))
                if self.over:
                    return
                revoked = [b for b, d in zip(some, digests, strict=True) if outgoing.compared(b, d)]
                if revoked:
                    wire = packBlocks(revoked)
                    self._transmission.session.outlet.send(
                        encode(Type.REVOKE, self.number, Revoke(), len(wire)), wire
                    )
        finally:
            self.comparing = False
            self.hold(-1)
            self._transmission.wake()
