"""
The calls that the store makes of an S3 engine, and the answers, as values.

Theory of operation
===================
The cores of this room (L{claims<connpool.transfer.stores.s3.claims>},
L{uploadlog<connpool.transfer.stores.s3.uploadlog>}) are coroutines that await nothing but a
L{Call}, several by L{together}, or a Deferred of what another one of the same process is about
to do.  So whoever runs one decides when and by whom a call is carried out: L{performed} by
signed requests, the tests of the model in memory, one call at a time and in every order.

An answer that a core decides upon is a value.  Three things no core can decide: the engine
cannot be reached or refuses for a while (L{Unavailable<connpool.errors.Unavailable>}), is full
(L{NoSpace<connpool.errors.NoSpace>}), or refuses for good
(L{StoreError<connpool.errors.StoreError>}); these are raised where the call is awaited.  After
any of them the call may have been carried out, or may be later.

A call may be made again by the one who carries it out, because its answer was lost.  So a
L{Conflict} may be by one's own object, and no core believes it without a look.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import attrs
from twisted.internet.defer import Deferred, gatherResults

__all__ = [
    "ABSENT",
    "Abort",
    "Absent",
    "BadDigest",
    "Call",
    "Complete",
    "Condition",
    "Conflict",
    "CreateUpload",
    "Created",
    "Delete",
    "Done",
    "Entry",
    "Found",
    "Get",
    "Head",
    "InvalidPart",
    "List",
    "ListParts",
    "ListUploads",
    "Listed",
    "Looked",
    "Match",
    "Missing",
    "NoSuchUpload",
    "Parts",
    "Piece",
    "Put",
    "PutPart",
    "Requests",
    "Together",
    "Uploads",
    "crcOf",
    "pages",
    "performed",
    "pieces",
    "together",
]

#: Calls of one core that are made at once.
AT_ONCE = 16
#: Bytes of a file that are read at once.
_READ_BYTES = 1 << 20
_A = TypeVar("_A")
_R = TypeVar("_R")


# -- answers ---------------------------------------------------------------------------------


@attrs.frozen
class Done:
    """
    It was carried out.

    @ivar etag: of what was stored, as it came, with its quotes; empty where the engine does
        not tell.
    """

    etag: str = ""


@attrs.frozen
class Found:
    """
    An object, or for a L{Head} all but its content.

    @ivar size: bytes of the whole object, also for a range.
    @ivar modified: Last-Modified, seconds since the epoch, by the engine's clock.
    @ivar date: the time of the answer, by the same clock.
    @ivar metadata: C{x-amz-meta-*}, the names in lower case and without that.
    @ivar body: its bytes, or those of the range.
    @ivar key: as it was asked for.
    """

    etag: str
    size: int
    modified: float
    date: float
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = attrs.field(default=b"", repr=False)
    key: str = ""

    @property
    def age(self) -> float:
        """
        Seconds since it was stored, by the engine's clock.
        """
        return self.date - self.modified


@attrs.frozen
class Missing:
    """
    There is no such object (404 NoSuchKey); it is false.
    """

    def __bool__(self) -> Literal[False]:
        return False


Looked = Found | Missing


@attrs.frozen
class Conflict:
    """
    The condition does not hold (412), or another writer is at it (409).
    """


@attrs.frozen
class NoSuchUpload:
    """
    The engine does not know that multipart upload (any more).
    """


@attrs.frozen
class InvalidPart:
    """
    A part that was named is not there, or has another ETag (InvalidPart, InvalidPartOrder,
    EntityTooSmall).
    """


@attrs.frozen
class BadDigest:
    """
    The engine got other bytes than were sent.
    """


@attrs.frozen
class Created:
    """
    A multipart upload was begun.
    """

    uploadId: str


@attrs.frozen
class Entry:
    """
    An object in a listing.
    """

    key: str
    size: int
    etag: str
    modified: float


@attrs.frozen
class Listed:
    """
    A page of a listing, in the order of the keys' bytes.

    @ivar more: whether the listing goes on after the last of C{entries} and C{prefixes}.
    @ivar date: the time of the answer, by the engine's clock.
    @ivar prefixes: up to and with the delimiter that was asked for: each stands for all keys
        that begin so.
    """

    entries: tuple[Entry, ...]
    more: bool
    date: float
    prefixes: tuple[str, ...] = ()


@attrs.frozen
class Uploads:
    """
    The identifiers of the multipart uploads under way of exactly one key.
    """

    uploadIds: tuple[str, ...]


@attrs.frozen
class Parts:
    """
    Parts that an upload has: number and ETag of each.  A number may come twice, once with an
    ETag that it had before.

    @ivar more: whether there are some after the last of these.
    """

    parts: tuple[tuple[int, str], ...]
    more: bool = False


# -- calls -----------------------------------------------------------------------------------


@attrs.frozen
class Absent:
    """
    The condition that nothing is there: C{If-None-Match: *}.
    """


@attrs.frozen
class Match:
    """
    The condition that what is there has this ETag: C{If-Match}.
    """

    etag: str


ABSENT = Absent()
Condition = Absent | Match | None


@attrs.frozen
class Piece:
    """
    A body that lies in a file.

    @ivar fd: its descriptor, which stays open and unchanged there until the call is over.
    @ivar start: the offset of the first byte in the file.
    @ivar length: in bytes.
    """

    fd: int
    start: int
    length: int

    def __len__(self) -> int:
        return self.length


Body = bytes | Piece


def pieces(body: Body) -> Iterator[bytes]:
    """
    Yield the bytes of a body, some at a time.
    """
    if not isinstance(body, Piece):
        yield body
        return
    at, end = body.start, body.start + body.length
    while at < end and (data := os.pread(body.fd, min(_READ_BYTES, end - at), at)):
        yield data
        at += len(data)


def crcOf(body: Body) -> int:
    """
    Compute the CRC-32 of a body.
    """
    found = 0
    for data in pieces(body):
        found = zlib.crc32(data, found)
    return found


class Call(Generic[_A]):
    """
    Something that is asked of the engine; awaiting it in a core gives the answer.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Call[Any], Any, _A]:
        return cast("_A", (yield self))


@attrs.frozen
class Get(Call[Found | Missing]):
    """
    Read an object.

    @ivar span: the first byte and the one after the last; L{None} for all.
    """

    key: str
    span: tuple[int, int] | None = None


@attrs.frozen
class Head(Call[Found | Missing]):
    """
    Look at an object without its content.
    """

    key: str


@attrs.frozen
class Put(Call[Done | Conflict | BadDigest]):
    """
    Write an object as a whole.

    @ivar metadata: for C{x-amz-meta-*}: names and values are ASCII.
    """

    key: str
    body: Body = attrs.field(repr=False)
    condition: Condition = None
    metadata: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Delete(Call[Done]):
    """
    Remove an object, if it is there.
    """

    key: str


@attrs.frozen
class List(Call[Listed]):
    """
    List keys.  What it says is a hint only: nothing is decided by it.

    @ivar startAfter: the key after which it begins; empty for the first.
    @ivar limit: at most 1,000.
    @ivar delimiter: keys that have it after the prefix are told as one; empty for none.
    """

    prefix: str
    startAfter: str = ""
    limit: int = 1000
    delimiter: str = ""


@attrs.frozen
class ListUploads(Call[Uploads]):
    """
    List the multipart uploads under way of exactly C{key}; a hint only.
    """

    key: str


@attrs.frozen
class ListParts(Call[Parts | NoSuchUpload]):
    """
    List the parts of an upload whose numbers are above C{after}; a hint only.
    """

    key: str
    uploadId: str
    after: int = 0


@attrs.frozen
class CreateUpload(Call[Created]):
    """
    Begin a multipart upload.

    @ivar metadata: that the object will have, as in L{Put}.
    """

    key: str
    metadata: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class PutPart(Call[Done | NoSuchUpload | BadDigest]):
    """
    Store a part; one of the same number is replaced.

    @ivar number: from 1 to 10,000.
    @ivar crc: CRC-32 of the body, as C{zlib.crc32} has it.
    """

    key: str
    uploadId: str
    number: int
    body: Body = attrs.field(repr=False)
    crc: int


@attrs.frozen
class Complete(Call[Done | Conflict | NoSuchUpload | InvalidPart]):
    """
    Make an object of the parts.

    @ivar parts: number, ETag and CRC-32 of each, ascending.
    @ivar condition: where the engine has one for this call; it is no proof against a race.
    """

    key: str
    uploadId: str
    parts: tuple[tuple[int, str, int], ...] = attrs.field(repr=False)
    condition: Condition = None


@attrs.frozen
class Abort(Call[Done]):
    """
    Forget a multipart upload and its parts; also if it is gone.
    """

    key: str
    uploadId: str


@attrs.frozen
class Together(Call[list[Any]]):
    """
    Several calls at once.
    """

    calls: tuple[Call[Any], ...]


async def together(calls: Iterable[Call[_A]]) -> list[_A]:
    """
    Make calls in any order, some at once.

    @return: the answer of each.
    """
    waiting, answers = tuple(calls), []
    for at in range(0, len(waiting), AT_ONCE):
        answers += await Together(waiting[at : at + AT_ONCE])
    return answers


async def pages(prefix: str) -> AsyncIterator[Listed]:
    """
    List all keys, page by page.
    """
    page = await List(prefix)
    yield page
    while page.more:
        page = await List(prefix, page.entries[-1].key)
        yield page


# -- the seam --------------------------------------------------------------------------------


class Requests(Protocol):
    """
    The engine, as the store sees it.
    """

    def perform(self, call: Call[_A], patience: float | None = None) -> Deferred[_A]:
        """
        Carry out a call, again as often as it makes sense.

        @param patience: seconds after which it fails, however little was tried; L{None} for
            those that a transfer can wait.
        @return: fires with the answer; fails with L{Unavailable}, L{NoSpace} or
            L{StoreError}, or because it was cancelled.
        """
        ...

    def trouble(self) -> str | None:
        """
        Return why the engine does not answer, one line that names it and says since when;
        L{None} if it does.
        """
        ...


def performed(
    core: Coroutine[Call[Any], Any, _R], requests: Requests, patience: float | None = None
) -> Deferred[_R]:
    """
    Run a core.

    @param patience: of each call, as in L{Requests.perform}.
    @return: fires with its result, or fails as it does.
    """
    perform: Callable[..., Deferred[Any]] = requests.perform
    if patience is not None:
        perform = partial(perform, patience=patience)
    return Deferred.fromCoroutine(_drive(core, perform))


async def _drive(core: Coroutine[Call[Any], Any, _R], perform: Callable[..., Deferred[Any]]) -> _R:
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            call = core.send(answer) if error is None else core.throw(error)
        except StopIteration as stopped:
            return cast("_R", stopped.value)
        answer = error = None
        try:
            if isinstance(call, Together):
                answer = await _all([perform(each) for each in call.calls])
            elif isinstance(call, Deferred):
                answer = await call
            else:
                answer = await perform(call)
        except GeneratorExit:
            core.close()
            raise
        except BaseException as caught:
            error = caught


async def _all(waiting: list[Deferred[Any]]) -> list[Any]:
    gathered = gatherResults(waiting, consumeErrors=True)
    try:
        return list(await gathered)
    except BaseException as error:
        first = getattr(error, "subFailure", None)
        raise (first.value if first is not None else error) from None
