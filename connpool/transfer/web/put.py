"""
C{PUT}: the target is the name, the body is the file.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from connpool.transfer.records import Receipt
from connpool.transfer.web.answers import Answer, accountOf, jsonAnswer
from connpool.transfer.web.digests import digestsOfFile, writeDigests
from connpool.transfer.web.fields import modifiedOf, wholeSize
from connpool.transfer.web.head import Head
from connpool.transfer.web.problems import Fields, Problem
from connpool.transfer.web.request import Request
from connpool.transfer.web.target import locate
from connpool.transfer.web.wholefile import WholeFile

__all__ = ["put", "stored"]

_IDENTITY = {b"", b"identity"}


async def put(request: Request) -> Answer:
    """
    Store the file.
    """
    head = request.head
    _judge(head)
    digests = digestsOfFile(head)
    modified = modifiedOf(head)
    # there is no key in the protocol; ours has the receipt noted before it is told
    key = secrets.token_bytes(32)
    offer = request.offer(size=wholeSize(head), modified=modified, key=key)
    receipt = await WholeFile(request, offer, digests).receive()
    fields = [] if modified is None else [("X-OC-Mtime", "accepted")]
    return stored(request, receipt, digests.computed, fields)


def stored(
    request: Request, receipt: Receipt, digests: Mapping[str, bytes], fields: Fields = ()
) -> Answer:
    """
    @param digests: that were computed.
    @return: the answer to a file that is stored.
    """
    account = accountOf(receipt, request.sender.identity)
    place = locate(account["name"], request.target.depth, request.settings.url)
    told = [("Location", place), *fields]
    if digests:
        told.append(("Repr-Digest", writeDigests(digests)))
    return jsonAnswer(201 if receipt.status == "stored" else 200, account, told)


def _judge(head: Head) -> None:
    """
    @raise Problem: the request is not one that stores a file.
    """
    if head.length == 0 and not head.all(b"content-length"):
        raise Problem(411, "say how long the file is, with Content-Length or in chunks")
    codings = {value.strip().lower() for value in head.all(b"content-encoding")}
    if codings - _IDENTITY:
        raise Problem(415, "files are stored as they come; send without Content-Encoding")
    kinds = b", ".join(head.all(b"content-type")).lower()
    if kinds.startswith(b"multipart/byteranges"):
        raise Problem(415, "PUT stores whole files, not ranges of them")
