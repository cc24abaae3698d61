"""
From the last byte to the receipt.

Theory of operation
===================
One file and a batch take the same steps, in this order: find or make the
directory; what it hands down, mode and time; sync the descriptor that wrote;
note that publishing begins; publish; sync the directories; done record; unlink
the private name; acknowledge.  A name never precedes its synced data, an
acknowledgement never precedes anything it promises, and the private name goes
last because it is the evidence: a private file with two links was published,
whoever died or failed in between.  Once the done record is written nothing can
fail any more.

C{none} leaves out the syncs, C{data} those of directories.  What is reached
depends on where the name is: a file system in memory may be mounted there, or a
disk in a store that is in memory.

Everything here may block on the disk and may run in any thread.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import attrs
from twisted.python.failure import Failure

from connpool.errors import SyncFailed, TransferError
from connpool.transfer.names import RelativeName
from connpool.transfer.records import DURABILITIES, DirectoryMade, Offer, Receipt
from connpool.transfer.stores.directories import Directories, Directory
from connpool.transfer.stores.groupcommit import Batch, Small, SyncChoice
from connpool.transfer.stores.publish import TEMPORARY, Published, Publisher, Source, inherit
from connpool.transfer.stores.receiptlog import ReceiptLog, receiptId
from connpool.transfer.syscalls import (
    CANNOT_SYNC,
    EXISTING,
    NEW,
    VOLATILE,
    Syscalls,
    asTransferError,
)

__all__ = ["Commit", "temporaryName"]

#: Done records that are put off while they cannot be written.
DEFERRED_RECEIPTS = 4096

#: Durability that is asked for to its index in C{DURABILITIES}; the strongest for C{best}.
_WANTED = {"none": 0, "data": 1, "full": 2, "best": 2}

_prefix = secrets.token_hex(8)
_numbers = count()


def temporaryName(offer: Offer) -> str:
    """
    The private name of a file that cannot be resumed.

    The same key gives the same name, so that a repetition finds what a
    process that died had published.
    """
    if offer.key is None:
        return f"{_prefix}-{os.getpid()}-{next(_numbers)}"
    return receiptId(offer.key, offer.principal).hex()


@attrs.define
class _Item:
    small: Small
    source: Source
    directory: Directory | None = None
    receipt: Receipt = attrs.field(init=False)


class Commit:
    """
    The steps from the last byte to the receipt.

    @param directories: the published directories.
    @param private: the private directories.
    @param reach: index in C{DURABILITIES} of the strongest level there is on
        the file system of the private files.
    @param fileMode: permission bits of published files, whatever the umask.
    @param keepExec: give the source's exec bit where C{fileMode} can read.
    @param now: wall-clock seconds.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        directories: Directories,
        private: Directories,
        publisher: Publisher,
        receiptLog: ReceiptLog,
        *,
        reach: int,
        fileMode: int,
        keepExec: bool,
        now: Callable[[], float],
    ) -> None:
        self._sys = syscalls
        self._directories = directories
        self._private = private
        self._publisher = publisher
        self._receiptLog = receiptLog
        self._reach = reach
        #: whether a name was published on a disk although the private files are in memory
        self._diskElsewhere = False
        self._fileMode = fileMode
        self._keepExec = keepExec
        self._now = now
        self._choice = SyncChoice()
        #: principal and key to what L{flush} has to do
        self._deferred: dict[tuple[str, bytes], tuple[Offer, Receipt, Source]] = {}

    def level(self, offer: Offer) -> int:
        """
        Return the index in C{DURABILITIES} that is asked for and reachable.
        """
        wanted = _WANTED[offer.durability]
        return wanted if wanted <= self._reach or self._diskElsewhere else self._reach

    def _reached(self, durability: str, directory: Directory) -> int:
        """
        Return the index in C{DURABILITIES} that is asked for and reachable in C{directory}.
        """
        if directory.filesystem in VOLATILE:
            return 0
        if self._reach:
            return min(_WANTED[durability], self._reach)
        # another mount: a copy is synced there
        self._diskElsewhere = True
        return _WANTED[durability]

    def finished(self, offer: Offer, size: int | None, root: bytes | None = None) -> Receipt | None:
        """
        Find the receipt that this offer's key has already for this content.

        @param size: bytes of the content; L{None} if that is not known.
        @param root: of the content that came; L{None} if that is not known yet.
        """
        if offer.key is None:
            return None
        recent = self._deferred.get((offer.principal, offer.key))
        if recent is not None and recent[1].answers(size, root):
            return recent[1]
        try:
            return self._receiptLog.find(offer, size, root, sync=_WANTED[offer.durability] == 2)
        except OSError as error:
            raise self._translated(error, f'looking for the receipt of "{offer.name}"') from None

    def one(
        self,
        offer: Offer,
        source: Source,
        root: bytes | None,
        committing: Callable[[], None] | None = None,
        *,
        later: bool = False,
    ) -> Receipt:
        """
        Publish one file.

        @param committing: notes that publishing begins, and syncs the note.
        @param later: leave the done record and the private name to L{flush}.
        @raise TransferError: as L{IPartial.commit} fails; C{source} says what
            became of the private file.
        """
        level = self.level(offer)
        directory = None
        try:
            published, directory = self._directories.enter(
                offer.name.components[:-1], self._store, offer, source, level, committing
            )
            level = self._reached(offer.durability, directory)
            if level == 2:
                level = self._syncNames(directory)
            receipt = self._receipt(offer, source.size, root, published, directory, level)
            if offer.key is not None:
                index = (offer.principal, offer.key)
                if (
                    later
                    and source.fresh
                    and len(self._deferred) < DEFERRED_RECEIPTS
                    and index not in self._deferred
                ):
                    self._deferred[index] = (offer, receipt, source)
                    return receipt
                self._receiptLog.append([(offer, receipt)], sync=level == 2)
        except OSError as error:
            raise self._translated(error, f'storing "{offer.name}"') from None
        finally:
            if directory is not None:
                self._directories.release(directory)
        self._discard(source)
        return receipt

    def _store(
        self,
        directory: Directory,
        offer: Offer,
        source: Source,
        level: int,
        committing: Callable[[], None] | None,
    ) -> Published:
        """
        Do everything up to the name, in a directory that may vanish meanwhile.
        """
        self._dress(directory, offer, source)
        if level:
            self._sync(source.fd)
        if committing is not None:
            committing()
        return self._publisher.publish(source, directory, offer)

    def wasRenamed(self, offer: Offer, size: int, root: bytes | None) -> Receipt:
        """
        A process died after C{rename} had taken the private name away: take
        the steps that were left.
        """
        published = Published(offer.name, "stored")
        try:
            directory = self._directories.acquire(offer.name.components[:-1], create=True)
            try:
                level = self._reached(offer.durability, directory)
                if level == 2:
                    level = self._syncNames(directory)
                receipt = self._receipt(offer, size, root, published, directory, level)
            finally:
                self._directories.release(directory)
            self._receiptLog.append([(offer, receipt)], sync=level == 2)
        except OSError as error:
            raise self._translated(error, f'storing "{offer.name}"') from None
        return receipt

    def _syncNames(self, directory: Directory) -> int:
        """
        Make the names in C{directory} durable.

        @return: the level that is reached: some file systems cannot sync a directory.
        """
        try:
            self._directories.sync(directory)
        except OSError as error:
            if error.errno not in CANNOT_SYNC:
                raise
            return 1
        return 2

    def flush(self) -> None:
        """
        Write the done records that were put off, all at once, and then remove
        the private names: until then they are the evidence.

        @raise OSError: they are put off still.
        """
        later = self._deferred.values()
        self._receiptLog.append([(offer, receipt) for offer, receipt, _ in later], sync=False)
        for _, _, source in later:
            self._discard(source)
        self._deferred = {}

    def put(self, offer: Offer, data: bytes, root: bytes | None, *, later: bool = False) -> Receipt:
        """
        A whole small file.

        @param later: leave what nobody waits for to L{flush}.
        """
        try:
            source = self._write(offer, data)
        except OSError as error:
            raise self._translated(error, f'storing "{offer.name}"') from None
        try:
            receipt = self.one(offer, source, root, later=later)
        except BaseException:
            self._drop(source)
            raise
        self._close(source)
        return receipt

    def batch(self, batch: Batch) -> list[Receipt | Failure]:
        """
        Whole small files that share their syncs.

        @return: for each its receipt, or why not.
        """
        items = []
        results: dict[int, Receipt | Failure] = {}
        for small in batch:
            try:
                item = _Item(small, self._write(small.offer, small.data))
                items.append(item)
                _, item.directory = self._directories.enter(
                    small.offer.name.components[:-1], self._dress, small.offer, item.source
                )
            except (OSError, TransferError) as error:
                results[id(small)] = self._failure(error, small.offer)
        try:
            self._syncAll([item for item in items if id(item.small) not in results], results)
            for item in items:
                if id(item.small) not in results:
                    self._publishItem(item, results)
            self._settle([item for item in items if id(item.small) not in results], results)
        finally:
            for item in items:
                if item.directory is not None:
                    self._directories.release(item.directory)
                if isinstance(results.get(id(item.small)), Receipt):
                    self._discard(item.source)
                    self._close(item.source)
                else:
                    self._drop(item.source)
        return [results[id(small)] for small in batch]

    def directory(
        self, name: RelativeName, modified: int | None, durability: str, make: bool = True
    ) -> DirectoryMade | None:
        """
        Make a directory as L{connpool.interfaces.IDirectoryStore.makeDirectory} says.
        """
        try:
            try:
                directory = self._directories.acquire(name.components, create=False)
                made = False
            except FileNotFoundError:
                if not make:
                    return None
                directory = self._directories.acquire(name.components, create=True)
                made = True
            try:
                if modified is not None:
                    with suppress(PermissionError):  # somebody else's: only files are put in
                        self._sys.utime(directory.fd, ns=(modified, modified))
                level = self._reached(durability, directory)
                if level == 2:
                    level = self._syncNames(directory)
                filesystem = directory.filesystem
            finally:
                self._directories.release(directory)
        except OSError as error:
            raise self._translated(error, f'making the directory "{name}"') from None
        return DirectoryMade(made, DURABILITIES[level], filesystem, self._now())

    def _syncAll(self, items: list[_Item], results: dict[int, Receipt | Failure]) -> None:
        items = [item for item in items if self.level(item.small.offer)]
        together = self._choice.together(len(items))
        began = time.perf_counter()
        # they lie on one file system, unless somebody mounted another meanwhile
        together = together and len({item.source.directory for item in items}) == 1
        if together:
            try:
                self._sys.syncfs(items[0].source.fd)
            except OSError:
                together = False  # find out whose fault it is, or do without syncfs
        if not together:
            for item in items:
                try:
                    self._sync(item.source.fd)
                except TransferError as error:
                    results[id(item.small)] = Failure(error)
        self._choice.took(together, len(items), time.perf_counter() - began)

    def _publishItem(self, item: _Item, results: dict[int, Receipt | Failure]) -> None:
        offer, source = item.small.offer, item.source
        level = self.level(offer)
        assert item.directory is not None
        try:
            try:
                published = self._publisher.publish(source, item.directory, offer)
            except FileNotFoundError:  # the directory has vanished
                self._directories.forget(item.directory)
                published, found = self._directories.enter(
                    offer.name.components[:-1], self._store, offer, source, level, None
                )
                self._directories.release(item.directory)
                item.directory = found
        except (OSError, TransferError) as error:
            results[id(item.small)] = self._failure(error, offer)
        else:
            level = self._reached(offer.durability, item.directory)
            item.receipt = self._receipt(
                offer, item.source.size, item.small.root, published, item.directory, level
            )

    def _settle(self, items: list[_Item], results: dict[int, Receipt | Failure]) -> None:
        """
        The directories and the done records: each once.
        """
        full = [item for item in items if item.receipt.durability == "full"]
        for directory in {item.directory for item in full}:
            assert directory is not None
            here = [item for item in full if item.directory is directory]
            try:
                level = self._syncNames(directory)
            except OSError as error:
                failure = Failure(self._translated(error, "making a directory durable"))
                results.update({id(item.small): failure for item in here})
            else:
                for item in here:
                    item.receipt = attrs.evolve(item.receipt, durability=DURABILITIES[level])
        rest = [(item.small, item.receipt) for item in items if id(item.small) not in results]
        try:
            self._receiptLog.append(
                [(small.offer, receipt) for small, receipt in rest], sync=bool(full)
            )
        except OSError as error:
            failure = Failure(self._translated(error, "noting what was received"))
            results.update((id(small), failure) for small, _ in rest)
        else:
            results.update((id(small), receipt) for small, receipt in rest)

    def _write(self, offer: Offer, data: bytes) -> Source:
        source, held = self._private.enter(TEMPORARY, self._writeIn, offer, data)
        source.held = held
        return source

    def _writeIn(self, directory: Directory, offer: Offer, data: bytes) -> Source:
        name = temporaryName(offer)
        try:
            fd = self._sys.open(name, NEW, 0o600, dir_fd=directory.fd)
        except FileExistsError:
            earlier = self._earlier(name, data, directory.fd)
            if earlier is not None:
                return earlier
            name = secrets.token_hex(16)
            fd = self._sys.open(name, NEW, 0o600, dir_fd=directory.fd)
        try:
            self._sys.writeAll(fd, data, 0)
        except BaseException:
            self._sys.close(fd)
            self._sys.remove(name, directory.fd)
            raise
        return Source(fd, directory.fd, name, len(data), fresh=True)

    def _drop(self, source: Source) -> None:
        """
        It was not noted; if it was published, its private name is the evidence.
        """
        self._discard(source, evidence=source.linked)
        self._close(source)

    def _discard(self, source: Source, *, evidence: bool = False) -> None:
        """
        Remove the private name, unless it is needed as evidence, and let go of its directory.
        """
        if not evidence:
            self._publisher.discard(source)
        if source.held is not None:
            self._private.release(source.held)
            source.held = None

    def _close(self, source: Source) -> None:
        try:  # noqa: SIM105 - once a file: suppress() costs as much as the call
            self._sys.close(source.fd)
        except OSError:
            pass  # the descriptor is gone all the same, and what had to be synced was

    def _earlier(self, name: str, data: bytes, directory: int) -> Source | None:
        """
        Return what a process that died had published under this key, if that is C{data}.
        """
        fd = self._sys.openIfThere(name, EXISTING, directory)
        if fd is None:
            return None
        status = self._sys.fstat(fd)
        size = len(data)
        if status.st_nlink > 1 and status.st_size == size and self._sys.pread(fd, size, 0) == data:
            return Source(fd, directory, name, size, linked=True)
        self._sys.close(fd)
        return None

    def _dress(self, directory: Directory, offer: Offer, source: Source) -> None:
        mode = self._fileMode
        if self._keepExec and offer.executable:
            mode |= (mode & 0o444) >> 2
        source.mode = mode
        source.apart = not inherit(
            self._sys, source.fd, self._directories.inheritance(directory), mode
        )
        if offer.modified is not None:
            # the kernel moves what its file system cannot hold to the nearest it can
            self._sys.utime(source.fd, ns=(offer.modified, offer.modified))

    def _sync(self, fd: int) -> None:
        try:
            self._sys.fsync(fd)
        except OSError as error:
            raise SyncFailed(
                f"the receiver's disk did not take the data ({os.strerror(error.errno or 0)});"
                " the file is not trusted, send it again"
            ) from None

    def _translated(self, error: OSError | TransferError, doing: str) -> TransferError:
        return asTransferError(error, doing, self._sys, self._directories.root)

    def _failure(self, error: OSError | TransferError, offer: Offer) -> Failure:
        return Failure(self._translated(error, f'storing "{offer.name}"'))

    def _receipt(
        self,
        offer: Offer,
        size: int,
        root: bytes | None,
        published: Published,
        directory: Directory,
        level: int,
    ) -> Receipt:
        filesystem = directory.filesystem
        return Receipt(
            transferId=offer.transferId,
            name=published.name.path,
            wanted=offer.name.path,
            size=size,
            status=published.status,
            durability=DURABILITIES[level],
            filesystem=filesystem,
            integrity="unverified" if root is None else "verified",
            digest=offer.digest,
            root=None if root is None else root.hex(),
            protocol=offer.protocol,
            principal=offer.principal,
            finished=self._now(),
        )
