"""
A store in a local directory.

Theory of operation
===================
The root is opened once.  Below it C{.connpool} (which no L{RelativeName} can
name) holds what is private:

C{temporary/}
    small files on their way, named after their idempotence key;
C{partials/PRINCIPAL/}
    partials and their journals; the names are hashes.

A file is written there, then L{finish} takes the steps of the asked level in
this order: mode and time; sync the descriptor that wrote; publish; sync the
directories; acknowledge.  A name never precedes its synced data.

Known limits: a directory that can be entered but not read cannot be synced and
is refused.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from connpool.errors import StartFailed, StoreError, TransferError
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
from connpool.transfer.stores.pace import Pace
from connpool.transfer.stores.partial import LocalPartial
from connpool.transfer.stores.publish import Publisher, Source, canLink
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

#: Threads for syncs, and for writes that take long.
THREADS = 4
#: A modification time in the future is taken up to this many seconds ahead.
FUTURE = 86400
#: Seconds between looks at whether the root's path still leads to it.
LOOK = 1.0


@implementer(IFileStore)
class LocalStore:
    """
    @param reactor: for threads and timers.
    @param path: the root; it must exist.
    @param fileMode: permission bits of published files, whatever the umask.
    @param dirMode: permission bits of directories made for them.
    @param keepExec: give the exec bits of the source where C{fileMode} can read.
    @param now: wall-clock seconds.
    @raise StartFailed: if C{path} cannot be used; one line.
    """

    def __init__(
        self,
        reactor: Any,
        path: str | os.PathLike[str],
        *,
        fileMode: int = 0o640,
        dirMode: int = 0o750,
        keepExec: bool = False,
        now: Callable[[], float] = time.time,
        syscalls: Syscalls | None = None,
        threads: Any = None,
    ) -> None:
        self._reactor = reactor
        self._path = os.fspath(path)
        self._fileMode = fileMode & 0o777
        self._keepExec = keepExec
        self._now = now
        self._sys = syscalls or Syscalls()
        self._threads = threads
        self._ownThreads: ThreadPool | None = None
        self._pace = Pace()
        self._active: set[LocalPartial] = set()
        self._working = 0
        self._idle: list[Deferred[None]] = []
        self._closed = False
        self._looked = -LOOK
        self._trouble: str | None = None
        self._open(dirMode)

    def _open(self, dirMode: int) -> None:
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
        try:
            status = sys.fstat(self._root)
            self._identity = (status.st_dev, status.st_ino)
            self.filesystem = filesystemType(self._root)
            level = "none" if self.filesystem in VOLATILE else "full"
            self.caps = StoreCaps(durability=level)
            self._reach = DURABILITIES.index(level)
            self._private = Tree(sys, self._root, 0o700)
            self._internal = self._private.acquire((INTERNAL,), create=True)
            self._temporary = self._private.acquire((INTERNAL, "temporary"), create=True)
            self._publisher = Publisher(sys, canLink=canLink(sys, self._temporary.fd))
            self._tree = Tree(sys, self._root, dirMode & 0o777)
        except (OSError, TransferError) as error:
            sys.close(self._root)
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise StartFailed(
                f"directory {shown} cannot be used: {why}; it must be writable and {INTERNAL} in"
                " it a directory of its own"
            ) from None

    # -- IFileStore ---------------------------------------------------------

    def open(self, offer: Offer) -> Deferred[IPartial | Receipt]:
        return maybeDeferred(self._openNow, offer)

    def put(self, offer: Offer, data: bytes, root: bytes | None) -> Receipt | Deferred[Receipt]:
        self._refuseIfTrouble()
        level = self.level(offer)
        if level == 0:
            return self._put(offer, data, root)
        return self.inThread(self._put, offer, data, root)

    def trouble(self) -> str | None:
        now = self._reactor.seconds()
        if now - self._looked >= LOOK:
            self._looked = now
            self._look()
        return self._trouble

    def stat(self, name: RelativeName) -> Deferred[FileStat | None]:
        return maybeDeferred(self._stat, name)

    def partials(self, principal: str | None = None) -> Deferred[list[PartialInfo]]:
        return succeed([])

    def delete(self, info: PartialInfo) -> Deferred[None]:
        return succeed(None)

    def close(self) -> Deferred[None]:
        if self._closed:
            return succeed(None)
        self._closed = True
        ends = [partial.suspend() for partial in list(self._active)]
        from twisted.internet.defer import gatherResults

        d: Deferred[Any] = gatherResults(ends, consumeErrors=True)
        d.addBoth(lambda _: self._quiet())
        d.addBoth(lambda _: self._letGo())
        return d

    # -- for the parts of this store ----------------------------------------

    def level(self, offer: Offer) -> int:
        """
        @return: the index in C{DURABILITIES} that is asked for and reachable.
        """
        return min(DURABILITIES.index(offer.durability), self._reach)

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
        d = deferToThreadPool(self._reactor, self._threads, function, *arguments)
        return d.addBoth(self._worked)

    def _worked(self, result: Any) -> Any:
        self._working -= 1
        if not self._working:
            idle, self._idle = self._idle, []
            for d in idle:
                d.callback(None)
        return result

    def finish(self, offer: Offer, source: Source, root: bytes | None) -> Receipt:
        """
        Everything from the last byte to the receipt; blocks on the disk.

        @raise TransferError: as L{IPartial.commit} fails; the source is still
            there.
        """
        sys = self._sys
        level = self.level(offer)
        directory = None
        try:
            mode = self._fileMode
            if self._keepExec and offer.executable:
                mode |= (mode & 0o444) >> 2
            sys.fchmod(source.fd, mode)
            now = self._now()
            if offer.modified is not None:
                modified = min(max(offer.modified, 0), int((now + FUTURE) * 1e9))
                sys.utime(source.fd, ns=(modified, modified))
            if level:
                sys.fsync(source.fd)
            directory = self._tree.acquire(offer.name.components[:-1], create=True)
            published = self._publisher.publish(
                source, directory, offer.name, offer.ifExists, syncCopy=level > 0
            )
            if level == 2:
                self._tree.sync(directory)
            sys.remove(source.name, source.directory)
        except OSError as error:
            raise asTransferError(error, f'storing "{offer.name}"') from None
        finally:
            if directory is not None:
                self._tree.release(directory)
        return Receipt(
            transferId=offer.transferId,
            name=published.name.path,
            wanted=offer.name.path,
            size=source.size,
            status=published.status,
            durability=DURABILITIES[level],
            filesystem=self.filesystem,
            integrity="unverified" if root is None else "verified",
            digest=offer.digest,
            root=None if root is None else root.hex(),
            protocol=offer.protocol,
            principal=offer.principal,
            finished=now,
        )

    def left(self, partial: LocalPartial) -> None:
        """
        C{partial} has let go of its descriptors.
        """
        self._active.discard(partial)

    # -- the rest ------------------------------------------------------------

    def _refuseIfTrouble(self) -> None:
        if self._closed:
            raise StoreError("the receiver is stopping")
        trouble = self.trouble()
        if trouble is not None:
            raise StoreError(trouble)

    def _look(self) -> None:
        try:
            status = self._sys.stat(self._path)
            moved = (status.st_dev, status.st_ino) != self._identity
        except OSError:
            moved = True
        self._trouble = (
            f"directory {displayName(self._path)} was moved away or replaced; restart the receiver"
            if moved
            else None
        )

    def _openNow(self, offer: Offer) -> IPartial:
        self._looked = -LOOK
        self._refuseIfTrouble()
        name = secrets.token_hex(16)
        try:
            fd = self._sys.open(name, NEW, 0o600, dir_fd=self._temporary.fd)
        except OSError as error:
            raise asTransferError(error, f'receiving "{offer.name}"') from None
        partial = LocalPartial(self, self._sys, self._pace, offer, fd, self._temporary.fd, name)
        self._active.add(partial)
        return partial

    def _put(self, offer: Offer, data: bytes, root: bytes | None) -> Receipt:
        sys = self._sys
        name = secrets.token_hex(16)
        directory = self._temporary.fd
        try:
            fd = sys.open(name, NEW, 0o600, dir_fd=directory)
            try:
                try:
                    sys.writeAll(fd, data, 0)
                    return self.finish(
                        offer, Source(fd, directory, name, len(data), fresh=True), root
                    )
                except BaseException:
                    sys.remove(name, directory)
                    raise
            finally:
                sys.close(fd)
        except OSError as error:
            raise asTransferError(error, f'storing "{offer.name}"') from None

    def _stat(self, name: RelativeName) -> FileStat | None:
        try:
            directory = self._tree.acquire(name.components[:-1], create=False)
        except (OSError, TransferError):
            return None
        try:
            status = self._sys.stat(name.components[-1], dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise asTransferError(error, f'looking at "{name}"') from None
        finally:
            self._tree.release(directory)
        return FileStat(status.st_size, status.st_mtime_ns) if isFile(status) else None

    def _quiet(self) -> Deferred[None]:
        if not self._working:
            return succeed(None)
        d: Deferred[None] = Deferred()
        self._idle.append(d)
        return d

    def _letGo(self) -> None:
        if self._ownThreads is not None:
            self._reactor.removeSystemEventTrigger(self._stopping)
            self._ownThreads.stop()
        self._private.release(self._temporary)
        self._private.release(self._internal)
        self._private.close()
        self._tree.close()
        self._sys.close(self._root)
