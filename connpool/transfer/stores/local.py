"""
A store in a local directory.

Theory of operation
===================
The root is opened once.  Below it C{.connpool} (which no L{RelativeName} can
name) holds what is private:

C{temporary/}
    files that cannot be resumed, named after their idempotence key, and notes
    about copies on other mounts (L{connpool.transfer.stores.copies});
C{partials/PRINCIPAL/}
    partials and their journals (L{connpool.transfer.stores.shelf});
C{done/}
    receipts (L{connpool.transfer.stores.done});
C{ledger/}
    reservations of every process (L{connpool.transfer.stores.ledger}).

Any number of processes may use one root.  Decisions are made on the reactor's
thread; what may block on the disk (syncs, hashing, slow writes) runs in threads
of the store's own, and small files that must be durable go together
(L{connpool.transfer.stores.batch}).

There is no timer: old things are looked for when files arrive, or when L{reap}
is called.

Known limits: a directory that can be entered but not read cannot be synced and
is refused.  Only the newest gigabyte of receipts, about two million, is
remembered.  Of names that differ only in case or composition,
C{names="portable"} keeps a second one out for certain if this store made the
first; what others put there (the operator, another process or store) is seen
soon, not at once, and in a directory of more than 65,536 names, or beyond
131,072 in the directories in use, nothing is: there both names are kept
wherever the file system keeps them apart.  The quota is about unfinished files;
published ones belong to the operator.  At the level C{none} the done record is
written at the end of the reactor's turn, which is before an acknowledgement
leaves a selectable transport.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from connpool.errors import Busy, NoSpace, QuotaExceeded, StartFailed, StoreError, TransferError
from connpool.interfaces import IFileStore, IPartial
from connpool.transfer.names import INTERNAL, RelativeName, displayName
from connpool.transfer.records import (
    DURABILITIES,
    FileStat,
    Offer,
    PartialInfo,
    Receipt,
    StoreCaps,
)
from connpool.transfer.stores.batch import GroupCommit, Small
from connpool.transfer.stores.copies import Copies
from connpool.transfer.stores.done import DoneLog
from connpool.transfer.stores.finish import Finisher, temporaryName
from connpool.transfer.stores.journal import continues, header
from connpool.transfer.stores.ledger import Ledger, Reservation, Space
from connpool.transfer.stores.neighbours import Neighbours, keepApart
from connpool.transfer.stores.pace import Pace
from connpool.transfer.stores.partial import LocalPartial
from connpool.transfer.stores.publish import Publisher, canLink
from connpool.transfer.stores.reaper import Reaper
from connpool.transfer.stores.received import ReceivedOutbox
from connpool.transfer.stores.shelf import Shelf, Slot, identityOf
from connpool.transfer.stores.syscalls import (
    NEW,
    VOLATILE,
    Syscalls,
    asTransferError,
    filesystemType,
    isFile,
)
from connpool.transfer.stores.tree import Tree

__all__ = ["LocalStore"]

#: Threads for syncs, for hashing, and for writes that take long.
THREADS = 4
#: Seconds between looks at whether the root's path still leads to it.
LOOK = 1.0
#: Seconds between looks for what is too old.
REAP = 600.0

_PARTIAL_ID = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})\Z")


@implementer(IFileStore)
class LocalStore:
    """
    @param reactor: for threads and monotonic time.
    @param path: the root; it must exist.
    @param fileMode: permission bits of published files, whatever the umask.
    @param dirMode: permission bits of directories made for them.
    @param keepExec: give the exec bits of the source where C{fileMode} can read.
    @param names: one of C{PROFILES}: with C{portable} a name is taken if
        another one in its directory differs only in case or composition, and
        no directory is made beside such a one; C{posix} keeps them apart.
    @param quota: bytes that unfinished transfers of one principal may take;
        L{None} for no limit.
    @param minFree: bytes of the disk that are never given away; L{None} for
        the smaller of 1 GiB and 5 %.
    @param ttl: seconds that a suspended partial is kept.
    @param now: wall-clock seconds.
    @param syscalls: for tests: what lies between the store and the kernel.
    @param threads: for tests: a thread pool.
    @raise StartFailed: if C{path} cannot be used; one line.
    @ivar filesystem: the type of file system it lies on.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str | os.PathLike[str],
        *,
        fileMode: int = 0o640,
        dirMode: int = 0o750,
        keepExec: bool = False,
        names: str = "portable",
        quota: int | None = None,
        minFree: int | None = None,
        ttl: float = 7 * 86400.0,
        now: Callable[[], float] = time.time,
        syscalls: Syscalls | None = None,
        threads: Any = None,
    ) -> None:
        self._reactor = reactor
        self._path = os.fspath(path)
        self._quota = quota
        self._ttl = ttl
        self._now = now
        self.syscalls = syscalls or Syscalls()
        self._threads = threads
        self._ownThreads: ThreadPool | None = None
        self.pace = Pace()
        self._active: set[LocalPartial] = set()
        self._resumable: dict[tuple[str, str], LocalPartial] = {}
        #: principal and key of small files under way to who waits as well
        self._pending: dict[tuple[str, bytes], list[Deferred[Receipt]]] = {}
        self._group = GroupCommit(self._runBatch, reactor.callLater)
        self._flushing: Any = None
        self._working = 0
        self._idle: list[Deferred[None]] = []
        self._closed = False
        self._looked = -LOOK
        self._trouble: str | None = None
        self._reaped = reactor.seconds() - REAP + LOOK * 60
        self._reaping = False
        self._claim = Neighbours(self.syscalls).claim if names == "portable" else keepApart
        self._open(fileMode & 0o777, dirMode & 0o777, keepExec, minFree)

    def _open(self, fileMode: int, dirMode: int, keepExec: bool, minFree: int | None) -> None:
        sys = self.syscalls
        shown = displayName(self._path)
        try:
            self._root = sys.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StartFailed(f"directory {shown} does not exist; create it first") from None
        except NotADirectoryError:
            raise StartFailed(f"{shown} is not a directory") from None
        except OSError as error:
            raise StartFailed(f"directory {shown}: {error.strerror}") from None
        try:
            status = sys.fstat(self._root)
            self._identity = (status.st_dev, status.st_ino)
            self.filesystem = filesystemType(self._root)
            level = "none" if self.filesystem in VOLATILE else "full"
            self.caps = StoreCaps(durability=level)
            self.privateTree = Tree(sys, self._root, 0o700)
            self._held = [
                self.privateTree.acquire((INTERNAL, name), create=True)
                for name in ("temporary", "done", "ledger")
            ]
            self._temporary, done, ledger = (directory.fd for directory in self._held)
            if level == "full":
                for directory in self._held:
                    self.privateTree.sync(directory)
            space = Space(sys, self._root, minFree, self._reactor.seconds)
            self.ledger = Ledger(sys, ledger, space, self._quota)
            self._done = DoneLog(sys, done, self._now)
            self._tree = Tree(sys, self._root, dirMode, claim=self._claim)
            self.shelf = Shelf(sys, self.privateTree)
            self.finisher = Finisher(
                sys,
                self._tree,
                Publisher(
                    sys,
                    Copies(sys, self._temporary, self._tree),
                    canLink=canLink(sys, self._temporary),
                    claim=self._claim,
                ),
                self._done,
                self._temporary,
                reach=DURABILITIES.index(level),
                fileMode=fileMode,
                keepExec=keepExec,
                now=self._now,
            )
            self._reaper = Reaper(
                sys, self.shelf, self.finisher, self._temporary, self._ttl, self._now, self._stat
            )
        except (OSError, TransferError) as error:
            sys.close(self._root)
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise StartFailed(
                f"directory {shown} cannot be used: {why}; it must be writable, and {INTERNAL} in"
                " it a directory of its own"
            ) from None

    # -- IFileStore ---------------------------------------------------------

    def open(self, offer: Offer) -> Deferred[IPartial | Receipt]:
        opening: Deferred[Any] = maybeDeferred(self._openNow, offer)
        return opening

    def put(self, offer: Offer, data: bytes, root: bytes | None) -> Receipt | Deferred[Receipt]:
        self._refuse()
        if offer.key is not None:
            others = self._pending.get((offer.principal, offer.key))
            if others is not None:
                d: Deferred[Receipt] = Deferred()
                others.append(d)
                return d
            receipt = self.finisher.finished(offer)
            if receipt is not None:
                return receipt
        if not self.ledger.fits(len(data)):
            raise NoSpace("the receiver's disk is full; try again when there is space")
        if self.finisher.level(offer):
            small = Small(offer, data, root, Deferred())
            self._group.add(small)
            return self._share(offer, small.done)
        if not self.pace.inline:
            return self._share(offer, self.inThread(self._timedPut, offer, data, root, False))
        if offer.key is not None and self._flushing is None:
            self._flushing = self._reactor.callLater(0, self._flush)
        return self._timedPut(offer, data, root, True)

    def trouble(self) -> str | None:
        now = self._reactor.seconds()
        if now - self._looked >= LOOK:
            self._looked = now
            self._trouble = self._look()
            if self._flushing is None:
                self._flush()  # what could not be noted before
            if now - self._reaped >= REAP and not self._reaping and not self._closed:
                self.reap()
        return self._trouble or self.ledger.trouble()

    def stat(self, name: RelativeName) -> Deferred[FileStat | None]:
        return maybeDeferred(self._stat, name)

    def partials(self, principal: str | None = None) -> Deferred[list[PartialInfo]]:
        return self.inThread(self._list, principal)

    def delete(self, info: PartialInfo) -> Deferred[None]:
        return self.inThread(self._delete, info.partialId)

    def close(self) -> Deferred[None]:
        if self._closed:
            return succeed(None)
        self._closed = True
        if self._flushing is not None:
            self._flushing.cancel()
        self._flush()
        d: Deferred[Any] = gatherResults(
            [partial.suspend() for partial in list(self._active)], consumeErrors=True
        )
        d.addBoth(lambda _: self._group.drained())
        d.addBoth(lambda _: self._quiet())
        return d.addBoth(self._letGo)

    def reap(self) -> Deferred[None]:
        """
        Finish what a process that died was publishing, and remove what is too
        old.  Happens by itself when files arrive.
        """
        self._reaping = True
        self._reaped = self._reactor.seconds()

        return self.inThread(self._reaper.look, self._reaped).addBoth(self._reapEnded)

    def receivedOutbox(self) -> ReceivedOutbox:
        """
        @return: the receipts that a program is still to be told about.
        @raise StartFailed: another process has them; one line.
        """
        return ReceivedOutbox(self.syscalls, self._held[1].fd, self._now)

    # -- for the parts of this store ----------------------------------------

    def inThread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """
        Run C{function} in a thread of this store.
        """
        if self._threads is None:
            self._ownThreads = self._threads = ThreadPool(0, THREADS, "store")
            self._ownThreads.start()
            self._stopping = self._reactor.addSystemEventTrigger(
                "after", "shutdown", self._ownThreads.stop
            )
        self._working += 1
        return deferToThreadPool(self._reactor, self._threads, function, *arguments).addBoth(
            self._worked
        )

    def left(self, partial: LocalPartial) -> None:
        """
        C{partial} no longer uses anything of this store.
        """
        self._active.discard(partial)
        slot = partial.slot
        if slot is not None:
            identity = (slot.directory.components[-1], slot.name)
            if self._resumable.get(identity) is partial:
                del self._resumable[identity]

    # -- opening -------------------------------------------------------------

    def _openNow(self, offer: Offer) -> LocalPartial | Receipt | Deferred[LocalPartial | Receipt]:
        self._looked = -LOOK
        self._refuse()
        try:
            older = None if offer.resumeKey is None else self._resumable.get(identityOf(offer))
            if older is not None and older.ending is not None:
                return self._takeOver(older, offer)  # its receipt may not be on disk yet
            receipt = self.finisher.finished(offer)
            if receipt is not None:
                if offer.resumeKey is not None:
                    self._clear(identityOf(offer))
                return receipt
            if offer.resumeKey is None:
                return self._openTemporary(offer)
            if older is not None:
                return self._takeOver(older, offer)
            return self._openSlot(offer)
        except OSError as error:
            raise asTransferError(error, f'receiving "{offer.name}"') from None

    def _openTemporary(self, offer: Offer) -> LocalPartial | Receipt:
        reservation = self._reserve(offer, None)
        try:
            name = temporaryName(offer)
            try:
                fd = self.syscalls.open(name, NEW, 0o600, dir_fd=self._temporary)
            except FileExistsError:
                name = os.urandom(16).hex()
                fd = self.syscalls.open(name, NEW, 0o600, dir_fd=self._temporary)
        except BaseException:
            self.ledger.release(reservation)
            raise
        partial = LocalPartial(self, offer, reservation, fd, self._temporary, name)
        self._active.add(partial)
        return partial

    def _takeOver(self, older: LocalPartial, offer: Offer) -> Deferred[LocalPartial | Receipt]:
        if older.ending is not None:
            # it is being published: whoever asks again gets the same receipt
            waited: Deferred[Any] = Deferred()

            def ended(receipt: Receipt | None) -> Receipt | None:
                if receipt is not None and older.offer.key == offer.key:
                    waited.callback(receipt)
                else:
                    maybeDeferred(self._openNow, offer).chainDeferred(waited)
                return receipt

            older.ending.addCallback(ended)
            return waited
        return older.fence().addCallback(lambda _: self._fenced(older, offer))

    def _fenced(
        self, older: LocalPartial, offer: Offer
    ) -> LocalPartial | Receipt | Deferred[LocalPartial | Receipt]:
        slot = older.slot
        if self._resumable.get(identityOf(offer)) is not older or slot is None:
            return self._openNow(offer)  # somebody else was quicker
        if not continues(offer, older.offer):
            older.drop()
            return self._openNow(offer)
        self.left(older)
        partial = self._shelved(offer, older.reservation, slot)
        partial.takeOver(older)
        self._describe(slot, offer, keep=True)
        return partial

    def _openSlot(self, offer: Offer) -> LocalPartial | Receipt | Deferred[LocalPartial | Receipt]:
        slot = self.shelf.take(offer)
        reservation: Reservation | None = None
        try:
            status = slot.status
            journal = slot.journal
            if self._reaper.wasPublished(slot):
                receipt = self._reaper.finish(slot)
                if journal.offer is not None and journal.offer.key == offer.key:
                    return receipt
                slot = self.shelf.take(offer)
                status, journal = slot.status, slot.journal
            elif status.st_nlink > 1:
                # somebody linked to it, and would see what we write
                self.shelf.remove(slot)
                slot = self.shelf.take(offer)
                status, journal = slot.status, slot.journal
            reservation = self._reserve(offer, slot)
            partial = self._shelved(offer, reservation, slot)
        except BaseException:
            if reservation is not None:
                self.ledger.release(reservation)
            if not slot.closed:
                self.shelf.letGo(slot)
            raise
        if journal.offer is not None and continues(offer, journal.offer):
            self._describe(slot, offer, keep=True)
            size = status.st_size if offer.size is None else min(offer.size, status.st_size)
            partial.resume(
                {
                    block: digest
                    for block, digest in journal.digests.items()
                    if block >= 0
                    and partial.rangeOf(block)[1] <= size
                    and block * offer.blockSize < size
                },
                checked=False,
            )
            return partial
        self._describe(slot, offer, keep=False)
        if not status.st_size or offer.digest is None:
            return partial
        # a journal that cannot be read, or a file that changed: hash what lies there
        d: Deferred[Any] = self.inThread(self.shelf.hash, slot, offer)

        def hashed(digests: dict[int, bytes]) -> LocalPartial:
            partial.resume(digests, checked=True)
            return partial

        return d.addCallback(hashed)

    def _shelved(self, offer: Offer, reservation: Reservation, slot: Slot) -> LocalPartial:
        partial = LocalPartial(
            self, offer, reservation, slot.fd, slot.directory.fd, slot.name, slot
        )
        self._active.add(partial)
        self._resumable[identityOf(offer)] = partial
        return partial

    def _describe(self, slot: Slot, offer: Offer, *, keep: bool) -> None:
        if keep and slot.journal.offer == offer:
            return
        self.syscalls.write(slot.journalFd, header(offer, keep=keep))

    def _reserve(self, offer: Offer, slot: Slot | None) -> Reservation:
        """
        Reserve the declared size; make room by removing the oldest suspended
        partials of the same principal.
        """
        written = 0 if slot is None else slot.allocated
        while True:
            try:
                return self.ledger.reserve(
                    offer.principal,
                    None if offer.identity is None else offer.identity.quota,
                    offer.size,
                    written,
                    lambda: self.shelf.suspended(offer.principal, slot),
                )
            except (NoSpace, QuotaExceeded):
                if not self.shelf.evict(offer.principal, slot):
                    raise

    def _clear(self, identity: tuple[str, str]) -> None:
        """
        Remove what a process left that died after its done record.
        """
        try:
            slot = self.shelf.find(identity)
        except (FileNotFoundError, Busy):
            return
        if slot is not None:
            self.shelf.remove(slot)

    # -- small files ---------------------------------------------------------

    def _timedPut(self, offer: Offer, data: bytes, root: bytes | None, later: bool) -> Receipt:
        began = time.perf_counter()
        receipt = self.finisher.put(offer, data, root, later=later)
        self.pace.took(time.perf_counter() - began)
        return receipt

    def _flush(self) -> None:
        """
        What small files of this turn of the reactor left to do.
        """
        self._flushing = None
        try:
            self.finisher.flush()
        except OSError:
            # the files are where they belong, and it is tried again
            self._log.failure("cannot note what was received")

    def _runBatch(self, batch: Any) -> Deferred[list[Receipt | Failure]]:
        return self.inThread(self.finisher.batch, batch)

    def _share(self, offer: Offer, d: Deferred[Receipt]) -> Deferred[Receipt]:
        """
        Let repetitions of C{offer} that come before C{d} fires have its result.
        """
        if offer.key is None:
            return d
        index = (offer.principal, offer.key)
        self._pending[index] = []

        def share(result: Receipt | Failure) -> Receipt | Failure:
            for other in self._pending.pop(index):
                other.callback(result)
            return result

        return d.addBoth(share)

    # -- the rest ------------------------------------------------------------

    def _refuse(self) -> None:
        if self._closed:
            raise StoreError("the receiver is stopping")
        # a full disk is refused where the size is known, as NoSpace
        self.trouble()
        if self._trouble is not None:
            raise StoreError(self._trouble)

    def _look(self) -> str | None:
        try:
            status = self.syscalls.stat(self._path)
        except OSError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != self._identity:
            return (
                f"directory {displayName(self._path)} was moved away or replaced; restart the"
                " receiver"
            )
        return None

    def _stat(self, name: RelativeName) -> FileStat | None:
        try:
            directory = self._tree.acquire(name.components[:-1], create=False)
        except (OSError, TransferError):
            return None
        try:
            status = self.syscalls.stat(
                name.components[-1], dir_fd=directory.fd, follow_symlinks=False
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise asTransferError(error, f'looking at "{name}"') from None
        finally:
            self._tree.release(directory)
        return FileStat(status.st_size, status.st_mtime_ns) if isFile(status) else None

    def _list(self, principal: str | None) -> list[PartialInfo]:
        found = [self.shelf.info(*each) for each in self.shelf.everything()]
        return [info for info in found if principal in {None, info.principal}]

    def _delete(self, partialId: str) -> None:
        found = _PARTIAL_ID.match(partialId)
        if found is None:
            raise StoreError(f'"{displayName(partialId)}" is not the id of a partial')
        slot = self.shelf.find((found[1], found[2]))
        if slot is not None:
            self.shelf.remove(slot)

    def _reapEnded(self, result: object) -> None:
        self._reaping = False

    def _worked(self, result: Any) -> Any:
        self._working -= 1
        if not self._working:
            idle, self._idle = self._idle, []
            for d in idle:
                d.callback(None)
        return result

    def _quiet(self) -> Deferred[None]:
        if not self._working:
            return succeed(None)
        d: Deferred[None] = Deferred()
        self._idle.append(d)
        return d

    def _letGo(self, ignored: object) -> None:
        if self._ownThreads is not None:
            self._reactor.removeSystemEventTrigger(self._stopping)
            self._ownThreads.stop()
        self.ledger.close()
        self._done.close()
        for directory in self._held:
            self.privateTree.release(directory)
        self.privateTree.close()
        self._tree.close()
        self.syscalls.close(self._root)
