"""
The directories of partials, between connections.

Theory of operation
===================
A partial is two files in a directory of its owner: the bytes, and the journal.
The owner is a principal, or a part of its senders (L{Offer.network}).  The names
are hashes of the owner and of the resume key, so a
peer chooses no name here, and a peer without the key learns nothing: a wrong key
makes a new partial, like an unknown one.

Whoever works on a partial holds C{flock} on its journal; what can be locked is
suspended, whichever process left it.  Publishing may rename the bytes away, so
the journal is what has the name from the beginning to the end: it is made
first, removed last, and neither name is touched without its lock.  It is
locked before it is trusted to be still there (another process may have removed
it in between).

When a journal was written last is when the partial was: the times of the bytes
become those of the source.

A file that cannot be resumed lies among the temporary ones, has no journal, and
is locked itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from hashlib import sha256

import attrs

from connpool.errors import Busy, QuotaExceeded, StoreError, TransferError
from connpool.transfer.names import INTERNAL
from connpool.transfer.records import Offer, PartialInfo
from connpool.transfer.stores.directories import Directories, Directory
from connpool.transfer.stores.journal import (
    MAX_JOURNAL_BYTES,
    UNREADABLE,
    Journal,
)
from connpool.transfer.syscalls import EXISTING, NEW, Syscalls, isFile

__all__ = [
    "LONG_JOURNAL_BYTES",
    "MAX_PARTIALS",
    "Entry",
    "PartialDirectory",
    "Slot",
    "namesOf",
    "tooManyPartials",
]

#: Partials of one principal.
MAX_PARTIALS = 100
#: Bytes of a journal that takes long to read: about a millisecond.
LONG_JOURNAL_BYTES = 64 << 10

#: What opening a link, a directory, a socket or a device may say.
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV}
_HASH = re.compile(r"[0-9a-f]{32}\Z")
_JOURNAL = ".journal"
_LOCK_TRIES = 5


def namesOf(offer: Offer) -> tuple[str, str]:
    """
    Return the names of the owner's directory and of the partial.
    """
    assert offer.resumeKey is not None
    return _owner(offer), sha256(offer.resumeKey).hexdigest()[:32]


def tooManyPartials() -> QuotaExceeded:
    """
    The answer where a principal has as many partials as it may.
    """
    return QuotaExceeded(
        f"{MAX_PARTIALS} unfinished files of this sender are in use; finish one first"
    )


def _owner(offer: Offer) -> str:
    owner = f"{offer.principal}\0{offer.network}" if offer.network else offer.principal
    return sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@attrs.define(eq=False)
class Slot:
    """
    A locked partial.

    @ivar fd: of the bytes.
    @ivar journalFd: of the journal, appending; L{None} for a temporary file.
    @ivar status: of the bytes, when they were locked.
    @ivar said: bytes of the journal then.
    @ivar changed: when it was written, wall-clock seconds.
    @ivar journal: what it says, once it was read.
    @ivar linked: whether both names are known to be on disk.
    """

    fd: int
    journalFd: int | None
    directory: Directory
    name: str
    status: os.stat_result
    said: int = 0
    changed: float = 0.0
    journal: Journal = UNREADABLE
    linked: bool = False
    closed: bool = False

    @property
    def fresh(self) -> bool:
        """
        Tell whether nothing came of it yet.
        """
        return not self.status.st_size and not self.said

    @property
    def allocated(self) -> int:
        """
        Bytes on disk when it was locked.
        """
        return self.status.st_blocks * 512


@attrs.frozen
class Entry:
    """
    A partial that somebody looked at.

    @ivar status: of the bytes; L{None} if there is only a journal.
    @ivar changed: when it was written last, wall-clock seconds.
    @ivar allocated: bytes that it takes on disk.
    @ivar free: whether it is suspended.
    """

    names: tuple[str, str]
    status: os.stat_result | None
    changed: float
    allocated: int
    free: bool


class PartialDirectory:
    """
    The partials of one store, on disk.

    @param directories: of the store's private directories.
    """

    def __init__(self, syscalls: Syscalls, directories: Directories) -> None:
        self._sys = syscalls
        self._directories = directories
        directories.release(directories.acquire((INTERNAL, "partials"), create=True))

    # -- one partial

    def take(self, offer: Offer) -> Slot:
        """
        Lock the partial of this principal and resume key; create it if there
        is none.

        @raise Busy: if another connection or process has it.
        """
        principal, name = namesOf(offer)
        slot, _ = self._directories.enter((INTERNAL, "partials", principal), self._locked, name)
        return slot

    def find(self, names: tuple[str, str]) -> Slot | None:
        """
        Lock a suspended partial, or what is left of it.

        @raise Busy: if it is in use.
        """
        principal, name = names
        try:
            directory = self._directories.acquire((INTERNAL, "partials", principal), create=False)
        except FileNotFoundError:
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(self._directories.release, directory)
            if self._sys.statIfThere(name, directory.fd) or self._sys.statIfThere(
                name + _JOURNAL, directory.fd
            ):
                with contextlib.suppress(FileNotFoundError):  # the directory has vanished
                    slot = self._locked(directory, name)
                    undo.pop_all()
                    return slot
        return None

    def temporary(self, name: str) -> Slot:
        """
        Make a file that cannot be resumed.

        @raise FileExistsError: if there is one of this name.
        """
        slot, _ = self._directories.enter((INTERNAL, "temporary"), self._temporary, name)
        return slot

    def _temporary(self, directory: Directory, name: str) -> Slot:
        with contextlib.ExitStack() as undo:
            fd = self._sys.open(name, NEW, 0o600, dir_fd=directory.fd)
            undo.callback(self._sys.close, fd)
            self._sys.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            slot = Slot(fd, None, directory, name, self._sys.fstat(fd))
            undo.pop_all()
        return slot

    def read(self, slot: Slot) -> None:
        """
        Take in the journal.  One that says everything many times over is
        replaced by a shorter one; if that cannot be, it stays.
        """
        assert slot.journalFd is not None
        slot.journal = journal = self._read(slot.journalFd, slot.said)
        if (
            slot.said < LONG_JOURNAL_BYTES
            or journal.offer is None
            or journal.committing is not None
        ):
            return
        record = journal.record()
        if 2 * len(record) < slot.said:
            with contextlib.suppress(OSError):
                self._replace(slot, record)

    def reread(self, slot: Slot) -> None:
        """
        Take in the journal as it is now.
        """
        assert slot.journalFd is not None
        slot.said = self._sys.fstat(slot.journalFd).st_size
        self.read(slot)

    def _replace(self, slot: Slot, record: bytes) -> None:
        """
        Put another journal in the place of the one there is.  A process that dies leaves one
        of the two, whole, because somebody was told what is in it.
        """
        sys, name = self._sys, secrets.token_hex(16)
        fd, directory = self._directories.enter(
            (INTERNAL, "temporary"),
            lambda directory: sys.open(name, NEW | os.O_APPEND, 0o600, dir_fd=directory.fd),
        )
        try:
            # whoever waits for the lock of the older one finds that it has no name any more
            sys.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sys.writeAll(fd, record, 0)
            sys.fdatasync(fd)
            where = {"src_dir_fd": directory.fd, "dst_dir_fd": slot.directory.fd}
            sys.rename(name, slot.name + _JOURNAL, **where)
        except BaseException:
            sys.close(fd)
            sys.remove(name, directory.fd)
            raise
        finally:
            self._directories.release(directory)
        older, slot.journalFd = slot.journalFd, fd
        slot.said, slot.linked = len(record), False
        assert older is not None
        sys.close(older)
        sys.fsync(slot.directory.fd)

    def append(self, slot: Slot, record: bytes) -> None:
        """
        Write to the journal.
        """
        assert slot.journalFd is not None
        while record:
            record = record[self._sys.write(slot.journalFd, record) :]

    def beginAnew(self, slot: Slot) -> None:
        """
        Forget what the journal said.
        """
        assert slot.journalFd is not None
        self._sys.ftruncate(slot.journalFd, 0)
        slot.said = 0

    def syncJournal(self, slot: Slot, level: int) -> None:
        """
        Put the journal on disk at the levels 1 and 2, at 2 the names of the partial, too.
        """
        assert slot.journalFd is not None
        if level:
            self._sys.fdatasync(slot.journalFd)
        if level == 2 and not slot.linked:
            self._directories.sync(slot.directory)
            slot.linked = True

    def letGo(self, slot: Slot) -> None:
        """
        Unlock; the partial stays.
        """
        slot.closed = True
        try:
            self._sys.close(slot.fd)
        finally:
            if slot.journalFd is not None:
                self._sys.close(slot.journalFd)
            self._directories.release(slot.directory)

    def remove(self, slot: Slot) -> None:
        """
        Remove the files, then unlock.  Takes long for a large one.
        """
        try:
            self._sys.remove(slot.name, slot.directory.fd)
        except BaseException:
            self.letGo(slot)
            raise
        self.clear(slot)

    def clear(self, slot: Slot) -> None:
        """
        Remove what is left of a partial that lost its private name, then unlock.
        """
        try:
            if slot.journalFd is not None:
                self._sys.remove(slot.name + _JOURNAL, slot.directory.fd)
        finally:
            self.letGo(slot)

    def removeFound(self, names: tuple[str, str]) -> None:
        """
        Remove a suspended partial, if there is one.

        @raise Busy: if it is in use.
        """
        slot = self.find(names)
        if slot is not None:
            self.remove(slot)

    # -- all of them

    def suspended(self, offer: Offer, besides: Slot | None) -> int:
        """
        Return bytes on disk of suspended partials of whoever makes this offer, those of
        C{besides} left out.
        """
        return sum(entry.allocated for entry in self._free(offer, besides))

    def tally(self, offer: Offer) -> tuple[int, int, int]:
        """
        Return the partials of whoever makes this offer, how many of them are suspended, and
        the bytes on disk of these.
        """
        entries = self._entries(_owner(offer))
        free = [entry.allocated for entry in entries if entry.free]
        return len(entries), len(free), sum(free)

    def excess(self, slot: Slot) -> int:
        """
        Return how many partials there are too many of this one's owner.
        """
        try:
            return len(self._names(slot.directory)) - MAX_PARTIALS
        except FileNotFoundError:  # somebody removed the directory, with all of them
            return 0

    def evict(self, offer: Offer, besides: Slot | None, size: int, count: int) -> bool:
        """
        Remove suspended partials of whoever makes this offer, the oldest first, until they
        gave C{size} bytes and C{count} places; none if all cannot.

        @return: whether they did.
        """
        free = sorted(self._free(offer, besides), key=lambda entry: (entry.changed, entry.names))
        if len(free) < count or sum(entry.allocated for entry in free) < size:
            return False
        for entry in free:
            if size <= 0 and count <= 0:
                break
            with contextlib.suppress(Busy):
                self.removeFound(entry.names)
                size -= entry.allocated
                count -= 1
        return size <= 0 and count <= 0

    def everything(self) -> list[Entry]:
        """
        List the partials of every principal.
        """
        names, directory = self._directories.enter(
            (INTERNAL, "partials"), lambda directory: self._sys.listdir(directory.fd)
        )
        self._directories.release(directory)
        principals = [name for name in names if _HASH.match(name)]
        found: list[Entry] = []
        for principal in principals:
            with contextlib.suppress(OSError, TransferError):
                found += self._entries(principal)
        return found

    def info(self, entry: Entry) -> PartialInfo:
        """
        Describe it for an operator.
        """
        principal, name = entry.names
        journal = UNREADABLE
        directory = self._directories.acquire((INTERNAL, "partials", principal), create=False)
        try:
            fd = self._sys.openIfThere(name + _JOURNAL, EXISTING, directory.fd)
            if fd is not None:
                try:
                    journal = self._read(fd, self._sys.fstat(fd).st_size)
                finally:
                    self._sys.close(fd)
        finally:
            self._directories.release(directory)
        offer = journal.offer
        return PartialInfo(
            partialId=f"{principal}-{name}",
            principal=offer.principal if offer else "?",
            name=offer.name.path if offer else "?",
            size=offer.size if offer else None,
            received=journal.received,
            allocated=entry.allocated,
            active=not entry.free,
            changed=entry.changed,
        )

    # -- how

    def _read(self, journalFd: int, size: int) -> Journal:
        if size > MAX_JOURNAL_BYTES:
            return UNREADABLE
        return Journal.read(self._sys.pread(journalFd, size, 0) if size else b"")

    def _locked(self, directory: Directory, name: str) -> Slot:
        sys = self._sys
        for _ in range(_LOCK_TRIES):
            with contextlib.ExitStack() as undo:
                journalFd, _ = self._open(directory, name + _JOURNAL)
                undo.callback(sys.close, journalFd)
                try:
                    sys.flock(journalFd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Busy("another process is receiving this file; try again later") from None
                said = sys.fstat(journalFd)
                if not said.st_nlink:
                    continue  # removed while we opened it
                fd, status = self._open(directory, name)
                undo.pop_all()
                return Slot(fd, journalFd, directory, name, status, said.st_size, said.st_mtime)
        raise Busy("this partial is being removed; try again later")

    def _open(self, directory: Directory, name: str) -> tuple[int, os.stat_result]:
        """
        Open or make a regular file of ours; whatever else is there was put in
        our way and is removed.
        """
        flags = EXISTING | os.O_CREAT | (os.O_APPEND if name.endswith(_JOURNAL) else 0)
        for _ in range(_LOCK_TRIES):
            try:
                fd = self._sys.open(name, flags, 0o600, dir_fd=directory.fd)
            except OSError as error:
                if error.errno not in _NO_FILE:
                    raise
            else:
                with contextlib.ExitStack() as undo:
                    undo.callback(self._sys.close, fd)
                    status = self._sys.fstat(fd)
                    if isFile(status):
                        undo.pop_all()
                        return fd, status
            self._sys.remove(name, directory.fd)
        raise StoreError("something keeps getting in the way of a private file of the receiver")

    def _names(self, directory: Directory) -> set[str]:
        names = {name.removesuffix(_JOURNAL) for name in self._sys.listdir(directory.fd)}
        return {name for name in names if _HASH.match(name)}

    def _free(self, offer: Offer, besides: Slot | None) -> list[Entry]:
        return [
            entry
            for entry in self._entries(_owner(offer))
            if entry.free and (besides is None or entry.names[1] != besides.name)
        ]

    def _entries(self, principal: str) -> list[Entry]:
        try:
            directory = self._directories.acquire((INTERNAL, "partials", principal), create=False)
        except FileNotFoundError:
            return []
        try:
            found = []
            for name in self._names(directory):
                with contextlib.suppress(OSError):
                    entry = self._entry(principal, directory, name)
                    if entry is not None:
                        found.append(entry)
            return found
        except FileNotFoundError:  # the directory has vanished
            return []
        finally:
            self._directories.release(directory)

    def _entry(self, principal: str, directory: Directory, name: str) -> Entry | None:
        sys = self._sys
        status = self._sys.statIfThere(name, directory.fd)
        if status is not None and not isFile(status):
            return None
        allocated = 0 if status is None else status.st_blocks * 512
        fd = sys.openIfThere(name + _JOURNAL, EXISTING, directory.fd)
        if fd is None:
            if status is None:
                return None
            # its name was lost with the power
            return Entry((principal, name), status, status.st_ctime, allocated, True)
        try:
            said = sys.fstat(fd)
            allocated += said.st_blocks * 512
            try:
                sys.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            else:
                free = True
        finally:
            sys.close(fd)
        return Entry((principal, name), status, said.st_mtime, allocated, free)
