"""
A store on an S3-compatible engine, which any number of receivers share.

Theory of operation
===================
The receivers keep nothing of their own but what is on its way.  Who has a name is decided by
claims (L{connpool.transfer.stores.s3.claims}), who has an upload by its log
(L{connpool.transfer.stores.s3.uploadlog}); everything is asked of the engine by
L{Requests<connpool.transfer.stores.s3.calls.Requests>}.

A small file is a claim and an object; a large one is a multipart upload straight to its name,
whose parts wait in the spool (L{connpool.transfer.stores.s3.spool}) until the engine has them.

Known limits: the quota of a principal counts the declared sizes of the uploads that a pointer
names, so not what is in the spool of receivers only.  Limits per day are each receiver's own.
Bytes that the engine has cannot be read before the file is published.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool import interfaces
from connpool.errors import StartFailed, TransferError, Unavailable
from connpool.interfaces import IPartial, IPartialHolder
from connpool.logonce import LogOnce
from connpool.transfer import records
from connpool.transfer.iothreads import IOThreads
from connpool.transfer.names import RelativeName
from connpool.transfer.records import Listing, Offer, PartialInfo, Receipt, StoreSettings
from connpool.transfer.stores.journal import continues
from connpool.transfer.stores.publish import Published, receiptOf
from connpool.transfer.stores.s3 import pointers, reading
from connpool.transfer.stores.s3.calls import Call, Head, Requests, performed
from connpool.transfer.stores.s3.claims import Wanted, contentOf
from connpool.transfer.stores.s3.layout import Layout, newToken
from connpool.transfer.stores.s3.lifecycle import Lifecycle
from connpool.transfer.stores.s3.naming import Names
from connpool.transfer.stores.s3.outbox import Outbox
from connpool.transfer.stores.s3.partial import S3Partial, StoreParts
from connpool.transfer.stores.s3.partplan import LEAVING, PART_BYTES, partBytes
from connpool.transfer.stores.s3.pointers import Seen
from connpool.transfer.stores.s3.reaper import Reaper
from connpool.transfer.stores.s3.spool import Spool, hashed
from connpool.transfer.stores.s3.uploadlog import Upload
from connpool.transfer.stores.takeover import Takeovers, Tenure

__all__ = ["REAP_SECONDS", "TAIL_SECONDS", "S3Store"]

#: Seconds between two looks for what others left, about.
REAP_SECONDS = 600.0
#: Seconds between two tails of a part that fills slowly.
TAIL_SECONDS = 30.0
#: Seconds that a call may take for which a reader waits.
READER_SECONDS = 10.0
#: Seconds between two looks, while the store closes, whether its engine answers.
WATCH_SECONDS = 1.0
#: Parts that an upload may have in the spool: so many on their way, as many that fill.
SLOTS = 2 * LEAVING
_R = TypeVar("_R")


@implementer(interfaces.IFileStore, interfaces.INotingStore)
@implementer(interfaces.IReadableStore, interfaces.ISharedUploadStore)
class S3Store:
    """
    A store on an S3-compatible engine.

    @param reactor: for threads and the time between two looks for old uploads.
    @param requests: carries out the calls.
    @param prefix: of the keys of all files: empty, or it ends with a slash.
    @param spoolDirectory: where parts wait; L{None} for the system's temporary directory.
    @param spoolSize: bytes that wait at most; L{None} for 4 GiB or half of what is free.
    @param durability: the most that receipts say, one of L{DURABILITIES}.
    @param conditional: whether the engine has a condition for CompleteMultipartUpload.
    @param filesystem: that receipts tell.
    @param closed: called at the end of L{close}, or in it if the engine does not answer: then
        what still asks it has to fail.
    @param leastPart: bytes of a part at least, 5 MiB at many engines.
    @param tailSeconds: between two tails.
    @raise StartFailed: the spool cannot be used; one line.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        requests: Requests,
        settings: StoreSettings | None = None,
        *,
        prefix: str = "",
        spoolDirectory: str | None = None,
        spoolSize: int | None = None,
        durability: str = "full",
        conditional: bool = True,
        filesystem: str = "s3",
        closed: Callable[[], Deferred[Any]] | None = None,
        leastPart: int = PART_BYTES,
        tailSeconds: float = TAIL_SECONDS,
        seconds: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        settings = settings or StoreSettings()
        self._reactor = reactor
        self._requests = requests
        self.keptSeconds = settings.keepPartials
        self._durability = durability
        self._filesystem = filesystem
        self._whenClosed = closed
        self._leastPart = leastPart
        self._now = now
        self.layout = Layout(prefix, settings.names == "portable")
        self._names = Names(self.layout, seconds, conditional=conditional)
        self._lifecycle = Lifecycle(self._names, settings.quota)
        self._reaper = Reaper(self.layout, self._lifecycle, self.keptSeconds)
        self.spool = Spool(spoolDirectory, spoolSize)
        if self.spool.size < leastPart:
            raise StartFailed(
                f"the spool has {self.spool.size} bytes, less than a part of {leastPart}: write a"
                " larger spool-size=, or choose another disk with spool="
            )
        self._threads = IOThreads(reactor)
        self._parts = StoreParts(
            *(self._names, self._lifecycle, self.spool, self._threads, tailSeconds, self.run),
            *(self._afterwards, requests.perform, self._receipt, self._left, now),
        )
        self._takeovers = Takeovers()
        self._partials: dict[S3Partial, None] = {}
        self._isClosed = False
        self._ending: Deferred[Any] | None = None
        self._reaping = LogOnce(lambda what: self._log.warn("old uploads: {what}", what=what))
        self._nextReap: Any = None
        self._reapLater()

    def run(self, core: Coroutine[Call[Any], Any, _R]) -> Deferred[_R]:
        return performed(core, self._requests)

    def _afterwards(self, core: Coroutine[Call[Any], Any, Any]) -> None:

        def failed(failure: Failure) -> None:
            if not failure.check(TransferError):
                self._log.failure("clearing up failed", failure=failure)

        self._threads.during(self.run(core)).addErrback(failed)

    def _left(self, partial: S3Partial) -> None:
        self._partials.pop(partial, None)

    def receivedOutbox(self, more: Callable[[], None]) -> Outbox:
        outbox = self._names.outbox = Outbox(self._reactor, self.layout, self.run, more)
        return outbox

    def placeOf(self, receipt: Receipt) -> dict[str, str]:
        return {"key": self.layout.file(receipt.name)}

    # -- IFileStore

    def _receipt(self, offer: Offer, size: int, root: bytes | None) -> Receipt:
        asked = self._durability if offer.durability == "best" else offer.durability
        reached = min(asked, self._durability, key=records.DURABILITIES.index)
        published = Published(offer.name, "stored")
        return receiptOf(offer, published, size, root, reached, self._filesystem, self._now())

    def put(self, offer: Offer, data: bytes | memoryview, root: bytes | None) -> Deferred[Receipt]:
        self.layout.check(offer.name)
        data = bytes(data)
        content = contentOf(offer, root) or hashed(data)
        wanted = Wanted(offer, content, self._receipt(offer, len(data), root), newToken())
        return self._threads.during(self.run(self._put(wanted, data)))

    async def _put(self, wanted: Wanted, data: bytes) -> Receipt:
        receipt = await self._names.publish(wanted, data)
        if wanted.offer.resumeKey is not None:
            await self._lifecycle.tell(wanted, receipt)
        return receipt

    def open(
        self, offer: Offer, holder: IPartialHolder | None = None
    ) -> Deferred[IPartial | Receipt]:
        return self._threads.during(Deferred.fromCoroutine(self._open(offer, holder)))

    async def _open(self, offer: Offer, holder: IPartialHolder | None) -> S3Partial | Receipt:
        self.layout.check(offer.name)
        if offer.resumeKey is None:
            if holder is not None:
                await holder.ready()
            receipt = await self.run(self._names.earlier(offer))
            return receipt or await self._make(offer, None, "", Seen(), None)
        pointer = self.layout.partial(offer.principal, offer.network, offer.resumeKey)
        older = next((each for each in self._partials if each.pointer == pointer), None)
        tenure = await self._takeovers.take(pointer, holder)
        opened: S3Partial | Receipt | None = None
        try:
            if older is not None:
                await older.evict()
            opened = await self._resume(offer, tenure, pointer)
        finally:
            if not isinstance(opened, S3Partial):
                tenure.release()
        return opened

    async def _resume(self, offer: Offer, tenure: Tenure, pointer: str) -> S3Partial | Receipt:
        receipt = await self.run(self._names.earlier(offer))
        if receipt is not None:
            return receipt
        upload, seen = await self.run(self._lifecycle.resume(pointer))
        if upload is not None:
            older = upload.begin.asOffer()
            if not continues(offer, older):
                await self.run(self._lifecycle.remove(upload))
                upload, seen = None, await self.run(pointers.look(pointer))
            elif (commit := upload.commit) is not None:
                # it was to be published when its receiver died
                publishing = self._lifecycle.publish(upload, older, commit.content, commit.receipt)
                receipt = await self.run(publishing)
                self._afterwards(self._lifecycle.retire(upload, commit.content, receipt))
                return receipt
        if upload is None:
            await self.run(self._lifecycle.verifyQuota(offer))
        return await self._make(offer, tenure, pointer, seen, upload)

    async def _make(
        self, offer: Offer, tenure: Tenure | None, pointer: str, seen: Seen, upload: Upload | None
    ) -> S3Partial:
        size = partBytes(offer.size, offer.blockSize, self._leastPart)
        if upload is not None:
            size = upload.begin.partBytes
        room = min(SLOTS * size, self.spool.size // size * size or self.spool.size)
        if offer.size is not None:
            room = min(room, offer.size)
        await self.spool.take(room)
        try:
            partial = S3Partial(self._parts, offer, tenure, pointer, seen, size, room, upload)
        except BaseException:
            self.spool.give(room)
            raise
        self._partials[partial] = None
        if upload is not None:
            try:
                await partial.resume()
            except BaseException:
                await partial.evict()
                raise
        return partial

    def trouble(self) -> str | None:
        return self._requests.trouble()

    def stat(self, name: RelativeName) -> Deferred[records.FileStat | None]:
        return self.run(self._stat(name))

    async def _stat(self, name: RelativeName) -> records.FileStat | None:
        there = await Head(self.layout.file(name.path))
        if not there:
            return None
        return records.FileStat(there.size, reading.modifiedOf(there))

    def listing(self, directory: RelativeName | None, after: str, limit: int) -> Deferred[Listing]:
        return self._reading(reading.listing(self.layout, directory, after, limit))

    def read(self, name: RelativeName, start: int, end: int) -> Deferred[records.FileRange]:
        return self._reading(reading.read(self.layout, name, start, end))

    def _reading(self, core: Coroutine[Call[Any], Any, _R]) -> Deferred[_R]:
        return performed(core, self._requests, READER_SECONDS).addErrback(self._untold)

    def _untold(self, failure: Failure) -> Any:
        failure.trap(Unavailable)
        trouble = self.trouble()
        if trouble is None:
            return failure
        raise Unavailable(f"{trouble}; try again later")

    def foresee(self, offer: Offer, root: bytes | None, ahead: int, whole: bool) -> Deferred[str]:
        self.layout.check(offer.name)
        return self.run(self._names.foresee(offer, contentOf(offer, root)))

    def partials(self, principal: str | None = None) -> Deferred[list[PartialInfo]]:
        return Deferred.fromCoroutine(self._list(principal))

    async def _list(self, principal: str | None) -> list[PartialInfo]:
        active = {
            each.pointer: each.describe()
            for each in self._partials
            if principal in {None, each.offer.principal}
        }
        listed = await self.run(self._lifecycle.partials(principal))
        return [*active.values(), *(each for each in listed if each.partialId not in active)]

    def delete(self, info: PartialInfo) -> Deferred[None]:
        return self.run(self._delete(info.partialId))

    async def _delete(self, key: str) -> None:
        upload, _ = await self._lifecycle.resume(key)
        if upload is not None:
            await self._lifecycle.remove(upload)

    def find(
        self, principal: str, resumeKey: bytes, key: bytes, network: str = ""
    ) -> Deferred[Offer | Receipt | None]:
        pointer = self.layout.partial(principal, network, resumeKey)
        here = next((each for each in self._partials if each.pointer == pointer), None)
        if here is not None and here.writable:
            return succeed(here.offer if here.offer.key == key else None)
        # the log does not say what its asker has to know
        secret = {"resumeKey": resumeKey, "network": network}
        return self.run(self._lifecycle.find(pointer, key, secret))

    def begin(self, offer: Offer) -> Deferred[None]:
        return self._threads.during(self.run(self._begin(offer)))

    async def _begin(self, offer: Offer) -> None:
        assert offer.resumeKey is not None
        self.layout.check(offer.name)
        await self._lifecycle.verifyQuota(offer)
        size = partBytes(offer.size, offer.blockSize, self._leastPart)
        pointer = self.layout.partial(offer.principal, offer.network, offer.resumeKey)
        await self._lifecycle.begin(offer, newToken(), size, pointer, Seen(), parts=False)

    async def _settleAll(self) -> None:
        await DeferredList([each.settle() for each in list(self._partials)])

    def settle(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._settleAll())

    # -- time

    def _reapLater(self) -> None:
        wait = REAP_SECONDS * (0.5 + random.random())  # noqa: S311 - so that receivers take turns
        self._nextReap = self._reactor.callLater(wait, self._reapNow)

    def _reapNow(self) -> None:
        self._nextReap = None
        self._threads.during(self.run(self.reap())).addBoth(self._reaped)

    def _reaped(self, failure: Failure | None) -> None:
        if failure is None:
            self._reaping.over()
        elif not self._isClosed:
            self._reaping.met(str(failure.value))
        if not self._isClosed:
            self._reapLater()

    async def reap(self) -> None:
        """
        Finish uploads whose receivers died, and remove those that are too old, unless another
        receiver has just done so.
        """
        if not await self._reaper.mayBegin(REAP_SECONDS * 0.75):
            return
        async for token, count, age in self._reaper.logs():
            try:
                await self._reaper.lookAfter(token, count, age)
            except TransferError as why:
                self._log.info("old upload {token}: {why}", token=token, why=why)

    def close(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._isClosed = True
        if self._nextReap is not None:
            self._nextReap.cancel()
            self._nextReap = None
        watching = LoopingCall(self._giveUp)
        watching.clock = self._reactor
        watching.start(WATCH_SECONDS, now=False)
        await DeferredList([each.suspend() for each in list(self._partials)])
        await self._threads.quiet()
        watching.stop()
        self._threads.stop()
        await self._ended()

    def _giveUp(self) -> None:
        """
        Let what waits for the engine fail, if that does not answer: nobody waits for us so long.
        """
        if self.trouble() is not None:
            self._ended()

    def _ended(self) -> Deferred[Any]:
        if self._ending is None:
            self._ending = Deferred()  # first: what fails now may end the close
            ended = succeed(None) if self._whenClosed is None else self._whenClosed()
            ended.chainDeferred(self._ending)
        return self._ending
