"""
The receipts that a program has not been told about yet.

Theory of operation
===================
The done log (L{connpool.transfer.stores.receiptlog}) is written before a sender gets
its receipt, so it is the outbox: this reads behind its writers, in each of its
files for itself, because the end of one may come after the next was begun.  A
position is the number of a file and an offset in it; the file C{hook} keeps one
for each, and everything before it was told.  Receipts may be told out of order,
so a file's position moves to the first one that is still open; after a restart
whatever lies behind it is told again: at least once.

A lock on C{hook} keeps two processes from telling the same twice.

If somebody takes the directory away, this goes on in the one that is in its
place then: everything in that one is news.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re

import msgspec

from connpool.errors import StartFailed, TransferError
from connpool.transfer.records import Receipt
from connpool.transfer.stores.directories import Followed
from connpool.transfer.stores.recordlines import decodeLine, linesOf
from connpool.transfer.syscalls import Syscalls

__all__ = ["ReceiptCursor"]

Position = tuple[int, int]

_NAME = re.compile(r"done-([0-9]+)\Z")
_KEPT = re.compile(rb"^([0-9]{20}) ([0-9]{20})\n", re.MULTILINE)
_CHUNK_BYTES = 1 << 20


class ReceiptCursor:
    """
    The position of one program in the receipt log.

    @param directory: that of the done log; closed with this.
    @raise StartFailed: another process tells already; one line.
    """

    def __init__(self, syscalls: Syscalls, directory: Followed) -> None:
        self._sys = syscalls
        self._directory = directory
        self._moved = False
        try:
            self._fd = self._locked()
        except OSError as error:
            directory.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise StartFailed(
                "another receiver of this directory has --on-received; give it to one of them"
            ) from None
        kept = syscalls.pread(self._fd, syscalls.fstat(self._fd).st_size, 0)
        #: number of a file to the offset at which reading goes on
        self._at = {int(number): int(offset) for number, offset in _KEPT.findall(kept)}
        if not kept:  # a new one: what is there already is no news
            self._at = {number: self._size(number) for number in self._numbers()}
        #: of one file, in its order
        self._ready: list[tuple[Position, Receipt]] = []
        #: taken and not told
        self._open: set[Position] = set()
        self._length = len(kept) or 1
        self._keep()
        # an empty one would be a new one after a power cut
        syscalls.fsync(self._fd)
        syscalls.fsync(directory.fd)

    def take(self) -> tuple[Position, Receipt] | None:
        """
        Take the next receipt.

        @return: the next receipt, and what to give to L{told}; L{None} if
            there is none now.
        """
        if not self._ready:
            # in the moment after it was taken away; the next time finds the new one
            with contextlib.suppress(FileNotFoundError):
                self._follow()
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
        self._directory.close()

    def _locked(self) -> int:
        """
        Open the file of positions and lock it, or raise L{BlockingIOError}.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = self._sys.open("hook", flags, 0o600, dir_fd=self._directory.fd)
        try:
            self._sys.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self._sys.close(fd)
            raise
        return fd

    def _follow(self) -> None:
        try:
            self._moved |= self._directory.changed()
        except TransferError as error:
            raise OSError(errno.ENOTDIR, str(error)) from None
        if not self._moved and self._sys.fstat(self._fd).st_nlink:
            return
        fd = self._locked()
        self._sys.close(self._fd)
        self._fd = fd
        if self._moved:
            self._at = {}
            self._open = set()
        self._moved = False
        self._keep()

    def _keep(self) -> None:
        first = dict(self._at)
        for number, offset in [*self._open, *(position for position, _ in self._ready[:1])]:
            first[number] = min(offset, first.get(number, offset))
        table = b"".join(b"%020d %020d\n" % position for position in sorted(first.items()))
        # one call: whole or not at all
        self._length = max(self._length, len(table))
        self._sys.writeAll(self._fd, table.ljust(self._length, b"\n"), 0)

    def _numbers(self) -> list[int]:
        names = map(_NAME.match, self._sys.listdir(self._directory.fd))
        return sorted(int(found[1]) for found in names if found)

    def _size(self, number: int) -> int:
        status = self._sys.statIfThere(f"done-{number}", self._directory.fd)
        return 0 if status is None else status.st_size  # its week is over

    def _read(self) -> None:
        """
        Read on in the first file that has more.
        """
        numbers = self._numbers()
        self._at = {number: self._at.get(number, 0) for number in numbers}
        for number in numbers:
            size = self._size(number)
            if size < self._at[number]:
                self._at[number] = 0  # the power took more of it than of what was told
            if size > self._at[number]:
                self._readFile(number, self._at[number])
            if self._ready:
                return

    def _readFile(self, number: int, offset: int) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = self._sys.open(f"done-{number}", flags, dir_fd=self._directory.fd)
        except FileNotFoundError:
            return
        try:
            while not self._ready and (data := self._sys.pread(fd, _CHUNK_BYTES, offset)):
                end = data.rfind(b"\n") + 1
                if not end:
                    if len(data) < _CHUNK_BYTES:
                        return  # being written
                    end = len(data)  # no line of ours is that long
                for start, line in linesOf(data[:end]):
                    receipt = _receiptOf(line)
                    if receipt is not None:
                        self._ready.append(((number, offset + start), receipt))
                offset += end
                self._at[number] = offset
        finally:
            self._sys.close(fd)


def _receiptOf(line: bytes) -> Receipt | None:
    record = decodeLine(line)
    try:
        return msgspec.convert(record["receipt"], Receipt)
    except (msgspec.ValidationError, TypeError, KeyError):
        return None
