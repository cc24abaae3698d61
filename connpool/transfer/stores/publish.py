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
mount (C{EXDEV}, which a bind mount also gives) gets a hidden copy first.

The source is taken without following links, and its private name is compared
with the inode that was written: before a rename, and after a link (a consumer
may take the published name away at once, so that one proves nothing).
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator

import attrs

from connpool.errors import Exists, StoreError
from connpool.transfer.names import INTERNAL, RelativeName, displayName
from connpool.transfer.stores.neighbours import Claim, keepApart
from connpool.transfer.stores.syscalls import NEW, READ, Syscalls, isFile
from connpool.transfer.stores.tree import Directory

__all__ = ["NUMBERED", "Published", "Publisher", "Source", "canLink", "candidates"]

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
    @ivar fresh: made a moment ago by this process, so that no earlier run can
        have published it.
    """

    fd: int
    directory: int
    name: str
    size: int
    fresh: bool = False


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
    @param canLink: whether the file system has hard links.
    @param claim: decides whether a name may be given.
    """

    def __init__(
        self, syscalls: Syscalls, *, canLink: bool = True, claim: Claim = keepApart
    ) -> None:
        self._sys = syscalls
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
        The caller has synced what must be synced before, and syncs
        C{directory} and unlinks the source afterwards.

        @param sync: whether the content must be on disk when this returns: a
            copy for another mount, or the file that was there already.
        @raise Exists: if the rule says so.
        """
        identity: tuple[int, int] | None = None
        if not source.fresh:
            status = self._sys.fstat(source.fd)
            identity = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and ifExists != "replace":
                # a second link is ours; a consumer may have moved it away since
                earlier = self._publishedBefore(identity, directory, name, ifExists)
                return Published(earlier or name, "stored")
        try:
            return self._choose(source, identity, directory, name, ifExists, sync)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        copy = self._copy(source, directory, sync)
        try:
            return self._choose(copy, None, directory, name, ifExists, sync)
        finally:
            self._sys.close(copy.fd)
            self._sys.remove(copy.name, directory.fd)

    def _choose(
        self,
        source: Source,
        identity: tuple[int, int] | None,
        directory: Directory,
        name: RelativeName,
        ifExists: str,
        sync: bool,
    ) -> Published:
        if not self._stillOurs(source, identity):
            raise _swapped(name)
        if ifExists == "replace":
            last = name.components[-1]
            self._claim(directory, last, self._replace, source, directory, last)
            return Published(name, "stored")
        why: Exists | None = None
        for candidate in candidates(name, ifExists):
            last = candidate.components[-1]
            try:
                linked = self._claim(directory, last, self._place, source, directory, last)
            except FileExistsError:
                if candidate is name and self._sameContent(source, directory, last, sync):
                    return Published(name, "duplicate")
            except Exists as neighbour:
                if candidate is name:
                    why = neighbour
            else:
                if linked and not self._stillOurs(source, identity):
                    self._sys.remove(last, directory.fd)
                    raise _swapped(name)
                return Published(candidate, "stored")
        raise why or Exists(f'"{name}" already exists on the receiver with different content')

    def _place(self, source: Source, directory: Directory, last: str) -> bool:
        """
        @return: whether it was linked, and has both names now.
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
                return True
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
        return False

    def _replace(self, source: Source, directory: Directory, last: str) -> None:
        try:
            self._sys.rename(
                source.name, last, src_dir_fd=source.directory, dst_dir_fd=directory.fd
            )
        except OSError as error:
            if error.errno in {errno.EISDIR, errno.ENOTEMPTY, errno.ENOTDIR, errno.EEXIST}:
                raise Exists(f'"{displayName(last)}" is a directory on the receiver') from None
            raise

    def _stillOurs(self, source: Source, identity: tuple[int, int] | None) -> bool:
        """
        The private name leads to the inode that was written, and to nothing
        that was put in its place while it lay there.
        """
        if identity is None:
            return True
        try:
            status = self._sys.stat(source.name, dir_fd=source.directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == identity

    def _publishedBefore(
        self, identity: tuple[int, int], directory: Directory, name: RelativeName, ifExists: str
    ) -> RelativeName | None:
        for candidate in candidates(name, ifExists):
            try:
                status = self._sys.stat(
                    candidate.components[-1], dir_fd=directory.fd, follow_symlinks=False
                )
            except FileNotFoundError:
                continue
            if (status.st_dev, status.st_ino) == identity:
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

    def _copy(self, source: Source, directory: Directory, sync: bool) -> Source:
        name = f"{INTERNAL}-{secrets.token_hex(8)}"
        fd = self._sys.open(name, NEW, 0o600, dir_fd=directory.fd)
        try:
            offset = 0
            while data := self._sys.pread(source.fd, _CHUNK, offset):
                self._sys.writeAll(fd, data, offset)
                offset += len(data)
            status = self._sys.fstat(source.fd)
            self._sys.fchmod(fd, status.st_mode & 0o777)
            self._sys.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
            if sync:
                self._sys.fsync(fd)
        except BaseException:
            self._sys.close(fd)
            self._sys.remove(name, directory.fd)
            raise
        return Source(fd, directory.fd, name, source.size, fresh=True)


def _swapped(name: RelativeName) -> StoreError:
    return StoreError(f'"{name}": somebody else replaced the private file before it was published')


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
