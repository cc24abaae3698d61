"""
A store in a local directory.

Theory of operation
===================
The root is opened once; when its path leads elsewhere nothing is taken until it
leads back (L{connpool.transfer.stores.rootdir}).  Below it C{.connpool} (which
no L{RelativeName} can name) holds what is private:

C{temporary/}
    files that cannot be resumed, named after their idempotence key, and notes
    about copies on other mounts (L{connpool.transfer.stores.copies});
C{partials/PRINCIPAL/}
    partials and their journals (L{connpool.transfer.stores.partialdir});
C{done/}
    receipts (L{connpool.transfer.stores.receiptlog});
C{ledger/}
    reservations of every process (L{connpool.transfer.stores.reservations}).

Any number of processes may use one root.  Decisions are made on the reactor's
thread; what may block on the disk (syncs, hashing, slow writes) runs in threads
of the store's own (L{connpool.transfer.stores.iothreads}), and small files that must
be durable go together (L{connpool.transfer.stores.groupcommit}).

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

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import StartFailed, StoreError, TransferError
from connpool.interfaces import IDirectoryStore, IFileStore, IPartial
from connpool.transfer.names import INTERNAL, RelativeName, displayName
from connpool.transfer.records import (
    DURABILITIES,
    DirectoryMade,
    FileStat,
    Offer,
    PartialInfo,
    Receipt,
    StoreCaps,
)
from connpool.transfer.stores.admission import Admission
from connpool.transfer.stores.caseindex import Neighbours, keepApart
from connpool.transfer.stores.commit import Finisher
from connpool.transfer.stores.copies import Copies
from connpool.transfer.stores.directories import FRESH, Directory, Followed, Tree
from connpool.transfer.stores.foresight import Foresight
from connpool.transfer.stores.groupcommit import GroupCommit, Small
from connpool.transfer.stores.inheritance import refuseInheritance
from connpool.transfer.stores.iothreads import Lanes
from connpool.transfer.stores.pace import Pace
from connpool.transfer.stores.partialdir import PARTIALS, Shelf, tooManyPartials
from connpool.transfer.stores.publish import Publisher, canLink
from connpool.transfer.stores.receiptcursor import ReceivedOutbox
from connpool.transfer.stores.receiptlog import DoneLog
from connpool.transfer.stores.recovery import Reaper
from connpool.transfer.stores.reservations import Ledger, Space
from connpool.transfer.stores.rootdir import RootDirectory, Trouble
from connpool.transfer.syscalls import (
    CANNOT_SYNC,
    VOLATILE,
    Syscalls,
    asTransferError,
    filesystemType,
    isFile,
)

__all__ = ["LocalStore"]

#: Seconds between tries to note what could not be noted before.
LOOK = 1.0
#: Seconds between looks for what is too old.
REAP = 600.0

_PARTIAL_ID = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})\Z")


@implementer(IFileStore, IDirectoryStore)
class LocalStore:
    """
    @param reactor: for threads and delayed calls.
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
    @param seconds: monotonic ones.  Not the reactor's: on POSIX those jump with
        the wall clock.
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
        seconds: Callable[[], float] = time.monotonic,
        syscalls: Syscalls | None = None,
        threads: Any = None,
    ) -> None:
        self._reactor = reactor
        self._path = os.fspath(path)
        self._quota = quota
        self._ttl = ttl
        self._now = now
        self._seconds = seconds
        self.syscalls = syscalls or Syscalls()
        self.lanes = Lanes(reactor, threads)
        self.pace = Pace()
        self.admission = Admission(self, partial(deferLater, reactor))
        #: principal, key and root of small files under way to those that wait as well
        self._pending: dict[tuple[str, bytes, bytes | None], list[Deferred[Receipt]]] = {}
        self._group = GroupCommit(
            lambda batch: self.lanes.run(self.finisher.batch, batch), reactor.callLater
        )
        self._flushing: Any = None
        self._closed = False
        self._looked = self._flushed = -LOOK
        self._trouble: Trouble | None = None
        self._reaped = seconds() - REAP + LOOK * 60
        self._reaping = False
        self._claim = Neighbours(self.syscalls).claim if names == "portable" else keepApart
        with contextlib.ExitStack() as opened:
            self._open(opened, fileMode & 0o777, dirMode & 0o777, keepExec, minFree)
            #: what lets go of every descriptor
            self._opened = opened.pop_all()

    def _open(
        self,
        opened: contextlib.ExitStack,
        fileMode: int,
        dirMode: int,
        keepExec: bool,
        minFree: int | None,
    ) -> None:
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
        opened.callback(sys.close, self._root)
        try:
            self.filesystem = filesystemType(self._root)
            level = "none" if self.filesystem in VOLATILE else "full"
            self.privateTree = private = Tree(
                sys, self._root, 0o700, accept=self._accept, vanished=self._vanished
            )
            opened.callback(private.close)
            held = [self._hold(opened, INTERNAL, name) for name in ("temporary", "done", "ledger")]
            if level == "full":
                level = self._reach(held)
            self.caps = StoreCaps(durability=level)
            space = Space(sys, self._root, minFree, self._seconds)
            self.ledger = Ledger(sys, self._follow("ledger", opened), space, self._quota)
            opened.callback(self.ledger.close)
            self._done = DoneLog(sys, self._follow("done", opened), self._now, self._seconds)
            opened.callback(self._done.close)
            self._tree = Tree(sys, self._root, dirMode, claim=self._claim)
            opened.callback(self._tree.close)
            self._rootDirectory = RootDirectory(
                sys, self._path, self._root, (private, self._tree), self._log
            )
            self._foresight = Foresight(sys, self._tree, self._claim, lambda: not self._closed)
            self.shelf = Shelf(sys, private)
            self.finisher = Finisher(
                sys,
                self._tree,
                private,
                Publisher(
                    sys,
                    Copies(sys, private, self._tree),
                    canLink=canLink(sys, held[0].fd),
                    claim=self._claim,
                ),
                self._done,
                reach=DURABILITIES.index(level),
                fileMode=fileMode,
                keepExec=keepExec,
                now=self._now,
            )
            self.reaper = Reaper(
                sys, self.shelf, self.finisher, private, self._ttl, self._now, self._status
            )
        except (OSError, TransferError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise StartFailed(
                f"directory {shown} cannot be used: {why}; it must be writable, and {INTERNAL} in"
                " it a directory of its own"
            ) from None

    def _reach(self, directories: Sequence[Directory]) -> str:
        """
        @return: the strongest durability that the disk reaches; these are synced.
        """
        try:
            for directory in directories:
                self.privateTree.sync(directory)
        except OSError as error:
            if error.errno not in CANNOT_SYNC:
                raise
            return "data"
        return "full"

    def _hold(self, opened: contextlib.ExitStack, *components: str) -> Directory:
        directory = self.privateTree.acquire(components, create=True)
        opened.callback(self.privateTree.release, directory)
        return directory

    def _follow(self, name: str, opened: contextlib.ExitStack) -> Followed:
        followed = Followed(self.privateTree, (INTERNAL, name))
        opened.callback(followed.close)
        return followed

    def _accept(self, directory: Directory) -> None:
        if len(directory.components) == 1:
            self._checkOwner(directory)
        refuseInheritance(self.syscalls, directory.fd)

    def _vanished(self, components: tuple[str, ...]) -> None:
        # a principal's own directory may be removed by whoever finds it empty
        if len(components) <= 2:
            self._log.warn(
                "somebody removed or replaced {name} in directory {directory}; it is made"
                " again, and the unfinished files and receipts that were in it are lost",
                name=" / ".join(components),
                directory=displayName(self._path),
            )

    def _checkOwner(self, internal: Directory) -> None:
        """
        Refuse a directory in which others may rename: they could have us publish
        what they like.
        """
        status = self.syscalls.fstat(internal.fd)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid() or mode & 0o022:
            raise StoreError(
                f"{INTERNAL} belongs to user"
                f" {status.st_uid} with mode {mode:04o}; it must be private to user"
                f" {os.geteuid()}: chown it and chmod 700, or remove it if nobody knows it"
            )

    # -- IFileStore ---------------------------------------------------------

    def open(self, offer: Offer) -> Deferred[IPartial | Receipt]:
        opening: Deferred[Any] = Deferred.fromCoroutine(self._openNow(offer))
        return self.lanes.during(opening)

    def put(self, offer: Offer, data: bytes, root: bytes | None) -> Receipt | Deferred[Receipt]:
        self._refuse()
        if offer.key is not None:
            others = self._pending.get((offer.principal, offer.key, root))
            if others is not None:
                d: Deferred[Receipt] = Deferred()
                others.append(d)
                return d
            receipt = self.finisher.finished(offer, len(data), root)
            if receipt is not None:
                return receipt
        if not self.ledger.fits(len(data)):
            raise self.ledger.full()
        if self.finisher.level(offer):
            small = Small(offer, data, root, Deferred())
            self._group.add(small)
            return self._share(offer, root, small.done)
        if not self.pace.inline:
            stored = self.lanes.run(self._timedPut, offer, data, root, False)
            return self._share(offer, root, stored)
        if offer.key is not None and self._flushing is None:
            self._flushing = self._reactor.callLater(0, self._flush)
        return self._timedPut(offer, data, root, True)

    def makeDirectory(
        self, name: RelativeName, modified: int | None, durability: str, make: bool = True
    ) -> Deferred[DirectoryMade | None]:
        self._refuse()
        if not self.ledger.fits(0):
            raise self.ledger.full()
        return self.lanes.run(self.finisher.directory, name, modified, durability, make)

    def trouble(self) -> str | None:
        now = self._seconds()
        if now - self._looked >= FRESH:
            self._look(now)
        if now - self._flushed >= LOOK:
            self._flushed = now
            if self._flushing is None:
                self._flush()  # what could not be noted before
            if now - self._reaped >= REAP and not self._reaping and not self._closed:
                self.reap()
        return self.ledger.trouble() if self._trouble is None else self._trouble.text

    def stat(self, name: RelativeName) -> Deferred[FileStat | None]:
        return maybeDeferred(self._stat, name)

    def foresee(self, offer: Offer, root: bytes | None, ahead: int, whole: bool) -> Deferred[str]:
        foreseeing: Deferred[str] = Deferred.fromCoroutine(self._foresee(offer, root, ahead, whole))
        return self.lanes.during(foreseeing)

    def partials(self, principal: str | None = None) -> Deferred[list[PartialInfo]]:
        return self.lanes.run(self._list, principal)

    def delete(self, info: PartialInfo) -> Deferred[None]:
        return self.lanes.run(self._delete, info.partialId)

    def close(self) -> Deferred[None]:
        if self._closed:
            return succeed(None)
        self._closed = self.admission.closed = True
        if self._flushing is not None:
            self._flushing.cancel()
        self._flush()
        d: Deferred[Any] = gatherResults(
            [each.suspend() for each in self.admission.active], consumeErrors=True
        )
        d.addBoth(lambda _: self._group.drained())
        d.addBoth(lambda _: self.lanes.quiet())
        return d.addBoth(self._letGo)

    def reap(self) -> Deferred[None]:
        """
        Finish what a process that died was publishing, and remove what is too
        old.  Happens by itself when files arrive.
        """
        self._reaping = True
        self._reaped = self._seconds()
        return self.lanes.run(self.reaper.look, self._reaped).addBoth(self._reapEnded)

    def receivedOutbox(self) -> ReceivedOutbox:
        """
        @return: the receipts that a program is still to be told about.
        @raise StartFailed: another process has them; one line.
        """
        return ReceivedOutbox(self.syscalls, Followed(self.privateTree, (INTERNAL, "done")))

    async def _openNow(self, offer: Offer) -> IPartial | Receipt:
        self._looked = -LOOK
        self._refuse()
        try:
            return await self.admission.open(offer)
        except OSError as error:
            doing = f'receiving "{offer.name}"'
            raise asTransferError(error, doing, self.syscalls, self._root) from None

    async def _foresee(self, offer: Offer, root: bytes | None, ahead: int, whole: bool) -> str:
        self._looked = -LOOK
        self._refuse()
        try:
            count, free, suspended = 0, 0, 0
            if not whole:
                count, free, suspended = await self.lanes.run(self.shelf.tally, offer.principal)
            if offer.resumeKey is not None and count + 1 - PARTIALS > free:
                raise tooManyPartials()
            quota = None if offer.identity is None else offer.identity.quota
            self.ledger.foresee(offer.principal, quota, offer.size, ahead, suspended, whole=whole)
            # it may read for long, which keeps nobody else waiting there
            status: str = await self.lanes.reread(self._foresight.status, offer, root)
            return status
        except OSError as error:
            doing = f'looking for "{offer.name}"'
            raise asTransferError(error, doing, self.syscalls, self._root) from None

    # -- small files ---------------------------------------------------------

    def _timedPut(self, offer: Offer, data: bytes, root: bytes | None, later: bool) -> Receipt:
        began = time.perf_counter()
        receipt = self.finisher.put(offer, data, root, later=later)
        self.pace.took(time.perf_counter() - began)
        return receipt

    def _flush(self) -> None:
        """
        Do the work that small files of this turn of the reactor left.
        """
        self._flushing = None
        try:
            self.finisher.flush()
        except (OSError, TransferError) as error:
            # the files are where they belong, and it is tried again
            why = error.strerror if isinstance(error, OSError) else str(error)
            self._log.warn("cannot note yet what was received: {why}", why=why)

    def _share(self, offer: Offer, root: bytes | None, d: Deferred[Receipt]) -> Deferred[Receipt]:
        """
        Let repetitions of C{offer} that come before C{d} fires have its result.
        """
        if offer.key is None:
            return d
        index = (offer.principal, offer.key, root)
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
            raise StoreError(self._trouble.told)

    def _look(self, now: float) -> None:
        self._looked = now
        self._trouble = self._rootDirectory.trouble()

    def _stat(self, name: RelativeName) -> FileStat | None:
        status = self._status(name)
        if status is None or not isFile(status):
            return None
        return FileStat(status.st_size, status.st_mtime_ns)

    def _status(self, name: RelativeName) -> os.stat_result | None:
        try:
            directory = self._tree.acquire(name.components[:-1], create=False)
        except (OSError, TransferError):
            return None
        try:
            return self.syscalls.stat(
                name.components[-1], dir_fd=directory.fd, follow_symlinks=False
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise asTransferError(error, f'looking at "{name}"') from None
        finally:
            self._tree.release(directory)

    def _list(self, principal: str | None) -> list[PartialInfo]:
        found = []
        for entry in self.shelf.everything():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found.append(self.shelf.info(entry))
        return [info for info in found if principal in {None, info.principal}]

    def _delete(self, partialId: str) -> None:
        found = _PARTIAL_ID.match(partialId)
        if found is None:
            raise StoreError(f'"{displayName(partialId)}" is not the id of a partial')
        self.shelf.removeFound((found[1], found[2]))

    def _reapEnded(self, result: Any) -> None:
        self._reaping = False
        for failure in [result] if isinstance(result, Failure) else result:
            self._log.failure("cannot finish or remove what was left", failure=failure)

    def _letGo(self, ignored: object) -> None:
        self.lanes.stop()
        self._opened.close()
