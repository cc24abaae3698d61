"""
The one place where a local store touches the kernel.

Every call that reads or changes the file system is an attribute of
L{Syscalls}, so that a test can put itself between: count, record, kill, fail
or replay.  Every name is one component below an open directory descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

from connpool.errors import (
    Busy,
    NameRefused,
    NoInodes,
    NoSpace,
    StoreError,
    TooLarge,
    TransferError,
)

__all__ = [
    "CANNOT_SYNC",
    "DIRECTORY",
    "EXISTING",
    "NEW",
    "NO_INODES",
    "READ",
    "VOLATILE",
    "Syscalls",
    "asTransferError",
    "filesystemType",
    "isFile",
    "outOfInodes",
    "reasonOf",
    "timed",
]

#: Create a private file that nobody could have put there before.
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Open a private file that is there, if it is one.
EXISTING = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Read what may be anything: no link is followed, no FIFO waited for.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Open a directory to hold it.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: What a sync says where the file system has none for that kind of file.
CANNOT_SYNC = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
#: The one line about a file system that has bytes left and no inodes.
NO_INODES = (
    "the receiver's disk has no inodes left, though it may have space; files have to be removed"
    " from it, of any size"
)

#: File systems that forget everything at power-off, and the one nobody knows.
VOLATILE = frozenset({"tmpfs", "ramfs", "unknown"})
#: What Linux says of a file system where it has no C{/proc} to name it.
_MAGIC = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
}

_libc = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WRITE = 2


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _syncfs(fd: int) -> None:
    if not hasattr(_libc, "syncfs"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    _checked(_libc.syncfs(fd))


def _startWriting(fd: int) -> None:
    if not hasattr(_libc, "sync_file_range"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    whole = ctypes.c_int64(0)
    _checked(_libc.sync_file_range(fd, whole, whole, _SYNC_FILE_RANGE_WRITE))


def _renameNoReplace(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
    if not hasattr(_libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    _checked(
        _libc.renameat2(
            src_dir_fd, os.fsencode(source), dst_dir_fd, os.fsencode(target), _RENAME_NOREPLACE
        )
    )


def _noXattr(*_details: object) -> bytes:
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def outOfInodes(status: os.statvfs_result) -> bool:
    """
    Tell whether there is space, but no inode for one more file.
    """
    # some file systems make inodes as they are needed: they say 0 of 0, or count
    # those that the space would be enough for
    return status.f_files > 0 and status.f_favail == 0 and status.f_bavail > 0


class Syscalls:
    """
    The functions of L{os}, one attribute each and nothing around
    them: a call costs what the function costs.
    """

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    read = staticmethod(os.read)
    write = staticmethod(os.write)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    ftruncate = staticmethod(os.ftruncate)
    lseek = staticmethod(os.lseek)
    fchmod = staticmethod(os.fchmod)
    fchown = staticmethod(os.fchown)
    getxattr = staticmethod(getattr(os, "getxattr", _noXattr))
    setxattr = staticmethod(getattr(os, "setxattr", _noXattr))
    removexattr = staticmethod(getattr(os, "removexattr", _noXattr))
    dup2 = staticmethod(os.dup2)
    utime = staticmethod(os.utime)
    fsync = staticmethod(os.fsync)
    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))
    syncfs = staticmethod(_syncfs)
    startWriting = staticmethod(_startWriting)
    link = staticmethod(os.link)
    rename = staticmethod(os.rename)
    renameNoReplace = staticmethod(_renameNoReplace)
    unlink = staticmethod(os.unlink)
    mkdir = staticmethod(os.mkdir)
    stat = staticmethod(os.stat)
    fstat = staticmethod(os.fstat)
    fstatvfs = staticmethod(os.fstatvfs)
    listdir: staticmethod[[int], list[str]] = staticmethod(os.listdir)
    scandir: staticmethod[[int], Any] = staticmethod(os.scandir)
    flock = staticmethod(fcntl.flock)

    def writeAll(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """
        C{pwrite} until nothing is left: near a full disk it writes less.
        """
        written = self.pwrite(fd, data, offset)
        if written < len(data):
            rest = memoryview(data)[written:]
            while rest:
                offset += written
                written = self.pwrite(fd, rest, offset)
                rest = rest[written:]

    def readAll(self, fd: int, size: int, offset: int) -> bytes:
        """
        C{pread} until all is read, which is there.
        """
        data = self.pread(fd, size, offset)
        while len(data) < size:
            more = self.pread(fd, size - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            data += more
        return data

    def outOfInodes(self, fd: int | None) -> bool:
        """
        Tell whether the file system of C{fd} can hold no more files, whatever
        their size.
        """
        try:
            status = None if fd is None else self.fstatvfs(fd)
        except OSError:
            return False
        return status is not None and outOfInodes(status)

    def openIfThere(self, name: str, flags: int, directory: int) -> int | None:
        """
        Return a descriptor, or L{None} if nothing has this name.
        """
        try:
            return self.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            return None

    def statIfThere(self, name: str, directory: int) -> os.stat_result | None:
        """
        Return the status of what has this name, links not followed; L{None} if nothing has it.
        """
        try:
            return self.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def remove(self, name: str, directory: int) -> None:
        """
        Unlink what may be gone already.
        """
        try:  # noqa: SIM105 - once a file: suppress() costs as much as the call
            self.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    """
    Call it.

    @return: the seconds that it took.
    """
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def isFile(status: os.stat_result) -> bool:
    """
    Tell whether this is a regular file.
    """
    return stat.S_ISREG(status.st_mode)


def filesystemType(fd: int) -> str:
    """
    Return C{ext4}, C{tmpfs}, …, as the kernel's list of mounts names what C{fd} lies on, or
    C{fstatfs} where there is no such list; C{unknown} if nothing tells.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
            mount = next(line.split()[1] for line in lines if line.startswith("mnt_id:"))
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.split(None, 1)[0] == mount:
                    return line.partition(" - ")[2].split()[0]
    except (OSError, StopIteration, IndexError):
        pass
    status = (ctypes.c_long * 64)()
    if sys.platform != "linux" or _libc.fstatfs(fd, status):
        return "unknown"
    return _MAGIC.get(status[0] & 0xFFFFFFFF, "unknown")


def reasonOf(error: OSError | TransferError) -> str:
    """
    Say to the operator what went wrong, and with which file if the system tells.
    """
    if isinstance(error, TransferError):
        return str(error)
    why = error.strerror or type(error).__name__
    return f"{why} ({error.filename!r})" if isinstance(error.filename, str) else why


def asTransferError(
    error: OSError | TransferError,
    doing: str,
    syscalls: Syscalls | None = None,
    fd: int | None = None,
) -> TransferError:
    """
    Say what went wrong, and nothing of where on this machine it did.

    @param doing: what failed, for the text: C{"writing report.txt"}.
    @param fd: any descriptor on the file system, asked through C{syscalls}
        about the reason.
    """
    if isinstance(error, TransferError):
        return error
    number = error.errno
    if number == errno.EDQUOT:
        return NoSpace(
            f"{doing}: the receiver's user has used up its disk quota; its operator can raise it "
            "or remove files"
        )
    if number == errno.ENOSPC and syscalls is not None and syscalls.outOfInodes(fd):
        return NoInodes(f"{doing}: {NO_INODES}")
    if number == errno.ENOSPC:
        return NoSpace(f"{doing}: the receiver's disk is full; try again when there is space")
    if number in {errno.EMFILE, errno.ENFILE}:
        return Busy(f"{doing}: the receiver has too many open files; try again later")
    if number in {errno.ENOENT, errno.ESTALE}:
        return Busy(
            f"{doing}: somebody removes the receiver's directories while it works; try again later"
        )
    if number == errno.ENAMETOOLONG:
        return NameRefused(f"{doing}: the name is too long for the receiver's file system")
    if number == errno.EFBIG:
        return TooLarge(f"{doing}: larger than the receiver's file system takes")
    return StoreError(f"{doing}: {os.strerror(number) if number else type(error).__name__}")
