"""
A store in a local directory.

Theory of operation
===================
The root is opened once; when its path leads elsewhere nothing is taken until it
leads back (L{connpool.transfer.stores.directories.RootDirectory}).  Below it C{.connpool} (which
no L{RelativeName} can name) holds what is private:

C{temporary/}
    files that cannot be resumed, named after their idempotence key, and notes
    about copies on other mounts (L{connpool.transfer.stores.publish});
C{partials/PRINCIPAL/}
    partials and their journals (L{connpool.transfer.stores.partialdir});
C{done/}
    receipts (L{connpool.transfer.stores.receiptlog});
C{ledger/}
    reservations of every process (L{connpool.transfer.stores.reservations}).

Any number of processes may use one root.  Decisions are made on the reactor's
thread; what may block on the disk (syncs, hashing, slow writes) runs in threads
of the store's own (L{connpool.transfer.iothreads}), and small files that must
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
published ones belong to the operator.
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

from twisted.internet.defer import Deferred, fail, gatherResults, maybeDeferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import StartFailed, StoreError, TransferError
from connpool.interfaces import (
    IBatchStore,
    IDirectoryStore,
    IFileStore,
    IInspectableStore,
    INotingStore,
    IPartial,
    IPartialHolder,
    IReadableStore,
    IRememberingStore,
    ISparseStore,
    IUpdateStore,
)
from connpool.transfer.iothreads import IOThreads
from connpool.transfer.names import INTERNAL, RelativeName, displayName
from connpool.transfer.records import (
    DURABILITIES,
    AskedFile,
    DirectoryMade,
    FileRange,
    FileStat,
    Listing,
    Offer,
    PartialInfo,
    Receipt,
    SmallFile,
)
from connpool.transfer.stores.admission import Admission
from connpool.transfer.stores.caseindex import CaseIndex, keepApart
from connpool.transfer.stores.commit import Commit, receiptOr
from connpool.transfer.stores.comparison import Comparison
from connpool.transfer.stores.directories import (
    LOOK_SECONDS,
    Directories,
    Directory,
    Followed,
    RootDirectory,
    Trouble,
    refuseInheritance,
)
from connpool.transfer.stores.foresight import Foresight
from connpool.transfer.stores.groupcommit import GroupCommit
from connpool.transfer.stores.makedirectories import AskedDirectory, MakeDirectories
from connpool.transfer.stores.partialdir import MAX_PARTIALS, PartialDirectory, tooManyPartials
from connpool.transfer.stores.parts import StoreParts
from connpool.transfer.stores.publish import Publisher, canLink
from connpool.transfer.stores.reading import Reading
from connpool.transfer.stores.receiptcursor import ReceiptCursor
from connpool.transfer.stores.receiptlog import ReceiptLog
from connpool.transfer.stores.recovery import Recovery
from connpool.transfer.stores.reservations import Reservations, Space
from connpool.transfer.stores.syncing import BatchSync
from connpool.transfer.stores.writability import Writability
from connpool.transfer.syscalls import (
    CANNOT_SYNC,
    VOLATILE,
    Syscalls,
    asTransferError,
    filesystemType,
    isFile,
    reasonOf,
)

__all__ = ["LocalStore"]

#: Seconds that the small files of one call may keep the reactor; the rest goes to a thread.
INLINE_BATCH_SECONDS = 0.05
#: Seconds between looks for what is too old.
RECOVERY_SECONDS = 600.0
#: Memory for what a store remembers, about: where its receipts lie, and with the room that
#: these leave the names in its directories.
REMEMBERED_BYTES = 64 << 20
FIRST_RECOVERY_SECONDS = 60.0

Outcomes = list[Receipt | Failure]

_PARTIAL_ID = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})\Z")
#: The name in a question that is about none.
_NOBODY = RelativeName.parse("-")


@implementer(IFileStore, IBatchStore, IDirectoryStore, IInspectableStore, IReadableStore)
@implementer(INotingStore, IRememberingStore, ISparseStore, IUpdateStore)
class LocalStore:
    """
    A store in a local directory.

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
    @ivar admission: the partials that are in use.
    @ivar parts: the parts that partials share.
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
        self._ttl = self.keptSeconds = ttl
        self._now = now
        self._seconds = seconds
        self._sys = syscalls or Syscalls()
        self._threads = IOThreads(reactor, threads)
        self._group = GroupCommit(
            partial(self._threads.run, self._batch), reactor.callLater, lambda file: len(file.data)
        )
        self._closed = False
        self._looked = -LOOK_SECONDS
        self._trouble: Trouble | None = None
        self._recovered = seconds() - RECOVERY_SECONDS + FIRST_RECOVERY_SECONDS
        self._recovering = False
        self._names = CaseIndex(self._sys, lambda: REMEMBERED_BYTES - self._receipts.takenBytes)
        self._claim = self._names.claim if names == "portable" else keepApart
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
        sys = self._sys
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
            self._private = private = Directories(
                sys, self._root, 0o700, accept=self._accept, vanished=self._vanished
            )
            opened.callback(private.close)
            held = [self._hold(opened, INTERNAL, name) for name in ("temporary", "done", "ledger")]
            if level == "full":
                level = self._reach(held)
            space = Space(sys, self._root, minFree, self._seconds)
            reservations = Reservations(sys, self._follow("ledger", opened), space, self._quota)
            opened.callback(reservations.close)
            receiptLog = ReceiptLog(sys, self._follow("done", opened), self._now, self._seconds)
            self._receipts = receiptLog
            opened.callback(receiptLog.close)
            self._directories = Directories(sys, self._root, dirMode, claim=self._claim)
            opened.callback(self._directories.close)
            self._rootDirectory = RootDirectory(
                sys, self._path, self._root, (private, self._directories), self._log
            )
            self._writability = Writability(
                *(sys, self._threads, private, (INTERNAL, "temporary"), shown, self._seconds)
            )
            self._reading = Reading(sys, self._directories)
            self._foresight = Foresight(
                sys, self._directories, self._claim, lambda: not self._closed
            )
            self._comparison = Comparison(
                *(sys, self._directories, lambda: Followed(private, (INTERNAL, "done"))),
                lambda: not self._closed,
            )
            opened.callback(self._comparison.close)
            partials = PartialDirectory(sys, private)
            publisher = Publisher(
                sys, private, self._directories, canLink(sys, held[0].fd), self._claim
            )
            sync = BatchSync(sys)
            commit = Commit(
                sys,
                self._directories,
                private,
                publisher,
                receiptLog,
                sync,
                reach=DURABILITIES.index(level),
                fileMode=fileMode,
                keepExec=keepExec,
                now=self._now,
            )
            make = MakeDirectories(sys, self._directories, sync, commit.reached, self._now)
            self._making = GroupCommit(partial(self._threads.run, make), self._reactor.callLater)
            recovery = Recovery(
                sys,
                partials,
                commit,
                publisher,
                receiptLog,
                private,
                self._ttl,
                self._now,
                self._status,
            )
            self.parts = StoreParts(sys, self._threads, partials, reservations, commit, recovery)
            self.admission = Admission(self.parts, partial(deferLater, self._reactor))
        except (OSError, TransferError) as error:
            raise StartFailed(
                f"directory {shown} cannot be used: {reasonOf(error)}; it must be writable, and"
                f" {INTERNAL} in it a directory of its own"
            ) from None

    def _reach(self, directories: Sequence[Directory]) -> str:
        """
        Return the strongest durability that the disk reaches; these are synced.
        """
        try:
            for directory in directories:
                self._private.sync(directory)
        except OSError as error:
            if error.errno not in CANNOT_SYNC:
                raise
            return "data"
        return "full"

    def _hold(self, opened: contextlib.ExitStack, *components: str) -> Directory:
        directory = self._private.acquire(components, create=True)
        opened.callback(self._private.release, directory)
        return directory

    def _follow(self, name: str, opened: contextlib.ExitStack) -> Followed:
        followed = Followed(self._private, (INTERNAL, name))
        opened.callback(followed.close)
        return followed

    def _accept(self, directory: Directory) -> None:
        if len(directory.components) == 1:
            self._checkOwner(directory)
        refuseInheritance(self._sys, directory.fd)

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
        status = self._sys.fstat(internal.fd)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid() or mode & 0o022:
            raise StoreError(
                f"{INTERNAL} belongs to user"
                f" {status.st_uid} with mode {mode:04o}; it must be private to user"
                f" {os.geteuid()}: chown it and chmod 700, or remove it if nobody knows it"
            )

    # -- IFileStore ---------------------------------------------------------

    def open(
        self, offer: Offer, holder: IPartialHolder | None = None
    ) -> Deferred[IPartial | Receipt]:
        opening: Deferred[Any] = Deferred.fromCoroutine(self._openNow(offer, holder))
        return self._threads.during(opening)

    def put(
        self, offer: Offer, data: bytes | memoryview, root: bytes | None
    ) -> Receipt | Deferred[Receipt]:
        stored = self.putAll([SmallFile(offer, data, root)])
        if isinstance(stored, Deferred):
            return stored.addCallback(lambda outcomes: outcomes[0])
        return receiptOr(stored[0])

    def putAll(self, files: Sequence[SmallFile]) -> Outcomes | Deferred[Outcomes]:
        self._refuse()
        commit, reservations = self.parts.commit, self.parts.reservations
        latency = self._threads.latency
        if not reservations.fits(sum([len(file.data) for file in files])):
            raise reservations.full()
        waiting = {file.offer.durability: file.offer for file in files}.values()
        if not latency.inline or any(map(commit.level, waiting)):
            return self._group.add(files)
        began = time.perf_counter()
        outcomes = commit.batch(files, began + INLINE_BATCH_SECONDS)
        took = time.perf_counter() - began
        if took >= INLINE_BATCH_SECONDS:
            latency.took(took)
        rest = files[len(outcomes) :]
        if not rest:
            return outcomes
        return self._group.add(rest).addCallback(lambda others: outcomes + others)

    def makeDirectory(
        self, name: RelativeName, modified: int | None, durability: str, make: bool = True
    ) -> Deferred[DirectoryMade | None]:
        self._refuse()
        if not self.parts.reservations.fits(0):
            raise self.parts.reservations.full()
        asked = AskedDirectory(name, modified, durability, make)
        return self._making.add([asked]).addCallback(lambda outcomes: outcomes[0])

    def find(
        self, principal: str, resumeKey: bytes, key: bytes, network: str = ""
    ) -> Deferred[Offer | Receipt | None]:
        probe = Offer(
            name=_NOBODY,
            transferId="",
            principal=principal,
            key=key,
            resumeKey=resumeKey,
            network=network,
        )
        return self._threads.during(Deferred.fromCoroutine(self._find(probe)))

    @property
    def rememberedBytes(self) -> int:
        receipts = self._receipts.takenBytes + self._comparison.takenBytes
        return self._names.takenBytes + receipts

    def trouble(self) -> str | None:
        self._lookAround()
        if self._trouble is not None:
            return self._trouble.text
        written = None if self._closed else self._writability.trouble()
        return self.parts.reservations.trouble() or written

    def _lookAround(self) -> None:
        """
        Do what is due: look at the root, reap.
        """
        now = self._seconds()
        if now - self._looked >= LOOK_SECONDS:
            self._look(now)
        due = now - self._recovered >= RECOVERY_SECONDS
        if due and not self._recovering and not self._closed:
            self.reap()

    def stat(self, name: RelativeName) -> Deferred[FileStat | None]:
        return maybeDeferred(self._stat, name)

    def listing(self, directory: RelativeName | None, after: str, limit: int) -> Deferred[Listing]:
        return self._reread(self._reading.listing, directory, after, limit)

    def read(self, name: RelativeName, start: int, end: int) -> Deferred[FileRange]:
        return self._reread(self._reading.read, name, start, end)

    def _reread(self, call: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        try:
            self._refuse()
        except StoreError as e:
            return fail(e)
        return self._threads.reread(call, *arguments)

    def foresee(self, offer: Offer, root: bytes | None, ahead: int, whole: bool) -> Deferred[str]:
        foreseeing: Deferred[str] = Deferred.fromCoroutine(self._foresee(offer, root, ahead, whole))
        return self._threads.during(foreseeing)

    def compare(self, principal: str, files: Sequence[AskedFile], digest: str) -> Deferred[bytes]:
        return self._threads.reread(self._comparison.compare, principal, files, digest)

    def partials(self, principal: str | None = None) -> Deferred[list[PartialInfo]]:
        return self._threads.run(self._list, principal)

    def delete(self, info: PartialInfo) -> Deferred[None]:
        return self._threads.run(self._delete, info.partialId)

    def close(self) -> Deferred[None]:
        if self._closed:
            return succeed(None)
        self._closed = self.admission.closed = True
        d: Deferred[Any] = gatherResults(
            [each.suspend() for each in self.admission.active], consumeErrors=True
        )
        d.addBoth(lambda _: self._group.drained())
        d.addBoth(lambda _: self._making.drained())
        d.addBoth(lambda _: self._threads.quiet())
        return d.addBoth(self._letGo)

    def reap(self) -> Deferred[None]:
        """
        Finish what a process that died was publishing, and remove what is too
        old.  Happens by itself when files arrive.
        """
        self._recovering = True
        self._recovered = self._seconds()
        return self._threads.run(self.parts.recovery.look, self._recovered).addBoth(self._reapEnded)

    def placeOf(self, receipt: Receipt) -> dict[str, str]:
        return {"directory": os.path.abspath(self._path)}

    def receivedOutbox(self, more: Callable[[], None] = lambda: None) -> ReceiptCursor:
        return ReceiptCursor(self._sys, Followed(self._private, (INTERNAL, "done")))

    async def _openNow(self, offer: Offer, holder: IPartialHolder | None) -> IPartial | Receipt:
        self._looked = -LOOK_SECONDS
        self._refuse()
        try:
            return await self.admission.open(offer, holder)
        except OSError as error:
            doing = f'receiving "{offer.name}"'
            raise asTransferError(error, doing, self._sys, self._root) from None

    async def _find(self, probe: Offer) -> Offer | Receipt | None:
        self._refuse()
        try:
            return await self.admission.find(probe)
        except OSError as error:
            raise asTransferError(error, "looking for an upload", self._sys, self._root) from None

    async def _foresee(self, offer: Offer, root: bytes | None, ahead: int, whole: bool) -> str:
        self._looked = -LOOK_SECONDS
        self._refuse()
        try:
            count, free, suspended = 0, 0, 0
            if not whole:
                count, free, suspended = await self._threads.run(self.parts.partials.tally, offer)
            if offer.resumeKey is not None and count + 1 - MAX_PARTIALS > free * offer.evicts:
                raise tooManyPartials()
            quota = None if offer.identity is None else offer.identity.quota
            self.parts.reservations.foresee(
                *(offer.principal, quota, offer.size, ahead, suspended),
                whole=whole,
                data=offer.dataBytes,
            )
            # it may read for long, which keeps nobody else waiting there
            status: str = await self._threads.reread(self._foresight.status, offer, root)
            return status
        except OSError as error:
            doing = f'looking for "{offer.name}"'
            raise asTransferError(error, doing, self._sys, self._root) from None

    def _batch(self, files: Sequence[SmallFile]) -> Outcomes:
        began = time.perf_counter()
        outcomes = self.parts.commit.batch(files)
        if not self._threads.latency.inline:
            self._threads.latency.took((time.perf_counter() - began) / len(files), len(files))
        return outcomes

    # -- the rest ------------------------------------------------------------

    def _refuse(self) -> None:
        if self._closed:
            raise StoreError("the receiver is stopping")
        # a full disk is refused where the size is known, as NoSpace
        self._lookAround()
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
            directory = self._directories.acquire(name.components[:-1], create=False)
        except (OSError, TransferError):
            return None
        try:
            return self._sys.statIfThere(name.components[-1], directory.fd)
        except OSError as error:
            raise asTransferError(error, f'looking at "{name}"') from None
        finally:
            self._directories.release(directory)

    def _list(self, principal: str | None) -> list[PartialInfo]:
        found = []
        for entry in self.parts.partials.everything():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found.append(self.parts.partials.info(entry))
        return [info for info in found if principal in {None, info.principal}]

    def _delete(self, partialId: str) -> None:
        found = _PARTIAL_ID.match(partialId)
        if found is None:
            raise StoreError(f'"{displayName(partialId)}" is not the id of a partial')
        self.parts.partials.removeFound((found[1], found[2]))

    def _reapEnded(self, result: Any) -> None:
        self._recovering = False
        if isinstance(result, Failure):
            self._log.failure("cannot look for what was left", failure=result)
        elif result:
            self._log.warn(
                "cannot finish or remove {count} of the remains of earlier processes: {why}",
                count=len(result),
                why=_asText(result[0]),
            )

    def _letGo(self, ignored: object) -> None:
        self._threads.stop()
        self._opened.close()


def _asText(why: OSError | TransferError) -> str:
    if isinstance(why, TransferError):
        return str(why)
    name = f"{displayName(why.filename)}: " if isinstance(why.filename, str) else ""
    return f"{name}{why.strerror}"
