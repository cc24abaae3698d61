"""
Copies of finished files that cannot be published as they lie.

Theory of operation
===================
No name can be given across mounts, nor to a file whose private name somebody
removed, nor a group that this process is not in.  Then the content is copied to a hidden file
beside the name that it will get.  A process may die at any time, and nobody
searches the directories of users for what it left: before a copy is begun, a
note among the private files says where it will lie.  The note is removed last,
and one that became too old, like any private file, takes the copy along
(L{Copies.remove}).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from connpool.errors import TransferError
from connpool.transfer.names import INTERNAL, RelativeName
from connpool.transfer.stores.directories import Directory, Tree
from connpool.transfer.stores.inheritance import inherit
from connpool.transfer.stores.publish import Source
from connpool.transfer.stores.recordlines import decodeLine, encodeLine, linesOf
from connpool.transfer.syscalls import NEW, READ, Syscalls

__all__ = ["TEMPORARY", "Copies"]

#: The directory of private files that cannot be resumed.
TEMPORARY = (INTERNAL, "temporary")

_NOTE = re.compile(r"copy-([0-9a-f]{16})\Z")
#: Bytes that are read of a note: a path of 4,096, escaped.
_MUCH = 1 << 16
_CHUNK = 1 << 20


class Copies:
    """
    @param private: the private directories.
    @param tree: the published directories.
    """

    def __init__(self, syscalls: Syscalls, private: Tree, tree: Tree) -> None:
        self._sys = syscalls
        self._private = private
        self._tree = tree

    @contextmanager
    def made(
        self, source: Source, directory: Directory, name: RelativeName, sync: bool
    ) -> Iterator[Source]:
        """
        Have a hidden copy of C{source} in C{directory}, for as long as it takes
        to publish it.

        @param name: the one that it is to get.
        @param sync: whether it must be on disk.
        """
        token = secrets.token_hex(8)
        note, hidden = f"copy-{token}", f"{INTERNAL}-{token}"
        fd = None
        _, temporary = self._private.enter(
            TEMPORARY, lambda private: self._note(private.fd, note, name, sync)
        )
        try:
            fd = self._sys.open(hidden, NEW, 0o600, dir_fd=directory.fd)
            self._copy(source, fd, directory)
            if sync:
                self._sys.fsync(fd)
            yield Source(fd, directory.fd, hidden, source.size, fresh=True)
        finally:
            with suppress(OSError):  # then the note is still there
                if fd is not None:
                    self._sys.close(fd)
                self._sys.remove(hidden, directory.fd)
                self._sys.remove(note, temporary.fd)
            self._private.release(temporary)

    def remove(self, name: str, temporary: int) -> None:
        """
        Remove a private file that is too old, and the copy that it is a note of.

        @param temporary: descriptor of the directory of private files.
        """
        found = _NOTE.match(name)
        fd = self._sys.openIfThere(name, READ, temporary) if found else None
        if found and fd is not None:
            try:
                noted = self._sys.pread(fd, _MUCH, 0)
            finally:
                self._sys.close(fd)
            self._removeCopy(noted, f"{INTERNAL}-{found[1]}")
        self._sys.remove(name, temporary)

    def _note(self, temporary: int, note: str, name: RelativeName, sync: bool) -> None:
        fd = self._sys.open(note, NEW, 0o600, dir_fd=temporary)
        try:
            self._sys.writeAll(fd, encodeLine(name.path), 0)
            if sync:
                self._sys.fsync(fd)
                self._sys.fsync(temporary)
        finally:
            self._sys.close(fd)

    def _copy(self, source: Source, target: int, directory: Directory) -> None:
        offset = 0
        while data := self._sys.pread(source.fd, _CHUNK, offset):
            self._sys.writeAll(target, data, offset)
            offset += len(data)
        inherit(self._sys, target, directory.fd, source.mode)
        status = self._sys.fstat(source.fd)
        self._sys.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _removeCopy(self, noted: bytes, hidden: str) -> None:
        try:
            (line,) = (line for _, line in linesOf(noted))
            name = RelativeName.parse(decodeLine(line), profile="posix")
            directory = self._tree.acquire(name.components[:-1], create=False)
        except (ValueError, TypeError, FileNotFoundError, TransferError):
            return  # it was not begun, or its directory is gone
        try:
            self._sys.remove(hidden, directory.fd)
        finally:
            self._tree.release(directory)
