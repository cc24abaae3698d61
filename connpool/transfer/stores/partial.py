"""
A file on its way into a local store.

Theory of operation
===================
Bytes go to a private file at their offset, inline or in a thread
(L{connpool.transfer.stores.pace}).  With a resume key the file lies on the
shelf and has a journal; without one it is as short-lived as its connection.

What an earlier process wrote is held from the beginning but not believed: its
blocks are read and hashed in a thread while new bytes arrive, and C{commit}
waits for the end of that.

C{_gate} is the one answer to "may this still be written": L{None}, or why not.
It closes at commit, suspend, abort, take-over and at the first error other
than a full disk.  Whatever has to wait (close, take-over, publish) waits for
C{_jobs} to come to nothing, and no job begins behind a closed gate.

An I/O error poisons the partial: the kernel may have dropped pages that it
will then claim are clean, so nothing of it is kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import (
    Busy,
    ConflictTakeover,
    DigestMismatch,
    NoSpace,
    QuotaExceeded,
    StoreError,
    SyncFailed,
    TooLarge,
    TransferError,
)
from connpool.interfaces import IPartial
from connpool.transfer.digests import digestNamed
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.journal import Committing, blocksRecord, committingRecord
from connpool.transfer.stores.ledger import Reservation
from connpool.transfer.stores.publish import Source
from connpool.transfer.stores.ranges import Ranges
from connpool.transfer.stores.shelf import Slot
from connpool.transfer.stores.syscalls import asTransferError

if TYPE_CHECKING:
    from connpool.transfer.stores.local import LocalStore

__all__ = ["LocalPartial"]

#: Files larger than this are published in a thread whatever the level: the
#: comparison with a file of the same name reads both.
INLINE_COMMIT = 1 << 20


@implementer(IPartial)
class LocalPartial:
    """
    @param slot: where it lies on the shelf; L{None} without a resume key.
    @param fd: the private file.
    @param directory: descriptor of the directory that it lies in.
    @param name: its name there.
    @ivar _flying: ranges whose writes are in threads.
    @ivar _fresh: blocks recorded since the last checkpoint.
    @ivar _unchecked: blocks of an earlier process that were not hashed yet.
    """

    def __init__(
        self,
        store: LocalStore,
        offer: Offer,
        reservation: Reservation,
        fd: int,
        directory: int,
        name: str,
        slot: Slot | None = None,
    ) -> None:
        self._store = store
        self._sys = store.syscalls
        self._offer = offer
        self._reservation: Reservation | None = reservation
        self._fd = fd
        self._directory = directory
        self._name = name
        self._slot = slot
        self.held = Ranges()
        self.durable = Ranges()
        self.digests: dict[int, bytes] = {}
        self._flying = Ranges()
        self._fresh: list[int] = []
        self._unchecked: list[int] = []
        self._damaged: list[tuple[int, int]] = []
        self._settling: list[Deferred[Sequence[tuple[int, int]]]] = []
        self._gate: TransferError | None = None
        self._poisoned = False
        self._gone = False
        self._jobs = 0
        self._waiting: list[Deferred[None]] = []
        #: The Deferred of a commit under way, for a newer connection to wait on.
        self.ending: Deferred[Any] | None = None

    # -- bytes ---------------------------------------------------------------

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> Deferred[None] | None:
        if self._gate is not None:
            raise self._gate
        size = len(data)
        end = offset + size
        declared = self._offer.size
        if declared is not None and end > declared:
            raise TooLarge(f'"{self._offer.name}": more bytes arrive than the {declared} announced')
        if self.held.overlaps(offset, end) or self._flying.overlaps(offset, end):
            raise StoreError(f'"{self._offer.name}": bytes {offset} to {end} are held already')
        assert self._reservation is not None
        short = self.held.total + size - self._reservation.size
        if declared is None and short > 0:
            self._store.ledger.grow(self._reservation, short)
        pace = self._store.pace
        if pace.inline:
            began = time.perf_counter()
            try:
                self._sys.writeAll(self._fd, data, offset)
            except OSError as error:
                raise self._failed(error) from None
            pace.took(time.perf_counter() - began)
            self._hold(offset, end)
            return None
        self._flying.add(offset, end)
        return self._job(
            self._writeNow, offset, data, then=lambda result: self._written(result, offset, end)
        )

    def record(self, block: int, digest: bytes) -> None:
        if self._gate is not None:
            raise self._gate
        self.digests[block] = digest
        if self._slot is not None:
            self._fresh.append(block)

    def discard(self, start: int, end: int) -> None:
        if self._gate is not None:
            raise self._gate
        self._drop(start, end)

    def settled(self) -> Deferred[Sequence[tuple[int, int]]]:
        if not self._unchecked:
            return succeed(self._damaged)
        d: Deferred[Sequence[tuple[int, int]]] = Deferred()
        self._settling.append(d)
        return d

    # -- ends ----------------------------------------------------------------

    def checkpoint(self) -> Deferred[None]:
        if self._gate is not None:
            return fail(self._gate)
        return self._checkpoint()

    def suspend(self) -> Deferred[None]:
        if self._slot is None or self._poisoned:
            return self.abort()
        if self._gone or isinstance(self._gate, ConflictTakeover):
            return succeed(None)
        if self.ending is not None:
            return self._whenEnded().addCallback(lambda _: self.suspend())
        self._close(StoreError(f'"{self._offer.name}" is suspended'))
        d = self._quiet()
        d.addCallback(lambda _: None if self._gone else self._checkpoint())
        d.addErrback(lambda failure: failure.trap(TransferError) and None)
        return d.addCallback(self._suspended)

    def abort(self) -> Deferred[None]:
        if self._gone or isinstance(self._gate, ConflictTakeover):
            return succeed(None)
        if self.ending is not None:
            return self._whenEnded().addCallback(lambda _: self.abort())
        self._close(StoreError(f'"{self._offer.name}" was aborted'))
        return self._quiet().addCallback(self._remove)

    def commit(self, root: bytes | None) -> Deferred[Receipt]:
        if self._gate is not None:
            return fail(self._gate)
        self._gate = StoreError(f'"{self._offer.name}" is being published')
        self.ending = Deferred()
        d: Deferred[Any] = self.settled()
        d.addCallback(lambda _: self._quiet())
        d.addCallback(lambda _: self._commit(root))
        return d.addCallbacks(self._published, self._notPublished)

    # -- for the store -------------------------------------------------------

    def resume(self, digests: dict[int, bytes], checked: bool) -> None:
        """
        Hold what an earlier process left.

        @param checked: whether the digests were computed from the file now.
        """
        self.digests = dict(digests)
        for block in digests:
            self.held.add(*self.rangeOf(block))
        self.durable = Ranges() if checked else Ranges(self.held)
        if checked:
            self._fresh = list(digests)
        else:
            self._unchecked = sorted(digests)
        self._recheck()

    def takeOver(self, older: LocalPartial) -> None:
        """
        Go on where an open partial of this process was; it is fenced and quiet.
        """
        self.held = older.held
        self.durable = older.durable
        self.digests = older.digests
        self._fresh = older._fresh
        self._unchecked = older._unchecked
        self._damaged = older._damaged
        self._reservation = older._reservation
        older._reservation = None
        older._slot = None
        older._gone = True
        for waiting in older._settling:
            waiting.errback(_takenOver(older._offer))
        older._settling = []
        self._recheck()

    def fence(self) -> Deferred[None]:
        """
        Let nothing more in: a newer connection takes over.

        @return: fires when writes under way have ended.
        """
        self._close(_takenOver(self._offer))
        return self._quiet()

    @property
    def offer(self) -> Offer:
        """
        What it was opened for.
        """
        return self._offer

    @property
    def slot(self) -> Slot | None:
        """
        Where it lies.
        """
        return self._slot

    @property
    def reservation(self) -> Reservation:
        """
        What it may write.
        """
        assert self._reservation is not None
        return self._reservation

    def drop(self) -> None:
        """
        Remove it; it is fenced and quiet.
        """
        self._remove()

    # -- writing -------------------------------------------------------------

    def _writeNow(self, offset: int, data: bytes | bytearray | memoryview) -> float:
        began = time.perf_counter()
        self._sys.writeAll(self._fd, data, offset)
        return time.perf_counter() - began

    def _written(self, result: float | Failure, offset: int, end: int) -> Failure | None:
        self._flying.remove(offset, end)
        if isinstance(result, Failure):
            error = result.value
            return Failure(self._failed(error)) if isinstance(error, OSError) else result
        self._store.pace.took(result)
        self._hold(offset, end)
        return None

    def _hold(self, start: int, end: int) -> None:
        self.held.add(start, end)
        if self._reservation is not None:
            self._store.ledger.wrote(self._reservation, end - start)

    def _drop(self, start: int, end: int) -> None:
        self.held.remove(start, end)
        self.durable.remove(start, end)
        size = self._offer.blockSize
        for block in range(start // size, -(-end // size)):
            self.digests.pop(block, None)

    def rangeOf(self, block: int) -> tuple[int, int]:
        """
        The bytes of C{block}.
        """
        start = block * self._offer.blockSize
        end = start + self._offer.blockSize
        return start, end if self._offer.size is None else min(end, self._offer.size)

    def _failed(self, error: OSError) -> TransferError:
        translated = asTransferError(error, f'writing "{self._offer.name}"')
        if not isinstance(translated, (NoSpace, Busy, QuotaExceeded)):
            self._poisoned = True
            self._close(translated)
        return translated

    # -- hashing what an earlier process wrote -------------------------------

    def _recheck(self) -> None:
        if self._unchecked and self._gate is None:
            self._job(self._recheckNow, list(self._unchecked), then=self._rechecked)

    def _recheckNow(self, blocks: list[int]) -> tuple[list[int], list[int]]:
        """
        @return: the good and the bad ones of C{blocks}, as far as it came
            before the gate closed for another reason than a commit.
        """
        assert self._offer.digest is not None
        digest = digestNamed(self._offer.digest)
        good: list[int] = []
        bad: list[int] = []
        for block in blocks:
            if self._gate is not None and self.ending is None:
                break
            start, end = self.rangeOf(block)
            expected = self.digests.get(block)
            if expected is None:
                good.append(block)  # discarded meanwhile
                continue
            hasher = digest.new()
            while start < end:
                data = self._sys.pread(self._fd, min(end - start, 1 << 20), start)
                if not data:
                    break
                hasher.update(data)
                start += len(data)
            (good if start == end and hasher.digest() == expected else bad).append(block)
        return good, bad

    def _rechecked(self, result: tuple[list[int], list[int]] | Failure) -> None:
        if isinstance(result, Failure):
            good: list[int] = []
            bad = list(self._unchecked)
        else:
            good, bad = result
        done = {*good, *bad}
        self._unchecked = [block for block in self._unchecked if block not in done]
        for block in bad:
            if block in self.digests:
                start, end = self.rangeOf(block)
                self._drop(start, end)
                self._damaged.append((start, end))
        if not self._unchecked:
            settling, self._settling = self._settling, []
            for d in settling:
                d.callback(self._damaged)

    # -- checkpoints ---------------------------------------------------------

    def _checkpoint(self) -> Deferred[None]:
        fresh = sorted({block for block in self._fresh if block in self.digests})
        if self._slot is None or not fresh:
            return succeed(None)
        self._fresh = []
        record = blocksRecord([(block, self.digests[block]) for block in fresh])
        level = self._store.finisher.level(self._offer)
        return self._job(
            self._checkpointNow,
            record,
            level,
            inline=not level,
            then=lambda result: self._checkpointed(result, fresh),
        )

    def _checkpointNow(self, record: bytes, level: int) -> None:
        slot = self._slot
        assert slot is not None
        if level:
            self._sys.fdatasync(self._fd)
        self._append(slot, record, level)
        if level == 2 and not slot.linked:
            self._store.privateTree.sync(slot.directory)
            slot.linked = True

    def _append(self, slot: Slot, record: bytes, level: int) -> None:
        while record:
            record = record[self._sys.write(slot.journalFd, record) :]
        if level:
            self._sys.fdatasync(slot.journalFd)

    def _checkpointed(self, result: Failure | None, fresh: list[int]) -> Failure | None:
        if isinstance(result, Failure):
            self._fresh += fresh
            error = result.value
            return Failure(self._failed(error)) if isinstance(error, OSError) else result
        for block in fresh:
            if block in self.digests:
                self.durable.add(*self.rangeOf(block))
        return None

    # -- publishing ----------------------------------------------------------

    def _commit(self, root: bytes | None) -> Deferred[Receipt]:
        offer = self._offer
        size = self.held.end if offer.size is None else offer.size
        if not self.held.covers(0, size):
            if self._damaged:
                self._gate = None  # the sender can mend it
                return fail(DigestMismatch(f'"{offer.name}": what was stored before was damaged'))
            return fail(StoreError(f'"{offer.name}" is not complete'))
        source = Source(self._fd, self._directory, self._name, size)
        level = self._store.finisher.level(offer)
        return self._job(
            self._finish, source, root, level, inline=not level and size <= INLINE_COMMIT
        )

    def _finish(self, source: Source, root: bytes | None, level: int) -> Receipt:
        slot = self._slot
        # what a sender wrote and took back, or an earlier run left behind
        if self._sys.fstat(self._fd).st_size != source.size:
            self._sys.ftruncate(self._fd, source.size)
        committing: Callable[[], None] | None = None
        if slot is not None:
            record = committingRecord(Committing(source.size, root))

            def committing() -> None:
                self._append(slot, record, level)
                if level == 2 and not slot.linked:
                    self._store.privateTree.sync(slot.directory)
                    slot.linked = True

        return self._store.finisher.one(self._offer, source, root, committing)

    def _published(self, receipt: Receipt) -> Receipt:
        self._remove()
        self._ended(receipt)
        return receipt

    def _notPublished(self, failure: Failure) -> Failure:
        if isinstance(failure.value, OSError):
            failure = Failure(self._failed(failure.value))
        if failure.check(NoSpace):
            self._gate = None
        elif failure.check(SyncFailed):
            self._poisoned = True
        self._ended(None)
        return failure

    def _ended(self, receipt: Receipt | None) -> None:
        ending, self.ending = self.ending, None
        if ending is not None:
            ending.callback(receipt)

    def _whenEnded(self) -> Deferred[None]:
        """
        @return: fires after the commit under way, however it ended.
        """
        assert self.ending is not None
        d: Deferred[None] = Deferred()

        def ended(result: Any) -> Any:
            d.callback(None)
            return result

        self.ending.addCallback(ended)
        return d

    # -- letting go ----------------------------------------------------------

    def _close(self, why: TransferError) -> None:
        if self._gate is None or not isinstance(self._gate, ConflictTakeover):
            self._gate = why

    def _suspended(self, ignored: object) -> None:
        if self._gone or self._slot is None:
            return
        if not self.digests or self._poisoned:
            self._remove()  # nothing in it that could be trusted again
            return
        self._gone = True
        self._store.left(self)
        self._release()
        self._store.shelf.letGo(self._slot)

    def _remove(self, ignored: object = None) -> None:
        if self._gone:
            return
        self._gone = True
        self._store.left(self)
        self._release()
        with contextlib.suppress(OSError):  # the reaper finds it
            if self._slot is not None:
                self._store.shelf.remove(self._slot)
            else:
                try:
                    self._sys.remove(self._name, self._directory)
                finally:
                    self._sys.close(self._fd)

    def _release(self) -> None:
        if self._reservation is not None:
            self._store.ledger.release(self._reservation)
            self._reservation = None
        for d in self._settling:
            d.errback(self._gate or StoreError("closed"))
        self._settling = []

    def _job(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        then: Callable[[Any], Any] | None = None,
        inline: bool = False,
    ) -> Deferred[Any]:
        """
        @param then: takes the result, a Failure too, before the job counts as
            ended.
        """
        self._jobs += 1
        run = maybeDeferred if inline else self._store.inThread
        d = run(function, *arguments)
        if then is not None:
            d.addBoth(then)
        return d.addBoth(self._jobDone)

    def _jobDone(self, result: Any) -> Any:
        self._jobs -= 1
        if not self._jobs:
            waiting, self._waiting = self._waiting, []
            for d in waiting:
                d.callback(None)
        return result

    def _quiet(self) -> Deferred[None]:
        """
        @return: fires when no job is in a thread.
        """
        if not self._jobs:
            return succeed(None)
        d: Deferred[None] = Deferred()
        self._waiting.append(d)
        return d


def _takenOver(offer: Offer) -> ConflictTakeover:
    return ConflictTakeover(f'"{offer.name}": a newer connection of the same sender took over')
