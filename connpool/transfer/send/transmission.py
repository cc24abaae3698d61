"""
One session's worth of sending.

Theory of operation
===================
L{Transmission.send} goes round: send small files while the receiver's limits allow, offer
large ones some ahead, send an extent, commit what is complete; when nothing of that is
possible, wait for an answer.  Directories come last (L{Directories}).  It returns when
every file of the job list had an answer, or fails with what ended the connection; then
the files that have had none (L{Exchange.takeUnanswered}) go with the next session.

Further connections (I{lanes}) take extents of the same files.  A file is committed only after
each lane that carried some of it answered a PING, so its bytes have arrived.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from connpool.errors import SourceError, TransferError
from connpool.transfer.digests import chooseBlockSize
from connpool.transfer.holes import isSparse, piecesOf
from connpool.transfer.send.connections import Connection
from connpool.transfer.send.directories import Directories
from connpool.transfer.send.extents import Extent, Extents
from connpool.transfer.send.joblist import Job, Small
from connpool.transfer.send.readahead import ReadAhead, stdinDescriptor
from connpool.transfer.send.source import grew, unchanged
from connpool.transfer.send.standardinput import sendStandardInput
from connpool.transfer.send.streams import Exchange, Lane, LargeStream, SmallStream
from connpool.transfer.send.updating import Updating
from connpool.transfer.send.walking import STDIN
from connpool.transfer.send.writer import Writer
from connpool.transfer.wire.content import Hole, Packed
from connpool.transfer.wire.fields import MAX_PACKED_BYTES
from connpool.transfer.wire.frames import MAX_CONTROL_BYTES, Type
from connpool.transfer.wire.messages import (
    BATCH_FILES,
    ROOT,
    Data,
    Digests,
    Entry,
    Extension,
    OfferMessage,
    Put,
    Puts,
    carryTime,
    dataBytesOf,
    encode,
)

__all__ = ["Transmission"]

if TYPE_CHECKING:
    from connpool.transfer.send.packing import Packer

#: Large files offered at once: their answers come while another is sent.
MAX_OFFERS = 16
#: Bytes of the files that go in one frame, and the most that one of them takes of its control
#: part, beside its name.
_BATCH_BYTES, _ENTRY_BYTES = 1 << 20, 128


class Transmission:
    """
    The round of one session.

    @param connect: connects a further lane.
    @param lanes: how many further lanes there may be.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        exchange: Exchange,
        connect: Callable[[], Coroutine[Any, Any, Connection]],
        lanes: int = 0,
    ) -> None:
        self._reactor = reactor
        self._exchange = exchange
        self._session = session = exchange.session
        self._jobs = exchange.jobs
        self._request = exchange.request
        self._reporter = exchange.reporter
        self._connect = connect
        self._mostLanes = lanes if "join" in session.capabilities else 0
        self._batches = "puts" in session.capabilities
        self._lanes = 0
        #: connections that are being made
        self._connecting: set[Deferred[Any]] = set()
        self._directories = Directories(exchange)
        self._updating = Updating(exchange)
        #: those that grew, and whose prefix is the same
        self._verified: set[LargeStream] = set()
        self._over = False
        session.onLost = lambda _: exchange.wake()
        session.onTurn = exchange.turned
        session.onSlow = self._reporter.slowed

    # -- the round

    async def send(self) -> None:
        """
        Send until every file had its answer.

        @raise TransferError: what ended the connection.
        """
        lane = Lane(self._session, ReadAhead(self._exchange.inThread), True, self._packer())
        self._session.start()
        try:
            while True:
                if self._session.lost is not None:
                    raise self._session.lost
                self._jobs.wake(self._reactor.seconds())
                did = self._updating.sendSome()
                did = await self._puts() or did
                did = await self._offers() or did
                did = await self._extent(lane) or did
                did = self._commits() or did
                busy = self._exchange.large or self._exchange.small or self._exchange.running
                busy = busy or self._updating.waiting
                did = did or (not busy and self._directories.sendSome())
                if not did:
                    if self._finished:
                        return
                    await self._exchange.event()
        finally:
            self._over = True
            for connecting in list(self._connecting):
                connecting.cancel()
            self._exchange.wake()
            self._exchange.endLarge()
            self._directories.giveBack()
            self._updating.giveBack()
            await lane.reader.stop()
            self._session.writer.rest()

    @property
    def _finished(self) -> bool:
        if self._exchange.large or self._exchange.small or self._directories.waiting:
            return False
        if self._updating.waiting:
            return False
        # a connection that is still being made has nothing of ours
        running = self._exchange.running - len(self._connecting)
        return self._session.stopping or (self._jobs.empty and not running)

    # -- small files

    async def _puts(self) -> bool:
        jobs, session, limits = self._jobs, self._session, self._session.limits
        did = False
        more = jobs.wantsMore and len(jobs.large) < MAX_OFFERS and not session.stopping
        if more and not jobs.small and not self._updating.full:
            # a file that goes in one piece is not more than about a second's worth of a pace
            most = min(limits.small, 8 * session.writer.portion)
            largest = -1 if self._request.dry else most
            await jobs.fill(largest, session.digest, afresh=not self._exchange.tellsEarlier)
            did = True
        if jobs.small:
            await session.writer.flushed()
            await session.writer.turn()
        frames: list[bytes] = []
        size, most = 0, min(_BATCH_BYTES, session.writer.portion)
        # it may have said GOAWAY while we waited
        while jobs.small and size < most and not session.stopping:
            batch = self._batch(most)
            if not batch:
                break
            frames.append(self._put(batch))
            for small in batch:
                frames.append(small.data)
                size += len(small.data) + _ENTRY_BYTES
        if frames:
            session.writer.spend(size)
            session.writer.send(*frames)
            did = True
        return did

    def _batch(self, most: int) -> list[Small]:
        """
        Take the files that go next in one frame.

        @param most: bytes of more than one.
        """
        jobs, exchange, limits = self._jobs, self._exchange, self._session.limits
        batch: list[Small] = []
        files, control = len(exchange.small), 0
        size = exchange.smallBytes
        largest = min(limits.inflightBytes, size + max(most, len(jobs.small[0].data)))
        room = min(BATCH_FILES if self._batches else 1, limits.inflightFiles - files)
        while jobs.small and len(batch) < room:
            small = jobs.small[0]
            data, job = small.data, small.job
            size += len(data)
            control += len(job.name) + _ENTRY_BYTES
            alone = not self._batches or _needsExtension(job)
            if size > largest or control > MAX_CONTROL_BYTES - _ENTRY_BYTES or (batch and alone):
                break
            batch.append(jobs.small.popleft())
            if alone:
                break
        return batch

    def _put(self, batch: list[Small]) -> bytes:
        """
        @return: the frame for a file, or for several; their contents follow.
        """
        ifExists: Any = self._request.ifExists
        level: Any = self._exchange.durability.level
        streams = [SmallStream(self._exchange, small) for small in batch]
        number, size = streams[0].number, sum([stream.size for stream in streams])
        self._reporter.sentWhole([small.job for small in batch], size)
        if len(batch) > 1:
            puts = Puts(ifExists, level, tuple(map(_entry, batch)))
            return encode(Type.PUTS, number, puts, size)
        job = batch[0].job
        assert job.status is not None
        modified, extensions = carryTime(job.status.st_mtime_ns)
        put = Put(
            job.transferId,
            job.name,
            job.key,
            batch[0].root,
            modified,
            bool(job.status.st_mode & 0o111),
            ifExists,
            level,
            extensions,
        )
        return encode(Type.PUT, number, put, size)

    # -- large files

    async def _offers(self) -> bool:
        jobs, session = self._jobs, self._session
        did = False
        room = min(MAX_OFFERS, session.limits.streams)
        while jobs.large and len(self._exchange.large) < room and not session.stopping:
            job = jobs.large.popleft()
            did = True
            if job.path == STDIN:
                self._offerStdin(job)
                continue
            try:
                fd = jobs.open(job)
            except TransferError as e:
                self._exchange.failed(job, e)
                continue
            assert job.size is not None
            blockSize = chooseBlockSize(job.size, self._request.blockSize)
            stream = LargeStream(self._exchange, job, fd, blockSize)
            if job.status is not None and isSparse(job.status):
                await stream.findHoles()
                if stream.over:
                    continue
            self._offer(stream)
        if did:
            await session.writer.flushed()
        return did

    def _offer(self, stream: LargeStream) -> None:
        job, status = stream.job, stream.job.status
        modified, extensions = carryTime(None if status is None else status.st_mtime_ns)
        if job.root is not None:
            extensions += (Extension(ROOT, False, job.root),)
        if stream.tellsHoles and status is not None:
            extensions += (dataBytesOf(status.st_blocks * 512),)
        message = OfferMessage(
            job.transferId,
            job.name,
            job.key,
            job.size,
            stream.blockSize,
            None if status is None else self._jobs.resumeKey(job),
            modified,
            status is not None and bool(status.st_mode & 0o111),
            self._request.ifExists,  # type: ignore[arg-type]  # a request has it as text
            self._exchange.durability.level,  # type: ignore[arg-type]  # a request has it as text
            self._request.dry,
            extensions,
        )
        self._session.writer.send(encode(Type.OFFER, stream.number, message))

    async def _extent(self, lane: Lane) -> bool:
        """
        Send one extent over a lane.
        """
        for stream in self._exchange.large:
            extents = stream.extents
            extent = extents.take(lane.primary) if extents is not None else None
            if extents is not None and extent is not None:
                if extents.waiting and self._lanes < self._mostLanes:
                    self._lanes += 1
                    self._exchange.spawn(self._further())
                if not lane.primary:
                    stream.touched.add(lane)
                try:
                    whole = await self._send(lane, stream, extent)
                except BaseException:
                    extents.lost(extent)
                    raise
                if whole:
                    extents.sent(extent)
                return True
        return False

    async def _send(self, lane: Lane, stream: LargeStream, extent: Extent) -> bool:
        """
        @return: whether all of it was sent; not if the stream ended meanwhile.
        """
        session, writer, reader = lane.session, lane.session.writer, lane.reader
        extents, fd = stream.extents, stream.fd
        assert extents is not None
        assert fd is not None
        stream.hold(1)
        try:
            if extent.hole:
                self._sendHole(writer, stream, extent.start, extent.end)
                return True
            pieces = [(extent.start, extent.end, False)]
            if stream.tellsHoles:
                pieces = await self._exchange.inThread(
                    partial(piecesOf, fd, extent.start, extent.end, stream.blockSize)
                )
            most, packer = writer.portion, lane.packer
            reader.start(fd, extent, stream.blockSize, session.digest, most, pieces)
            for start, end, hole, tried in runsOf(pieces, most, stream.blockSize, packer):
                chunk = packed = None
                if packer is not None and tried:
                    chunk = await reader.chunk()
                    packed = packer.pack(chunk.view)
                began = 0.0 if packer is None else packer.seconds()
                await writer.turn()
                if stream.over:
                    return False
                count = 0 if hole else end - start
                writer.spend(count if packed is None else len(packed))
                # a block that spans frames has its digest after the last one
                digests: list[bytes] = []
                first = 0
                short = False
                failed: SourceError | None = None
                # once begun, a frame has all its bytes, whatever they are
                if packed is None:
                    head = encode(Type.DATA, stream.number, Data(start), end - start)
                else:
                    message = Packed(start, count)
                    head = encode(Type.PACKED, stream.number, message, len(packed))
                    self._reporter.saved(stream.job, count - len(packed))
                async with nullcontext() if hole else writer.hold(head):
                    if hole:
                        self._sendHole(writer, stream, start, end)
                    at = start
                    while at < end:
                        chunk = chunk or await reader.chunk()
                        await writer.write(chunk.view if packed is None else memoryview(packed))
                        at += chunk.length
                        self._reporter.sent(stream.job, len(chunk.view))
                        short = short or chunk.short
                        failed = failed or chunk.error
                        if chunk.block is not None and chunk.digest is not None:
                            extents.digests[chunk.block] = chunk.digest
                            first = first if digests else chunk.block
                            digests.append(chunk.digest)
                        reader.free(chunk)
                        chunk = None
                    if digests and failed is None:
                        told = Digests(first)
                        wire = b"".join(digests)
                        frame = encode(Type.DIGESTS, stream.number, told, len(wire)) + wire
                        await writer.write(memoryview(frame))
                if packer is not None and not hole:
                    packer.wrote(packer.seconds() - began, len(packed or b"") or count)
                if failed is not None:
                    stream.giveUp(failed, keep=True)
                    return False
                if short:
                    self._exchange.changed(stream)
                    return False
            return True
        finally:
            await reader.stop()
            stream.hold(-1)

    def _sendHole(self, writer: Writer, stream: LargeStream, start: int, end: int) -> None:
        writer.send(encode(Type.HOLE, stream.number, Hole(start, end - start)))
        self._reporter.skipped(stream.job, end - start)

    def _commits(self) -> bool:
        did = False
        for stream in list(self._exchange.large):
            extents = stream.extents
            if extents is None or stream.root is not None or stream.settling:
                continue
            if not extents.complete:
                continue
            if stream.touched:
                lanes = [lane for lane in stream.touched if lane.session.lost is None]
                stream.touched.clear()
                if lanes:
                    stream.settling = True
                    self._exchange.spawn(self._settle(stream, lanes))
                    continue
            self._commit(stream, extents)
            did = True
        return did

    async def _settle(self, stream: LargeStream, lanes: list[Lane]) -> None:
        """
        Wait until all that went over further lanes has arrived.
        """
        for lane in lanes:
            try:
                await lane.session.ping()
            except TransferError:
                continue  # what it lost will be asked for
        stream.settling = False

    def _commit(self, stream: LargeStream, extents: Extents) -> None:
        assert stream.job.status is not None
        assert stream.fd is not None
        if stream in self._verified:
            self._verified.discard(stream)
        elif not unchanged(stream.fd, stream.job.status):
            if self._request.growing and grew(stream.fd, stream.job.status):
                stream.settling = True
                self._exchange.spawn(self._verifyPrefix(stream, extents))
            else:
                self._exchange.changed(stream)
            return
        stream.commit(extents.size, extents.root())
        self._reporter.phase(stream.job, "publish", "")

    async def _verifyPrefix(self, stream: LargeStream, extents: Extents) -> None:
        from connpool.transfer.send.growing import prefixHolds

        holds = await prefixHolds(self._reactor, self._session, stream, extents)
        stream.settling = False
        if holds:
            stream.job.grew = True
            self._verified.add(stream)
        else:
            self._exchange.changed(stream)

    # -- standard input

    def _offerStdin(self, job: Job) -> None:
        job.key = os.urandom(32)
        try:
            fd = stdinDescriptor()
        except SourceError as e:
            self._exchange.failed(job, e)
            return
        stream = LargeStream(
            self._exchange, job, None, chooseBlockSize(None, self._request.blockSize)
        )
        self._offer(stream)
        self._exchange.spawn(sendStandardInput(self._exchange, stream, fd, self._packer()))

    # -- lanes

    def _packer(self) -> Packer | None:
        mode = self._request.compress
        if mode == "never" or "zstd" not in self._session.capabilities:
            return None
        from connpool.transfer.send.packing import Packer

        return Packer(mode)

    async def _further(self) -> None:
        """
        One more connection, for as long as there are extents.
        """
        connecting = Deferred.fromCoroutine(self._connect())
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
        lane = Lane(connection.session, ReadAhead(self._exchange.inThread), False, self._packer())
        lane.session.onLost = lambda _: self._exchange.wake()
        try:
            await lane.session.join(self._session.ticket)
            lane.session.start()
            while not self._over and lane.session.lost is None:
                if not await self._extent(lane):
                    if not self._exchange.large and self._jobs.filesDone:
                        break
                    await self._exchange.event()
        except TransferError as e:
            self._log.info("a further connection was lost: {why}", why=str(e))
        finally:
            self._lanes -= 1
            await lane.reader.stop()
            connection.discard()


def runsOf(
    pieces: Iterable[tuple[int, int, bool]], most: int, blockSize: int, packer: Packer | None
) -> Iterator[tuple[int, int, bool, bool]]:
    """
    Cut data into frames of C{most} bytes; a hole stays as it is.

    @return: beginning and end of each; whether it is a hole; and whether it is to be
        compressed, and so a part of one block.
    """
    for start, end, hole in pieces:
        at = start
        while at < end:
            until = end if hole else min(at + most, end)
            tried = packer is not None and not hole and packer.tries()
            if tried:
                until = min(until, (at // blockSize + 1) * blockSize, at + MAX_PACKED_BYTES)
            yield at, until, hole, tried
            at = until


def _needsExtension(job: Job) -> bool:
    """
    Tell whether its time needs an extension, which files of C{PUTS} do not have.
    """
    assert job.status is not None
    return bool(carryTime(job.status.st_mtime_ns)[1])


def _entry(small: Small) -> Entry:
    job, status = small.job, small.job.status
    assert status is not None
    return Entry(
        job.transferId,
        job.name,
        job.key,
        small.root,
        len(small.data),
        status.st_mtime_ns,
        bool(status.st_mode & 0o111),
    )
