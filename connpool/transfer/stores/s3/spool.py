"""
The disk on which parts wait until the engine has them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile

from twisted.internet.defer import Deferred

from connpool.errors import NoSpace, StartFailed
from connpool.transfer.stores.s3.calls import Body, Piece, crcOf, pieces
from connpool.transfer.syscalls import asTransferError

__all__ = ["Spool", "SpoolFile", "hashed"]

#: The most that is taken without being asked to.
MOST_BYTES = 4 << 30


class Spool:
    """
    The room of one process, which its uploads share.

    @param directory: the files are made in it, without a name; L{None} for the system's.
    @param size: bytes of all files together; L{None} for 4 GiB or half of what is free, the
        smaller.
    @raise StartFailed: C{directory} cannot be used.
    @ivar usedBytes: that are given away.
    """

    def __init__(self, directory: str | None = None, size: int | None = None) -> None:
        self._directory = directory or tempfile.gettempdir()
        try:
            free = shutil.disk_usage(self._directory).free
            os.close(self._open())
        except OSError as error:
            why = f"spool directory {self._directory}: {error.strerror}; choose one with spool="
            raise StartFailed(why) from None
        self.size = min(MOST_BYTES, free // 2) if size is None else size
        self.usedBytes = 0
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def _open(self) -> int:
        with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
            return os.dup(file.fileno())

    async def take(self, size: int) -> None:
        """
        Wait for room, in turn.

        @raise NoSpace: there is never so much.
        """
        if size > self.size:
            raise NoSpace(
                f"the receiver's spool has {self.size} bytes, and a file of this size needs {size};"
                " see spool-size="
            )
        if self.tryTake(size):
            return
        waiting: Deferred[None] = Deferred(self._left)
        self._waiting.append((size, waiting))
        await waiting

    def tryTake(self, size: int) -> bool:
        """
        Take more, if there is room and nobody waits for it.
        """
        if self._waiting or self.usedBytes + size > self.size:
            return False
        self.usedBytes += size
        return True

    def give(self, size: int) -> None:
        self.usedBytes -= size
        while self._waiting and self.usedBytes + self._waiting[0][0] <= self.size:
            more, waiting = self._waiting.pop(0)
            self.usedBytes += more
            waiting.callback(None)

    def _left(self, d: Deferred[None]) -> None:
        self._waiting = [each for each in self._waiting if each[1] is not d]

    def file(self, slotBytes: int) -> SpoolFile:
        """
        Make a file without a name.

        @raise NoSpace, StoreError: it cannot be made.
        """
        try:
            return SpoolFile(self._open(), slotBytes)
        except OSError as error:
            raise asTransferError(error, "making a file in the spool") from None


class SpoolFile:
    """
    The slots of one upload.

    @ivar fd: its descriptor.
    """

    def __init__(self, fd: int, slotBytes: int) -> None:
        self.fd = fd
        self._bytes = slotBytes
        self._free: list[int] = []
        self._slots = 0

    def take(self) -> int:
        if not self._free:
            self._slots += 1
            return self._slots - 1
        return self._free.pop()

    def give(self, slot: int) -> None:
        self._free.append(slot)

    def at(self, slot: int) -> int:
        return slot * self._bytes

    def write(self, slot: int, within: int, data: bytes | bytearray | memoryview) -> None:
        """
        @raise NoSpace, StoreError: the bytes cannot be written.
        """
        view, at = memoryview(data), self.at(slot) + within
        try:
            while view:
                written = os.pwrite(self.fd, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            raise asTransferError(error, "writing to the spool") from None

    def read(self, slot: int, start: int, end: int) -> bytes:
        return os.pread(self.fd, end - start, self.at(slot) + start)

    def crc(self, slot: int, length: int) -> int:
        """
        Compute the CRC-32 of the first bytes of a slot; for a thread.
        """
        return crcOf(Piece(self.fd, self.at(slot), length))

    @property
    def isOpen(self) -> bool:
        return self.fd >= 0

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def hashed(body: Body) -> str:
    """
    Return a text that is the same for the same bytes.
    """
    hasher = hashlib.sha256()
    for data in pieces(body):
        hasher.update(data)
    return f"bytes:{hasher.hexdigest()}"
