"""
The way of an upload from its first part to its name, step by step.

Each step may be the last one of its receiver: what another one finds then is decided by the
log (L{connpool.transfer.stores.s3.uploadlog}) and the claim
(L{connpool.transfer.stores.s3.claims}).
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import attrs

from connpool.errors import ConflictTakeover, Exists, Expired, QuotaExceeded, StoreError
from connpool.transfer.records import Offer, PartialInfo, Receipt
from connpool.transfer.stores.partialdir import MAX_PARTIALS, tooManyPartials
from connpool.transfer.stores.s3 import calls, pointers, uploadlog
from connpool.transfer.stores.s3.claims import Wanted, metadataOf
from connpool.transfer.stores.s3.naming import Invalid, Moved, Names
from connpool.transfer.stores.s3.pointers import Pointer, Seen
from connpool.transfer.stores.s3.uploadlog import PUBLISHED, Begin, Commit, Upload, readLog

__all__ = ["Lifecycle"]


class Lifecycle:
    """
    The steps, in one store.

    @param quota: bytes that the unfinished files of one principal may have; L{None} for all.
    """

    def __init__(self, names: Names, quota: int | None = None) -> None:
        self._layout = names.layout
        self._names = names
        self._quota = quota

    async def resume(self, pointer: str) -> tuple[Upload | None, Seen]:
        """
        Become the holder of the upload that a pointer names, if it goes on.

        @return: its state, if there is one; and what was read, for L{begin}.
        """
        seen = await pointers.look(pointer)
        named = seen.pointer
        return None if named is None else await uploadlog.takeOver(self._layout, named.token), seen

    async def begin(
        self, offer: Offer, token: str, partBytes: int, pointer: str, seen: Seen, *, parts: bool
    ) -> Upload:
        """
        Begin the log of an upload, and let the pointer name it.

        @param parts: whether the engine is told of parts to come.
        @raise Busy: another receiver was first.
        """
        upload = Upload(self._layout, token)
        begin = Begin.of(offer, "", "", partBytes, pointer)
        await upload.append(begin=await self._multipart(offer, token, begin) if parts else begin)
        if pointer:
            try:
                await pointers.point(pointer, Pointer(token, offer.size or 0), seen)
                if self._quota is not None:
                    # placed, then counted: so receivers together never exceed it
                    await self._verifySum(await self._pointers(offer.principal))
            except Exception:
                await self.remove(upload)
                raise
        return upload

    async def bind(self, upload: Upload, offer: Offer) -> None:
        """
        Tell the engine of parts to come, of an upload that was begun without.
        """
        await upload.append(begin=await self._multipart(offer, upload.token, upload.begin))

    async def _multipart(self, offer: Offer, token: str, begin: Begin) -> Begin:
        path = await self._names.bind(offer)
        metadata = metadataOf(token, offer.modified)
        made = await calls.CreateUpload(self._layout.file(path), metadata)
        return Begin.of(offer, path, made.uploadId, begin.partBytes, begin.pointer)

    async def publish(
        self, upload: Upload, offer: Offer, content: str, receipt: Receipt
    ) -> Receipt:
        """
        Publish an upload all of whose parts are there.

        @param content: as in L{Wanted}; this and C{receipt} are those of the commit, if there
            is one already.
        @raise Invalid: some of them have to come again; they are no longer in the log.
        """
        if upload.commit is None:
            recorded = sorted(upload.parts.values(), key=attrgetter("number"))
            parts = tuple((each.number, each.etag, each.crc) for each in recorded)
            await upload.append(commit=Commit(content, receipt, parts))
        commit, begin = upload.commit, upload.begin
        assert commit is not None
        wanted = Wanted(
            *(offer, commit.content, commit.receipt),
            *(upload.token, begin.uploadId, upload.commitAt),
        )
        try:
            return await self._names.commit(wanted, begin.path)
        except Invalid:
            await upload.voidDamaged()
            raise
        except (Moved, Exists, Expired):
            await self.remove(upload)
            raise

    async def retire(self, upload: Upload, content: str, receipt: Receipt) -> None:
        """
        Note that the receipt was given, and remove what the upload leaves.
        """
        await upload.close(PUBLISHED, Commit(content, receipt, ()))
        await self.clear(upload)

    async def tell(self, wanted: Wanted, receipt: Receipt) -> None:
        """
        Note a file that was stored in one piece under its resume key, as an upload that has ended.
        """
        offer, token = wanted.offer, wanted.token
        assert offer.resumeKey is not None
        pointer = self._layout.partial(offer.principal, offer.network, offer.resumeKey)
        await Upload(self._layout, token).append(
            begin=Begin.of(offer, "", "", 0, pointer),
            commit=Commit(wanted.content, receipt, ()),
            end=PUBLISHED,
        )
        await pointers.over(pointer, token)

    async def remove(self, upload: Upload) -> None:
        """
        Give an upload up.  If another receiver has it meanwhile nothing happens.
        """
        try:
            await upload.close(uploadlog.REMOVED)
        except ConflictTakeover:
            return
        await self.clear(upload)

    async def clear(self, upload: Upload) -> None:
        """
        Remove what an upload that has ended leaves, but for its last record.
        """
        begin, token = upload.begin, upload.token
        if begin.uploadId:
            await calls.Abort(self._layout.file(begin.path), begin.uploadId)
        if begin.pointer:
            await pointers.over(begin.pointer, token)
        await _removeAll(self._layout.tails(token))
        last = self._layout.record(token, upload.next - 1)
        await _removeAll(self._layout.record(token), last)

    async def forget(self, token: str, upload: Upload | None) -> None:
        """
        Remove all traces of an upload that ended long ago.
        """
        if upload is not None and upload.begin.pointer:
            await pointers.forget(upload.begin.pointer, token)
        await _removeAll(self._layout.tails(token))
        await _removeAll(self._layout.record(token))

    # -- the uploads of a principal

    async def find(
        self, pointer: str, key: bytes, secret: dict[str, Any]
    ) -> Offer | Receipt | None:
        """
        Return the offer of the upload that a pointer names, or its receipt if it was published.

        @param key: its idempotence key, or nothing is told.
        @param secret: attributes of the offer that no log has.
        """
        seen = await pointers.look(pointer)
        named = seen.pointer or Pointer.of(seen.ended)
        upload = None if named is None else await readLog(self._layout, named.token)
        offer = None if upload is None else upload.begin.asOffer()
        if upload is None or offer is None or offer.key != key:
            return None
        if not upload.end:
            return attrs.evolve(offer, **secret)
        ended = upload.commit if upload.end == PUBLISHED else None
        return None if ended is None else ended.receipt

    async def partials(self, principal: str | None) -> list[PartialInfo]:
        found = []
        keys = await self._pointers(principal)
        for key, pointer in await self._read(keys):
            try:
                upload = await readLog(self._layout, pointer.token)
            except StoreError:
                continue  # whoever sends it is told, and the reaper's log tells
            if upload is None or upload.end:
                continue
            offer = upload.begin.asOffer()
            received = sum(part.size for part in upload.parts.values())
            tails = (span for tail in upload.tails.values() for span in tail.spans)
            received += sum(end - start for start, end, _ in tails)
            of = key, offer.principal, offer.name.path, offer.size, received, received
            found.append(PartialInfo(*of, active=False, changed=upload.changed))
        return found

    async def verifyQuota(self, offer: Offer) -> None:
        """
        Check that one more upload of a principal may begin.
        """
        own = self._layout.partials(offer.principal, offer.network)
        keys = await self._pointers(offer.principal, offer.network)
        if sum(key.rpartition("/")[0] + "/" == own for key in keys) >= MAX_PARTIALS:
            raise tooManyPartials()
        if offer.network and self._quota is not None:  # which is of all networks together
            keys = await self._pointers(offer.principal)
        await self._verifySum(keys, offer.size or 0)

    async def _verifySum(self, keys: list[str], more: int = 0) -> None:
        if self._quota is None:
            return
        used = sum(pointer.size for _, pointer in await self._read(keys))
        if used + more > self._quota:
            raise QuotaExceeded(
                f"{used} bytes of this sender's unfinished files are stored already, and"
                f" {self._quota} may be; finish one first"
            )

    async def _pointers(self, principal: str | None, network: str = "") -> list[str]:
        prefix = self._layout.partials(principal, network)
        return [each.key async for page in calls.pages(prefix) for each in page.entries]

    async def _read(self, keys: list[str]) -> list[tuple[str, Pointer]]:
        found = map(Pointer.of, await calls.together(map(calls.Get, keys)))
        return [(key, each) for key, each in zip(keys, found, strict=True) if each is not None]


async def _removeAll(prefix: str, but: str = "") -> None:
    """
    Remove the objects whose keys begin with C{prefix}, but for one.
    """
    async for page in calls.pages(prefix):
        await calls.together(calls.Delete(each.key) for each in page.entries if each.key != but)
