"""
The remains of earlier processes.

Theory of operation
===================
A process that died after publishing left its private name, or its journal, as
the evidence; the steps that were missing are taken when the sender comes back
or when somebody looks.  What nobody comes back for is removed when it has been
too old on the wall clock and the same, at every look, for an hour of this
process's own time: clocks jump.  Half a file that cannot be resumed is evidence of
nothing and may be large, so it goes after that hour, however young it is.

Only what can be locked is touched, and what one thing does to us keeps nobody
from looking at the next.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable
from typing import Any

from connpool.errors import Busy, TransferError
from connpool.transfer.names import RelativeName
from connpool.transfer.records import Receipt
from connpool.transfer.stores.commit import Commit
from connpool.transfer.stores.directories import Directories
from connpool.transfer.stores.partialdir import Entry, PartialDirectory, Slot
from connpool.transfer.stores.publish import TEMPORARY, Publisher, Source, isNote
from connpool.transfer.stores.receiptlog import ReceiptLog
from connpool.transfer.syscalls import EXISTING, Syscalls, isFile

__all__ = ["Recovery"]

#: Seconds for which something must have been seen too old.
OVERDUE_SECONDS = 3600.0
#: Seconds that evidence is kept among the private files that cannot be resumed.
TEMPORARY_SECONDS = 86400.0


class Recovery:
    """
    The steps that are missing of what earlier processes left.

    @param private: the private directories.
    @param ttl: seconds that a suspended partial is kept.
    @param now: wall-clock seconds.
    @param status: of what is published under a name.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        partials: PartialDirectory,
        commit: Commit,
        publisher: Publisher,
        receiptLog: ReceiptLog,
        private: Directories,
        ttl: float,
        now: Callable[[], float],
        status: Callable[[RelativeName], os.stat_result | None],
    ) -> None:
        self._sys = syscalls
        self._partials = partials
        self._commit = commit
        self._publisher = publisher
        self._receiptLog = receiptLog
        self._private = private
        self._ttl = ttl
        self._now = now
        self._status = status
        #: what was too old at the last look, to how it was and since when
        self._overdue: dict[Any, tuple[Any, float]] = {}

    def look(self, uptime: float) -> list[OSError | TransferError]:
        """
        Finish or remove what is there; blocks on the disk.

        @param uptime: monotonic seconds.
        @return: what could not be done.
        """
        before, self._overdue = self._overdue, {}
        now = self._now()
        failures: list[OSError | TransferError] = []

        def isOver(key: Any, how: Any, age: float, most: float) -> bool:
            if age <= most:
                return False
            was, since = before.get(key, (how, uptime))
            self._overdue[key] = how, since if was == how else uptime
            return uptime - self._overdue[key][1] >= OVERDUE_SECONDS

        def attempt(function: Callable[..., None], *arguments: Any) -> None:
            try:
                function(*arguments)
            except (OSError, TransferError) as e:
                failures.append(e)

        def lookAtPartials() -> None:
            for entry in self._partials.everything():
                over = isOver(entry.names, entry.changed, now - entry.changed, self._ttl)
                if entry.free and (over or not _ordinary(entry)):
                    attempt(self._lookAt, entry, over)

        def lookAtTemporary() -> None:
            names, directory = self._private.enter(TEMPORARY, lambda d: self._sys.listdir(d.fd))
            try:
                for name in names:
                    status = self._sys.statIfThere(name, directory.fd)
                    if status is None:
                        continue
                    how = status.st_ino, status.st_ctime_ns
                    # two links: it has its name, and a repetition finds that by this file
                    plain = status.st_nlink == 1 and not isNote(name)
                    most = -math.inf if plain else TEMPORARY_SECONDS
                    if isOver(name, how, now - status.st_ctime, most):
                        attempt(self._removeTemporary, name, status, directory.fd)
            finally:
                self._private.release(directory)

        attempt(lookAtPartials)
        attempt(lookAtTemporary)
        attempt(self._receiptLog.expire)
        return failures

    def wasPublished(self, slot: Slot) -> bool:
        """
        Tell whether a process that died had given this partial, whose journal was
        read, its name: then it has a second link, or C{rename} took the bytes
        away and the name leads to them.
        """
        status, offer, committing = slot.status, slot.journal.offer, slot.journal.committing
        if committing is None or offer is None:
            return False
        if status.st_nlink > 1:
            # one that was restored from a backup, links and all, has another number
            return committing.inode == status.st_ino or committing.size == status.st_size
        public = self._status(offer.name)
        # numbers of devices may change when a machine starts
        where = status.st_dev, committing.inode
        return public is not None and (public.st_dev, public.st_ino) == where

    def finish(self, slot: Slot) -> Receipt:
        """
        Take the steps that a process that died had left, after publishing, and
        remove the evidence; if they fail it stays, and locked.
        """
        offer, committing = slot.journal.offer, slot.journal.committing
        assert offer is not None
        assert committing is not None
        receipt = self._commit.finished(offer, committing.size, committing.root)
        if receipt is None and slot.status.st_nlink > 1:
            source = Source(slot.fd, slot.directory.fd, slot.name, committing.size, linked=True)
            receipt = self._commit.one(offer, source, committing.root)
        elif receipt is None:
            receipt = self._commit.wasRenamed(offer, committing.size, committing.root)
        self._partials.remove(slot)
        return receipt

    def _lookAt(self, entry: Entry, over: bool) -> None:
        try:
            slot = self._partials.find(entry.names)
        except Busy:
            return
        if slot is None:
            return
        try:
            self._partials.read(slot)
            if self.wasPublished(slot):
                self.finish(slot)
            elif over and (slot.changed == entry.changed or not slot.said):
                self._partials.remove(slot)  # and nobody had it since we looked
        finally:
            if not slot.closed:
                self._partials.letGo(slot)

    def _removeTemporary(self, name: str, status: os.stat_result, directory: int) -> None:
        fd = self._sys.openIfThere(name, EXISTING, directory) if isFile(status) else None
        try:
            if fd is not None:
                self._sys.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._publisher.remove(name, directory)
        except BlockingIOError:
            pass  # in use
        finally:
            if fd is not None:
                self._sys.close(fd)


def _ordinary(entry: Entry) -> bool:
    """
    Tell whether its status says that nobody began to publish it.
    """
    status = entry.status
    return status is not None and status.st_nlink == 1 and status.st_size > 0
