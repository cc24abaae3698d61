"""
The folder behind an outbox: its files, our own directory in it, and its memory.

Poison is renamed into a place of its own, and the place becomes its directory
among the poison, with the reason in it: one rename.  Nothing here replaces a
file, and whatever is still in a place after a crash or an error is put back, or
removed as L{Removal} says, by the next scan.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterable, Sequence

import attrs

from connpool.errors import StartFailed
from connpool.transfer.names import INTERNAL
from connpool.transfer.send.choosing import Choice
from connpool.transfer.send.freenames import namesFor, putBack, syncDirectory
from connpool.transfer.send.keeping import Keeping
from connpool.transfer.send.openfiles import Answer, Writers, ignoreLeaseSignals, writersOf
from connpool.transfer.send.outbox import Remembered
from connpool.transfer.send.removal import NAMES, Departure, Removal, Sent
from connpool.transfer.send.source import FileVersion, versionOf
from connpool.transfer.send.temporarynames import TemporaryNames

__all__ = ["Look", "OutboxFolder"]

#: Our own directory inside the folder.
PRIVATE = ".connpool-outbox"

#: Sources on their way out, each in a place of its own; poison; failures; files
#: that were sent and stay.
TAKEN, POISON, RECORD, KEPT = "taken", "poison", "record.json", "kept.jsonl"

#: What a place holds: the source, its path in the folder, why it was refused.
FILE, NAME, WHY = "file", "name", "why"

_DIRECTORY_MODE = 0o700

#: Files that are open at once while their writers are looked for.
_BATCH_FILES = 128


def _isInternal(name: str) -> bool:
    # no receiver takes it
    return name.lower().startswith(INTERNAL)


@attrs.frozen
class Look:
    """
    A look at a file before it is sent.

    @ivar answer: about its writers; or the reason why it cannot be opened.
    @ivar content: root of its content, if its writers are not known.
    """

    answer: Answer | OSError
    content: bytes | None = None


class OutboxFolder:
    """
    @param path: an existing directory.
    @param keep: where sent files are moved instead of being removed; L{None} to remove them.
    @param temporary: names that are left alone; the usual ones unless given.
    @param choice: of paths in the folder; those that it leaves out are left alone, too.
    @param trustSettled: whether files may go whose writers nobody knows.
    @param keepDirectories: whether directories stay that are empty then.
    @raise StartFailed: for a folder that cannot be used so.
    @ivar state: where the sender may keep its secrets.
    @ivar leftOut: why the last scan left something out, to the first path.
    @ivar temporaryCount: files that the last scan left alone for their names, and
    @ivar ignoredCount: files and directories that it left alone because of C{choice}.
    @ivar recovered: paths that the last scan removed after all: a death or a stop
        had come between.
    @ivar blind: the reason if nobody can tell here whether a file is still
        written to; L{None} if somebody can.
    """

    def __init__(
        self,
        path: str,
        keep: str | None = None,
        *,
        temporary: TemporaryNames | None = None,
        choice: Choice | None = None,
        trustSettled: bool = False,
        keepDirectories: bool = False,
    ) -> None:
        self.path = path
        self._temporary = temporary or TemporaryNames()
        self._choice = choice
        self.leftOut: dict[str, str] = {}
        self.temporaryCount = self.ignoredCount = 0
        self.recovered: list[str] = []
        self._private = os.path.join(path, PRIVATE)
        self.state = os.path.join(self._private, "state")
        if not os.path.isdir(path):
            raise StartFailed(f"{path} is not a directory; make it first")
        ignoreLeaseSignals()
        try:
            self._makePrivate()
            if keep is not None:
                self._checkKeep(keep)
            self._removal = Removal(
                path,
                os.path.join(self._private, TAKEN),
                None if keep is None else Keeping(keep),
                trustSettled=trustSettled,
                keepDirectories=keepDirectories,
            )
            self._lock = self._claim()
        except OSError as e:
            raise StartFailed(f"cannot use {e.filename}: {e.strerror}") from None
        try:
            self.blind = self._probe()
        except OSError as e:
            self.close()
            raise StartFailed(f"cannot use {e.filename or path}: {e.strerror}") from None

    def _makePrivate(self) -> None:
        for name in ("", TAKEN, POISON):
            os.makedirs(os.path.join(self._private, name), _DIRECTORY_MODE, exist_ok=True)

    def interrupt(self) -> None:
        """
        Have what runs in a thread come to an end soon.
        """
        self._removal.interrupt()

    def close(self) -> None:
        """
        Let another process have the folder.
        """
        os.close(self._lock)

    def _checkKeep(self, keep: str) -> None:
        os.stat(keep)
        ours = os.path.realpath(self.path)
        if os.path.commonpath([ours, os.path.realpath(keep)]) == ours:
            raise StartFailed(
                f"{keep} is in {self.path}: what was sent would be sent again; choose one outside"
            )

    def _claim(self) -> int:
        fd = os.open(self._private, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StartFailed(
                f"{self.path}: another process forwards this folder already; stop it first"
            ) from None
        except OSError as e:
            os.close(fd)
            raise StartFailed(
                f"{self.path}: its file system has no locks ({e.strerror}); use another folder"
            ) from None
        return fd

    def _probe(self) -> str | None:
        """
        @return: why writers are not known here; L{None} if they are.
        """
        probe = os.path.join(self._private, f"probe-{secrets.token_hex(4)}")
        os.close(os.open(probe, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            (answer,) = writersOf([probe])
        finally:
            os.unlink(probe)
        if isinstance(answer, OSError):
            raise answer
        return answer.why if answer.writers is Writers.UNKNOWN else None

    def recover(self) -> None:
        """
        Go on with what was taken and got no further.
        """
        taken = os.path.join(self._private, TAKEN)
        for token in os.listdir(taken):
            place = os.path.join(taken, token)
            if not os.path.isdir(place):
                continue  # not ours
            if os.path.lexists(os.path.join(place, NAMES)):
                self.recovered += self._removal.recover(place)
                continue
            try:
                with open(os.path.join(place, NAME), encoding="utf-8", newline="") as file:
                    name = file.read()
            except (FileNotFoundError, UnicodeDecodeError):
                name = ""
            self._release(place, name or f"recovered-{token}")

    def _renew(self) -> None:
        """
        Make our own directory again if somebody removed it.
        """
        try:
            theirs = os.stat(self._private).st_ino
        except FileNotFoundError:
            theirs = None
        if theirs != os.fstat(self._lock).st_ino:
            self._makePrivate()
            lock = self._claim()
            os.close(self._lock)
            self._lock = lock

    def scan(self) -> dict[str, FileVersion]:
        """
        @return: relative path to version of every regular file with a UTF-8
            name.  Links, devices, temporary names and what vanishes meanwhile
            are left out, and so is C{.connpool*}: ours, or of a receiver into
            the same folder.
        @raise OSError: the folder cannot be read.
        @raise StartFailed: another process has the folder now.
        """
        device = os.stat(self.path).st_dev
        self._renew()
        self.recovered = []
        with contextlib.suppress(OSError):  # said when it happened
            self.recover()
        found: dict[str, FileVersion] = {}
        self.leftOut = {}
        self.temporaryCount = self.ignoredCount = 0
        # a list, not recursion: trees may be deeper than Python's stack
        todo = [""]
        while todo:
            self._scanDirectory(todo.pop(), device, found, todo)
        return found

    def _scanDirectory(
        self, inside: str, device: int, found: dict[str, FileVersion], todo: list[str]
    ) -> None:
        where = os.path.join(self.path, inside.rstrip("/")) if inside else self.path
        try:
            with os.scandir(where) as entries:
                for entry in entries:
                    if not _isInternal(entry.name):
                        self._scanEntry(entry, f"{inside}{entry.name}", device, found, todo)
        except OSError as e:
            if not inside:
                raise
            self._unreadable(e, where)

    def _scanEntry(
        self,
        entry: os.DirEntry[str],
        path: str,
        device: int,
        found: dict[str, FileVersion],
        todo: list[str],
    ) -> None:
        isDirectory = entry.is_dir(follow_symlinks=False)
        if entry.name in self._temporary:
            self.temporaryCount += not isDirectory
            return
        if self._choice is not None and self._choice.leftOut(path, isDirectory):
            self.ignoredCount += 1
            return
        try:
            path.encode()
            status = entry.stat(follow_symlinks=False)
        except UnicodeEncodeError:
            self.leftOut.setdefault("its name is not UTF-8; rename it", entry.path)
        except OSError as e:
            self._unreadable(e, entry.path)
        else:
            if isDirectory and status.st_dev != device:
                # nothing can be renamed out of it
                why = "it is on another file system; give it a filesend of its own"
                self.leftOut.setdefault(why, entry.path)
            elif isDirectory:
                todo.append(f"{path}/")
            elif stat.S_ISREG(status.st_mode):
                found[path] = versionOf(status)

    def _unreadable(self, error: OSError, path: str) -> None:
        if not isinstance(error, FileNotFoundError):
            self.leftOut.setdefault(f"it cannot be read ({error.strerror})", path)

    def look(self, names: Sequence[str]) -> dict[str, Look]:
        """
        Look for the writers of files that are to be sent; in a thread.
        """
        found: dict[str, Look] = {}
        for at in range(0, len(names), _BATCH_FILES):
            some = names[at : at + _BATCH_FILES]
            answers = writersOf([os.path.join(self.path, name) for name in some])
            for name, answer in zip(some, answers, strict=True):
                content = None
                if isinstance(answer, Answer) and answer.writers is Writers.UNKNOWN:
                    content = self._removal.contentOf(os.path.join(self.path, name))
                found[name] = Look(answer, content)
        return found

    def mayGo(self, answer: Answer) -> bool:
        """
        Tell whether a file with such writers is removed once it was sent.
        """
        return self._removal.mayGo(answer)

    def remove(self, sent: Sequence[Sent]) -> dict[str, Departure]:
        """
        Remove (or move to C{keep}) sources whose receipts are good; in a thread.

        @return: what became of each, by its path.
        """
        return self._removal.remove(sent)

    def _take(self, name: str, sent: FileVersion, **notes: str) -> str | None:
        """
        Rename a source into a place of its own.

        @param notes: texts to put beside it.
        @return: the place; L{None} if the source is gone, or is another file
            than C{sent}, which stays.
        """
        place = os.path.join(self._private, TAKEN, secrets.token_hex(8))
        os.mkdir(place, _DIRECTORY_MODE)
        ours = False
        try:
            for note, text in {NAME: name, **notes}.items():
                with open(os.path.join(place, note), "x", encoding="utf-8", newline="") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            syncDirectory(place)
            taken = os.path.join(place, FILE)
            with contextlib.suppress(FileNotFoundError):
                os.rename(os.path.join(self.path, name), taken)
                # without the change time, which the rename has set
                ours = versionOf(os.lstat(taken))[:4] == sent[:4]
        finally:
            if not ours:
                self._release(place, name)
        return place if ours else None

    def setAside(self, name: str, refused: FileVersion, why: str) -> str | None:
        """
        Move a poison file out of the way, into a directory with the reason.
        Programs that may write to it still do; it need not be readable.

        @param refused: its version when it was to be sent.
        @return: the directory; L{None} if it is gone, or another file by now.
        """
        try:
            if versionOf(os.lstat(os.path.join(self.path, name))) != refused:
                return None
        except FileNotFoundError:
            return None
        place = self._take(name, refused, **{WHY: f"{name}: {why}\n"})
        if place is None:
            return None
        try:
            target = os.path.join(self._private, POISON, os.path.basename(name))
            os.makedirs(os.path.dirname(target), _DIRECTORY_MODE, exist_ok=True)
            target = next(free for free in namesFor(target) if not os.path.lexists(free))
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
            putBack(taken, self.path, name)
        with contextlib.suppress(FileNotFoundError):
            for note in (WHY, NAME):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(place, note))
            os.rmdir(place)

    def remember(self, memory: Iterable[Remembered]) -> None:
        """
        Keep the record of failures for the next start.
        """
        record = os.path.join(self._private, RECORD)
        rows = [
            [each.path, list(each.version), each.strikes, each.salt.hex()]
            for each in sorted(memory, key=lambda each: each.path)
        ]
        with open(f"{record}.new", "w", encoding="utf-8") as file:
            json.dump(rows, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{record}.new", record)

    def rememberKept(self, kept: Iterable[Remembered]) -> None:
        """
        Add to the files that were sent and stay.
        """
        self._writeKept(os.path.join(self._private, KEPT), kept)

    @staticmethod
    def _writeKept(path: str, kept: Iterable[Remembered]) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps([each.path, list(each.version)])}\n" for each in kept)
            file.flush()
            os.fsync(file.fileno())

    def remembered(self) -> list[Remembered]:
        """
        @return: what L{remember} and L{rememberKept} were given; nothing if there
            is no record or it is damaged: a damaged record only costs tries.
        """
        found = []
        with contextlib.suppress(OSError, ValueError, TypeError):
            with open(os.path.join(self._private, RECORD), encoding="utf-8") as file:
                rows = json.load(file)
            found = [
                # the salt came later
                Remembered(
                    str(path),
                    tuple(map(int, version)),
                    int(count),
                    bytes.fromhex(salt[0]) if salt else b"",
                )
                for path, version, count, *salt in rows
            ]
        return found + self._remembersKept()

    def _remembersKept(self) -> list[Remembered]:
        kept: dict[str, FileVersion] = {}
        lines = 0
        with (
            contextlib.suppress(OSError),
            open(os.path.join(self._private, KEPT), encoding="utf-8", errors="replace") as file,
        ):
            for line in file:
                lines += 1
                with contextlib.suppress(ValueError, TypeError):
                    path, version = json.loads(line)
                    kept[str(path)] = tuple(map(int, version))
        found = [
            Remembered(path, version, kept=True)
            for path, version in kept.items()
            if self._isStill(path, version)
        ]
        if len(found) < lines:
            with contextlib.suppress(OSError):
                shorter = os.path.join(self._private, f"{KEPT}.new")
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(shorter)
                self._writeKept(shorter, found)
                os.replace(shorter, os.path.join(self._private, KEPT))
        return found

    def _isStill(self, path: str, version: FileVersion) -> bool:
        try:
            return versionOf(os.lstat(os.path.join(self.path, path))) == version
        except (OSError, ValueError):
            return False
