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

Somebody else may remove a directory, move it, or put another one or a mount in
its place.  The next look finds that: the directory is opened again, or made
again where that was asked for.  Between two looks a removed one answers with
C{ENOENT}; L{Tree.enter} then looks at once and does the same again.

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
from collections.abc import Callable
from functools import partial
from threading import Lock
from time import monotonic
from typing import TypeVar

from connpool.errors import Exists
from connpool.transfer.names import displayName
from connpool.transfer.stores.caseindex import Claim, Index, keepApart
from connpool.transfer.stores.inheritance import defaultAclOf
from connpool.transfer.syscalls import DIRECTORY, Syscalls, filesystemType

__all__ = ["FRESH", "Directory", "Followed", "Tree"]

T = TypeVar("T")

#: Seconds for which a directory that was looked at is taken to be in its place.
FRESH = 0.02
#: Times that something is tried in a directory that keeps vanishing.
TRIES = 3


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
        setgid bit and a default ACL that the parent hands down are kept.
    @param keep: how many descriptors are kept without a user.
    @param claim: decides whether a directory may be made.
    @param accept: called with each directory that was opened; may refuse it
        with a L{TransferError}.
    @param vanished: called with the components of a held directory that is no
        longer in its place; not for those below it.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        root: int,
        dirMode: int,
        keep: int = 64,
        claim: Claim = keepApart,
        accept: Callable[[Directory], None] | None = None,
        vanished: Callable[[tuple[str, ...]], None] | None = None,
    ) -> None:
        self._sys = syscalls
        self._claim = claim
        self._accept = accept
        self._vanished = vanished
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

    def enter(
        self, components: tuple[str, ...], use: Callable[[Directory], T]
    ) -> tuple[T, Directory]:
        """
        Call C{use} with a directory, which is made if it is missing; once more
        if it, or what C{use} needs in it, has vanished meanwhile.

        @return: what C{use} returned, and the directory, in use until L{release}.
        @raise TransferError, OSError: as L{acquire} or C{use} does; nothing is
            in use then.
        """
        for again in range(TRIES - 1, -1, -1):
            try:
                directory = self.acquire(components, create=True)
            except FileNotFoundError:  # the one above it vanished during the walk
                if not again:
                    raise
                continue
            try:
                return use(directory), directory
            except FileNotFoundError:
                self.release(directory)
                self.forget(directory)
                if not again:
                    raise
            except BaseException:
                self.release(directory)
                raise
        raise AssertionError("unreachable")

    def hold(self, directory: Directory) -> Directory:
        """
        Use a directory that is in use already once more, until L{release}.
        """
        with self._lock:
            directory.users += directory is not self._root
        return directory

    @property
    def root(self) -> int:
        """
        The descriptor of the root.
        """
        return self._root.fd

    def rooted(self) -> None:
        """
        The root's descriptor leads to another directory now.
        """
        with self._lock:
            self._root.identity = _identity(self._sys.fstat(self._root.fd))
            self._root.filesystem = filesystemType(self._root.fd)
            self._root.index = None
            for held in self._held.values():
                held.looked = float("-inf")

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
            if self._vanished is not None and held.parent is parent:
                self._vanished(components)
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
        try:
            opened = Directory(fd, _identity(self._sys.fstat(fd)), parent, components)
            if self._accept is not None:
                self._accept(opened)
        except BaseException:
            self._sys.close(fd)
            raise
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
        # mkdir took the umask off it, unless a default ACL stands in its place,
        # which is not for private directories
        if made and (self._accept is not None or defaultAclOf(self._sys, parent.fd) is None):
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


class Followed:
    """
    A directory that its user keeps, and follows when somebody takes it away.
    """

    def __init__(self, tree: Tree, components: tuple[str, ...]) -> None:
        self._tree = tree
        self._components = components
        self._directory = tree.acquire(components, create=True)

    @property
    def fd(self) -> int:
        """
        The descriptor of the directory, until it L{changed}.
        """
        return self._directory.fd

    def changed(self) -> bool:
        """
        Look for it, and make it again if it is missing.

        @return: whether it is another one than before: what its user has open
            in the older one is lost.
        """
        found = self._tree.acquire(self._components, create=True)
        older, self._directory = self._directory, found
        self._tree.release(older)
        return found is not older

    def doubt(self) -> None:
        """
        Take it for vanished until somebody has looked: a call in it said so.
        """
        self._tree.forget(self._directory)

    def hold(self) -> Directory:
        """
        Use the directory as it is now, until L{release}.
        """
        return self._tree.hold(self._directory)

    def release(self, directory: Directory) -> None:
        """
        Let go of what L{hold} returned.
        """
        self._tree.release(directory)

    def close(self) -> None:
        """
        Let go of the descriptor.
        """
        self._tree.release(self._directory)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _inTheWay(error: OSError, name: str) -> Exception:
    if error.errno in {errno.ENOTDIR, errno.ELOOP, errno.EMLINK}:
        return Exists(f'"{displayName(name)}" is not a directory on the receiver')
    return error
