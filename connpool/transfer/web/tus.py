"""
Uploads that go on: tus 1.0.0, and C{PUT} with C{Content-Range} to the URL of an upload.
"""

from __future__ import annotations

import base64
import re
import secrets
from contextlib import suppress
from email.utils import formatdate

import attrs

from connpool.errors import (
    Cancelled,
    DigestMismatch,
    QuotaExceeded,
    StoreError,
    TransferError,
    Unsupported,
)
from connpool.transfer.names import INTERNAL
from connpool.transfer.receive.policy import Policy
from connpool.transfer.records import Offer
from connpool.transfer.web.answers import Answer, Fields, Problem, accountOf, jsonAnswer, problem
from connpool.transfer.web.creations import noUpload
from connpool.transfer.web.digests import TUS_ALGORITHMS, Digests, wantedDigest, wholeSHA256
from connpool.transfer.web.head import MAX_LENGTH, Head
from connpool.transfer.web.intake import Notes
from connpool.transfer.web.put import rangeOf, stored
from connpool.transfer.web.request import Request
from connpool.transfer.web.target import Kind, locate
from connpool.transfer.web.uploads import Upload, Uploads

__all__ = ["isTus", "resume", "tusOptions"]

_VERSION = "1.0.0"
_SPOKEN = ("Tus-Resumable", _VERSION)
_EXTENSIONS = (
    "creation,creation-with-upload,creation-defer-length,termination,checksum,checksum-trailer,"
    "expiration"
)
_CONTENT_TYPE = b"application/offset+octet-stream"

_OWN = {
    *(b"tus-resumable", b"upload-length", b"upload-defer-length"),
    *(b"upload-metadata", b"upload-concat"),
}
_NUMBER = re.compile(rb"[0-9]{1,19}")
_DECIMAL = re.compile(rb"[0-9]{1,13}")


def isTus(head: Head) -> bool:
    """
    Tell whether a C{POST} to a directory is meant to create an upload.
    """
    return not _OWN.isdisjoint(head.fields) or _CONTENT_TYPE in head.all(b"content-type")


def tusOptions(policy: Policy) -> Fields:
    """
    @return: the fields that tell a client of tus about this receiver.
    """
    fields = [
        _SPOKEN,
        ("Tus-Version", _VERSION),
        ("Tus-Extension", _EXTENSIONS),
        ("Tus-Checksum-Algorithm", ",".join(TUS_ALGORITHMS)),
    ]
    if policy.maxFileSize is not None:
        fields.append(("Tus-Max-Size", str(policy.maxFileSize)))
    return fields


async def resume(uploads: Uploads, request: Request) -> Answer:
    """
    Create an upload, tell about one, take bytes of it, or remove it.
    """
    method = request.head.method
    asks = method in {"HEAD", "GET"}
    try:
        if request.target.kind is not Kind.UPLOAD:
            return await _create(uploads, request)
        if method == "POST":
            # for clients whose libraries have no PATCH
            method = (request.head.one(b"x-http-method-override") or b"").decode("latin-1")
            if method not in {"PATCH", "DELETE"}:
                raise Problem(405, "an upload is gone on with by PATCH", "unsupported")
        return await _use(uploads, request, method)
    except TransferError as e:
        why = e
    # clients begin anew after most errors of a request that changes nothing, but wait after 423
    passes = why.retryable or isinstance(why, QuotaExceeded | StoreError)
    if isinstance(why, DigestMismatch) and not asks:
        why = Problem(460, str(why), why.code)
    elif why.code == "busy" or (asks and passes):
        why = Problem(423, str(why), why.code)
    answer = problem(why, request.head.wantsPage, upload=True)
    return attrs.evolve(answer, fields=[*answer.fields, _SPOKEN])


async def _create(uploads: Uploads, request: Request) -> Answer:
    """
    Create an upload, with its first bytes if the request brings some.
    """
    head = request.head
    _verifyVersion(head)
    if not uploads.supported:
        raise Unsupported("the store of this receiver takes whole files only; use PUT")
    if head.all(b"upload-concat"):
        raise Unsupported("uploads are not put together here; send the file as one upload")
    size, deferred = _number(head, "Upload-Length"), head.one(b"upload-defer-length")
    if deferred not in {None, b"1"} or (size is None) is (deferred is None):
        raise Problem(400, "say Upload-Length: BYTES, or Upload-Defer-Length: 1")
    if head.length != 0:
        _verifyContent(head)
    digests = Digests.ofBody(head)
    upload = await uploads.create(request, _offerOf(request, size), digests)
    offset = 0 if upload.receipt is None else upload.receipt.size
    if head.length != 0 and upload.receipt is None:
        try:
            offset = await upload.append(request, 0, digests)
        except TransferError as e:
            # nobody but us knows its URL
            with suppress(TransferError):
                await upload.remove(e)
            raise
    path = f"{INTERNAL}/u/{upload.token.text}"
    location = locate(path, request.target.depth, request.settings.url)
    fields = [("Location", location), *_state(upload, offset)]
    return Answer(201, fields) if upload.receipt is None else _told(201, request, upload, fields)


def _offerOf(request: Request, size: int | None) -> Offer:
    head = request.head
    metadata = head.one(b"upload-metadata") or b""
    found = _readMetadata(metadata)
    transferId = secrets.token_hex(16)
    names = (found.get(each) for each in ("relativePath", "filename", "name"))
    name = next((each for each in names if each and each != b"null"), transferId.encode())
    modified = None
    for key, unit in (("lastModified", 10**6), ("mtime", 10**9)):
        if _DECIMAL.fullmatch(found.get(key, b"")):
            modified = int(found[key]) * unit
    whole = request.settings.sha256 or wantedDigest(head) == "sha-256"
    notes = Notes(metadata.decode("ascii"), whole=whole)
    return request.offer(
        name, transferId=transferId, size=size, modified=modified, metadata=notes.text
    )


async def _use(uploads: Uploads, request: Request, method: str) -> Answer:
    head = request.head
    if method in {"PATCH", "DELETE"}:
        _verifyVersion(head)
    if not uploads.supported:
        raise noUpload()
    upload = await uploads.find(request.target.token, request.sender)
    if method == "DELETE":
        await upload.remove(Cancelled("the client has given the upload up"))
        return Answer(204, [_SPOKEN])
    if method == "PATCH":
        _verifyContent(head)
        at = _number(head, "Upload-Offset")
        if at is None:
            raise Problem(400, "say with Upload-Offset where the bytes belong")
        size = _number(head, "Upload-Length")
        offset = await upload.append(request, at, Digests.ofBody(head), size=size)
        return Answer(204, _state(upload, offset))
    if method == "PUT":
        place = rangeOf(head)
        if place is None:
            raise Problem(400, "to an upload, PUT brings Content-Range: bytes FIRST-LAST/SIZE")
        first, _, size = place
        sha256, digests = wholeSHA256(head), Digests.ofBody(head)
        offset = await upload.append(request, first, digests, size=size, sha256=sha256)
        receipt = upload.receipt
        if receipt is None:
            return Answer(204, _state(upload, offset))
        known = {"sha-256": bytes.fromhex(receipt.sha256)} if receipt.sha256 else {}
        return stored(request, receipt, known)
    offset = await upload.offset()
    size, metadata = upload.offer.size, upload.notes.metadata
    length = ("Upload-Defer-Length", "1") if size is None else ("Upload-Length", str(size))
    fields = [*_state(upload, offset), length]
    if metadata:
        fields.append(("Upload-Metadata", metadata))
    return _told(200, request, upload, fields, offset)


def _told(status: int, request: Request, upload: Upload, fields: Fields, offset: int = 0) -> Answer:
    """
    @return: an upload in JSON, with its receipt if it is published.
    """
    receipt, account = upload.receipt, None
    if receipt is not None:
        offset, account = receipt.size, accountOf(receipt, request.sender.identity)
    told = {"offset": offset, "length": upload.offer.size, "receipt": account}
    return jsonAnswer(status, told, fields)


def _readMetadata(value: bytes) -> dict[str, bytes]:
    """
    Return the keys of C{Upload-Metadata}, each with its value, which is in base64.
    """
    found: dict[str, bytes] = {}
    for pair in value.split(b",") if value.strip() else ():
        key, _, coded = pair.strip().partition(b" ")
        name = key.decode("ascii", "replace")
        try:
            decoded = base64.b64decode(coded, validate=True)
        except ValueError:
            raise Problem(400, "the values of Upload-Metadata are base64") from None
        if not key or not key.isascii() or name in found:
            raise Problem(400, "the keys of Upload-Metadata are ASCII, and each comes once")
        found[name] = decoded
    return found


def _number(head: Head, name: str) -> int | None:
    value = head.one(name.lower().encode())
    if value is None:
        return None
    if not _NUMBER.fullmatch(value) or int(value) > MAX_LENGTH:
        raise Problem(400, f"{name} is one decimal number below 2^63")
    return int(value)


def _verifyVersion(head: Head) -> None:
    if head.one(b"tus-resumable") != _VERSION.encode():
        why, fields = f"Tus-Resumable: {_VERSION} is spoken here", [("Tus-Version", _VERSION)]
        raise Problem(412, why, "unsupported", fields=fields)


def _verifyContent(head: Head) -> None:
    if head.one(b"content-type") != _CONTENT_TYPE:
        raise Problem(415, f"bytes of an upload have the type {_CONTENT_TYPE.decode()}")


def _state(upload: Upload, offset: int) -> list[tuple[str, str]]:
    fields = [_SPOKEN, ("Upload-Offset", str(offset))]
    expires = upload.expires
    if expires is not None:
        fields.append(("Upload-Expires", formatdate(expires, usegmt=True)))
    return fields
