"""
Which files of a folder are to be sent, and when.

Theory of operation
===================
The folder itself is the queue, so a restart forgets nothing that matters.
A scan hands every file it sees to L{Outbox.seen}; a file has I{settled} when
its identity did not change for C{settle} seconds.  L{Outbox.due} names the
settled files that may be tried now, oldest first.  A file that failed waits,
longer each time, with a cap: a receiver that is away for days costs one try a
file every L{LONGEST_WAIT}.  A failure that is the file's own (its name is
refused, it is too large) counts against the file; after C{attempts} of them
it is poison and is set aside by the caller.

Pure: no clock, no file system.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

__all__ = ["LONGEST_WAIT", "Outbox"]

#: Seconds between two tries of the same file at most.
LONGEST_WAIT = 300.0

#: Seconds before the second try.
FIRST_WAIT = 1.0

Identity = tuple[int, ...]


@attrs.define
class _Entry:
    identity: Identity
    since: float
    tries: int = 0
    strikes: int = 0
    notBefore: float = 0.0


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

    def scanned(self, files: Mapping[str, Identity], now: float) -> None:
        """
        A scan saw exactly C{files}.
        """
        for path in [path for path in self._entries if path not in files]:
            if path not in self._sending:
                del self._entries[path]
        for path, identity in files.items():
            entry = self._entries.get(path)
            if entry is None:
                self._entries[path] = _Entry(identity, now)
            elif entry.identity != identity:
                # another file, or more of the same: it has a clean record
                self._entries[path] = _Entry(identity, now)

    def due(self, now: float, limit: int) -> list[str]:
        """
        Begin to send: at most C{limit} settled files, waiting longest first.

        @return: paths; each is out until L{done} or L{failed}.
        """
        ready = [
            (entry.since, path)
            for path, entry in self._entries.items()
            if path not in self._sending
            and now - entry.since >= self._settle
            and now >= entry.notBefore
        ]
        paths = [path for _, path in sorted(ready)[:limit]]
        self._sending.update(paths)
        return paths

    def identityOf(self, path: str) -> Identity:
        """
        What the last scan saw of a file that L{due} named.
        """
        return self._entries[path].identity

    def done(self, path: str) -> None:
        """
        The file was sent and is gone from the folder.
        """
        self._sending.discard(path)
        self._entries.pop(path, None)

    def changed(self, path: str, now: float) -> None:
        """
        Somebody wrote to the file while or after it was sent: it settles again.
        """
        self._sending.discard(path)
        if path in self._entries:
            self._entries[path].since = now

    def failed(self, path: str, now: float, own: bool) -> bool:
        """
        The file could not be sent.

        @param own: whether the reason lies in the file, not on the way.
        @return: whether it is poison now; the caller sets it aside.
        """
        self._sending.discard(path)
        entry = self._entries.get(path)
        if entry is None:
            return False
        entry.tries += 1
        entry.strikes += own
        entry.notBefore = now + min(FIRST_WAIT * 2.0 ** min(entry.tries - 1, 30), LONGEST_WAIT)
        return entry.strikes >= self._attempts

    def next(self, now: float) -> float | None:
        """
        @return: seconds until something may become due; L{None} if nothing is
            waited for.
        """
        times = [
            max(entry.since + self._settle, entry.notBefore) - now
            for path, entry in self._entries.items()
            if path not in self._sending
        ]
        return max(min(times), 0.0) if times else None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def strikes(self) -> dict[str, tuple[Identity, int]]:
        """
        What a restart should know: files with failures of their own.
        """
        return {
            path: (entry.identity, entry.strikes)
            for path, entry in self._entries.items()
            if entry.strikes
        }

    def restore(self, strikes: Iterable[tuple[str, Identity, int]], now: float) -> None:
        """
        Take over what L{strikes} said before a restart.
        """
        for path, identity, count in strikes:
            entry = _Entry(tuple(identity), now)
            entry.strikes = entry.tries = count
            self._entries[path] = entry

    def snapshot(self) -> dict[str, Any]:
        """
        @return: C{waiting} and C{sending} counts.
        """
        return {"waiting": len(self._entries) - len(self._sending), "sending": len(self._sending)}
