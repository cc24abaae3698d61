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

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from zope.interface import implementer

from connpool.errors import QuotaExceeded, TransferError
from connpool.interfaces import (
    IFileStore,
    INotingStore,
    IPartial,
    IPartialHolder,
    IReadableStore,
    IUploadStore,
)
from connpool.logonce import LogOnce
from connpool.transfer.iothreads import IOThreads
from connpool.transfer.names import RelativeName
from connpool.transfer.records import (
    DURABILITIES,
    FileRange,
    FileStat,
    Listing,
    Offer,
    PartialInfo,
    Receipt,
    StoreSettings,
)
from connpool.transfer.stores.journal import continues
from connpool.transfer.stores.partialdir import MAX_PARTIALS, tooManyPartials
from connpool.transfer.stores.publish import Published, receiptOf
from connpool.transfer.stores.s3 import pointers, reading
from connpool.transfer.stores.s3.calls import (
    Call,
    Found,
    Get,
    Head,
    List,
    Missing,
    Requests,
    performed,
    together,
)
from connpool.transfer.stores.s3.claims import (
    Claim,
    Claims,
    Finished,
    Wanted,
    newToken,
)
from connpool.transfer.stores.s3.layout import Layout
from connpool.transfer.stores.s3.lifecycle import Lifecycle
from connpool.transfer.stores.s3.naming import Names
from connpool.transfer.stores.s3.outbox import Outbox
from connpool.transfer.stores.s3.outlook import Outlook
from connpool.transfer.stores.s3.partial import S3Partial
from connpool.transfer.stores.s3.partplan import LEAVING, PART_BYTES, partBytes
from connpool.transfer.stores.s3.parts import contentOf, hashed
from connpool.transfer.stores.s3.pointers import NOTHING, Pointer, Seen
from connpool.transfer.stores.s3.reaper import Reaper
from connpool.transfer.stores.s3.spool import Spool
from connpool.transfer.stores.s3.uploadlog import (
    PUBLISHED,
    Log,
    Upload,
    finish,
    readLog,
)
from connpool.transfer.stores.takeover import Takeovers, Tenure

__all__ = ["REAP_SECONDS", "TAIL_SECONDS", "S3Store"]

#: Seconds between two looks for what others left, about.
REAP_SECONDS = 600.0
#: Seconds between two tails of a part that fills slowly.
TAIL_SECONDS = 30.0
#: Parts that an upload may have in the spool: so many on their way, as many that fill.
SLOTS = 2 * LEAVING
#: Pointers that are read at once.
_READS = 16
_R = TypeVar("_R")


@implementer(IFileStore, INotingStore, IReadableStore, IUploadStore)
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
    @param closed: called at the end of L{close}.
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
        self._reactor = reactor
        self._requests = requests
        self._settings = settings or StoreSettings()
        self.keptSeconds = self._settings.keepPartials
        self._durability = durability
        self._filesystem = filesystem
        self._whenClosed = closed
        self._leastPart = leastPart
        self.tailSeconds = tailSeconds
        self.now = now
        self.layout = Layout(prefix, self._settings.names == "portable")
        self._conditional = conditional
        claims = Claims(self.layout, self._finish)
        self.names = Names(claims, self._finish, seconds)
        self._outlook = Outlook(claims, self._finish)
        self.lifecycle = Lifecycle(self.layout, self.names, self._outlook, self._placed)
        self._reaper = Reaper(self.layout, self.lifecycle, self.keptSeconds)
        self.spool = Spool(spoolDirectory, spoolSize)
        self.threads = IOThreads(reactor)
        self._takeovers = Takeovers()
        self._partials: dict[S3Partial, None] = {}
        self._working: set[Deferred[Any]] = set()
        self._isClosed = False
        self._reaping = LogOnce(lambda what: self._log.warn("old uploads: {what}", what=what))
        self._nextReap: Any = None
        self._reapLater()

    async def _finish(self, claim: Claim) -> Finished:
        return await finish(self.layout, claim, conditional=self._conditional)

    @property
    def spoolBytes(self) -> int:
        """
        Bytes of the spool that are given away.
        """
        return self.spool.usedBytes

    def run(self, core: Coroutine[Call[Any], Any, _R]) -> Deferred[_R]:
        """
        Run a core.
        """
        return performed(core, self._requests)

    def afterwards(self, core: Coroutine[Call[Any], Any, Any]) -> None:
        """
        Run a core for which nobody waits.
        """
        running = self.run(core)
        self._working.add(running)

        def ended(result: Any) -> None:
            self._working.discard(running)
            failure = getattr(result, "check", None)
            if failure is not None and not failure(TransferError):
                self._log.failure("clearing up failed", failure=result)

        running.addBoth(ended)

    def left(self, partial: S3Partial) -> None:
        """
        Forget a partial that has ended.
        """
        self._partials.pop(partial, None)

    def receivedOutbox(self, more: Callable[[], None]) -> Outbox:
        outbox = self.names.outbox = Outbox(self._reactor, self.layout, self.run, more)
        return outbox

    def placeOf(self, receipt: Receipt) -> dict[str, str]:
        return {"key": self.layout.file(receipt.name)}

    # -- IFileStore

    def receipt(self, offer: Offer, size: int, root: bytes | None) -> Receipt:
        """
        Make the receipt of a file.
        """
        asked = self._durability if offer.durability == "best" else offer.durability
        reached = DURABILITIES[min(map(DURABILITIES.index, (asked, self._durability)))]
        published = Published(offer.name, "stored")
        return receiptOf(offer, published, size, root, reached, self._filesystem, self.now())

    def put(self, offer: Offer, data: bytes | memoryview, root: bytes | None) -> Deferred[Receipt]:
        self.layout.check(offer.name)
        data = bytes(data)
        content = contentOf(offer, root) or hashed(data)
        wanted = Wanted(offer, content, self.receipt(offer, len(data), root), newToken())
        return self.threads.during(self.run(self._put(wanted, data)))

    async def _put(self, wanted: Wanted, data: bytes) -> Receipt:
        receipt = await self.names.publish(wanted, data)
        if wanted.offer.resumeKey is not None:
            await self.lifecycle.tell(wanted, receipt)
        return receipt

    def open(
        self, offer: Offer, holder: IPartialHolder | None = None
    ) -> Deferred[IPartial | Receipt]:
        return self.threads.during(Deferred.fromCoroutine(self._open(offer, holder)))

    async def _open(self, offer: Offer, holder: IPartialHolder | None) -> S3Partial | Receipt:
        self.layout.check(offer.name)
        if offer.resumeKey is None:
            if holder is not None:
                await holder.ready()
            receipt = await self.run(self._outlook.earlier(offer))
            return receipt or await self._make(offer, None, "", NOTHING, None)
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
        receipt = await self.run(self._outlook.earlier(offer))
        if receipt is not None:
            return receipt
        upload, seen = await self.run(self.lifecycle.resume(pointer))
        if upload is not None and upload.begin is not None:
            older = upload.begin.asOffer()
            if not continues(offer, older):
                await self.run(self.lifecycle.remove(Log(self.layout, upload)))
                upload, seen = None, await self.run(pointers.look(pointer))
            elif upload.commit is not None:
                return await self.run(self._complete(upload, older))
        if upload is None:
            await self.run(self._verifyQuota(offer))
        return await self._make(offer, tenure, pointer, seen, upload)

    async def _complete(self, upload: Upload, offer: Offer) -> Receipt:
        """
        Publish what was to be published when its receiver died.
        """
        log, commit = Log(self.layout, upload), upload.commit
        assert commit is not None
        receipt = await self.lifecycle.publish(log, offer, commit.content, commit.receipt)
        self.afterwards(self.lifecycle.retire(log, commit.content, receipt))
        return receipt

    async def _make(
        self,
        offer: Offer,
        tenure: Tenure | None,
        pointer: str,
        seen: Seen,
        upload: Upload | None,
    ) -> S3Partial:
        size = partBytes(offer.size, offer.blockSize, self._leastPart)
        if upload is not None and upload.begin is not None:
            size = upload.begin.partBytes
        room = min(SLOTS * size, self.spool.size // size * size or self.spool.size)
        if offer.size is not None:
            room = min(room, offer.size)
        await self.spool.take(room)
        try:
            partial = S3Partial(self, offer, tenure, pointer, seen, size, room, upload)
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

    def stat(self, name: RelativeName) -> Deferred[FileStat | None]:
        return self.run(self._stat(name))

    async def _stat(self, name: RelativeName) -> FileStat | None:
        there = await Head(self.layout.file(name.path))
        if isinstance(there, Missing):
            return None
        return FileStat(there.size, reading.modifiedOf(there))

    def listing(self, directory: RelativeName | None, after: str, limit: int) -> Deferred[Listing]:
        return self.run(reading.listing(self.layout, directory, after, limit))

    def read(self, name: RelativeName, start: int, end: int) -> Deferred[FileRange]:
        return self.run(reading.read(self.layout, name, start, end))

    def foresee(self, offer: Offer, root: bytes | None, ahead: int, whole: bool) -> Deferred[str]:
        self.layout.check(offer.name)
        return self.run(self._outlook.foresee(offer, contentOf(offer, root)))

    def partials(self, principal: str | None = None) -> Deferred[list[PartialInfo]]:
        return Deferred.fromCoroutine(self._list(principal))

    async def _list(self, principal: str | None) -> list[PartialInfo]:
        active = {
            each.pointer: each.describe()
            for each in self._partials
            if principal in {None, each.offer.principal}
        }
        listed = await self.run(self._listed(self.layout.partials(principal)))
        return [*active.values(), *(each for each in listed if each.partialId not in active)]

    async def _listed(self, prefix: str) -> list[PartialInfo]:
        found = []
        keys = await self._pointers(prefix)
        for key, pointer in await self._read(keys):
            upload = await readLog(self.layout, pointer.token)
            if upload is None or upload.end or upload.begin is None:
                continue
            offer = upload.begin.asOffer()
            received = sum(part.size for part in upload.parts.values())
            tails = (span for tail in upload.tails.values() for span in tail.spans)
            received += sum(end - start for start, end, _ in tails)
            found.append(
                PartialInfo(
                    *(key, offer.principal, offer.name.path, offer.size, received, received),
                    active=False,
                    changed=upload.changed,
                )
            )
        return found

    async def _pointers(self, prefix: str) -> list[str]:
        """
        Return the keys of the pointers of uploads that go on.
        """
        keys: list[str] = []
        while True:
            page = await List(prefix, keys[-1] if keys else "")
            keys += [entry.key for entry in page.entries]
            if not page.more:
                return keys

    async def _read(self, keys: list[str]) -> list[tuple[str, Pointer]]:
        read = []
        for at in range(0, len(keys), _READS):
            some = keys[at : at + _READS]
            for key, found in zip(some, await together(map(Get, some)), strict=True):
                if isinstance(found, Found):
                    read.append((key, Pointer.decode(found.body)))
        return read

    async def _verifyQuota(self, offer: Offer) -> None:
        """
        Check that one more upload of a principal may begin.
        """
        keys = await self._pointers(self.layout.partials(offer.principal))
        if len(keys) >= MAX_PARTIALS:
            raise tooManyPartials()
        await self._verifySum(keys, offer.size or 0)

    async def _placed(self, offer: Offer) -> None:
        """
        Check the quota again: placed, then counted, receivers together never exceed it.
        """
        if self._settings.quota is not None:
            await self._verifySum(await self._pointers(self.layout.partials(offer.principal)), 0)

    async def _verifySum(self, keys: list[str], more: int) -> None:
        quota = self._settings.quota
        if quota is None:
            return
        used = sum(pointer.size for _, pointer in await self._read(keys))
        if used + more > quota:
            raise QuotaExceeded(
                f"{used} bytes of this sender's unfinished files are stored already, and {quota}"
                " may be; finish one first"
            )

    def delete(self, info: PartialInfo) -> Deferred[None]:
        return self.run(self._delete(info.partialId))

    async def _delete(self, key: str) -> None:
        upload, _ = await self.lifecycle.resume(key)
        if upload is not None:
            await self.lifecycle.remove(Log(self.layout, upload))

    def find(
        self, principal: str, resumeKey: bytes, key: bytes, network: str = ""
    ) -> Deferred[Offer | Receipt | None]:
        pointer = self.layout.partial(principal, network, resumeKey)
        here = next((each for each in self._partials if each.pointer == pointer), None)
        if here is not None and here.writable:
            return succeed(here.offer if here.offer.key == key else None)

        def known(found: Offer | Receipt | None) -> Offer | Receipt | None:
            # the log does not say what its asker has to know
            if not isinstance(found, Offer):
                return found
            return attrs.evolve(found, resumeKey=resumeKey, network=network)

        return self.run(self._find(pointer, key)).addCallback(known)

    async def _find(self, pointer: str, key: bytes) -> Offer | Receipt | None:
        named = (await pointers.look(pointer)).latest
        upload = None if named is None else await readLog(self.layout, named.token)
        if upload is None or upload.begin is None:
            return None
        offer = upload.begin.asOffer()
        if offer.key != key:
            return None
        if upload.end:
            ended = upload.commit if upload.end == PUBLISHED else None
            return None if ended is None else ended.receipt
        return offer

    # -- time

    def _reapLater(self) -> None:
        wait = REAP_SECONDS * (0.5 + random.random())  # noqa: S311 - so that receivers take turns
        self._nextReap = self._reactor.callLater(wait, self._reapNow)

    def _reapNow(self) -> None:
        self._nextReap = None
        reaping = self.run(self.reap())
        self._working.add(reaping)

        def ended(result: Any) -> None:
            self._working.discard(reaping)
            if result is None:
                self._reaping.over()
            elif not self._isClosed:
                self._reaping.met(str(result.value))
            if not self._isClosed:
                self._reapLater()

        reaping.addBoth(ended)

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
        await DeferredList([each.suspend() for each in list(self._partials)])
        await self.threads.quiet()
        waiting = [running.addErrback(lambda _: None) for running in self._working]
        await DeferredList([succeed(None), *map(_ended, waiting)])
        self.threads.stop()
        if self._whenClosed is not None:
            await self._whenClosed()


def _ended(running: Deferred[Any]) -> Deferred[None]:
    d: Deferred[None] = Deferred()
    running.addBoth(lambda _: d.callback(None))
    return d
