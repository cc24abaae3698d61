"""
The verdicts of a dry run, file after file.

Theory of operation
===================
Each file is judged as it would be stored, after all those that this session
asked about before and that would be taken: their bytes are missing from the
space that is left, they count against the files and bytes of a day, and their
names are taken.  The names are kept in a store in memory, where the root stands
for the content; no more than C{COMPARED_NAMES}, and those that come later are judged
against what the receiver has.

A quota is about files under way, so each file is judged as if it came alone.
Other sessions, joined or not, are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.python.failure import Failure

from connpool.transfer import stores
from connpool.transfer.receive import smallfiles
from connpool.transfer.receive.reception import Reception, storeFailure
from connpool.transfer.receive.smallfiles import SmallFiles
from connpool.transfer.records import Offer
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import ROOT, Accept, Extension, encode, rejectFrame

__all__ = ["DryRun"]

#: Names of one run that are compared with each other, about 1 KiB each.
COMPARED_NAMES = 16_384
#: Bytes that a file that was asked about takes until its answer.
QUESTION_BYTES = 4096


class DryRun:
    """
    The dry run of one session.

    @param small: counts the questions that wait for the store.
    @param send: writes a frame.
    """

    def __init__(
        self, reception: Reception, small: SmallFiles, send: Callable[[bytes], None]
    ) -> None:
        self._reception = reception
        self._small = small
        self._send = send
        self._taken = stores.MemoryStore(names=reception.policy.names)
        self._turn = DeferredLock()
        self._files = self._bytes = 0

    def answer(self, number: int, offer: Offer, root: bytes | None) -> None:
        """
        Judge the next file, and tell the sender.

        @param number: the stream.
        @param root: of its content; L{None} if the sender has not said it.
        """
        self._small.pendingChanged(QUESTION_BYTES)

        def judged(result: bool | Failure) -> None:
            if isinstance(result, Failure):
                self._send(rejectFrame(number, storeFailure(result)))
            else:
                depends = (Extension(ROOT, False, b""),) if result else ()
                self._send(encode(Type.ACCEPT, number, Accept("dry", 0, extensions=depends)))
            self._small.pendingChanged(-QUESTION_BYTES)

        def judge() -> Deferred[bool]:
            return Deferred.fromCoroutine(self._judge(offer, root))

        self._turn.run(judge).addBoth(judged)

    async def _judge(self, offer: Offer, root: bytes | None) -> bool:
        """
        @return: whether it depends on C{root}, which is L{None}.
        @raise TransferError: why it would not be taken.
        """
        reception, size = self._reception, 1 if offer.size is None else offer.size
        quotas = reception.quotas
        quotas.checkSize(offer)
        quotas.check(quotas.accounts(offer.identity), 1 + self._files, size + self._bytes)
        whole = offer.size is not None and offer.size <= smallfiles.SMALL_FILE_BYTES
        status = await reception.store.foresee(offer, root, self._bytes, whole)
        if status == "compare":
            return True
        if self._files < COMPARED_NAMES:
            # equal roots are equal content; without them equal sizes may be
            standIn = b"%d " % size + (root or b"")
            self._taken.put(attrs.evolve(offer, key=None, size=len(standIn)), standIn, None)
        if status == "stored":
            self._files += 1
            self._bytes += size
        return False
