"""
The one reception core: every file passes here, by whichever protocol it comes.

Theory of operation
===================
A protocol turns bytes into an L{Offer} and gives it to L{Reception.begin}.
Policy decides first, without I/O; then the store opens a partial.  The
L{Incoming} that comes back is the only hand on that partial.  A file that comes whole has
none (L{connpool.transfer.receive.smallfiles}).  The limits that hold are in the L{Account}s
that a transfer passes.  Nothing here knows about paths, sockets or wire formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import Skipped, StoreError, TooLarge, TransferError, TransferTimeout
from connpool.interfaces import (
    IFileStore,
    ILiveTransfers,
    IPartial,
    IRememberingStore,
    IStatsSource,
    ITransferJudge,
    ITransferListener,
    IUploadPartial,
)
from connpool.logonce import LogGathered
from connpool.transfer.identities import ANONYMOUS, Identity
from connpool.transfer.names import NameReader, RelativeName, displayName
from connpool.transfer.receive.policy import Policy, ReadCounts, TransferStats
from connpool.transfer.receive.quotas import Places, Quotas
from connpool.transfer.receive.recent import KEPT_TRANSFERS, RecentTransfers
from connpool.transfer.records import LiveTransfer, Offer, Receipt
from connpool.waiting import Waiters

if TYPE_CHECKING:
    from connpool.transfer.receive.judging import Judging

__all__ = ["Incoming", "Reception", "storeFailure"]

#: Seconds between two times that listeners are told how far a transfer is.
PROGRESS_SECONDS = 1.0
#: A restart loses at most the bytes that came since the last checkpoint.
CHECKPOINT_BYTES = 64 << 20
CHECKPOINT_SECONDS = 2.0


@implementer(IStatsSource, ILiveTransfers)
class Reception:
    """
    Receives files into a store, under a policy.

    @param store: keeps the files.
    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param listeners: told about every file.
    @ivar asked: files that senders asked about, and C{unchanged}: those that are there.
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
        self._received = LogGathered(clock, self._logReceived)
        #: by the directory that a sender's files go to
        self._names: dict[RelativeName | None, NameReader] = {}
        #: in the order they began
        self._active: dict[Incoming, None] = {}
        self._started = self._publishedCount = self._failedCount = self._refused = 0
        self._skipped = 0
        self.reads = ReadCounts()
        self.judging: Judging | None = None
        if judges := [each for each in listeners if ITransferJudge.providedBy(each)]:
            from connpool.transfer.receive.judging import Judging

            self.judging = Judging(judges)
        self.asked = self.unchanged = 0

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
        self.began(not again)
        most = self.quotas.longest(offer)
        if most is not None and end is not None:
            incoming.endAfter(most, end)
        if not again:
            self.tell("started", offer, peer)
        return incoming

    def began(self, files: int) -> None:
        """
        Count files that are taken.
        """
        self._started += files

    def hurry(self) -> None:
        """
        Let all that wait for a rate go on, and log what is left: the reception stops.
        """
        self.quotas.hurry()
        self.recent.flush()
        self._received.flush()

    def left(self, incoming: Incoming) -> None:
        """
        Forget a transfer that has ended.
        """
        self._active.pop(incoming, None)

    def names(self, identity: Identity | None) -> NameReader:
        """
        Return the reader of the names that C{identity} offers: what it reads are the store's,
        in the directory of C{identity}.
        """
        directory = None if identity is None else identity.directory
        reader = self._names.get(directory)
        if reader is None:
            reader = self._names[directory] = NameReader(
                self.policy.names, dotfiles=self.policy.dotfiles, directory=directory
            )
        return reader

    def offer(self, raw: bytes, identity: Identity | None, ifExists: str, **values: Any) -> Offer:
        """
        Make the offer of a file.

        @param raw: its name as the sender wrote it.
        @param ifExists: the rule that the sender asks for; empty for ours.
        @param values: the other attributes of the L{Offer}.
        @raise NameRefused: the name is not taken.
        @raise Forbidden: the rule may not be asked for.
        """
        name, policy = self.names(identity).read(raw), self.policy
        rule = policy.ruleFor(ifExists) if ifExists else policy.ifExists
        principal = ANONYMOUS if identity is None else identity.principal
        return Offer(name, principal=principal, identity=identity, ifExists=rule, **values)

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
        self._received.happened([(peer, receipt) for receipt in receipts])
        if self.listeners:
            for receipt in receipts:
                self.tell("published", receipt)

    def _logReceived(self, received: list[tuple[str, Receipt]]) -> None:
        for peer, pairs in groupby(received, itemgetter(0)):
            # formatted here: the logger's own formatting takes ten times as long
            lines, shown = [], []
            for _, receipt in pairs:
                name = displayName(receipt.name)
                lines.append(
                    f"received {name} ({receipt.size} bytes, {receipt.status}, {receipt.integrity},"
                    f" durability {receipt.durability}) from {peer}, id {receipt.transferId}"
                )
                shown.append(receipt if name == receipt.name else attrs.evolve(receipt, name=name))
            fields: dict[str, Any] = {"receipts": tuple(shown)}
            if len(shown) == 1:
                fields = {"receipt": shown[0], "id": shown[0].transferId}
            self._log.info("{text}", text="\n".join(lines), peer=peer, **fields)

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
            *(self.quotas.holeBytes, self.quotas.savedBytes, self.asked, self.unchanged),
            *attrs.astuple(self.reads),
            **(self.judging.counts if self.judging is not None else {}),
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
        places: Places,
    ) -> None:
        self._reception = reception
        self.offer = offer
        self.peer = peer
        self.partial = partial
        self.received = 0
        self.ended = self.judged = False
        self._places = places
        self._accounts = places.accounts
        self._before = sum(end - start for start, end in partial.held)
        #: bytes that were announced and have not come
        self._expected = max(0, (offer.size or 0) - self._before)
        self._stalled = self._held = self._holes = self.saved = 0
        self._toldAt = 0.0
        #: of the last checkpoint: bytes that had come, and seconds
        self._saved, self._savedAt = 0, reception.clock.seconds()
        self._checking = False
        self._checked = Waiters()
        self._deadline: Any = None
        self._end = offer.size if offer.size is not None else reception.quotas.largest(offer)

    async def promise(self) -> None:
        """
        Count on the bytes that were announced.

        @raise QuotaExceeded: if these are too many; then nothing is held any more.
        """
        size = 1 if self.offer.size is None else self._expected
        try:
            self._reception.quotas.check(self._accounts, 0, size)
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
        self._comes(offset, count)
        held = self._reception.quotas.charge(self._accounts, count)
        pause = self._pausing(self.partial.write(offset, data))
        if held is None:
            return pause
        self._held += 1
        held.addBoth(self._released)
        return held if pause is None else pause.addCallback(lambda _: held)

    def skip(self, start: int, end: int) -> Deferred[None] | None:
        """
        As L{ISparsePartial.skip}.  A hole counts as its zeros would, but for the rate:
        nothing came.
        """
        self._comes(start, end - start)
        self._reception.quotas.skip(self._accounts, end - start)
        self._holes += end - start
        partial: Any = self.partial
        return self._pausing(partial.skip(start, end))

    def _comes(self, offset: int, count: int) -> None:
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
        self.received += count

    def _pausing(self, pause: Deferred[None] | None) -> Deferred[None] | None:
        self._progressed()
        if pause is not None:
            self._stalled += 1
            pause.addBoth(self._written)
        return pause

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

    # -- checkpoints

    def checkpoint(self, failed: Callable[[Failure], None]) -> None:
        """
        Make the bytes that came since the last checkpoint safe, if one is due.

        @param failed: told if they cannot be.
        """
        grown = self.received - self._saved
        if self._checking or not grown:
            return
        now, pace = self._reception.clock.seconds(), self.partial.checkpointSeconds
        if pace is None:
            pace = 0.0 if grown >= CHECKPOINT_BYTES else CHECKPOINT_SECONDS
        if now - self._savedAt >= pace:
            self._saved, self._savedAt = self.received, now
            self._checking = True
            self.partial.checkpoint().addBoth(self._checkpointed, failed)

    def _checkpointed(self, result: Failure | None, failed: Callable[[Failure], None]) -> None:
        self._checking = False
        if isinstance(result, Failure):
            failed(result)
        self._checked.wake()

    async def checkpointed(self) -> None:
        """
        Wait for the end of a checkpoint that is under way.
        """
        if self._checking:
            await self._checked.wait()

    @property
    def slowedBy(self) -> str:
        """
        The thing that it waits for now: C{rate}, C{disk} or C{peer}.
        """
        if self._held or self.judged:
            return "hook" if self.judged else "rate"
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
            if IUploadPartial.providedBy(self.partial):
                if sha256 is not None:
                    self._declare(attrs.evolve(self.offer, sha256=sha256.hex()))
                if self._holes or self.saved:
                    offer = attrs.evolve(self.offer, holeBytes=self._holes)
                    self._declare(attrs.evolve(offer, savedBytes=self.saved))
            if self._reception.judging is not None:
                await self._reception.judging.judgePartial(self)
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
