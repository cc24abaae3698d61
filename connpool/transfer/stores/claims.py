"""
The decision that a newer sender takes over a partial.

Theory of operation
===================
An offer with a resume key has the claim to its partial from the call of C{open} until that
fails or the partial is let go of.  A newer offer takes the claim at once: the holder of the
older one is told, ends its transfer, and only when that has let go does the newer one go on.
So queued writes of the older sender are done or dropped before anybody reads what is held.

Pure: no disk, no clock.
"""

from __future__ import annotations

from collections.abc import Hashable

from connpool.interfaces import IPartialHolder
from connpool.waiting import Waiters

__all__ = ["Claim", "Claims"]


class Claim:
    """
    The right of one offer to its partial.

    @ivar epoch: the number of offers that had the partial before, one after the other.
    """

    def __init__(
        self, claims: Claims, partial: Hashable, holder: IPartialHolder | None, epoch: int
    ) -> None:
        self._claims = claims
        self._partial = partial
        self._holder = holder
        self._released = Waiters()
        self._held = True
        self.epoch = epoch

    async def evict(self) -> None:
        """
        Tell the holder, and wait until it has let go.  Nobody waits for one that cannot be
        told.
        """
        if self._holder is not None:
            self._holder.evicted()
            if self._held:
                await self._released.wait()

    def release(self) -> None:
        """
        Give the claim back; again, it changes nothing.
        """
        if self._held:
            self._held = False
            self._claims.forget(self._partial, self)
            self._released.wake()


class Claims:
    """
    The claims to the partials of one store.
    """

    def __init__(self) -> None:
        self._claims: dict[Hashable, Claim] = {}

    async def claim(self, partial: Hashable, holder: IPartialHolder | None) -> Claim:
        """
        Take the claim to a partial, and wait until the older holder has let go and the newer
        one is ready.

        @param partial: the principal and resume key of an offer.
        @raise TransferError: as L{IPartialHolder.ready} fails.
        """
        older = self._claims.get(partial)
        claim = Claim(self, partial, holder, 0 if older is None else older.epoch + 1)
        self._claims[partial] = claim
        try:
            if older is not None:
                await older.evict()
            if holder is not None:
                await holder.ready()
        except BaseException:
            claim.release()
            raise
        return claim

    def forget(self, partial: Hashable, claim: Claim) -> None:
        """
        Remove a claim, unless a newer one has its place.
        """
        if self._claims.get(partial) is claim:
            del self._claims[partial]
