"""
The one reception core: whatever protocol a file comes by, it passes here.

Theory of operation
===================
A protocol turns bytes into an L{Offer} and gives it to L{Reception.begin}.
Policy decides first, without I/O; then the store opens a partial.  The
L{Incoming} that comes back is the only hand on that partial.  Whose limits hold is in
the L{Account}s that a transfer passes.  Nothing here knows about paths, sockets
or wire formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, ClassVar, TypeVar

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import QuotaExceeded, Skipped, TooLarge, TransferError, TransferTimeout
from connpool.interfaces import (
    IFileStore,
    ILiveTransfers,
    IPartial,
    IStatsSource,
    ITransferListener,
)
from connpool.transfer.identities import Identity
from connpool.transfer.names import RelativeName, displayName
from connpool.transfer.receive.incoming import Incoming
from connpool.transfer.receive.quotas import Account, Limits
from connpool.transfer.receive.recent import RecentTransfers
from connpool.transfer.records import DirectoryMade, LiveTransfer, Offer, Receipt

__all__ = ["Policy", "Reception", "TransferStats"]

N = TypeVar("N", int, float)


@attrs.frozen(kw_only=True)
class Policy(Limits):
    """
    The rules of a reception, and the L{Limits} of all senders together.

    @ivar ifExists: what to do when a name is taken, one of L{IF_EXISTS}.
    @ivar names: C{portable} or C{posix}: which names are taken.
    @ivar dotfiles: whether names may begin with a dot.
    @ivar idleTimeout: and C{minimumRate}: of each sender that has none of its own.
    """

    ifExists: str = "rename"
    names: str = "portable"
    dotfiles: bool = True
    maxTransfers: int | None = 10_000
    idleTimeout: float = 60.0
    minimumRate: float = 1024.0


@attrs.frozen
class TransferStats:
    """
    @ivar active: transfers now.
    @ivar started: files a partial was opened for.
    @ivar published: files stored, C{duplicate} ones included.
    @ivar failed: files that ended without being published.
    @ivar refused: offers turned away before a byte was stored.
    @ivar receivedBytes: payload bytes given to the store.
    @ivar waiting: transfers that wait because others are under way.
    @ivar skipped: files that were left out because the rule C{skip} keeps another one.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset({"active", "waiting"})

    active: int = 0
    started: int = 0
    published: int = 0
    failed: int = 0
    refused: int = 0
    receivedBytes: int = 0
    waiting: int = 0
    skipped: int = 0


@implementer(IStatsSource, ILiveTransfers)
class Reception:
    """
    Receives files into a store, under a policy.

    @param store: where files go.
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
        self._clock = clock
        self._waits: dict[Deferred[None], Any] = {}
        self.store = store
        self.policy = policy or Policy()
        self.listeners = listeners
        self.name = name
        self.receivedBytes = 0
        self.recent = RecentTransfers(clock)
        #: in the order they began
        self._active: dict[Incoming, None] = {}
        self._everybody = Account(self.policy)
        self._accounts: dict[str, tuple[Account, ...]] = {}
        self._started = self._publishedCount = self._failedCount = self._refused = 0
        self._skipped = 0

    # -- limits

    def accounts(self, identity: Identity | None) -> tuple[Account, ...]:
        """
        @return: those that a transfer of C{identity} passes.
        """
        if identity is None:
            return (self._everybody,)
        accounts = self._accounts.get(identity.principal)
        if accounts is None:
            whose = f" of {displayName(identity.principal)!r}"
            accounts = (self._everybody, Account(identity, whose))
            self._accounts[identity.principal] = accounts
        return accounts

    def pace(self, identity: Identity | None) -> tuple[float, float]:
        """
        @return: C{idleTimeout} and C{minimumRate} of a sender.
        """
        policy = self.policy
        if identity is None:
            return policy.idleTimeout, policy.minimumRate
        idle, rate = identity.idleTimeout, identity.minimumRate
        return (
            policy.idleTimeout if idle is None else idle,
            policy.minimumRate if rate is None else rate,
        )

    def largest(self, offer: Offer) -> int | None:
        """
        @return: the most bytes that C{offer} may have; L{None} for no limit.
        """
        identity = offer.identity
        return _least(self.policy.maxFileSize, None if identity is None else identity.maxFileSize)

    def check(self, offer: Offer, files: int = 0, size: int = 0) -> None:
        """
        Decide about an offer, without I/O.

        @param files: that would come before it, beside those under way.
        @param size: bytes of these.
        @raise TransferError: why it is refused.
        """
        self._checkSize(offer)
        for account in self.accounts(offer.identity):
            account.check(1 + files, (offer.size or 0) + size, self._now(account))

    def _checkSize(self, offer: Offer) -> None:
        limit = self.largest(offer)
        if limit is not None and offer.size is not None and offer.size > limit:
            raise TooLarge(f"{offer.name} has {offer.size} bytes; at most {limit} are taken")

    def _now(self, account: Account) -> float:
        return float(self._clock.seconds()) if account.timed else 0.0

    def came(self, incoming: Incoming, count: int) -> Deferred[None] | None:
        """
        Note that C{count} bytes are coming.

        @return: what fires when more may come; L{None} for now.
        @raise QuotaExceeded: if they may not.
        """
        offer = incoming.offer
        accounts = self.accounts(offer.identity)
        due = min(count, incoming.expected)
        if offer.size is None:
            for account in accounts:
                account.check(0, count, self._now(account))
        incoming.expected -= due
        for account in accounts:
            account.promise(-due)
        return self._charge(accounts, count)

    def progressed(self, incoming: Incoming) -> None:
        """
        Tell listeners how far it is, if it is time to.
        """
        if self.listeners and incoming.tells(self._clock.seconds()):
            self._tell("progressed", incoming.offer, incoming.peer, incoming.done)

    def _charge(self, accounts: Sequence[Account], count: int) -> Deferred[None] | None:
        self.receivedBytes += count
        wait = 0.0
        for account in accounts:
            if account.timed:
                wait = max(wait, account.came(count, self._clock.seconds()))
        if not wait:
            return None
        held: Deferred[None] = Deferred()
        self._waits[held] = self._clock.callLater(wait, self._release, held)
        return held

    def _release(self, held: Deferred[None]) -> None:
        del self._waits[held]
        held.callback(None)

    def slowedBy(self, identity: Identity | None) -> str:
        """
        @return: what small files of C{identity} wait for: C{rate} or C{disk}.
        """
        limited = any(account.limits.maxRate for account in self.accounts(identity))
        return "rate" if limited and self._waits else "disk"

    def hurry(self) -> None:
        """
        Let whoever waits for a rate go on: the reception stops.
        """
        while self._waits:
            held, call = self._waits.popitem()
            call.cancel()
            held.callback(None)
        self.recent.flush()

    # -- files

    async def begin(
        self,
        offer: Offer,
        peer: str,
        late: Callable[[TransferError], Any] | None = None,
        waiting: Callable[[Deferred[None]], Any] | None = None,
    ) -> Incoming | Receipt:
        """
        Open a partial for C{offer}.

        @param late: called once if the transfer takes longer than it may.
        @param waiting: given what is waited for while others are under way;
            cancelling it gives up.  Left out: nothing is waited for.
        @return: the transfer, or the receipt of the one that this offer's key
            already finished.
        @raise TransferError: why it is refused.
        """
        self._tell("offered", offer, peer)
        accounts = self.accounts(offer.identity)
        places: list[Account] = []
        try:
            self._checkSize(offer)
            # its own limit first: who waits for it takes no place from others
            for account in reversed(accounts):
                place = account.take(waiting is not None)
                if place is not None and waiting is not None:
                    waiting(place)
                    await place
                places.append(account)
            partial = await self.store.open(offer)
            if isinstance(partial, Receipt):
                _leave(places)
                return partial
            expected = await self._promise(offer, partial, accounts)
        except BaseException as e:
            _leave(places)
            if isinstance(e, TransferError):
                self.refuse(str(offer.name), peer, e, offer.transferId)
            raise
        incoming = Incoming(self, offer, peer, partial, expected)
        self._active[incoming] = None
        self._started += 1
        self._setDeadline(incoming, late)
        self._tell("started", offer, peer)
        return incoming

    async def _promise(self, offer: Offer, partial: IPartial, accounts: Sequence[Account]) -> int:
        """
        Count on what C{offer} announces beyond what is held.

        @return: these bytes.
        """
        held = sum(end - start for start, end in partial.held)
        expected = max(0, (offer.size or 0) - held)
        try:
            for account in accounts:
                account.check(0, expected, self._now(account))
        except TransferError:
            await (partial.suspend() if held else partial.abort())
            raise
        for account in accounts:
            account.promise(expected)
        return expected

    def _setDeadline(self, incoming: Incoming, late: Callable[[TransferError], Any] | None) -> None:
        identity = incoming.offer.identity
        most = _least(self.policy.maxTime, None if identity is None else identity.maxTime)
        if most is not None and late is not None:
            why = TransferTimeout(f"it took more than {most:g} s, the most that a transfer may")
            incoming.deadline = self._clock.callLater(most, late, why)

    def left(self, incoming: Incoming) -> None:
        """
        Give back what a transfer held, once.
        """
        if self._active.pop(incoming, self) is None:
            accounts = self.accounts(incoming.offer.identity)
            for account in accounts:
                account.promise(-incoming.expected)
            _leave(accounts)

    def put(
        self, offer: Offer, data: bytes, root: bytes | None, peer: str
    ) -> Receipt | Deferred[Receipt]:
        """
        Store a whole small file, as L{IFileStore.put}.

        @raise TransferError: why it is refused.
        """
        self._tell("offered", offer, peer)
        size = len(data)
        accounts = self.accounts(offer.identity)
        self._checkSize(offer)
        for account in accounts:
            account.check(1, size, self._now(account))
        self._started += 1
        held = self._charge(accounts, size)
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
        _small(accounts, 1, size)

        def published(receipt: Receipt) -> Receipt | Deferred[Receipt]:
            self.published(receipt, offer, peer)
            _small(accounts, -1, -size)
            return receipt if held is None else held.addCallback(lambda _: receipt)

        def failed(failure: Failure) -> Failure:
            why: Any = failure.value
            self.failed(offer, peer, size, why)
            _small(accounts, -1, -size)
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
        accounts = self.accounts(identity)
        full: QuotaExceeded | None = None
        try:
            for account in accounts:
                account.check(1, 0, self._now(account))
        except QuotaExceeded as e:
            full = e  # one that is there takes nothing
        store: Any = self.store
        making: Deferred[Any] = maybeDeferred(
            store.makeDirectory, name, modified, durability, full is None
        )
        _small(accounts, 1, 0)

        def ended(result: DirectoryMade | Failure | None) -> DirectoryMade | Failure:
            _small(accounts, -1, 0)
            if isinstance(result, Failure):
                return result
            if result is None:
                assert full is not None
                raise full
            if result.made:
                for account in accounts:
                    account.stored(self._now(account))
                self._log.info(
                    "made directory {name} for {peer}", name=displayName(name.path), peer=peer
                )
            return result

        return making.addBoth(ended)

    def room(self, identity: Identity | None) -> Deferred[None] | None:
        """
        @return: L{None} if a small file of C{identity} may come now, else what
            fires when it may.
        """
        for account in self.accounts(identity):
            room = account.room()
            if room is not None:
                return room
        return None

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
        self._tell("refused", name, peer, why)

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
            for account in self.accounts(offer.identity):
                account.stored(self._now(account))
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
        self._tell("published", receipt)

    def failed(self, offer: Offer, peer: str, count: int, why: BaseException) -> None:
        """
        Count, log and tell that a file ended without being stored.
        """
        skipped = isinstance(why, Skipped)
        self._skipped += skipped
        self._failedCount += not skipped
        self.recent.failed(offer, peer, count, why)
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
            self._everybody.waiting
            + sum(account.waiting for _, account in self._accounts.values()),
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


def _small(accounts: Sequence[Account], files: int, size: int) -> None:
    for account in accounts:
        account.small(files, size)


def _leave(places: Sequence[Account]) -> None:
    for account in places:
        account.leave()


def _least(one: N | None, other: N | None) -> N | None:
    """
    @return: the smaller of two limits.
    """
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
