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
mount (C{EXDEV}, which a bind mount also gives) gets a hidden copy beside the
name first, and so does a file whose private name somebody removed while it was
received, or whose group this process is not in.  A process may die at any time,
and nobody searches the directories of users for what it left: before a copy is
begun, a note among the private files says where it will lie.  The note is
removed last, and one that became too old, like any private file, takes the copy
along (L{Publisher.remove}).

A file is written among the private ones, so the kernel cannot give it what its
directory hands down to files that are made there.  That is done here, as
C{open(2)} does it: the group of a setgid directory, and the default ACL with the
mode taken off it.  A process may not give a file to a group that it is not in;
then only a copy that is made in the directory itself can have that group.

The source is taken without following links, and its private name is compared
with the inode that was written: before a rename, and after a link (a consumer
may take the published name away at once, so that one proves nothing).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

import attrs

from connpool.errors import Exists, Skipped, StoreError, TransferError
from connpool.transfer.holes import dataFrom, dataRanges
from connpool.transfer.names import INTERNAL, RelativeName, displayName
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.caseindex import Claim
from connpool.transfer.stores.directories import Directories, Directory, Inheritance
from connpool.transfer.stores.receiptlog import receiptId
from connpool.transfer.stores.recordlines import decodeLine, encodeLine, linesOf
from connpool.transfer.syscalls import NEW, READ, Syscalls, isFile

__all__ = [
    "NUMBERED_NAMES",
    "TEMPORARY",
    "Published",
    "Publisher",
    "Source",
    "canLink",
    "candidates",
    "inherit",
    "isNote",
    "isTaken",
    "receiptOf",
    "temporaryName",
]

#: The directory of private files that cannot be resumed.
TEMPORARY = (INTERNAL, "temporary")

_prefix = secrets.token_hex(8)
_numbers = count()

#: Numbers that C{--if-exists rename} tries before it takes a random mark.
NUMBERED_NAMES = 100
_RANDOM_NAMES = 8
_CHUNK_BYTES = 1 << 20

_NOTE = re.compile(r"copy-([0-9a-f]{16})\Z")
#: Bytes that are read of a note: a path of 4,096, escaped.
_NOTE_BYTES = 1 << 16

_ACCESS_ACL = "system.posix_acl_access"
#: An ACL is a version and entries of tag, permissions and id, as in Linux'
#: C{posix_acl_xattr.h}.
_ACL_HEADER_BYTES = 4
_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


@attrs.define
class Source:
    """
    A finished private file.

    @ivar fd: the descriptor that wrote it, readable too.
    @ivar directory: descriptor of the directory it lies in.
    @ivar name: its name there.
    @ivar mode: the permission bits that it has, and in the end shall have.
    @ivar apart: only a copy in the directory of its name can have the group or
        the ACL that files there have.
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
    fresh: bool = False
    linked: bool = False
    moved: bool = False


@attrs.frozen
class Published:
    """
    The outcome of publishing.

    @ivar name: what it is called now.
    @ivar status: C{stored} or C{duplicate}.
    """

    name: RelativeName
    status: str


def receiptOf(
    offer: Offer,
    published: Published,
    size: int,
    root: bytes | None,
    durability: str,
    filesystem: str,
    finished: float,
) -> Receipt:
    """
    Write the receipt of C{offer}.

    @param root: of the content that came; L{None} if nobody could compare it.
    @param durability: the level that was reached.
    @param finished: wall-clock seconds.
    """
    # by position: names would take as long as all the rest
    return Receipt(
        offer.transferId,
        published.name.path,
        offer.name.path,
        size,
        published.status,
        durability,
        filesystem,
        "unverified" if root is None else "verified",
        offer.digest,
        None if root is None else root.hex(),
        offer.protocol,
        offer.principal,
        finished,
        offer.sha256,
        offer.holeBytes,
        offer.savedBytes,
    )


class Publisher:
    """
    The step that gives a finished file its name.

    @param private: the private directories.
    @param directories: the published ones.
    @param canLink: whether the file system has hard links.
    @param claim: decides whether a name may be given.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        private: Directories,
        directories: Directories,
        canLink: bool,
        claim: Claim,
    ) -> None:
        self._sys = syscalls
        self._private = private
        self._directories = directories
        self._canLink = canLink
        self._claim = claim

    def publish(self, source: Source, directory: Directory, offer: Offer) -> Published:
        """
        Give a file its name.  The caller has synced what must be synced before, and
        afterwards syncs C{directory} and lets go of the private name (L{discard});
        here a copy is synced, or the file that was there already.

        @raise Exists: if the rule says so.
        @raise FileNotFoundError: if C{directory} has vanished.
        """
        if source.linked and offer.ifExists != "replace":
            status = self._sys.fstat(source.fd)
            if status.st_nlink > 1:
                # the second link is ours; a consumer may have moved it away since
                earlier = self._publishedBefore(status, directory, offer)
                return Published(earlier or offer.name, "stored")
        try:
            if not source.apart:
                return self._choose(source, directory, offer)
        except FileNotFoundError:
            if self._leadsToIt(source, source.name, source.directory):
                raise
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        with self._copied(source, directory, offer) as copy:
            return self._choose(copy, directory, offer)

    def discard(self, source: Source) -> None:
        """
        Remove the private name, if it still leads to that file, which is open
        unless it is fresh.  What cannot be removed now will be too old one day.
        """
        try:
            if not source.moved and (source.fresh or self._stillOurs(source)):
                self._sys.unlink(source.name, dir_fd=source.directory)
        except OSError:
            pass

    def remove(self, name: str, temporary: int) -> None:
        """
        Remove a private file that is too old, and the copy that it is a note of.

        @param temporary: descriptor of the directory of private files.
        """
        found = _NOTE.match(name)
        fd = self._sys.openIfThere(name, READ, temporary) if found else None
        if found and fd is not None:
            try:
                noted = self._sys.pread(fd, _NOTE_BYTES, 0)
            finally:
                self._sys.close(fd)
            self._removeCopy(noted, f"{INTERNAL}-{found[1]}")
        self._sys.remove(name, temporary)

    def _choose(self, source: Source, directory: Directory, offer: Offer) -> Published:
        if not (source.fresh or self._stillOurs(source)):
            raise _swapped(offer.name)
        if offer.ifExists == "replace":
            last = offer.name.components[-1]
            self._claim(directory, last, self._replace, source, directory, last)
            return Published(offer.name, "stored")
        why: Exists | None = None
        for candidate in candidates(offer):
            last = candidate.components[-1]
            try:
                self._claim(directory, last, self._place, source, directory, last)
            except FileExistsError:
                # also under a number: who sends it every night stores it once
                if self._sameContent(source, directory, last, offer.durability != "none"):
                    return Published(candidate, "duplicate")
            except Exists as neighbour:
                if candidate is offer.name:
                    why = neighbour
            else:
                if source.linked and not (source.fresh or self._wasLinked(source, directory, last)):
                    self._sys.remove(last, directory.fd)
                    source.linked = False
                    raise _swapped(offer.name)
                return Published(candidate, "stored")
        raise why or isTaken(offer)

    def _place(self, source: Source, directory: Directory, last: str) -> None:
        """
        Give the name, or raise L{FileExistsError} if something has it.
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
        status = self._sys.statIfThere(name, directory)
        return status is not None and _inode(status) == _inode(self._sys.fstat(source.fd))

    def _publishedBefore(
        self, ours: os.stat_result, directory: Directory, offer: Offer
    ) -> RelativeName | None:
        for candidate in candidates(offer):
            status = self._sys.statIfThere(candidate.components[-1], directory.fd)
            if status is not None and _inode(status) == _inode(ours):
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
            if not self._sameRange(source.fd, fd, source.size):
                return False
            if sync:
                self._sys.fsync(fd)
            return True
        finally:
            self._sys.close(fd)

    def _sameRange(self, ours: int, theirs: int, size: int) -> bool:
        """
        Compare two files.  A part that is a hole in both is the same.
        """
        at, seek = 0, self._sys.lseek
        while (at := min(dataFrom(fd, at, size, seek) for fd in (ours, theirs))) < size:
            count = min(_CHUNK_BYTES, size - at)
            data = self._sys.pread(ours, count, at)
            if not data or data != self._sys.pread(theirs, len(data), at):
                return False
            at += len(data)
        return self._sys.fstat(ours).st_size >= size

    # -- copies

    @contextmanager
    def _copied(self, source: Source, directory: Directory, offer: Offer) -> Iterator[Source]:
        """
        Have a hidden copy of C{source} in C{directory}, for as long as it takes
        to publish it.
        """
        sync = offer.durability != "none"
        token = secrets.token_hex(8)
        note, hidden = f"copy-{token}", f"{INTERNAL}-{token}"
        fd = None
        _, temporary = self._private.enter(TEMPORARY, self._note, note, offer.name, sync)
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

    def _note(self, temporary: Directory, note: str, name: RelativeName, sync: bool) -> None:
        fd = self._sys.open(note, NEW, 0o600, dir_fd=temporary.fd)
        try:
            self._sys.writeAll(fd, encodeLine(name.path), 0)
            if sync:
                self._sys.fsync(fd)
                self._sys.fsync(temporary.fd)
        finally:
            self._sys.close(fd)

    def _copy(self, source: Source, target: int, directory: Directory) -> None:
        size = self._sys.fstat(source.fd).st_size
        for start, end in dataRanges(source.fd, 0, size, self._sys.lseek):
            for at in range(start, end, _CHUNK_BYTES):
                count = min(_CHUNK_BYTES, end - at)
                self._sys.writeAll(target, self._sys.readAll(source.fd, count, at), at)
        self._sys.ftruncate(target, size)
        inherit(self._sys, target, self._directories.inheritance(directory), source.mode)
        status = self._sys.fstat(source.fd)
        self._sys.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _removeCopy(self, noted: bytes, hidden: str) -> None:
        try:
            (line,) = (line for _, line in linesOf(noted))
            name = RelativeName.parse(decodeLine(line), profile="posix")
            directory = self._directories.acquire(name.components[:-1], create=False)
        except (ValueError, TypeError, FileNotFoundError, TransferError):
            return  # it was not begun, or its directory is gone
        try:
            self._sys.remove(hidden, directory.fd)
        finally:
            self._directories.release(directory)


def temporaryName(offer: Offer) -> str:
    """
    The private name of a file that cannot be resumed.

    The same key gives the same name, so that a repetition finds what a
    process that died had published.
    """
    if offer.key is None:
        return f"{_prefix}-{os.getpid()}-{next(_numbers)}"
    return receiptId(offer.key, offer.principal).hex()


def isNote(name: str) -> bool:
    """
    Tell whether a private file is the note of a copy.
    """
    return _NOTE.match(name) is not None


def inherit(syscalls: Syscalls, fd: int, handed: Inheritance, mode: int) -> bool:
    """
    Give a file what a new one in the directory of C{handed} would have.

    @param mode: permission bits, whatever the umask.
    @return: C{False} if only a file that is made in that directory can have it.
    """
    whole = True
    if handed.group is not None and syscalls.fstat(fd).st_gid != handed.group:
        try:
            syscalls.fchown(fd, -1, handed.group)
        except PermissionError:
            whole = False
    if handed.acl is not None:
        try:
            syscalls.setxattr(fd, _ACCESS_ACL, _masked(handed.acl, mode))
        except OSError:  # the file lies on a file system without ACLs
            whole = False
        else:
            return whole
    syscalls.fchmod(fd, mode)
    return whole


def _masked(acl: bytes, mode: int) -> bytes:
    """
    Return the ACL of a file that is made with C{mode}.
    """
    entries = list(_ACL_ENTRY.iter_unpack(acl[_ACL_HEADER_BYTES:]))
    # the mask, where there is one, limits the group's entry and all named ones
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    most = {_USER_OBJ: mode >> 6, group: mode >> 3, _OTHER: mode}
    return acl[:_ACL_HEADER_BYTES] + b"".join(
        _ACL_ENTRY.pack(tag, allowed & most.get(tag, 7), whose) for tag, allowed, whose in entries
    )


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _swapped(name: RelativeName) -> StoreError:
    return StoreError(f'"{name}": somebody else replaced the private file before it was published')


def isTaken(offer: Offer) -> Exists:
    """
    The answer where the name is taken and the rule does not give another one.
    """
    taken = Skipped if offer.ifExists == "skip" else Exists
    return taken(f'"{offer.name}" already exists on the receiver with different content')


def candidates(offer: Offer) -> Iterator[RelativeName]:
    """
    Yield the names that a file may get, the wanted one first.
    """
    name = offer.name
    yield name
    if offer.ifExists == "rename":
        for number in range(1, NUMBERED_NAMES + 1):
            yield name.variant(str(number))
        for _ in range(_RANDOM_NAMES):
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
