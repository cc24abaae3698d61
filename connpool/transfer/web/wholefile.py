"""
One file that comes whole: in one request, or as a part of one.

A plain one is hashed by nobody, as in the classic protocol.  One in a request of at most
L{SMALL_FILE_BYTES} bytes is kept until all of it came and stored in one piece; any other
goes to a partial as it comes.
"""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import NetworkFailed, TooLarge, TransferError
from connpool.transfer.digests import digestNamed, rootOf
from connpool.transfer.receive.reception import Reception, storeFailure
from connpool.transfer.receive.smallfiles import SMALL_FILE_BYTES, WholeFiles
from connpool.transfer.records import Offer, Receipt, SmallFile
from connpool.transfer.web.digests import Digests
from connpool.transfer.web.head import FieldValues
from connpool.transfer.web.request import Request

__all__ = ["WholeFile", "checkLimits"]


def checkLimits(reception: Reception, offer: Offer) -> None:
    """
    Refuse what would be refused with all of its bytes.

    @raise TransferError: why.
    """
    quotas = reception.quotas
    quotas.checkSize(offer)
    quotas.check(quotas.accounts(offer.identity), 1, 1 if offer.size is None else offer.size)


class WholeFile:
    """
    A file on its way in.

    @param request: brings it.
    @param digests: of its bytes.
    """

    def __init__(self, request: Request, offer: Offer, digests: Digests) -> None:
        self._request = request
        self._reception = request.reception
        self._peer = request.sender.peer
        self._digests = digests
        if request.settings.sha256:
            digests.add("sha-256")
        if digests.vouches:
            digests.add("sha-256")
            offer = attrs.evolve(offer, digest="sha256")
        self._offer = offer
        self._offset = 0
        length = request.head.length
        #: all that came, of a small one; else the reception's hand on its partial
        self._data = bytearray() if length is not None and length <= SMALL_FILE_BYTES else None
        self._incoming: Any = None
        self._begun = False

    async def receive(self) -> Receipt:
        """
        Take the body of the request, and publish it.

        @raise TransferError: it is not stored.
        """
        try:
            await self.begin()
            return await self.commit(await self._request.receive(self.write))
        except BaseException as e:
            await self.abort(e)
            raise

    async def begin(self) -> None:
        """
        Find out whether it is taken.

        @raise TransferError: why not.
        """
        reception, offer = self._reception, self._offer
        if self._data is None:
            # a new key: it finishes nothing twice
            self._incoming = await reception.begin(offer, self._peer, self._request.end)
        else:
            try:
                checkLimits(reception, offer)
            except TransferError as e:
                reception.refuse(str(offer.name), self._peer, e, offer.transferId)
                raise
            room = reception.quotas.room(offer.identity)
            if room is not None:
                await room
        self._begun = True

    def write(self, view: memoryview) -> Deferred[None] | None:
        """
        Take the bytes that follow.

        @return: L{None} when C{view} is not needed any more, else a Deferred that fires then.
        @raise TransferError: as L{Incoming.write}.
        """
        written: Deferred[None] | None = None
        if self._data is None:
            written = self._incoming.write(self._offset, view)
        else:
            self._data += view
        self._offset += len(view)
        # while the bytes are in the processor's cache
        self._digests.update(view)
        return written

    async def commit(self, trailers: FieldValues) -> Receipt:
        """
        Publish it.

        @param trailers: the fields behind its bytes.
        @raise TransferError: it is not published.
        """
        offer, size, digests = self._offer, self._offset, self._digests
        if offer.size is not None and size != offer.size:
            if size > offer.size:
                raise TooLarge(f"{offer.name} is longer than {offer.size} bytes as declared")
            raise NetworkFailed(f"{size} bytes came of {offer.size}")
        digests.compare(trailers)
        sha256 = digests.computed.get("sha-256")
        root = None
        if digests.vouches and sha256 is not None:
            # the file is one block of SHA-256
            root = rootOf(digestNamed("sha256"), size, max(size, 1), [sha256][:size])
        self._begun = False
        if self._data is None:
            receipt: Receipt = await self._incoming.commit(root, sha256)
            return receipt
        if sha256 is not None or offer.size is None:
            known = None if sha256 is None else sha256.hex()
            offer = attrs.evolve(offer, size=size, sha256=known)
        file = SmallFile(offer, bytes(self._data), root)
        outcomes = WholeFiles(self._reception).put([file], offer.identity, self._peer)
        [outcome] = outcomes if isinstance(outcomes, list) else await outcomes
        if isinstance(outcome, Receipt):
            return outcome
        raise storeFailure(outcome)

    async def abort(self, why: BaseException) -> None:
        """
        Remove every trace of it, unless it has ended.
        """
        if not self._begun:
            return
        self._begun = False
        if self._incoming is not None:
            await self._incoming.abort(why)
        else:
            self._reception.tell("offered", self._offer, self._peer)
            self._reception.failed(self._offer, self._peer, self._offset, why)
