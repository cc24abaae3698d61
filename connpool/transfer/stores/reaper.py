"""
What earlier processes left behind.

Theory of operation
===================
A process that died after publishing left its private name, or its journal, as
the evidence; the steps that were missing are taken when the sender comes back
or when somebody looks.  A partial that nobody resumes is removed when it has
been too old on the wall clock, at every look, for an hour of this process's own
time: clocks jump.
"""

from __future__ import annotations

from collections.abc import Callable

from connpool.errors import TransferError
from connpool.transfer.names import RelativeName
from connpool.transfer.records import FileStat, Receipt
from connpool.transfer.stores.finish import Finisher
from connpool.transfer.stores.publish import Source
from connpool.transfer.stores.shelf import Shelf, Slot
from connpool.transfer.stores.syscalls import Syscalls

__all__ = ["Reaper"]

#: Seconds that a partial must have been seen too old.
SURE = 3600.0
#: Seconds that private files which cannot be resumed are kept.
TEMPORARY = 86400.0


class Reaper:
    """
    @param temporary: descriptor of the directory of private files.
    @param ttl: seconds that a suspended partial is kept.
    @param now: wall-clock seconds.
    @param stat: what is published under a name.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        shelf: Shelf,
        finisher: Finisher,
        temporary: int,
        ttl: float,
        now: Callable[[], float],
        stat: Callable[[RelativeName], FileStat | None],
    ) -> None:
        self._sys = syscalls
        self._shelf = shelf
        self._finisher = finisher
        self._temporary = temporary
        self._ttl = ttl
        self._now = now
        self._stat = stat
        #: partials seen too old, to when
        self._overdue: dict[tuple[str, str], float] = {}

    def look(self, uptime: float) -> None:
        """
        Finish or remove what is there; blocks on the disk.

        @param uptime: monotonic seconds.
        """
        now = self._now()
        overdue: dict[tuple[str, str], float] = {}
        for identity, status, free in self._shelf.everything():
            if not free:
                continue
            if now - status.st_mtime > self._ttl:
                since = self._overdue.get(identity, uptime)
                overdue[identity] = since
                if uptime - since < SURE:
                    continue
            elif status.st_nlink == 1 and status.st_size:
                continue
            self._lookAt(identity, expired=identity in overdue)
        self._overdue = overdue
        for name in self._sys.listdir(self._temporary):
            try:
                status = self._sys.stat(name, dir_fd=self._temporary, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if now - status.st_ctime > TEMPORARY and uptime >= SURE:
                self._finisher.remove(name)
        self._finisher.expire()

    def wasPublished(self, slot: Slot) -> bool:
        """
        Whether a process that died had given this partial its name: then it
        has a second link, or C{rename} took the bytes away (and opening made
        an empty file) and the name leads to as many.
        """
        journal = slot.journal
        if journal.committing is None or journal.offer is None:
            return False
        if slot.status.st_nlink > 1:
            return True
        if slot.status.st_size or not journal.committing.size:
            return False
        published = self._stat(journal.offer.name)
        return published is not None and published.size == journal.committing.size

    def finish(self, slot: Slot) -> Receipt:
        """
        Take the steps that a process that died had left, after publishing.
        """
        offer, committing = slot.journal.offer, slot.journal.committing
        assert offer is not None
        assert committing is not None
        try:
            receipt = self._finisher.finished(offer)
            if receipt is None and slot.status.st_nlink > 1:
                source = Source(slot.fd, slot.directory.fd, slot.name, committing.size)
                receipt = self._finisher.one(offer, source, committing.root)
            elif receipt is None:
                receipt = self._finisher.wasRenamed(offer, committing.size, committing.root)
        finally:
            self._shelf.remove(slot)
        return receipt

    def _lookAt(self, identity: tuple[str, str], *, expired: bool) -> None:
        try:
            slot = self._shelf.find(identity)
        except TransferError:
            return
        if slot is None:
            return
        if self.wasPublished(slot):
            self.finish(slot)
        elif expired:
            self._shelf.remove(slot)
        else:
            self._shelf.letGo(slot)
