"""
Walking below a root that one does not own alone.

Theory of operation
===================
A directory is reached from its parent's open descriptor, one component at a
time, and is never a symbolic link: whatever a local attacker puts in the way,
the walk ends in a real directory below the root or with an error.

Descriptors are kept for the next file of the same directory.  A kept one is
used only while its name in the parent still leads to it (one C{stat} a level,
at most every C{FRESH} seconds); otherwise C{mv} by the operator would redirect
files that arrive later.

A new file is durable when its directory was synced, and the directory is
reachable after a power cut when its own name in its parent was.  C{named} says
that this happened since we hold the descriptor; who made the directory does
not matter, since another process may have made it a moment ago.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from functools import partial
from threading import Lock
from time import monotonic

from connpool.errors import Exists
from connpool.transfer.names import displayName
from connpool.transfer.stores.caseindex import Claim, Index, keepApart
from connpool.transfer.syscalls import DIRECTORY, Syscalls, filesystemType

__all__ = ["Directory", "Tree"]


#: Seconds for which a directory that was looked at is taken to be in its place.
FRESH = 0.02


class Directory:
    """
    A held directory.

    @ivar fd: its descriptor, readable.
    @ivar filesystem: the type that it lies on: its parent's, unless something
        is mounted here.
    @ivar index: the names in it, if they are known.
    @ivar looked: when its name was last seen to lead to it.
    @ivar named: whether its names, from the root to it, are known to be on disk.
    """

    __slots__ = (
        "components",
        "fd",
        "filesystem",
        "identity",
        "index",
        "looked",
        "named",
        "parent",
        "users",
    )

    def __init__(
        self,
        fd: int,
        identity: tuple[int, int],
        parent: Directory | None,
        components: tuple[str, ...],
    ) -> None:
        self.fd = fd
        self.identity: tuple[int, int] = identity
        self.filesystem: str = (
            parent.filesystem
            if parent is not None and parent.identity[0] == identity[0]
            else filesystemType(fd)
        )
        self.parent = parent
        self.components = components
        self.looked = monotonic()
        self.named = parent is None
        self.users = 0
        self.index: Index | None = None


class Tree:
    """
    The directories below one root.

    @param root: descriptor of the root, which stays the caller's.
    @param dirMode: permission bits of new directories, whatever the umask; a
        setgid bit that the parent hands down is kept.
    @param keep: how many descriptors are kept without a user.
    @param claim: decides whether a directory may be made.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        root: int,
        dirMode: int,
        keep: int = 64,
        claim: Claim = keepApart,
    ) -> None:
        self._sys = syscalls
        self._claim = claim
        self._dirMode = dirMode
        self._keep = keep
        self._root = Directory(root, _identity(syscalls.fstat(root)), None, ())
        self._held: OrderedDict[tuple[str, ...], Directory] = OrderedDict()
        self._lock = Lock()

    def acquire(self, components: tuple[str, ...], *, create: bool) -> Directory:
        """
        @return: the directory, in use until L{release}.
        @raise Exists: if something else than a directory is in the way, or a
            neighbour of one that would be made.
        @raise FileNotFoundError: if it is missing and C{create} is false.
        """
        if not components:
            return self._root
        with self._lock:
            held = self._held.get(components)
            if held is not None and monotonic() - held.looked < FRESH:
                held.users += 1
                return held
            directory = self._root
            try:
                for depth in range(1, len(components) + 1):
                    directory = self._step(directory, components[:depth], create)
                directory.users += 1
                return directory
            finally:
                # also after a walk that failed: what it passed is held
                if len(self._held) > self._keep:
                    self._evict()

    def release(self, directory: Directory) -> None:
        """
        Say that the descriptor is no longer used by this caller.
        """
        if directory is self._root:
            return
        with self._lock:
            directory.users -= 1
            if not directory.users and self._held.get(directory.components) is not directory:
                self._close(directory)

    def forget(self, directory: Directory) -> None:
        """
        Do not use this descriptor again: the directory is gone.
        """
        with self._lock:
            if self._held.get(directory.components) is directory:
                del self._held[directory.components]
                if not directory.users:
                    self._close(directory)

    def sync(self, directory: Directory) -> None:
        """
        Put the names in C{directory} on disk, and its own way from the root.
        """
        self._sys.fsync(directory.fd)
        self._syncName(directory)

    def _syncName(self, directory: Directory) -> None:
        if directory.named or directory.parent is None:
            return
        # the way there first: C{named} is about all of it, also for who looks meanwhile
        self._syncName(directory.parent)
        self._sys.fsync(directory.parent.fd)
        directory.named = True

    def close(self) -> None:
        """
        Let go of every descriptor that has no user.
        """
        with self._lock:
            self._keep = 0
            self._evict()

    def _step(self, parent: Directory, components: tuple[str, ...], create: bool) -> Directory:
        name = components[-1]
        held = self._held.get(components)
        if held is not None:
            if held.parent is parent and self._stillThere(held, name):
                self._held.move_to_end(components)
                held.looked = monotonic()
                return held
            del self._held[components]
            if not held.users:
                self._close(held)
        try:
            fd = self._sys.open(name, DIRECTORY, dir_fd=parent.fd)
        except FileNotFoundError:
            if not create:
                raise
            fd = self._make(parent, name)
        except OSError as error:
            raise _inTheWay(error, name) from None
        opened = Directory(fd, _identity(self._sys.fstat(fd)), parent, components)
        parent.users += 1
        self._held[components] = opened
        return opened

    def _stillThere(self, held: Directory, name: str) -> bool:
        assert held.parent is not None
        try:
            status = self._sys.stat(name, dir_fd=held.parent.fd, follow_symlinks=False)
        except OSError:
            return False
        return _identity(status) == held.identity

    def _make(self, parent: Directory, name: str) -> int:
        make = partial(self._sys.mkdir, name, self._dirMode, dir_fd=parent.fd)
        try:
            self._claim(parent, name, make)
        except FileExistsError:
            made = False  # somebody else did
        else:
            made = True
        try:
            fd = self._sys.open(name, DIRECTORY, dir_fd=parent.fd)
        except OSError as error:
            raise _inTheWay(error, name) from None
        if made:
            mode = stat.S_IMODE(self._sys.fstat(fd).st_mode)
            wanted = self._dirMode | (mode & stat.S_ISGID)
            if mode != wanted:
                self._sys.fchmod(fd, wanted)
        return fd

    def _evict(self) -> None:
        for components, directory in list(self._held.items()):
            if len(self._held) <= self._keep:
                return
            if not directory.users:
                del self._held[components]
                self._close(directory)
        if self._keep == 0 and any(not each.users for each in self._held.values()):
            self._evict()  # parents whose last child has just gone

    def _close(self, directory: Directory) -> None:
        self._sys.close(directory.fd)
        parent = directory.parent
        if parent is not None and parent is not self._root:
            parent.users -= 1
            if not parent.users and self._held.get(parent.components) is not parent:
                self._close(parent)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _inTheWay(error: OSError, name: str) -> Exception:
    if error.errno in {errno.ENOTDIR, errno.ELOOP, errno.EMLINK}:
        return Exists(f'"{displayName(name)}" is not a directory on the receiver')
    return error
