"""
The files that go by one session: the state of each, and what the receiver's answers mean.

A stream is told the answers by its L{SenderSession} and passes on their meaning
to the L{Exchange}, last of all waking it: state is final before anything else runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import (
    ChangedSource,
    DigestMismatch,
    NoSpace,
    ProtocolError,
    Skipped,
    SourceError,
    TransferError,
    Unsupported,
)
from connpool.transfer.digests import Digest, blockCount, digestNamed, rootOf
from connpool.transfer.holes import holeRuns, zeroDigest
from connpool.transfer.iothreads import InThread
from connpool.transfer.send.extents import Extents
from connpool.transfer.send.joblist import CHANGED_TRIES, Job, JobList, Small
from connpool.transfer.send.readahead import ReadAhead, blockDigests
from connpool.transfer.send.report import Reporter
from connpool.transfer.send.request import RequestedDurability, SendRequest
from connpool.transfer.send.session import SenderSession
from connpool.transfer.send.source import readRoot, wasRenamed
from connpool.transfer.send.walking import STDIN
from connpool.transfer.wire.frames import (
    NUMBER_BYTES,
    RANGE_BYTES,
    Frame,
    Type,
    packBlocks,
    readHeld,
    unpackBlocks,
)
from connpool.transfer.wire.messages import (
    ROOT,
    Accept,
    Ack,
    Commit,
    Progress,
    ReceiptMessage,
    Revoke,
    encode,
    extensionOf,
)
from connpool.waiting import Waiters

if TYPE_CHECKING:
    from connpool.transfer.send.packing import Packer

__all__ = ["Exchange", "Lane", "LargeStream", "SmallStream"]

#: How often a file is sent again when the receiver says that a
#: later try may succeed; and for a full disk, which few find space on within seconds.
LATER_TRIES, FULL_TRIES = 5, 2
#: The text with which receivers of version 0.1.0 refuse a file, also under the rule C{skip}.
_SKIPPED = "already exists on the receiver with different content"
#: Bytes that are read again between two signs of life.
_REHASH_SLICE_BYTES = 64 << 20
#: Bytes that are compared at once with what the receiver holds.
_COMPARE_SLICE_BYTES = 8 << 20


@attrs.frozen(eq=False)
class Lane:
    """
    A connection that carries extents.
    """

    session: SenderSession
    reader: ReadAhead
    primary: bool = False
    packer: Packer | None = None


#: By the value of a receipt's extension C{earlier}.
_EARLIER = {b"\0": "gone", b"\1": "there", b"\2": "unknown"}


def _earlier(receipt: ReceiptMessage | Ack) -> str:
    """
    @return: what became of a file that an earlier run stored: C{gone}, C{there} or
        C{unknown}; empty if it was stored now.
    """
    value = extensionOf(receipt, "earlier") if receipt.extensions else None
    return "" if value is None else _EARLIER.get(value, "unknown")


@attrs.define(eq=False, slots=False)
class Exchange:
    """
    The files that go by one session, and the meaning of the receiver's answers.

    @param jobs: where files go back to that are begun again.
    @ivar large: streams of files that go in C{DATA} frames, in the order of their offers.
    @ivar small: streams of files that go in one piece, and
    @ivar smallBytes: the bytes of these.
    @ivar running: coroutines beside the round.
    @ivar tellsEarlier: whether the receiver says what became of a file that an earlier run
        stored.
    @ivar advanced: whether any file was answered, or more of it is safe at the receiver than
        ever before.
    """

    _log = Logger()

    _reactor: Any
    session: SenderSession
    jobs: JobList
    request: SendRequest
    reporter: Reporter
    inThread: InThread
    large: dict[LargeStream, None] = attrs.field(factory=dict, init=False)
    small: dict[SmallStream, None] = attrs.field(factory=dict, init=False)
    smallBytes: int = attrs.field(default=0, init=False)
    running: int = attrs.field(default=0, init=False)
    advanced: bool = attrs.field(default=False, init=False)
    _unanswered: list[Job] = attrs.field(factory=list, init=False)
    _answered: bool = attrs.field(default=False, init=False)
    _waiters: Waiters = attrs.field(factory=Waiters, init=False)

    def __attrs_post_init__(self) -> None:
        self.tellsEarlier = "earlier" in self.session.capabilities
        self.durability = RequestedDurability(self.request.durability, self.session.capabilities)

    def wake(self) -> None:
        """
        Go on with the round: something happened.
        """
        self._waiters.wake()

    def turned(self) -> None:
        """
        Go on if small files were answered: once for all of a turn, which are many.
        """
        if self._answered:
            self._answered = False
            self.wake()

    async def event(self) -> None:
        """
        Wait until something happens.
        """
        something = self._waiters.wait()
        call = None
        if self.jobs.later:
            wait = min(job.due for job in self.jobs.later) - self._reactor.seconds()
            call = self._reactor.callLater(max(wait, 0.01), self.wake)
        try:
            await something
        finally:
            if call is not None and call.active():
                call.cancel()

    def spawn(self, coroutine: Any) -> None:
        """
        Run something beside the round.
        """
        self.running += 1

        def done(result: Any) -> None:
            self.running -= 1
            if isinstance(result, Failure) and not result.check(TransferError):
                self._log.failure("sending failed", failure=result)
                self.session.link.abort(TransferError(f"internal error: {result.value!r}"))
            self.wake()

        Deferred.fromCoroutine(coroutine).addBoth(done)

    def endLarge(self) -> None:
        """
        End the streams of large files: their session is over.
        """
        for stream in list(self.large):
            self._unanswered.append(stream.job)
            stream.end()

    def takeUnanswered(self) -> list[Job]:
        """
        Take the files that have had no answer.
        """
        left = self._unanswered + [stream.job for stream in self.small]
        self._unanswered = []
        self.small.clear()
        return left

    def stored(
        self,
        job: Job,
        receipt: ReceiptMessage | Ack,
        root: bytes | None,
        size: int,
        earlier: str = "",
    ) -> None:
        """
        Note a receipt.  L{turned} must follow.

        @param earlier: as in L{FileOutcome}.
        """
        self.advanced = self._answered = True
        self.reporter.stored(job, receipt, root, size, self.session, earlier)

    def anew(self, job: Job) -> None:
        """
        Send a file under a key of its own: its receipt is for another content.
        """
        if job.fresh or job.spent:
            self.refused(job, DigestMismatch("the receipt is for another content"), again=False)
            return
        job.fresh = os.urandom(32)
        self.jobs.again(job)
        self.wake()

    def refused(self, job: Job, why: TransferError, again: bool, durability: str = "none") -> None:
        """
        Send a file again later, or give it up.

        @param again: whether a later try may succeed.
        @param durability: the level that was asked for.
        """
        if self.request.ifExists == "skip" and str(why).endswith(_SKIPPED):
            why = Skipped(str(why))
        job.tries += 1
        tries = FULL_TRIES if isinstance(why, NoSpace) else LATER_TRIES
        if isinstance(why, Unsupported) and not job.spent and self.durability.lower(durability):
            self.jobs.again(job)
        elif again and job.tries <= tries and not self.request.dry:
            delay = 0.0 if isinstance(why, DigestMismatch) else min(0.5 * 2**job.tries, 10.0)
            due = self._reactor.seconds() + delay
            self.jobs.delay(job, due)
            if delay:
                self.reporter.delayed(job, why, due)
        else:
            self.failed(job, why)
        self.wake()

    def changed(self, stream: LargeStream) -> None:
        """
        Begin a file again, some times: somebody writes to it.
        """
        if stream.over:
            return
        job = stream.job
        why = ChangedSource("the file changed while it was sent")
        if job.path != STDIN and stream.fd is not None and wasRenamed(stream.fd, job.path):
            job.held = os.dup(stream.fd)
        else:
            self.jobs.moved(job)
        stream.cancel(why, keep=True)
        due = self.jobs.changed(job)
        if due is None:
            self.failed(job, ChangedSource(f"{why}, {CHANGED_TRIES} times; send it again"))
        else:
            self.reporter.delayed(job, why, due)

    def failed(self, job: Job, why: TransferError) -> None:
        """
        Note that a file is not going to be stored.
        """
        self.advanced = True
        self.reporter.failed(job, why)


class SmallStream:
    """
    The answer to one C{PUT}.
    """

    __slots__ = ("_durability", "_exchange", "_root", "job", "number", "size")

    def __init__(self, exchange: Exchange, small: Small) -> None:
        # not the content: up to 64 MiB are on their way
        self._exchange = exchange
        self.job = small.job
        self.size = len(small.data)
        self._root = small.root
        self._durability = exchange.durability.level
        self.number = exchange.session.open(self)
        exchange.small[self] = None
        exchange.smallBytes += self.size

    def _answered(self) -> None:
        del self._exchange.small[self]
        self._exchange.smallBytes -= self.size

    def takes(self, kind: Type, length: int) -> bool:
        return False

    def frameReceived(self, frame: Frame, message: Any) -> None:
        raise ProtocolError(f"{frame.type.name} for a PUT")

    def stored(self, receipt: ReceiptMessage | Ack) -> None:
        self._answered()
        if isinstance(receipt, ReceiptMessage) and receipt.root != self._root:
            self._exchange.anew(self.job)
        else:
            self._exchange.stored(self.job, receipt, self._root, self.size, _earlier(receipt))

    def rejected(self, why: TransferError, retryable: bool) -> None:
        self._answered()
        # damaged on the way: what a large file repairs block by block
        again = retryable or isinstance(why, DigestMismatch)
        self._exchange.refused(self.job, why, again, self._durability)


class LargeStream:
    """
    A file that goes in C{DATA} frames.

    @param fd: of a file that can be read anywhere; closed in the end.  L{None} for standard
        input.
    @ivar size: bytes; L{None} until known.
    @ivar accepted: whether the receiver takes it.
    @ivar extents: what is to be sent, once it is accepted; L{None} of standard input.
    @ivar holes: runs of blocks that are holes; see L{holeRuns}.
    @ivar tellsHoles: whether the receiver is told of holes.
    @ivar touched: lanes beside the first that carried some of it.
    @ivar settling: whether these are being waited for.
    @ivar root: what was committed; L{None} if nothing is.
    """

    def __init__(self, exchange: Exchange, job: Job, fd: int | None, blockSize: int) -> None:
        self._exchange = exchange
        self.job = job
        self.fd = fd
        self.size = job.size
        self.blockSize = blockSize
        self.number = exchange.session.open(self)
        exchange.large[self] = None
        self.accepted = False
        self.extents: Extents | None = None
        self.holes: list[tuple[int, int]] = []
        self.tellsHoles = False
        self.touched: set[Lane] = set()
        self.settling = False
        self.root: bytes | None = None
        self._durability = exchange.durability.level
        self.over = False
        self.busy = 0

    async def findHoles(self) -> None:
        """
        Look for the holes of a file that may have some.
        """
        exchange, fd, size = self._exchange, self.fd, self.size
        assert fd is not None
        assert size is not None
        self.hold(1)
        try:
            self.holes = await exchange.inThread(partial(holeRuns, fd, size, self.blockSize))
        finally:
            self.hold(-1)
        self.tellsHoles = "holes" in exchange.session.capabilities

    def takes(self, kind: Type, length: int) -> bool:
        if self.size is None:
            return False
        count = blockCount(self.size, self.blockSize)
        if kind is Type.ACCEPT:
            digest = self._exchange.session.digest.length
            return not self.accepted and length <= count * (RANGE_BYTES + digest)
        return self.accepted and length <= count * NUMBER_BYTES

    def frameReceived(self, frame: Frame, message: Any) -> None:
        exchange = self._exchange
        if isinstance(message, Progress):
            self._keep(message.durable)
            exchange.reporter.phase(self.job, message.phase, message.slow)
        elif isinstance(message, Accept):
            if self.accepted:
                raise ProtocolError("ACCEPT twice")
            self.accepted = True
            if message.state == "dry":
                exchange.session.forget(self.number)
                if self.fd is not None and self.job.root is None and _depends(message):
                    exchange.spawn(self._askWithRoot())
                    return
                self.end()
                exchange.reporter.wouldTake(self.job)
                exchange.wake()
                return
            self._accept(readHeld(message.ranges, frame.data, exchange.session.digest.length))
        elif frame.type is Type.REPAIR:
            if not self.accepted:
                raise ProtocolError("REPAIR before ACCEPT")
            self.root = None
            try:
                if self.job.spent:
                    raise DigestMismatch("standard input arrived damaged and cannot be read again")
                if self.extents is not None:
                    self.extents.repair(unpackBlocks(frame.data))
            except DigestMismatch as e:
                self.giveUp(e, keep=True)
        exchange.wake()

    def _accept(self, held: dict[int, bytes]) -> None:
        exchange, size, blockSize = self._exchange, self.size, self.blockSize
        kept = 0
        if size is not None:
            digest, extentBytes = exchange.session.digest, exchange.request.extentBytes
            told = self.holes if self.tellsHoles else []
            self.extents = Extents(size, blockSize, digest, held, extentBytes, told)
            kept = sum(min(blockSize, size - block * blockSize) for block in held)
        elif held:
            raise ProtocolError("the receiver holds blocks of a file that cannot be resumed")
        self._keep(kept)
        exchange.reporter.resumed(self.job, kept)
        if held:
            exchange.spawn(self._compare(sorted(held)))

    def _keep(self, count: int) -> None:
        # what was written says little: the kernel, or a proxy, takes megabytes
        blocks = min(count, self.size or 0) // self.blockSize
        if blocks > self.job.kept:
            self.job.kept, self._exchange.advanced = blocks, True

    async def _askWithRoot(self) -> None:
        """
        Read the content that the answer of a dry run depends on, and ask again.
        """
        exchange, job, fd, size = self._exchange, self.job, self.fd, self.size
        assert fd is not None
        assert size is not None
        root, why = None, None
        self.hold(1)
        try:
            root = await exchange.inThread(
                partial(readRoot, fd, size, exchange.session.digest, self.blockSize)
            )
        except OSError as e:
            why = SourceError(f"the file cannot be read: {e.strerror}")
        self.hold(-1)
        if self.over:
            return  # the connection was lost, and the file is asked about again
        self.end()
        if why is not None:
            exchange.failed(job, why)
        else:
            job.root = root
            exchange.jobs.large.append(job)
        exchange.wake()

    def commit(self, size: int, root: bytes) -> None:
        """
        Say that all of it was sent.
        """
        self.size, self.root = size, root
        self._exchange.session.writer.send(encode(Type.COMMIT, self.number, Commit(size, root)))

    def stored(self, receipt: ReceiptMessage | Ack) -> None:
        if not isinstance(receipt, ReceiptMessage):
            raise ProtocolError("ACK for an OFFER")
        if self.root is None and self.size is not None:
            # it had all of it before, it says: nothing goes any more
            self.extents = None
            self._exchange.spawn(self._reread(receipt, self.size))
        else:
            self._judge(receipt, self.root)

    def _judge(self, receipt: ReceiptMessage, root: bytes | None, earlier: str = "") -> None:
        self.end()
        if root is None or self.size is None or receipt.root != root:
            self._exchange.anew(self.job)
        else:
            self._exchange.stored(self.job, receipt, root, self.size, earlier)
            self._exchange.turned()

    async def _reread(self, receipt: ReceiptMessage, size: int) -> None:
        """
        Compare a receipt with our file, which may be removed by its word.
        """
        exchange, blockSize = self._exchange, self.blockSize
        count, step = blockCount(size, blockSize), max(1, _REHASH_SLICE_BYTES // blockSize)
        digests = [b""] * count
        try:
            digest = digestNamed(receipt.digest or "")
            for first, last in self.holes:
                digests[first:last] = [zeroDigest(digest, blockSize)] * (last - first)
            left = [block for block in range(count) if not digests[block]]
            for at in range(0, len(left), step):
                blocks = left[at : at + step]
                found = await self.readDigests(digest, size, blocks)
                for block, each in zip(blocks, found, strict=True):
                    digests[block] = each
                # it shall not take us for gone
                await exchange.session.ping()
                if self.over:
                    return
        except Unsupported:
            self._judge(receipt, None)
        except SourceError as e:
            self.end()
            exchange.refused(self.job, e, again=False)
        else:
            earlier = _earlier(receipt)
            if not (earlier or self.job.accepted or exchange.tellsEarlier):
                earlier = "unknown"  # a process before this one, and it cannot say more
            self._judge(receipt, rootOf(digest, size, blockSize, digests), earlier)

    async def readDigests(self, digest: Digest, size: int, blocks: Iterable[int]) -> list[bytes]:
        """
        Read blocks of the file.

        @raise SourceError: it cannot be read.
        """
        assert self.fd is not None
        self.hold(1)
        try:
            digests: list[bytes] = await self._exchange.inThread(
                partial(blockDigests, self.fd, digest, size, self.blockSize, blocks)
            )
        finally:
            self.hold(-1)
        return digests

    def rejected(self, why: TransferError, retryable: bool) -> None:
        self.end()
        # what cannot be read again is not begun again
        again = retryable and not self.job.spent
        self._exchange.refused(self.job, why, again, self._durability)

    def giveUp(self, why: TransferError, keep: bool) -> None:
        """
        Cancel it on our side, for good.
        """
        if not self.over:
            self.cancel(why, keep)
            self._exchange.refused(self.job, why, again=False)

    def cancel(self, why: TransferError, keep: bool) -> None:
        """
        Cancel it on our side.
        """
        self._exchange.session.cancel(self.number, why.code, keep)
        self.end()

    def end(self) -> None:
        """
        End the stream.
        """
        if not self.over:
            self.over = True
            self._exchange.large.pop(self, None)
            self._maybeClose()

    def hold(self, change: int) -> None:
        """
        Count those that read from the descriptor.
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
        extents, session = self.extents, self._exchange.session
        assert extents is not None
        step = max(1, _COMPARE_SLICE_BYTES // self.blockSize)
        for at in range(0, len(blocks), step):
            some = blocks[at : at + step]
            try:
                digests = await self.readDigests(session.digest, extents.size, some)
            except SourceError as e:
                self.giveUp(e, keep=True)
                return
            if self.over:
                return
            revoked = [b for b, d in zip(some, digests, strict=True) if extents.compared(b, d)]
            if revoked:
                wire = packBlocks(revoked)
                session.writer.send(encode(Type.REVOKE, self.number, Revoke(), len(wire)), wire)


def _depends(message: Accept) -> bool:
    """
    Tell whether a dry run's answer depends on the content.
    """
    return any(extension.name == ROOT for extension in message.extensions)
