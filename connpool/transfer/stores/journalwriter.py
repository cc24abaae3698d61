"""
The writer of the journal of one partial.
"""

from __future__ import annotations

import contextlib
from threading import Lock

from connpool.transfer.records import Offer
from connpool.transfer.stores.journal import Committing, committingRecord, header
from connpool.transfer.stores.partialdir import PartialDirectory, Slot

__all__ = ["JournalWriter"]

#: Bytes of a journal that may say everything many times over before somebody looks.
LOOK_BYTES = 1 << 20


class JournalWriter:
    """
    The writer of one journal.

    The offer is described before anything else is said, with the first record that
    has to be written, and a journal that nobody could read is begun anew by it.
    C{committing} counts only as the last record, so the description follows it when
    publishing came to nothing, and nothing does when the file has its name.

    @ivar committing: whether the last record says that publishing began.
    @ivar due: whether something was declared that no record says yet.
    """

    def __init__(self, partials: PartialDirectory, slot: Slot, offer: Offer) -> None:
        self._partials = partials
        self._slot = slot
        self._header = header(offer)
        #: what is still to be said of the offer
        self._description = b"" if slot.journal.describes(offer) else self._header
        self.committing = self.due = False
        self._turn = Lock()
        self._size = slot.said
        #: bytes of a journal that is looked at: it may say everything many times over
        self._long = max(LOOK_BYTES, 2 * slot.said)

    def passOn(self, offer: Offer) -> JournalWriter:
        """
        Return the writer that goes on for C{offer}.
        """
        newer = JournalWriter(self._partials, self._slot, offer)
        same = newer._header == self._header
        newer._description = self._description if same else newer._header
        newer.committing, newer.due = self.committing, self.due
        newer._size, newer._long = self._size, self._long
        return newer

    def declare(self, offer: Offer) -> None:
        """
        Say with the next record what became known of the offer.
        """
        self._header = self._description = header(offer)
        self.due = True

    def describe(self) -> None:
        """
        Let operators see whose it is.
        """
        if self._description:
            with contextlib.suppress(OSError):  # it goes with the first checkpoint
                self.write(b"", 0)

    def write(self, record: bytes, level: int, *, committing: bool = False) -> None:
        """
        Append a record, after the description if that is still to be written.

        @param level: at 1 and 2 it is on disk when this returns, at 2 the
            names of the partial are, too.
        @param committing: whether it says so.
        """
        slot = self._slot
        with self._turn:  # of two checkpoints in threads
            if slot.journal.offer is None and slot.said:
                self._partials.beginAnew(slot)
            self._partials.append(slot, self._description + record)
            self._size += len(self._description + record)
            self._description, self.due = b"", False
            self.committing = committing
            if self._size >= self._long:
                self._partials.reread(slot)
                self._size = slot.said
                self._long = max(self._long, 2 * slot.said)
            self._partials.syncJournal(slot, level)

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
