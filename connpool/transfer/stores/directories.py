"""
Walking below a root that one does not own alone.

Theory of operation
===================
A directory is reached from its parent's open descriptor, one component at a
time, and is never a symbolic link: whatever a local attacker puts in the way,
the walk ends in a real directory below the root or with an error.

Descriptors are kept for the next file of the same directory.  A kept one is used only while its
name in the parent still leads to it (one C{stat} a level, at most every C{LOOK_SECONDS}
seconds); otherwise C{mv} by the operator would redirect files that arrive later.

Somebody else may remove a directory, move it, or put another one or a mount in
its place.  The next look finds that: the directory is opened again, or made
again where that was asked for.  Between two looks a removed one answers with
C{ENOENT}; L{Directories.enter} then looks at once and does the same again.

A new file is durable when its directory was synced, and the directory is
reachable after a power cut when its own name in its parent was.  C{named} says
that this happened since we hold the descriptor; who made the directory does
not matter, since another process may have made it a moment ago.

The root is held by a descriptor, so whatever happens to its path nothing is written elsewhere.
When the path leads to something else (the directory was moved, another one or a mount was put
in its place) nothing new is taken, until it leads back.  Only a directory that was removed for
good is replaced: then a new one under the same path, on the same device, becomes the root, in
the place of the old descriptor.  On another device it may be the empty directory below a disk
that is not mounted.  An operator is told the path; a sender is not.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from time import monotonic
from typing import TypeVar, TypeVarTuple

import attrs
from twisted.logger import Logger

from connpool.errors import Exists, TransferError
from connpool.transfer.names import INTERNAL, displayName
from connpool.transfer.stores.caseindex import Claim, Index, keepApart
from connpool.transfer.syscalls import DIRECTORY, Syscalls, filesystemType, reasonOf

__all__ = [
    "LOOK_SECONDS",
    "NOTHING_HANDED_DOWN",
    "Directories",
    "Directory",
    "Followed",
    "Inheritance",
    "RootDirectory",
    "Trouble",
    "refuseInheritance",
]

T = TypeVar("T")
_Ts = TypeVarTuple("_Ts")

#: Seconds for which a directory that was looked at is taken to be in its place.
LOOK_SECONDS = 0.02
#: Times that something is tried in a directory that keeps vanishing.
VANISHED_TRIES = 3

#: The private directories that everything needs.
_PRIVATE = ("temporary", "done", "ledger", "partials")
_DEFAULT_ACL = "system.posix_acl_default"


@attrs.frozen
class Inheritance:
    """
    The group and the default ACL, as Linux keeps it, that a directory hands down.
    """

    group: int | None
    acl: bytes | None


#: Most directories hand down nothing; theirs is this very object.
NOTHING_HANDED_DOWN = Inheritance(None, None)


class Directory:
    """
    A held directory.

    @ivar fd: its descriptor, readable.
    @ivar filesystem: the type that it lies on: its parent's, unless something
        is mounted here.
    @ivar index: the names in it, if they are known.
    @ivar inheritance: what it hands down, as it was at the last look; L{None} if
        nobody has asked since.
    @ivar looked: when its name was last seen to lead to it.
    @ivar named: whether its names, from the root to it, are known to be on disk.
    """

    __slots__ = (
        "components",
        "fd",
        "filesystem",
        "index",
        "inheritance",
        "inode",
        "looked",
        "named",
        "parent",
        "users",
    )

    def __init__(
        self,
        fd: int,
        inode: tuple[int, int],
        parent: Directory | None,
        components: tuple[str, ...],
    ) -> None:
        self.fd = fd
        self.inode: tuple[int, int] = inode
        self.filesystem: str = (
            parent.filesystem
            if parent is not None and parent.inode[0] == inode[0]
            else filesystemType(fd)
        )
        self.parent = parent
        self.components = components
        self.looked = monotonic()
        self.named = parent is None
        self.users = 0
        self.index: Index | None = None
        self.inheritance: Inheritance | None = None

    def way(self) -> list[Directory]:
        """
        Return the directories to sync for the names in this one, and its own, to be on disk.
        """
        way = [self]
        while not way[-1].named and way[-1].parent is not None:
            way.append(way[-1].parent)
        return way


class Directories:
    """
    The directories below one root.

    @ivar root: descriptor of the root, which stays the caller's.
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
        self.root = root
        self._root = Directory(root, _inode(syscalls.fstat(root)), None, ())
        self._held: OrderedDict[tuple[str, ...], Directory] = OrderedDict()
        self._lock = Lock()

    def acquire(self, components: tuple[str, ...], *, create: bool) -> Directory:
        """
        Reach a directory and hold it.

        @return: the directory, in use until L{release}.
        @raise Exists: if something else than a directory is in the way, or a
            neighbour of one that would be made.
        @raise FileNotFoundError: if it is missing and C{create} is false.
        """
        if not components:
            if monotonic() - self._root.looked >= LOOK_SECONDS:
                _lookedAt(self._root)
            return self._root
        with self._lock:
            held = self._held.get(components)
            if held is not None and monotonic() - held.looked < LOOK_SECONDS:
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
        self,
        components: tuple[str, ...],
        use: Callable[[Directory, *_Ts], T],
        *arguments: *_Ts,
    ) -> tuple[T, Directory]:
        """
        Call C{use} with a directory, which is made if it is missing; once more
        if it, or what C{use} needs in it, has vanished meanwhile.

        @return: what C{use} returned, and the directory, in use until L{release}.
        @raise TransferError, OSError: as L{acquire} or C{use} does; nothing is
            in use then.
        """
        tries = VANISHED_TRIES
        while True:
            directory = None
            try:
                directory = self.acquire(components, create=True)
                return use(directory, *arguments), directory
            except FileNotFoundError:
                tries -= 1
                if directory is not None:  # else one above it vanished during the walk
                    self.release(directory)
                    self.forget(directory)
                if not tries:
                    raise
            except BaseException:
                if directory is not None:
                    self.release(directory)
                raise

    def hold(self, directory: Directory) -> Directory:
        """
        Use a directory that is in use already once more, until L{release}.
        """
        with self._lock:
            directory.users += directory is not self._root
        return directory

    def inheritance(self, directory: Directory) -> Inheritance:
        """
        Tell what a directory that is in use hands down to files made in it.
        """
        if directory.inheritance is None:
            status = self._sys.fstat(directory.fd)
            group = status.st_gid if status.st_mode & stat.S_ISGID else None
            handed = Inheritance(group, defaultAclOf(self._sys, directory.fd))
            directory.inheritance = NOTHING_HANDED_DOWN if handed == NOTHING_HANDED_DOWN else handed
        return directory.inheritance

    def rooted(self) -> None:
        """
        The root's descriptor leads to another directory now.
        """
        with self._lock:
            self._root.inode = _inode(self._sys.fstat(self._root.fd))
            self._root.filesystem = filesystemType(self._root.fd)
            self._root.index = None
            self._root.inheritance = None
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
        way = directory.way()
        for each in way:
            self._sys.fsync(each.fd)
        for each in way:
            each.named = True

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
                _lookedAt(held)
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
            opened = Directory(fd, _inode(self._sys.fstat(fd)), parent, components)
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
        return _inode(status) == held.inode

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

    def __init__(self, directories: Directories, components: tuple[str, ...]) -> None:
        self._directories = directories
        self._components = components
        self._directory = directories.acquire(components, create=True)

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
        found = self._directories.acquire(self._components, create=True)
        older, self._directory = self._directory, found
        self._directories.release(older)
        return found is not older

    def doubt(self) -> None:
        """
        Take it for vanished until somebody has looked: a call in it said so.
        """
        self._directories.forget(self._directory)

    def hold(self) -> Directory:
        """
        Use the directory as it is now, until L{release}.
        """
        return self._directories.hold(self._directory)

    def release(self, directory: Directory) -> None:
        """
        Let go of what L{hold} returned.
        """
        self._directories.release(directory)

    def close(self) -> None:
        """
        Let go of the descriptor.
        """
        self._directories.release(self._directory)


@attrs.frozen
class Trouble:
    """
    The reason why nothing is taken.

    @ivar text: one line for the operator.
    @ivar told: one line for senders, without the path.
    """

    text: str
    told: str


class RootDirectory:
    """
    The root of a store, as long as its path leads to it.

    @param path: of the root.
    @param fd: the descriptor that holds it.
    @param trees: of the private directories, and of the published ones.
    @param log: told when the trouble changes.
    """

    def __init__(
        self, syscalls: Syscalls, path: str, fd: int, trees: Sequence[Directories], log: Logger
    ) -> None:
        self._sys = syscalls
        self._path = path
        self._fd = fd
        self._trees = trees
        self._log = log
        self._trouble: Trouble | None = None

    def trouble(self) -> Trouble | None:
        """
        Look, and make private directories that are missing.

        @return: L{None} if the root can be used.
        """
        found = self._look()
        if found != self._trouble:
            self._trouble = found
            if found is None:
                self._log.info("directory {path} can be used again", path=displayName(self._path))
            else:
                self._log.warn("no files are taken: {text}", text=found.text)
        return found

    def _look(self, again: bool = True) -> Trouble | None:
        if not self._isThere():
            return self._troubleOf(
                "was moved away, replaced or covered by a mount",
                "put it back, or restart the receiver to use what is there now",
            )
        if self._sys.fstatvfs(self._fd).f_flag & os.ST_RDONLY:
            return self._troubleOf("is mounted read-only", "remount it read-write")
        private = self._trees[0]
        try:
            for name in _PRIVATE:
                _, directory = private.enter((INTERNAL, name), lambda _: None)
                private.release(directory)
        except FileNotFoundError:
            if again:  # it may have been removed during the look: the next one says so
                return self._look(again=False)
            return self._troubleOf("is being removed by somebody", "find out who cleans up there")
        except (OSError, TransferError) as error:
            return Trouble(
                f"directory {displayName(self._path)} cannot be used: {reasonOf(error)};"
                f" it must be writable, and {INTERNAL} in it private",
                f"the receiver cannot use its private directory {INTERNAL}; tell its operator",
            )
        return None

    def _troubleOf(self, what: str, remedy: str) -> Trouble:
        return Trouble(
            f"directory {displayName(self._path)} {what}; {remedy}",
            f"the receiver's directory {what}; tell its operator",
        )

    def _isThere(self) -> bool:
        ours = self._sys.fstat(self._fd)
        try:
            status = self._sys.stat(self._path)
        except OSError:
            return False
        # the descriptor keeps the numbers of a removed one from being given again
        if (status.st_dev, status.st_ino) == (ours.st_dev, ours.st_ino):
            return True
        return not ours.st_nlink and stat.S_ISDIR(status.st_mode) and self._adopt(ours.st_dev)

    def _adopt(self, device: int) -> bool:
        """
        Take the directory that was made in the place of the removed one.
        """
        try:
            fd = self._sys.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            if self._sys.fstat(fd).st_dev != device:
                return False
            self._sys.dup2(fd, self._fd, False)
        finally:
            self._sys.close(fd)
        for each in self._trees:
            each.rooted()
        self._log.warn(
            "directory {path} had been removed and was made again; what was in it is lost",
            path=displayName(self._path),
        )
        return True


def defaultAclOf(syscalls: Syscalls, directory: int) -> bytes | None:
    """
    Return the default ACL as Linux keeps it; L{None} if there is none.
    """
    try:
        acl: bytes = syscalls.getxattr(directory, _DEFAULT_ACL)
    except OSError:
        return None
    return acl


def refuseInheritance(syscalls: Syscalls, directory: int) -> None:
    """
    Let a private directory hand nothing down: what its own parent gave it would
    come along with the files that are published elsewhere.
    """
    mode = syscalls.fstat(directory).st_mode
    if mode & stat.S_ISGID:
        syscalls.fchmod(directory, mode & 0o777)
    if defaultAclOf(syscalls, directory) is not None:
        syscalls.removexattr(directory, _DEFAULT_ACL)


def _lookedAt(directory: Directory) -> None:
    directory.looked = monotonic()
    directory.inheritance = None


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _inTheWay(error: OSError, name: str) -> Exception:
    if error.errno in {errno.ENOTDIR, errno.ELOOP, errno.EMLINK}:
        return Exists(f'"{displayName(name)}" is not a directory on the receiver')
    return error
