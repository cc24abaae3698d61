"""
Uploads that go on: tus 1.0.0, and C{PUT} with C{Content-Range} to the URL of an upload.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from contextlib import suppress
from email.utils import formatdate
from typing import Any

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
from connpool.transfer.web.answers import Answer, accountOf, jsonAnswer, problem
from connpool.transfer.web.creations import noUpload
from connpool.transfer.web.digests import TUS_ALGORITHMS, digestsOfBody, wantedDigest, wholeSHA256
from connpool.transfer.web.fields import rangeOf
from connpool.transfer.web.gate import Sender
from connpool.transfer.web.head import MAX_LENGTH, Head
from connpool.transfer.web.intake import Notes
from connpool.transfer.web.problems import Fields, Problem
from connpool.transfer.web.put import stored
from connpool.transfer.web.request import Request
from connpool.transfer.web.target import locate
from connpool.transfer.web.uploads import Upload, Uploads

__all__ = ["createUpload", "isTus", "tusOptions", "useUpload"]

VERSION = "1.0.0"
EXTENSIONS = (
    "creation,creation-with-upload,creation-defer-length,termination,checksum,checksum-trailer,"
    "expiration"
)
CONTENT_TYPE = b"application/offset+octet-stream"

_OWN = {
    b"tus-resumable",
    b"upload-length",
    b"upload-defer-length",
    b"upload-metadata",
    b"upload-concat",
}
_NUMBER = re.compile(rb"[0-9]{1,19}")
_DECIMAL = re.compile(rb"[0-9]{1,13}")


def isTus(head: Head) -> bool:
    """
    Tell whether a C{POST} to a directory is meant to create an upload.
    """
    return not _OWN.isdisjoint(head.fields) or CONTENT_TYPE in head.all(b"content-type")


def tusOptions(policy: Policy) -> Fields:
    """
    @return: the fields that tell a client of tus about this receiver.
    """
    fields = [
        ("Tus-Resumable", VERSION),
        ("Tus-Version", VERSION),
        ("Tus-Extension", EXTENSIONS),
        ("Tus-Checksum-Algorithm", ",".join(TUS_ALGORITHMS)),
    ]
    if policy.maxFileSize is not None:
        fields.append(("Tus-Max-Size", str(policy.maxFileSize)))
    return fields


async def createUpload(uploads: Uploads, request: Request) -> Answer:
    """
    Create an upload, with its first bytes if the request brings some.
    """
    try:
        return await _create(uploads, request)
    except TransferError as e:
        return _failed(e)


async def _create(uploads: Uploads, request: Request) -> Answer:
    head, sender = request.head, request.sender
    _verifyVersion(head)
    if not uploads.supported:
        raise Unsupported("the store of this receiver takes whole files only; use PUT")
    if head.all(b"upload-concat"):
        raise Unsupported("uploads are not put together here; send the file as one upload")
    size = _lengthOf(head)
    brings = head.length != 0
    if brings:
        _verifyContent(head)
    digests = digestsOfBody(head)
    upload = await uploads.create(request, _offerOf(request, size), digests)
    offset = size or 0 if upload.receipt is not None else 0
    if brings and upload.receipt is None:
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
    if upload.receipt is None:
        return Answer(201, fields)
    return jsonAnswer(201, _account(upload, offset, sender), fields)


def _offerOf(request: Request, size: int | None) -> Offer:
    head = request.head
    metadata = head.one(b"upload-metadata") or b""
    found = readMetadata(metadata)
    transferId = secrets.token_hex(16)
    names = (found.get(each) for each in ("relativePath", "filename", "name"))
    name = next((each for each in names if each and each != b"null"), transferId.encode())
    whole = request.settings.sha256 or wantedDigest(head) == "sha-256"
    return request.offer(
        name,
        transferId=transferId,
        size=size,
        modified=_modifiedOf(found),
        metadata=Notes(metadata.decode("ascii"), whole=whole).text,
    )


async def useUpload(uploads: Uploads, request: Request) -> Answer:
    """
    Tell about an upload, take bytes of it, or remove it.
    """
    head = request.head
    method = head.method
    if method == "POST":
        # for clients whose libraries have no PATCH
        method = (head.one(b"x-http-method-override") or b"").decode("latin-1")
        if method not in {"PATCH", "DELETE"}:
            raise Problem(405, "an upload is gone on with by PATCH", "unsupported")
    asks = method in {"HEAD", "GET"}
    try:
        if method in {"PATCH", "DELETE"}:
            _verifyVersion(head)
        if not uploads.supported:
            raise noUpload()
        upload = await uploads.find(request.target.token, request.sender)
        if asks:
            return _tell(request, upload, await upload.offset())
        if method == "PATCH":
            return await _patch(request, upload)
        if method == "PUT":
            return await _put(request, upload)
        await upload.remove(Cancelled("the client has given the upload up"))
        return Answer(204, [("Tus-Resumable", VERSION)])
    except TransferError as e:
        return _failed(e, asks)


def _tell(request: Request, upload: Upload, offset: int) -> Answer:
    fields = _state(upload, offset)
    size, metadata = upload.offer.size, upload.notes.metadata
    if size is None:
        fields.append(("Upload-Defer-Length", "1"))
    else:
        fields.append(("Upload-Length", str(size)))
    if metadata:
        fields.append(("Upload-Metadata", metadata))
    return jsonAnswer(200, _account(upload, offset, request.sender), fields)


async def _patch(request: Request, upload: Upload) -> Answer:
    head = request.head
    _verifyContent(head)
    at = _number(head, "Upload-Offset")
    if at is None:
        raise Problem(400, "say with Upload-Offset where the bytes belong")
    size = _number(head, "Upload-Length")
    offset = await upload.append(request, at, digestsOfBody(head), size=size)
    return Answer(204, _state(upload, offset))


async def _put(request: Request, upload: Upload) -> Answer:
    head = request.head
    place = rangeOf(head)
    if place is None:
        raise Problem(400, "to an upload, PUT brings Content-Range: bytes FIRST-LAST/SIZE")
    first, _, size = place
    sha256 = wholeSHA256(head)
    offset = await upload.append(request, first, digestsOfBody(head), size=size, sha256=sha256)
    receipt = upload.receipt
    if receipt is None:
        return Answer(204, _state(upload, offset))
    known = {"sha-256": bytes.fromhex(receipt.sha256)} if receipt.sha256 else {}
    return stored(request, receipt, known)


def readMetadata(value: bytes) -> dict[str, bytes]:
    """
    @param value: of C{Upload-Metadata}: keys, each with its value in base64.
    @raise Problem: it is something else.
    """
    found: dict[str, bytes] = {}
    for pair in value.split(b",") if value.strip() else ():
        key, _, coded = pair.strip().partition(b" ")
        name = key.decode("ascii", "replace")
        try:
            decoded = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            raise Problem(400, "the values of Upload-Metadata are base64") from None
        if not key or not key.isascii() or name in found:
            raise Problem(400, "the keys of Upload-Metadata are ASCII, and each comes once")
        found[name] = decoded
    return found


def _modifiedOf(metadata: dict[str, bytes]) -> int | None:
    """
    @return: nanoseconds since the epoch; L{None} if the client does not say what we understand.
    """
    for key, unit in (("mtime", 10**9), ("lastModified", 10**6)):
        value = metadata.get(key, b"")
        if _DECIMAL.fullmatch(value):
            return int(value) * unit
    return None


def _number(head: Head, name: str) -> int | None:
    value = head.one(name.lower().encode())
    if value is None:
        return None
    if not _NUMBER.fullmatch(value) or int(value) > MAX_LENGTH:
        raise Problem(400, f"{name} is one decimal number below 2^63")
    return int(value)


def _lengthOf(head: Head) -> int | None:
    size = _number(head, "Upload-Length")
    deferred = head.one(b"upload-defer-length")
    if deferred not in {None, b"1"} or (size is None) is (deferred is None):
        raise Problem(400, "say Upload-Length: BYTES, or Upload-Defer-Length: 1")
    return size


def _verifyVersion(head: Head) -> None:
    if head.one(b"tus-resumable") != VERSION.encode():
        fields = [("Tus-Version", VERSION)]
        raise Problem(412, f"Tus-Resumable: {VERSION} is spoken here", "unsupported", fields=fields)


def _verifyContent(head: Head) -> None:
    if head.one(b"content-type") != CONTENT_TYPE:
        raise Problem(415, f"bytes of an upload have the type {CONTENT_TYPE.decode()}")


def _account(upload: Upload, offset: int, sender: Sender) -> dict[str, Any]:
    """
    @return: an upload in JSON, with its receipt if it is published.
    """
    receipt = upload.receipt
    account = None if receipt is None else accountOf(receipt, sender.identity)
    return {"offset": offset, "length": upload.offer.size, "receipt": account}


def _state(upload: Upload, offset: int) -> list[tuple[str, str]]:
    fields = [("Tus-Resumable", VERSION), ("Upload-Offset", str(offset))]
    expires = upload.expires
    if expires is not None:
        fields.append(("Upload-Expires", formatdate(expires, usegmt=True)))
    return fields


def _failed(why: TransferError, asks: bool = False) -> Answer:
    """
    @param asks: the request changes nothing: clients begin anew after most errors of one,
        but wait after 423.
    """
    passes = why.retryable or isinstance(why, QuotaExceeded | StoreError)
    if isinstance(why, DigestMismatch) and not asks:
        why = Problem(460, str(why), why.code)
    elif why.code == "busy" or (asks and passes):
        why = Problem(423, str(why), why.code)
    answer = problem(why, upload=True)
    return attrs.evolve(answer, fields=[*answer.fields, ("Tus-Resumable", VERSION)])
