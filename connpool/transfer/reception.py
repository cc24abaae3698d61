"""
The one reception core: whatever protocol a file comes by, it passes here.

Theory of operation
===================
A protocol turns bytes into an L{Offer} and gives it to L{Reception.begin}.
Policy decides first, without I/O; then the store opens a partial.  The
L{Incoming} that comes back is the only hand on that partial: it counts,
bounds, and ends exactly once, by L{Incoming.commit}, L{Incoming.suspend} or
L{Incoming.abort}; whichever comes second does nothing.  Nothing here knows
about paths, sockets or wire formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import Busy, TooLarge, TransferError
from connpool.interfaces import (
    IFileStore,
    ILiveTransfers,
    IPartial,
    IStatsSource,
    ITransferListener,
)
from connpool.transfer.names import displayName
from connpool.transfer.records import LiveTransfer, Offer, Receipt
from connpool.transfer.throttle import Throttle

__all__ = ["Incoming", "Policy", "Reception", "TransferStats"]


@attrs.frozen
class Policy:
    """
    What a reception takes.

    @ivar maxFileSize: bytes; L{None} for no limit but the disk's.
    @ivar maxTransfers: at once, all senders together.
    @ivar ifExists: what to do when a name is taken, one of L{IF_EXISTS}.
    @ivar names: C{portable} or C{posix}: which names are taken.
    @ivar dotfiles: whether names may begin with a dot.
    @ivar idleTimeout: seconds without a byte that end a transfer.
    @ivar minimumRate: bytes/s a sender must keep up, averaged over
        C{idleTimeout}; 0 for none.
    @ivar rate: bytes/s of all transfers together; L{None} for no limit.
    """

    maxFileSize: int | None = None
    maxTransfers: int = 10_000
    ifExists: str = "rename"
    names: str = "portable"
    dotfiles: bool = True
    idleTimeout: float = 60.0
    minimumRate: float = 1024.0
    rate: float | None = None


@attrs.frozen
class TransferStats:
    """
    @ivar active: transfers now.
    @ivar started: files a partial was opened for.
    @ivar published: files stored, C{duplicate} ones included.
    @ivar failed: files that ended without being published.
    @ivar refused: offers turned away before a byte was stored.
    @ivar receivedBytes: payload bytes given to the store.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset({"active"})

    active: int = 0
    started: int = 0
    published: int = 0
    failed: int = 0
    refused: int = 0
    receivedBytes: int = 0


class Incoming:
    """
    One file on its way in.

    @ivar offer: what was agreed on.
    @ivar peer: who sends, for logs.
    @ivar partial: where it goes.
    @ivar received: payload bytes written so far.
    """

    def __init__(self, reception: Reception, offer: Offer, peer: str, partial: Any) -> None:
        self._reception = reception
        self.offer = offer
        self.peer = peer
        self.partial: IPartial = partial
        self.received = 0
        self.ended = False
        self._before = sum(end - start for start, end in self.partial.held)
        self._stalled = self._held = 0
        self._end = offer.size if offer.size is not None else reception.largest(offer)

    def write(self, offset: int, data: bytes | memoryview) -> Deferred[None] | None:
        """
        As L{IPartial.write}.

        @raise TooLarge: past the declared size or the largest file taken.
        """
        count = len(data)
        if self._end is not None and offset + count > self._end:
            raise TooLarge(
                f"{self.offer.name} is longer than {self._end} bytes"
                + ("; see --max-file-size" if self.offer.size is None else " as declared")
            )
        self.received += count
        self._reception.receivedBytes += count
        pause = self.partial.write(offset, data)
        if pause is not None:
            self._stalled += 1
            pause.addBoth(self._written)
        held = self._reception.throttle(self.offer, count)
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
        What it waits for now: C{rate}, C{disk} or C{peer}.
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
        self._finish()
        try:
            receipt = await self.partial.commit(root)
        except BaseException as e:
            if isinstance(e, TransferError) and e.retryable:
                await self.partial.suspend()
            else:
                await self.partial.abort()
            self._failed(e)
            raise
        self._reception._left(self)
        self._reception._published(receipt, self.peer)
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
        return True

    def _failed(self, why: BaseException) -> None:
        self._reception._left(self)
        self._reception._failed(self.offer, self.peer, self.received, why)

    def live(self) -> LiveTransfer:
        """
        @return: how far it is.
        """
        # what was damaged comes again, and is counted again
        done, size = self._before + self.received, self.offer.size
        return LiveTransfer(
            transferId=self.offer.transferId,
            name=str(self.offer.name),
            peer=self.peer,
            direction="in",
            protocol=self.offer.protocol,
            size=size,
            done=done if size is None else min(done, size),
            phase="publishing" if self.ended else "moving",
            slowedBy=self.slowedBy,
        )


@implementer(IStatsSource, ILiveTransfers)
class Reception:
    """
    Receives files into a store, under a policy.

    @param store: where files go.
    @param listeners: told about every file.
    @param clock: L{twisted.internet.interfaces.IReactorTime}; needed for rates.
    """

    kind = "transfer"
    _log = Logger()

    def __init__(
        self,
        store: IFileStore,
        policy: Policy | None = None,
        listeners: Sequence[ITransferListener] = (),
        name: str = "filerecv",
        clock: Any = None,
    ) -> None:
        self._clock = clock
        self._throttles: dict[str | None, Throttle] = {}
        self._waits: dict[Deferred[None], Any] = {}
        self.store = store
        self.policy = policy or Policy()
        self.listeners = listeners
        self.name = name
        self.receivedBytes = 0
        #: in the order they began
        self._active: dict[Incoming, None] = {}
        self._ofPrincipal: Counter[str] = Counter()
        self._started = self._publishedCount = self._failedCount = self._refused = 0

    def check(self, offer: Offer) -> None:
        """
        Decide about an offer, without I/O.

        @raise TransferError: why it is refused.
        """
        limit = self.largest(offer)
        if limit is not None and offer.size is not None and offer.size > limit:
            raise TooLarge(f"{offer.name} has {offer.size} bytes; at most {limit} are taken")
        if len(self._active) >= self.policy.maxTransfers:
            raise Busy(f"{self.policy.maxTransfers} transfers are under way; try later")
        most = None if offer.identity is None else offer.identity.maxTransfers
        if most is not None and self._ofPrincipal[offer.principal] >= most:
            raise Busy(f"{most} transfers of {offer.principal!r} are under way; try later")

    def largest(self, offer: Offer) -> int | None:
        """
        @return: the most bytes that C{offer} may have; L{None} for no limit.
        """
        limits = [self.policy.maxFileSize]
        if offer.identity is not None:
            limits.append(offer.identity.maxFileSize)
        return min((limit for limit in limits if limit is not None), default=None)

    def throttle(self, offer: Offer, count: int) -> Deferred[None] | None:
        """
        Note that C{count} bytes came.

        @return: what fires when more may come; L{None} for now.
        """
        rates: list[tuple[str | None, float | None]] = [(None, self.policy.rate)]
        if offer.identity is not None:
            rates.append((offer.principal, offer.identity.maxRate))
        wait = 0.0
        for whose, rate in rates:
            if rate is not None:
                throttle = self._throttles.get(whose) or Throttle(rate)
                self._throttles[whose] = throttle
                wait = max(wait, throttle.take(count, self._clock.seconds()))
        if not wait:
            return None
        held: Deferred[None] = Deferred()
        self._waits[held] = self._clock.callLater(wait, self._release, held)
        return held

    def _release(self, held: Deferred[None]) -> None:
        del self._waits[held]
        held.callback(None)

    def hurry(self) -> None:
        """
        Let whoever waits for a rate go on: the reception stops.
        """
        while self._waits:
            held, call = self._waits.popitem()
            call.cancel()
            held.callback(None)

    def _left(self, incoming: Incoming) -> None:
        if self._active.pop(incoming, self) is None:
            principal = incoming.offer.principal
            self._ofPrincipal[principal] -= 1
            if not self._ofPrincipal[principal]:
                del self._ofPrincipal[principal]

    async def begin(self, offer: Offer, peer: str) -> Incoming | Receipt:
        """
        Open a partial for C{offer}.

        @return: the transfer, or the receipt of the one that this offer's key
            already finished.
        @raise TransferError: why it is refused.
        """
        self._tell("offered", offer, peer)
        try:
            self.check(offer)
            partial = await self.store.open(offer)
        except TransferError as e:
            self.refuse(str(offer.name), peer, e, offer.transferId)
            raise
        if isinstance(partial, Receipt):
            return partial
        incoming = Incoming(self, offer, peer, partial)
        self._active[incoming] = None
        self._ofPrincipal[offer.principal] += 1
        self._started += 1
        self._tell("started", offer, peer)
        return incoming

    def put(
        self, offer: Offer, data: bytes, root: bytes | None, peer: str
    ) -> Receipt | Deferred[Receipt]:
        """
        Store a whole small file, as L{IFileStore.put}.

        @raise TransferError: why it is refused.
        """
        self._tell("offered", offer, peer)
        self.check(offer)
        self.receivedBytes += len(data)
        self._started += 1
        try:
            stored = self.store.put(offer, data, root)
        except Exception as e:
            self._failed(offer, peer, len(data), e)
            raise
        held = self.throttle(offer, len(data))
        if isinstance(stored, Receipt):
            self._published(stored, peer)
            if held is None:
                return stored
            receipt = stored
            return held.addCallback(lambda _: receipt)

        def published(receipt: Receipt) -> Receipt | Deferred[Receipt]:
            self._published(receipt, peer)
            return receipt if held is None else held.addCallback(lambda _: receipt)

        def failed(failure: Failure) -> Failure:
            why: Any = failure.value
            self._failed(offer, peer, len(data), why)
            return failure

        return stored.addCallbacks(published, failed)

    def refuse(
        self, name: str, peer: str, why: TransferError, transferId: str | None = None
    ) -> None:
        """
        Count and log an offer that was turned away.

        @param name: as L{displayName} gives it.
        @param transferId: the offer's, if it came that far.
        """
        self._refused += 1
        self._log.info(
            "refused {name} from {peer}: {code}: {why}" + (", id {id}" if transferId else ""),
            name=name,
            id=transferId,
            peer=peer,
            code=why.code,
            why=str(why),
        )
        self._tell("refused", name, peer, why)

    def _published(self, receipt: Receipt, peer: str) -> None:
        self._publishedCount += 1
        shown = displayName(receipt.name)
        # formatted here: the logger's own formatting takes ten times as long,
        # which small files feel
        self._log.info(
            "{text}",
            text=f"received {shown} ({receipt.size} bytes, {receipt.status}, {receipt.integrity}, "
            f"durability {receipt.durability}) from {peer}, id {receipt.transferId}",
            receipt=receipt if shown == receipt.name else attrs.evolve(receipt, name=shown),
            peer=peer,
            id=receipt.transferId,
        )
        self._tell("published", receipt)

    def _failed(self, offer: Offer, peer: str, count: int, why: BaseException) -> None:
        self._failedCount += 1
        self._log.info(
            "did not receive {name} from {peer} after {count} bytes: {code}: {why}, id {id}",
            name=str(offer.name),
            peer=peer,
            count=count,
            code=getattr(why, "code", "error"),
            why=str(why) or type(why).__name__,
            id=offer.transferId,
        )
        self._tell("failed", offer, peer, why)

    def _tell(self, event: str, *details: Any) -> None:
        for listener in self.listeners:
            try:
                getattr(listener, event)(*details)
            except Exception:
                self._log.failure("{listener} failed in {event}", listener=listener, event=event)

    def stats(self) -> TransferStats:
        return TransferStats(
            len(self._active),
            self._started,
            self._publishedCount,
            self._failedCount,
            self._refused,
            self.receivedBytes,
        )

    @property
    def active(self) -> Sequence[Incoming]:
        """
        The transfers under way.
        """
        return tuple(self._active)

    def liveTransfers(self, limit: int) -> Sequence[LiveTransfer]:
        return tuple(incoming.live() for incoming in islice(self._active, limit))
