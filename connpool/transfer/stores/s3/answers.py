"""
The answers of an S3 engine, read: HTTP and XML to the values of L{calls}.

An engine says "no" in many ways: by a status, by a code in an XML body, or by an error in the
body of a 200.  Here all of them become an answer of the call, L{Again} for those that a later
try may change, or an error for good.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import attrs

from connpool.errors import NoSpace, StoreError
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.replies import Reply

__all__ = ["MOST_XML_BYTES", "Again", "EngineError", "answerOf", "errorOf", "parseXML", "secondsOf"]

#: Bytes of XML that are parsed at most, and how deep its elements may lie.
MOST_XML_BYTES, _MOST_DEPTH = 1 << 20, 16

_METADATA = "x-amz-meta-"
#: Characters of an engine's own words that errors show.
_SHOWN_LENGTH = 200

_CONFLICTS = {"PreconditionFailed", "ConditionalRequestConflict"}
_BAD_DIGESTS = {
    *("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "ChecksumMismatch"),
    *("XAmzContentSHA256Mismatch", "InvalidChecksum"),
}
_BAD_PARTS = {"InvalidPart", "InvalidPartOrder", "EntityTooSmall"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "InsufficientCapacity"}
_EXPIRED = {
    *("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"),
    *("InvalidAccessKeyId", "AccessDenied", "SignatureDoesNotMatch", "Forbidden"),
}
_THROTTLED = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
}
_PASSING = {
    *("InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"),
    *("NoSuchBucket", "BusyError", "XMinioServerNotInitialized"),
}


class Again(Exception):
    """
    An answer that says nothing about the call: a later try may have one.

    @ivar throttled: whether fewer requests at once would help.
    @ivar refused: whether other keys would help.
    @ivar skewed: whether the engine found our clock wrong.
    @ivar after: seconds to wait at least, as the engine asked for.
    """

    def __init__(
        self,
        why: str,
        *,
        throttled: bool = False,
        refused: bool = False,
        skewed: bool = False,
        after: float = 0.0,
    ) -> None:
        super().__init__(why)
        self.throttled = throttled
        self.refused = refused
        self.skewed = skewed
        self.after = after


class NotXML(ValueError):
    """
    A body is no XML that an engine may send.
    """


def parseXML(body: bytes) -> Element:
    """
    Parse a small document without a DTD; names lose their namespaces.

    @raise NotXML: it is none.
    """
    if len(body) > MOST_XML_BYTES:
        raise NotXML(f"XML of more than {MOST_XML_BYTES} bytes")
    builder = TreeBuilder()
    depth = 0

    def start(name: str, _: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MOST_DEPTH:
            raise NotXML(f"XML more than {_MOST_DEPTH} deep")
        builder.start(name.rpartition("}")[2], {})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name.rpartition("}")[2])

    def refuse(*_: Any) -> None:
        raise NotXML("XML with a DTD")

    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(body.lstrip(), True)  # spaces come while an engine works
        return builder.close()
    except (expat.ExpatError, LookupError, AssertionError) as e:
        raise NotXML(f"no XML: {e}") from None


@attrs.frozen
class EngineError:
    """
    An engine's C{<Error>}.

    @ivar code: its word for it; made of the status where it said none.
    @ivar text: status, code and message, fit for one line.
    """

    code: str
    text: str


def errorOf(reply: Reply) -> EngineError:
    """
    Return the error of an answer that is one.
    """
    code = message = ""
    if reply.body:
        try:
            root = parseXML(reply.body)
        except NotXML:
            pass
        else:
            code = (root.findtext("Code") or root.findtext("Error/Code") or "").strip()
            message = (root.findtext("Message") or root.findtext("Error/Message") or "").strip()
    code = code or {404: "NotFound", 412: "PreconditionFailed", 507: "InsufficientStorage"}.get(
        reply.status, ""
    )
    words = " ".join(f"{reply.status} {code} {message}".split())
    text = "".join(c if c.isprintable() else "?" for c in words)[:_SHOWN_LENGTH]
    return EngineError(code, text)


def secondsOf(text: str) -> float:
    """
    Return seconds since the epoch of an HTTP date or one of ISO 8601; 0 for neither.
    """
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return parse(text).timestamp()
        except (ValueError, TypeError, OverflowError):
            continue
    return 0.0


def answerOf(call: calls.Call[Any], reply: Reply) -> Any:
    """
    Return what C{reply} says of C{call}.

    @raise Again: nothing; it is to be made again.
    @raise NoSpace, StoreError: it cannot be carried out.
    """
    if 200 <= reply.status < 300:
        return _READERS[type(call)](call, reply)
    return _refused(call, errorOf(reply), reply)


def _refused(call: calls.Call[Any], error: EngineError, reply: Reply) -> Any:
    status, code = reply.status, error.code
    conditional = getattr(call, "condition", None) is not None
    if status in {301, 302, 303, 307, 308}:
        region = reply.headers.get("x-amz-bucket-region", "")
        named = f"; write region={region}" if region.replace("-", "").isalnum() else ""
        raise StoreError(f"the engine sends us elsewhere, and nothing signed goes there{named}")
    if status == 412 or code in _CONFLICTS or (status == 409 and conditional):
        return calls.Conflict()
    if code == "NoSuchUpload" and not isinstance(call, calls.Abort):
        if isinstance(call, calls.PutPart | calls.ListParts | calls.Complete):
            return calls.NoSuchUpload()
        raise Again(error.text)
    if status == 404 and code != "NoSuchBucket":
        return _missing(call, error)
    if code in _BAD_DIGESTS and isinstance(call, calls.Put | calls.PutPart):
        return calls.BadDigest()
    if code in _BAD_PARTS and isinstance(call, calls.Complete):
        return calls.InvalidPart()
    if status == 416 and isinstance(call, calls.Get):
        size = reply.headers.get("content-range", "").rpartition("/")[2]
        return _found(call, reply, int(size) if size.isascii() and size.isdigit() else 0, b"")
    if code in _FULL or status == 507:
        raise NoSpace(f"the engine has no room: {error.text}")
    if code == "RequestTimeTooSkewed":
        raise Again(error.text, skewed=True)
    if code in _EXPIRED or status in {401, 403}:
        raise Again(error.text, refused=True)
    if status in {429, 503} or code in _THROTTLED:
        throttled = status == 429 or code in _THROTTLED
        raise Again(error.text, throttled=throttled, after=_after(reply))
    if (status >= 500 and status != 501) or status in {408, 409} or code in _PASSING:
        raise Again(error.text)
    raise StoreError(f"the engine refuses {type(call).__name__}: {error.text}")


def _missing(call: calls.Call[Any], error: EngineError) -> Any:
    if isinstance(call, calls.Get | calls.Head):
        return calls.Missing()
    if isinstance(call, calls.Delete | calls.Abort):
        return calls.Done()
    if isinstance(call, calls.PutPart | calls.ListParts | calls.Complete):
        return calls.NoSuchUpload()
    if isinstance(call, calls.Put) and isinstance(call.condition, calls.Match):
        return calls.Conflict()  # AWS: If-Match on what is not there
    raise Again(error.text)


def _after(reply: Reply) -> float:
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0.0


def _document(reply: Reply) -> Element:
    try:
        return parseXML(reply.body)
    except NotXML as e:
        raise Again(f"{reply.status}, but {e}") from None


def _number(text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise Again(f"a listing has {text!r} for a number") from None


# -- one reader for each call ----------------------------------------------------------------


def _readDone(_: Any, reply: Reply) -> calls.Done:
    return calls.Done(reply.headers.get("etag", ""))


def _found(call: calls.Get | calls.Head, reply: Reply, size: int, body: bytes) -> calls.Found:
    headers = reply.headers
    return calls.Found(
        etag=headers.get("etag", ""),
        size=size,
        modified=secondsOf(headers.get("last-modified", "")),
        date=secondsOf(headers.get("date", "")),
        metadata={
            name[len(_METADATA) :]: value
            for name, value in headers.items()
            if name.startswith(_METADATA)
        },
        body=body,
        key=call.key,
    )


def _readGet(call: calls.Get, reply: Reply) -> calls.Found:
    size = len(reply.body)
    if reply.status == 206:
        total = reply.headers.get("content-range", "").rpartition("/")[2]
        return _found(call, reply, _number(total), reply.body)
    if call.span is not None:
        # an engine may send all for a range
        start, end = call.span
        return _found(call, reply, size, reply.body[start:end])
    return _found(call, reply, size, reply.body)


def _readHead(call: calls.Head, reply: Reply) -> calls.Found:
    return _found(call, reply, _number(reply.headers.get("content-length")), b"")


def _readList(call: calls.List, reply: Reply) -> calls.Listed:
    root = _document(reply)
    entries = [
        calls.Entry(
            key=_decoded(root, each.findtext("Key") or ""),
            size=_number(each.findtext("Size")),
            etag=each.findtext("ETag") or "",
            modified=secondsOf(each.findtext("LastModified") or ""),
        )
        for each in root.iter("Contents")
    ]
    prefixes = tuple(
        _decoded(root, each.findtext("Prefix") or "") for each in root.iter("CommonPrefixes")
    )
    more = root.findtext("IsTruncated") == "true"
    last = entries[-1].key if entries else ""
    if more and not prefixes and last.encode() <= call.startAfter.encode():
        # who reads page after page would do so for ever
        raise Again("a listing that has more does not go on")
    return calls.Listed(tuple(entries), more, secondsOf(reply.headers.get("date", "")), prefixes)


def _decoded(root: Element, text: str) -> str:
    if root.findtext("EncodingType") != "url":
        return text
    return unquote(text.replace("+", " "))


def _readUploads(call: calls.ListUploads, reply: Reply) -> calls.Uploads:
    root = _document(reply)
    return calls.Uploads(
        tuple(
            each.findtext("UploadId") or ""
            for each in root.iter("Upload")
            if _decoded(root, each.findtext("Key") or "") == call.key
        )
    )


def _readParts(call: calls.ListParts, reply: Reply) -> calls.Parts:
    root = _document(reply)
    parts = tuple(
        (_number(each.findtext("PartNumber")), each.findtext("ETag") or "")
        for each in root.iter("Part")
    )
    more = root.findtext("IsTruncated") == "true" and any(n > call.after for n, _ in parts)
    return calls.Parts(parts, more)


def _readCreated(_: Any, reply: Reply) -> calls.Created:
    uploadId = _document(reply).findtext("UploadId")
    if not uploadId:
        raise Again("the engine named no upload")
    return calls.Created(uploadId)


def _readCompleted(call: calls.Complete, reply: Reply) -> Any:
    root = _document(reply)
    if root.tag == "Error":
        # a 200 was sent before it was carried out: as a status of its own
        error = errorOf(reply)
        status = 412 if error.code in _CONFLICTS else 400
        status = 500 if error.code in _PASSING else status
        return _refused(call, error, attrs.evolve(reply, status=status))
    return calls.Done(root.findtext("ETag") or "")


_READERS: dict[type, Callable[[Any, Reply], Any]] = {
    calls.Get: _readGet,
    calls.Head: _readHead,
    calls.Put: _readDone,
    calls.PutPart: _readDone,
    calls.Delete: _readDone,
    calls.Abort: _readDone,
    calls.List: _readList,
    calls.ListUploads: _readUploads,
    calls.ListParts: _readParts,
    calls.CreateUpload: _readCreated,
    calls.Complete: _readCompleted,
}
