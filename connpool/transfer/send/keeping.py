"""
A directory that sources are moved to once they were sent.

Theory of operation
===================
On the same file system a source is renamed.  On another one it is copied: to a hidden name in
its directory, synced, read again and compared, and only then linked to its own name, which
nobody has yet; then the source goes, and the hidden name last.  The hidden name is always the
same for a source, so whoever goes on after a crash finds what there is: a hidden file with a
second name is published, one without is written anew.  On a file system without links the
hidden name is renamed, and a crash right after that leaves a second copy.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

import attrs

from connpool.transfer.names import displayName
from connpool.transfer.send.freenames import moveFree, namesFor, syncDirectory

__all__ = ["Keeping"]

#: Before the name of a source that is being copied: no sender and no receiver takes such files.
_HIDDEN = ".connpool-moving-"

_COPY_BYTES = 1 << 20
_DIRECTORY_MODE = 0o750
#: The answers of file systems that have no links.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@attrs.frozen
class Keeping:
    """
    @param directory: an existing one.
    """

    directory: str
    _device: int = attrs.field(init=False)

    @_device.default
    def _deviceNow(self) -> int:
        return os.stat(self.directory).st_dev

    def prepare(self, path: str) -> None:
        """
        See that a source can be moved to C{path} in the directory.

        @raise OSError: it cannot; never L{FileNotFoundError}, which is about the source.
        """
        target = os.path.dirname(os.path.join(self.directory, path))
        try:
            if self._deviceNow() != self._device:
                # what was mounted there is not any more
                raise OSError(errno.ENODEV, "it is on another file system than at the start")
            os.makedirs(target, _DIRECTORY_MODE, exist_ok=True)
            if not os.access(target, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), target)
        except OSError as e:
            where = displayName(os.fsencode(e.filename or self.directory))
            remedy = "; make or mount it" * (e.errno in {errno.ENOENT, errno.ENODEV})
            raise OSError(errno.ENODEV, f"--move-to: {where}: {e.strerror}{remedy}") from None

    def move(
        self,
        source: str,
        path: str,
        token: str,
        isWhole: Callable[[str], bool | None],
        wanted: Callable[[], bool],
    ) -> bool:
        """
        Move a source to C{path} in the directory, or beside it if that is taken.

        @param token: names the source, also after a crash.
        @param isWhole: tells whether a file has the content of the source; L{None} if there
            was no time to find out.
        @param wanted: asked now and then.
        @return: whether it is there; not if that is not wanted any more.
        @raise OSError: it cannot be moved; it is where it was.
        """
        self.prepare(path)
        target = os.path.join(self.directory, path)
        try:
            moveFree(source, target)
        except OSError as e:
            if e.errno != errno.EXDEV:
                raise
        else:
            return True
        hidden = self._hidden(path, token)
        try:
            if not _isPublished(hidden):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(hidden)
                if not _copied(source, hidden, wanted) or (whole := isWhole(hidden)) is None:
                    os.unlink(hidden)
                    return False
                if not whole:
                    raise OSError(errno.EIO, "the copy is not what was copied", target)
                _publish(hidden, target)
            self._sync(os.path.dirname(target))
            os.unlink(source)
            syncDirectory(os.path.dirname(source))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(hidden)
            raise
        self.sweep(path, token)
        return True

    def sweep(self, path: str, token: str) -> None:
        """
        Remove the hidden name of a source that is moved.
        """
        with contextlib.suppress(OSError):
            os.unlink(self._hidden(path, token))

    def _hidden(self, path: str, token: str) -> str:
        return os.path.join(self.directory, os.path.dirname(path), f"{_HIDDEN}{token}")

    def _sync(self, directory: str) -> None:
        """
        Make the names on the way to a directory durable, and those in it.
        """
        top = os.path.join(self.directory, "")
        while directory.startswith(top):
            syncDirectory(directory)
            directory = os.path.dirname(directory)
        syncDirectory(self.directory)


def _isPublished(hidden: str) -> bool:
    try:
        return os.lstat(hidden).st_nlink > 1
    except FileNotFoundError:
        return False


def _copied(source: str, hidden: str, wanted: Callable[[], bool]) -> bool:
    """
    Copy a file with its times, its mode, and where that is allowed its owner; and sync it.
    """
    with (
        open(os.open(source, _READ), "rb", buffering=0) as reading,
        open(os.open(hidden, _CREATE, 0o600), "r+b", buffering=0) as writing,
    ):
        fd = writing.fileno()
        while data := reading.read(_COPY_BYTES):
            if not wanted():
                return False
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        status = os.fstat(reading.fileno())
        mode = status.st_mode & 0o7777
        try:
            os.fchown(fd, status.st_uid, status.st_gid)
        except OSError:
            mode &= 0o777
        with contextlib.suppress(OSError):  # a file system without modes
            os.fchmod(fd, mode)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(fd)
        # it is read again from where it was written to
        with contextlib.suppress(AttributeError, OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _publish(hidden: str, target: str) -> None:
    for name in namesFor(target):
        try:
            os.link(hidden, name, follow_symlinks=False)
        except FileExistsError:
            continue
        except OSError as e:
            if e.errno not in _NO_LINKS:
                raise
            moveFree(hidden, target)
        return
