"""
The writer of the journal of a partial.

Theory of operation
===================
The offer is described before anything else is said, with the first record that
has to be written, and a journal that nobody could read is begun anew by it.
C{committing} counts only as the last record, so the description follows it when
publishing came to nothing, and nothing does when the file has its name.
"""

from __future__ import annotations

import contextlib

from connpool.transfer.records import Offer
from connpool.transfer.stores.directories import Tree
from connpool.transfer.stores.journal import Committing, committingRecord, header
from connpool.transfer.stores.partialdir import Shelf, Slot
from connpool.transfer.syscalls import Syscalls

__all__ = ["Notes"]


class Notes:
    """
    The writer of one journal.

    @param tree: of the store's private directories.
    @ivar committing: whether the last record says that publishing began.
    """

    def __init__(
        self, syscalls: Syscalls, tree: Tree, shelf: Shelf, slot: Slot, offer: Offer
    ) -> None:
        self._sys = syscalls
        self._tree = tree
        self._shelf = shelf
        self._slot = slot
        self._header = header(offer)
        #: what is still to be said of the offer
        self._description = b"" if slot.journal.describes(offer) else self._header
        self.committing = False

    def passOn(self, offer: Offer) -> Notes:
        """
        @return: the writer that goes on for C{offer}.
        """
        newer = Notes(self._sys, self._tree, self._shelf, self._slot, offer)
        same = newer._header == self._header
        newer._description = self._description if same else newer._header
        newer.committing = self.committing
        return newer

    def describe(self) -> None:
        """
        Let operators see whose it is.
        """
        if self._description:
            with contextlib.suppress(OSError):  # it goes with the first checkpoint
                self.write(b"", 0)

    def write(self, record: bytes, level: int, *, committing: bool = False) -> None:
        """
        @param level: at 1 and 2 it is on disk when this returns, at 2 the
            names of the partial are, too.
        @param committing: whether it says so.
        """
        slot = self._slot
        assert slot.journalFd is not None
        if slot.journal.offer is None and slot.said:
            self._shelf.beginAnew(slot)
        self._shelf.append(slot, self._description + record)
        self._description = b""
        self.committing = committing
        if level:
            self._sys.fdatasync(slot.journalFd)
        if level == 2 and not slot.linked:
            self._tree.sync(slot.directory)
            slot.linked = True

    def begin(self, committing: Committing, level: int) -> None:
        """
        Publishing begins.
        """
        self.write(committingRecord(committing), level, committing=True)

    def revoke(self, level: int) -> None:
        """
        Publishing came to nothing.
        """
        if self.committing:
            self._description = self._header
            with contextlib.suppress(OSError):  # it goes with the next record
                self.write(b"", level)
