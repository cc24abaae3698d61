"""
The choice of the partial that an offer gets.

Theory of operation
===================
Offers of one principal and resume key have their turns: each finds the partial
as the one before left it.  That is in use in this process (then it is taken
over, see L{connpool.transfer.stores.takeover}, or its publishing waited for), on
disk, or new.

What lies on disk may have been published by a process that died; then the
steps that it left are taken.  Room is made only when it will be enough, and a
partial is registered only when nothing can fail any more but the disk under it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred, succeed

from connpool.errors import Busy, StoreError
from connpool.interfaces import IPartialHolder
from connpool.transfer.records import Offer, Receipt, Stump
from connpool.transfer.stores.journal import continues
from connpool.transfer.stores.partial import LocalPartial
from connpool.transfer.stores.partialdir import (
    LONG_JOURNAL_BYTES,
    Slot,
    namesOf,
    tooManyPartials,
)
from connpool.transfer.stores.parts import StoreParts
from connpool.transfer.stores.publish import temporaryName
from connpool.transfer.stores.ranges import Ranges
from connpool.transfer.stores.rehash import blocksIn
from connpool.transfer.stores.reservations import Reservation, Shortage
from connpool.transfer.stores.takeover import Takeovers, Tenure

__all__ = ["Admission"]

#: Seconds between, and number of, tries to lock a partial: somebody may only be
#: looking at it.
LOCK_RETRY_SECONDS = 0.05
LOCK_TRIES = 3

Names = tuple[str, str]


class Admission:
    """
    The partials of one store that are in use.

    @param pause: lets so many seconds pass.
    @ivar closed: whether no more are opened.
    """

    def __init__(self, parts: StoreParts, pause: Callable[[float], Deferred[None]]) -> None:
        self._parts = parts
        self._pause = pause
        self._active: dict[LocalPartial, Tenure | None] = {}
        self._takeovers = Takeovers()
        self._resumable: dict[Names, LocalPartial] = {}
        self._turns: dict[Names, DeferredLock] = {}
        #: Evictions take turns: what one removed would be missing in the other's count,
        #: and both would be refused.
        self._evictions = DeferredLock()
        self.closed = False

    @property
    def active(self) -> list[LocalPartial]:
        """
        The partials that hold descriptors.
        """
        return list(self._active)

    async def open(self, offer: Offer, holder: IPartialHolder | None) -> LocalPartial | Receipt:
        """
        Open a partial as L{connpool.interfaces.IFileStore.open} says.
        """
        if offer.resumeKey is None:
            if holder is not None:
                await holder.ready()
            finished = self._parts.commit.finished(offer, offer.size)
            return finished or await self._openTemporary(offer)
        names = namesOf(offer)
        tenure = await self._takeovers.take(names, holder)
        opened: LocalPartial | Receipt | None = None
        turn = await self._turn(names)
        try:
            opened = await self._openInTurn(names, offer)
            if isinstance(opened, LocalPartial) and opened in self._active:
                opened.epoch = tenure.epoch
                self._active[opened] = tenure
            else:
                tenure.release()
            return opened
        finally:
            if opened is None:
                tenure.release()
            self._turnEnds(names, turn)

    async def find(self, probe: Offer) -> Offer | Receipt | None:
        """
        Find a partial, or the receipt that came of it, as
        L{connpool.interfaces.IUploadStore.find} says.

        @param probe: whose it is: the principal, the network and the two keys count.
        """
        parts = self._parts
        names = namesOf(probe)
        turn = await self._turn(names)
        try:
            while True:
                older = self._resumable.get(names)
                if older is not None and older.ending is not None:
                    await older.ended()
                    continue
                receipt = parts.commit.latest(probe)
                if receipt is not None:
                    if older is None:
                        await self._clear(names)
                    return receipt
                if older is not None:
                    return older.offer if older.offer.key == probe.key else None
                found: Offer | Receipt | None = await self._patiently(
                    parts.threads.run, self._look, names, probe
                )
                return found
        finally:
            self._turnEnds(names, turn)

    def _look(self, names: Names, probe: Offer) -> Offer | Receipt | None:
        """
        Return the offer of a suspended partial; the receipt, if its process died after it
        had published it.
        """
        parts = self._parts
        slot = parts.partials.find(names)
        if slot is None:
            return None
        try:
            parts.partials.read(slot)
            offer = slot.journal.offer
            if offer is None or offer.key != probe.key:
                return None
            if parts.recovery.wasPublished(slot):
                receipt: Receipt = parts.recovery.finish(slot)
                return receipt
        finally:
            if not slot.closed:
                parts.partials.letGo(slot)
        return attrs.evolve(
            offer, resumeKey=probe.resumeKey, network=probe.network, evicts=probe.evicts
        )

    async def _turn(self, names: Names) -> DeferredLock:
        turn = self._turns.setdefault(names, DeferredLock())
        await turn.acquire()
        return turn

    def _turnEnds(self, names: Names, turn: DeferredLock) -> None:
        turn.release()
        if not turn.locked and self._turns.get(names) is turn:
            del self._turns[names]

    def left(self, partial: LocalPartial) -> None:
        """
        C{partial} no longer uses anything of the store.
        """
        tenure = self._active.pop(partial, None)
        slot = partial.slot
        names = (slot.directory.components[-1], slot.name)
        if self._resumable.get(names) is partial:
            del self._resumable[names]
        if tenure is not None:
            tenure.release()

    def _register(self, partial: LocalPartial) -> None:
        self._active[partial] = None
        if partial.offer.resumeKey is not None:
            self._resumable[namesOf(partial.offer)] = partial

    def _refuse(self) -> None:
        if self.closed:
            raise StoreError("the receiver is stopping")

    async def _openTemporary(self, offer: Offer) -> LocalPartial:
        parts = self._parts
        reservation = await self._reserve(offer, None)
        try:
            self._refuse()
            try:
                slot = parts.partials.temporary(temporaryName(offer))
            except FileExistsError:
                slot = parts.partials.temporary(os.urandom(16).hex())
        except BaseException:
            parts.reservations.release(reservation)
            raise
        partial = LocalPartial(parts, offer, reservation, slot, self.left)
        self._register(partial)
        return partial

    async def _openInTurn(self, names: Names, offer: Offer) -> LocalPartial | Receipt:
        parts = self._parts
        while True:
            older = self._resumable.get(names)
            if older is not None and older.ending is not None:
                # it is being published, and its receipt may not be on disk yet:
                # whoever asks again gets the same one
                receipt = await older.ended()
                same = older.offer.key == offer.key
                if receipt is not None and same and receipt.answers(offer.size):
                    return receipt
                continue
            receipt = parts.commit.finished(offer, offer.size)
            if receipt is not None:
                if older is None:
                    await self._clear(names)
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

    async def _clear(self, names: Names) -> None:
        """
        Remove what a process left that died after its done record.
        """
        try:
            await self._parts.threads.run(self._parts.partials.removeFound, names)
        except (Busy, OSError):
            return  # the recovery finds it

    async def _openSlot(self, offer: Offer) -> LocalPartial | Receipt:
        parts = self._parts
        reservation: Reservation | None = None
        while True:
            slot: Slot = await self._patiently(maybeDeferred, parts.partials.take, offer)
            try:
                if slot.said < LONG_JOURNAL_BYTES:
                    there = self._read(slot, offer)
                else:
                    there = await parts.threads.run(self._read, slot, offer)
                if parts.recovery.wasPublished(slot):
                    receipt: Receipt = await parts.threads.run(parts.recovery.finish, slot)
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
                    await parts.threads.run(parts.partials.remove, slot)
                    continue
                reservation = await self._reserve(offer, slot)
                await self._makeRoom(offer, slot)
                self._refuse()
                break
            except BaseException:
                if reservation is not None:
                    parts.reservations.release(reservation)
                if not slot.closed:
                    (parts.partials.remove if slot.fresh else parts.partials.letGo)(slot)
                raise
        partial = LocalPartial(parts, offer, reservation, slot, self.left)
        self._register(partial)
        if there is not None:
            partial.resume(*there)
        elif slot.status.st_size and offer.digest is not None:
            await partial.learn(blocksIn(slot.status, offer))
        partial.describe()
        return partial

    async def _patiently(self, run: Callable[..., Deferred[Any]], *what: Any) -> Any:
        """
        Do what needs the lock of a partial.
        """
        tries = LOCK_TRIES
        while True:
            tries -= 1
            try:
                return await run(*what)
            except Busy:
                if not tries:
                    raise
            await self._pause(LOCK_RETRY_SECONDS)

    def _read(
        self, slot: Slot, offer: Offer
    ) -> tuple[dict[int, bytes], Stump | None, Ranges] | None:
        """
        Return the blocks that the journal names; L{None} if it does not say anything about
        C{offer}.
        """
        self._parts.partials.read(slot)
        older = slot.journal.offer
        if older is None or not continues(offer, older):
            return None
        return slot.journal.whole(offer, slot.status.st_size)

    async def _reserve(self, offer: Offer, slot: Slot | None) -> Reservation:
        """
        Reserve the declared size; if need be, in the place of the oldest
        suspended partials of the same principal.
        """
        try:
            return self._reserveNow(offer, slot)
        except Shortage:
            return await self._evictions.run(self._reserveByEviction, offer, slot)

    async def _reserveByEviction(self, offer: Offer, slot: Slot | None) -> Reservation:
        while True:
            try:
                return self._reserveNow(offer, slot)
            except Shortage as short:
                if not await self._evict(offer, slot, short.missing, 0):
                    raise short.why from None

    def _reserveNow(self, offer: Offer, slot: Slot | None) -> Reservation:
        parts = self._parts
        return parts.reservations.reserve(
            offer.principal,
            None if offer.identity is None else offer.identity.quota,
            offer.size,
            0 if slot is None else slot.allocated,
            lambda: parts.partials.suspended(offer, slot),
            offer.dataBytes,
        )

    async def _makeRoom(self, offer: Offer, slot: Slot) -> None:
        if slot.fresh and self._parts.partials.excess(slot) > 0:
            await self._evictions.run(self._evictExcess, offer, slot)

    async def _evictExcess(self, offer: Offer, slot: Slot) -> None:
        excess = self._parts.partials.excess(slot)
        if excess > 0 and not await self._evict(offer, slot, 0, excess):
            raise tooManyPartials()

    def _evict(self, offer: Offer, slot: Slot | None, size: int, count: int) -> Deferred[bool]:
        parts = self._parts
        if not offer.evicts:
            return succeed(False)
        return parts.threads.run(parts.partials.evict, offer, slot, size, count)
