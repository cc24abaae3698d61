"""
Files and directories that come whole: their way to the store, and the frames C{PUT},
C{PUTS}, C{DIRECTORY} and their answers.

Theory of operation
===================
The life of a small file is one pass: its bytes are compared with its digest, given to the
store under the limits of the reception (L{WholeFiles}), and answered once the store is done.
The files of one frame, or of the many frames that were read in one turn, go together; a bad
one fails alone.  The answers of those that are stored as they were asked for are collected
until the end of a turn and go out as one C{ACK}.

Bytes that wait for the store are bounded: by L{PENDING_BYTES} in one session, and by the
L{Account<connpool.transfer.receive.quotas.Account>}s of a sender over all of its sessions.
At either bound the connection is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import (
    Busy,
    DigestMismatch,
    Forbidden,
    NameRefused,
    ProtocolError,
    QuotaExceeded,
    TooLarge,
    TransferError,
)
from connpool.interfaces import IBatchStore
from connpool.transfer.digests import BLOCK_SIZE, rootsOfBlocks
from connpool.transfer.identities import ANONYMOUS, Identity
from connpool.transfer.names import RelativeName, displayName
from connpool.transfer.receive.offers import Sender, earlierOf
from connpool.transfer.receive.reception import Reception, storeFailure
from connpool.transfer.records import DirectoryMade, Offer, Receipt, SmallFile
from connpool.transfer.wire.frames import MAX_BATCH_BYTES, Frame, Type
from connpool.transfer.wire.link import Link
from connpool.transfer.wire.messages import (
    BATCH_FILES,
    Ack,
    Directory,
    Entry,
    Put,
    Puts,
    encode,
    pingOf,
    receiptFrame,
    rejectFrame,
    timeOf,
)

if TYPE_CHECKING:
    from connpool.transfer.receive.judging import Judging

__all__ = ["PENDING_BYTES", "SMALL_FILE_BYTES", "Acks", "SmallFiles", "WholeFiles"]

Outcomes = list[Receipt | Failure]

#: Bytes of a file that may come by C{PUT} or C{PUTS}.
SMALL_FILE_BYTES = 256 * 1024
#: Bytes of small files being stored, at most, before we stop reading.
PENDING_BYTES = 32 << 20
#: Bytes that one of them takes beside its content.
_OVERHEAD_BYTES = 512
#: Ranges of streams in one C{ACK}.
_ACK_RANGES = 4096


class WholeFiles:
    """
    The way of files and directories that come whole, from a sender to the store.
    """

    _log = Logger()

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._takesBatches = IBatchStore.providedBy(reception.store)

    def put(
        self, files: Sequence[SmallFile], identity: Identity | None, peer: str
    ) -> Outcomes | Deferred[Outcomes]:
        """
        Store whole small files of one sender.  Those of one name are decided in order, and
        one that fails does so alone.

        @return: for each its receipt, or a L{Failure} with the reason.
        """
        reception, quotas = self._reception, self._reception.quotas
        accounts = quotas.accounts(identity)
        try:
            quotas.admit(accounts, files)
        except TransferError as e:
            if len(files) > 1:  # then some of them may come
                return Deferred.fromCoroutine(self._putInOrder(files, identity, peer))
            [file] = files
            reception.tell("offered", file.offer, peer)
            reception.refuse(str(file.offer.name), peer, e, file.offer.transferId)
            return [Failure(e)]
        if reception.listeners:
            for file in files:
                reception.tell("offered", file.offer, peer)
        size = sum([len(file.data) for file in files])
        reception.began(len(files))
        held = quotas.charge(accounts, size)

        def ended(outcomes: Outcomes) -> Outcomes:
            quotas.small(accounts, -len(files), -size)
            self._ended(files, outcomes, peer)
            return outcomes

        def failed(failure: Failure) -> Outcomes:
            return [Failure(storeFailure(failure))] * len(files)

        judging = reception.judging
        stored = self._store(files) if judging is None else self._judge(files, peer, judging)
        if isinstance(stored, Deferred):
            stored.addErrback(failed)
            stored.addCallback(ended)
        else:
            stored = ended(stored)
        if held is None:
            return stored
        rest = stored if isinstance(stored, Deferred) else succeed(stored)
        return rest.addCallback(lambda outcomes: held.addCallback(lambda _: outcomes))

    def _judge(self, files: Sequence[SmallFile], peer: str, judging: Judging) -> Deferred[Outcomes]:
        """
        Store those that may be published.
        """

        async def storeJudged() -> Outcomes:
            found: list[Any] = list(await judging.judgeSmall(files, peer))
            passed = [place for place, why in enumerate(found) if why is None]
            stored = self._store([files[place] for place in passed]) if passed else []
            outcomes = stored if isinstance(stored, list) else await stored
            for place, outcome in zip(passed, outcomes, strict=True):
                found[place] = outcome
            return found

        return Deferred.fromCoroutine(storeJudged())

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
        store: Any = self._reception.store
        if self._takesBatches:
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
        return _gather(results)

    async def _storeInOrder(self, files: Sequence[SmallFile]) -> Outcomes:
        return [(await _gather([self._storeOne(file)]))[0] for file in files]

    def _storeOne(self, file: SmallFile) -> Any:
        data: Any = file.data if self._takesBatches else bytes(file.data)
        try:
            return self._reception.store.put(file.offer, data, file.root)
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
                self._reception.failed(file.offer, peer, len(file.data), why)
        if stored:
            self._reception.published(stored, peer)

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
        quotas = self._reception.quotas
        accounts = quotas.accounts(identity)
        full: QuotaExceeded | None = None
        try:
            quotas.check(accounts, 1, 0)
        except QuotaExceeded as e:
            full = e  # one that is there takes nothing
        store: Any = self._reception.store
        making: Deferred[Any] = maybeDeferred(
            store.makeDirectory, name, modified, durability, full is None
        )
        quotas.small(accounts, 1, 0)

        def ended(result: DirectoryMade | Failure | None) -> DirectoryMade | Failure:
            quotas.small(accounts, -1, 0)
            if isinstance(result, Failure):
                return result
            if result is None:
                assert full is not None
                raise full
            if result.made:
                quotas.stored(accounts)
                self._log.info(
                    "made directory {name} for {peer}", name=displayName(name.path), peer=peer
                )
            return result

        return making.addBoth(ended)


def _gather(results: Sequence[Any]) -> Deferred[Outcomes]:
    """
    @param results: receipts, failures, and Deferreds of either.
    @return: fires with all of them, in order.
    """
    waiting = [each if isinstance(each, Deferred) else succeed(each) for each in results]
    return DeferredList(waiting, consumeErrors=True).addCallback(
        lambda pairs: [outcome for _, outcome in pairs]
    )


@attrs.define(eq=False, repr=False, slots=False)
class SmallFiles:
    """
    The small files of one session.

    @param send: writes a frame, unless the sender is gone.
    @param changed: told that more or fewer bytes wait for the store.
    @ivar files: those of this turn, which are not stored yet.
    @ivar pending: bytes that wait for the store.
    @ivar acks: the acknowledgements that are collected.
    """

    _send: Callable[[bytes], None]
    _changed: Callable[[], None]
    _link: Link
    _clock: Any
    _reception: Reception
    _sender: Sender
    acks: Acks = attrs.field(init=False)
    _whole: WholeFiles = attrs.field(init=False)
    pending: int = attrs.field(default=0, init=False)
    _held: bool = attrs.field(default=False, init=False)
    _over: bool = attrs.field(default=False, init=False)
    files: list[SmallFile] = attrs.field(factory=list, init=False)
    #: their streams and bytes
    _streams: list[int] = attrs.field(factory=list, init=False)
    _bytes: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.acks = Acks(self._clock, self._send)
        self._whole = WholeFiles(self._reception)
        self._rootOf = rootsOfBlocks(self._sender.digest)

    def stop(self) -> None:
        """
        Answer nothing any more: the connection is gone.
        """
        self._over = True
        self._take()
        self.acks.stop()

    # -- what comes

    def put(self, frame: Frame, message: Put) -> None:
        """
        Take a file, which is stored with the others of this turn.
        """
        if frame.length > SMALL_FILE_BYTES:
            raise ProtocolError(f"PUT carries {frame.length} bytes; at most {SMALL_FILE_BYTES}")
        self._collect(frame.stream, message, [message], frame.data, [frame.length], timeOf(message))
        most = min(BATCH_FILES, self._reception.quotas.spare(self._sender.identity))
        if len(self.files) >= most or self._bytes > MAX_BATCH_BYTES:
            self.store()

    def puts(self, frame: Frame, message: Puts) -> None:
        """
        Store the files of a frame.
        """
        sizes = [entry.size for entry in message.entries]
        if sum(sizes) != frame.length:
            raise ProtocolError(
                f"PUTS carries {frame.length} bytes, and its files have {sum(sizes)}"
            )
        largest = max(sizes)
        if largest > SMALL_FILE_BYTES:
            raise ProtocolError(f"PUTS has {largest} bytes of a file; at most {SMALL_FILE_BYTES}")
        self._collect(frame.stream, message, message.entries, frame.files, sizes)
        self.store()

    def _collect(
        self,
        first: int,
        message: Put | Puts,
        entries: Sequence[Put | Entry],
        data: bytes | memoryview,
        sizes: Sequence[int],
        modified: int | None = None,
    ) -> None:
        """
        Take the files of a frame that are taken, and refuse the others.

        @param first: stream of the first one.
        @param data: of all of them, one after the other.
        @param modified: time of the one of a C{PUT}.
        """
        sender, policy = self._sender, self._reception.policy
        try:
            rule = policy.ruleFor(message.ifExists) if message.ifExists else policy.ifExists
        except TransferError as e:
            for stream, entry in enumerate(entries, first):
                self.refuse(stream, entry.name, e)
            return
        identity, digest, rootOf = sender.identity, sender.digest.name, self._rootOf
        principal = ANONYMOUS if identity is None else identity.principal
        read = self._reception.names(identity).read
        files, streams, durability = self.files, self._streams, message.durability
        end = 0
        for stream, entry, size in zip(count(first), entries, sizes):
            start, end = end, end + size
            content, root = data[start:end], entry.root
            try:
                name = read(entry.name)
                if rootOf(content) != root:
                    raise DigestMismatch("the bytes that came are not those that were sent")
            except TransferError as e:
                self.refuse(stream, entry.name, e)
                continue
            # by position: names would take as long as all the rest
            offer = Offer(
                name,
                entry.transferId.hex(),
                size,
                principal,
                identity,
                entry.key,
                None,
                entry.modified if modified is None else modified,
                entry.executable,
                digest,
                BLOCK_SIZE,
                rule,
                durability,
            )
            files.append(SmallFile(offer, content, root))
            streams.append(stream)
            self._bytes += size

    # -- what becomes of it

    def store(self) -> None:
        """
        Store what was collected.
        """
        if not self.files:
            return
        files, streams, size = self._take()
        sender = self._sender
        stored: list[Receipt | Failure] | Deferred[list[Receipt | Failure]]
        try:
            stored = self._whole.put(files, sender.identity, sender.peer)
        except Exception:
            stored = [Failure(storeFailure(Failure()))] * len(files)
        if isinstance(stored, list):
            self._answer(streams, files, stored)
            return

        def done(result: Any) -> None:
            if isinstance(result, Failure):
                result = [result] * len(files)
            self._answer(streams, files, result)

        self._wait(stored, size + len(files) * _OVERHEAD_BYTES, done)

    def _take(self) -> tuple[list[SmallFile], list[int], int]:
        taken = self.files, self._streams, self._bytes
        self.files, self._streams, self._bytes = [], [], 0
        return taken

    def _answer(
        self, streams: list[int], files: list[SmallFile], outcomes: list[Receipt | Failure]
    ) -> None:
        """
        Answer each: the exceptions now, so that they come before the ACK of the rest.
        """
        if self._over:
            return
        sender, acks = self._sender, self.acks
        tells = "earlier" in sender.capabilities
        for stream, file, receipt in zip(streams, files, outcomes, strict=True):
            offer = file.offer
            if not isinstance(receipt, Receipt):
                self._send(rejectFrame(stream, storeFailure(receipt)))
            elif receipt.transferId != offer.transferId and tells:
                earlierOf(self._reception.store, sender, offer, receipt).addCallback(
                    self._tell, stream, receipt
                )
            elif receipt.status != "stored" or receipt.name != offer.name.path:
                self._tell(None, stream, receipt)
            else:
                acks.add(stream, receipt)

    def _tell(self, there: bytes | None, stream: int, receipt: Receipt) -> None:
        self._send(receiptFrame(stream, receipt, self._sender.identity, there))

    def directory(self, frame: Frame, message: Directory) -> None:
        """
        Make a directory.
        """
        number, reception, sender = frame.stream, self._reception, self._sender
        try:
            name = reception.names(sender.identity).read(message.name)
            making = self._whole.makeDirectory(
                name, sender.identity, message.modified, message.durability, sender.peer
            )
        except TransferError as e:
            self.refuse(number, message.name, e)
            return

        def done(result: DirectoryMade | Failure) -> None:
            if isinstance(result, Failure):
                self.refuse(number, message.name, storeFailure(result))
            elif not self._over:
                self.acks.add(number, result)

        self._wait(making, len(message.name) + _OVERHEAD_BYTES, done)

    def _wait(self, storing: Deferred[Any], size: int, done: Callable[[Any], None]) -> None:
        """
        Call C{done} with the result of the store, a L{Failure} too.
        """
        self.pendingChanged(size)
        room = self._reception.quotas.room(self._sender.identity)
        if room is not None:
            self._link.waitFor(room)

        def ended(result: Any) -> None:
            done(result)
            self.pendingChanged(-size)

        storing.addBoth(ended)

    def pendingChanged(self, change: int) -> None:
        """
        Count bytes that wait for the store, or below 0, that do not any more.
        """
        self.pending += change
        hold = self.pending > PENDING_BYTES
        if hold != self._held and not self._over:
            self._held = hold
            (self._link.hold if hold else self._link.release)()
        self._changed()

    def progress(self) -> None:
        """
        Say that small files wait, and for what.
        """
        if self.pending:
            judging = self._reception.judging
            slow = self._reception.quotas.slowedBy(self._sender.identity)
            slow = "hook" if judging is not None and judging.now else slow
            self._send(encode(Type.PING, 0, pingOf(slow)))

    def refuse(self, number: int, name: bytes, why: TransferError) -> None:
        """
        Answer a file that is turned away.
        """
        if isinstance(why, NameRefused | Forbidden | Busy | TooLarge | QuotaExceeded):
            self._reception.refuse(displayName(name), self._sender.peer, why)
        self._send(rejectFrame(number, why))


class Acks:
    """
    The streams that are stored as they were asked for, collected until the end of the turn.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param send: writes a frame.
    @ivar collected: ranges of streams, as C{[first, count]}.
    """

    def __init__(self, clock: Any, send: Callable[[bytes], None]) -> None:
        self._clock = clock
        self._send = send
        self.collected: list[list[int]] = []
        self._receipt: Receipt | DirectoryMade | None = None
        #: the stream that makes the last range longer
        self._next = 0
        self._call: Any = None

    def add(self, number: int, receipt: Receipt | DirectoryMade) -> None:
        """
        Note that stream C{number} is stored.
        """
        before = self._receipt
        if before is not None and (
            before.durability != receipt.durability or before.filesystem != receipt.filesystem
        ):
            self.flush()
        self._receipt = receipt
        if number == self._next and self.collected:
            self.collected[-1][1] += 1
        else:
            self.collected.append([number, 1])
            if len(self.collected) >= _ACK_RANGES:
                self.flush()
        self._next = number + 1
        if self._call is None:
            self._call = self._clock.callLater(0, self.flush)

    def flush(self) -> None:
        """
        Send the acknowledgements that were collected.
        """
        self.stop()
        receipt = self._receipt
        if self.collected and receipt is not None:
            ack = Ack(
                tuple((first, count) for first, count in self.collected),
                receipt.durability,  # type: ignore[arg-type]  # records have it as text
                receipt.filesystem,
                int(receipt.finished * 1000),
            )
            self.collected = []
            self._send(encode(Type.ACK, 0, ack))

    def stop(self) -> None:
        """
        Send nothing by itself any more.
        """
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()
