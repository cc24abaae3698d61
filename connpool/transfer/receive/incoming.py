"""
One file on its way into a reception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from zope.interface import implementer

from connpool.errors import ConflictTakeover, TooLarge, TransferError, TransferTimeout
from connpool.interfaces import IPartial, IPartialHolder, ITransferListener, IUploadPartial
from connpool.transfer.receive.quotas import Account, Quotas
from connpool.transfer.records import LiveTransfer, Offer, Receipt

__all__ = ["Incoming", "Places"]

#: Seconds between two times that listeners are told how far a transfer is.
PROGRESS_SECONDS = 1.0


@implementer(IPartialHolder)
class Places:
    """
    The places of one transfer in its accounts.
    """

    def __init__(
        self,
        accounts: Sequence[Account],
        end: Callable[[TransferError], Any] | None,
        waiting: Callable[[Deferred[None]], Any] | None,
    ) -> None:
        self.accounts = accounts
        self._end = end
        self._waiting = waiting
        self._taken: list[Account] = []

    def ready(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._take())

    async def _take(self) -> None:
        # its own limit first: one that waits for it takes no place from others
        for account in reversed(self.accounts):
            place = account.take(self._waiting is not None)
            if place is not None and self._waiting is not None:
                self._waiting(place)
                await place
            self._taken.append(account)

    def evicted(self) -> None:
        if self._end is not None:
            self._end(
                ConflictTakeover("a newer connection of this sender has taken the transfer over")
            )

    def leave(self) -> None:
        """
        Give the places back.
        """
        taken, self._taken = self._taken, []
        for account in taken:
            account.leave()


class Owner(Protocol):
    """
    The part of a reception that its transfers need.
    """

    clock: Any
    quotas: Quotas
    listeners: Sequence[ITransferListener]

    def tell(self, event: str, *details: Any) -> None:
        """
        Tell the listeners.
        """

    def published(self, stored: Sequence[tuple[Receipt, Offer]], peer: str) -> None:
        """
        Note that files are stored.
        """

    def failed(self, offer: Offer, peer: str, count: int, why: BaseException) -> None:
        """
        Note that a file ended without being stored.
        """

    def left(self, incoming: Incoming) -> None:
        """
        Forget a transfer that has ended.
        """


class Incoming:
    """
    One file on its way in: the only hand on its partial.

    It counts, bounds, and ends exactly once, by L{commit}, L{suspend} or L{abort};
    the second of these does nothing.

    @ivar offer: the terms that were agreed on.
    @ivar peer: the sender, for logs.
    @ivar partial: the place of its bytes.
    @ivar received: payload bytes written so far.
    """

    def __init__(
        self,
        reception: Owner,
        offer: Offer,
        peer: str,
        partial: IPartial,
        places: Places,
    ) -> None:
        self._reception = reception
        self.offer = offer
        self.peer = peer
        self.partial = partial
        self.received = 0
        self.ended = False
        self._places = places
        self._accounts = places.accounts
        self._before = sum(end - start for start, end in partial.held)
        #: bytes that were announced and have not come
        self._expected = max(0, (offer.size or 0) - self._before)
        self._stalled = self._held = 0
        self._toldAt = 0.0
        self._deadline: Any = None
        self._end = offer.size if offer.size is not None else reception.quotas.largest(offer)

    async def promise(self) -> None:
        """
        Count on the bytes that were announced.

        @raise QuotaExceeded: if these are too many; then nothing is held any more.
        """
        try:
            self._reception.quotas.check(self._accounts, 0, self._expected)
        except TransferError:
            await (self.partial.suspend() if self._before else self.partial.abort())
            raise
        self._promise(self._expected)

    def _promise(self, size: int) -> None:
        for account in self._accounts:
            account.promise(size)

    def endAfter(self, seconds: float, end: Callable[[TransferError], Any]) -> None:
        """
        Call C{end} if the transfer takes longer than C{seconds}.
        """
        why = TransferTimeout(f"it took more than {seconds:g} s, the most that a transfer may")
        self._deadline = self._reception.clock.callLater(seconds, end, why)

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
        if self.offer.size is None:
            self._reception.quotas.check(self._accounts, 0, count)
        due = min(count, self._expected)
        self._expected -= due
        self._promise(-due)
        held = self._reception.quotas.charge(self._accounts, count)
        self.received += count
        pause = self.partial.write(offset, data)
        self._progressed()
        if pause is not None:
            self._stalled += 1
            pause.addBoth(self._written)
        if held is None:
            return pause
        self._held += 1
        held.addBoth(self._released)
        return held if pause is None else pause.addCallback(lambda _: held)

    def _released(self, _: None) -> None:
        self._held -= 1

    def _written(self, result: Any) -> Any:
        self._stalled -= 1
        return result

    def _progressed(self) -> None:
        reception = self._reception
        if not reception.listeners:
            return
        now = reception.clock.seconds()
        if now - self._toldAt >= PROGRESS_SECONDS:
            self._toldAt = now
            reception.tell("progressed", self.offer, self.peer, self.done)

    @property
    def slowedBy(self) -> str:
        """
        The thing that it waits for now: C{rate}, C{disk} or C{peer}.
        """
        if self._held:
            return "rate"
        return "disk" if self.ended or self._stalled else "peer"

    def declare(self, size: int) -> None:
        """
        Take the size of a file that was begun without one.

        @raise TransferError: it is too large, or less than what came.
        """
        quotas = self._reception.quotas
        offer = attrs.evolve(self.offer, size=size)
        quotas.checkSize(offer)
        expected = max(0, size - self.done)
        quotas.check(self._accounts, 0, expected)
        self._declare(offer)
        self._end = size
        self._expected = expected
        self._promise(expected)

    def note(self, metadata: str) -> None:
        """
        Keep another text with the file until it is published.
        """
        self._declare(attrs.evolve(self.offer, metadata=metadata))

    def _declare(self, offer: Offer) -> None:
        partial: Any = self.partial
        partial.declare(offer)
        self.offer = offer

    async def commit(self, root: bytes | None, sha256: bytes | None = None) -> Receipt:
        """
        As L{IPartial.commit}; a failure removes the partial, unless trying
        again may help (a full disk): then it can be resumed.

        @param sha256: of all bytes, for the receipt.
        """
        if not self._finish():
            raise TransferError(f"{self.offer.name} has ended already")
        try:
            if sha256 is not None and IUploadPartial.providedBy(self.partial):
                self._declare(attrs.evolve(self.offer, sha256=sha256.hex()))
            receipt = await self.partial.commit(root)
        except BaseException as e:
            again = isinstance(e, TransferError) and e.retryable
            await self._letGo(self.partial.suspend if again else self.partial.abort, e)
            raise
        self._reception.published([(receipt, self.offer)], self.peer)
        self._left()
        return receipt

    async def suspend(self, why: BaseException | None) -> None:
        """
        Keep the bytes that are held, to be resumed.

        @param why: L{None}: it is paused until the next request, which is no failure.
        """
        if self._finish():
            await self._letGo(self.partial.suspend, why)

    async def abort(self, why: BaseException) -> None:
        """
        Remove the bytes that are held.
        """
        if self._finish():
            await self._letGo(self.partial.abort, why)

    def _finish(self) -> bool:
        if self.ended:
            return False
        self.ended = True
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        return True

    async def _letGo(self, end: Callable[[], Deferred[None]], why: BaseException | None) -> None:
        try:
            await end()
        finally:
            if why is not None:
                self._reception.failed(self.offer, self.peer, self.received, why)
            self._left()

    def _left(self) -> None:
        self._promise(-self._expected)
        self._reception.left(self)
        self._places.leave()

    @property
    def done(self) -> int:
        """
        Bytes held.
        """
        # damaged blocks come again, and are counted again
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
