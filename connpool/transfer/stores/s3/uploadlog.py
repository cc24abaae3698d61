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
its owner or by whoever meets its claim.  A part that the engine has not as it was recorded is
voided, and with it the commit.

C{end} is written before anything is removed, so nobody who sleeps through that believes that
its upload is alive; this record stays for as long as partials are kept.  It tells an upload
that was completed, and whose file a consumer took away, from one that was given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import msgspec

from connpool.errors import ConflictTakeover, Unavailable
from connpool.transfer.digests import digestNamed
from connpool.transfer.names import RelativeName
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.calls import ABSENT, Done, Get, Put
from connpool.transfer.stores.s3.layout import Layout, decoded, newToken

__all__ = ["Begin", "Commit", "Part", "Record", "Tail", "Upload", "readLog", "takeOver"]

#: Records after which one holds everything.
WHOLE_RECORDS = 256
#: The ends of an upload: published, or given up.
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


Spans = tuple[tuple[int, int, bytes], ...]


@attrs.frozen
class Tail:
    """
    Bytes of a part that is not full.

    @ivar key: of the object that has them, one after the other.
    @ivar spans: the beginning and the end of each piece in the file, and its digest.
    """

    number: int
    key: str
    spans: Spans

    def intact(self, body: bytes, algorithm: str) -> Iterator[tuple[int, bytes, bytes]]:
        """
        Yield the beginning, the bytes and the digest of each piece that is what it was.
        """
        digest = digestNamed(algorithm)
        for start, end, expected in self.spans:
            data, body = body[: end - start], body[end - start :]
            if len(data) == end - start and digest.of(data) == expected:
                yield start, data, expected


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


class Upload:
    """
    An upload, as its log says, in the hand of one holder, who makes one call at a time.

    @ivar begin: of the first record.
    @ivar next: number of the next record.
    @ivar epoch: of the holder; of the newest one while the log is read.
    @ivar changed: when the last record that was read was written, by the engine's clock.
    """

    begin: Begin

    def __init__(self, layout: Layout, token: str) -> None:
        self._layout = layout
        self.token = token
        self.next = self.base = 1
        self.epoch = 0
        self.parts: dict[int, Part] = {}
        self.tails: dict[int, Tail] = {}
        self.commit: Commit | None = None
        self.commitAt = 0
        self.end = ""
        self.changed = 0.0

    def apply(self, record: Record) -> None:
        number, self.next = self.next, self.next + 1
        if record.whole:
            self.parts, self.tails = {}, {}
            self.commit, self.commitAt = None, 0
            self.base = number
        if record.begin is not None:
            self.begin = record.begin
        for voided in record.void:
            self.parts.pop(voided, None)
            self.commit, self.commitAt = None, 0
        for part in record.parts:
            self.parts[part.number] = part
            self.tails.pop(part.number, None)
        self.tails |= {tail.number: tail for tail in record.tails}
        if record.commit is not None:
            self.commit, self.commitAt = record.commit, record.commitAt or number
        self.end = record.end or self.end

    def whole(self) -> Record:
        """
        Return a record that holds everything.
        """
        return Record(
            *(self.epoch, newToken(), self.begin, tuple(self.parts.values())),
            tails=tuple(self.tails.values()),
            commit=self.commit,
            commitAt=self.commitAt,
            whole=True,
            base=self.next,
        )

    async def put(self, record: Record) -> Record:
        """
        Append a record, unless its number has one.

        @return: the one that is there, which is not taken in yet.
        """
        key = self._layout.record(self.token, self.next)
        if not isinstance(await Put(key, msgspec.json.encode(record), ABSENT), Done):
            found = await Get(key)
            if not found:
                raise Unavailable("the engine lost a record of an upload; send the file again")
            record = decoded(found, Record)
        return record

    async def append(self, **values: Any) -> None:
        """
        Append a record.

        @param values: attributes of L{Record}.
        @raise ConflictTakeover: somebody else has the upload now.
        """
        mark = newToken()
        await self._append(lambda: Record(self.epoch, mark, base=self.base, **values))
        if self.next - self.base >= WHOLE_RECORDS:
            await self._append(self.whole)

    async def close(self, how: str, commit: Commit | None = None) -> None:
        """
        Append the end.

        @param how: C{PUBLISHED} or C{REMOVED}.
        @param commit: what its sender got.
        @raise ConflictTakeover: somebody else has the upload now.
        """
        nothing: dict[str, Any] = {"parts": (), "tails": ()}
        await self._append(lambda: attrs.evolve(self.whole(), commit=commit, end=how, **nothing))

    async def _append(self, make: Callable[[], Record]) -> None:
        while True:
            record = make()
            found = await self.put(record)
            if found.epoch != self.epoch:
                raise ConflictTakeover("another receiver goes on with this upload")
            self.apply(found)
            if found.mark == record.mark:
                return
            # one of ours, whose answer never came

    async def voidDamaged(self) -> None:
        """
        Void the parts that the engine has not as they were recorded; all, if none can be told.
        """
        key = self._layout.file(self.begin.path)
        there: set[tuple[int, str]] = set()
        more = True
        while more:
            after = max((number for number, _ in there), default=0)
            listed = await calls.ListParts(key, self.begin.uploadId, after)
            more = isinstance(listed, calls.Parts) and listed.more
            if isinstance(listed, calls.Parts):
                there |= {(number, etag.strip('"')) for number, etag in listed.parts}
        parts = self.parts.values()
        wrong = [each.number for each in parts if (each.number, each.etag.strip('"')) not in there]
        await self.append(void=tuple(wrong or self.parts))


async def readLog(layout: Layout, token: str) -> Upload | None:
    """
    Read a log to its end.

    @return: L{None} if there is none.
    """
    last = 1
    async for page in calls.pages(layout.record(token)):
        for entry in page.entries[-1:]:
            last = int(entry.key.rpartition("/")[2])
    upload, tail = Upload(layout, token), []
    while found := await Get(layout.record(token, last)):
        tail.append(decoded(found, Record))
        upload.changed = found.modified
        last += 1
    if not tail:
        return None
    upload.next = tail[0].base
    numbers = range(upload.next, last - len(tail))
    for older in await calls.together(Get(layout.record(token, number)) for number in numbers):
        if not older:
            return None  # the leavings of one that ended
        upload.apply(decoded(older, Record))
    for record in tail:
        upload.apply(record)
    upload.epoch = tail[-1].epoch
    return upload if hasattr(upload, "begin") else None


async def takeOver(layout: Layout, token: str) -> Upload | None:
    """
    Become the holder of an upload.

    @return: its state; L{None} if there is none that goes on.
    """
    upload = await readLog(layout, token)
    while upload is not None and not upload.end:
        upload.epoch += 1
        record = upload.whole()
        found = await upload.put(record)
        upload.apply(found)
        upload.epoch = found.epoch
        if found.mark == record.mark:
            return upload
    return None
