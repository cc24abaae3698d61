"""
The way of an upload from its first part to its name, step by step.

Each step may be the last one of its receiver: what another one finds then is decided by the
log (L{connpool.transfer.stores.s3.uploadlog}) and the claim
(L{connpool.transfer.stores.s3.claims}).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from operator import attrgetter
from typing import Any

from connpool.errors import ConflictTakeover, Exists, Expired
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.s3 import pointers
from connpool.transfer.stores.s3.calls import CreateUpload
from connpool.transfer.stores.s3.claims import Wanted, metadataOf
from connpool.transfer.stores.s3.layout import Layout
from connpool.transfer.stores.s3.naming import Invalid, Moved, Names
from connpool.transfer.stores.s3.outlook import Outlook
from connpool.transfer.stores.s3.pointers import Pointer, Seen
from connpool.transfer.stores.s3.uploadlog import (
    PUBLISHED,
    REMOVED,
    Begin,
    Commit,
    Log,
    Upload,
    clear,
    takeOver,
)

__all__ = ["Lifecycle"]


class Lifecycle:
    """
    The steps, in one store.

    @param placed: told of an offer whose upload has its pointer; it may refuse that.
    """

    def __init__(
        self,
        layout: Layout,
        names: Names,
        outlook: Outlook,
        placed: Callable[[Offer], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._placed = placed
        self._layout = layout
        self._names = names
        self._outlook = outlook

    async def resume(self, pointer: str) -> tuple[Upload | None, Seen]:
        """
        Become the holder of the upload that a pointer names, if it goes on.

        @return: its state, if there is one; and what was read, for L{begin}.
        """
        seen = await pointers.look(pointer)
        named = seen.pointer
        upload = None if named is None else await takeOver(self._layout, named.token)
        return upload, seen

    async def begin(
        self,
        offer: Offer,
        token: str,
        partBytes: int,
        pointer: str,
        seen: Seen,
        *,
        parts: bool,
    ) -> Log:
        """
        Begin the log of an upload, and let the pointer name it.

        @param parts: whether the engine is told of parts to come.
        @raise Busy: another receiver was first.
        """
        log = Log(self._layout, Upload(token))
        if parts:
            begin = await self._multipart(offer, token, partBytes, pointer)
        else:
            begin = Begin.of(offer, "", "", partBytes, pointer)
        await log.append(begin=begin)
        if pointer:
            try:
                await pointers.point(pointer, Pointer(token, offer.size or 0), seen)
                if self._placed is not None:
                    await self._placed(offer)
            except Exception:
                await self.remove(log)
                raise
        return log

    async def bind(self, log: Log, offer: Offer) -> None:
        """
        Tell the engine of parts to come, of an upload that was begun without.
        """
        begin = log.upload.begin
        assert begin is not None
        made = await self._multipart(offer, log.upload.token, begin.partBytes, begin.pointer)
        await log.append(begin=made)

    async def _multipart(self, offer: Offer, token: str, partBytes: int, pointer: str) -> Begin:
        path = await self._outlook.bind(offer)
        metadata = metadataOf(token, offer.modified)
        made = await CreateUpload(self._layout.file(path), metadata)
        return Begin.of(offer, path, made.uploadId, partBytes, pointer)

    async def publish(self, log: Log, offer: Offer, content: str, receipt: Receipt) -> Receipt:
        """
        Publish an upload all of whose parts are there.

        @raise Invalid: some of them have to come again; they are no longer in the log.
        """
        upload = log.upload
        assert upload.begin is not None
        if upload.commit is None:
            recorded = sorted(upload.parts.values(), key=attrgetter("number"))
            parts = tuple((each.number, each.etag, each.crc) for each in recorded)
            await log.append(commit=Commit(content, receipt, parts))
        try:
            return await self._names.commit(upload.wanted(offer), upload.begin.path)
        except Invalid:
            await log.voidDamaged()
            raise
        except (Moved, Exists, Expired):
            await self.remove(log)
            raise

    async def retire(self, log: Log, content: str, receipt: Receipt) -> None:
        """
        Note that the receipt was given, and remove what the upload leaves.
        """
        await log.end(PUBLISHED, Commit(content, receipt, ()))
        await clear(self._layout, log.upload)

    async def tell(self, wanted: Wanted, receipt: Receipt) -> None:
        """
        Note a file that was stored in one piece under its resume key, as an upload that has ended.
        """
        offer, token = wanted.offer, wanted.token
        assert offer.resumeKey is not None
        pointer = self._layout.partial(offer.principal, offer.network, offer.resumeKey)
        await Log(self._layout, Upload(token)).append(
            begin=Begin.of(offer, "", "", 0, pointer),
            commit=Commit(wanted.content, receipt, ()),
            end=PUBLISHED,
        )
        await pointers.over(pointer, token)

    async def remove(self, log: Log) -> None:
        """
        Give an upload up.  If another receiver has it meanwhile nothing happens.
        """
        try:
            await log.end(REMOVED)
        except ConflictTakeover:
            return
        await clear(self._layout, log.upload)
