"""
Publishing under a name, as L{connpool.transfer.stores.s3.claims} decides it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import takewhile

import attrs
import msgspec

from connpool.errors import Busy, Expired, SyncFailed, TransferError, Unavailable
from connpool.transfer.names import RelativeName, displayName
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.publish import isTaken
from connpool.transfer.stores.s3 import calls, claims
from connpool.transfer.stores.s3.calls import ABSENT, Conflict, Done, Get, Head, Match, Put
from connpool.transfer.stores.s3.claims import Claim, Held, Taken, Wanted, batches, tokenOf
from connpool.transfer.stores.s3.layout import Layout, decoded
from connpool.transfer.stores.s3.outbox import Outbox
from connpool.waiting import Waiters

__all__ = ["Names"]

#: Times that a body is sent that arrives damaged.
SENDS = 3

_Outcome = Receipt | Taken


class Moved(Unavailable):
    """
    Another sender got the name that the parts of a large file were already stored under; sent
    again, it gets the next one.
    """


class Invalid(Unavailable):
    """
    Parts of a large file are not what they were; some of them have to come again.
    """


class Names(claims.Claims):
    """
    The names that files get.

    @param seconds: own monotonic time.
    """

    def __init__(
        self, layout: Layout, seconds: Callable[[], float], *, conditional: bool = True
    ) -> None:
        super().__init__(layout, conditional=conditional)
        self._seconds = seconds
        self._directories = claims.Recent()
        self._claiming: dict[str, Waiters] = {}
        #: told of every file, if somebody wants that
        self.outbox: Outbox | None = None

    # -- publishing

    async def publish(self, wanted: Wanted, body: calls.Body) -> Receipt:
        """
        Store a file that is one object.

        @raise Exists: as the rule has it.
        @raise Busy: another receiver is writing a file of that name.
        @raise Unavailable: another receiver took the name over.
        """
        offer, passed = wanted.offer, False
        why: TransferError = isTaken(offer)
        await self._claimDirectories(offer.name)
        began = self._seconds()

        async def write(held: Held) -> _Outcome | None:
            if passed and self._seconds() - began >= claims.LEASE_SECONDS:
                # who sent it to another receiver too may have got the name that was passed by
                raise Unavailable(f'"{offer.name}": it took too long; send it again')
            return await self._write(held, offer, body)

        for names in batches(offer):
            # the wanted one is mostly free
            first = names == [offer.name]
            looked = [(offer.name, calls.Missing())] if first else await self.look(names)
            for name, found in looked:
                outcome = await self._at(wanted, name.path, found, write)
                if isinstance(outcome, Receipt):
                    return outcome
                if first:
                    why = claims.whyNot(offer, outcome)
                if outcome.ripe:
                    raise Busy(
                        f'"{offer.name}": a file of that name is being stored; send it again'
                    )
                passed |= outcome.passing
        raise why

    async def commit(self, wanted: Wanted, bound: str) -> Receipt:
        """
        Complete an upload whose parts are there under the name C{bound}.

        @raise Moved: somebody else has that name, and the rule gives another one.
        @raise Invalid: a part is not what it was.
        @raise Exists, Busy, Unavailable: as L{publish}.
        """
        offer = wanted.offer
        await self._claimDirectories(offer.name)
        for names in batches(offer):
            before = list(takewhile(lambda name: name.path != bound, names))
            for name, found in await self.look(before):
                if found:
                    judged = await self.judge(wanted, name.path, found)
                    if isinstance(judged, Receipt):
                        return judged
            if before != names:
                break
        outcome = await self._at(
            wanted, bound, calls.Missing(), lambda held: self._complete(held, wanted.offer)
        )
        if isinstance(outcome, Receipt):
            return outcome
        if offer.ifExists == "rename":
            raise Moved(f'"{offer.name}": another file got the name meanwhile; send it again')
        raise claims.whyNot(offer, outcome)

    async def _at(
        self,
        wanted: Wanted,
        path: str,
        found: calls.Looked,
        write: Callable[[Held], Awaitable[_Outcome | None]],
    ) -> _Outcome:
        for _ in range(claims.TRIES):
            held = await self._claim(wanted, path, found)
            if not isinstance(held, Held):
                return held
            outcome = await write(held)
            if outcome is not None:
                return outcome
            found = await Get(self.layout.claim(path))
        return Taken(passing=True)

    async def _claim(
        self, wanted: Wanted, path: str, found: calls.Looked
    ) -> Held | Receipt | Taken:
        key = self.layout.claim(path)
        for _ in range(claims.TRIES):
            condition: calls.Condition = ABSENT
            if not found:
                claim = wanted.claim(path, await self._replaced(wanted.offer, path), ())
            else:
                judged = await self.judge(wanted, path, found)
                if not isinstance(judged, claims.Free):
                    return judged
                if await self.isElsewhere(wanted, path):
                    return Taken()
                claim = wanted.claim(path, judged.replaces, judged.past)
                if judged.receipt is not None:
                    claim = attrs.evolve(claim, receipt=judged.receipt)
                condition = Match(judged.etag)
            since, raw = self._seconds(), msgspec.json.encode(claim)
            if isinstance(await Put(key, raw, condition), Done):
                return Held(claim, since)
            found = await Get(key)
            if found and found.body == raw:
                return Held(claim, since)
        return Taken(passing=True)

    async def _replaced(self, offer: Offer, path: str) -> str:
        if offer.ifExists != "replace":
            return ""
        there = await Head(self.layout.file(path))
        return there.etag if there else ""

    async def _write(self, held: Held, offer: Offer, body: calls.Body) -> _Outcome | None:
        claim = held.claim
        key = self.layout.file(claim.path)
        condition: calls.Condition = Match(claim.replaces) if claim.replaces else ABSENT
        put = Put(key, body, condition, claims.metadataOf(claim.token, offer.modified))
        if self.outbox is not None:
            await self.outbox.note(claim)
        for _ in range(SENDS):
            answer = await put
            if not isinstance(answer, calls.BadDigest):
                break
        else:
            raise SyncFailed(
                f'"{offer.name}": the engine got other bytes than were sent, each time'
            )
        if isinstance(answer, Conflict) and tokenOf(await Head(key)) != claim.token:
            return None  # the claim tells whose it is by now
        return await self._confirm(held)

    async def _complete(self, held: Held, offer: Offer) -> _Outcome | None:
        if self.outbox is not None:
            await self.outbox.note(held.claim)
        finished = await self.finish(held.claim)
        if finished is claims.Finished.TAKEN:
            return None if offer.ifExists == "replace" else Taken()
        if finished is claims.Finished.INVALID:
            raise Invalid(f'"{offer.name}": parts of it were damaged and come again')
        if finished is claims.Finished.GONE:
            raise Expired(f'"{offer.name}": the engine has forgotten its parts; send it again')
        return await self._confirm(held)

    async def _confirm(self, held: Held) -> Receipt:
        """
        Return the receipt of an object that is there, if the claim is still there too.
        """
        claim = held.claim
        assert claim.receipt is not None
        since = held.since
        if since is None or claim.replaces or self._seconds() - since >= claims.LEASE_SECONDS:
            found = await Get(self.layout.claim(claim.path))
            now = decoded(found, Claim) if found else None
            done = now is not None and {now.token} | {each.token for each in now.past if each.done}
            if not done or claim.token not in done:
                raise Unavailable(f'"{claim.path}": another receiver took its name; send it again')
        self.stored.add(claim.token)
        if self.outbox is not None:
            self.outbox.stored(claim)
        return claim.receipt

    # -- directories

    async def _claimDirectories(self, name: RelativeName) -> None:
        for depth in range(1, len(name.components)):
            path = "/".join(name.components[:depth])
            if path in self._claiming:
                await self._claiming[path].wait()  # hundreds of files may come for a new one
            if path not in self._directories:
                others = self._claiming.setdefault(path, Waiters())
                try:
                    await self._claimDirectory(path)
                finally:
                    self._claiming.pop(path, None)
                    others.wake()

    async def _claimDirectory(self, path: str) -> None:
        key = self.layout.claim(path)
        condition: calls.Condition = ABSENT
        raw = msgspec.json.encode(Claim(path))
        for _ in range(claims.TRIES):
            if isinstance(await Put(key, raw, condition), Done):
                break
            found = await Get(key)
            if not found:
                condition = ABSENT
                continue
            claim = decoded(found, Claim)
            if claim.receipt is None and claim.path == path:
                break
            await self.refuseInTheWay(path, claim, found.age)
            condition = Match(found.etag)
        else:
            raise Busy(f'"{displayName(path)}": others are changing it; send it again')
        self._directories.add(path)

    # -- before anything is stored

    async def earlier(self, offer: Offer) -> Receipt | None:
        """
        Return the receipt that an earlier offer of the same sender and key got.
        """
        who = claims.whoOf(offer)
        if not who or offer.size is None:
            return None
        for names in batches(offer):
            for _, found in await self.look(names):
                if not found:
                    return None
                receipt = await self._receiptIn(decoded(found, Claim), who, offer.size)
                if receipt is not None:
                    return receipt
        return None

    async def _receiptIn(self, claim: Claim, who: str, size: int) -> Receipt | None:
        receipt = claim.receipt
        if receipt is not None and claim.who == who and receipt.answers(size):
            if claim.token in self.stored:
                return receipt
            if tokenOf(await Head(self.layout.file(claim.path))) == claim.token:
                return receipt
            if claim.upload and await self.finish(claim) is claims.Finished.DONE:
                return receipt
        receipt = await self.remembered(claim, who, None)
        return receipt if receipt is not None and receipt.answers(size) else None

    async def bind(self, offer: Offer) -> str:
        """
        Choose the name under which the parts of a large file will lie: with C{rename} one
        that nobody seems to have; the commit decides.
        """
        if offer.ifExists != "rename":
            return offer.name.path
        for names in batches(offer):
            for name, found in await self.look(names):
                if not await self._seemsTaken(name.path, found):
                    return name.path
        raise isTaken(offer)

    async def _seemsTaken(self, path: str, found: calls.Looked) -> bool:
        taken, claim, _ = await self._inTheWay(path, found)
        if taken is not None:
            return True
        known = claim is None or claim.upload or claim.token in self.stored
        if found and not known and found.age < claims.WRITING_SECONDS:
            return True
        return bool((await calls.ListUploads(self.layout.file(path))).uploadIds)

    async def _inTheWay(
        self, path: str, found: calls.Looked
    ) -> tuple[Taken | None, Claim | None, calls.Looked]:
        """
        Return why a name cannot be had, its claim and its object, as far as they are there.
        """
        there = await Head(self.layout.file(path))
        claim = decoded(found, Claim) if found else None
        taken = Taken() if there else None
        if claim is not None:
            other = claim.path if claim.path != path else ""
            if claim.receipt is None or (other and await self.isThere(claim)):
                taken = Taken(directory=claim.receipt is None, neighbour=other)
        return taken, claim, there

    async def foresee(self, offer: Offer, content: str | None) -> str:
        """
        Say what would become of a file; see L{connpool.interfaces.IFileStore.foresee}.

        @param content: as in L{Wanted}; L{None} if nobody knows.
        """
        for depth in range(1, len(offer.name.components)):
            path = "/".join(offer.name.components[:depth])
            found = await Get(self.layout.claim(path))
            if found:
                above = decoded(found, Claim)
                if above.receipt is not None or above.path != path:
                    await self.refuseInTheWay(path, above, found.age)
        why: TransferError = isTaken(offer)
        for names in batches(offer):
            for name, found in await self.look(names):
                taken, claim, there = await self._inTheWay(name.path, found)
                if taken is None or (taken == Taken() and offer.ifExists == "replace"):
                    return "stored"
                same = claim is not None and tokenOf(there) == claim.token
                if (
                    claim
                    and there
                    and same
                    and taken == Taken()
                    and offer.size in {None, there.size}
                ):
                    if content is None and offer.ifExists != "rename":
                        return "compare"
                    if content in {None, claim.content}:
                        return "duplicate"
                if name is offer.name:
                    why = claims.whyNot(offer, taken)
        raise why
