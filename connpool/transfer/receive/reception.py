"""
The one reception core: every file passes here, by whichever protocol it comes.

Theory of operation
===================
A protocol turns bytes into an L{Offer} and gives it to L{Reception.begin}.
Policy decides first, without I/O; then the store opens a partial.  The
L{Incoming} that comes back is the only hand on that partial.  The limits that hold are in
the L{Account}s that a transfer passes.  Nothing here knows about paths, sockets
or wire formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import (
    ConflictTakeover,
    QuotaExceeded,
    Skipped,
    StoreError,
    TooLarge,
    TransferError,
    TransferTimeout,
)
from connpool.interfaces import (
    IFileStore,
    ILiveTransfers,
    IPartial,
    IPartialHolder,
    IStatsSource,
    ITransferListener,
    IUploadPartial,
)
from connpool.transfer.identities import Identity
from connpool.transfer.names import RelativeName, displayName
from connpool.transfer.receive.policy import Policy, TransferStats
from connpool.transfer.receive.quotas import Account, Quotas
from connpool.transfer.receive.recent import RecentTransfers
from connpool.transfer.records import DirectoryMade, LiveTransfer, Offer, Receipt

__all__ = ["Incoming", "Reception", "storeFailure"]

#: Seconds between two times that listeners are told how far a transfer is.
PROGRESS_SECONDS = 1.0


@implementer(IPartialHolder)
class _Places:
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
        reception: Reception,
        offer: Offer,
        peer: str,
        partial: IPartial,
        places: _Places,
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
        self._reception.published(receipt, self.offer, self.peer)
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


@implementer(IStatsSource, ILiveTransfers)
class Reception:
    """
    Receives files into a store, under a policy.

    @param store: keeps the files.
    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param listeners: told about every file.
    """

    kind = "transfer"
    _log = Logger()

    def __init__(
        self,
        store: IFileStore,
        clock: Any,
        policy: Policy | None = None,
        listeners: Sequence[ITransferListener] = (),
        name: str = "filerecv",
    ) -> None:
        self.clock = clock
        self.store = store
        self.policy = policy or Policy()
        self.listeners = listeners
        self.name = name
        self.quotas = Quotas(self.policy, clock)
        self.recent = RecentTransfers(clock)
        #: in the order they began
        self._active: dict[Incoming, None] = {}
        self._started = self._publishedCount = self._failedCount = self._refused = 0
        self._skipped = 0

    # -- files

    async def begin(
        self,
        offer: Offer,
        peer: str,
        end: Callable[[TransferError], Any] | None = None,
        waiting: Callable[[Deferred[None]], Any] | None = None,
        *,
        again: bool = False,
    ) -> Incoming | Receipt:
        """
        Open a partial for C{offer}.

        @param end: called if the transfer has to end: it takes longer than it may, or a
            newer connection of the same sender takes over.
        @param waiting: given the Deferred that is waited for while others are under way;
            cancelling it gives up.  Left out: nothing is waited for.
        @param again: whether it was paused before: then it is neither offered nor started.
        @return: the transfer, or the receipt of the one that this offer's key
            already finished.
        @raise TransferError: why it is refused.
        """
        if not again:
            self.tell("offered", offer, peer)
        places = _Places(self.quotas.accounts(offer.identity), end, waiting)
        try:
            self.quotas.checkSize(offer)
            partial = await self.store.open(offer, places)
            if isinstance(partial, Receipt):
                places.leave()
                return partial
            incoming = Incoming(self, offer, peer, partial, places)
            await incoming.promise()
        except BaseException as e:
            places.leave()
            if isinstance(e, TransferError):
                self.refuse(str(offer.name), peer, e, offer.transferId)
            raise
        self._active[incoming] = None
        self._started += not again
        most = self.quotas.longest(offer)
        if most is not None and end is not None:
            incoming.endAfter(most, end)
        if not again:
            self.tell("started", offer, peer)
        return incoming

    def hurry(self) -> None:
        """
        Let all that wait for a rate go on, and log what was only counted: the reception stops.
        """
        self.quotas.hurry()
        self.recent.flush()

    def left(self, incoming: Incoming) -> None:
        """
        Forget a transfer that has ended.
        """
        self._active.pop(incoming, None)

    def put(
        self, offer: Offer, data: bytes, root: bytes | None, peer: str
    ) -> Receipt | Deferred[Receipt]:
        """
        Store a whole small file, as L{IFileStore.put}.

        @raise TransferError: why it is refused.
        """
        self.tell("offered", offer, peer)
        size = len(data)
        accounts = self.quotas.accounts(offer.identity)
        self.quotas.checkSize(offer)
        self.quotas.check(accounts, 1, size)
        self._started += 1
        held = self.quotas.charge(accounts, size)
        try:
            stored = self.store.put(offer, data, root)
        except Exception as e:
            self.failed(offer, peer, size, e)
            raise
        if isinstance(stored, Receipt):
            self.published(stored, offer, peer)
            if held is None:
                return stored
            receipt = stored
            return held.addCallback(lambda _: receipt)
        self.quotas.small(accounts, 1, size)

        def published(receipt: Receipt) -> Receipt | Deferred[Receipt]:
            self.published(receipt, offer, peer)
            self.quotas.small(accounts, -1, -size)
            return receipt if held is None else held.addCallback(lambda _: receipt)

        def failed(failure: Failure) -> Failure:
            why: Any = failure.value
            self.failed(offer, peer, size, why)
            self.quotas.small(accounts, -1, -size)
            return failure

        return stored.addCallbacks(published, failed)

    def makeDirectory(
        self,
        name: RelativeName,
        identity: Identity | None,
        modified: int | None,
        durability: str,
        peer: str,
    ) -> Deferred[DirectoryMade]:
        """
        Make a directory, as L{connpool.interfaces.IDirectoryStore.makeDirectory}; one that
        is new counts as a file.

        @raise TransferError: why it is refused.
        """
        accounts = self.quotas.accounts(identity)
        full: QuotaExceeded | None = None
        try:
            self.quotas.check(accounts, 1, 0)
        except QuotaExceeded as e:
            full = e  # one that is there takes nothing
        store: Any = self.store
        making: Deferred[Any] = maybeDeferred(
            store.makeDirectory, name, modified, durability, full is None
        )
        self.quotas.small(accounts, 1, 0)

        def ended(result: DirectoryMade | Failure | None) -> DirectoryMade | Failure:
            self.quotas.small(accounts, -1, 0)
            if isinstance(result, Failure):
                return result
            if result is None:
                assert full is not None
                raise full
            if result.made:
                self.quotas.stored(accounts)
                self._log.info(
                    "made directory {name} for {peer}", name=displayName(name.path), peer=peer
                )
            return result

        return making.addBoth(ended)

    def refuse(
        self, name: str, peer: str, why: TransferError, transferId: str | None = None
    ) -> None:
        """
        Count and log an offer that was turned away.

        @param name: as L{displayName} gives it.
        @param transferId: the offer's, if it came that far.
        """
        self._refused += 1
        self.recent.refused(name, peer, why, transferId)
        self.tell("refused", name, peer, why)

    def published(self, receipt: Receipt, offer: Offer, peer: str) -> None:
        """
        Count, log and tell that a file is stored.
        """
        if receipt.transferId != offer.transferId:
            # nothing was received: the sender had not seen its receipt
            self._log.info(
                "{name} from {peer} was received before, id {id}",
                name=displayName(receipt.name),
                peer=peer,
                id=receipt.transferId,
            )
            return
        self._publishedCount += 1
        if receipt.status == "stored":
            self.quotas.stored(self.quotas.accounts(offer.identity))
        self.recent.stored(receipt, peer)
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
        self.tell("published", receipt)

    def failed(self, offer: Offer, peer: str, count: int, why: BaseException) -> None:
        """
        Count, log and tell that a file ended without being stored.
        """
        skipped = isinstance(why, Skipped)
        self._skipped += skipped
        self._failedCount += not skipped
        self.recent.failed(offer, peer, count, why)
        self.tell("failed", offer, peer, why)

    def tell(self, event: str, *details: Any) -> None:
        """
        Tell the listeners; their failures change nothing.
        """
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
            self.quotas.receivedBytes,
            self.quotas.waiting,
            self._skipped,
        )

    @property
    def active(self) -> Sequence[Incoming]:
        """
        The transfers under way.
        """
        return tuple(self._active)

    def liveTransfers(self, limit: int) -> Sequence[LiveTransfer]:
        return tuple(incoming.live() for incoming in islice(self._active, limit))


def storeFailure(failure: Failure) -> TransferError:
    """
    @return: the error that a sender is told of when its store fails; anything unforeseen is
        logged.
    """
    if isinstance(failure.value, TransferError):
        return failure.value
    Logger(__name__).failure("storing a file failed", failure=failure)
    return StoreError(f"the store failed: {type(failure.value).__name__}")
