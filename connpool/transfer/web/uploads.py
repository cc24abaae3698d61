"""
The uploads of a door, in several requests each: who has one now, and how far it is.

Theory of operation
===================
The token of an upload is the secret that its URL carries.  The keys by which the store knows
it are derived from the token, so nothing that is stored, logged or counted gives a URL.

An upload without a byte is in memory alone, for an hour, unless the store is shared with other
processes: then it is the store's from the beginning.  The first byte opens its partial,
which stays open for L{OPEN_SECONDS} after a request and is paused then; a later request finds
it in the store, by its token.

Requests about one upload take turns.  One that brings bytes is broken off when another comes:
a client that comes again does not know that its older connection is dead.  Publishing is
waited for.

An offset is told when the bytes before it are safe.  Bytes without a name are not the file: as
long as it is not published the last of them counts as missing, comes again, and publishes it.
So a failure at the end is the answer to somebody who sends, whom it reaches.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import Busy, ConflictTakeover, DigestMismatch, TooLarge, TransferError
from connpool.interfaces import ISharedUploadStore, IUploadStore
from connpool.transfer.digests import chooseBlockSize
from connpool.transfer.names import RelativeName
from connpool.transfer.receive.reception import Reception, storeFailure
from connpool.transfer.receive.smallfiles import SMALL_FILE_BYTES
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.web.answers import Problem
from connpool.transfer.web.creations import CREATION_SECONDS, Creations, Token, noUpload
from connpool.transfer.web.digests import Digests
from connpool.transfer.web.gate import Sender
from connpool.transfer.web.intake import Intake, Notes
from connpool.transfer.web.put import WholeFile, checkLimits
from connpool.transfer.web.request import Request

__all__ = ["OPEN_SECONDS", "Upload", "Uploads"]

#: Seconds that a partial stays open after a request.
OPEN_SECONDS = 15.0
#: Bytes that a request with a digest has announced at most, to be discarded if it breaks off.
_DROPPED_BYTES = 64 << 20

T = TypeVar("T")


@attrs.define(eq=False)
class Upload:
    """
    One upload: its terms, as far as they are known, and its receipt if it is published.
    """

    _log = Logger()

    _uploads: Uploads
    token: Token
    offer: Offer
    _peer: str
    #: whether it has a partial, or had one before this process
    _begun: bool = False
    receipt: Receipt | None = None
    _created: float = attrs.field(init=False)
    #: whether the reception was told of it
    _started: bool = attrs.field(init=False)
    _intake: Intake | None = attrs.field(default=None, init=False)
    _lock: DeferredLock = attrs.field(factory=DeferredLock, init=False)
    #: breaks off the request that brings bytes
    _end: Callable[[TransferError], Any] | None = attrs.field(default=None, init=False)
    _timer: Any = attrs.field(default=None, init=False)
    _over: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._created, self._started = self._uploads.clock.seconds(), self._begun

    @property
    def expires(self) -> float | None:
        """
        The time at which it is forgotten; L{None} if it never is.
        """
        if self.receipt is not None:
            return None
        if not self._begun:
            return self._created + CREATION_SECONDS
        store: Any = self._uploads.reception.store
        kept = store.keptSeconds
        return None if kept is None else float(self._uploads.clock.seconds() + kept)

    @property
    def notes(self) -> Notes:
        """
        The text that is kept with it.
        """
        return Notes.read(self.offer.metadata)

    # -- requests

    async def offset(self) -> int:
        """
        Break off what brings bytes, and return how many are safe; all of them only if the file is
        published.
        """
        async with self._turn():
            if self._begun:
                await self._open()
            return await self._told()

    async def append(
        self,
        request: Request,
        at: int,
        digests: Digests,
        *,
        size: int | None = None,
        sha256: bytes | None = None,
    ) -> int:
        """
        Take the body of a request whose first byte belongs C{at} an offset, and return as
        L{offset}; if that completes the file, publish it.  The request may say the size and the
        SHA-256 of the whole file.
        """
        async with self._turn(request.end):
            length = request.head.length
            if self._begun:
                await self._open()
            if self.receipt is not None:
                if at + (length or 0) != self.receipt.size:
                    raise _mismatch(self.receipt.size)
                return self.receipt.size  # its answer was lost
            declares = size is not None and self.offer.size is None
            total = size if declares else self.offer.size
            if size not in {None, total}:
                raise Problem(400, f"the length is {total} bytes, and stays")
            if length is not None and total is not None and at + length > total:
                raise TooLarge(f"{at + length} bytes are more than the {total} of the file")
            told = await self._told()
            if at != told:
                raise _mismatch(told)
            if length != 0 or declares:
                await self._open(digests.vouches)
            intake = self._intake
            # before it is declared: what was told stays, should the digests differ
            whole = declares and size == told
            if intake is None or whole:
                await self._collect(request, digests, 0)
            if intake is None:
                return told
            if declares:
                assert size is not None
                intake.incoming.declare(size)
                self.offer = intake.incoming.offer
            came = not whole and await self._receive(intake, request, digests)
            if intake.offset == self.offer.size and (came or declares):
                self._uploads.mayPublish(self.offer)
                self.receipt = await self._safely(intake.commit(sha256))
                self._intake = None
            return await self._told()

    async def remove(self, why: TransferError) -> None:
        """
        Remove every trace of it.
        """
        async with self._turn():
            if self.receipt is not None:
                raise Problem(410, "the file is published, and the receiver's", "exists")
            if self._begun:
                await self._open()
            await self._leave(why, keep=False)

    # -- turns

    @asynccontextmanager
    async def _turn(self, end: Callable[[TransferError], Any] | None = None) -> AsyncIterator[None]:
        """
        Have it alone; C{end} breaks this off, if it brings bytes.
        """
        older, self._end = self._end, end
        if older is not None:
            older(ConflictTakeover("a newer request has taken this upload over"))
        await self._lock.acquire()
        try:
            self._stopTimer()
            if self._over:
                raise noUpload()
            yield
        finally:
            if self._end is end:
                self._end = None
            self._lock.release()
            if self.receipt is not None:
                self.forget()
            elif not (self._lock.locked or self._over):
                self.waits()

    def waits(self) -> None:
        """
        Let go of it in a while, unless somebody goes on with it.
        """
        self._stopTimer()
        clock = self._uploads.clock
        if self._begun:
            # the next request may come to another process
            wait = 0.0 if self._uploads.shared else OPEN_SECONDS
            self._timer = clock.callLater(wait, self.pause)
        else:
            rest = self._created + CREATION_SECONDS - clock.seconds()
            self._timer = clock.callLater(max(0.0, rest), self.forget)

    def _stopTimer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def pause(self) -> Deferred[None]:
        """
        Let go of the partial, which is no failure; fires when that is done.
        """

        def failed(failure: Failure) -> None:
            why = storeFailure(failure)
            self._log.warn("an upload from {peer} is not paused: {why}", peer=self._peer, why=why)

        d: Deferred[None] = self._lock.run(lambda: Deferred.fromCoroutine(self._pause()))
        return d.addErrback(failed)

    async def _pause(self) -> None:
        self._stopTimer()
        intake, self._intake = self._intake, None
        if intake is not None:
            await intake.incoming.suspend(None)
            self._begun = intake.offset > 0 or self._uploads.shared
        if self._lock.waiting:
            return  # somebody goes on with it
        if self._begun:
            self.forget()
        elif intake is not None:
            self._uploads.emptied(self)

    def forget(self) -> None:
        """
        Be gone for those that come; the store may know it.
        """
        self._over = self._over or self.receipt is None
        self._stopTimer()
        self._uploads.forget(self)

    # -- inside a turn

    async def _open(self, vouches: bool = False) -> None:
        """
        Have the partial open, unless it is published.
        """
        if self._intake is not None or self.receipt is not None:
            return
        uploads = self._uploads
        if not self._begun:
            notes = attrs.evolve(self.notes, verified=vouches)
            self.offer = attrs.evolve(self.offer, metadata=notes.text)
        found = await uploads.reception.begin(
            self.offer, self._peer, lambda why: self._break(why, keep=True), again=self._started
        )
        if isinstance(found, Receipt):
            self.receipt = found
            return
        self._begun = self._started = True
        self.offer = found.offer
        self._intake = Intake(found)
        try:
            await self._intake.open()
        except Exception as e:
            await self._leave(e, keep=False)
            raise
        uploads.creations.discard(self.token.text)
        partial: Any = found.partial
        partial.settled().addCallbacks(self._wasRead, lambda _: None)

    def _wasRead(self, damaged: Sequence[tuple[int, int]]) -> None:
        if damaged:
            why = DigestMismatch("bytes that came before were damaged; send the file again")
            self._break(why, keep=False)

    def _break(self, why: TransferError, keep: bool) -> None:
        """
        End it from outside of all requests.
        """
        if self._end is not None:
            end, self._end = self._end, None
            end(why)

        async def leave() -> None:
            async with self._turn():
                await self._leave(why, keep)

        d = Deferred.fromCoroutine(leave())
        d.addErrback(lambda f: f.trap(TransferError))

    async def _leave(self, why: BaseException, keep: bool) -> None:
        """
        Let go of the partial; C{keep}: it can be gone on with.
        """
        intake, self._intake = self._intake, None
        self._over = self._over or not keep
        try:
            if intake is not None:
                await (intake.incoming.suspend(why) if keep else intake.incoming.abort(why))
        finally:
            # not before: a request that comes meanwhile would find its rest in the store
            if not keep:
                self.forget()

    async def _safely(self, step: Awaitable[T]) -> T:
        """
        Take a step of the intake; if it fails, this is what was recorded, or nothing.
        """
        try:
            return await step
        except Exception as e:
            why = e if isinstance(e, TransferError) else storeFailure(Failure())
            await self._leave(why, why.retryable)
            raise why from None

    async def _told(self) -> int:
        if self.receipt is not None:
            return self.receipt.size
        if self._intake is None:
            return 0
        offset = await self._safely(self._intake.checkpoint())
        return offset - 1 if offset and offset == self.offer.size else offset

    async def _receive(self, intake: Intake, request: Request, digests: Digests) -> bool:
        """
        @return: whether a byte came.
        """
        if intake.offset == self.offer.size:
            # the last byte once more: nothing else is missing but the name
            came = await self._collect(request, digests, 1)
            if came and await self._safely(intake.lastByte()) != came:
                raise DigestMismatch("the last byte is not the one that came before")
            return bool(came)
        before = intake.offset
        intake.begin(digests)
        try:
            trailers = await request.receive(intake.write)
        except TransferError:
            length = request.head.length
            drops = bool(digests) and length is not None and length <= _DROPPED_BYTES
            await self._safely(intake.drop() if drops else intake.keep(False))
            raise
        await self._safely(intake.quiet())
        try:
            digests.compare(trailers)
        except TransferError:
            await self._safely(intake.drop())
            raise
        await self._safely(intake.keep(digests.vouches))
        return intake.offset > before

    async def _collect(self, request: Request, digests: Digests, most: int) -> bytearray:
        """
        Take a body of at most C{most} bytes, all that are missing.
        """
        came = bytearray()

        def take(view: memoryview) -> None:
            came.extend(view)
            if len(came) > most:
                raise TooLarge(f"{most} bytes were missing, and more came")

        trailers = await request.receive(take)
        digests.update(came)
        digests.compare(trailers)
        return came


def _mismatch(offset: int) -> Problem:
    """
    The answer to a request whose offset is not the upload's.
    """
    fields = [("Upload-Offset", str(offset))]
    return Problem(409, f"the upload goes on at offset {offset}", "protocol", fields=fields)


class Uploads:
    """
    The uploads of a door, if the store keeps some: then they are C{supported}.
    """

    def __init__(self, reception: Reception, clock: Any) -> None:
        self.reception = reception
        self.clock = clock
        self.supported = bool(IUploadStore.providedBy(reception.store))
        self.shared = bool(ISharedUploadStore.providedBy(reception.store))
        self.creations = Creations()
        self._known: dict[str, Upload] = {}

    async def create(self, request: Request, offer: Offer, digests: Digests) -> Upload:
        """
        Begin an upload; a small one of which the request brings all is stored at once.
        """
        sender, size, length = request.sender, offer.size, request.head.length
        token = Token.new(sender.network)
        offer = attrs.evolve(offer, key=token.key(b"receipt"))
        if size is not None and (size == 0 or length == size <= SMALL_FILE_BYTES):
            if Notes.read(offer.metadata).whole:
                digests.add("sha-256")
            receipt = await WholeFile(request, offer, digests).receive()
            return Upload(self, token, offer, sender.peer, receipt=receipt)
        offer = attrs.evolve(
            offer,
            resumeKey=token.key(b"resume"),
            network=token.network,
            evicts=not sender.shared,
            digest="blake3",
            blockSize=chooseBlockSize(size),
        )
        upload = Upload(self, token, offer, sender.peer)
        store: Any = self.reception.store
        try:
            # what would be refused with all of its bytes
            checkLimits(self.reception, offer)
            await store.foresee(offer, None, 0, False)
            if self.shared and length == 0:
                await store.begin(offer)  # the first byte may come to another process
                return Upload(self, token, offer, sender.peer, begun=True)
            self._admit(upload, offer.evicts)
        except TransferError as e:
            self.reception.refuse(str(offer.name), sender.peer, e, offer.transferId)
            raise
        return upload

    async def find(self, text: str, sender: Sender) -> Upload:
        """
        Find an upload by the token in its URL; a foreign one is none.
        """
        token = Token.read(text)
        upload = self._known.get(text)
        if upload is None:
            store: Any = self.reception.store
            found = await store.find(
                sender.principal, token.key(b"resume"), token.key(b"receipt"), token.network
            )
            upload = self._known.get(text) or self._found(found, token, sender)
        if upload.offer.principal != sender.principal:
            raise noUpload()
        return upload

    def _found(self, found: Offer | Receipt | None, token: Token, sender: Sender) -> Upload:
        if found is None:
            raise noUpload()
        if isinstance(found, Receipt):
            name = RelativeName.parse(found.wanted, profile="posix")
            offer = Offer(name, found.transferId, found.size, found.principal)
            return Upload(self, token, offer, sender.peer, begun=True, receipt=found)
        offer = attrs.evolve(found, identity=sender.identity, evicts=not sender.shared)
        self.mayPublish(offer)
        upload = self._known[token.text] = Upload(self, token, offer, sender.peer, begun=True)
        return upload

    def mayPublish(self, offer: Offer) -> None:
        """
        Ask the policy again.
        """
        path = offer.name.path.encode("utf-8", "surrogateescape")
        self.reception.offer(path, None, offer.ifExists, transferId=offer.transferId)

    def _admit(self, upload: Upload, evicts: bool) -> None:
        owner = upload.offer.principal, upload.offer.network
        evicted = self.creations.add(upload.token.text, owner, evicts)
        if evicted is not None:
            self._known[evicted].forget()
        self._known[upload.token.text] = upload
        upload.waits()

    def emptied(self, upload: Upload) -> None:
        """
        An upload has none any more, for no byte of it could be kept.
        """
        try:
            self._admit(upload, True)
        except Busy:
            upload.forget()

    def forget(self, upload: Upload) -> None:
        """
        Forget an upload; the store may know it.
        """
        self.creations.discard(upload.token.text)
        if self._known.get(upload.token.text) is upload:
            del self._known[upload.token.text]

    def close(self) -> Deferred[Any]:
        """
        Pause all, and forget those without a byte; fires when that is done.
        """

        known = [*self._known.values()]
        pausing = gatherResults([each.pause() for each in known])
        return pausing.addCallback(lambda _: list(map(Upload.forget, known)))
