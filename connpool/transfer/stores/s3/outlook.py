"""
The answers of claims before anything is stored.
"""

from __future__ import annotations

from connpool.errors import TransferError
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.publish import isTaken
from connpool.transfer.stores.s3.calls import Found, Get, Head, ListUploads, Missing
from connpool.transfer.stores.s3.claims import (
    WRITING_SECONDS,
    Claim,
    Claims,
    Finish,
    Finished,
    Taken,
    batches,
    tokenOf,
    whoOf,
    whyNot,
)

__all__ = ["Outlook"]


class Outlook:
    """
    The answers about files of which nothing has come.

    @param finish: completes an upload that a claim names.
    """

    def __init__(self, claims: Claims, finish: Finish) -> None:
        self._claims = claims
        self._layout = claims.layout
        self._finish = finish

    async def earlier(self, offer: Offer) -> Receipt | None:
        """
        Return the receipt that an earlier offer of the same sender and key got.
        """
        who = whoOf(offer)
        if not who or offer.size is None:
            return None
        for names in batches(offer):
            for _, found in await self._claims.look(names):
                if isinstance(found, Missing):
                    return None
                receipt = await self._receiptIn(Claim.decode(found.body), who, offer.size)
                if receipt is not None:
                    return receipt
        return None

    async def _receiptIn(self, claim: Claim, who: str, size: int) -> Receipt | None:
        receipt = claim.receipt
        if receipt is not None and claim.who == who and receipt.answers(size):
            if claim.token in self._claims.stored:
                return receipt
            if tokenOf(await Head(self._layout.file(claim.path))) == claim.token:
                return receipt
            if claim.upload and await self._finish(claim) is Finished.DONE:
                return receipt
        receipt = await self._claims.remembered(claim, who, None)
        return receipt if receipt is not None and receipt.answers(size) else None

    async def bind(self, offer: Offer) -> str:
        """
        Choose the name under which the parts of a large file will lie: with C{rename} one
        that nobody seems to have; the commit decides.
        """
        if offer.ifExists != "rename":
            return offer.name.path
        for names in batches(offer):
            for name, found in await self._claims.look(names):
                if not await self._seemsTaken(name.path, found):
                    return name.path
        raise isTaken(offer)

    async def _seemsTaken(self, path: str, found: Found | Missing) -> bool:
        there = await Head(self._layout.file(path))
        if isinstance(there, Found):
            return True
        if isinstance(found, Found):
            claim = Claim.decode(found.body)
            if claim.receipt is None or (claim.path != path and await self._claims.isThere(claim)):
                return True
            known = claim.upload or claim.token in self._claims.stored
            if not known and found.age < WRITING_SECONDS:
                return True
        return bool((await ListUploads(self._layout.file(path))).uploadIds)

    async def foresee(self, offer: Offer, content: str | None) -> str:
        """
        Say what would become of a file; see L{connpool.interfaces.IFileStore.foresee}.

        @param content: as in L{Wanted}; L{None} if nobody knows.
        """
        for depth in range(1, len(offer.name.components)):
            path = "/".join(offer.name.components[:depth])
            found = await Get(self._layout.claim(path))
            if isinstance(found, Found):
                claim = Claim.decode(found.body)
                if claim.receipt is not None or claim.path != path:
                    await self._claims.refuseInTheWay(path, claim, found.age)
        why: TransferError = isTaken(offer)
        for names in batches(offer):
            for name, found in await self._claims.look(names):
                there = await Head(self._layout.file(name.path))
                taken = Taken()
                if isinstance(found, Found):
                    claim = Claim.decode(found.body)
                    if claim.receipt is None:
                        other = claim.path != name.path
                        taken = Taken(directory=True, neighbour=claim.path if other else "")
                    elif claim.path != name.path and await self._claims.isThere(claim):
                        taken = Taken(neighbour=claim.path)
                    elif isinstance(there, Missing) or offer.ifExists == "replace":
                        return "stored"
                    elif (
                        offer.size in {None, there.size}
                        and tokenOf(there) == claim.token
                        and content in {None, claim.content}
                    ):
                        known = content is not None or offer.ifExists == "rename"
                        return "duplicate" if known else "compare"
                elif isinstance(there, Missing) or offer.ifExists == "replace":
                    return "stored"
                if name is offer.name:
                    why = whyNot(offer, taken)
        raise why
