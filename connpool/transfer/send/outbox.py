"""
The files of a folder that are to be sent, and the time for it.

Theory of operation
===================
The folder itself is the queue, so a restart forgets nothing that matters.
A scan hands every file it sees to L{Outbox.scanned}; a file has I{settled} when
its version did not change for C{settle} seconds.  L{Outbox.due} names the
settled files that may be tried now, oldest first; the caller then says whether
anybody still writes to each (L{Outbox.busy}, L{Outbox.looked}).  A file that
failed waits, longer each time, with a cap: a receiver that is away for days
costs one try a file every L{LONGEST_WAIT_SECONDS}.  A failure that is the file's own
(its name is refused, it is too large) counts against the file; after
C{attempts} of them it is poison and is set aside by the caller.

Pure: no clock, no file system.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import attrs

from connpool.errors import ConnpoolError
from connpool.transfer.send.source import FileVersion

__all__ = [
    "LONGEST_WAIT_SECONDS",
    "Outbox",
    "OutboxStats",
    "Remembered",
    "liesInTheFile",
    "liesInTheWay",
]

#: Seconds between two tries of the same file at most.
LONGEST_WAIT_SECONDS = 300.0

#: Seconds before the second try.
FIRST_WAIT_SECONDS = 1.0

#: Settling times that a file must look the same whose writers nobody knows.
UNKNOWN_FACTOR = 5

#: Codes that lie in the file itself; the rest may go away while we wait.
_OWN = frozenset({"name-refused", "exists", "too-large", "source-error"})

#: Why a file cannot be read, and it is not to blame.
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

#: Codes that tell of the receiver or the way to it, not of a file.
_WAY = frozenset({"network", "timeout", "auth-failed", "unsupported", "protocol", "damaged"})


def liesInTheFile(why: ConnpoolError) -> bool:
    """
    Tell whether a refusal would be the same at another time: the file itself is to blame.
    """
    return why.code in _OWN and getattr(why.__context__, "errno", None) not in _SHORTAGE


def liesInTheWay(why: ConnpoolError) -> bool:
    """
    Tell whether an error says something of the receiver, or of the way to it.
    """
    return why.code in _WAY


def _waitAfter(tries: int) -> float:
    return min(FIRST_WAIT_SECONDS * 2.0 ** min(tries - 1, 30), LONGEST_WAIT_SECONDS)


@attrs.frozen
class OutboxStats:
    """
    Counts of a folder that is sent.

    @ivar waiting: files in the folder that are not being sent.
    @ivar sending: files being sent.
    @ivar kept: files that were sent and stay.
    @ivar temporary: files left alone because their names look temporary, and
    @ivar ignored: files and directories left alone because of C{--ignore}.
    @ivar sent: files that are stored and gone from the folder.
    @ivar sentBytes: their content.
    @ivar failed: tries that did not succeed.
    @ivar setAside: files that were set aside.
    @ivar rateLimitBytes: bytes a second that are sent at most; 0 for no limit.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset(
        {"waiting", "sending", "kept", "temporary", "ignored", "rateLimitBytes"}
    )

    waiting: int = 0
    sending: int = 0
    kept: int = 0
    temporary: int = 0
    ignored: int = 0
    sent: int = 0
    sentBytes: int = 0
    failed: int = 0
    setAside: int = 0
    rateLimitBytes: int = 0


@attrs.frozen
class Remembered:
    """
    Facts about a file that outlive a restart.

    @ivar strikes: failures of its own.
    @ivar salt: random bytes that its idempotence key depends on; none at first.
    @ivar kept: it was sent and stays in the folder.
    """

    path: str
    version: FileVersion
    strikes: int = 0
    salt: bytes = b""
    kept: bool = False


@attrs.define
class _Entry:
    """
    @ivar since: the time of its last change, or of its last writer.
    @ivar open: the time since which it has not been without a writer, as far
        as seen.
    @ivar busy: a writer was found last time.
    @ivar content: root of its content, and
    @ivar contentSince: the time when it was read first.
    """

    version: FileVersion
    since: float
    tries: int = 0
    strikes: int = 0
    notBefore: float = 0.0
    open: float | None = None
    busy: bool = False
    content: bytes | None = None
    contentSince: float = 0.0
    salt: bytes = b""
    kept: bool = False


class Outbox:
    """
    @param settle: seconds without a change before a file is sent.
    @param attempts: failures of a file's own before it is poison.
    """

    def __init__(self, settle: float, attempts: int) -> None:
        self._settle = settle
        self._attempts = attempts
        self._entries: dict[str, _Entry] = {}
        self._sending: set[str] = set()
        self._kept = 0
        self._holds = 0
        self._heldUntil = 0.0

    def scanned(self, files: Mapping[str, FileVersion], now: float) -> None:
        """
        Take over the files that a scan saw.
        """
        for path in [path for path in self._entries if path not in files]:
            if path not in self._sending:
                self._forget(path)
        for path, version in files.items():
            entry = self._entries.get(path)
            if entry is None:
                self._entries[path] = _Entry(version, now, open=now)
            elif entry.version != version:
                # another file, or more of the same: it has a clean record
                self._kept -= entry.kept
                began = now if entry.open is None else entry.open
                self._entries[path] = _Entry(version, now, open=began)

    def _forget(self, path: str) -> None:
        entry = self._entries.pop(path, None)
        if entry is not None:
            self._kept -= entry.kept

    def due(self, now: float, limit: int) -> list[str]:
        """
        Begin to send: at most C{limit} settled files, waiting longest first.

        @return: paths; each is out until L{busy}, L{looked}, L{done},
            L{changed}, L{keep} or L{failed}.
        """
        if now < self._heldUntil:
            return []
        ready = (
            (entry.since, path)
            for path, entry in self._entries.items()
            if not entry.kept
            and path not in self._sending
            and now - entry.since >= self._settle
            and now >= entry.notBefore
        )
        paths = [path for _, path in heapq.nsmallest(limit, ready)]
        self._sending.update(paths)
        return paths

    def versionOf(self, path: str) -> FileVersion:
        """
        @return: the version of a file that L{due} named, as of the last scan.
        """
        return self._entries[path].version

    def saltOf(self, path: str) -> bytes:
        """
        @return: random bytes for its key; empty unless L{renew} gave it some.
        """
        return self._entries[path].salt

    # -- before it is sent

    def busy(self, path: str, now: float) -> None:
        """
        Let a file settle again that is open for writing.
        """
        self._sending.discard(path)
        entry = self._entries.get(path)
        if entry is not None:
            entry.since = now
            entry.busy = True
            entry.content = None
            entry.open = now if entry.open is None else entry.open

    def free(self, path: str) -> None:
        """
        Note that a file is not open for writing.
        """
        entry = self._entries.get(path)
        if entry is not None:
            entry.busy = False
            entry.open = None

    def looked(self, path: str, content: bytes | None, now: float) -> bool:
        """
        Judge a file whose writers are not known by its content.

        @param content: the root of its content now.
        @return: whether it was the same for long; otherwise it is not sent yet.
        """
        entry = self._entries.get(path)
        if entry is None or content is None:
            self._sending.discard(path)
            return False
        if entry.content != content:
            entry.content, entry.contentSince = content, now
        ready = entry.contentSince + UNKNOWN_FACTOR * self._settle
        if now >= ready:
            self.free(path)
            return True
        self._sending.discard(path)
        entry.notBefore = ready
        return False

    def longOpen(self, now: float, seconds: float) -> tuple[str, float] | None:
        """
        @return: the file that has been written to for the longest time, and that
            time, if it is at least C{seconds}.
        """
        times = [
            (now - entry.open, path)
            for path, entry in self._entries.items()
            if entry.open is not None
            and now - entry.open >= seconds
            and (entry.busy or now - entry.since < self._settle)
        ]
        if not times:
            return None
        longest, path = max(times)
        return path, longest

    # -- after it was sent

    def done(self, path: str) -> None:
        """
        Forget a file that is gone from the folder.
        """
        self._sending.discard(path)
        self._forget(path)

    def keep(self, path: str, version: FileVersion | None = None) -> Remembered | None:
        """
        Keep a file that was sent; it goes again when it changes.

        @param version: its version now, if that has changed by our own doing.
        @return: facts to remember, unless it is gone meanwhile.
        """
        self._sending.discard(path)
        entry = self._entries.get(path)
        if entry is None:
            return None
        entry.version = version or entry.version
        self._kept += not entry.kept
        entry.kept = True
        return Remembered(path, entry.version, kept=True)

    def changed(self, path: str, now: float) -> None:
        """
        Let a file settle again that was written to while or after it was sent.
        """
        self._sending.discard(path)
        entry = self._entries.get(path)
        if entry is not None:
            entry.since = now
            entry.content = None

    def renew(self, path: str, salt: bytes) -> None:
        """
        Give a file another key although it looks the same.

        @param salt: random bytes.
        """
        entry = self._entries.get(path)
        if entry is not None:
            entry.salt = salt

    def failed(self, path: str, now: float, own: bool, version: FileVersion | None = None) -> bool:
        """
        Let a file wait that could not be sent, or not be removed.

        @param own: whether the reason lies in the file, not on the way.
        @param version: its version now, if that has changed by our own doing.
        @return: whether it is poison now; the caller sets it aside.
        """
        self._sending.discard(path)
        entry = self._entries.get(path)
        if entry is None:
            return False
        entry.version = version or entry.version
        entry.tries += 1
        entry.strikes += own
        entry.notBefore = now + _waitAfter(entry.tries)
        return entry.strikes >= self._attempts

    def hold(self, path: str, now: float, rotate: bool) -> None:
        """
        Try nothing for a while, longer each time, since the receiver failed.

        @param path: the file that showed it.
        @param rotate: whether another one is tried then.
        """
        self._holds += 1
        self._heldUntil = now + _waitAfter(self._holds)
        entry = self._entries.get(path)
        if entry is not None:
            if rotate:
                entry.since = now
            else:
                entry.notBefore = self._heldUntil

    def release(self) -> None:
        """
        Go on: the receiver is well.
        """
        self._holds = 0
        self._heldUntil = 0.0

    def next(self, now: float) -> float | None:
        """
        @return: seconds until something may become due; L{None} if nothing is
            waited for.
        """
        times = [
            max(entry.since + self._settle, entry.notBefore)
            for path, entry in self._entries.items()
            if not entry.kept and path not in self._sending
        ]
        return max(min(times) - now, self._heldUntil - now, 0.0) if times else None

    @property
    def memory(self) -> list[Remembered]:
        """
        Facts that a restart should know, beside the files that stay.
        """
        return [
            Remembered(path, entry.version, entry.strikes, entry.salt)
            for path, entry in self._entries.items()
            if entry.strikes or entry.salt
        ]

    def restore(self, memory: Iterable[Remembered], now: float) -> None:
        """
        Take over L{memory}, and files that stay, from before a restart.
        """
        for each in memory:
            self._forget(each.path)
            self._kept += each.kept
            self._entries[each.path] = _Entry(
                tuple(each.version),
                now,
                tries=each.strikes,
                strikes=each.strikes,
                salt=each.salt,
                kept=each.kept,
                open=now,
            )

    def snapshot(self) -> dict[str, Any]:
        """
        @return: C{waiting}, C{sending} and C{kept} counts.
        """
        waiting = len(self._entries) - len(self._sending) - self._kept
        return {"waiting": waiting, "sending": len(self._sending), "kept": self._kept}
