"""
One file on its way in.

Theory of operation
===================
An L{Incoming} is the only hand on a partial: it counts, bounds, and ends
exactly once, by L{Incoming.commit}, L{Incoming.suspend} or L{Incoming.abort};
whichever comes second does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from connpool.errors import TooLarge, TransferError
from connpool.interfaces import IPartial
from connpool.transfer.records import LiveTransfer, Offer, Receipt

if TYPE_CHECKING:
    from connpool.transfer.receive.reception import Reception

__all__ = ["Incoming"]

#: Seconds between two times that listeners are told how far a transfer is.
TELL = 1.0


class Incoming:
    """
    One file on its way in.

    @ivar offer: what was agreed on.
    @ivar peer: the sender, for logs.
    @ivar partial: where it goes.
    @ivar received: payload bytes written so far.
    """

    def __init__(
        self, reception: Reception, offer: Offer, peer: str, partial: Any, expected: int
    ) -> None:
        self._reception = reception
        self.offer = offer
        self.peer = peer
        self.partial: IPartial = partial
        self.received = 0
        self.ended = False
        self._before = sum(end - start for start, end in self.partial.held)
        #: bytes of those announced that have not come
        self.expected = expected
        self._stalled = self._held = 0
        self._told = 0.0
        self.deadline: Any = None
        self._end = offer.size if offer.size is not None else reception.largest(offer)

    def write(self, offset: int, data: bytes | memoryview) -> Deferred[None] | None:
        """
        As L{IPartial.write}.

        @raise TooLarge: past the declared size or the largest file taken.
        @raise QuotaExceeded: of a file whose size was not declared.
        """
        count = len(data)
        if self._end is not None and offset + count > self._end:
            raise TooLarge(
                f"{self.offer.name} is longer than {self._end} bytes"
                + ("; see --max-file-size" if self.offer.size is None else " as declared")
            )
        held = self._reception.came(self, count)
        self.received += count
        pause = self.partial.write(offset, data)
        self._reception.progressed(self)
        if pause is not None:
            self._stalled += 1
            pause.addBoth(self._written)
        if held is None:
            return pause
        self._held += 1
        held.addBoth(self._released)
        if pause is None:
            return held
        return pause.addCallback(lambda _: held)

    def _released(self, _: None) -> None:
        self._held -= 1

    @property
    def slowedBy(self) -> str:
        """
        The thing that it waits for now: C{rate}, C{disk} or C{peer}.
        """
        if self._held:
            return "rate"
        return "disk" if self.ended or self._stalled else "peer"

    def _written(self, result: Any) -> Any:
        self._stalled -= 1
        return result

    async def commit(self, root: bytes | None) -> Receipt:
        """
        As L{IPartial.commit}; a failure removes the partial, unless trying
        again may help (a full disk): then it can be resumed.
        """
        if not self._finish():
            raise TransferError(f"{self.offer.name} has ended already")
        try:
            receipt = await self.partial.commit(root)
        except BaseException as e:
            try:
                if isinstance(e, TransferError) and e.retryable:
                    await self.partial.suspend()
                else:
                    await self.partial.abort()
            finally:
                self._failed(e)
            raise
        self._reception.published(receipt, self.offer, self.peer)
        self._reception.left(self)
        return receipt

    async def suspend(self, why: BaseException) -> None:
        """
        Keep what is held, to be resumed.
        """
        if self._finish():
            try:
                await self.partial.suspend()
            finally:
                self._failed(why)

    async def abort(self, why: BaseException) -> None:
        """
        Remove what is held.
        """
        if self._finish():
            try:
                await self.partial.abort()
            finally:
                self._failed(why)

    def _finish(self) -> bool:
        if self.ended:
            return False
        self.ended = True
        if self.deadline is not None and self.deadline.active():
            self.deadline.cancel()
        return True

    def _failed(self, why: BaseException) -> None:
        self._reception.failed(self.offer, self.peer, self.received, why)
        self._reception.left(self)

    def tells(self, now: float) -> bool:
        """
        Tell whether listeners should hear how far it is.
        """
        if now - self._told < TELL:
            return False
        self._told = now
        return True

    @property
    def done(self) -> int:
        """
        Bytes held.
        """
        # what was damaged comes again, and is counted again
        done, size = self._before + self.received, self.offer.size
        return int(done if size is None else min(done, size))

    def live(self) -> LiveTransfer:
        """
        @return: how far it is.
        """
        return LiveTransfer(
            transferId=self.offer.transferId,
            name=str(self.offer.name),
            peer=self.peer,
            direction="in",
            protocol=self.offer.protocol,
            size=self.offer.size,
            done=self.done,
            phase="publishing" if self.ended else "moving",
            slowedBy=self.slowedBy,
        )
