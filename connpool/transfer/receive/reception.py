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
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import (
    QuotaExceeded,
    Skipped,
    StoreError,
    TransferError,
)
from connpool.interfaces import (
    IBatchStore,
    IFileStore,
    ILiveTransfers,
    IRememberingStore,
    IStatsSource,
    ITransferListener,
)
from connpool.transfer.identities import ANONYMOUS, Identity
from connpool.transfer.names import NameReader, RelativeName, displayName
from connpool.transfer.receive.incoming import Incoming, Places
from connpool.transfer.receive.policy import Policy, TransferStats
from connpool.transfer.receive.quotas import Quotas
from connpool.transfer.receive.recent import KEPT_TRANSFERS, RecentTransfers
from connpool.transfer.records import DirectoryMade, LiveTransfer, Offer, Receipt, SmallFile

__all__ = ["Reception", "storeFailure"]

Outcomes = list[Receipt | Failure]


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
        self._takesBatches = IBatchStore.providedBy(store)
        #: by the directory that a sender's files go to
        self._names: dict[RelativeName | None, NameReader] = {}
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
        places = Places(self.quotas.accounts(offer.identity), end, waiting)
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

    def nameOf(self, raw: bytes, identity: Identity | None) -> RelativeName:
        """
        Read the name in an offer.

        @param raw: a name as the sender wrote it.
        @return: that of the store, in the directory of C{identity}.
        @raise NameRefused: it is not taken.
        """
        directory = None if identity is None else identity.directory
        reader = self._names.get(directory)
        if reader is None:
            reader = self._names[directory] = NameReader(
                self.policy.names, dotfiles=self.policy.dotfiles, directory=directory
            )
        return reader.read(raw)

    def offer(self, raw: bytes, identity: Identity | None, ifExists: str, **values: Any) -> Offer:
        """
        Make the offer of a file.

        @param raw: as L{nameOf}.
        @param ifExists: the rule that the sender asks for; empty for ours.
        @param values: the other attributes of the L{Offer}.
        @raise NameRefused: the name is not taken.
        @raise Forbidden: the rule may not be asked for.
        """
        name, policy = self.nameOf(raw, identity), self.policy
        rule = policy.ruleFor(ifExists) if ifExists else policy.ifExists
        principal = ANONYMOUS if identity is None else identity.principal
        return Offer(name, principal=principal, identity=identity, ifExists=rule, **values)

    def put(
        self, files: Sequence[SmallFile], identity: Identity | None, peer: str
    ) -> Outcomes | Deferred[Outcomes]:
        """
        Store whole small files of one sender.  Those of one name are decided in order, and
        one that fails does so alone.

        @return: for each its receipt, or a L{Failure} with the reason.
        """
        quotas, accounts = self.quotas, self.quotas.accounts(identity)
        try:
            quotas.admit(accounts, files)
        except TransferError as e:
            if len(files) > 1:  # then some of them may come
                return Deferred.fromCoroutine(self._putInOrder(files, identity, peer))
            [file] = files
            self.tell("offered", file.offer, peer)
            self.refuse(str(file.offer.name), peer, e, file.offer.transferId)
            return [Failure(e)]
        if self.listeners:
            for file in files:
                self.tell("offered", file.offer, peer)
        size = sum(len(file.data) for file in files)
        self._started += len(files)
        held = quotas.charge(accounts, size)

        def ended(outcomes: Outcomes) -> Outcomes:
            quotas.small(accounts, -len(files), -size)
            self._ended(files, outcomes, peer)
            return outcomes

        def failed(failure: Failure) -> Outcomes:
            return [Failure(storeFailure(failure))] * len(files)

        stored = self._store(files)
        if isinstance(stored, Deferred):
            stored.addErrback(failed)
            stored.addCallback(ended)
        else:
            stored = ended(stored)
        if held is None:
            return stored
        rest = stored if isinstance(stored, Deferred) else succeed(stored)
        return rest.addCallback(lambda outcomes: held.addCallback(lambda _: outcomes))

    async def _putInOrder(
        self, files: Sequence[SmallFile], identity: Identity | None, peer: str
    ) -> Outcomes:
        outcomes: Outcomes = []
        for file in files:
            stored = self.put([file], identity, peer)
            outcomes += stored if isinstance(stored, list) else await stored
        return outcomes

    def _store(self, files: Sequence[SmallFile]) -> Outcomes | Deferred[Outcomes]:
        """
        Give files to the store, together if it can take them so.
        """
        store: Any = self.store
        if len(files) > 1 and self._takesBatches:
            try:
                together: Outcomes | Deferred[Outcomes] = store.putAll(files)
                return together
            except TransferError:
                pass  # one by one, then
            except Exception:
                return [Failure(storeFailure(Failure()))] * len(files)
        if len({file.offer.name for file in files}) < len(files):
            return Deferred.fromCoroutine(self._storeInOrder(files))
        results = [self._storeOne(file) for file in files]
        if not any(isinstance(result, Deferred) for result in results):
            return results
        return gatherOutcomes(results)

    async def _storeInOrder(self, files: Sequence[SmallFile]) -> Outcomes:
        return [(await gatherOutcomes([self._storeOne(file)]))[0] for file in files]

    def _storeOne(self, file: SmallFile) -> Any:
        data: Any = file.data if self._takesBatches else bytes(file.data)
        try:
            return self.store.put(file.offer, data, file.root)
        except Exception:
            return Failure()

    def _ended(self, files: Sequence[SmallFile], outcomes: Outcomes, peer: str) -> None:
        """
        Count, log and tell what became of small files.
        """
        stored = []
        for file, outcome in zip(files, outcomes, strict=True):
            if isinstance(outcome, Receipt):
                stored.append((outcome, file.offer))
            else:
                why: Any = outcome.value
                self.failed(file.offer, peer, len(file.data), why)
        if stored:
            self.published(stored, peer)

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

    def published(self, stored: Sequence[tuple[Receipt, Offer]], peer: str) -> None:
        """
        Count, log and tell that files of one sender are stored.
        """
        receipts: list[Receipt] = []
        for receipt, offer in stored:
            if receipt.transferId == offer.transferId:
                receipts.append(receipt)
                continue
            # nothing was received: the sender had not seen its receipt
            self._log.info(
                "{name} from {peer} was received before, id {id}",
                name=displayName(receipt.name),
                peer=peer,
                id=receipt.transferId,
            )
        if not receipts:
            return
        self._publishedCount += len(receipts)
        new = sum(receipt.status == "stored" for receipt in receipts)
        self.quotas.stored(self.quotas.accounts(stored[0][1].identity), new)
        self.recent.files.extend((receipt, peer) for receipt in receipts[-KEPT_TRANSFERS:])
        self._logReceipts(receipts, peer)
        if self.listeners:
            for receipt in receipts:
                self.tell("published", receipt)

    def _logReceipts(self, receipts: Sequence[Receipt], peer: str) -> None:
        # one event for all, and formatted here: the logger's own formatting takes ten times
        # as long, which small files feel
        lines, shown = [], []
        for receipt in receipts:
            name = displayName(receipt.name)
            lines.append(
                f"received {name} ({receipt.size} bytes, {receipt.status}, {receipt.integrity},"
                f" durability {receipt.durability}) from {peer}, id {receipt.transferId}"
            )
            shown.append(receipt if name == receipt.name else attrs.evolve(receipt, name=name))
        if len(shown) == 1:
            [receipt] = shown
            self._log.info(
                "{text}", text=lines[0], receipt=receipt, peer=peer, id=receipt.transferId
            )
        else:
            self._log.info("{text}", text="\n".join(lines), receipts=tuple(shown), peer=peer)

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
        remembering: Any = IRememberingStore(self.store, None)
        return TransferStats(
            len(self._active),
            self._started,
            self._publishedCount,
            self._failedCount,
            self._refused,
            self.quotas.receivedBytes,
            self.quotas.waiting,
            self._skipped,
            remembering.rememberedBytes if remembering is not None else 0,
        )

    @property
    def active(self) -> Sequence[Incoming]:
        """
        The transfers under way.
        """
        return tuple(self._active)

    def liveTransfers(self, limit: int) -> Sequence[LiveTransfer]:
        return tuple(incoming.live() for incoming in islice(self._active, limit))


def gatherOutcomes(results: Sequence[Any]) -> Deferred[Outcomes]:
    """
    @param results: receipts, failures, and Deferreds of either.
    @return: fires with all of them, in order.
    """
    waiting = [each if isinstance(each, Deferred) else succeed(each) for each in results]
    return DeferredList(waiting, consumeErrors=True).addCallback(
        lambda pairs: [outcome for _, outcome in pairs]
    )


def storeFailure(failure: Failure) -> TransferError:
    """
    @return: the error that a sender is told of when its store fails; anything unforeseen is
        logged.
    """
    if isinstance(failure.value, TransferError):
        return failure.value
    Logger(__name__).failure("storing a file failed", failure=failure)
    return StoreError(f"the store failed: {type(failure.value).__name__}")
