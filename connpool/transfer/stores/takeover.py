"""
The decision that a newer sender takes over a partial.

Theory of operation
===================
An offer with a resume key has its partial from the call of C{open} until that fails or the
partial is let go of.  A newer offer takes it over at once: the holder of the older one is
told, ends its transfer, and only when that has let go does the newer one go on.
So queued writes of the older sender are done or dropped before anybody reads what is held.

Pure: no disk, no clock.
"""

from __future__ import annotations

from collections.abc import Hashable

from connpool.interfaces import IPartialHolder
from connpool.waiting import Waiters

__all__ = ["Takeovers", "Tenure"]


class Tenure:
    """
    The time for which one offer has its partial.

    @ivar epoch: the number of offers that had the partial before, one after the other.
    """

    def __init__(
        self, takeovers: Takeovers, partial: Hashable, holder: IPartialHolder | None, epoch: int
    ) -> None:
        self._takeovers = takeovers
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
        Let go of the partial; again, it changes nothing.
        """
        if self._held:
            self._held = False
            self._takeovers.forget(self._partial, self)
            self._released.wake()


class Takeovers:
    """
    The newest tenure of each partial of one store.
    """

    def __init__(self) -> None:
        self._newest: dict[Hashable, Tenure] = {}

    async def take(self, partial: Hashable, holder: IPartialHolder | None) -> Tenure:
        """
        Take a partial over, and wait until the older holder has let go and the newer
        one is ready.

        @param partial: the principal and resume key of an offer.
        @raise TransferError: as L{IPartialHolder.ready} fails.
        """
        older = self._newest.get(partial)
        tenure = Tenure(self, partial, holder, 0 if older is None else older.epoch + 1)
        self._newest[partial] = tenure
        try:
            if older is not None:
                await older.evict()
            if holder is not None:
                await holder.ready()
        except BaseException:
            tenure.release()
            raise
        return tenure

    def forget(self, partial: Hashable, tenure: Tenure) -> None:
        """
        Remove a tenure, unless a newer one has its place.
        """
        if self._newest.get(partial) is tenure:
            del self._newest[partial]
