"""
A file on its way into a local store.

Theory of operation
===================
Bytes go to a private file at their offset, inline or in a thread
(L{connpool.transfer.iothreads}).  With a resume key the file lies among the
partials and has a journal; without one it is as short-lived as its connection.

What an earlier process wrote is held from the beginning but not believed: its
blocks are read and hashed in a thread while new bytes arrive, and C{commit}
waits for the end of that.  Where no journal says what its blocks should be they
are hashed before anybody gets the partial, and become what the journal says.

C{_gate} is the one answer to "may this still be written": L{None}, or why not.  It closes at
commit, suspend, abort, take-over and at the first error other than a full disk.  Whatever has
to wait (close, take-over, publish) waits for C{_jobs} to come to nothing, and no job begins
behind a closed gate but those of the commit or of the end.

An I/O error poisons the partial: the kernel may have dropped pages that it
will then claim are clean, so nothing of it is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

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
    TransferError,
)
from connpool.interfaces import IInspectablePartial, ISparsePartial
from connpool.transfer.records import Offer, Receipt, Stump
from connpool.transfer.stores.journal import Committing, blocksRecord, continues, stumpRecord
from connpool.transfer.stores.journalwriter import JournalWriter
from connpool.transfer.stores.partialdir import Slot
from connpool.transfer.stores.parts import StoreParts
from connpool.transfer.stores.publish import Source
from connpool.transfer.stores.ranges import Holding, Ranges, Recorded, verifyDeclared
from connpool.transfer.stores.reading import openAgain
from connpool.transfer.stores.rehash import REHASH_SLICE_BYTES, digestsOf
from connpool.transfer.stores.reservations import Reservation
from connpool.transfer.stores.sparse import clear, makeHole
from connpool.transfer.syscalls import asTransferError, timed
from connpool.waiting import Waiters

__all__ = ["LocalPartial"]

#: Files larger than this are published and removed in a thread whatever the level: they are
#: compared with a file of the same name, and the disk takes its time to free them.
INLINE_BYTES = 1 << 20
#: Blocks of a checkpoint that is written in a thread whatever the level.
INLINE_BLOCKS = 4096


@implementer(IInspectablePartial, ISparsePartial)
class LocalPartial(Holding):
    """
    A file on its way into a local store.

    @ivar offer: the one that it was opened for.
    @ivar slot: where it lies.
    @param left: told when this no longer uses anything of the store.
    """

    checkpointSeconds = None

    def __init__(
        self,
        parts: StoreParts,
        offer: Offer,
        reservation: Reservation,
        slot: Slot,
        left: Callable[[LocalPartial], None],
        recorded: Recorded | None = None,
    ) -> None:
        super().__init__(offer, recorded)
        self._parts = parts
        self._sys = parts.syscalls
        self._left = left
        self._reservation: Reservation | None = reservation
        self.slot = slot
        self._fd = slot.fd
        self._journal: JournalWriter | None = None  # told what is safe
        if slot.journalFd is not None:
            self._journal = JournalWriter(parts.partials, slot, offer)
        self._source: Source | None = None  # what a failed commit gave to be published
        self.epoch = 0
        self._unread: list[int] = []  # blocks of an earlier process, not hashed yet
        self._learned: dict[int, bytes] | None = None  # such that no journal names
        self._damaged: list[tuple[int, int]] = []
        self._settling: list[Deferred[Sequence[tuple[int, int]]]] = []
        self._poisoned = self._aborted = self._gone = False
        self._jobs = 0
        self._jobless = Waiters()
        #: The Deferred of a commit under way, for a newer connection to wait on.
        self.ending: Deferred[Receipt | None] | None = None

    # -- bytes ---------------------------------------------------------------

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> Deferred[None] | None:
        size = len(data)
        end = offset + size
        self._verifyFree(offset, end)
        assert self._reservation is not None
        self._parts.reservations.cover(self._reservation, size, self.held.total)
        latency = self._parts.threads.latency
        if latency.inline:
            try:
                latency.took(timed(self._sys.writeAll, self._fd, data, offset))
            except OSError as error:
                raise self._failed(error) from None
            self._hold(offset, end)
            return None
        self._flying.add(offset, end)
        return self._job(
            *(timed, self._sys.writeAll, self._fd, data, offset),
            then=lambda result: self._written(result, offset, end),
        )

    def skip(self, start: int, end: int) -> Deferred[None] | None:
        self._verifyFree(start, end)
        try:
            written = makeHole(self._sys, self._fd, start, end, alone=not self._flying)
        except OSError as error:
            raise self._failed(error) from None
        if not written:
            self.held.add(start, end)
            return None
        self._flying.add(start, end)
        return self._job(
            *(timed, clear, self._sys, self._fd, written),
            then=lambda result: self._written(result, start, end),
        )

    def read(self, start: int, end: int) -> Deferred[bytes]:
        if self._gate is not None:
            return fail(self._gate)
        if not self.held.covers(start, end):
            return fail(StoreError(f'"{self.offer.name}": bytes {start} to {end} are not held'))
        return self._job(
            *(self._sys.readAll, self._fd, end - start, start),
            then=self._wasRead,
            run=self._parts.threads.reread,
        )

    def declare(self, offer: Offer) -> None:
        self._verifyOpen()
        size = offer.size
        if size != self.offer.size:
            verifyDeclared(self.offer, offer, max(self.held.end, self._flying.end))
            assert self._reservation is not None
            assert size is not None
            self._parts.reservations.cover(self._reservation, size, 0)
            self._recorded.size = size
        self.offer = offer
        if self._journal is not None:
            self._journal.declare(offer)

    def settled(self) -> Deferred[Sequence[tuple[int, int]]]:
        if not self._unread:
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
        return self._end("is suspended")

    def abort(self) -> Deferred[None]:
        return self._end("was aborted", aborted=True)

    def commit(self, root: bytes | None) -> Deferred[Receipt]:
        if self._gate is not None:
            return fail(self._gate)
        self._gate = StoreError(f'"{self.offer.name}" is being published')
        self.ending = Deferred()
        return Deferred.fromCoroutine(self._commit(root))

    # -- for the store -------------------------------------------------------

    def describe(self) -> None:
        """
        Let operators see whose it is.
        """
        if self._journal is not None and self._gate is None:
            self._journal.describe()

    def resume(self, digests: dict[int, bytes], stump: Stump | None, held: Ranges) -> None:
        """
        Hold what the journal says of an earlier process.
        """
        self._recorded.resume(digests, stump, held)
        self._unread = [*digests] if stump is None else [*digests, stump.block]
        self._reread()

    async def learn(self, blocks: Iterable[int]) -> None:
        """
        Hold what lies there and no journal tells about.
        """
        learned: dict[int, bytes] = {}
        self._learned = learned
        self._unread = list(blocks)
        self._reread()
        await self.settled()
        self._learned = None
        for block, digest in learned.items():
            self._recorded.record(block, digest)
            self.held.add(*self._recorded.span(block))
        with contextlib.suppress(TransferError):  # the next one does it
            await self._checkpoint()

    def continuesAs(self, offer: Offer) -> bool:
        """
        Tell whether a newer connection may go on where this one was.
        """
        over = self._poisoned or self._aborted or self._gone or self._hasName()
        return not over and continues(offer, self.offer)

    def takeOver(self, offer: Offer) -> LocalPartial:
        """
        Return one that goes on where this is, which is fenced and quiet.
        """
        assert self._reservation is not None
        newer = LocalPartial(
            self._parts, offer, self._reservation, self.slot, self._left, self._recorded
        )
        self._gone = True
        self._reservation = None
        newer._unread = self._unread
        newer._damaged = self._damaged
        newer._journal = None if self._journal is None else self._journal.passOn(offer)
        self._giveUp()
        newer._reread()
        return newer

    def fence(self) -> Deferred[None]:
        """
        Let nothing more in: a newer connection takes over.

        @return: fires when writes under way have ended.
        """
        self._close(
            ConflictTakeover(
                f'"{self.offer.name}": a newer connection of the same sender took over'
            )
        )
        return self._quiet()

    async def ended(self) -> Receipt | None:
        """
        Wait for the end of the commit under way.

        @return: the receipt, if it succeeded.
        """
        assert self.ending is not None
        d: Deferred[Receipt | None] = Deferred()

        def ended(receipt: Receipt | None) -> Receipt | None:
            d.callback(receipt)
            return receipt

        self.ending.addCallback(ended)
        return await d

    async def leave(self) -> None:
        """
        Let go of it, which is fenced; what is worth it stays.
        """
        await self._quiet()
        if self._keeps() and not self._gone:
            with contextlib.suppress(TransferError):  # what was not made safe comes again
                await self._checkpoint()
            await self._quiet()
        if self._gone:
            return
        self._gone = True
        partials = self._parts.partials
        self._release()
        if self._keeps():
            await self._job(partials.letGo, self.slot, then=self._hasLeft, inline=True)
        else:
            small = max(self.held.total, self.slot.allocated) <= INLINE_BYTES
            await self._job(partials.remove, self.slot, then=self._hasLeft, inline=small)

    # -- writing -------------------------------------------------------------

    def _written(self, result: float | Failure, offset: int, end: int) -> Failure | None:
        self._flying.remove(offset, end)
        if isinstance(result, Failure):
            error = result.value
            return Failure(self._failed(error)) if isinstance(error, OSError) else result
        self._parts.threads.latency.took(result)
        self._hold(offset, end)
        return None

    def _hold(self, start: int, end: int) -> None:
        self.held.add(start, end)
        if self._reservation is not None:
            self._parts.reservations.wrote(self._reservation, end - start)

    def _wasRead(self, result: bytes | Failure) -> bytes | Failure:
        if isinstance(result, Failure) and isinstance(result.value, OSError):
            return Failure(self._failed(result.value))
        return result

    def _failed(self, error: OSError) -> TransferError:
        translated = asTransferError(error, f'writing "{self.offer.name}"')
        if not isinstance(translated, (NoSpace, Busy, QuotaExceeded)):
            self._poisoned = True
            self._close(translated)
        return translated

    # -- reading what an earlier process wrote -------------------------------

    def _reread(self) -> None:
        if not self._unread or not self._rereads():
            return
        assert self.offer.digest is not None
        blocks = self._unread[: max(1, REHASH_SLICE_BYTES // self.offer.blockSize)]
        spans = [self._recorded.span(block) for block in blocks]
        self._job(
            digestsOf,
            self._sys,
            self._fd,
            self.offer.digest,
            spans,
            self._rereads,
            then=lambda found: self._wereRead(blocks, spans, found),
            run=self._parts.threads.reread,
        )

    def _rereads(self) -> bool:
        """
        Tell whether this goes on; asked in its thread, too.
        """
        return self._gate is None or self.ending is not None

    def _wereRead(
        self,
        blocks: list[int],
        spans: list[tuple[int, int]],
        found: list[bytes | None] | Failure,
    ) -> None:
        """
        Take in the digests of C{blocks}, as far as they came.
        """
        digests = [None] * len(blocks) if isinstance(found, Failure) else found
        for block, span, digest in zip(blocks, spans, digests, strict=False):
            if self._learned is not None:
                if digest is not None:
                    self._learned[block] = digest
            elif self._recorded.digest(block, span[1]) not in {None, digest}:
                self._recorded.discard(*span)
                self._damaged.append(span)
        del self._unread[: len(digests)]
        if self._unread:
            self._reread()
            return
        settling, self._settling = self._settling, []
        for d in settling:
            d.callback(self._damaged)

    # -- checkpoints ---------------------------------------------------------

    def _checkpoint(self) -> Deferred[None]:
        journal = self._journal
        if journal is None or self._hasName():
            return succeed(None)
        if not (self._recorded.unsaved or journal.committing or journal.due):
            return succeed(None)
        blocks, stump = self._recorded.save()
        level = self._parts.commit.level(self.offer)
        return self._job(
            self._checkpointNow,
            journal,
            blocksRecord(blocks) + stumpRecord(stump),
            level,
            inline=not level and len(blocks) < INLINE_BLOCKS,
            then=lambda result: self._checkpointed(result, blocks, stump),
        )

    def _checkpointNow(self, journal: JournalWriter, record: bytes, level: int) -> None:
        if level:
            self._sys.fdatasync(self._fd)
        journal.write(record, level)

    def _checkpointed(
        self, result: Failure | None, blocks: list[tuple[int, bytes]], stump: Stump | None
    ) -> Failure | None:
        if isinstance(result, Failure):
            self._recorded.unsave(blocks, stump)
            error = result.value
            return Failure(self._failed(error)) if isinstance(error, OSError) else result
        self._recorded.saved(blocks, stump)
        return None

    # -- publishing ----------------------------------------------------------

    async def _commit(self, root: bytes | None) -> Receipt:
        receipt: Receipt | None = None
        try:
            await self.settled()
            await self._quiet()
            receipt = await self._publish(root)
            self._gone = True
            self._release()
            self._hasLeft(None)
            return receipt
        except NoSpace:
            self._gate = None
            raise
        except SyncFailed:
            self._poisoned = True
            raise
        except OSError as error:
            failed = self._failed(error)
            if isinstance(failed, NoSpace):
                self._gate = None
            raise failed from None
        finally:
            ending, self.ending = self.ending, None
            assert ending is not None
            ending.callback(receipt)

    def openContent(self) -> Deferred[int]:
        return Deferred.fromCoroutine(self._openContent())

    async def _openContent(self) -> int:
        if self._gate is not None:
            raise self._gate
        await self.settled()
        await self._quiet()
        size = self.held.end if self.offer.size is None else self.offer.size
        if not self.held.covers(0, size):
            raise DigestMismatch(f'"{self.offer.name}": what was stored before was damaged')
        slot = self.slot
        return int(await self._job(openAgain, self._sys, self._fd, slot.directory, slot.name, size))

    async def _publish(self, root: bytes | None) -> Receipt:
        offer = self.offer
        if self._poisoned:
            assert self._gate is not None
            raise self._gate
        size = self.held.end if offer.size is None else offer.size
        if not self.held.covers(0, size):
            if self._damaged:
                self._gate = None  # the sender can mend it
                raise DigestMismatch(f'"{offer.name}": what was stored before was damaged')
            raise StoreError(f'"{offer.name}" is not complete')
        level = self._parts.commit.level(offer)
        inline = not level and size <= INLINE_BYTES
        receipt: Receipt = await self._job(self._finish, size, root, level, inline=inline)
        return receipt

    def _finish(self, size: int, root: bytes | None, level: int) -> Receipt:
        slot, journal = self.slot, self._journal
        before = self._sys.fstat(self._fd)
        # what a sender wrote and took back, or an earlier run left behind
        if before.st_size != size:
            self._sys.ftruncate(self._fd, size)
        if self._source is None:
            self._source = Source(self._fd, slot.directory.fd, slot.name, size)
        self._source.size = size

        def committing() -> None:
            if journal is not None:
                try:
                    journal.begin(Committing(size, root, before.st_ino), level)
                except OSError as error:
                    raise self._failed(error) from None

        try:
            receipt = self._parts.commit.one(self.offer, self._source, root, committing)
        except Exception:
            if journal is not None and not self._hasName():
                journal.revoke(level)
            raise
        with contextlib.suppress(OSError):  # the recovery finds it
            self._parts.partials.clear(slot)
        return receipt

    def _hasName(self) -> bool:
        """
        Tell whether it is public although its commit failed: what is left is the
        evidence, by which the steps that are missing can be taken.
        """
        return self._source is not None and (self._source.linked or self._source.moved)

    # -- letting go ----------------------------------------------------------

    def _end(self, how: str, *, aborted: bool = False) -> Deferred[None]:
        if self._gone or isinstance(self._gate, ConflictTakeover):
            return succeed(None)
        if self.ending is not None:
            return Deferred.fromCoroutine(self.ended()).addCallback(
                lambda _: self._end(how, aborted=aborted)
            )
        self._aborted = self._aborted or aborted
        self._close(StoreError(f'"{self.offer.name}" {how}'))
        return Deferred.fromCoroutine(self.leave())

    def _close(self, why: TransferError) -> None:
        if self._gate is None or not isinstance(self._gate, ConflictTakeover):
            self._gate = why

    def _keeps(self) -> bool:
        """
        Tell whether there is something that could be trusted again.
        """
        if self._hasName():
            return True
        if self._journal is None or self._aborted or self._poisoned:
            return False
        return bool(self.digests or self.stump or self._unread)

    def _hasLeft(self, ignored: object) -> None:
        # an error, too: the recovery finds what is there
        self._left(self)

    def _release(self) -> None:
        if self._reservation is not None:
            self._parts.reservations.release(self._reservation)
            self._reservation = None
        self._giveUp()

    def _giveUp(self) -> None:
        settling, self._settling = self._settling, []
        for d in settling:
            d.errback(self._gate or StoreError("closed"))

    def _job(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        then: Callable[[Any], Any] | None = None,
        inline: bool = False,
        run: Callable[..., Deferred[Any]] | None = None,
    ) -> Deferred[Any]:
        """
        Run something in a thread or inline; C{then} takes the result, a Failure too,
        before the job counts as ended.
        """
        self._jobs += 1
        if inline:
            run = maybeDeferred
        d = (run or self._parts.threads.run)(function, *arguments)
        if then is not None:
            d.addBoth(then)
        return d.addBoth(self._jobDone)

    def _jobDone(self, result: Any) -> Any:
        self._jobs -= 1
        if not self._jobs:
            self._jobless.wake()
        return result

    def _quiet(self) -> Deferred[None]:
        """
        Return a Deferred that fires when no job is in a thread.
        """
        if not self._jobs:
            return succeed(None)
        return self._jobless.wait()
