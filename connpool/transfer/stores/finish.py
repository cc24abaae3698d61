"""
From the last byte to the receipt.

Theory of operation
===================
One file and a batch take the same steps, in this order: mode and time; sync
the descriptor that wrote; note that publishing begins; publish; sync the
directories; done record; unlink the private name; acknowledge.  A name never
precedes its synced data, an acknowledgement never precedes anything it
promises, and the private name goes last because it is the evidence: a private
file with two links was published, whoever died in between.

C{none} leaves out the syncs, C{data} those of directories.

Everything here may block on the disk and may run in any thread.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import count
from threading import Lock

import attrs
from twisted.python.failure import Failure

from connpool.errors import SyncFailed, TransferError
from connpool.transfer.records import DURABILITIES, Offer, Receipt
from connpool.transfer.stores.batch import Batch, Small, SyncChoice
from connpool.transfer.stores.done import DoneLog
from connpool.transfer.stores.publish import Published, Publisher, Source
from connpool.transfer.stores.syscalls import NEW, Syscalls, asTransferError
from connpool.transfer.stores.tree import Directory, Tree

__all__ = ["Finisher", "temporaryName"]

#: A modification time in the future is taken up to this many seconds ahead.
FUTURE = 86400

_LEVELS = {name: level for level, name in enumerate(DURABILITIES)}
_OLD = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
    return blake2b(offer.key + offer.principal.encode(), digest_size=16).hexdigest()


@attrs.define
class _Item:
    small: Small
    source: Source
    directory: Directory | None = None
    result: Receipt | Failure | None = None


class Finisher:
    """
    @param tree: the published directories.
    @param temporary: descriptor of the directory of private files.
    @param filesystem: its type, for receipts.
    @param reach: index in C{DURABILITIES} of the strongest level there is.
    @param fileMode: permission bits of published files, whatever the umask.
    @param keepExec: give the source's exec bit where C{fileMode} can read.
    @param now: wall-clock seconds.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        tree: Tree,
        publisher: Publisher,
        done: DoneLog,
        temporary: int,
        *,
        filesystem: str,
        reach: int,
        fileMode: int,
        keepExec: bool,
        now: Callable[[], float],
    ) -> None:
        self._sys = syscalls
        self._tree = tree
        self._publisher = publisher
        self._done = done
        self._doneLock = Lock()
        self._temporary = temporary
        self._filesystem = filesystem
        self._reach = reach
        self._fileMode = fileMode
        self._keepExec = keepExec
        self._now = now
        self._choice = SyncChoice()
        #: principal and key to what L{flush} has to do
        self._later: dict[tuple[str, bytes], tuple[Offer, Receipt, Source]] = {}

    def level(self, offer: Offer) -> int:
        """
        @return: the index in C{DURABILITIES} that is asked for and reachable.
        """
        return min(_LEVELS[offer.durability], self._reach)

    def finished(self, offer: Offer) -> Receipt | None:
        """
        @return: the receipt that this offer's key has already.
        """
        if offer.key is None:
            return None
        recent = self._later.get((offer.principal, offer.key))
        if recent is not None:
            return recent[1]
        try:
            with self._doneLock:
                return self._done.find(offer)
        except OSError as error:
            raise asTransferError(error, f'looking for the receipt of "{offer.name}"') from None

    def expire(self) -> None:
        """
        Forget receipts that are too old.
        """
        with self._doneLock:
            self._done.expire()

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
        @param committing: notes that publishing begins, and syncs the note.
        @param later: leave the done record and the private name to L{flush}.
        @raise TransferError: as L{IPartial.commit} fails; the private file is
            still there.
        """
        level = self.level(offer)
        directory = None
        try:
            self._dress(offer, source.fd)
            if level:
                self._sync(source.fd)
            if committing is not None:
                committing()
            published, directory = self._publish(offer, source, level)
            if level == 2:
                self._tree.sync(directory)
            receipt = self._receipt(offer, source.size, root, published, level)
            if offer.key is not None:
                if later:
                    self._later[offer.principal, offer.key] = (offer, receipt, source)
                    return receipt
                self._note([(offer, receipt)], sync=level == 2)
            self._sys.remove(source.name, source.directory)
        except OSError as error:
            raise asTransferError(error, f'storing "{offer.name}"') from None
        finally:
            if directory is not None:
                self._tree.release(directory)
        return receipt

    def wasRenamed(self, offer: Offer, size: int, root: bytes | None) -> Receipt:
        """
        A process died after C{rename} had taken the private name away: take
        the steps that were left.
        """
        level = self.level(offer)
        try:
            if level == 2:
                directory = self._tree.acquire(offer.name.components[:-1], create=True)
                try:
                    self._tree.sync(directory)
                finally:
                    self._tree.release(directory)
            receipt = self._receipt(offer, size, root, Published(offer.name, "stored"), level)
            self._note([(offer, receipt)], sync=level == 2)
        except OSError as error:
            raise asTransferError(error, f'storing "{offer.name}"') from None
        return receipt

    def flush(self) -> None:
        """
        Write the done records that were put off, all at once, and then remove
        the private names: until then they are the evidence.
        """
        later, self._later = self._later, {}
        self._note([(offer, receipt) for offer, receipt, _ in later.values()], sync=False)
        for _, _, source in later.values():
            self._sys.remove(source.name, source.directory)

    def put(self, offer: Offer, data: bytes, root: bytes | None, *, later: bool = False) -> Receipt:
        """
        A whole small file.

        @param later: leave what nobody waits for to L{flush}.
        """
        try:
            source = self._write(offer, data)
            try:
                return self.one(offer, source, root, later=later)
            except BaseException:
                self._sys.remove(source.name, source.directory)
                raise
            finally:
                self._sys.close(source.fd)
        except OSError as error:
            raise asTransferError(error, f'storing "{offer.name}"') from None

    def batch(self, batch: Batch) -> list[Receipt | Failure]:
        """
        Whole small files that share their syncs.

        @return: for each its receipt, or why not.
        """
        items = []
        results: dict[int, Receipt | Failure] = {}
        for small in batch:
            try:
                source = self._write(small.offer, small.data)
                items.append(_Item(small, source))
                self._dress(small.offer, source.fd)
            except OSError as error:
                what = f'storing "{small.offer.name}"'
                results[id(small)] = Failure(asTransferError(error, what))
        try:
            self._syncAll([item for item in items if id(item.small) not in results], results)
            for item in items:
                if id(item.small) not in results:
                    self._publishItem(item, results)
            self._settle([item for item in items if item.directory is not None], results)
        finally:
            for item in items:
                self._sys.close(item.source.fd)
                self._sys.remove(item.source.name, item.source.directory)
                if item.directory is not None:
                    self._tree.release(item.directory)
        return [results[id(small)] for small in batch]

    def _syncAll(self, items: list[_Item], results: dict[int, Receipt | Failure]) -> None:
        items = [item for item in items if self.level(item.small.offer)]
        together = self._choice.together(len(items))
        began = time.perf_counter()
        if together:
            try:
                self._sys.syncfs(self._temporary)
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
        offer = item.small.offer
        level = self.level(offer)
        try:
            published, item.directory = self._publish(offer, item.source, level)
        except TransferError as error:
            results[id(item.small)] = Failure(error)
        except OSError as error:
            results[id(item.small)] = Failure(asTransferError(error, f'storing "{offer.name}"'))
        else:
            item.result = self._receipt(offer, item.source.size, item.small.root, published, level)

    def _settle(self, items: list[_Item], results: dict[int, Receipt | Failure]) -> None:
        """
        The directories and the done records: each once.
        """
        full = [item for item in items if self.level(item.small.offer) == 2]
        try:
            for directory in {item.directory for item in full}:
                assert directory is not None
                self._tree.sync(directory)
            self._note(
                [
                    (item.small.offer, item.result)
                    for item in items
                    if isinstance(item.result, Receipt)
                ],
                sync=bool(full),
            )
        except OSError as error:
            failure = Failure(asTransferError(error, "making a batch of files durable"))
            results.update({id(item.small): failure for item in items})
        else:
            for item in items:
                assert item.result is not None
                results[id(item.small)] = item.result

    def _write(self, offer: Offer, data: bytes) -> Source:
        name = temporaryName(offer)
        try:
            fd = self._sys.open(name, NEW, 0o600, dir_fd=self._temporary)
        except FileExistsError:
            earlier = self._earlier(name, len(data))
            if earlier is not None:
                return earlier
            name = secrets.token_hex(16)
            fd = self._sys.open(name, NEW, 0o600, dir_fd=self._temporary)
        try:
            self._sys.writeAll(fd, data, 0)
        except BaseException:
            self._sys.close(fd)
            self._sys.remove(name, self._temporary)
            raise
        return Source(fd, self._temporary, name, len(data), fresh=True)

    def _earlier(self, name: str, size: int) -> Source | None:
        """
        @return: what a process that died had published under this key.
        """
        fd = self._sys.openIfThere(name, _OLD, self._temporary)
        if fd is None:
            return None
        status = self._sys.fstat(fd)
        if status.st_nlink > 1 and status.st_size == size:
            return Source(fd, self._temporary, name, size)
        self._sys.close(fd)
        return None

    def _dress(self, offer: Offer, fd: int) -> None:
        mode = self._fileMode
        if self._keepExec and offer.executable:
            mode |= (mode & 0o444) >> 2
        self._sys.fchmod(fd, mode)
        if offer.modified is not None:
            modified = min(max(offer.modified, 0), int((self._now() + FUTURE) * 1e9))
            self._sys.utime(fd, ns=(modified, modified))

    def _sync(self, fd: int) -> None:
        try:
            self._sys.fsync(fd)
        except OSError as error:
            raise SyncFailed(
                f"the receiver's disk did not take the data ({os.strerror(error.errno or 0)});"
                " the file is not trusted, send it again"
            ) from None

    def _publish(self, offer: Offer, source: Source, level: int) -> tuple[Published, Directory]:
        for attempt in (1, 2):
            directory = self._tree.acquire(offer.name.components[:-1], create=True)
            try:
                return (
                    self._publisher.publish(
                        source, directory, offer.name, offer.ifExists, sync=level > 0
                    ),
                    directory,
                )
            except FileNotFoundError:  # somebody removed the directory a moment ago
                self._tree.release(directory)
                self._tree.forget(directory)
                if attempt == 2:
                    raise
            except BaseException:
                self._tree.release(directory)
                raise
        raise AssertionError("unreachable")

    def _note(self, finished: Iterable[tuple[Offer, Receipt]], *, sync: bool) -> None:
        keyed = [each for each in finished if each[0].key is not None]
        if keyed:
            with self._doneLock:
                self._done.append(keyed, sync=sync)

    def _receipt(
        self, offer: Offer, size: int, root: bytes | None, published: Published, level: int
    ) -> Receipt:
        return Receipt(
            transferId=offer.transferId,
            name=published.name.path,
            wanted=offer.name.path,
            size=size,
            status=published.status,
            durability=DURABILITIES[level],
            filesystem=self._filesystem,
            integrity="unverified" if root is None else "verified",
            digest=offer.digest,
            root=None if root is None else root.hex(),
            protocol=offer.protocol,
            principal=offer.principal,
            finished=self._now(),
        )
