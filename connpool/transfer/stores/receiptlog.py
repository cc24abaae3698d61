"""
The receipts of published files, so that nothing is published twice.

Theory of operation
===================
A sender that did not see its receipt sends the file again with the same key
and gets the same receipt.  Receipts are appended to the last of a row of
numbered files by every process that uses the store, and read by all of them: a
lookup first takes in what others appended since.  A file that has C{FILE_BYTES} bytes
is followed by the next one, so nothing is ever written before what was there
already, whatever a clock says.  A file that was last written to more than a
week ago is removed whole; the last one never, since somebody may be about to
write to it.

Memory holds where each receipt lies (L{ReceiptOffsets}).  Most of that is kept on disk
too, in C{index-N}, so that a start has little to read.
It is a hint: never synced, and who finds none reads the file.

The lock is held for moments, since the reactor's thread takes it; the disk is
waited for without it.  Who needs a receipt on disk syncs after it was appended,
unless a sync that began later has ended already.  A sync that failed is not
tried again (the kernel may have dropped the pages): the file gets no more
receipts, and those in it that were not known to be on disk are not found where
that is asked for.

If somebody takes the directory away, its receipts are lost and a new row begins
in the directory that is in its place then.
"""

from __future__ import annotations

import errno
import os
import re
import time
from array import array
from binascii import hexlify
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from threading import Lock
from time import monotonic
from zlib import crc32

import attrs
import msgspec

from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.directories import Directory, Followed
from connpool.transfer.stores.recordlines import decodeLine, linesOf
from connpool.transfer.syscalls import READ, Syscalls

__all__ = [
    "FILE_BYTES",
    "KEPT_FILES",
    "KEPT_SECONDS",
    "OVERDUE_SECONDS",
    "ReceiptLog",
    "receiptId",
]

#: Seconds that a receipt is kept at least.
KEPT_SECONDS = 7 * 86400.0
#: Seconds that a file must have been seen too old: clocks jump.
OVERDUE_SECONDS = 3600.0
#: Bytes of a file that is followed by the next.
FILE_BYTES = 64 << 20
#: Files whose receipts are remembered: about two million.
KEPT_FILES = 16
#: Receipts that are worth an index when the log is closed.
INDEXED_RECEIPTS = 1 << 12
#: ReceiptOffsets that are worth sorting in.
RECENT_OFFSETS = 1 << 15
#: Bytes of memory that one takes which has not been sorted in.
RECENT_BYTES = 200
#: Seconds for which nothing is taken to have come from other processes.
LOOK_SECONDS = 0.02
#: Bytes that are read at once, and bytes that a receipt has at most.
_CHUNK_BYTES, _LINE_BYTES = 1 << 20, 1 << 16

_IDENTITY_MASK, _OFFSET_MASK = 0xFFFFFFFF << 32, 0xFFFFFFFF

_NAME = re.compile(r"done-([0-9]+)\Z")
_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_encode = msgspec.json.Encoder().encode
_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


@lru_cache(maxsize=4096)  # a small file needs it at its beginning and at its end
def receiptId(key: bytes, principal: str) -> bytes:
    """
    Return 16 bytes for an offer's key and its principal.
    """
    return blake2b(key + principal.encode(), digest_size=16).digest()


class _Finished(msgspec.Struct):
    key: str
    receipt: Receipt


class _Owner(msgspec.Struct):
    principal: str


class _Whose(msgspec.Struct):
    key: str
    receipt: _Owner


class ReceiptOffsets:
    """
    The offsets of the receipts in one file.

    A place is 64 bits: 32 that say whose it may be, and the offset in the file.
    Those that came of late are in a dictionary, the others in a sorted array, 8
    bytes each, which can be kept in a file and read back as it is.  Two keys may
    have the same 32 bits, so a place is a hint: what lies there decides.

    @ivar known: bytes of the file whose receipts were noted.
    """

    __slots__ = ("_recent", "_sorted", "known")

    def __init__(self) -> None:
        self.known = 0
        self._sorted = array("Q")
        self._recent: dict[bytes, int] = {}

    @property
    def many(self) -> bool:
        """
        Tell whether it is time for L{sort}: for a file that grows, all of them
        together take time in proportion to it.
        """
        return len(self._recent) >= max(RECENT_OFFSETS, len(self._sorted) >> 2)

    @property
    def recent(self) -> int:
        """
        The number of those that have not been sorted in.
        """
        return len(self._recent)

    @property
    def takenBytes(self) -> int:
        """
        The memory that they take, about.
        """
        return len(self._sorted) * self._sorted.itemsize + len(self._recent) * RECENT_BYTES

    def note(self, identity: bytes, offset: int) -> None:
        """
        Note an offset; C{identity} is at least 4 bytes that look random.
        """
        self._recent[identity] = offset & _OFFSET_MASK

    def among(self, identities: AbstractSet[bytes]) -> set[bytes]:
        """
        Return those for which L{of} returns something.
        """
        found = self._recent.keys() & identities
        return found | {each for each in identities if self.of(each)} if self._sorted else found

    def of(self, identity: bytes) -> Sequence[int]:
        """
        Return offsets at which its receipt may lie.
        """
        recent = self._recent.get(identity)
        found = [] if recent is None else [recent]
        if self._sorted:
            whose = _whose(identity)
            at = bisect_left(self._sorted, whose)
            while at < len(self._sorted) and self._sorted[at] & _IDENTITY_MASK == whose:
                found.append(self._sorted[at] & _OFFSET_MASK)
                at += 1
        return found

    def sort(self) -> bytes:
        """
        Sort in what came of late.

        @return: what L{restore} takes.
        """
        recent = [_whose(identity) | offset for identity, offset in self._recent.items()]
        self._sorted = array("Q", sorted([*self._sorted, *recent]))
        self._recent = {}
        data = array("Q", [self.known, *self._sorted]).tobytes()
        return array("Q", [crc32(data)]).tobytes() + data

    def restore(self, kept: bytes, size: int) -> bool:
        """
        Take in what L{sort} returned, or anything else, and tell whether it is about a
        file of C{size} bytes.
        """
        if len(kept) % 8 or len(kept) < 16:
            return False
        offsets = array("Q", kept)
        if offsets[0] != crc32(kept[8:]) or offsets[1] > size:
            return False
        self.known = offsets[1]
        self._sorted = offsets[2:]
        return True


def _whose(identity: bytes) -> int:
    """
    Return the part of a place that says whose it may be.
    """
    return int.from_bytes(identity[:4], "big") << 32


@attrs.define(eq=False)
class _File:
    """
    One file of receipts.

    @ivar directory: where it lies, held until it is closed.
    @ivar end: bytes that it has, as far as we know.
    @ivar offsets: where its receipts lie, as far as it was read.
    @ivar syncing: held by who waits for the disk.
    @ivar synced: bytes that are known to be on disk.
    @ivar named: whether its name is known to be.
    @ivar failed: it could not be synced.
    @ivar closed: whether its descriptor was let go of.
    """

    number: int
    fd: int
    directory: Directory
    end: int = 0
    offsets: ReceiptOffsets = attrs.Factory(ReceiptOffsets)
    syncing: Lock = attrs.Factory(Lock)
    synced: int = 0
    named: bool = False
    failed: bool = False
    closed: bool = False


class ReceiptLog:
    """
    For any thread.

    @param directory: where the files lie.
    @param now: wall-clock seconds.
    @param seconds: monotonic seconds.
    @param size: bytes of a file that is followed by the next.
    @param files: how many files are remembered.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        directory: Followed,
        now: Callable[[], float],
        seconds: Callable[[], float] = time.monotonic,
        size: int = FILE_BYTES,
        files: int = KEPT_FILES,
    ) -> None:
        self._sys = syscalls
        self._directory = directory
        self._now = now
        self._seconds = seconds
        self._size = size
        self._most = files
        self._lock = Lock()
        self._looked = 0.0
        #: number of a file to when it was first seen too old
        self._overdue: dict[int, float] = {}
        #: the last one last
        self._files: list[_File] = []
        self._last()

    @property
    def takenBytes(self) -> int:
        """
        The memory that finding the receipts takes, about.
        """
        return sum(file.offsets.takenBytes for file in tuple(self._files))

    def append(self, finished: Sequence[tuple[Offer, Receipt]], *, sync: bool) -> None:
        """
        Note what was finished; offers without a key leave no trace.

        @param sync: whether it must be on disk when this returns.
        """
        lines = []
        for offer, receipt in finished:
            if offer.key is not None:
                body = b'{"key":"%b","receipt":%b}' % (hexlify(offer.key), _encode(receipt))
                lines.append(
                    (receiptId(offer.key, offer.principal), b"\n%08x %b\n" % (crc32(body), body))
                )
        if lines:
            with self._lock:
                file = self._last()
                self._write(file, lines)
                end = file.end
            if sync:
                self._sync(file, end)

    def mayKnow(self, offers: Iterable[Offer]) -> list[bool]:
        """
        Tell of each of some offers whether L{find} is worth a call: with one look for all.
        """
        whose = [
            b"" if offer.key is None else receiptId(offer.key, offer.principal) for offer in offers
        ]
        asked = set(whose)
        with self._lock:
            self._lookAgain()
            known = set[bytes]().union(*(file.offsets.among(asked) for file in self._files))
        return [each in known for each in whose]

    def find(
        self,
        offer: Offer,
        size: int | None,
        root: bytes | None = None,
        *,
        sync: bool = False,
        latest: bool = False,
    ) -> Receipt | None:
        """
        Find the receipt that this principal got for this key and this content.

        @param size: bytes of the content; L{None} if that is not known.
        @param root: of the content that came; L{None} if that is not known yet.
        @param sync: whether it must be on disk when this returns.
        @param latest: whether the last one for this key is wanted, for any content.
        """
        if offer.key is None:
            return None
        with self._lock:
            self._lookAgain()
            found = self._found(offer, size, root, sync, latest)
        if not found:
            return None
        file, offset, receipt = found
        if sync:
            self._sync(file, offset + 1)
        return receipt

    def _lookAgain(self) -> None:
        now = monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._last()

    def expire(self) -> None:
        """
        Remove the files that are too old.
        """
        with self._lock:
            directory = self._directory.hold()
        try:
            self._expire(directory.fd)
        except FileNotFoundError:
            pass  # the directory has vanished
        finally:
            self._directory.release(directory)

    def _expire(self, directory: int) -> None:
        now, uptime = self._now(), self._seconds()
        overdue = {}
        for number in self._numbers(directory)[:-1]:
            with suppress(FileNotFoundError):
                status = self._sys.stat(f"done-{number}", dir_fd=directory, follow_symlinks=False)
                if now - status.st_mtime > KEPT_SECONDS:
                    overdue[number] = self._overdue.get(number, uptime)
        self._overdue = overdue
        for number, since in overdue.items():
            if uptime - since >= OVERDUE_SECONDS:
                self._remove(number, directory)

    def close(self) -> None:
        """
        Let go of the descriptors.
        """
        if self._files and self._files[-1].offsets.recent >= INDEXED_RECEIPTS:
            self._sort(self._files[-1])
        self._letAllGo()

    # -- the row of files ----------------------------------------------------

    def _numbers(self, directory: int) -> list[int]:
        found = map(_NAME.match, self._sys.listdir(directory))
        return sorted(int(each[1]) for each in found if each)

    def _last(self) -> _File:
        """
        Return the file to append to, after everything that others appended was read.
        """
        try:
            return self._lastHere()
        except FileNotFoundError:
            self._directory.doubt()
            return self._lastHere()

    def _lastHere(self) -> _File:
        if self._directory.changed():
            self._letAllGo()
        if not self._files:
            for number in self._numbers(self._directory.fd)[-self._most :] or [1]:
                self._begin(number)
        for file in self._files[-2:]:  # the end of one may come after the next was begun
            self._refresh(file)
        while (file := self._files[-1]).end >= self._size or file.failed:
            numbers = self._numbers(self._directory.fd)
            later = [number for number in numbers if number > file.number]
            self._begin(min(later, default=file.number + 1))
        return file

    def _begin(self, number: int) -> None:
        fd = self._sys.open(f"done-{number}", _APPEND, 0o600, dir_fd=self._directory.fd)
        file = _File(number, fd, self._directory.hold())
        try:
            with suppress(OSError):
                self._restore(file)
            self._refresh(file)
        except BaseException:
            self._sys.close(fd)
            self._directory.release(file.directory)
            raise
        last = self._files[-1] if self._files else None
        if last is not None and last.offsets.recent and not last.failed:
            self._sort(last)
        self._files.append(file)
        if len(self._files) > self._most:
            self._letGo(self._files[0])

    def _remove(self, number: int, directory: int) -> None:
        with self._lock:
            for file in self._files:
                if file.number == number and file.directory.fd == directory:
                    self._letGo(file)
                    break
        # the index first: without one a file is read
        self._sys.remove(f"index-{number}", directory)
        self._sys.remove(f"done-{number}", directory)

    def _letAllGo(self) -> None:
        while self._files:
            self._letGo(self._files[0])

    def _letGo(self, file: _File) -> None:
        with file.syncing:
            self._files.remove(file)
            file.closed = True
            self._sys.close(file.fd)
            self._directory.release(file.directory)

    # -- bytes ---------------------------------------------------------------

    def _write(self, file: _File, lines: list[tuple[bytes, bytes]]) -> None:
        data = b"".join(line for _, line in lines) if len(lines) > 1 else lines[0][1]
        written = self._sys.write(file.fd, data)
        if written < len(data):  # a disk that is nearly full: the half line is skipped
            written = self._sys.write(file.fd, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.end = self._sys.fstat(file.fd).st_size
        offset = file.offsets.known
        if file.end - written != offset:
            self._looked = 0.0  # somebody else wrote too: read both
            return
        for identity, line in lines:
            file.offsets.note(identity, offset + 1)
            offset += len(line)
        self._known(file, offset)

    def _refresh(self, file: _File) -> None:
        status = self._sys.fstat(file.fd)
        file.end = status.st_size
        if not status.st_nlink:
            file.failed = True  # it was removed while we did nothing for a week
        while (known := file.offsets.known) < file.end:
            data = self._sys.pread(file.fd, min(file.end - known, _CHUNK_BYTES), known)
            end = data.rfind(b"\n") + 1
            if not end:
                if len(data) < _CHUNK_BYTES:
                    return  # another process is writing it
                end = len(data)  # no line of ours is that long
            for offset, line in linesOf(data[:end]):
                whose = decodeLine(line, _Whose)
                if whose is not None:
                    try:
                        key = bytes.fromhex(whose.key)
                    except ValueError:
                        continue
                    identity = receiptId.__wrapped__(key, whose.receipt.principal)
                    file.offsets.note(identity, known + offset)
            self._known(file, known + end)

    def _known(self, file: _File, known: int) -> None:
        file.offsets.known = known
        if file.offsets.many:
            self._sort(file)

    def _found(
        self, offer: Offer, size: int | None, root: bytes | None, sync: bool, latest: bool
    ) -> tuple[_File, int, Receipt] | None:
        identity = receiptId(offer.key, offer.principal)
        for file in reversed(self._files):
            for offset in file.offsets.of(identity):
                lost = sync and file.failed and offset >= file.synced
                receipt = None if lost else self._read(file, offset, offer)
                if receipt is not None and (latest or receipt.answers(size, root)):
                    return file, offset, receipt
        return None

    def _read(self, file: _File, offset: int, offer: Offer) -> Receipt | None:
        line = self._sys.pread(file.fd, _LINE_BYTES, offset).partition(b"\n")[0]
        found = decodeLine(line, _Finished)
        if found is None or offer.key is None or found.key != offer.key.hex():
            return None
        receipt: Receipt = found.receipt
        return receipt if receipt.principal == offer.principal else None

    def _sync(self, file: _File, end: int) -> None:
        with file.syncing:
            if end <= file.synced or file.closed:
                return  # or it was taken away, with what was in it
            if file.failed:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            end = file.end  # what others append from now on may come too late
            try:
                self._sys.fdatasync(file.fd)
                if not file.named:
                    self._sys.fsync(file.directory.fd)
                    file.named = True
            except OSError:
                file.failed = True
                raise
            file.synced = end

    # -- indexes -------------------------------------------------------------

    def _sort(self, file: _File) -> None:
        kept = file.offsets.sort()
        with suppress(OSError):
            fd = self._sys.open(f"index-{file.number}", _ANEW, 0o600, dir_fd=file.directory.fd)
            try:
                self._sys.writeAll(fd, kept, 0)
            finally:
                self._sys.close(fd)

    def _restore(self, file: _File) -> None:
        name = f"index-{file.number}"
        fd = self._sys.openIfThere(name, READ, file.directory.fd)
        if fd is None:
            return
        try:
            kept = self._sys.pread(fd, self._sys.fstat(fd).st_size, 0)
        finally:
            self._sys.close(fd)
        if not file.offsets.restore(kept, self._sys.fstat(file.fd).st_size):
            # the file may grow until it seems to fit
            self._sys.remove(name, file.directory.fd)
