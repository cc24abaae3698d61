"""
The verdicts of a dry run, file after file.

Theory of operation
===================
Each file is judged as it would be stored, after all those that this session
asked about before and that would be taken: their bytes are missing from the
space that is left, they count against the files and bytes of a day, and their
names are taken.  The names are kept in a store in memory, where the root stands
for the content; no more than C{NAMES}, and those that come later are judged
against what the receiver has.

A quota is about files under way, so each file is judged as if it came alone.
Other sessions, joined or not, are not looked at.
"""

from __future__ import annotations

import attrs
from twisted.internet.defer import DeferredLock

from connpool.transfer.receive.reception import Reception
from connpool.transfer.records import Offer
from connpool.transfer.stores.memory import MemoryStore

__all__ = ["DryRun"]

#: Names of one run that are compared with each other, about 1 KiB each.
NAMES = 16_384


class DryRun:
    """
    @param small: bytes of a file that would come in one piece.
    """

    def __init__(self, reception: Reception, small: int) -> None:
        self._reception = reception
        self._small = small
        self._taken = MemoryStore(names=reception.policy.names)
        self._turn = DeferredLock()
        self._files = self._bytes = 0

    async def judge(self, offer: Offer, root: bytes | None) -> bool:
        """
        Judge the next file.

        @param root: of its content; L{None} if the sender has not said it.
        @return: whether it depends on C{root}, which is L{None}.
        @raise TransferError: why it would not be taken.
        """
        await self._turn.acquire()
        try:
            return await self._judge(offer, root)
        finally:
            self._turn.release()

    async def _judge(self, offer: Offer, root: bytes | None) -> bool:
        reception, size = self._reception, offer.size or 0
        reception.check(offer, self._files, self._bytes)
        whole = offer.size is not None and offer.size <= self._small
        status = await reception.store.foresee(offer, root, self._bytes, whole)
        if status == "compare":
            return True
        if self._files < NAMES:
            # equal roots are equal content; without them equal sizes may be
            standIn = b"%d " % size + (root or b"")
            self._taken.put(attrs.evolve(offer, key=None, size=len(standIn)), standIn, None)
        if status == "stored":
            self._files += 1
            self._bytes += size
        return False
