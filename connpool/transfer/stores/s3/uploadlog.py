"""
The log of an upload, by which any receiver goes on where another one stopped.

Theory of operation
===================
Every record of an upload is an object of its own, put if nothing is there, under the number
after the last one.  So the log is the fence: whoever takes the upload over appends a record
with a higher epoch, and the older holder finds its next number taken, by somebody whose epoch
is higher than its own (L{ConflictTakeover}).  If the record that it finds is its own, only
the answer was lost.  Nothing is removed before the upload has ended, so the numbers have no
gaps; a listing is only a hint where to begin to read, and a record that holds everything (at
each take-over, and every L{WHOLE_RECORDS}) makes reading short.

C{commit} is written when every part is there: from then on the upload is only completed, by
its owner or by whoever meets its claim (L{finish}).  A part that the engine has not as it was
recorded is voided, and with it the commit.

C{end} is written before anything is removed, so nobody who sleeps through that believes that
its upload is alive; this record stays for as long as partials are kept.  It tells an upload
that was completed, and whose file a consumer took away, from one that was given up.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import msgspec

from connpool.errors import ConflictTakeover, StoreError, Unavailable
from connpool.transfer.names import RelativeName
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.s3 import pointers
from connpool.transfer.stores.s3.calls import (
    ABSENT,
    Abort,
    Complete,
    Condition,
    Conflict,
    Delete,
    Done,
    Found,
    Get,
    Head,
    InvalidPart,
    List,
    ListParts,
    Match,
    Missing,
    Parts,
    Put,
    together,
)
from connpool.transfer.stores.s3.claims import TRIES, Claim, Finished, Wanted, tokenOf
from connpool.transfer.stores.s3.layout import Layout

__all__ = [
    "PUBLISHED",
    "REMOVED",
    "Begin",
    "Commit",
    "Log",
    "Part",
    "Record",
    "Tail",
    "Upload",
    "clear",
    "finish",
    "forget",
    "readLog",
    "takeOver",
]

#: Records after which one holds everything.
WHOLE_RECORDS = 256
#: Records that are read at once.
READS_AT_ONCE = 16
#: Seconds from the begin of an upload in which no rule of a bucket aborts it: they count days.
UNTOUCHED_SECONDS = 86_400.0

#: Published, or given up.
PUBLISHED, REMOVED = "published", "removed"


@attrs.frozen
class Begin:
    """
    The file that an upload is of.

    @ivar path: the name under which its parts lie.
    @ivar uploadId: empty while there are no parts.
    @ivar pointer: the key of the object that names this upload; empty if there is none.
    @ivar name: that was asked for.
    @ivar offer: the rest of the offer.
    """

    path: str
    uploadId: str
    partBytes: int
    pointer: str
    name: str
    offer: dict[str, Any]

    @classmethod
    def of(cls, offer: Offer, path: str, uploadId: str, partBytes: int, pointer: str) -> Begin:
        """
        Describe an upload.  The secret of the offer, which the pointer is named after, is
        not written.
        """
        values = attrs.asdict(
            offer,
            filter=lambda a, _: a.name not in {"name", "identity", "resumeKey"},
            recurse=False,
        )
        if offer.key is not None:
            values["key"] = offer.key.hex()
        return cls(path, uploadId, partBytes, pointer, offer.name.path, values)

    def asOffer(self) -> Offer:
        """
        Return the offer, without its identity.
        """
        known = {a.name for a in attrs.fields(Offer)}
        values = {name: value for name, value in self.offer.items() if name in known}
        if values.get("key") is not None:
            values["key"] = bytes.fromhex(values["key"])
        return Offer(name=RelativeName.parse(self.name, profile="posix"), **values)


@attrs.frozen
class Part:
    """
    A part that the engine has.

    @ivar crc: CRC-32 of its bytes.
    @ivar blocks: number and digest of each block in it.
    """

    number: int
    etag: str
    size: int
    crc: int
    blocks: tuple[tuple[int, bytes], ...] = ()


@attrs.frozen
class Tail:
    """
    Bytes of a part that is not full.

    @ivar key: of the object that has them, one after the other.
    @ivar spans: the beginning and the end of each piece in the file, and its digest.
    """

    number: int
    key: str
    spans: tuple[tuple[int, int, bytes], ...]


@attrs.frozen
class Commit:
    """
    Everything that is needed to complete an upload, and what its sender gets.
    """

    content: str
    receipt: Receipt
    parts: tuple[tuple[int, str, int], ...]


@attrs.frozen
class Record:
    """
    A record of the log.

    @ivar epoch: of the holder that wrote it.
    @ivar mark: tells one writer's record from another's.
    @ivar begin: also, if what was offered changed.
    @ivar void: numbers of parts that are not there as they were recorded.
    @ivar tails: of parts; one replaces the older one of its part.
    @ivar commitAt: in a record that holds everything, the number of the commit's record.
    @ivar end: C{published} or C{removed}.
    @ivar whole: whether it holds everything before it.
    @ivar base: the number of the last record that holds everything, or 1.
    """

    epoch: int
    mark: str
    begin: Begin | None = None
    parts: tuple[Part, ...] = ()
    void: tuple[int, ...] = ()
    tails: tuple[Tail, ...] = ()
    commit: Commit | None = None
    commitAt: int = 0
    end: str = ""
    whole: bool = False
    base: int = 1


def _decode(raw: bytes) -> Record:
    try:
        return msgspec.json.decode(raw, type=Record)
    except msgspec.MsgspecError:
        raise StoreError(
            "a record in the bucket cannot be read; is it of a newer version?"
        ) from None


class Upload:
    """
    The state of an upload, as its log says.

    @ivar next: number of the next record.
    @ivar epoch: of the newest holder.
    @ivar changed: when the last record that was read was written, by the engine's clock;
        C{age} seconds before it was read.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.next = 1
        self.epoch = 0
        self.begin: Begin | None = None
        self.parts: dict[int, Part] = {}
        self.tails: dict[int, Tail] = {}
        self.commit: Commit | None = None
        self.commitAt = 0
        self.end = ""
        self.base = 1
        self.age = self.changed = 0.0

    def apply(self, record: Record) -> None:
        """
        Take the next record in.
        """
        number, self.next = self.next, self.next + 1
        self.epoch = record.epoch
        if record.whole:
            self.parts, self.tails = {}, {}
            self.commit, self.commitAt = None, 0
            self.base = number
        self.begin = record.begin or self.begin
        for voided in record.void:
            self.parts.pop(voided, None)
            self.commit, self.commitAt = None, 0
        for part in record.parts:
            self.parts[part.number] = part
            self.tails.pop(part.number, None)
        for tail in record.tails:
            self.tails[tail.number] = tail
        if record.commit is not None:
            self.commit, self.commitAt = record.commit, record.commitAt or number
        self.end = record.end or self.end

    def whole(self, epoch: int) -> Record:
        """
        Return a record that holds everything.
        """
        return Record(
            epoch,
            secrets.token_hex(8),
            self.begin,
            tuple(self.parts.values()),
            tails=tuple(self.tails.values()),
            commit=self.commit,
            commitAt=self.commitAt,
            whole=True,
            base=self.next,
        )

    def wanted(self, offer: Offer) -> Wanted:
        """
        Return what is wanted to complete it.
        """
        assert self.begin is not None
        assert self.commit is not None
        commit, uploadId = self.commit, self.begin.uploadId
        return Wanted(offer, commit.content, commit.receipt, self.token, uploadId, self.commitAt)


async def readLog(layout: Layout, token: str) -> Upload | None:
    """
    Read a log to its end.

    @return: L{None} if there is none.
    """
    last, listed = 1, ""
    while True:
        page = await List(layout.log(token), listed)
        if page.entries:
            listed = page.entries[-1].key
            last = int(listed.rpartition("/")[2])
        if not page.more:
            break
    upload, tail = Upload(token), []
    while isinstance(found := await Get(layout.record(token, last)), Found):
        tail.append(_decode(found.body))
        upload.age, upload.changed = found.age, found.modified
        last += 1
    if not tail:
        return None
    upload.next, before = tail[0].base, last - len(tail)
    while upload.next < before:
        numbers = range(upload.next, min(upload.next + READS_AT_ONCE, before))
        for found in await together(Get(layout.record(token, number)) for number in numbers):
            if isinstance(found, Missing):
                return None  # the leavings of one that ended
            upload.apply(_decode(found.body))
    for record in tail:
        upload.apply(record)
    return upload


async def takeOver(layout: Layout, token: str) -> Upload | None:
    """
    Become the holder of an upload.

    @return: its state; L{None} if there is none that goes on.
    """
    upload = await readLog(layout, token)
    while upload is not None and not upload.end and upload.begin is not None:
        record = upload.whole(upload.epoch + 1)
        found = await _append(layout, upload, record)
        upload.apply(found)
        if found.mark == record.mark:
            return upload
    return None


async def _append(layout: Layout, upload: Upload, record: Record) -> Record:
    """
    Write a record, unless its number has one.

    @return: the one that is there.
    """
    key = layout.record(upload.token, upload.next)
    if isinstance(await Put(key, msgspec.json.encode(record), ABSENT), Done):
        return record
    found = await Get(key)
    if isinstance(found, Missing):
        raise Unavailable("the engine lost a record of an upload; send the file again")
    return _decode(found.body)


class Log:
    """
    The hand of one holder on the log.  One call at a time.

    @ivar upload: the state.
    """

    def __init__(self, layout: Layout, upload: Upload) -> None:
        self._layout = layout
        self._epoch = upload.epoch
        self.upload = upload

    async def append(self, **values: Any) -> None:
        """
        Append a record.

        @param values: attributes of L{Record}.
        @raise ConflictTakeover: somebody else has the upload now.
        """
        upload, mark = self.upload, secrets.token_hex(8)
        await self._append(lambda: Record(self._epoch, mark, base=upload.base, **values))
        if upload.next - upload.base >= WHOLE_RECORDS:
            await self._append(lambda: upload.whole(self._epoch))

    async def end(self, how: str, commit: Commit | None = None) -> None:
        """
        End the upload.

        @param how: C{PUBLISHED} or C{REMOVED}.
        @param commit: what its sender got.
        @raise ConflictTakeover: somebody else has the upload now.
        """

        def last() -> Record:
            whole = self.upload.whole(self._epoch)
            return attrs.evolve(whole, parts=(), tails=(), commit=commit, end=how)

        await self._append(last)

    async def _append(self, make: Callable[[], Record]) -> None:
        while True:
            record = make()
            found = await _append(self._layout, self.upload, record)
            if found.epoch != self._epoch:
                raise ConflictTakeover("another receiver goes on with this upload")
            self.upload.apply(found)
            if found.mark == record.mark:
                return
            # one of ours, whose answer never came

    async def voidDamaged(self) -> list[int]:
        """
        Void the parts that the engine has not as they were recorded.

        @return: their numbers; all, if none can be told.
        """
        upload = self.upload
        assert upload.begin is not None
        key = self._layout.file(upload.begin.path)
        listed = await ListParts(key, upload.begin.uploadId)
        there = set(listed.parts) if isinstance(listed, Parts) else set()
        wrong = [
            each.number for each in upload.parts.values() if (each.number, each.etag) not in there
        ]
        damaged = wrong or list(upload.parts)
        await self.append(void=tuple(damaged))
        return damaged


async def finish(layout: Layout, claim: Claim, *, conditional: bool) -> Finished:
    """
    Complete the upload of a claim, whosever it is.

    @param conditional: whether the engine has a condition for that.
    """
    key = layout.file(claim.path)
    found = await Get(layout.record(claim.token, claim.record))
    commit = _decode(found.body).commit if isinstance(found, Found) else None
    if commit is None:
        return await _ended(layout, claim.token) or Finished.GONE
    there = await Head(key)
    if tokenOf(there) == claim.token:
        return Finished.DONE
    if isinstance(there, Found) and there.etag != claim.replaces:
        return Finished.TAKEN
    condition: Condition = Match(claim.replaces) if claim.replaces else ABSENT
    if not conditional:
        condition = None
    for _ in range(TRIES):
        answer = await Complete(key, claim.upload, commit.parts, condition)
        if not isinstance(answer, Conflict):
            break
        there = await Head(key)
        if tokenOf(there) == claim.token:
            return Finished.DONE
        if isinstance(there, Found) or claim.replaces:
            return Finished.TAKEN
        # a consumer has just taken away whatever was there
    else:
        return Finished.TAKEN
    if isinstance(answer, Done):
        return Finished.DONE
    if isinstance(answer, InvalidPart):
        return Finished.INVALID
    there = await Head(key)
    if tokenOf(there) == claim.token:
        return Finished.DONE
    ended = await _ended(layout, claim.token)
    if ended is not None:
        return ended
    begun = await Get(layout.record(claim.token, 1))
    young = isinstance(begun, Found) and begun.age < UNTOUCHED_SECONDS
    # completed by somebody, and taken away by a consumer; or aborted by a rule of the bucket
    return Finished.DONE if young else Finished.GONE


async def _ended(layout: Layout, token: str) -> Finished | None:
    """
    Return the end of an upload; L{None} if it has none.
    """
    upload = await readLog(layout, token)
    if upload is None or not upload.end:
        return None
    return Finished.DONE if upload.end == PUBLISHED else Finished.GONE


async def clear(layout: Layout, upload: Upload) -> None:
    """
    Remove what an upload that has ended leaves, but for its last record.
    """
    begin, token = upload.begin, upload.token
    assert begin is not None
    if begin.uploadId:
        await Abort(layout.file(begin.path), begin.uploadId)
    if begin.pointer:
        await pointers.over(begin.pointer, token)
    await removeAll(layout.tails(token))
    await removeAll(layout.log(token), layout.record(token, upload.next - 1))


async def forget(layout: Layout, upload: Upload) -> None:
    """
    Remove all traces of an upload that ended long ago.
    """
    if upload.begin is not None and upload.begin.pointer:
        await pointers.forget(upload.begin.pointer, upload.token)
    await removeAll(layout.tails(upload.token))
    await removeAll(layout.log(upload.token))


async def removeAll(prefix: str, but: str = "") -> None:
    """
    Remove the objects whose keys begin with C{prefix}, but for one.
    """
    after = ""
    while True:
        page = await List(prefix, after)
        keys: Sequence[str] = [each.key for each in page.entries if each.key != but]
        for at in range(0, len(keys), READS_AT_ONCE):
            await together(Delete(key) for key in keys[at : at + READS_AT_ONCE])
        if not page.more:
            return
        after = page.entries[-1].key
