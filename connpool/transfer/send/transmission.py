"""
One session's worth of sending.

Theory of operation
===================
L{Transmission.run} goes round: send small files while the receiver's limits allow, offer
large ones some ahead, send an extent, commit what is complete; when nothing of that is
possible, wait for an answer.  Directories come last (L{Directories}).  It returns when
every file of the work list had an answer, or fails with what ended the connection; then
L{Transmission.unfinished} are the files that have had none, and they go with the next
session.

Further connections (I{lanes}) take extents of the same files.  A file is committed only after
each lane that carried some of it answered a PING, so its bytes have arrived.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import (
    Cancelled,
    ChangedSource,
    DigestMismatch,
    NoSpace,
    Skipped,
    SourceError,
    TransferError,
    Unsupported,
)
from connpool.transfer.digests import chooseBlockSize
from connpool.transfer.hashing import InThread
from connpool.transfer.send.directories import Directories
from connpool.transfer.send.extents import Extent, Outgoing
from connpool.transfer.send.joblist import Job, Small, WorkList, resumeKey
from connpool.transfer.send.readahead import stdinDescriptor
from connpool.transfer.send.session import SenderSession
from connpool.transfer.send.source import readRoot, unchanged, wasRenamed
from connpool.transfer.send.standardinput import sendStandardInput
from connpool.transfer.send.streams import Asked, Lane, LargeStream, Level, SmallStream
from connpool.transfer.send.walking import STDIN
from connpool.transfer.wire.frames import MAX_RUN, Type
from connpool.transfer.wire.messages import (
    ROOT,
    Ack,
    Data,
    Digests,
    Extension,
    Offering,
    Progress,
    Put,
    Receipting,
    carryTime,
    encode,
)
from connpool.waiting import Waiters

__all__ = ["Asked", "Lane", "Transmission"]

#: Large files offered at once: their answers come while another is sent.
OFFERS = 16
#: How often a file is sent again for a reason of its own; when the receiver says that a
#: later try may succeed; and for a full disk, which few find space on within seconds.
TRIES, LATER_TRIES, FULL_TRIES = 3, 5, 2
#: The text with which receivers of version 0.1.0 refuse a file, also under the rule C{skip}.
_SKIPPED = "already exists on the receiver with different content"


class Transmission:
    """
    @param report: told what became of each file: C{stored(job, receipt, root,
        size, session, earlier)}, C{failed(job, error)}, C{directoryMade()},
        C{directoriesLeftOut(count)}, C{wouldTake(job)}, C{sent(job, bytes)},
        C{resumed(job, bytes)} when it is accepted, C{phase(job, phase, slow)},
        C{delayed(job, error, due)} when it is offered again later, C{slowed(word)} when the
        receiver says what small files wait for.
    @param lane: connects a further lane, or L{None}.
    @param lanes: how many further lanes there may be.
    @ivar tellsEarlier: whether the receiver says what became of a file that an earlier run
        stored.
    @ivar advanced: whether any file was answered, or more of it is safe at the receiver than
        ever before.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        session: SenderSession,
        work: WorkList,
        asked: Asked,
        report: Any,
        inThread: InThread,
        lane: Callable[[], Any] | None = None,
        lanes: int = 0,
    ) -> None:
        self._reactor = reactor
        self.session = session
        self.work = work
        self.asked = asked
        self.report = report
        self.inThread = inThread
        self._connectLane = lane
        self._mostLanes = lanes if lane is not None and "join" in session.capabilities else 0
        self._lanes = 0
        #: connections that are being made
        self._connecting: set[Deferred[Any]] = set()
        self._large: list[LargeStream] = []
        self._small: dict[SmallStream, None] = {}
        self._directories = Directories(self, report)
        self._smallBytes = 0
        self._waiters = Waiters()
        self._again: list[Job] = []
        self._over = False
        self._running = 0
        self.tellsEarlier = "earlier" in session.capabilities
        self.level = Level(asked.durability, session.capabilities)
        self.advanced = False
        session.onLost = lambda _: self.wake()
        session.onSlow = report.slowed

    # -- the round

    async def run(self) -> None:
        """
        @raise TransferError: what ended the connection.
        """
        lane = Lane(self.session, self.inThread, primary=True)
        self.session.start()
        try:
            while True:
                if self.session.lost is not None:
                    raise self.session.lost
                self.work.wake(self._reactor.seconds())
                did = await self._puts()
                did = await self._offers() or did
                did = await self._extent(lane) or did
                did = self._commits() or did
                busy = self._large or self._small or self._running
                did = did or (not busy and self._directories.sendSome())
                if not did:
                    if self._finished:
                        return
                    await self.event()
        finally:
            self._over = True
            for connecting in list(self._connecting):
                connecting.cancel()
            self.wake()
            for stream in self._large[:]:
                self._again.append(stream.job)
                stream.end()
            self._directories.giveBack()
            await lane.reader.stop()
            self.session.writer.rest()

    @property
    def unfinished(self) -> list[Job]:
        """
        The files that have had no answer.
        """
        left = self._again + [stream.job for stream in self._small]
        self._again = []
        self._small.clear()
        return left

    @property
    def _finished(self) -> bool:
        if self._large or self._small or self._directories.waiting:
            return False
        # a connection that is still being made has nothing of ours
        running = self._running - len(self._connecting)
        return self.session.stopping or (self.work.empty and not running)

    def wake(self) -> None:
        """
        Something happened.
        """
        self._waiters.wake()

    async def event(self) -> None:
        """
        Wait until something happens.
        """
        something = self._waiters.wait()
        call = None
        if self.work.later:
            wait = min(job.due for job in self.work.later) - self._reactor.seconds()
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
        self._running += 1

        def done(result: Any) -> None:
            self._running -= 1
            if isinstance(result, Failure) and not result.check(TransferError):
                self._log.failure("sending failed", failure=result)
                self.session.link.abort(TransferError(f"internal error: {result.value!r}"))
            self.wake()

        Deferred.fromCoroutine(coroutine).addBoth(done)

    # -- small files

    async def _puts(self) -> bool:
        work, session, limits = self.work, self.session, self.session.limits
        did = False
        more = work.wantsMore and len(work.large) < OFFERS and not session.stopping
        if more and not work.small:
            small = -1 if self.asked.dry else limits.small
            await work.fill(small, session.digest, afresh=not self.tellsEarlier)
            did = True
        if work.small:
            await session.writer.flushed()
        batch: list[bytes] = []
        size = 0
        # it may have said GOAWAY while we waited
        while work.small and size < 1 << 20 and not session.stopping:
            data = work.small[0].data
            if (
                len(self._small) >= limits.inflightFiles
                or self._smallBytes + len(data) > limits.inflightBytes
            ):
                break
            small_ = work.small.popleft()
            stream = SmallStream(self, small_)
            self._small[stream] = None
            self._smallBytes += len(data)
            batch.append(self._put(session.open(stream), small_))
            batch.append(data)
            size += len(data) + 256
        if batch:
            session.writer.send(*batch)
            did = True
        return did

    def _put(self, number: int, small: Small) -> bytes:
        job = small.job
        assert job.status is not None
        modified, extensions = carryTime(job.status.st_mtime_ns)
        message = Put(
            job.transferId,
            job.name,
            job.key,
            small.root,
            modified,
            bool(job.status.st_mode & 0o111),
            self.asked.ifExists,  # type: ignore[arg-type]
            self.level.asked,  # type: ignore[arg-type]
            extensions,
        )
        self.report.sent(job, len(small.data))
        return encode(Type.PUT, number, message, len(small.data))

    def smallAnswered(self, stream: SmallStream) -> None:
        """
        A PUT had its answer.
        """
        del self._small[stream]
        self._smallBytes -= stream.size

    # -- large files

    async def _offers(self) -> bool:
        work, session = self.work, self.session
        did = False
        room = min(OFFERS, session.limits.streams)
        while work.large and len(self._large) < room and not session.stopping:
            job = work.large.popleft()
            did = True
            if job.path == STDIN:
                self._offerStdin(job)
                continue
            try:
                fd = work.open(job)
            except TransferError as e:
                self._failed(job, e)
                continue
            assert job.size is not None
            blockSize = chooseBlockSize(job.size, self.asked.blockSize)
            stream = LargeStream(self, job, fd, blockSize)
            self._large.append(stream)
            self._offer(stream)
        if did:
            await session.writer.flushed()
        return did

    def _offer(self, stream: LargeStream) -> None:
        job, status = stream.job, stream.job.status
        modified, extensions = carryTime(None if status is None else status.st_mtime_ns)
        if job.root is not None:
            extensions += (Extension(ROOT, False, job.root),)
        message = Offering(
            job.transferId,
            job.name,
            job.key,
            job.size,
            stream.blockSize,
            None if status is None else resumeKey(job, self.work.run),
            modified,
            status is not None and bool(status.st_mode & 0o111),
            self.asked.ifExists,  # type: ignore[arg-type]
            self.level.asked,  # type: ignore[arg-type]
            self.asked.dry,
            extensions,
        )
        self.session.writer.send(encode(Type.OFFER, stream.number, message))

    async def _extent(self, lane: Lane) -> bool:
        """
        Send one extent over a lane.
        """
        for stream in self._large:
            outgoing = stream.outgoing
            extent = outgoing.take(lane.primary) if outgoing is not None else None
            if outgoing is not None and extent is not None:
                if outgoing.waiting and self._lanes < self._mostLanes:
                    self._lanes += 1
                    self.spawn(self._further())
                if not lane.primary:
                    stream.touched.add(lane)
                try:
                    whole = await self._send(lane, stream, extent)
                except BaseException:
                    outgoing.lost(extent)
                    raise
                if whole:
                    outgoing.sent(extent)
                return True
        return False

    async def _send(self, lane: Lane, stream: LargeStream, extent: Extent) -> bool:
        """
        @return: whether all of it was sent; not if the stream ended meanwhile.
        """
        session, writer, reader = lane.session, lane.session.writer, lane.reader
        outgoing, fd = stream.outgoing, stream.fd
        assert outgoing is not None
        assert fd is not None
        stream.hold(1)
        try:
            reader.start(fd, extent, stream.blockSize, session.digest)
            at = extent.start
            while at < extent.end:
                if stream.over:
                    return False
                end = min(at + MAX_RUN, extent.end)
                # a block that spans runs has its digest after the last one
                digests: list[bytes] = []
                first = 0
                short = False
                failed: SourceError | None = None
                # once begun, a run has all its bytes, whatever they are
                async with writer.run(encode(Type.DATA, stream.number, Data(at), end - at)):
                    while at < end:
                        chunk = await reader.chunk()
                        await writer.write(chunk.view)
                        at += len(chunk.view)
                        self.report.sent(stream.job, len(chunk.view))
                        short = short or chunk.short
                        failed = failed or chunk.error
                        if chunk.block is not None and chunk.digest is not None:
                            outgoing.digests[chunk.block] = chunk.digest
                            first = first if digests else chunk.block
                            digests.append(chunk.digest)
                        reader.free(chunk)
                if failed is not None:
                    stream.giveUp(failed, keep=True)
                    return False
                if digests:
                    wire = b"".join(digests)
                    message = Digests(first)
                    writer.send(encode(Type.DIGESTS, stream.number, message, len(wire)), wire)
                if short:
                    self._changed(stream)
                    return False
            return True
        finally:
            await reader.stop()
            stream.hold(-1)

    def _commits(self) -> bool:
        did = False
        for stream in self._large[:]:
            outgoing = stream.outgoing
            if outgoing is None or stream.root is not None or stream.settling:
                continue
            if not outgoing.complete:
                continue
            if stream.touched:
                lanes = [lane for lane in stream.touched if lane.session.lost is None]
                stream.touched.clear()
                if lanes:
                    stream.settling = True
                    self.spawn(self._settle(stream, lanes))
                    continue
            self._commit(stream, outgoing)
            did = True
        return did

    async def _settle(self, stream: LargeStream, lanes: list[Lane]) -> None:
        """
        Until what went over further lanes has arrived.
        """
        for lane in lanes:
            try:
                await lane.session.ping()
            except TransferError:
                continue  # what it lost will be asked for
        stream.settling = False

    def _commit(self, stream: LargeStream, outgoing: Outgoing) -> None:
        assert stream.job.status is not None
        assert stream.fd is not None
        if not unchanged(stream.fd, stream.job.status):
            self._changed(stream)
            return
        stream.commit(outgoing.size, outgoing.root())
        self.report.phase(stream.job, "publish", "")

    def _changed(self, stream: LargeStream) -> None:
        """
        Somebody writes to the source: begin again, some times.
        """
        if stream.over:
            return
        job = stream.job
        why = ChangedSource(f"the file changed while it was sent, {TRIES} times; send it again")
        if job.path != STDIN and stream.fd is not None and wasRenamed(stream.fd, job.path):
            job.held = os.dup(stream.fd)
        else:
            self.work.moved(job)
        stream.cancel(why, keep=True)
        job.tries += 1
        if job.tries < TRIES:
            self.work.again(job)
        else:
            self._failed(job, why)

    # -- standard input

    def _offerStdin(self, job: Job) -> None:
        job.key = os.urandom(32)
        try:
            fd = stdinDescriptor()
        except SourceError as e:
            self._failed(job, e)
            return
        stream = LargeStream(self, job, None, chooseBlockSize(None, self.asked.blockSize))
        self._large.append(stream)
        self._offer(stream)
        self.spawn(sendStandardInput(self, stream, fd))

    # -- lanes

    async def _further(self) -> None:
        """
        One more connection, for as long as there are extents.
        """
        assert self._connectLane is not None
        connecting = Deferred.fromCoroutine(self._connectLane())
        self._connecting.add(connecting)
        try:
            connection = await connecting
        except Exception as e:
            self._log.info("no further connection: {why}", why=str(e))
            self._mostLanes -= 1
            self._lanes -= 1
            return
        finally:
            self._connecting.discard(connecting)
        lane = Lane(connection.session, self.inThread)
        lane.session.onLost = lambda _: self.wake()
        try:
            await lane.session.join(self.session.ticket)
            lane.session.start()
            while not self._over and lane.session.lost is None:
                if not await self._extent(lane):
                    if not self._large and self.work.filesDone:
                        break
                    await self.event()
        except TransferError as e:
            self._log.info("a further connection was lost: {why}", why=str(e))
        finally:
            self._lanes -= 1
            await lane.reader.stop()
            connection.discard()

    def drop(self, path: str) -> bool:
        """
        Give up one file that has been begun here; the others go on.

        @return: whether there was one.
        """
        for stream in self._large:
            if stream.job.path == path:
                stream.giveUp(Cancelled("given up"), keep=False)
                return True
        return False

    # -- what became of them

    def streamOver(self, stream: LargeStream) -> None:
        """
        It has had its answer; who says so wakes the round afterwards.
        """
        if stream in self._large:
            self._large.remove(stream)

    def stored(
        self,
        job: Job,
        receipt: Receipting | Ack,
        root: bytes | None,
        size: int,
        earlier: str = "",
    ) -> None:
        """
        The receiver has it; or it had it before, and C{earlier} says what became of it.
        """
        self.advanced = True
        self.report.stored(job, receipt, root, size, self.session, earlier)
        self.wake()

    def anew(self, job: Job) -> None:
        """
        The receipt is for another content: the file goes under a key of its own.
        """
        if job.fresh or job.spent:
            self.refused(job, DigestMismatch("the receipt is for another content"), again=False)
            return
        job.fresh = os.urandom(32)
        self.work.again(job)
        self.wake()

    def refused(self, job: Job, why: TransferError, again: bool, durability: str = "none") -> None:
        """
        The receiver does not take it, or not now.

        @param durability: the level that was asked for.
        """
        if self.asked.ifExists == "skip" and str(why).endswith(_SKIPPED):
            why = Skipped(str(why))
        job.tries += 1
        tries = FULL_TRIES if isinstance(why, NoSpace) else LATER_TRIES
        if isinstance(why, Unsupported) and not job.spent and self.level.lower(durability):
            self.work.again(job)
        elif again and job.tries <= tries and not self.asked.dry:
            delay = 0.0 if isinstance(why, DigestMismatch) else min(0.5 * 2**job.tries, 10.0)
            due = self._reactor.seconds() + delay
            self.work.delay(job, due)
            if delay:
                self.report.delayed(job, why, due)
        else:
            self._failed(job, why)
        self.wake()

    async def compare(self, stream: LargeStream) -> None:
        """
        In a dry run the answer depends on the content: read it and ask again.
        """
        job, fd, size = stream.job, stream.fd, stream.size
        assert fd is not None
        assert size is not None
        digest, root, why = self.session.digest, None, None
        stream.hold(1)
        try:
            root = await self.inThread(lambda: readRoot(fd, size, digest, stream.blockSize))
        except OSError as e:
            why = SourceError(f"the file cannot be read: {e.strerror}")
        stream.hold(-1)
        if stream.over:
            return  # the connection was lost, and the file is asked about again
        stream.end()
        if why is not None:
            self._failed(job, why)
        else:
            job.root = root
            self.work.large.append(job)
        self.wake()

    def wouldTake(self, job: Job) -> None:
        """
        A dry run's answer.
        """
        self.report.wouldTake(job)
        self.wake()

    def resumed(self, stream: LargeStream, size: int) -> None:
        """
        The receiver takes it, and holds C{size} bytes of it.
        """
        self._kept(stream, size)
        self.report.resumed(stream.job, size)

    def progressed(self, stream: LargeStream, message: Progress) -> None:
        """
        The receiver says how it goes.
        """
        self._kept(stream, message.durable)
        self.report.phase(stream.job, message.phase, message.slow)

    def _kept(self, stream: LargeStream, size: int) -> None:
        # what was written says little: the kernel, or a proxy, takes megabytes
        blocks = min(size, stream.size or 0) // stream.blockSize
        if blocks > stream.job.kept:
            stream.job.kept, self.advanced = blocks, True

    def _failed(self, job: Job, why: TransferError) -> None:
        self.advanced = True
        self.report.failed(job, why)
