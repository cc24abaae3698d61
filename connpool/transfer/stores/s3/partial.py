"""
A file on its way to an S3 engine.

Theory of operation
===================
Bytes go into slots of a spool file, one slot a part; a part that is whole leaves, at most four
at once.  Its slot is given back when the engine has the part and the log says so, with the
digests of its blocks; so until then a block that turns out to be wrong costs that block, and
later its whole part (L{S3Partial.discard}).  Nothing is made at the engine before the first
part is whole, or the file is suspended; a file of one part never gets there, and is put as it is.

Tasks begin where there is something to do: one for each part on its way, and one that writes
the log, a record at a time.  Whatever goes wrong in them closes the partial; its sender is told
at its next byte.

A suspended partial leaves I{tails}: the verified blocks of parts that are not whole.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredLock, fail, succeed
from zope.interface import implementer

from connpool import errors
from connpool.errors import ConflictTakeover, Expired, StoreError, TransferError
from connpool.interfaces import IUploadPartial
from connpool.transfer.iothreads import IOThreads
from connpool.transfer.records import Offer, PartialInfo, Receipt, Stump
from connpool.transfer.stores.ranges import Holding, Ranges, blockRange, verifyDeclared
from connpool.transfer.stores.s3.calls import BadDigest, Call, Done, Get, Piece, Put, PutPart
from connpool.transfer.stores.s3.claims import Wanted, contentOf
from connpool.transfer.stores.s3.layout import newToken
from connpool.transfer.stores.s3.lifecycle import Lifecycle
from connpool.transfer.stores.s3.naming import SENDS, Names
from connpool.transfer.stores.s3.partplan import Leaving, PartPlan
from connpool.transfer.stores.s3.pointers import Seen
from connpool.transfer.stores.s3.spool import Spool, hashed
from connpool.transfer.stores.s3.uploadlog import Begin, Part, Spans, Tail, Upload
from connpool.transfer.stores.takeover import Tenure
from connpool.waiting import Tasks, Waiters

__all__ = ["S3Partial", "StoreParts"]

#: Protocols whose senders say the name of a file when they ask for its receipt.
NAMED = {"native", "classic"}


@attrs.frozen
class StoreParts:
    """
    The parts of a store that its partials need.

    @ivar run: runs a core.
    @ivar afterwards: runs one for which nobody waits.
    @ivar call: makes one call.
    @ivar receipt: makes the receipt of a file: of its offer, size and root.
    @ivar left: forgets a partial that has ended.
    @ivar now: wall-clock time.
    """

    names: Names
    lifecycle: Lifecycle
    spool: Spool
    threads: IOThreads
    tailSeconds: float
    run: Callable[[Coroutine[Call[Any], Any, Any]], Deferred[Any]]
    afterwards: Callable[[Coroutine[Call[Any], Any, Any]], None]
    call: Callable[[Call[Any]], Deferred[Any]]
    receipt: Callable[[Offer, int, bytes | None], Receipt]
    left: Callable[[S3Partial], None]
    now: Callable[[], float]


@implementer(IUploadPartial)
class S3Partial(Holding):
    """
    A file on its way to an engine.

    @param pointer: the key of the object that names its upload; empty if it is not resumed.
    @param seen: what was read of it.
    @param reserved: bytes of the spool that are taken for it.
    @param upload: its state, if another partial began it.
    """

    def __init__(
        self,
        parts: StoreParts,
        offer: Offer,
        tenure: Tenure | None,
        pointer: str,
        seen: Seen,
        partBytes: int,
        reserved: int,
        upload: Upload | None = None,
    ) -> None:
        super().__init__(offer)
        self._parts = parts
        self.tenure = tenure
        self.epoch = 0 if tenure is None else tenure.epoch
        self.pointer = pointer
        self._seen = seen
        self._token = newToken() if upload is None else upload.token
        self._upload = upload
        self._plan = PartPlan(offer.size, offer.blockSize, partBytes)
        self._reserved = reserved
        self._file = parts.spool.file(partBytes)
        self._tasks = Tasks()
        self._writes = Tasks()
        self._settling = False
        self._commits = Tasks()
        self._logging = False
        self._final = False
        self._room = Waiters()
        self._void: set[int] = set()
        self._declared = False
        self._tailed: dict[int, Spans] = {}
        self._failure: TransferError | None = None
        self._over = False
        self._lock = DeferredLock()
        self.checkpointSeconds = parts.tailSeconds
        self.changed = parts.now()

    # -- bytes

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> Deferred[None] | None:
        end = offset + len(data)
        self._verifyFree(offset, end)
        self.changed = self._parts.now()
        for number, start, stop in self._plan.pieces(offset, end):
            if not self._mayWrite(number):
                self._flying.add(start, end)
                rest = memoryview(data)[start - offset :]
                return self._writes.during(self._writeLater(start, rest))
            self._writeNow(number, start, memoryview(data)[start - offset : stop - offset])
        self._pump()
        return None

    async def _writeLater(self, offset: int, data: memoryview) -> None:
        end = offset + len(data)
        try:
            for number, start, stop in self._plan.pieces(offset, end):
                while not self._mayWrite(number):
                    await self._room.wait()
                    self._verifyOpen()
                self._flying.remove(start, stop)
                self._writeNow(number, start, data[start - offset : stop - offset])
        finally:
            self._flying.remove(offset, end)

    def _writeNow(self, number: int, start: int, data: memoryview) -> None:
        within = start - self._plan.span(number)[0]
        self._file.write(self._plan.here[number].slot, within, data)
        self.held.add(start, start + len(data))

    def _mayWrite(self, number: int) -> bool:
        return not self._settling and (number in self._plan.here or self._takeSlot(number))

    def _takeSlot(self, number: int) -> bool:
        """
        Give a part a slot, unless it is better to wait until another one is free, which needs
        nothing more of the sender.
        """
        plan = self._plan
        if plan.isCrowded(self.held, busy=self._logging):
            return False
        if len(plan.here) * plan.bytes >= self._reserved:
            if not self._parts.spool.tryTake(plan.bytes):
                if plan.leaving:
                    return False
                # or its lanes would wait for one another; it is given back with the rest
                self._parts.spool.usedBytes += plan.bytes
            self._reserved += plan.bytes
        plan.here[number] = Leaving(self._file.take())
        return True

    def read(self, start: int, end: int) -> Deferred[bytes]:
        found = []
        which = f'"{self.offer.name}": bytes {start} to {end} are'
        if not self.held.covers(start, end):
            return fail(self._gate or StoreError(f"{which} not held"))
        for number, first, last in self._plan.pieces(start, end):
            part = self._plan.here.get(number)
            if part is None or not self._file.isOpen:
                return fail(self._gate or StoreError(f"{which} at the engine already"))
            at = self._plan.span(number)[0]
            found.append(self._file.read(part.slot, first - at, last - at))
        return succeed(b"".join(found))

    def record(self, block: int, digest: bytes, end: int | None = None) -> None:
        super().record(block, digest, end)
        self._pump()

    def discard(self, start: int, end: int) -> Sequence[tuple[int, int]]:
        self._verifyOpen()
        more = Ranges()
        for number in self._plan.discard(start, end):
            more.add(*self._plan.span(number))
            self._void.add(number)
        more.remove(start, end)
        for first, last in [(start, end), *more]:
            self._recorded.discard(first, last)
        return list(more)

    def declare(self, offer: Offer) -> None:
        self._verifyOpen()
        if offer.size != self.offer.size:
            verifyDeclared(self.offer, offer, self.held.end)
            self._recorded.size = self._plan.size = offer.size
        self.offer = offer
        self._declared = True
        self._pump()

    def settled(self) -> Deferred[Sequence[tuple[int, int]]]:
        return succeed([])

    # -- the engine

    @property
    def _single(self) -> bool:
        """
        Tell whether it is put as it is.
        """
        size, upload = self._plan.size, self._upload
        multipart = upload is not None and upload.begin.uploadId
        return size is not None and size <= self._plan.bytes and not multipart

    def _pump(self) -> None:
        if self._single or (self._gate is not None and not self._final):
            return
        for number in self._plan.departing(self.held):
            self._tasks.during(self._trying(self._send(number)))
        if not self._logging and self._unlogged():
            self._logging = True
            self._tasks.during(self._trying(self._note()))

    async def _trying(self, task: Coroutine[Any, Any, None]) -> None:
        try:
            await task
        except TransferError as why:
            self._fail(why)
        except Exception as error:  # whatever it is, the sender has to know
            text = f"the store failed: {type(error).__name__}: {error}"
            self._fail(StoreError(f'"{self.offer.name}": {text}'))

    def _fail(self, why: TransferError) -> None:
        self._failure = self._failure or why
        self._close(why)
        self._room.wake()

    async def _begun(self, *, multipart: bool = True) -> Upload:
        """
        Begin the upload at the engine, unless it is; the lock is held.
        """
        parts = self._parts
        if self._over:
            raise Expired(f'"{self.offer.name}": its upload was given up')
        if self._upload is None:
            beginning = parts.lifecycle.begin(
                *(self.offer, self._token, self._plan.bytes, self.pointer, self._seen),
                parts=multipart,
            )
            self._upload = await parts.run(beginning)
            self._declared = False
        if multipart and not self._upload.begin.uploadId:
            await parts.run(parts.lifecycle.bind(self._upload, self.offer))
        return self._upload

    async def _send(self, number: int) -> None:
        part, file, length = self._plan.here[number], self._file, self._plan.length(number)
        version = part.version
        async with self._lock:
            begin = (await self._begun()).begin
        crc = await self._parts.threads.run(file.crc, part.slot, length)
        key = self._parts.names.layout.file(begin.path)
        body = Piece(file.fd, file.at(part.slot), length)
        for _ in range(SENDS):
            answer = await self._parts.call(PutPart(key, begin.uploadId, number, body, crc))
            if not isinstance(answer, BadDigest) or part.version != version:
                break
        if part.version != version:
            part.state = "filling"  # bytes of it were discarded meanwhile
        elif isinstance(answer, Done):
            part.state, part.etag, part.crc = "there", answer.etag, crc
        elif isinstance(answer, BadDigest):
            raise errors.SyncFailed(f'"{self.offer.name}": the engine got damaged bytes, each time')
        else:
            await self._giveUp()
            raise Expired(f'"{self.offer.name}": the engine has forgotten its parts; send it again')
        self._room.wake()
        self._pump()

    async def _giveUp(self) -> None:
        self._over = True
        async with self._lock:
            upload, self._upload = self._upload, None
            if upload is not None:
                await self._parts.run(self._parts.lifecycle.remove(upload))

    def _unlogged(self) -> list[int]:
        # of a file that is complete, and of one without digests, nothing is verified block by block
        unasked = self._final or self.offer.digest is None
        return self._plan.settled(None if unasked else self.digests)

    async def _note(self) -> None:
        """
        Write records as long as there is something for them.
        """
        try:
            while self._unlogged():
                async with self._lock:
                    await self._append()
        finally:
            self._logging = False
        self._room.wake()
        self._pump()

    async def _append(self) -> None:
        plan, known, upload = self._plan, self.digests, await self._begun()
        here = {n: (plan.here[n], plan.here[n].version) for n in self._unlogged()}
        parts = []
        for number, (part, _) in here.items():
            blocks = tuple((b, known[b]) for b in plan.blocks(number) if b in known)
            parts.append(Part(number, part.etag, plan.length(number), part.crc, blocks))
        await self._record(upload, parts=tuple(parts))
        for number, (part, version) in here.items():
            if part.version != version:
                self._void.add(number)
                continue
            self._file.give(part.slot)
            del plan.here[number]
            plan.logged.add(number)
            self._tailed.pop(number, None)
            self.durable.add(*plan.span(number))
        self._room.wake()

    async def _record(self, upload: Upload, **values: Any) -> None:
        begin, void = upload.begin, frozenset(self._void)
        if self._declared:
            self._declared = False
            place = begin.path, begin.uploadId, begin.partBytes, begin.pointer
            values["begin"] = Begin.of(self.offer, *place)
        await self._parts.run(upload.append(void=tuple(void), **values))
        self._void -= void

    # -- tails

    def checkpoint(self) -> Deferred[None]:
        if self._gate is not None:
            return fail(self._gate)
        return self._tasks.during(self._saveTails())

    async def _saveTails(self) -> None:
        """
        Let the engine have the verified blocks of parts that are not in the log.
        """
        if not self.pointer or not self._file.isOpen:
            return
        async with self._lock:
            spans = {n: self._tailOf(n) for n in sorted(self._plan.here)}
            new = {n: has for n, has in spans.items() if has and has != self._tailed.get(n)}
            if not (new or self._declared or self._void):
                return
            upload = await self._begun(multipart=not self._single)
            tails = [await self._saveTail(number, spans) for number, spans in new.items()]
            await self._record(upload, tails=tuple(tails))
            self._tailed.update(new)
            for spans_ in new.values():
                for start, end, _ in spans_:
                    if self.held.covers(start, end):
                        self.durable.add(start, end)

    def _tailOf(self, number: int) -> Spans:
        found = []
        for block in self._plan.blocks(number):
            start, end = self._recorded.span(block)
            digest = self._recorded.digest(block, end)
            if digest is not None:
                found.append((start, end, digest))
        return tuple(found)

    async def _saveTail(self, number: int, spans: Spans) -> Tail:
        file, slot = self._file, self._plan.here[number].slot
        at = self._plan.span(number)[0]
        first, last = spans[0][0], spans[-1][1]
        body: Piece | bytes = Piece(file.fd, file.at(slot) + first - at, last - first)
        if sum(end - start for start, end, _ in spans) < last - first:
            body = b"".join(file.read(slot, start - at, end - at) for start, end, _ in spans)
        tails = self._parts.names.layout.tails(self._token)
        key = f"{tails}{number:05}-{secrets.token_hex(4)}"
        if not isinstance(await self._parts.call(Put(key, body)), Done):
            raise errors.Unavailable(f'"{self.offer.name}": a tail was not stored; send it again')
        return Tail(number, key, spans)

    async def resume(self) -> None:
        """
        Hold what an earlier partial has stored.
        """
        upload, held = self._upload, Ranges()
        assert upload is not None
        digests: dict[int, bytes] = {}
        for number, part in upload.parts.items():
            digests.update(part.blocks)
            held.add(*self._plan.span(number))
            self._plan.logged.add(number)
        self._recorded.resume(digests, None, held)
        for number, tail in sorted(upload.tails.items()):
            found = await self._parts.call(Get(tail.key))
            if found and self._takeSlot(number):
                await self._parts.threads.run(self._restore, tail, found.body)
        for number in upload.tails:
            self._tailed[number] = self._tailOf(number)
        self._pump()

    def _restore(self, tail: Tail, body: bytes) -> None:
        """
        Put back what is intact of a tail; in a thread.
        """
        assert self.offer.digest is not None
        at = self._plan.span(tail.number)[0]
        for start, data, digest in tail.intact(body, self.offer.digest):
            self._file.write(self._plan.here[tail.number].slot, start - at, data)
            block, end = start // self.offer.blockSize, start + len(data)
            whole = end == blockRange(block, self.offer.blockSize, self.offer.size)[1]
            stump = self._recorded.stump if whole else Stump(block, end, digest)
            found = {block: digest} if whole else {}
            self._recorded.resume(found, stump, Ranges([(start, end)]))

    # -- ends

    def settle(self) -> Deferred[None]:
        """
        Take no more bytes, and let the engine have what came.

        @return: fires when it has, or cannot have it; never fails.
        """
        self._settling = True
        return Deferred.fromCoroutine(self._settle())

    async def _settle(self) -> None:
        await self._tasks.idle()
        if self._gate is None:
            with suppress(TransferError):  # what is not made safe comes again
                await self._tasks.during(self._saveTails())

    def suspend(self) -> Deferred[None]:
        if not self.pointer:
            return self.abort()
        return self._end(StoreError(f'"{self.offer.name}" is suspended'), keep=True)

    def abort(self) -> Deferred[None]:
        return self._end(StoreError(f'"{self.offer.name}" was aborted'), keep=False)

    def evict(self) -> Deferred[None]:
        """
        Let go of it, for a newer connection, which waits.
        """
        text = f'"{self.offer.name}": a newer connection of the same sender took over'
        return self._end(ConflictTakeover(text), keep=True)

    def _end(self, why: TransferError, *, keep: bool) -> Deferred[None]:
        fenced = isinstance(self._gate, ConflictTakeover)
        self._close(why)
        return Deferred.fromCoroutine(self._leave(keep or fenced))

    def _close(self, why: TransferError) -> None:
        if not isinstance(self._gate, ConflictTakeover):
            self._gate = why

    async def _leave(self, keep: bool) -> None:
        self._room.wake()
        await self._commits.idle()
        await self._writes.idle()
        await self._tasks.idle()
        if not self._file.isOpen:
            return
        try:
            if keep and self.pointer and (self.digests or self.stump):
                if not self._single and self._unlogged():
                    async with self._lock:
                        await self._append()
                await self._saveTails()
            elif not keep:
                await self._giveUp()
        except TransferError:
            pass  # what was not made safe comes again; a reaper removes the rest
        self._release()

    def _release(self) -> None:
        if not self._file.isOpen:
            return
        self._file.close()
        self._parts.spool.give(self._reserved)
        if self.tenure is not None:
            self.tenure.release()
        self._parts.left(self)

    def describe(self) -> PartialInfo:
        offer, total = self.offer, self.held.total
        who = self.pointer or self._token, offer.principal, offer.name.path
        return PartialInfo(*who, offer.size, total, total, True, self.changed)

    # -- publishing

    def commit(self, root: bytes | None) -> Deferred[Receipt]:
        if self._gate is not None:
            return fail(self._gate)
        self._gate = StoreError(f'"{self.offer.name}" is being published')
        return self._commits.during(self._commit(root))

    async def _commit(self, root: bytes | None) -> Receipt:
        try:
            await self._writes.idle()
            await self._tasks.idle()
            size = self.held.end if self.offer.size is None else self.offer.size
            if self._failure is not None:
                raise self._failure
            if not self.held.covers(0, size):
                raise StoreError(f'"{self.offer.name}" is not complete')
            self._plan.size = self._recorded.size = size
            publish = self._publishSingle if self._single else self._publishParts
            receipt = await publish(size, root)
            self._release()
            return receipt
        except errors.NoSpace:
            if not isinstance(self._gate, ConflictTakeover):
                self._gate = self._failure = None
            raise
        finally:
            self._final = False

    async def _publishSingle(self, size: int, root: bytes | None) -> Receipt:
        parts, offer, file = self._parts, self.offer, self._file
        if self.pointer and offer.protocol not in NAMED:
            async with self._lock:
                await self._begun(multipart=False)
        body: Piece | bytes = b""
        if size:
            body = Piece(file.fd, file.at(self._plan.here[1].slot), size)
        content = contentOf(offer, root)
        if content is None:
            content = await parts.threads.run(hashed, body)
        wanted = Wanted(offer, content, parts.receipt(offer, size, root), newToken())
        receipt: Receipt = await parts.run(parts.names.publish(wanted, body))
        self._retire(content, receipt)
        return receipt

    async def _publishParts(self, size: int, root: bytes | None) -> Receipt:
        parts, offer, plan = self._parts, self.offer, self._plan
        self._final = True
        while plan.missing():
            self._pump()
            await self._tasks.idle()
            if self._failure is not None:
                raise self._failure
        async with self._lock:
            upload = await self._begun()
            if self._void or self._declared:
                await self._record(upload)
        content = contentOf(offer, root)
        if content is None:
            etags = [upload.parts[number].etag for number in sorted(plan.logged)]
            content = "parts:" + hashlib.sha256("".join(etags).encode()).hexdigest()
        wanted = parts.receipt(offer, size, root)
        receipt: Receipt = await parts.run(parts.lifecycle.publish(upload, offer, content, wanted))
        self._retire(content, receipt)
        return receipt

    def _retire(self, content: str, receipt: Receipt) -> None:
        if self._upload is not None:
            self._parts.afterwards(self._parts.lifecycle.retire(self._upload, content, receipt))
