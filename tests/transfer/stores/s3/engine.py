"""
An S3 engine in memory: linearizable, but for CompleteMultipartUpload, which first looks and then
writes.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from bisect import bisect_left, bisect_right, insort
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred, maybeDeferred

from connpool.transfer.stores.s3.calls import (
    ABSENT,
    Abort,
    BadDigest,
    Complete,
    Conflict,
    Created,
    CreateUpload,
    Delete,
    Done,
    Entry,
    Found,
    Get,
    Head,
    InvalidPart,
    List,
    Listed,
    ListParts,
    ListUploads,
    Match,
    Missing,
    NoSuchUpload,
    Parts,
    Piece,
    Put,
    PutPart,
    Uploads,
)
from connpool.transfer.stores.s3.claims import TOKEN

#: Parts in a page of a listing.
PARTS_LISTED = 2


@attrs.define
class Object:
    body: bytes
    etag: str
    metadata: dict[str, str]
    modified: float


@attrs.define
class Multipart:
    key: str
    metadata: dict[str, str]
    parts: dict[int, tuple[str, bytes]] = attrs.field(factory=dict)


class Sorted(dict[str, Any]):
    """
    A dictionary that knows its keys in order.

    @ivar order: the keys.
    """

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self:
            insort(self.order, key)
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        del self.order[bisect_left(self.order, key)]


def etagOf(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def bytesOf(body: bytes | Piece) -> bytes:
    if isinstance(body, bytes):
        return body
    data = os.pread(body.fd, body.length, body.start)
    assert len(data) == body.length
    return data


class MemoryEngine:
    """
    The engine; C{perform} carries out at once.

    @ivar now: its clock.
    @ivar wrote: called with key, the object that was there, and the one that is, after each
        change of an object.
    @ivar conditional: whether Complete has a condition.
    @ivar calls: how many of each kind were made.
    """

    def __init__(self, *, conditional: bool = True) -> None:
        self.now = 1_000_000.0
        self.conditional = conditional
        self.objects: dict[str, Object] = Sorted()
        self.uploads: dict[str, Multipart] = {}
        #: all that were begun, by key
        self.named: dict[str, list[str]] = {}
        self.numbers: dict[str, int] = {}
        self.wrote: Any = lambda key, before, after: None
        self.calls: dict[str, int] = {}
        self.down: Exception | None = None

    def perform(self, call: Any, patience: float | None = None) -> Deferred[Any]:
        return maybeDeferred(self._perform, call)

    def trouble(self) -> str | None:
        return None if self.down is None else str(self.down)

    def _perform(self, call: Any) -> Any:
        self.calls[type(call).__name__] = self.calls.get(type(call).__name__, 0) + 1
        if self.down is not None:
            raise self.down
        return self.carryOut(call)

    def carryOut(self, call: Any) -> Any:
        """
        Do it, all steps.
        """
        begun = self.begin(call)
        return self.end(call) if begun is None else begun

    def begin(self, call: Any) -> Any:
        """
        The first step of a call.

        @return: L{None} if there is a second one.
        """
        if not isinstance(call, Complete):
            return getattr(self, f"_{type(call).__name__}")(call)
        upload = self.uploads.get(call.uploadId)
        if upload is None or upload.key != call.key:
            return NoSuchUpload()
        if self.conditional and not self._holds(call.key, call.condition):
            return Conflict()
        return None

    def end(self, call: Complete) -> Any:
        """
        The second step of a Complete, which looks at no condition any more.
        """
        upload = self.uploads.get(call.uploadId)
        if upload is None:
            return NoSuchUpload()
        if [upload.parts.get(number, ("",))[0] for number, *_ in call.parts] != [
            etag for _, etag, _ in call.parts
        ]:
            return InvalidPart()
        del self.uploads[call.uploadId]
        body = b"".join(upload.parts[number][1] for number, *_ in call.parts)
        etags = "".join(etag for _, etag, _ in call.parts)
        return Done(
            self._set(call.key, body, f"{etagOf(etags.encode())}-{len(etags)}", upload.metadata)
        )

    def _set(self, key: str, body: bytes, etag: str, metadata: Any) -> str:
        before = self.objects.get(key)
        self.objects[key] = Object(body, etag, dict(metadata), self.now)
        self.wrote(key, before, self.objects[key])
        return etag

    def _holds(self, key: str, condition: Any) -> bool:
        there = self.objects.get(key)
        if condition is None:
            return True
        if condition is ABSENT:
            return there is None
        assert isinstance(condition, Match)
        return there is not None and there.etag == condition.etag

    def _found(self, call: Any, body: bytes) -> Found | Missing:
        there = self.objects.get(call.key)
        if there is None:
            return Missing()
        return Found(
            *(there.etag, len(there.body), there.modified, self.now, there.metadata, body),
            key=call.key,
        )

    def _Get(self, call: Get) -> Found | Missing:
        there = self.objects.get(call.key)
        body = b"" if there is None else there.body
        return self._found(call, body if call.span is None else body[slice(*call.span)])

    def _Head(self, call: Head) -> Found | Missing:
        return self._found(call, b"")

    def _Put(self, call: Put) -> Any:
        if not self._holds(call.key, call.condition):
            return Conflict()
        body = bytesOf(call.body)
        return Done(self._set(call.key, body, etagOf(body), call.metadata))

    def _Delete(self, call: Delete) -> Any:
        before = self.objects.get(call.key)
        if before is not None:
            del self.objects[call.key]
            self.wrote(call.key, before, None)
        return Done()

    def _List(self, call: List) -> Listed:
        order = cast("Sorted", self.objects).order
        start = max(bisect_left(order, call.prefix), bisect_right(order, call.startAfter))
        keys: list[str] = []
        for at in range(start, len(order)):
            if not order[at].startswith(call.prefix) or len(keys) > call.limit:
                break
            key = order[at]
            if call.delimiter and (end := key.find(call.delimiter, len(call.prefix))) >= 0:
                key = key[: end + 1]
            if key not in keys[-1:]:
                keys.append(key)
        shown = tuple(
            Entry(k, len(self.objects[k].body), self.objects[k].etag, self.objects[k].modified)
            for k in keys[: call.limit]
            if not self._stands(k, call)
        )
        prefixes = tuple(k for k in keys[: call.limit] if self._stands(k, call))
        return Listed(shown, len(keys) > call.limit, self.now, prefixes)

    def _stands(self, key: str, call: List) -> bool:
        return bool(call.delimiter) and call.delimiter in key[len(call.prefix) :]

    def _ListUploads(self, call: ListUploads) -> Uploads:
        return Uploads(tuple(i for i in self.named.get(call.key, ()) if i in self.uploads))

    def _ListParts(self, call: ListParts) -> Any:
        upload = self.uploads.get(call.uploadId)
        if upload is None:
            return NoSuchUpload()
        parts = [(n, etag) for n, (etag, _) in sorted(upload.parts.items()) if n > call.after]
        return Parts(tuple(parts[:PARTS_LISTED]), len(parts) > PARTS_LISTED)

    def _CreateUpload(self, call: CreateUpload) -> Created:
        # not by the order of all: that of receivers that know nothing of each other says nothing
        token = call.metadata.get(TOKEN, "")
        self.numbers[token] = self.numbers.get(token, 0) + 1
        uploadId = f"upload{token}-{self.numbers[token]}"
        self.named.setdefault(call.key, []).append(uploadId)
        self.uploads[uploadId] = Multipart(call.key, dict(call.metadata))
        return Created(uploadId)

    def _PutPart(self, call: PutPart) -> Any:
        upload = self.uploads.get(call.uploadId)
        if upload is None:
            return NoSuchUpload()
        body = bytesOf(call.body)
        if zlib.crc32(body) != call.crc:
            return BadDigest()
        upload.parts[call.number] = etagOf(body), body
        return Done(etagOf(body))

    def _Abort(self, call: Abort) -> Any:
        self.uploads.pop(call.uploadId, None)
        return Done()
