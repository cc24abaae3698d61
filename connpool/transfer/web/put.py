"""
C{PUT}: the target is the name, the body is the file.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import attrs

from connpool.errors import NetworkFailed, Skipped, TooLarge, TransferError
from connpool.transfer.names import displayName
from connpool.transfer.receive.reception import Reception
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.web.answers import Answer, problem, skippedAnswer, stored
from connpool.transfer.web.fields import (
    DIGESTS,
    digestsOf,
    durabilityOf,
    modifiedOf,
    preferencesOf,
    ruleAskedFor,
    wantedDigest,
    wholeSize,
)
from connpool.transfer.web.head import Head
from connpool.transfer.web.problems import Problem
from connpool.transfer.web.request import Request
from connpool.transfer.web.settings import WebSettings
from connpool.transfer.web.wholefile import (
    SMALL_FILE_BYTES,
    Digester,
    WholeFile,
    putSmall,
    rootOfWhole,
)

__all__ = ["Put"]

_IDENTITY = {b"", b"identity"}


class Put:
    """
    The resource of names.
    """

    methods = ("PUT",)

    def __init__(self, reception: Reception, settings: WebSettings) -> None:
        self._reception = reception
        self._settings = settings

    async def answer(self, request: Request) -> Answer:
        """
        Store the file.
        """
        head, sender = request.head, request.sender
        _judge(head)
        preferences = preferencesOf(head)
        rule = ruleAskedFor(head, preferences)
        terms: dict[str, Any] = {
            "size": wholeSize(head),
            "modified": modifiedOf(head),
            "durability": durabilityOf(preferences),
            "transferId": secrets.token_hex(16),
            # there is none in the protocol; ours has the receipt noted before it is told
            "key": secrets.token_bytes(32),
            "protocol": "web",
        }
        told = digestsOf(head.fields)
        algorithms = self._algorithms(head, told)
        try:
            offer = self._reception.offer(request.target.path, sender.identity, rule or "", **terms)
        except TransferError as e:
            self._reception.refuse(displayName(request.target.path), sender.peer, e)
            return problem(e)
        digester = Digester(algorithms)
        vouched = bool(told) or b"trailer" in dict(head.fields)
        if vouched and "sha-256" in algorithms:
            offer = attrs.evolve(offer, digest="sha256")
        small = offer.size is not None and offer.size <= SMALL_FILE_BYTES
        take = self._small if small else self._large
        try:
            receipt, computed = await take(request, offer, digester, told)
        except Skipped as e:
            return skippedAnswer(e, offer)
        except TransferError as e:
            return problem(e, conditional=b"*" in head.all(b"if-none-match"))
        fields = [("X-OC-Mtime", "accepted")] if offer.modified is not None else []
        return stored(
            receipt, sender.identity, request.target.depth, self._settings.url, computed, fields
        )

    def _algorithms(self, head: Head, told: Mapping[str, bytes]) -> set[str]:
        algorithms = set(told)
        if any(b"digest" in value.lower() for value in head.all(b"trailer")):
            algorithms |= set(DIGESTS)
        wanted = wantedDigest(head)
        if wanted is not None:
            algorithms.add(wanted)
        if told or self._settings.sha256:
            algorithms.add("sha-256")
        return algorithms

    async def _small(
        self, request: Request, offer: Offer, digester: Digester, told: Mapping[str, bytes]
    ) -> tuple[Receipt, dict[str, bytes]]:
        """
        Store a file in one piece.
        """
        reception, peer = self._reception, request.sender.peer
        self._foresee(offer, peer)
        room = reception.quotas.room(offer.identity)
        if room is not None:
            await room
        size = offer.size or 0
        data = bytearray()

        def keep(view: memoryview) -> None:
            data.extend(view)
            if len(data) > size:
                raise TooLarge(f"{offer.name} is longer than {size} bytes as declared")
            digester.update(view)

        try:
            told = {**told, **digestsOf(await request.receive(keep))}
            if len(data) < size:
                raise NetworkFailed(f"{len(data)} bytes came of {size}")
            computed = digester.compare(told)
        except TransferError as e:
            reception.tell("offered", offer, peer)
            reception.failed(offer, peer, len(data), e)
            raise
        root = rootOfWhole(len(data), told, computed)
        if "sha-256" in computed:
            offer = attrs.evolve(offer, sha256=computed["sha-256"].hex())
        return await putSmall(reception, offer, bytes(data), root, peer), computed

    def _foresee(self, offer: Offer, peer: str) -> None:
        """
        Refuse what would be refused with all of its bytes.
        """
        quotas = self._reception.quotas
        try:
            quotas.checkSize(offer)
            quotas.check(quotas.accounts(offer.identity), 1, offer.size or 0)
        except TransferError as e:
            self._reception.refuse(str(offer.name), peer, e, offer.transferId)
            raise

    async def _large(
        self, request: Request, offer: Offer, digester: Digester, told: Mapping[str, bytes]
    ) -> tuple[Receipt, dict[str, bytes]]:
        """
        Store a file as it comes.
        """
        file = await WholeFile.begin(
            self._reception, offer, request.sender.peer, digester, request.end
        )
        try:
            told = {**told, **digestsOf(await request.receive(file.write))}
            return await file.commit(told)
        except BaseException as e:
            await file.abort(e)
            raise


def _judge(head: Head) -> None:
    """
    @raise Problem: the request is not one that stores a file.
    """
    if not head.bodied:
        raise Problem(411, "say how long the file is, with Content-Length or in chunks")
    codings = {value.strip().lower() for value in head.all(b"content-encoding")}
    if codings - _IDENTITY:
        raise Problem(415, "files are stored as they come; send without Content-Encoding")
    kinds = b", ".join(head.all(b"content-type")).lower()
    if kinds.startswith(b"multipart/byteranges"):
        raise Problem(415, "PUT stores whole files, not ranges of them")
