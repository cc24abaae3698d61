"""
Where partials lie between connections.

Theory of operation
===================
A partial is two files in a directory of its principal: the bytes, and the
journal.  Their names are hashes of the principal and of the resume key, so a
peer chooses no name here, and who has not the key learns nothing: a wrong key
makes a new partial, like an unknown one.

Whoever works on a partial holds C{flock} on its bytes; what can be locked is
suspended, whichever process left it.  A file is locked before it is trusted to
be still there (another process may have removed it in between).
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from hashlib import sha256

import attrs

from connpool.errors import Busy, QuotaExceeded, StoreError
from connpool.transfer.digests import digestNamed
from connpool.transfer.names import INTERNAL
from connpool.transfer.records import Offer, PartialInfo
from connpool.transfer.stores.journal import MAX_JOURNAL, Journal
from connpool.transfer.stores.syscalls import Syscalls, isFile
from connpool.transfer.stores.tree import Directory, Tree

__all__ = ["PARTIALS", "Shelf", "Slot", "identityOf"]

#: Partials of one principal.
PARTIALS = 100

_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HASH = re.compile(r"[0-9a-f]{32}\Z")
_JOURNAL = ".journal"
_TRIES = 5


def identityOf(offer: Offer) -> tuple[str, str]:
    """
    @return: the names of the principal's directory and of the partial.
    """
    assert offer.resumeKey is not None
    return _principal(offer.principal), sha256(offer.resumeKey).hexdigest()[:32]


def _principal(principal: str) -> str:
    return sha256(principal.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@attrs.define(eq=False)
class Slot:
    """
    A locked partial.

    @ivar fd: of the bytes.
    @ivar journalFd: of the journal, appending.
    @ivar journal: what it said.
    @ivar status: of the bytes, when they were locked.
    @ivar linked: whether both names are known to be on disk.
    """

    fd: int
    journalFd: int
    directory: Directory
    name: str
    journal: Journal
    status: os.stat_result
    linked: bool = False
    closed: bool = False

    @property
    def allocated(self) -> int:
        """
        Bytes on disk when it was locked.
        """
        return self.status.st_blocks * 512


class Shelf:
    """
    @param tree: of the store's private directories.
    """

    def __init__(self, syscalls: Syscalls, tree: Tree) -> None:
        self._sys = syscalls
        self._tree = tree
        tree.release(tree.acquire((INTERNAL, "partials"), create=True))

    def take(self, offer: Offer) -> Slot:
        """
        Lock the partial of this principal and resume key; create it if there
        is none.

        @raise Busy: if another connection or process has it.
        @raise QuotaExceeded: if the principal has too many, all in use.
        """
        principal, name = identityOf(offer)
        directory = self._tree.acquire((INTERNAL, "partials", principal), create=True)
        slot = None
        try:
            slot = self._lock(directory, name, create=True)
            assert slot is not None
            try:
                if not slot.status.st_size and slot.journal.offer is None:
                    self._makeRoom(offer.principal, slot)
            except BaseException:
                self.remove(slot)
                raise
        except BaseException:
            if slot is None:
                self._tree.release(directory)
            raise
        return slot

    def letGo(self, slot: Slot) -> None:
        """
        Unlock; the partial stays.
        """
        slot.closed = True
        self._sys.close(slot.journalFd)
        self._sys.close(slot.fd)
        self._tree.release(slot.directory)

    def remove(self, slot: Slot) -> None:
        """
        Remove the files, then unlock.
        """
        try:
            # the bytes last: a journal alone would not be found again
            self._sys.remove(slot.name + _JOURNAL, slot.directory.fd)
            self._sys.remove(slot.name, slot.directory.fd)
        finally:
            self.letGo(slot)

    def hash(self, slot: Slot, offer: Offer) -> dict[int, bytes]:
        """
        @return: the digests of the whole blocks that lie there, for a journal
            that cannot be read or a source that changed.
        """
        assert offer.digest is not None
        digest = digestNamed(offer.digest)
        status = slot.status
        # somebody may have made it sparse and huge
        end = min(status.st_size, status.st_blocks * 512)
        if offer.size is not None:
            end = min(end, offer.size)
        digests: dict[int, bytes] = {}
        for start in range(0, end, offer.blockSize):
            stop = min(start + offer.blockSize, end)
            if stop - start < offer.blockSize and stop != offer.size:
                break
            hasher = digest.new()
            for offset in range(start, stop, 1 << 20):
                hasher.update(self._sys.pread(slot.fd, min(1 << 20, stop - offset), offset))
            digests[start // offer.blockSize] = hasher.digest()
        return digests

    def suspended(self, principal: str, besides: Slot | None) -> int:
        """
        @return: bytes on disk of suspended partials, those of C{besides} left out.
        """
        return sum(status.st_blocks * 512 for _, status in self._free(principal, besides))

    def evict(self, principal: str, besides: Slot | None) -> bool:
        """
        Remove the principal's oldest suspended partial other than C{besides}.

        @return: whether there was one.
        """
        free = [(status.st_mtime_ns, name) for name, status in self._free(principal, besides)]
        for _, name in sorted(free):
            try:
                slot = self.find((_principal(principal), name))
            except Busy:
                continue
            if slot is not None:
                self.remove(slot)
                return True
        return False

    def _free(self, principal: str, besides: Slot | None) -> list[tuple[str, os.stat_result]]:
        try:
            directory = self._tree.acquire(
                (INTERNAL, "partials", _principal(principal)), create=False
            )
        except FileNotFoundError:
            return []
        try:
            return [
                (name, status)
                for name, status, free in self._entries(directory)
                if free and (besides is None or name != besides.name)
            ]
        finally:
            self._tree.release(directory)

    def everything(self) -> Iterator[tuple[tuple[str, str], os.stat_result, bool]]:
        """
        @return: identity, status and whether it is suspended, of each partial.
        """
        shelf = self._tree.acquire((INTERNAL, "partials"), create=True)
        try:
            principals = [name for name in self._sys.listdir(shelf.fd) if _HASH.match(name)]
        finally:
            self._tree.release(shelf)
        for principal in principals:
            try:
                directory = self._tree.acquire((INTERNAL, "partials", principal), create=False)
            except (OSError, StoreError):
                continue
            try:
                for name, status, free in self._entries(directory):
                    yield (principal, name), status, free
            finally:
                self._tree.release(directory)

    def find(self, identity: tuple[str, str]) -> Slot | None:
        """
        Lock a suspended partial.

        @raise Busy: if it is in use.
        """
        directory = self._tree.acquire((INTERNAL, "partials", identity[0]), create=False)
        slot = None
        try:
            slot = self._lock(directory, identity[1], create=False)
        finally:
            if slot is None:
                self._tree.release(directory)
        return slot

    def info(self, identity: tuple[str, str], status: os.stat_result, free: bool) -> PartialInfo:
        """
        What an operator wants to know about it.
        """
        principal, name = identity
        journal = Journal(None, {}, None)
        directory = self._tree.acquire((INTERNAL, "partials", principal), create=False)
        try:
            fd = self._sys.openIfThere(name + _JOURNAL, _OPEN, directory.fd)
            if fd is not None:
                try:
                    journal = Journal.read(self._sys.pread(fd, MAX_JOURNAL, 0))
                finally:
                    self._sys.close(fd)
        finally:
            self._tree.release(directory)
        offer = journal.offer
        received = len(journal.digests) * offer.blockSize if offer else 0
        if offer is not None and offer.size is not None:
            received = min(received, offer.size)
        return PartialInfo(
            partialId=f"{principal}-{name}",
            principal=offer.principal if offer else "?",
            name=offer.name.path if offer else "?",
            size=offer.size if offer else None,
            received=received,
            allocated=status.st_blocks * 512,
            active=not free,
            changed=status.st_mtime,
        )

    def _lock(self, directory: Directory, name: str, *, create: bool) -> Slot | None:
        sys = self._sys
        for _ in range(_TRIES):
            fd = self._open(directory, name, create=create)
            if fd is None:
                return None
            try:
                sys.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = sys.fstat(fd)
                if status.st_nlink:
                    journalFd = self._open(directory, name + _JOURNAL, create=True)
                    assert journalFd is not None
                    journal = Journal.read(sys.pread(journalFd, MAX_JOURNAL, 0))
                    return Slot(fd, journalFd, directory, name, journal, status)
            except BlockingIOError:
                sys.close(fd)
                raise Busy("another process is receiving this file; try again later") from None
            except BaseException:
                sys.close(fd)
                raise
            sys.close(fd)  # removed while we opened it
        raise Busy("this partial is being removed; try again later")

    def _open(self, directory: Directory, name: str, *, create: bool) -> int | None:
        """
        Open a regular file of ours; whatever else is there was put in our way
        and is removed.
        """
        flags = _OPEN | (os.O_CREAT if create else 0)
        if name.endswith(_JOURNAL):
            flags |= os.O_APPEND
        for _ in range(_TRIES):
            try:
                fd = self._sys.open(name, flags, 0o600, dir_fd=directory.fd)
            except FileNotFoundError:
                return None
            except OSError:
                try:
                    status = self._sys.stat(name, dir_fd=directory.fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if isFile(status):
                    raise
            else:
                if isFile(self._sys.fstat(fd)):
                    return fd
                self._sys.close(fd)
            self._sys.remove(name, directory.fd)
        raise StoreError("something keeps getting in the way of a private file of the receiver")

    def _entries(self, directory: Directory) -> Iterator[tuple[str, os.stat_result, bool]]:
        for name in self._sys.listdir(directory.fd):
            if not _HASH.match(name):
                continue
            try:
                fd = self._sys.openIfThere(name, _OPEN, directory.fd)
            except OSError:
                continue
            if fd is None:
                continue
            try:
                status = self._sys.fstat(fd)
                try:
                    self._sys.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    free = False
                else:
                    free = True
            finally:
                self._sys.close(fd)
            if isFile(status):
                yield name, status, free

    def _makeRoom(self, principal: str, slot: Slot) -> None:
        count = sum(1 for name in self._sys.listdir(slot.directory.fd) if _HASH.match(name))
        while count > PARTIALS:
            if not self.evict(principal, slot):
                raise QuotaExceeded(
                    f"{PARTIALS} unfinished files of this sender are in use; finish one first"
                )
            count -= 1
