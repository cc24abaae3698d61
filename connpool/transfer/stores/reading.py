"""
Reading what is published in a local directory.

Every name is reached by descriptors, link by link refused; what is opened is opened without
waiting (a FIFO would), and read only if it is a regular file.  A name that cannot be reached
is told from one that nobody has by nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from heapq import nsmallest

import attrs

from connpool.errors import Busy, NameRefused, NotFound, TransferError
from connpool.transfer.names import RelativeName
from connpool.transfer.records import FileRange, ListedEntry, Listing
from connpool.transfer.stores.directories import Directories, Directory
from connpool.transfer.syscalls import Syscalls, isFile

__all__ = ["AHEAD_NAMES", "MAX_READ_BYTES", "Reading", "notFound", "openAgain"]

#: Bytes that are read at once.
MAX_READ_BYTES = 4 << 20
#: Names of a directory that are kept for the next pages of its list, at most.
AHEAD_NAMES = 16_384

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def notFound(name: RelativeName | None) -> NotFound:
    """
    Make the one answer about everything that cannot be read.
    """
    return NotFound(f'there is no "{name}"' if name is not None else "there is no such directory")


def _versionOf(status: os.stat_result) -> bytes:
    values = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    # a hash: inodes are nobody's business
    return hashlib.blake2b(repr(values).encode(), digest_size=16).digest()


def openAgain(sys: Syscalls, fd: int, directory: Directory, name: str, size: int) -> int:
    """
    Open a file that has no public name once more, for reading only.

    @param fd: that it is open with.
    @param name: its private one in C{directory}; if that was taken away, the kernel has
        another way to it.
    @param size: bytes that it shall have.
    """
    ours = sys.fstat(fd)
    if ours.st_size != size:
        # what a sender wrote and took back, or an earlier run left behind
        sys.ftruncate(fd, size)
    again = sys.openIfThere(name, _OPEN, directory.fd)
    if again is not None:
        theirs = sys.fstat(again)
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            return again
        sys.close(again)
    return sys.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


@attrs.frozen
class _Ahead:
    """
    Names that follow one another in a directory.

    @ivar version: of the directory when it was read.
    @ivar after: the name that they follow, in the order of their bytes.
    @ivar whole: whether they are the last ones.
    """

    version: tuple[int, ...]
    after: bytes
    names: list[bytes]
    whole: bool


@attrs.define
class Reading:
    """
    The reads of a store; each runs in a thread.

    A page of a listing needs the smallest names of all that are in the directory.  So that a
    large one is not read once for each page, the next L{AHEAD_NAMES} names of the directory
    that was listed last are kept until its end, as long as it does not change.
    """

    _sys: Syscalls
    _directories: Directories
    _ahead: _Ahead | None = attrs.field(default=None, init=False)

    @contextlib.contextmanager
    def _within(
        self, components: tuple[str, ...], name: RelativeName | None
    ) -> Iterator[Directory]:
        """
        @raise NotFound: there is no such directory, or it cannot be entered.
        """
        try:
            directory = self._directories.acquire(components, create=False)
        except (OSError, TransferError):
            raise notFound(name) from None
        try:
            yield directory
        finally:
            self._directories.release(directory)

    def listing(self, name: RelativeName | None, after: str, limit: int) -> Listing:
        """
        As L{IReadableStore.listing}.
        """
        last = after.encode()
        with self._within(() if name is None else name.components, name) as directory:
            found: list[ListedEntry] = []
            try:
                while page := self._follow(last, directory, limit + 1):
                    last = page[-1]
                    for each in page:
                        entry = self._entry(os.fsdecode(each), directory)
                        if entry is not None and len(found) == limit:
                            return Listing(tuple(found), more=True)
                        if entry is not None:
                            found.append(entry)
            except OSError:
                raise notFound(name) from None
            self._ahead = None
            return Listing(tuple(found), more=False)

    def _follow(self, last: bytes, directory: Directory, count: int) -> list[bytes]:
        """
        @return: up to C{count} names behind C{last}, sorted.
        """
        status = self._sys.fstat(directory.fd)
        version = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        ahead = self._ahead
        # a list that begins sees all: a time is too coarse for what came a moment ago
        if last and ahead is not None and ahead.version == version and ahead.after <= last:
            at = bisect_right(ahead.names, last)
            if ahead.whole or at + count <= len(ahead.names):
                return ahead.names[at : at + count]
        with self._sys.scandir(directory.fd) as entries:
            raw = (os.fsencode(each.name) for each in entries)
            names = nsmallest(AHEAD_NAMES, (each for each in raw if each > last))
        self._ahead = _Ahead(version, last, names, len(names) < AHEAD_NAMES)
        return names[:count]

    def _entry(self, name: str, directory: Directory) -> ListedEntry | None:
        try:
            RelativeName.parse(name, profile="posix")
            status = self._sys.statIfThere(name, directory.fd)
        except (NameRefused, OSError):
            return None
        if status is None or not (isFile(status) or stat.S_ISDIR(status.st_mode)):
            return None
        isDirectory = stat.S_ISDIR(status.st_mode)
        size = 0 if isDirectory else status.st_size
        return ListedEntry(name, isDirectory, size, status.st_mtime_ns)

    def read(self, name: RelativeName, start: int, end: int) -> FileRange:
        """
        As L{IReadableStore.read}.
        """
        with self._within(name.components[:-1], name) as directory:
            try:
                fd = self._sys.open(name.components[-1], _OPEN, dir_fd=directory.fd)
            except OSError:
                raise notFound(name) from None
        try:
            before = self._sys.fstat(fd)
            if not isFile(before):
                raise notFound(name)
            count = max(0, min(end, start + MAX_READ_BYTES, before.st_size) - start)
            try:
                data = self._sys.readAll(fd, count, start) if count else b""
            except OSError as e:
                raise Busy(f'"{name}" cannot be read: {e.strerror}') from None
            version = _versionOf(before)
            if _versionOf(self._sys.fstat(fd)) != version:
                raise Busy(f'"{name}" is being written to')
            return FileRange(data, before.st_size, before.st_mtime_ns, version)
        finally:
            self._sys.close(fd)
