"""
Which partial an offer gets.

Theory of operation
===================
Offers of one principal and resume key have their turns: each finds the partial
as the one before left it.  That is in use in this process (then it is taken
over, or its publishing waited for), on the shelf, or new.

What lies on the shelf may have been published by a process that died; then the
steps that it left are taken.  Room is made only when it will be enough, and a
partial is registered only when nothing can fail any more but the disk under it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredLock

from connpool.errors import Busy, StoreError
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.commit import temporaryName
from connpool.transfer.stores.journal import continues
from connpool.transfer.stores.partial import LocalPartial
from connpool.transfer.stores.partialdir import LONG_JOURNAL, Slot, identityOf, tooManyPartials
from connpool.transfer.stores.ranges import Ranges
from connpool.transfer.stores.rehash import blocksIn
from connpool.transfer.stores.reservations import Reservation, Short

if TYPE_CHECKING:
    from connpool.transfer.stores.local import LocalStore

__all__ = ["Admission"]

#: Seconds between, and number of, tries to lock a partial: somebody may only be
#: looking at it.
PAUSE = 0.05
TRIES = 3

Identity = tuple[str, str]


class Admission:
    """
    The partials of one store that are in use.

    @param pause: lets so many seconds pass.
    @ivar closed: whether no more are opened.
    """

    def __init__(self, store: LocalStore, pause: Callable[[float], Deferred[None]]) -> None:
        self._store = store
        self._pause = pause
        self._active: set[LocalPartial] = set()
        self._resumable: dict[Identity, LocalPartial] = {}
        self._turns: dict[Identity, DeferredLock] = {}
        self.closed = False

    @property
    def active(self) -> list[LocalPartial]:
        """
        Those that hold descriptors.
        """
        return list(self._active)

    async def open(self, offer: Offer) -> LocalPartial | Receipt:
        """
        As L{connpool.interfaces.IFileStore.open}.
        """
        if offer.resumeKey is None:
            finished = self._store.finisher.finished(offer, offer.size)
            return finished or await self._openTemporary(offer)
        identity = identityOf(offer)
        turn = self._turns.setdefault(identity, DeferredLock())
        await turn.acquire()
        try:
            return await self._openInTurn(identity, offer)
        finally:
            turn.release()
            if not turn.locked and self._turns.get(identity) is turn:
                del self._turns[identity]

    def left(self, partial: LocalPartial) -> None:
        """
        C{partial} no longer uses anything of the store.
        """
        self._active.discard(partial)
        slot = partial.slot
        identity = (slot.directory.components[-1], slot.name)
        if self._resumable.get(identity) is partial:
            del self._resumable[identity]

    def _register(self, partial: LocalPartial) -> None:
        self._active.add(partial)
        if partial.offer.resumeKey is not None:
            self._resumable[identityOf(partial.offer)] = partial

    def _refuse(self) -> None:
        if self.closed:
            raise StoreError("the receiver is stopping")

    async def _openTemporary(self, offer: Offer) -> LocalPartial:
        store = self._store
        reservation = await self._reserve(offer, None)
        try:
            self._refuse()
            try:
                slot = store.shelf.temporary(temporaryName(offer))
            except FileExistsError:
                slot = store.shelf.temporary(os.urandom(16).hex())
        except BaseException:
            store.ledger.release(reservation)
            raise
        partial = LocalPartial(store, offer, reservation, slot)
        self._register(partial)
        return partial

    async def _openInTurn(self, identity: Identity, offer: Offer) -> LocalPartial | Receipt:
        store = self._store
        while True:
            older = self._resumable.get(identity)
            if older is not None and older.ending is not None:
                # it is being published, and its receipt may not be on disk yet:
                # whoever asks again gets the same one
                receipt = await older.ended()
                same = older.offer.key == offer.key
                if receipt is not None and same and receipt.answers(offer.size):
                    return receipt
                continue
            receipt = store.finisher.finished(offer, offer.size)
            if receipt is not None:
                if older is None:
                    await self._clear(identity)
                return receipt
            if older is None:
                return await self._openSlot(offer)
            await older.fence()
            if not self.closed and older.continuesAs(offer):
                newer = older.takeOver(offer)
                self.left(older)
                self._register(newer)
                return newer
            await older.leave()
            self._refuse()

    async def _clear(self, identity: Identity) -> None:
        """
        Remove what a process left that died after its done record.
        """
        try:
            await self._store.lanes.run(self._store.shelf.removeFound, identity)
        except (Busy, OSError):
            return  # the reaper finds it

    async def _openSlot(self, offer: Offer) -> LocalPartial | Receipt:
        store = self._store
        reservation: Reservation | None = None
        while True:
            slot = await self._take(offer)
            try:
                if slot.said < LONG_JOURNAL:
                    there = self._read(slot, offer)
                else:
                    there = await store.lanes.run(self._read, slot, offer)
                if store.reaper.wasPublished(slot):
                    receipt: Receipt = await store.lanes.run(store.reaper.finish, slot)
                    before = slot.journal.offer
                    if (
                        before is not None
                        and before.key == offer.key
                        and receipt.answers(offer.size)
                    ):
                        return receipt
                    continue
                if slot.status.st_nlink > 1:
                    # somebody linked to it, and would see what we write
                    await store.lanes.run(store.shelf.remove, slot)
                    continue
                reservation = await self._reserve(offer, slot)
                await self._makeRoom(offer, slot)
                self._refuse()
                break
            except BaseException:
                if reservation is not None:
                    store.ledger.release(reservation)
                if not slot.closed:
                    (store.shelf.remove if slot.fresh else store.shelf.letGo)(slot)
                raise
        partial = LocalPartial(store, offer, reservation, slot)
        self._register(partial)
        if there is not None:
            partial.resume(*there)
        elif slot.status.st_size and offer.digest is not None:
            await partial.learn(blocksIn(slot.status, offer))
        partial.describe()
        return partial

    async def _take(self, offer: Offer) -> Slot:
        tries = TRIES
        while True:
            tries -= 1
            try:
                return self._store.shelf.take(offer)
            except Busy:
                if not tries:
                    raise
            await self._pause(PAUSE)

    def _read(self, slot: Slot, offer: Offer) -> tuple[dict[int, bytes], Ranges] | None:
        """
        @return: the blocks that the journal names; L{None} if it does not say
            anything about C{offer}.
        """
        self._store.shelf.read(slot)
        older = slot.journal.offer
        if older is None or not continues(offer, older):
            return None
        return slot.journal.whole(offer, slot.status.st_size)

    async def _reserve(self, offer: Offer, slot: Slot | None) -> Reservation:
        """
        Reserve the declared size; if need be, in the place of the oldest
        suspended partials of the same principal.
        """
        store = self._store
        while True:
            try:
                return store.ledger.reserve(
                    offer.principal,
                    None if offer.identity is None else offer.identity.quota,
                    offer.size,
                    0 if slot is None else slot.allocated,
                    lambda: store.shelf.suspended(offer.principal, slot),
                )
            except Short as short:
                if not await self._evict(offer, slot, short.missing, 0):
                    raise short.why from None

    async def _makeRoom(self, offer: Offer, slot: Slot) -> None:
        excess = self._store.shelf.excess(slot) if slot.fresh else 0
        if excess > 0 and not await self._evict(offer, slot, 0, excess):
            raise tooManyPartials()

    def _evict(self, offer: Offer, slot: Slot | None, size: int, count: int) -> Deferred[bool]:
        store = self._store
        return store.lanes.run(store.shelf.evict, offer.principal, slot, size, count)
