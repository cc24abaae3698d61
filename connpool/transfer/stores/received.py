"""
Which receipts a program has not been told about yet.

Theory of operation
===================
The done log (L{connpool.transfer.stores.done}) is written before a sender gets
its receipt, so it is the outbox: this reads behind its writers.  A position is
a day and an offset in that day's file; everything before the position kept in
the file C{hook} was told.  Receipts may be told out of order, so the position
moves to the first one that is still open; after a restart whatever lies behind
it is told again: at least once.

A lock on C{hook} keeps two processes from telling the same twice.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable

import msgspec

from connpool.errors import StartFailed
from connpool.transfer.records import Receipt
from connpool.transfer.stores.lines import decodeLine, linesOf
from connpool.transfer.stores.syscalls import Syscalls

__all__ = ["ReceivedOutbox"]

Position = tuple[int, int]

_DAY = 86400
_NAME = re.compile(r"done-([0-9]+)\Z")
_KEPT = re.compile(rb"([0-9]{20}) ([0-9]{20})\n")
_MUCH = 1 << 20


class ReceivedOutbox:
    """
    @param directory: descriptor of the directory of the done log.
    @param now: wall-clock seconds.
    @raise StartFailed: another process tells already; one line.
    """

    def __init__(self, syscalls: Syscalls, directory: int, now: Callable[[], float]) -> None:
        self._sys = syscalls
        self._directory = directory
        self._now = now
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = syscalls.open("hook", flags, 0o600, dir_fd=directory)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            syscalls.close(self._fd)
            raise StartFailed(
                "another receiver of this directory has --on-received; give it to one of them"
            ) from None
        kept = _KEPT.fullmatch(syscalls.pread(self._fd, 64, 0))
        self._at: Position = (int(kept[1]), int(kept[2])) if kept else self._end()
        self._ready: list[tuple[Position, Receipt]] = []
        #: position of a receipt that was taken, to whether it was told
        self._open: dict[Position, bool] = {}
        self._keep(self._at)

    def take(self) -> tuple[Position, Receipt] | None:
        """
        @return: the next receipt, and what to give to L{told}; L{None} if
            there is none now.
        """
        if not self._ready:
            self._read()
        if not self._ready:
            return None
        taken = self._ready.pop(0)
        self._open[taken[0]] = False
        return taken

    def told(self, position: Position) -> None:
        """
        The program has seen the receipt at C{position}.
        """
        self._open[position] = True
        while self._open and self._open[first := next(iter(self._open))]:
            del self._open[first]
        if self._open:
            self._keep(next(iter(self._open)))
        else:
            self._keep(self._ready[0][0] if self._ready else self._at)

    def close(self) -> None:
        """
        Let go of the lock.
        """
        self._sys.close(self._fd)

    def _keep(self, position: Position) -> None:
        self._sys.writeAll(self._fd, b"%020d %020d\n" % position, 0)

    def _days(self) -> list[int]:
        names = map(_NAME.match, self._sys.listdir(self._directory))
        return sorted(int(found[1]) for found in names if found)

    def _end(self) -> Position:
        today = int(self._now() // _DAY)
        if today not in self._days():
            return today, 0
        fd = self._sys.open(f"done-{today}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return today, self._sys.fstat(fd).st_size
        finally:
            self._sys.close(fd)

    def _read(self) -> None:
        """
        Read on, from the day we are in to the newest.
        """
        day, offset = self._at
        for number in self._days():
            if number < day:
                continue
            self._readDay(number, offset if number == day else 0)
            if self._ready:
                return

    def _readDay(self, day: int, offset: int) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = self._sys.open(f"done-{day}", flags, dir_fd=self._directory)
        except FileNotFoundError:
            return  # its week is over
        try:
            while not self._ready and (data := self._sys.pread(fd, _MUCH, offset)):
                end = data.rfind(b"\n") + 1
                if not end:
                    if len(data) < _MUCH:
                        return  # being written
                    end = len(data)  # no line of ours is that long
                for start, line in linesOf(data[:end]):
                    receipt = _receiptOf(line)
                    if receipt is not None:
                        self._ready.append(((day, offset + start), receipt))
                offset += end
                self._at = (day, offset)
        finally:
            self._sys.close(fd)


def _receiptOf(line: bytes) -> Receipt | None:
    record = decodeLine(line)
    try:
        return msgspec.convert(record["receipt"], Receipt)
    except (msgspec.ValidationError, TypeError, KeyError):
        return None
