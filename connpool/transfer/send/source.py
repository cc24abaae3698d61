"""
Files that are sent.
"""

from __future__ import annotations

import os
import stat
from io import FileIO

import attrs

from connpool.errors import ChangedSource, SourceError
from connpool.transfer.digests import Digest, rootOf
from connpool.transfer.holes import MAX_HOLE_BLOCK_BYTES, isHole, zeroDigest

__all__ = [
    "FileVersion",
    "Source",
    "grew",
    "openRegular",
    "openSource",
    "readRoot",
    "readWhole",
    "unchanged",
    "versionOf",
    "wasRenamed",
]

_CHUNK_BYTES = 1 << 20

#: Device, inode, size, and the times of the last change of contents and of anything.
FileVersion = tuple[int, ...]


def versionOf(status: os.stat_result) -> FileVersion:
    """
    Return what must be the same before the first read and after the last one.
    """
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def unchanged(fd: int, status: os.stat_result) -> bool:
    """
    Tell whether nobody wrote to the file since C{status}.
    """
    now = os.fstat(fd)
    # as versionOf says, and in a third of its time
    return (
        now.st_ctime_ns == status.st_ctime_ns
        and now.st_mtime_ns == status.st_mtime_ns
        and now.st_size == status.st_size
        and now.st_ino == status.st_ino
        and now.st_dev == status.st_dev
    )


def grew(fd: int, before: os.stat_result) -> bool:
    """
    Tell whether an open file may have got longer since C{before}, and nothing else.
    """
    now = os.fstat(fd)
    same = (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)
    return same and now.st_size >= before.st_size


def wasRenamed(fd: int, path: str) -> bool:
    """
    Tell whether an open file has another name now than C{path}: then it is still the one that
    was to be sent, as a log that was rotated is.  One that has no name any more was replaced.
    """
    ours = os.fstat(fd)
    try:
        there = os.stat(path)
    except OSError:
        return ours.st_nlink > 0
    return ours.st_nlink > 0 and (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


def readWhole(fd: int, status: os.stat_result, largest: int, growing: bool = False) -> bytes:
    """
    Read a small file.  One whose size says 0 may have some all the same: the
    kernel makes that of C{/proc} when it is read.

    @param largest: bytes that may be read.
    @param growing: whether one that got longer since C{status} is taken as it was then.
    @raise ChangedSource: somebody writes to it.
    @raise SourceError: it cannot be read, or its size is not true.
    """
    size = status.st_size
    limit = size or largest
    try:
        data = os.read(fd, limit + 1)
        # the kernel gives what it makes in pieces
        while len(data) not in {size, limit + 1} and (more := os.read(fd, limit + 1 - len(data))):
            data += more
    except OSError as e:
        raise SourceError(f"cannot read it: {e.strerror}") from None
    if not unchanged(fd, status):
        if growing and grew(fd, status) and data[:size] == os.pread(fd, size, 0):
            return data[:size]
        raise ChangedSource("the file changed while it was read, 3 times; send it again")
    if len(data) != size and (size or len(data) > largest):
        raise SourceError(
            f"its size says {size} bytes and it has {'more' if len(data) > size else 'fewer'}; "
            "send it as standard input: connpool send --name NAME - < FILE"
        )
    return data


def openRegular(path: str) -> tuple[int, os.stat_result]:
    """
    Open a file to send.  A FIFO or device is refused, not waited for.

    @return: a descriptor, and what the file was then.
    @raise SourceError: why it cannot be sent.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise SourceError(f"cannot read it: {e.strerror}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise SourceError(f"it is {kind}")
    return fd, status


@attrs.frozen
class Source:
    """
    An open regular file.

    @ivar file: unbuffered, at its start.
    @ivar name: its name without directories, UTF-8.
    @ivar status: as of the opening.
    """

    file: FileIO
    name: bytes
    status: os.stat_result

    def verifyUnchanged(self) -> None:
        """
        @raise ChangedSource: if anybody wrote to it since the opening.
        """
        if not unchanged(self.file.fileno(), self.status):
            raise ChangedSource("the file changed while it was sent; send it again")


def readRoot(fd: int, size: int, digest: Digest, blockSize: int) -> bytes:
    """
    Compute the root of an open file.
    """
    blocks = []
    for start in range(0, size, blockSize):
        hasher, offset, end = digest.new(), start, min(start + blockSize, size)
        if end - start == blockSize <= MAX_HOLE_BLOCK_BYTES and isHole(fd, start, end):
            blocks.append(zeroDigest(digest, blockSize))
            continue
        while offset < end and (data := os.pread(fd, min(end - offset, _CHUNK_BYTES), offset)):
            hasher.update(data)
            offset += len(data)
        blocks.append(hasher.digest())
    return rootOf(digest, size, blockSize, blocks)


def openSource(path: str) -> Source:
    """
    Open a file to send under its own name.

    @raise SourceError: why it cannot be sent.
    """
    name = os.fsencode(os.path.basename(path))
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        raise SourceError("its name is not UTF-8; rename it") from None
    fd, status = openRegular(path)
    return Source(os.fdopen(fd, "rb", buffering=0), name, status)
