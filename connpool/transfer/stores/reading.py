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
from collections.abc import Iterator
from heapq import nsmallest

import attrs

from connpool.errors import Busy, NameRefused, NotFound, TransferError
from connpool.transfer.names import RelativeName
from connpool.transfer.records import FileRange, ListedEntry, Listing
from connpool.transfer.stores.directories import Directories, Directory
from connpool.transfer.syscalls import Syscalls, isFile

__all__ = ["MAX_READ_BYTES", "Reading", "notFound", "openAgain"]

#: Bytes that are read at once.
MAX_READ_BYTES = 4 << 20

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


def _after(names: list[str], last: bytes, count: int) -> list[tuple[bytes, str]]:
    raw = ((os.fsencode(name), name) for name in names)
    return nsmallest(count, (each for each in raw if each[0] > last))


@attrs.frozen
class Reading:
    """
    The reads of a store; each runs in a thread.
    """

    _sys: Syscalls
    _directories: Directories

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
            try:
                names = self._sys.listdir(directory.fd)
            except OSError:
                raise notFound(name) from None
            found: list[ListedEntry] = []
            # more than asked for: some of them are nothing to be read
            while page := _after(names, last, 2 * limit):
                last = page[-1][0]
                for _, each in page:
                    entry = self._entry(each, directory)
                    if entry is not None and len(found) == limit:
                        return Listing(tuple(found), more=True)
                    if entry is not None:
                        found.append(entry)
            return Listing(tuple(found), more=False)

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
