"""
The wishes of a sender, and the state of each of its streams.

A stream is told the receiver's answers by its L{SenderSession} and passes on what they
mean to the L{Transmission}, last of all waking it: state is final before
anything else runs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from connpool.errors import (
    DigestMismatch,
    ProtocolError,
    SourceError,
    TransferError,
    Unsupported,
)
from connpool.transfer.digests import BLOCK_SIZE, Digest, blockCount, digestNamed, rootOf
from connpool.transfer.hashing import InThread
from connpool.transfer.receive.blockmap import packBlocks, readHeld, unpackBlocks
from connpool.transfer.records import DURABILITIES
from connpool.transfer.send.extents import EXTENT, Outgoing
from connpool.transfer.send.joblist import Job, Small
from connpool.transfer.send.readahead import ReadAhead, blockDigests
from connpool.transfer.send.session import SenderSession
from connpool.transfer.wire.frames import Frame, Type
from connpool.transfer.wire.messages import (
    ROOT,
    Accept,
    Ack,
    Commit,
    Progress,
    Receipting,
    Revoke,
    encode,
    extensionOf,
)

if TYPE_CHECKING:
    from connpool.transfer.send.transmission import Transmission

__all__ = ["Asked", "Lane", "LargeStream", "SmallStream"]

#: Bytes of a run of blocks in C{ACCEPT}, and of a block number in C{REPAIR}.
_RUN_BYTES, _NUMBER_BYTES = 8, 4


@attrs.frozen
class Asked:
    """
    The user's wishes for every file.

    @ivar ifExists: one of L{IF_EXISTS}, or empty for the receiver's rule.
    @ivar durability: one of L{ASKABLE_DURABILITIES}.
    @ivar dry: only ask.
    @ivar blockSize: smallest bytes of a block.
    @ivar extent: bytes of an extent.
    """

    ifExists: str = ""
    durability: str = "best"
    dry: bool = False
    blockSize: int = BLOCK_SIZE
    extent: int = EXTENT


class Level:
    """
    The durability that the files of one session are asked for.

    @param wanted: one of L{ASKABLE_DURABILITIES}.
    @param capabilities: of the session.
    @ivar asked: the same, in words that the receiver knows.
    """

    def __init__(self, wanted: str, capabilities: Collection[str]) -> None:
        self._open = wanted == "best"
        self.asked = "full" if self._open and "best" not in capabilities else wanted

    def lower(self, refused: str) -> bool:
        """
        Ask for less than a level that was refused, if it was left open which one it is.

        @return: whether there is less to ask for.
        """
        if not self._open or refused not in {"data", "full"}:
            return False
        if refused == self.asked:
            self.asked = DURABILITIES[DURABILITIES.index(refused) - 1]
        return True


class Lane:
    """
    One connection that carries runs.
    """

    def __init__(self, session: SenderSession, run: InThread, primary: bool = False) -> None:
        self.session = session
        self.reader = ReadAhead(run)
        self.primary = primary


#: By the value of a receipt's extension C{earlier}.
_EARLIER = {b"\0": "gone", b"\1": "there", b"\2": "unknown"}


def _earlier(receipt: Receipting | Ack) -> str:
    """
    @return: what became of a file that an earlier run stored: C{gone}, C{there} or
        C{unknown}; empty if it was stored now.
    """
    value = extensionOf(receipt, "earlier")
    return "" if value is None else _EARLIER.get(value, "unknown")


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
        self._durability = transmission.level.asked

    def takes(self, kind: Type, length: int) -> bool:
        return False

    def frameReceived(self, frame: Frame, message: Any) -> None:
        raise ProtocolError(f"{frame.type.name} for a PUT")

    def stored(self, receipt: Receipting | Ack) -> None:
        self._transmission.smallAnswered(self)
        if isinstance(receipt, Receipting) and receipt.root != self._root:
            self._transmission.anew(self.job)
        else:
            self._transmission.stored(self.job, receipt, self._root, self.size, _earlier(receipt))

    def rejected(self, why: TransferError, retryable: bool) -> None:
        self._transmission.smallAnswered(self)
        # damaged on the way: what a large file repairs block by block
        again = retryable or isinstance(why, DigestMismatch)
        self._transmission.refused(self.job, why, again, self._durability)


class LargeStream:
    """
    A file that goes in runs.

    @param fd: of a file that can be read anywhere; closed in the end.  L{None} for standard
        input.
    @ivar size: bytes; L{None} until known.
    @ivar accepted: whether the receiver takes it.
    @ivar outgoing: what is to be sent, once it is accepted; L{None} of standard input.
    @ivar touched: lanes beside the first that carried some of it.
    @ivar settling: whether these are being waited for.
    @ivar root: what was committed; L{None} if nothing is.
    """

    def __init__(
        self, transmission: Transmission, job: Job, fd: int | None, blockSize: int
    ) -> None:
        self._transmission = transmission
        self.job = job
        self.fd = fd
        self.size = job.size
        self.blockSize = blockSize
        self.number = transmission.session.open(self)
        self.accepted = False
        self.outgoing: Outgoing | None = None
        self.touched: set[Lane] = set()
        self.settling = False
        self.root: bytes | None = None
        self._durability = transmission.level.asked
        self.over = False
        self.busy = 0

    def takes(self, kind: Type, length: int) -> bool:
        if self.size is None:
            return False
        count = blockCount(self.size, self.blockSize)
        if kind is Type.ACCEPT:
            digest = self._transmission.session.digest.length
            return not self.accepted and length <= count * (_RUN_BYTES + digest)
        return self.accepted and length <= count * _NUMBER_BYTES

    def frameReceived(self, frame: Frame, message: Any) -> None:
        transmission = self._transmission
        if isinstance(message, Progress):
            transmission.progressed(self, message)
        elif isinstance(message, Accept):
            if self.accepted:
                raise ProtocolError("ACCEPT twice")
            self.accepted = True
            if message.state == "dry":
                transmission.session.forget(self.number)
                if self.fd is not None and self.job.root is None and _depends(message):
                    transmission.spawn(transmission.compare(self))
                    return
                self.end()
                transmission.wouldTake(self.job)
                return
            self._accept(readHeld(message.runs, frame.data, transmission.session.digest.length))
        elif frame.type is Type.REPAIR:
            if not self.accepted:
                raise ProtocolError("REPAIR before ACCEPT")
            self.root = None
            try:
                if self.job.spent:
                    raise DigestMismatch("standard input arrived damaged and cannot be read again")
                if self.outgoing is not None:
                    self.outgoing.repair(unpackBlocks(frame.data))
            except DigestMismatch as e:
                self.giveUp(e, keep=True)
        transmission.wake()

    def _accept(self, held: dict[int, bytes]) -> None:
        transmission, size, blockSize = self._transmission, self.size, self.blockSize
        kept = 0
        if size is not None:
            digest, extent = transmission.session.digest, transmission.asked.extent
            self.outgoing = Outgoing(size, blockSize, digest, held, extent)
            kept = sum(min(blockSize, size - block * blockSize) for block in held)
        elif held:
            raise ProtocolError("the receiver holds blocks of a file that cannot be resumed")
        transmission.resumed(self, kept)
        if held:
            transmission.spawn(self._compare(sorted(held)))

    def commit(self, size: int, root: bytes) -> None:
        """
        All of it was sent.
        """
        self.size, self.root = size, root
        self._transmission.session.writer.send(encode(Type.COMMIT, self.number, Commit(size, root)))

    def stored(self, receipt: Receipting | Ack) -> None:
        if not isinstance(receipt, Receipting):
            raise ProtocolError("ACK for an OFFER")
        if self.root is None and self.size is not None:
            # it had all of it before, it says: nothing goes any more
            self.outgoing = None
            self._transmission.spawn(self._reread(receipt, self.size))
        else:
            self._judge(receipt, self.root)

    def _judge(self, receipt: Receipting, root: bytes | None, earlier: str = "") -> None:
        self.end()
        if root is None or self.size is None or receipt.root != root:
            self._transmission.anew(self.job)
        else:
            self._transmission.stored(self.job, receipt, root, self.size, earlier)

    async def _reread(self, receipt: Receipting, size: int) -> None:
        """
        Compare a receipt with our file, which may be removed by its word.
        """
        transmission, blockSize = self._transmission, self.blockSize
        count, step = blockCount(size, blockSize), max(1, (64 << 20) // blockSize)
        digests: list[bytes] = []
        try:
            digest = digestNamed(receipt.digest or "")
            for at in range(0, count, step):
                blocks = range(at, min(at + step, count))
                digests += await self._digests(digest, size, blocks)
                # it shall not take us for gone
                await transmission.session.ping()
                if self.over:
                    return
        except Unsupported:
            self._judge(receipt, None)
        except SourceError as e:
            self.end()
            transmission.refused(self.job, e, again=False)
        else:
            earlier = _earlier(receipt)
            if not (earlier or self.job.accepted or transmission.tellsEarlier):
                earlier = "unknown"  # a process before this one, and it cannot say more
            self._judge(receipt, rootOf(digest, size, blockSize, digests), earlier)

    async def _digests(self, digest: Digest, size: int, blocks: Iterable[int]) -> list[bytes]:
        assert self.fd is not None
        self.hold(1)
        try:
            digests: list[bytes] = await self._transmission.inThread(
                partial(blockDigests, self.fd, digest, size, self.blockSize, blocks)
            )
        finally:
            self.hold(-1)
        return digests

    def rejected(self, why: TransferError, retryable: bool) -> None:
        self.end()
        # what cannot be read again is not begun again
        again = retryable and not self.job.spent
        self._transmission.refused(self.job, why, again, self._durability)

    def giveUp(self, why: TransferError, keep: bool) -> None:
        """
        Cancel it on our side, for good.
        """
        if not self.over:
            self.cancel(why, keep)
            self._transmission.refused(self.job, why, again=False)

    def cancel(self, why: TransferError, keep: bool) -> None:
        """
        Cancel it on our side.
        """
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
        if self.over and not self.busy and self.fd is not None:
            os.close(self.fd)
            self.fd = None

    async def _compare(self, blocks: list[int]) -> None:
        """
        Read what the receiver holds and see whether it is still the same.
        """
        outgoing, session = self.outgoing, self._transmission.session
        assert outgoing is not None
        step = max(1, (8 << 20) // self.blockSize)
        for at in range(0, len(blocks), step):
            some = blocks[at : at + step]
            try:
                digests = await self._digests(session.digest, outgoing.size, some)
            except SourceError as e:
                self.giveUp(e, keep=True)
                return
            if self.over:
                return
            revoked = [b for b, d in zip(some, digests, strict=True) if outgoing.compared(b, d)]
            if revoked:
                wire = packBlocks(revoked)
                session.writer.send(encode(Type.REVOKE, self.number, Revoke(), len(wire)), wire)


def _depends(message: Accept) -> bool:
    """
    Tell whether a dry run's answer depends on the content.
    """
    return any(extension.name == ROOT for extension in message.extensions)
