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

Poison is taken in the same way, and its place becomes its directory among the
poison, with the reason in it: one rename.  Nothing here replaces a file, and
whatever is still in a place after a crash or an error is put back by the next
scan.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import secrets
import signal
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from connpool.errors import StartFailed
from connpool.transfer.names import INTERNAL, displayName
from connpool.transfer.send.source import identity
from connpool.transfer.syscalls import Syscalls

__all__ = ["OutboxFolder"]

#: Our own directory inside the folder.
PRIVATE = ".connpool-outbox"

#: Sources on their way out, each in a place of its own; poison; the record.
TAKEN, POISON, RECORD = "taken", "poison", "record.json"

#: What a place holds: the source, its path in the folder, why it was refused.
FILE, NAME, WHY = "file", "name", "why"

#: fcntl(2): which signal tells that a lease is broken.  Its default, SIGIO,
#: would end the process.
_F_SETSIG = 10

_MODE = 0o700

#: Bytes of a name, and those that are kept before a number.
_MOST, _KEPT = 255, 240

_AT_FDCWD = -100


def _syncDirectory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _isInternal(name: str) -> bool:
    # no receiver takes it
    return name.lower().startswith(INTERNAL)


def _namesFor(target: str) -> Iterator[str]:
    """
    @return: C{target} and what it may be called if that is taken, without end.
    """
    where, last = os.path.split(target)
    name = last.encode()
    if len(name) <= _MOST:
        yield target
    kept = name[:_KEPT].decode("utf-8", "ignore")
    for number in itertools.count(1):
        yield os.path.join(where, f"{kept}.{number}")


def _moveFree(source: str, target: str) -> None:
    """
    Rename a file to C{target}, or to the first free name after it: what another
    program put there meanwhile stays.

    Not by a link: nobody may link a file that is not theirs
    (C{fs.protected_hardlinks}, proc(5)).
    """
    for name in _namesFor(target):
        with contextlib.suppress(FileExistsError):
            try:
                Syscalls.renameNoReplace(source, name, src_dir_fd=_AT_FDCWD, dst_dir_fd=_AT_FDCWD)
            except OSError as e:
                if e.errno not in {errno.EINVAL, errno.ENOSYS}:
                    raise
                # a file system without it: ZFS before 2.2
                os.link(source, name, follow_symlinks=False)
                os.unlink(source)
            return


class OutboxFolder:
    """
    @param path: an existing directory on a file system with leases.
    @param keep: where sent files are moved instead of being removed, on the
        same file system; L{None} to remove them.
    @raise StartFailed: for a folder that cannot be used so.
    @ivar state: where the sender may keep its secrets.
    @ivar leftOut: why the last scan left something out, to the first path.
    """

    def __init__(self, path: str, keep: str | None = None) -> None:
        self.path = path
        self._keep = keep
        self.leftOut: dict[str, str] = {}
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
            raise StartFailed(f"cannot use {e.filename or path}: {e.strerror}") from None
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
        Put back what was taken and got no further.
        """
        taken = os.path.join(self._private, TAKEN)
        for token in os.listdir(taken):
            place = os.path.join(taken, token)
            if not os.path.isdir(place):
                continue  # not ours
            try:
                with open(os.path.join(place, NAME), encoding="utf-8", newline="") as file:
                    name = file.read()
            except (FileNotFoundError, UnicodeDecodeError):
                name = ""
            self._release(place, name or f"recovered-{token}")

    def scan(self) -> dict[str, tuple[int, ...]]:
        """
        @return: relative path to identity of every regular file with a UTF-8
            name.  Links, devices and what vanishes meanwhile are left out, and
            so is C{.connpool*}: ours, or of a receiver into the same folder.
        @raise OSError: the folder cannot be read.
        """
        with contextlib.suppress(OSError):  # said when it happened
            self.recover()
        found: dict[str, tuple[int, ...]] = {}
        self.leftOut = {}

        def unreadable(e: OSError) -> None:
            if e.filename == self.path:
                raise e
            if not isinstance(e, FileNotFoundError):
                self.leftOut.setdefault(f"it cannot be read ({e.strerror})", e.filename)

        for where, directories, files in os.walk(self.path, onerror=unreadable):
            directories[:] = [name for name in directories if not _isInternal(name)]
            for name in files:
                place = os.path.join(where, name)
                try:
                    place.encode()
                    status = os.lstat(place)
                except UnicodeEncodeError:
                    self.leftOut.setdefault("its name is not UTF-8; rename it", place)
                except OSError as e:
                    unreadable(e)
                else:
                    if stat.S_ISREG(status.st_mode) and not _isInternal(name):
                        found[os.path.relpath(place, self.path)] = identity(status)
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
            # whatever may keep it is looked for before it is taken: put back it
            # would be another file, and be sent at once
            if identity(os.lstat(source)) != sent or not self._withoutWriters(source, sent):
                return False
        except FileNotFoundError:
            return True
        if self._keep is not None:
            target = os.path.dirname(os.path.join(self._keep, name))
            os.makedirs(target, 0o750, exist_ok=True)
            if not os.access(target, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), target)
        place = self._take(name, sent)
        if place is None:
            return not os.path.lexists(source)
        taken = os.path.join(place, FILE)
        act = (
            partial(os.unlink, taken)
            if self._keep is None
            else partial(_moveFree, taken, os.path.join(self._keep, name))
        )
        try:
            return self._withoutWriters(taken, sent, act)
        finally:
            self._release(place, name)

    def _take(self, name: str, sent: tuple[int, ...], **notes: str) -> str | None:
        """
        Rename a source into a place of its own.

        @param notes: texts to put beside it.
        @return: the place; L{None} if the source is gone, or is another file
            than C{sent}, which stays.
        """
        place = os.path.join(self._private, TAKEN, secrets.token_hex(8))
        os.mkdir(place, _MODE)
        ours = False
        try:
            for note, text in {NAME: name, **notes}.items():
                with open(os.path.join(place, note), "x", encoding="utf-8", newline="") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            _syncDirectory(place)
            taken = os.path.join(place, FILE)
            with contextlib.suppress(FileNotFoundError):
                os.rename(os.path.join(self.path, name), taken)
                # without the change time, which the rename has set
                ours = identity(os.lstat(taken))[:4] == sent[:4]
        finally:
            if not ours:
                self._release(place, name)
        return place if ours else None

    @staticmethod
    def _withoutWriters(
        path: str, sent: tuple[int, ...], act: Callable[[], object] = lambda: None
    ) -> bool:
        """
        Do C{act} while nobody can write to C{path}.

        @return: whether it was done; otherwise somebody writes, or has written.
        """
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
            try:
                fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError as e:
                if e.errno == errno.EAGAIN:
                    return False
                raise
            if identity(os.fstat(fd))[:4] != sent[:4]:
                return False
            act()
            return True
        finally:
            os.close(fd)

    def setAside(self, name: str, refused: tuple[int, ...], why: str) -> str | None:
        """
        Move a poison file out of the way, into a directory with the reason.
        Whoever may write to it still does; it need not be readable.

        @param refused: its identity when it was to be sent.
        @return: the directory; L{None} if it is gone, or another file by now.
        """
        try:
            if identity(os.lstat(os.path.join(self.path, name))) != refused:
                return None
        except FileNotFoundError:
            return None
        place = self._take(name, refused, **{WHY: f"{name}: {why}\n"})
        if place is None:
            return None
        try:
            target = os.path.join(self._private, POISON, os.path.basename(name))
            os.makedirs(os.path.dirname(target), _MODE, exist_ok=True)
            target = next(free for free in _namesFor(target) if not os.path.lexists(free))
            # would not replace a directory that has something in it either
            os.rename(place, target)
            return target
        finally:
            self._release(place, name)

    def _release(self, place: str, name: str) -> None:
        """
        Remove a place, and put back what still is in it.
        """
        taken = os.path.join(place, FILE)
        if os.path.lexists(taken):
            target = os.path.join(self.path, name)
            try:
                os.makedirs(os.path.dirname(target), exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                # there is a file now where its directory was
                target = os.path.join(self.path, f"recovered-{os.path.basename(name)}")
            _moveFree(taken, target)
        with contextlib.suppress(FileNotFoundError):
            for note in (WHY, NAME):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(place, note))
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
