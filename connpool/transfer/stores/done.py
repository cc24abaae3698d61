"""
What was finished, so that nothing is finished twice.

Theory of operation
===================
A sender that did not see its receipt sends the file again with the same key
and gets the same receipt.  Receipts are appended to one file a day, by every
process that uses the store, and read by all of them: a lookup first takes in
what others appended since.  Files older than a week are removed whole.

Memory holds where each receipt lies, not the receipt.  The oldest are
forgotten when there are more than C{ENTRIES}.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any
from zlib import crc32

import attrs
import msgspec

from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.lines import decodeLine, linesOf
from connpool.transfer.stores.syscalls import Syscalls

__all__ = ["DAYS", "ENTRIES", "DoneLog"]

#: Days that a receipt is kept.
DAYS = 7
#: Receipts whose place is kept in memory.
ENTRIES = 262_144
#: Seconds for which nothing is taken to have come from other processes.
FRESH = 0.02
#: Bytes that are read at start, newest day first.
MAX_READ = 256 << 20

_DAY = 86400
_NAME = re.compile(r"done-([0-9]+)\Z")
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


@attrs.define
class _Day:
    """
    @ivar known: bytes that were read.
    @ivar linked: whether its name is known to be on disk.
    """

    fd: int
    known: int = 0
    linked: bool = False


class DoneLog:
    """
    @param directory: descriptor of the directory the files lie in.
    @param now: wall-clock seconds.

    One thread at a time.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        directory: int,
        now: Callable[[], float],
        entries: int = ENTRIES,
    ) -> None:
        self._sys = syscalls
        self._directory = directory
        self._now = now
        self._entries = entries
        self._looked = 0.0
        self._days: dict[int, _Day] = {}
        #: key to (day, offset, length)
        self._where: dict[bytes, tuple[int, int, int]] = {}
        self._load()

    def append(self, finished: Sequence[tuple[Offer, Receipt]], *, sync: bool) -> None:
        """
        Note what was finished; offers without a key leave no trace.
        """
        lines = []
        for offer, receipt in finished:
            if offer.key is not None:
                body = b'{"key":"%b","receipt":%b}' % (
                    offer.key.hex().encode(),
                    msgspec.json.encode(receipt),
                )
                lines.append((_index(offer), b"\n%08x %b\n" % (crc32(body), body)))
        if not lines:
            return
        today = int(self._now() // _DAY)
        day = self._day(today)
        data = b"".join(line for _, line in lines) if len(lines) > 1 else lines[0][1]
        written = self._sys.write(day.fd, data)
        if written < len(data):  # a disk that is nearly full: the half line is skipped
            written = self._sys.write(day.fd, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        end = os.lseek(day.fd, 0, os.SEEK_CUR)
        if end - written == day.known:
            offset = day.known
            for index, line in lines:
                self._note(index, today, offset + 1, len(line) - 2)
                offset += len(line)
            day.known = end
        if sync:
            self._sys.fdatasync(day.fd)
            if not day.linked:
                self._sys.fsync(self._directory)
                day.linked = True

    def find(self, offer: Offer) -> Receipt | None:
        """
        @return: the receipt that this principal got for this key.
        """
        if offer.key is None:
            return None
        today = int(self._now() // _DAY)
        self._day(today)  # while it can still be refused for want of descriptors
        now = monotonic()
        if now - self._looked >= FRESH:
            self._looked = now
            self._refresh(today)
            if today - 1 in self._days:
                self._refresh(today - 1)  # a process whose midnight is later
        where = self._where.get(_index(offer))
        if where is None:
            return None
        number, offset, length = where
        record = decodeLine(self._sys.pread(self._days[number].fd, length, offset))
        try:
            receipt = msgspec.convert(record["receipt"], Receipt)
        except (msgspec.ValidationError, TypeError, KeyError):
            return None
        return receipt if receipt.principal == offer.principal else None

    def expire(self) -> None:
        """
        Forget the days that are over.
        """
        oldest = int(self._now() // _DAY) - DAYS
        for name in self._sys.listdir(self._directory):
            found = _NAME.match(name)
            if found and int(found[1]) < oldest:
                self._sys.remove(name, self._directory)
        for number in [number for number in self._days if number < oldest]:
            self._sys.close(self._days.pop(number).fd)
            self._where = {key: at for key, at in self._where.items() if at[0] != number}

    def close(self) -> None:
        """
        Let go of the descriptors.
        """
        while self._days:
            self._sys.close(self._days.popitem()[1].fd)

    def _load(self) -> None:
        today = int(self._now() // _DAY)
        numbers = sorted(
            int(found[1])
            for found in map(_NAME.match, self._sys.listdir(self._directory))
            if found and int(found[1]) >= today - DAYS
        )
        for number in numbers[-DAYS - 2 :]:
            self._day(number)
        left = MAX_READ
        for number in reversed(numbers):
            day = self._days.get(number)
            if day is not None:
                size = self._sys.fstat(day.fd).st_size
                day.known = max(0, size - left)
                left -= size - day.known
        for number in self._days:
            self._refresh(number)

    def _day(self, number: int) -> _Day:
        day = self._days.get(number)
        if day is None:
            fd = self._sys.open(f"done-{number}", _FLAGS, 0o600, dir_fd=self._directory)
            day = self._days[number] = _Day(fd)
        return day

    def _refresh(self, number: int) -> None:
        day = self._days[number]
        size = self._sys.fstat(day.fd).st_size
        while day.known < size:
            data = self._sys.pread(day.fd, min(size - day.known, 1 << 20), day.known)
            end = data.rfind(b"\n") + 1
            if not end:
                if len(data) == 1 << 20:
                    day.known += len(data)  # no line of ours is that long
                    continue
                return  # another process is writing it
            for offset, line in linesOf(data[:end]):
                record = decodeLine(line)
                if isinstance(record, dict):
                    self._noteRecord(record, number, day.known + offset, len(line))
            day.known += end

    def _noteRecord(self, record: dict[str, Any], number: int, offset: int, length: int) -> None:
        try:
            index = bytes.fromhex(record["key"]) + record["receipt"]["principal"].encode()
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        self._note(index, number, offset, length)

    def _note(self, index: bytes, day: int, offset: int, length: int) -> None:
        self._where[index] = (day, offset, length)
        if len(self._where) > self._entries:
            del self._where[next(iter(self._where))]


def _index(offer: Offer) -> bytes:
    assert offer.key is not None
    return offer.key + offer.principal.encode()
