"""
Files that come whole: C{PUT}, whose target is the name, and parts of other requests.

A plain one is hashed by nobody, as in the classic protocol.  One in a request of at most
L{SMALL_FILE_BYTES} bytes is kept until all of it came and stored in one piece; any other
goes to a partial as it comes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import NetworkFailed, TooLarge, TransferError
from connpool.transfer.digests import digestNamed, rootOf
from connpool.transfer.receive.reception import Reception, storeFailure
from connpool.transfer.receive.smallfiles import SMALL_FILE_BYTES, WholeFiles
from connpool.transfer.records import Offer, Receipt, SmallFile
from connpool.transfer.web.answers import Answer, Fields, Problem, accountOf, jsonAnswer
from connpool.transfer.web.digests import Digests, writeDigests
from connpool.transfer.web.head import FieldValues, Head
from connpool.transfer.web.request import Request
from connpool.transfer.web.target import locate

__all__ = ["WholeFile", "checkLimits", "put", "rangeOf", "stored"]

_RANGE = re.compile(rb"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_SECONDS = re.compile(rb"(-?\d{1,12})(?:\.(\d{1,9}))?")


async def put(request: Request) -> Answer:
    """
    Store the file.
    """
    head = request.head
    if head.length == 0 and not head.all(b"content-length"):
        raise Problem(411, "say how long the file is, with Content-Length or in chunks")
    if head.words(b"content-encoding") - {b"", b"identity"}:
        raise Problem(415, "files are stored as they come; send without Content-Encoding")
    if any(kind.startswith(b"multipart/byteranges") for kind in head.words(b"content-type")):
        raise Problem(415, "PUT stores whole files, not ranges of them")
    digests = Digests.ofFile(head)
    modified = modifiedOf(head)
    # there is no key in the protocol; ours has the receipt noted before it is told
    key = secrets.token_bytes(32)
    offer = request.offer(size=_sizeOf(head), modified=modified, key=key)
    receipt = await WholeFile(request, offer, digests).receive()
    fields = [] if modified is None else [("X-OC-Mtime", "accepted")]
    return stored(request, receipt, digests.computed, fields)


def stored(
    request: Request, receipt: Receipt, digests: Mapping[str, bytes], fields: Fields = ()
) -> Answer:
    """
    Return the answer to a file that is stored, with the digests that were computed.
    """
    account = accountOf(receipt, request.sender.identity)
    place = locate(account["name"], request.target.depth, request.settings.url)
    told = [("Location", place), *fields]
    if digests:
        told.append(("Repr-Digest", writeDigests(digests)))
    return jsonAnswer(201 if receipt.status == "stored" else 200, account, told)


def rangeOf(head: Head) -> tuple[int, int, int] | None:
    """
    Return the first and the last byte in C{Content-Range}, and the size of the file, if the body
    can be that; else L{None}.
    """
    found = _RANGE.fullmatch(head.one(b"content-range") or b"")
    if found is None:
        return None
    first, last, size = map(int, found.groups())
    length = last + 1 - first
    fits = 0 < length <= size - first and head.length in {None, length}
    return (first, last, size) if fits else None


def _sizeOf(head: Head) -> int | None:
    """
    Return the bytes of the file; L{None} if the client does not know.  C{Content-Range} is looked
    at: a client that resumes sends the rest of a file with it, and a server that ignores it stores
    the rest as the file.
    """
    if not head.all(b"content-range"):
        return head.length
    found = rangeOf(head)
    if found is None or found[:2] != (0, found[2] - 1):
        raise Problem(
            400,
            "PUT stores whole files; to resume, create an upload by tus with POST and send the "
            "rest to the URL that it gets",
            "unsupported",
        )
    return found[2]


def modifiedOf(head: Head) -> int | None:
    """
    @return: the time in C{X-OC-Mtime}, nanoseconds since the epoch; L{None} if there is none.
    """
    given = head.one(b"x-oc-mtime")
    if given is None:
        return None
    found = _SECONDS.fullmatch(given)
    if found is None:
        raise Problem(400, "X-OC-Mtime is a number of seconds since 1970")
    fraction = int((found[2] or b"0").ljust(9, b"0"))
    return int(found[1]) * 10**9 + (-fraction if found[1].startswith(b"-") else fraction)


def checkLimits(reception: Reception, offer: Offer) -> None:
    """
    Refuse what would be refused with all of its bytes.
    """
    quotas = reception.quotas
    quotas.checkSize(offer)
    quotas.check(quotas.accounts(offer.identity), 1, 1 if offer.size is None else offer.size)


class WholeFile:
    """
    A file on its way in.
    """

    def __init__(self, request: Request, offer: Offer, digests: Digests) -> None:
        self._request = request
        self._reception = request.reception
        self._peer = request.sender.peer
        self._digests = digests
        if request.settings.sha256 or digests.vouches:
            digests.add("sha-256")
        self._offer = attrs.evolve(offer, digest="sha256") if digests.vouches else offer
        self._offset = 0
        length = request.head.length
        #: all that came, of a small one; else the reception's hand on its partial
        self._data = bytearray() if length is not None and length <= SMALL_FILE_BYTES else None
        self._incoming: Any = None
        self._begun = False

    async def receive(self) -> Receipt:
        """
        Take the body of the request, and publish it.
        """
        try:
            await self.begin()
            return await self.commit(await self._request.receive(self.write))
        except BaseException as e:
            await self.abort(e)
            raise

    async def begin(self) -> None:
        """
        Find out whether it is taken.
        """
        reception, offer = self._reception, self._offer
        if self._data is None:
            # a new key: it finishes nothing twice
            self._incoming = await reception.begin(offer, self._peer, self._request.end)
        else:
            try:
                checkLimits(reception, offer)
            except TransferError as e:
                reception.refuse(str(offer.name), self._peer, e, offer.transferId)
                raise
            room = reception.quotas.room(offer.identity)
            if room is not None:
                await room
        self._begun = True

    def write(self, view: memoryview) -> Deferred[None] | None:
        """
        Take the bytes that follow, as a L{Sink<connpool.transfer.web.body.Sink>} does.
        """
        written: Deferred[None] | None = None
        if self._data is None:
            written = self._incoming.write(self._offset, view)
        else:
            self._data += view
        self._offset += len(view)
        # while the bytes are in the processor's cache
        self._digests.update(view)
        return written

    async def commit(self, trailers: FieldValues) -> Receipt:
        """
        Publish it; C{trailers} are the fields behind its bytes.
        """
        offer, size, digests = self._offer, self._offset, self._digests
        if offer.size is not None and size != offer.size:
            error = TooLarge if size > offer.size else NetworkFailed
            raise error(f"{size} bytes came of {offer.size}")
        digests.compare(trailers)
        sha256 = digests.computed.get("sha-256")
        root = None
        if digests.vouches and sha256 is not None:
            # the file is one block of SHA-256
            root = rootOf(digestNamed("sha256"), size, max(size, 1), [sha256][:size])
        self._begun = False
        if self._data is None:
            receipt: Receipt = await self._incoming.commit(root, sha256)
            return receipt
        if sha256 is not None or offer.size is None:
            known = None if sha256 is None else sha256.hex()
            offer = attrs.evolve(offer, size=size, sha256=known)
        file = SmallFile(offer, bytes(self._data), root)
        outcomes = WholeFiles(self._reception).put([file], offer.identity, self._peer)
        [outcome] = outcomes if isinstance(outcomes, list) else await outcomes
        if isinstance(outcome, Receipt):
            return outcome
        raise storeFailure(outcome)

    async def abort(self, why: BaseException) -> None:
        """
        Remove every trace of it, unless it has ended.
        """
        if self._begun:
            self._begun = False
            if self._incoming is not None:
                await self._incoming.abort(why)
            else:
                self._reception.tell("offered", self._offer, self._peer)
                self._reception.failed(self._offer, self._peer, self._offset, why)
