"""
Which receipts a program has not been told about yet.

Theory of operation
===================
The done log (L{connpool.transfer.stores.done}) is written before a sender gets
its receipt, so it is the outbox: this reads behind its writers, in each day's
file for itself, because a clock that was ahead is set right some time and its
writer goes back to an earlier day.  A position is a day and an offset in that
day's file; the file C{hook} keeps one for each day, and everything before it was
told.  Receipts may be told out of order, so a day's position moves to the first
one that is still open; after a restart whatever lies behind it is told again: at
least once.

A lock on C{hook} keeps two processes from telling the same twice.
"""

from __future__ import annotations

import contextlib
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

_NAME = re.compile(r"done-([0-9]+)\Z")
_KEPT = re.compile(rb"^([0-9]{20}) ([0-9]{20})\n", re.MULTILINE)
_MUCH = 1 << 20


class ReceivedOutbox:
    """
    @param directory: descriptor of the directory of the done log.
    @param now: not needed: no clock decides what is read.
    @raise StartFailed: another process tells already; one line.
    """

    def __init__(self, syscalls: Syscalls, directory: int, now: Callable[[], float]) -> None:
        self._sys = syscalls
        self._directory = directory
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = syscalls.open("hook", flags, 0o600, dir_fd=directory)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            syscalls.close(self._fd)
            raise StartFailed(
                "another receiver of this directory has --on-received; give it to one of them"
            ) from None
        kept = syscalls.pread(self._fd, syscalls.fstat(self._fd).st_size, 0)
        #: day to the offset at which reading goes on
        self._at = {int(day): int(offset) for day, offset in _KEPT.findall(kept)}
        if not kept:  # a new one: what is there already is no news
            self._at = {day: self._size(day) for day in self._days()}
        #: of one day, in its order
        self._ready: list[tuple[Position, Receipt]] = []
        #: taken and not told
        self._open: set[Position] = set()
        self._length = len(kept) or 1
        self._keep()
        # an empty one would be a new one after a power cut
        syscalls.fsync(self._fd)
        syscalls.fsync(directory)

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
        self._open.add(taken[0])
        return taken

    def told(self, position: Position) -> None:
        """
        The program has seen the receipt at C{position}.

        @raise OSError: this could not be kept; the next one keeps it too.
        """
        self._open.discard(position)
        self._keep()

    def close(self) -> None:
        """
        Let go of the lock.
        """
        with contextlib.suppress(OSError):  # only if it could not before
            self._keep()
        self._sys.close(self._fd)

    def _keep(self) -> None:
        first = dict(self._at)
        for day, offset in [*self._open, *(position for position, _ in self._ready[:1])]:
            first[day] = min(offset, first.get(day, offset))
        table = b"".join(b"%020d %020d\n" % position for position in sorted(first.items()))
        # one call: whole or not at all
        self._length = max(self._length, len(table))
        self._sys.writeAll(self._fd, table.ljust(self._length, b"\n"), 0)

    def _days(self) -> list[int]:
        names = map(_NAME.match, self._sys.listdir(self._directory))
        return sorted(int(found[1]) for found in names if found)

    def _size(self, day: int) -> int:
        try:
            return self._sys.stat(
                f"done-{day}", dir_fd=self._directory, follow_symlinks=False
            ).st_size
        except FileNotFoundError:
            return 0  # its week is over

    def _read(self) -> None:
        """
        Read on in the first day that has more.
        """
        days = self._days()
        self._at = {day: self._at.get(day, 0) for day in days}
        for day in days:
            size = self._size(day)
            if size < self._at[day]:
                self._at[day] = 0  # removed while the clock was ahead, and begun anew
            if size > self._at[day]:
                self._readDay(day, self._at[day])
            if self._ready:
                return

    def _readDay(self, day: int, offset: int) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = self._sys.open(f"done-{day}", flags, dir_fd=self._directory)
        except FileNotFoundError:
            return
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
                self._at[day] = offset
        finally:
            self._sys.close(fd)


def _receiptOf(line: bytes) -> Receipt | None:
    record = decodeLine(line)
    try:
        return msgspec.convert(record["receipt"], Receipt)
    except (msgspec.ValidationError, TypeError, KeyError):
        return None
