"""
Files that a sender has, compared with those that it stored here.

Theory of operation
===================
Nobody is told of a file that is not his.  A file is that of a principal if the latest receipt
for its name is one of this principal, and nothing has changed it since: neither the name nor the
inode (a change of either sets its C{ctime}).  So a file that somebody else put there, by
whatever way, is never looked into, and one that its owner's consumer rewrote is sent again.

Receipts are found by name through offsets of their own (L{ReceiptOffsets}), 8 bytes each, which
are made when a sender asks for the first time, by reading the files of receipts once; later,
what was appended since is read.  Everything here runs in threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from threading import Lock

import attrs
import msgspec

from connpool.errors import TransferError
from connpool.transfer.digests import blockCount, chooseBlockSize, digestNamed, rootOf
from connpool.transfer.records import DIFFERS, SAME, UNTOLD, AskedFile, Receipt
from connpool.transfer.stores.directories import Directories, Followed
from connpool.transfer.stores.ranges import blockRange
from connpool.transfer.stores.receiptlog import KEPT_FILES, ReceiptOffsets
from connpool.transfer.stores.recordlines import decodeLine, linesOf
from connpool.transfer.stores.rehash import digestsOf
from connpool.transfer.syscalls import READ, Syscalls, isFile

__all__ = ["Comparison", "sameTime"]

_CHUNK_BYTES = 1 << 20
#: Bytes of a receipt, most often and at most.
_USUAL_BYTES, _LINE_BYTES = 1 << 10, 1 << 16
#: Seconds after its receipt in which a file may still change by our own hand: its private name
#: is removed.
OWN_SECONDS = 60.0
#: Nanoseconds between two times that these file systems can tell apart.
_GRANULARITY = {
    **dict.fromkeys(("vfat", "msdos", "umsdos"), 2 * 10**9),
    **dict.fromkeys(("ext2", "ext3", "hfs", "hfsplus", "minix", "reiserfs"), 10**9),
    "exfat": 10**7,
    **dict.fromkeys(("ntfs", "ntfs3", "fuseblk", "cifs", "smb3"), 100),
}


def sameTime(asked: int, there: int, filesystem: str) -> bool:
    """
    Tell whether a file has the time that was asked for, as far as its file system keeps it.

    @param asked: nanoseconds since the epoch.
    @param there: what the file has.
    """
    step = _GRANULARITY.get(filesystem, 1)
    return asked == there or (there % step == 0 and abs(asked - there) < step)


class _Named(msgspec.Struct):
    name: str


class _Said(msgspec.Struct):
    receipt: _Named


class _Finished(msgspec.Struct):
    receipt: Receipt


@attrs.define(eq=False)
class _Receipts:
    """
    One file of receipts.
    """

    fd: int
    offsets: ReceiptOffsets = attrs.Factory(ReceiptOffsets)


class Comparison:
    """
    The comparisons of one store.

    @param directories: the published directories.
    @param follow: holds the directory of the receipts.
    @param goesOn: asked before each file, and each block that is read.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        directories: Directories,
        follow: Callable[[], Followed],
        goesOn: Callable[[], bool],
    ) -> None:
        self._sys = syscalls
        self._directories = directories
        self._follow = follow
        self._goesOn = goesOn
        self._directory: Followed | None = None
        self._files: dict[str, _Receipts] = {}
        self._lock = Lock()

    @property
    def takenBytes(self) -> int:
        """
        The memory that finding receipts by name takes, about.
        """
        return sum(file.offsets.takenBytes for file in tuple(self._files.values()))

    def compare(self, principal: str, files: Sequence[AskedFile], digest: str) -> bytes:
        """
        As L{connpool.interfaces.IUpdateStore.compare}.
        """
        with self._lock:
            self._refresh()
            receipts = [None if f.name is None else self._latest(f.name.path) for f in files]
        answers = bytearray([UNTOLD]) * len(files)
        for number, (file, receipt) in enumerate(zip(files, receipts, strict=True)):
            if receipt is not None and receipt.principal == principal and self._goesOn():
                answers[number] = self._answer(file, receipt, digest)
        return bytes(answers)

    def close(self) -> None:
        """
        Let go of every descriptor.
        """
        for file in self._files.values():
            self._sys.close(file.fd)
        self._files = {}
        if self._directory is not None:
            self._directory.close()

    # -- files

    def _answer(self, file: AskedFile, receipt: Receipt, digest: str) -> int:
        assert file.name is not None
        components = file.name.components
        try:
            directory = self._directories.acquire(components[:-1], create=False)
        except FileNotFoundError:
            return DIFFERS
        except (OSError, TransferError):
            return UNTOLD
        try:
            fd = self._sys.openIfThere(components[-1], READ, directory.fd) if file.root else None
            try:
                status = (
                    self._sys.statIfThere(components[-1], directory.fd)
                    if fd is None
                    else self._sys.fstat(fd)
                )
                if status is None:
                    return DIFFERS
                if not isFile(status) or status.st_ctime > receipt.finished + OWN_SECONDS:
                    return UNTOLD
                if status.st_size != file.size:
                    return DIFFERS
                if fd is not None:
                    return SAME if self._root(fd, file.size, digest) == file.root else DIFFERS
                asked, there = file.modified, status.st_mtime_ns
                same = asked is not None and sameTime(asked, there, directory.filesystem)
                return SAME if same else DIFFERS
            finally:
                if fd is not None:
                    self._sys.close(fd)
        except OSError:
            return UNTOLD
        finally:
            self._directories.release(directory)

    def _root(self, fd: int, size: int, algorithm: str) -> bytes | None:
        """
        Read a file.

        @return: its root; L{None} if it cannot be read to its end.
        """
        step = chooseBlockSize(size)
        count = blockCount(size, step)
        spans = [blockRange(block, step, size) for block in range(count)]
        whole = [each for each in digestsOf(self._sys, fd, algorithm, spans, self._goesOn) if each]
        return rootOf(digestNamed(algorithm), size, step, whole) if len(whole) == count else None

    # -- receipts

    def _latest(self, path: str) -> Receipt | None:
        """
        Return the last receipt for a name, whosever it is.
        """
        identity = _identity(path)
        for file in reversed(self._files.values()):
            for offset in sorted(file.offsets.of(identity), reverse=True):
                line = self._line(file.fd, offset)
                found = decodeLine(line, _Finished)
                if found is not None and found.receipt.name == path:
                    receipt: Receipt = found.receipt
                    return receipt
        return None

    def _line(self, fd: int, offset: int) -> bytes:
        for most in (_USUAL_BYTES, _LINE_BYTES):
            line, ended, _ = self._sys.pread(fd, most, offset).partition(b"\n")
            if ended:
                break
        return line

    def _refresh(self) -> None:
        """
        Read the receipts that came since the last time.
        """
        if self._directory is None:
            self._directory = self._follow()
        if self._directory.changed():
            self._forget(list(self._files))
        directory = self._directory.fd
        listed = {name for name in self._sys.listdir(directory) if name.startswith("done-")}
        there = sorted(listed, key=lambda name: (len(name), name))[-KEPT_FILES:]
        self._forget([name for name in self._files if name not in there])
        for name in there:
            if name not in self._files:
                fd = self._sys.openIfThere(name, READ, directory)
                if fd is not None:
                    self._files[name] = _Receipts(fd)
        for file in self._files.values():
            self._read(file)

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._sys.close(self._files.pop(name).fd)

    def _read(self, file: _Receipts) -> None:
        offsets, size = file.offsets, self._sys.fstat(file.fd).st_size
        while offsets.known < size:
            data = self._sys.pread(file.fd, min(size - offsets.known, _CHUNK_BYTES), offsets.known)
            end = data.rfind(b"\n") + 1
            if not end:
                return  # somebody is writing it
            for offset, line in linesOf(data[:end]):
                said = decodeLine(line, _Said)
                if said is not None:
                    offsets.note(_identity(said.receipt.name), offsets.known + offset)
            offsets.known += end
            if offsets.many:
                offsets.sort()


def _identity(path: str) -> bytes:
    return blake2b(os.fsencode(path), digest_size=16).digest()
