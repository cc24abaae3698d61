"""
The syncs that the files of a batch share.

Theory of operation
===================
A sync of one file or directory waits for the disk once; so does C{syncfs}, which writes
whatever is dirty on the file system.  A batch is therefore synced by two of them: one for the
contents, before any name is given, and one for the names, however many directories they are
in.  It goes one by one, after all writing was begun (C{sync_file_range}), where few are to be
synced, where that turned out quicker since others write to the same disk (L{SyncChoice}),
where C{syncfs} fails, which does not tell whose fault it is, and on file systems where it
leaves to their server, or to a program, what C{fsync} would ask of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from time import perf_counter

from connpool.errors import SyncFailed
from connpool.transfer.stores.directories import Directory
from connpool.transfer.syscalls import CANNOT_SYNC, Syscalls

__all__ = ["BatchSync", "SyncChoice"]

#: File systems of which C{syncfs} puts all on disk that C{fsync} does.  C{fuse} and C{cifs} ask
#: nothing of the other end then.
_WHOLE = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "jfs", "nilfs2", "zfs", "overlay"}
)


class SyncChoice:
    """
    The choice between C{syncfs} and a sync of each file, for a batch.

    Keeps a running mean of seconds a file for both ways, takes the quicker
    and tries the other now and then.  C{syncfs} has no rival while it is quick.
    """

    #: Batches smaller than this are synced file by file and teach nothing.
    LEAST_FILES = 8
    #: Every so many batches the slower way is tried again.
    RETRY_BATCHES = 32
    #: Seconds a file that no disk needs less for, one by one.
    QUICK_SECONDS = 0.0001
    _WEIGHT = 0.3

    def __init__(self) -> None:
        self._mean: dict[bool, float] = {}
        self._count = 0

    def together(self, files: int) -> bool:
        """
        Tell whether C{syncfs} is the way for a batch of C{files}.
        """
        if files < self.LEAST_FILES:
            return False
        self._count += 1
        if self._mean.get(True, 0.0) < self.QUICK_SECONDS:
            return True
        if False not in self._mean:
            return False
        retry = self._count % self.RETRY_BATCHES == 0
        return self.quicker(files) != retry

    def quicker(self, files: int) -> bool:
        """
        Tell whether C{syncfs} is known for the quicker way for C{files}, or nothing is known.
        """
        alone = self._mean.get(False, float("inf"))
        return files >= self.LEAST_FILES and self._mean.get(True, 0.0) < alone

    def took(self, together: bool, files: int, seconds: float) -> None:
        """
        A batch was synced.
        """
        if files >= self.LEAST_FILES:
            each = seconds / files
            mean = self._mean.get(together, each)
            self._mean[together] = mean + self._WEIGHT * (each - mean)


class BatchSync:
    """
    The syncs of batches.
    """

    def __init__(self, syscalls: Syscalls) -> None:
        self._sys = syscalls
        self._choice = SyncChoice()

    def contents(
        self, fds: Sequence[int], filesystem: str | None = None
    ) -> list[SyncFailed | None]:
        """
        Sync files by the descriptors that wrote them.

        @param filesystem: the type of the one that all lie on, if it is one.
        @return: for each, what went wrong.
        """
        together = filesystem in _WHOLE and self._choice.together(len(fds))
        began = perf_counter()
        together = together and self._all(fds[0])
        failures: list[SyncFailed | None] = [None] * len(fds)
        if not together:
            if len(fds) > 1:
                for fd in fds:  # the disk writes all of them while the first is waited for
                    with suppress(OSError):
                        self._sys.startWriting(fd)
            failures = [self._content(fd) for fd in fds]
        self._choice.took(together, len(fds), perf_counter() - began)
        return failures

    def names(self, wanted: Iterable[Directory]) -> dict[Directory, int | OSError]:
        """
        Make the names in some directories durable, and their own way from the root.

        @return: for each the index in C{DURABILITIES} that is reached, or what went wrong: some
            file systems cannot sync a directory.
        """
        ways = {directory: directory.way() for directory in wanted}
        passed = dict.fromkeys(each for way in ways.values() for each in way)
        failures: dict[Directory, OSError | None] = {}
        for device in {each.inode[0] for each in passed}:
            here = [each for each in passed if each.inode[0] == device]
            whole = here[0].filesystem in _WHOLE and self._choice.quicker(len(here))
            if whole and self._all(here[0].fd):
                failures.update(dict.fromkeys(here))
            else:
                failures.update({each: self._name(each) for each in here})
        levels: dict[Directory, int | OSError] = {}
        for directory, way in ways.items():
            wrong = [why for each in way if (why := failures[each]) is not None]
            worse = [why for why in wrong if why.errno not in CANNOT_SYNC]
            levels[directory] = worse[0] if worse else 1 if wrong else 2
            for each in () if wrong else way:
                each.named = True
        return levels

    def _all(self, fd: int) -> bool:
        """
        Sync all that is on the file system, and tell whether that was possible.
        """
        try:
            self._sys.syncfs(fd)
        except OSError:
            return False  # find out whose fault it is, or do without
        return True

    def _content(self, fd: int) -> SyncFailed | None:
        try:
            self._sys.fsync(fd)
        except OSError as error:
            return SyncFailed(
                f"the receiver's disk did not take the data ({os.strerror(error.errno or 0)});"
                " the file is not trusted, send it again"
            )
        return None

    def _name(self, directory: Directory) -> OSError | None:
        try:
            self._sys.fsync(directory.fd)
        except OSError as error:
            return error
        return None
