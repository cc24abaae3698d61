"""
Giving a finished file its name.

Theory of operation
===================
Until here the file lies under a private name.  One atomic call gives it the
public one; whether that name is taken is decided by that call and by nothing
before it, so any number of senders may race.

C{link} refuses to clobber on every POSIX file system that has links, and if it
fails with C{EEXIST} on our own inode an earlier run had succeeded.  Where there
are no links C{renameat2(RENAME_NOREPLACE)} serves.  A directory on another
mount (C{EXDEV}, which a bind mount also gives) gets a hidden copy first
(L{connpool.transfer.stores.copies}), and so does a file whose private name
somebody removed while it was received.

The source is taken without following links, and its private name is compared
with the inode that was written: before a rename, and after a link (a consumer
may take the published name away at once, so that one proves nothing).
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from connpool.errors import Exists, Skipped, StoreError
from connpool.transfer.names import RelativeName, displayName
from connpool.transfer.stores.caseindex import Claim, keepApart
from connpool.transfer.stores.directories import Directory
from connpool.transfer.syscalls import NEW, READ, Syscalls, isFile

if TYPE_CHECKING:
    from connpool.transfer.stores.copies import Copies

__all__ = ["NUMBERED", "Published", "Publisher", "Source", "canLink", "candidates", "isTaken"]

#: Numbers that C{--if-exists rename} tries before it takes a random mark.
NUMBERED = 100
_RANDOM = 8
_CHUNK = 1 << 20

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


@attrs.define
class Source:
    """
    A finished private file.

    @ivar fd: the descriptor that wrote it, readable too.
    @ivar directory: descriptor of the directory it lies in.
    @ivar name: its name there.
    @ivar mode: the permission bits that it shall have.
    @ivar apart: only a copy in the directory of its name can have the group or
        the ACL that files there have.
    @ivar held: the private directory, if it is held for this file.
    @ivar fresh: made a moment ago by this process, so that no earlier run can
        have published it.
    @ivar linked: it has its public name too, from this attempt or an earlier
        one: the private one is evidence now.
    @ivar moved: the public name took the place of the private one.
    """

    fd: int
    directory: int
    name: str
    size: int
    mode: int = 0o600
    apart: bool = False
    held: Directory | None = None
    fresh: bool = False
    linked: bool = False
    moved: bool = False


@attrs.frozen
class Published:
    """
    @ivar name: what it is called now.
    @ivar status: C{stored} or C{duplicate}.
    """

    name: RelativeName
    status: str


class Publisher:
    """
    @param copies: makes those for other mounts.
    @param canLink: whether the file system has hard links.
    @param claim: decides whether a name may be given.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        copies: Copies,
        *,
        canLink: bool = True,
        claim: Claim = keepApart,
    ) -> None:
        self._sys = syscalls
        self.copies = copies
        self._canLink = canLink
        self._claim = claim

    def publish(
        self,
        source: Source,
        directory: Directory,
        name: RelativeName,
        ifExists: str,
        sync: bool,
    ) -> Published:
        """
        The caller has synced what must be synced before, and afterwards syncs
        C{directory} and lets go of the private name (L{discard}).

        @param sync: whether the content must be on disk when this returns: a
            copy, or the file that was there already.
        @raise Exists: if the rule says so.
        @raise FileNotFoundError: if C{directory} has vanished.
        """
        if source.linked and ifExists != "replace":
            status = self._sys.fstat(source.fd)
            if status.st_nlink > 1:
                # the second link is ours; a consumer may have moved it away since
                earlier = self._publishedBefore(status, directory, name, ifExists)
                return Published(earlier or name, "stored")
        try:
            if not source.apart:
                return self._choose(source, directory, name, ifExists, sync)
        except FileNotFoundError:
            if self._leadsToIt(source, source.name, source.directory):
                raise
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        with self.copies.made(source, directory, name, sync) as copy:
            return self._choose(copy, directory, name, ifExists, sync)

    def discard(self, source: Source) -> None:
        """
        Remove the private name, if it still leads to that file, which is open
        unless it is fresh.  What cannot be removed now will be too old one day.
        """
        try:
            if not source.moved and self._stillOurs(source):
                self._sys.unlink(source.name, dir_fd=source.directory)
        except OSError:
            pass

    def _choose(
        self,
        source: Source,
        directory: Directory,
        name: RelativeName,
        ifExists: str,
        sync: bool,
    ) -> Published:
        if not self._stillOurs(source):
            raise _swapped(name)
        if ifExists == "replace":
            last = name.components[-1]
            self._claim(directory, last, self._replace, source, directory, last)
            return Published(name, "stored")
        why: Exists | None = None
        for candidate in candidates(name, ifExists):
            last = candidate.components[-1]
            try:
                self._claim(directory, last, self._place, source, directory, last)
            except FileExistsError:
                # also under a number: who sends it every night stores it once
                if self._sameContent(source, directory, last, sync):
                    return Published(candidate, "duplicate")
            except Exists as neighbour:
                if candidate is name:
                    why = neighbour
            else:
                if source.linked and not self._wasLinked(source, directory, last):
                    self._sys.remove(last, directory.fd)
                    source.linked = False
                    raise _swapped(name)
                return Published(candidate, "stored")
        raise why or isTaken(name, ifExists)

    def _place(self, source: Source, directory: Directory, last: str) -> None:
        """
        @raise FileExistsError: if the name is taken.
        """
        if self._canLink:
            try:
                self._sys.link(
                    source.name,
                    last,
                    src_dir_fd=source.directory,
                    dst_dir_fd=directory.fd,
                    follow_symlinks=False,
                )
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            else:
                source.linked = True
                return
        try:
            self._sys.renameNoReplace(
                source.name, last, src_dir_fd=source.directory, dst_dir_fd=directory.fd
            )
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOSYS}:
                raise StoreError(
                    "the receiver's file system can neither link nor rename without replacing;"
                    " its operator may use --if-exists replace"
                ) from None
            raise
        source.moved = True

    def _replace(self, source: Source, directory: Directory, last: str) -> None:
        try:
            self._sys.rename(
                source.name, last, src_dir_fd=source.directory, dst_dir_fd=directory.fd
            )
        except OSError as error:
            if error.errno in {errno.EISDIR, errno.ENOTEMPTY, errno.ENOTDIR, errno.EEXIST}:
                raise Exists(f'"{displayName(last)}" is a directory on the receiver') from None
            raise
        source.moved = True

    def _stillOurs(self, source: Source) -> bool:
        """
        The private name leads to the inode that was written, and to nothing
        that was put in its place while it lay there.

        @raise FileNotFoundError: somebody removed it.
        """
        if source.fresh:
            return True
        status = self._sys.stat(source.name, dir_fd=source.directory, follow_symlinks=False)
        return _inode(status) == _inode(self._sys.fstat(source.fd))

    def _wasLinked(self, source: Source, directory: Directory, last: str) -> bool:
        """
        Tell whether the name that was linked was that of our file: the private
        name says so, or the public one where somebody removed that meanwhile.
        """
        try:
            return self._stillOurs(source)
        except FileNotFoundError:
            return self._leadsToIt(source, last, directory.fd)

    def _leadsToIt(self, source: Source, name: str, directory: int) -> bool:
        """
        Tell whether C{name} is one of C{source}.
        """
        try:
            status = self._sys.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return _inode(status) == _inode(self._sys.fstat(source.fd))

    def _publishedBefore(
        self, ours: os.stat_result, directory: Directory, name: RelativeName, ifExists: str
    ) -> RelativeName | None:
        for candidate in candidates(name, ifExists):
            try:
                status = self._sys.stat(
                    candidate.components[-1], dir_fd=directory.fd, follow_symlinks=False
                )
            except FileNotFoundError:
                continue
            if _inode(status) == _inode(ours):
                return candidate
        return None

    def _sameContent(self, source: Source, directory: Directory, last: str, sync: bool) -> bool:
        try:
            fd = self._sys.open(last, READ, dir_fd=directory.fd)
        except OSError:
            return False  # a link, or not ours to read: a different thing
        try:
            status = self._sys.fstat(fd)
            if not isFile(status) or status.st_size != source.size:
                return False
            offset = 0
            while offset < source.size:
                ours = self._sys.pread(source.fd, _CHUNK, offset)
                if not ours or ours != self._sys.pread(fd, len(ours), offset):
                    return False
                offset += len(ours)
            if sync:
                self._sys.fsync(fd)
            return True
        finally:
            self._sys.close(fd)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _swapped(name: RelativeName) -> StoreError:
    return StoreError(f'"{name}": somebody else replaced the private file before it was published')


def isTaken(name: RelativeName, ifExists: str) -> Exists:
    """
    The answer where the name is taken and the rule does not give another one.
    """
    taken = Skipped if ifExists == "skip" else Exists
    return taken(f'"{name}" already exists on the receiver with different content')


def candidates(name: RelativeName, ifExists: str) -> Iterator[RelativeName]:
    yield name
    if ifExists == "rename":
        for number in range(1, NUMBERED + 1):
            yield name.variant(str(number))
        for _ in range(_RANDOM):
            yield name.variant(secrets.token_hex(4))


def canLink(syscalls: Syscalls, directory: int) -> bool:
    """
    Try what publishing will need, in our own directory.
    """
    name = f"probe-{secrets.token_hex(8)}"
    other = f"{name}-link"
    syscalls.close(syscalls.open(name, NEW, 0o600, dir_fd=directory))
    try:
        syscalls.link(name, other, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    else:
        syscalls.remove(other, directory)
        return True
    finally:
        syscalls.remove(name, directory)
