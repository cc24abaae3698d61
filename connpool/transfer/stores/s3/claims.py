"""
The decision who has a name, and the publishing under it.

Theory of operation
===================
Of everything that an engine does only a conditional PUT is known to have one winner.  So
whoever wants a name puts its I{claim} first, if there is none, and the object after it: two
requests for a small file.  A claim says whose it is (a token), and everything that the
receipt says, so it is also the record by which a sender that did not see its receipt gets the
same one.  Whoever loses reads the claim and decides by what it says and by whether the object
is there (L{Claims.judge}):

  - the same sender, key and content: its own earlier try, which this one goes on with;
  - a directory, or another spelling of the name with an object: the name is taken;
  - no object, and an upload: B{whoever meets it completes the upload}, for all parts are
    there; a claim with an upload is never taken over before that;
  - no object, and no upload: it is being written, if the claim is younger than
    L{WRITING_SECONDS} by the engine's clock; else its writer died, or a consumer took the file
    away, and the claim is taken over by C{If-Match};
  - an object with the token: a duplicate, if the content is the same; else the rule decides.

The object is put only if nothing is there, or for C{replace} if what is there is still what
was seen.  So a claim that was lost (a writer that slept for long) or that expired costs no
file: then too the object has one winner.  A writer that took longer than a lease
reads its claim again before it says that it has stored anything.  Claims that were replaced
stay in the new one for a while (L{Past}): as done, or as abandoned, which counts as done only if
its object is there after all.

The claim is no lease of a lock: everything that is decided by age is only about who waits for
whom.

Known limits: a small file whose sender did not see the receipt is stored again, under the same
name and with the same receipt, if a consumer took it away meanwhile and it comes by another
receiver: the claim cannot tell that from a writer that died.  An engine that carries out a PUT
after everybody gave it up may bring back a file that a consumer took away.  C{If-Match} is about
the content on most engines, so a C{replace} that is carried out late, after two others of which
the second brought back the older content, wins over the second.  A stranger's object that
lies where a directory has to be is not seen.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum
from itertools import islice

import attrs

from connpool.errors import Busy, Exists, TransferError
from connpool.transfer.names import RelativeName, displayName
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.caseindex import neighbourExists
from connpool.transfer.stores.publish import candidates, isTaken
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.calls import ABSENT, Done, Found, Get, Head, Looked, Match
from connpool.transfer.stores.s3.layout import Layout, decoded
from connpool.transfer.stores.s3.uploadlog import PUBLISHED, Record, readLog

__all__ = ["Claim", "Claims", "Finished", "Free", "Held", "Past", "Taken", "Wanted"]

#: The names of an object's metadata: its claim's token, and the time that its sender gave it,
#: nanoseconds since the epoch.
TOKEN = "connpool"  # noqa: S105 - a name
MODIFIED = "mtime"

#: Seconds after which a claim without an object may be taken over, by the engine's clock.
WRITING_SECONDS = 30.0
#: Seconds after which a writer looks whether its claim was taken over, by its own clock.
LEASE_SECONDS = 20.0
#: Seconds from the begin of an upload in which no rule of a bucket aborts it: they count days.
UNTOUCHED_SECONDS = 86_400.0
#: Variants of a name that are looked at in one go.
VARIANTS_AT_ONCE = 16
#: Replaced claims that a claim remembers.
REMEMBERED = 16
#: Times that one name is looked at again because it changed meanwhile.
TRIES = 16
#: Directories and finished tokens that a process remembers.
KNOWN = 1 << 16


@attrs.frozen
class Past:
    """
    A claim that another one replaced.

    @ivar done: its object was there; else whoever asks must look.
    """

    who: str
    content: str
    token: str
    receipt: Receipt
    done: bool


@attrs.frozen
class Claim:
    """
    The claim of a name: by a file, or by a directory (then the rest is empty).

    @ivar path: the name as it is spelled.
    @ivar who: hash of principal and idempotence key; empty if there is none.
    @ivar content: says which content it is, see L{Wanted}.
    @ivar receipt: of the file, as soon as it is there.
    @ivar upload: C{UploadId} of a large file, and C{record} the record of its log that says
        how it is completed.
    @ivar replaces: ETag of the object that it replaces.
    @ivar past: claims that it replaced, the newest first.
    """

    path: str
    token: str = ""
    who: str = ""
    content: str = ""
    receipt: Receipt | None = None
    upload: str = ""
    record: int = 0
    replaces: str = ""
    past: tuple[Past, ...] = ()


@attrs.frozen
class Wanted:
    """
    A file whose content is complete, and that wants a name.

    @ivar content: algorithm and root, or another digest of all bytes; the same text is the
        same content.
    @ivar receipt: what its sender gets; the name in it is that of the offer.
    @ivar upload: as in L{Claim}; C{record} too.
    """

    offer: Offer
    content: str
    receipt: Receipt
    token: str
    upload: str = ""
    record: int = 0

    @property
    def who(self) -> str:
        return whoOf(self.offer)

    def claim(self, path: str, replaces: str, past: tuple[Past, ...]) -> Claim:
        receipt = attrs.evolve(self.receipt, name=path)
        return Claim(
            *(path, self.token, self.who, self.content, receipt),
            *(self.upload, self.record, replaces, past),
        )


def whoOf(offer: Offer) -> str:
    """
    Return the sender and the idempotence key of an offer as a claim has them.
    """
    if offer.key is None:
        return ""
    return hashlib.sha256(offer.principal.encode() + b"\0" + offer.key).hexdigest()


@attrs.frozen
class Held:
    """
    The name is claimed, and the object may be put.

    @ivar since: own time before the claim was put; L{None} if that was somebody else.
    """

    claim: Claim
    since: float | None


@attrs.frozen
class Taken:
    """
    The name is somebody else's.

    @ivar passing: it may be free soon.
    @ivar ripe: so soon that nobody should try another name meanwhile.
    @ivar neighbour: the name that it differs from only in case or composition.
    """

    passing: bool = False
    ripe: bool = False
    neighbour: str = ""
    directory: bool = False


@attrs.frozen
class Free:
    """
    A claim may be put in the place of the one that was read.
    """

    etag: str
    replaces: str
    past: tuple[Past, ...]
    receipt: Receipt | None = None


class Finished(Enum):
    """
    The end of somebody's upload.

    @cvar DONE: its object is there, or was.
    @cvar GONE: it will never be.
    @cvar TAKEN: somebody else's object has the name.
    @cvar INVALID: a part is not the one that was recorded.
    """

    DONE = "done"
    GONE = "gone"
    TAKEN = "taken"
    INVALID = "invalid"


def contentOf(offer: Offer, root: bytes | None) -> str | None:
    """
    Return the text that is the same for the same content; L{None} where there is no root.
    """
    return None if root is None else f"{offer.digest}:{root.hex()}"


def metadataOf(token: str, modified: int | None) -> dict[str, str]:
    """
    Return the metadata of an object.
    """
    return {TOKEN: token} | ({} if modified is None else {MODIFIED: str(modified)})


class Recent:
    """
    A set of the latest texts.
    """

    def __init__(self) -> None:
        self._items: OrderedDict[str, None] = OrderedDict()

    def add(self, item: str) -> None:
        self._items[item] = None
        if len(self._items) > KNOWN:
            self._items.popitem(last=False)

    def __contains__(self, item: str) -> bool:
        return item in self._items


class Claims:
    """
    The decisions by claims that are there.

    @param conditional: whether the engine has a condition for CompleteMultipartUpload.
    @ivar layout: the keys.
    @ivar stored: the tokens of files that this process has stored.
    """

    def __init__(self, layout: Layout, *, conditional: bool) -> None:
        self.layout = layout
        self.stored = Recent()
        self._conditional = conditional

    async def look(self, names: list[RelativeName]) -> list[tuple[RelativeName, Looked]]:
        """
        Read the claims of several names.
        """
        answers = await calls.together(Get(self.layout.claim(name.path)) for name in names)
        return list(zip(names, answers, strict=True))

    async def isThere(self, claim: Claim) -> bool:
        return isinstance(await Head(self.layout.file(claim.path)), Found)

    async def judge(self, wanted: Wanted, path: str, found: Found) -> Held | Receipt | Taken | Free:
        """
        Decide by a claim that is there.
        """
        claim = decoded(found, Claim)
        if claim.receipt is None:
            return Taken(directory=True, neighbour="" if claim.path == path else claim.path)
        receipt = await self.remembered(claim, wanted.who, wanted.content)
        if receipt is not None:
            return receipt
        done = claim.token in self.stored  # before the look: it may be stored in the midst of it
        there = await Head(self.layout.file(claim.path))
        done = done or tokenOf(there) == claim.token
        replaces = there.etag if there else ""
        if done and claim.token == wanted.token:
            return claim.receipt
        if not done and claim.upload:
            if claim.token == wanted.token:
                current = claim.replaces == replaces or wanted.offer.ifExists != "replace"
                if claim.record == wanted.record and current:
                    return Held(claim, None)
                return Free(found.etag, replaces, claim.past, claim.receipt)
            finished = await self.finish(claim)
            if finished is Finished.INVALID:
                return Taken(passing=True)
            done = finished is Finished.DONE
            there = await Head(self.layout.file(claim.path))
            replaces = there.etag if there else ""
        mine = claim.path == path and wanted.who and claim.who == wanted.who
        if mine and claim.content == wanted.content:
            return self._again(wanted, found.etag, claim, there, done)
        young = not done and found.age < WRITING_SECONDS
        passing = Taken(passing=True, ripe=found.age >= WRITING_SECONDS - LEASE_SECONDS)
        past = (Past(claim.who, claim.content, claim.token, claim.receipt, done), *claim.past)
        # of a file that was stored or not, nobody knows: if it is stored again, with its receipt
        again = [
            each.receipt
            for each in claim.past
            if wanted.who and (each.who, each.content) == (wanted.who, wanted.content)
        ]
        known = again[0] if again and again[0].name == path else None
        free = Free(found.etag, replaces, past[:REMEMBERED], known)
        if not there:
            return passing if young else free
        if claim.path != path:
            return Taken(neighbour=claim.path)
        if tokenOf(there) != claim.token:
            # a stranger's; or the claim was taken over after it was read
            now = await Get(self.layout.claim(path))
            if now and now.etag != found.etag:
                return await self.judge(wanted, path, now)
            if young:
                return passing
        if wanted.offer.ifExists == "replace":
            return free
        if tokenOf(there) == claim.token and claim.content == wanted.content:
            return attrs.evolve(wanted.receipt, name=path, status="duplicate")
        return Taken()

    def _again(
        self, wanted: Wanted, etag: str, claim: Claim, there: Looked, done: bool
    ) -> Held | Receipt | Taken | Free:
        """
        Decide by a claim of the same sender, key and content.
        """
        assert claim.receipt is not None
        if done:
            return claim.receipt
        if there and there.etag != claim.replaces:
            if wanted.offer.ifExists != "replace":
                return Taken()
            return Free(etag, there.etag, claim.past, claim.receipt)
        if claim.upload or wanted.upload or (claim.replaces and not there):
            replaces = claim.replaces if there else ""
            return Free(etag, replaces, claim.past, claim.receipt)
        return Held(claim, None)

    async def remembered(self, claim: Claim, who: str, content: str | None) -> Receipt | None:
        """
        Return the receipt of a claim that C{claim} replaced; C{content} is L{None} for any.
        """
        for past in claim.past:
            same = who and past.who == who and content in {None, past.content}
            if same and (past.done or await self._landed(claim, past)):
                return past.receipt
        return None

    async def _landed(self, claim: Claim, past: Past) -> bool:
        """
        Tell whether an object came after its claim had been taken over, and stays.
        """
        if tokenOf(await Head(self.layout.file(claim.path))) != past.token:
            return False
        # an upload that may still be completed might take its place
        return not claim.upload or await self.finish(claim) is Finished.GONE

    async def finish(self, claim: Claim) -> Finished:
        """
        Complete the upload of a claim, whosever it is.
        """
        key, answer = self.layout.file(claim.path), None
        found = await Get(self.layout.record(claim.token, claim.record))
        commit = decoded(found, Record).commit if found else None
        if commit is None:
            return await self._ended(claim) or Finished.GONE
        condition = Match(claim.replaces) if claim.replaces else ABSENT
        for _ in range(TRIES):
            there = await Head(key)
            if tokenOf(there) == claim.token:
                return Finished.DONE
            if there and (there.etag != claim.replaces or answer is not None):
                return Finished.TAKEN
            if claim.replaces and answer is not None:
                return Finished.TAKEN
            # else a consumer may just have taken away whatever was there
            answer = await calls.Complete(
                *(key, claim.upload, commit.parts), condition if self._conditional else None
            )
            if not isinstance(answer, calls.Conflict):
                break
        if isinstance(answer, Done):
            return Finished.DONE
        if isinstance(answer, calls.Conflict):
            return Finished.TAKEN
        if isinstance(answer, calls.InvalidPart):
            return Finished.INVALID
        if tokenOf(await Head(key)) == claim.token:
            return Finished.DONE
        ended = await self._ended(claim)
        if ended is not None:
            return ended
        begun = await Get(self.layout.record(claim.token, 1))
        young = begun and begun.age < UNTOUCHED_SECONDS
        # completed by somebody, and taken away by a consumer; or aborted by a rule of the bucket
        return Finished.DONE if young else Finished.GONE

    async def _ended(self, claim: Claim) -> Finished | None:
        upload = await readLog(self.layout, claim.token)
        if upload is None or not upload.end:
            return None
        return Finished.DONE if upload.end == PUBLISHED else Finished.GONE

    async def isElsewhere(self, wanted: Wanted, path: str) -> bool:
        """
        Tell whether an earlier try of the same sender, key and content has a name that is to
        be tried after C{path}: it got that while somebody else's file had this one.
        """
        if not wanted.who or wanted.offer.ifExists != "rename":
            return False
        after = False
        for names in batches(wanted.offer):
            for name, found in await self.look(
                [each for each in names if after or each.path == path]
            ):
                after = True
                if not found:
                    return False
                claim = decoded(found, Claim)
                mine = {(claim.who, claim.content)} | {(p.who, p.content) for p in claim.past}
                if name.path != path and (wanted.who, wanted.content) in mine:
                    return True
        return False

    async def refuseInTheWay(self, path: str, claim: Claim, age: float) -> None:
        """
        Check that the directory C{path} may be made, which C{claim} has the name of.

        @raise Exists, Busy: it may not.
        """
        part = path.rpartition("/")[2]
        if claim.path != path and (claim.receipt is None or await self.isThere(claim)):
            raise neighbourExists(part, claim.path.rpartition("/")[2])
        if claim.receipt is None:
            return
        done = claim.token in self.stored
        if claim.upload and not done:
            done = await self.finish(claim) is not Finished.INVALID
        if await self.isThere(claim):
            raise Exists(f'"{displayName(part)}" is not a directory on the receiver')
        if not done and age < WRITING_SECONDS:
            raise Busy(f'"{displayName(path)}": a file of that name is being written')


def batches(offer: Offer) -> Iterator[list[RelativeName]]:
    """
    Yield the names that a file may get, the wanted one alone and then several in one go.
    """
    names = candidates(offer)
    count = 1
    while now := list(islice(names, count)):
        yield now
        count = VARIANTS_AT_ONCE


def tokenOf(there: Looked) -> str | None:
    """
    Return the token of the claim that an object was put for, if it was for one.
    """
    return there.metadata.get(TOKEN) if there else None


def whyNot(offer: Offer, taken: Taken) -> TransferError:
    """
    Return the answer for a name that cannot be had; with C{rename} there may be another one.
    """
    if taken.neighbour:
        parts = offer.name.path.rpartition("/")[2], taken.neighbour.rpartition("/")[2]
        return neighbourExists(*parts)
    if taken.directory and offer.ifExists == "replace":
        return Exists(f'"{offer.name}" is a directory on the receiver')
    if taken.passing and offer.ifExists != "rename":
        return Busy(f'"{offer.name}": another file of that name is being stored; send it again')
    return isTaken(offer)
