"""
The folder behind an outbox: scanning it, and removing what arrived.

A source is removed only when nobody can have written to it since it was read:

  1. It is renamed into the folder's private directory, where no program that
     knows its old name finds it.
  2. Device, inode, size and modification time must be those of the file that
     was sent (the rename itself changes the change time).
  3. A read lease (C{F_SETLEASE}, fcntl(2)) is granted only while nobody has
     the file open for writing; it is held until the file is gone.

Otherwise it is put back under its name, or beside it if the name is taken, and
is sent again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import signal
import stat
from collections.abc import Callable, Iterable

from connpool.errors import StartFailed
from connpool.transfer.names import displayName
from connpool.transfer.source import identity

__all__ = ["OutboxFolder"]

#: Our own directory inside the folder; scans leave it out.
PRIVATE = ".connpool-outbox"

#: Sources that were sent, on their way to be removed; poison; the record.
TAKEN, POISON, RECORD = "taken", "poison", "record.json"

#: fcntl(2): which signal tells that a lease is broken.  Its default, SIGIO,
#: would end the process.
_F_SETSIG = 10

_MODE = 0o700

#: Bytes of a name that are kept when it is set aside; the whole is in C{.why}.
_LONGEST = 240


def _syncDirectory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class OutboxFolder:
    """
    @param path: an existing directory on a file system with leases.
    @param keep: where sent files are moved instead of being removed, on the
        same file system; L{None} to remove them.
    @raise StartFailed: for a folder that cannot be used so.
    @ivar state: where the sender may keep its secrets.
    @ivar unnamed: a file the last scan left out because of its name; or empty.
    """

    def __init__(self, path: str, keep: str | None = None) -> None:
        self.path = path
        self._keep = keep
        self.unnamed = ""
        self.state = os.path.join(path, PRIVATE, "state")
        self._private = os.path.join(path, PRIVATE)
        if not os.path.isdir(path):
            raise StartFailed(f"{path} is not a directory; make it first")
        try:
            for name in ("", TAKEN, POISON):
                os.makedirs(os.path.join(self._private, name), _MODE, exist_ok=True)
            if keep is not None:
                self._checkKeep(keep)
        except OSError as e:
            raise StartFailed(f"cannot use {e.filename}: {e.strerror}") from None
        self._lock = self._claim()
        try:
            self._tryLease()
            self.recover()
        except OSError as e:
            self.close()
            raise StartFailed(f"cannot use {e.filename}: {e.strerror}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """
        Let another process have the folder.
        """
        os.close(self._lock)

    def _checkKeep(self, keep: str) -> None:
        if os.stat(keep).st_dev != os.stat(self.path).st_dev:
            raise StartFailed(
                f"{keep} is on another file system than {self.path}; choose one on it"
            )
        ours = os.path.realpath(self.path)
        if os.path.commonpath([ours, os.path.realpath(keep)]) == ours:
            raise StartFailed(
                f"{keep} is in {self.path}: what was sent would be sent again; choose one outside"
            )

    def _claim(self) -> int:
        fd = os.open(self._private, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise StartFailed(
                f"{self.path}: another process forwards this folder already; stop it first"
            ) from None
        return fd

    def _tryLease(self) -> None:
        probe = os.path.join(self._private, f"probe-{secrets.token_hex(4)}")
        fd = os.open(probe, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as e:
            raise StartFailed(
                f"{self.path}: its file system has no leases ({e.strerror}), so nobody can tell "
                "whether a file is still written to; use a local folder"
            ) from None
        finally:
            os.unlink(probe)
            os.close(fd)

    def recover(self) -> None:
        """
        Put back what an earlier run had taken and not removed.
        """
        taken = os.path.join(self._private, TAKEN)
        for name in os.listdir(taken):
            place = os.path.join(taken, name)
            if not os.path.isdir(place):
                continue  # not ours
            try:
                with open(os.path.join(place, "name"), encoding="utf-8") as file:
                    original = file.read()
            except (FileNotFoundError, UnicodeDecodeError):
                original = f"recovered-{name}"
            if os.path.lexists(os.path.join(place, "file")):
                self._putBack(os.path.join(place, "file"), original)
            self._forget(place)

    def scan(self) -> dict[str, tuple[int, ...]]:
        """
        @return: relative path to identity of every regular file with a UTF-8
            name.  Links, devices and what vanishes meanwhile are left out.
        """
        found: dict[str, tuple[int, ...]] = {}
        unnamed = ""
        for where, directories, files in os.walk(self.path):
            if where == self.path and PRIVATE in directories:
                directories.remove(PRIVATE)
            for name in files:
                place = os.path.join(where, name)
                try:
                    place.encode()
                    status = os.lstat(place)
                except UnicodeEncodeError:
                    unnamed = unnamed or place
                    continue
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found[os.path.relpath(place, self.path)] = identity(status)
        self.unnamed = unnamed
        return found

    def remove(self, name: str, sent: tuple[int, ...]) -> bool:
        """
        Remove (or move to C{keep}) a source whose receipt is good.

        @param sent: the source's identity when it was read.
        @return: whether it is gone; otherwise somebody changed it, and it is
            back in the folder.
        """
        source = os.path.join(self.path, name)
        try:
            if identity(os.lstat(source)) != sent:
                return False
        except FileNotFoundError:
            return True
        if self._keep is not None:
            # what cannot be moved is not taken
            target = os.path.dirname(os.path.join(self._keep, name))
            os.makedirs(target, 0o750, exist_ok=True)
            if not os.access(target, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), target)
        place = os.path.join(self._private, TAKEN, secrets.token_hex(8))
        os.mkdir(place, _MODE)
        with open(os.path.join(place, "name"), "w", encoding="utf-8") as file:
            file.write(name)
            file.flush()
            os.fsync(file.fileno())
        _syncDirectory(place)
        taken = os.path.join(place, "file")
        try:
            os.rename(source, taken)
        except FileNotFoundError:
            self._forget(place)
            return True
        gone = False
        try:
            gone = self._withoutWriters(
                taken, sent, lambda: self._moveAway(taken, name) if self._keep else os.unlink(taken)
            )
        finally:
            if not gone:
                self._putBack(taken, name)
            self._forget(place)
        return gone

    @staticmethod
    def _withoutWriters(taken: str, sent: tuple[int, ...], act: Callable[[], object]) -> bool:
        """
        Do C{act} while nobody can write to C{taken}.
        """
        fd = os.open(taken, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
            try:
                fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError as e:
                if e.errno == errno.EAGAIN:
                    return False
                raise
            # without the change time, which the rename has set
            if identity(os.fstat(fd))[:4] != sent[:4]:
                return False
            act()
            return True
        finally:
            os.close(fd)

    def _moveAway(self, taken: str, name: str) -> None:
        assert self._keep is not None
        self._linkFree(taken, os.path.join(self._keep, name))
        os.unlink(taken)

    def setAside(self, name: str, why: str) -> str:
        """
        Move a poison file out of the way, with the reason beside it.

        @return: where it is now.
        """
        # room for a number and for .why
        kept = os.path.basename(name).encode()[:_LONGEST].decode("utf-8", "ignore")
        target = os.path.join(self._private, POISON, kept)
        target = self._linkFree(os.path.join(self.path, name), target)
        os.unlink(os.path.join(self.path, name))
        with open(f"{target}.why", "w", encoding="utf-8") as file:
            file.write(f"{name}: {why}\n")
        return target

    def _putBack(self, taken: str, name: str) -> None:
        target = os.path.join(self.path, name)
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            # there is a file now where its directory was
            target = os.path.join(self.path, f"recovered-{os.path.basename(name)}")
        self._linkFree(taken, target)
        os.unlink(taken)

    @staticmethod
    def _linkFree(source: str, target: str) -> str:
        """
        Link C{source} to C{target}, or to the first free name after it: what
        another program put there meanwhile stays.
        """
        place, number = target, 0
        while True:
            try:
                os.link(source, place, follow_symlinks=False)
            except FileExistsError:
                number += 1
                place = f"{target}.{number}"
            else:
                return place

    @staticmethod
    def _forget(place: str) -> None:
        """
        Remove a place from which the file has gone.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(place, "name"))
        os.rmdir(place)

    def remember(self, strikes: dict[str, tuple[tuple[int, ...], int]]) -> None:
        """
        Keep the record of failures for the next start.
        """
        record = os.path.join(self._private, RECORD)
        rows = [[path, list(ident), count] for path, (ident, count) in sorted(strikes.items())]
        with open(f"{record}.new", "w", encoding="utf-8") as file:
            json.dump(rows, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{record}.new", record)

    def remembered(self) -> Iterable[tuple[str, tuple[int, ...], int]]:
        """
        @return: what L{remember} was given; nothing if there is no record or
            it is damaged: a damaged record only costs tries.
        """
        try:
            with open(os.path.join(self._private, RECORD), encoding="utf-8") as file:
                rows = json.load(file)
            return [(str(path), tuple(map(int, ident)), int(count)) for path, ident, count in rows]
        except (OSError, ValueError, TypeError):
            return []

    def __str__(self) -> str:
        return displayName(self.path)
