"""
A file that comes back: private until all of it is here and verified.

Theory of operation
===================
What has come lies in a hidden file beside its name, and what is in that counts for nothing
until it was compared with the receiver's digests: so whatever an interrupted run, or somebody
else, left there is used as far as it is right, and no record of it is needed.  The hidden file
is locked while somebody writes to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from typing import Self

import attrs

from connpool.errors import Exists, SourceError, StoreError
from connpool.transfer.digests import Digest

__all__ = ["LocalFile", "ThereAlready"]

_SUFFIX = ".connpool-part"
_LONGEST_BYTES = 255
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _hidden(target: str) -> str:
    where, name = os.path.split(target)
    raw = os.fsencode(name)[: _LONGEST_BYTES - len(_SUFFIX) - 1]
    return os.path.join(where, os.fsdecode(b"." + raw) + _SUFFIX)


def _failure(e: OSError, target: str) -> StoreError:
    return StoreError(f"cannot write {os.path.basename(target)}: {e.strerror}")


@attrs.define
class LocalFile:
    """
    A context manager: what is not published stays hidden, to be gone on with.

    @ivar target: the name that it gets.
    @ivar held: bytes that lie there; nobody knows whether they are right.
    """

    target: str
    _path: str
    _fd: int
    held: int

    @classmethod
    def open(cls, target: str) -> Self:
        """
        @raise StoreError: it cannot be written, or another process is writing it.
        """
        path = _hidden(target)
        try:
            fd = os.open(path, _OPEN, 0o666)
            if os.fstat(fd).st_nlink > 1:
                # published, and somebody died before the hidden name was gone
                os.close(fd)
                os.unlink(path)
                fd = os.open(path, _OPEN | os.O_EXCL, 0o666)
        except OSError as e:
            raise _failure(e, target) from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{path} is in the way; remove it")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(fd)
            if isinstance(e, BlockingIOError):
                raise StoreError("another process gets the same file") from None
            raise _failure(e, target) from None
        except StoreError:
            os.close(fd)
            raise
        return cls(target, path, fd, status.st_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def resize(self, size: int) -> None:
        """
        Have not more than C{size} bytes.

        @raise StoreError: it cannot be written.
        """
        if self.held > size:
            with self._writing():
                os.ftruncate(self._fd, size)
            self.held = size

    def write(self, offset: int, data: bytes) -> None:
        """
        Put bytes in their place.

        @raise StoreError: they cannot be written.
        """
        view = memoryview(data)
        with self._writing():
            while view:
                count = os.pwrite(self._fd, view, offset)
                offset += count
                view = view[count:]

    def digestOf(self, start: int, end: int, digest: Digest) -> bytes:
        """
        Compute the digest of bytes that are there.

        @raise StoreError: they cannot be read.
        """
        with self._writing():
            return digest.of(os.pread(self._fd, end - start, start))

    def publish(self, modified: int, replace: bool) -> None:
        """
        Make it durable, and give it its name.

        @param modified: nanoseconds since the epoch.
        @raise Exists: the name is taken, and is not to be replaced.
        @raise StoreError: it cannot be published.
        """
        with self._writing():
            os.utime(self._fd, ns=(modified, modified))
            os.fsync(self._fd)
            if replace:
                os.rename(self._path, self.target)
            else:
                self._publishNew()
            directory = os.open(os.path.dirname(self.target) or ".", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _publishNew(self) -> None:
        try:
            os.link(self._path, self.target, follow_symlinks=False)
        except FileExistsError:
            raise Exists(f'"{os.path.basename(self.target)}" is there already') from None
        except OSError as e:
            if e.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise
            if os.path.lexists(self.target):
                raise Exists(f'"{os.path.basename(self.target)}" is there already') from None
            os.rename(self._path, self.target)
        else:
            os.unlink(self._path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise _failure(e, self.target) from None

    def remove(self) -> None:
        """
        Remove what was not published.
        """
        with contextlib.suppress(OSError):
            os.unlink(self._path)


@attrs.define
class ThereAlready:
    """
    A file that has the name already; a context manager.

    @ivar size: bytes.
    """

    _fd: int
    size: int

    @classmethod
    def open(cls, target: str) -> ThereAlready | None:
        """
        @return: L{None} if nothing has the name.
        @raise Exists: something has it that is no regular file.
        @raise SourceError: it cannot be read.
        """
        try:
            fd = os.open(target, _READ)
        except FileNotFoundError:
            return None
        except OSError as e:
            if e.errno == errno.ELOOP:
                raise Exists(f'"{os.path.basename(target)}" is a symbolic link') from None
            raise SourceError(f"cannot read {os.path.basename(target)}: {e.strerror}") from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise Exists(f'"{os.path.basename(target)}" is there, and no regular file')
        return cls(fd, status.st_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def digestOf(self, start: int, end: int, digest: Digest) -> bytes:
        """
        Compute the digest of bytes that are there.
        """
        try:
            return digest.of(os.pread(self._fd, end - start, start))
        except OSError as e:
            raise SourceError(f"cannot read it: {e.strerror}") from None
