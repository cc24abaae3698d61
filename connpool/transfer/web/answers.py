"""
Answers: a status, fields and a body; and the account of a stored file as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import h11

from connpool.errors import Skipped, TransferError
from connpool.transfer.identities import Identity
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.web.fields import writeDigest
from connpool.transfer.web.problems import Fields, documentOf, phraseOf, statusOf
from connpool.transfer.web.target import locate

__all__ = ["Answer", "accountOf", "jsonAnswer", "problem", "skippedAnswer", "stored"]

#: Fields of every answer.  With the policy C{no-referrer} browsers would send C{Origin: null}
#: for a form of our own page.
_SECURITY = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
#: Statuses whose answers have no body.
_BODILESS = {204, 304}


@attrs.frozen
class Answer:
    """
    An answer that is final.

    @ivar status: of HTTP.
    @ivar fields: beside those that every answer has; one of these is replaced.
    @ivar body: all of it.
    @ivar closes: the connection ends after it.
    @ivar code: the error's, for the counts; empty if it is none.
    """

    status: int
    fields: Fields = ()
    body: bytes = b""
    closes: bool = False
    code: str = ""

    def write(self, connection: h11.Connection, bare: bool, more: Fields = ()) -> bytes:
        """
        @param connection: that the request came by, in h11's sense.
        @param bare: leave the body out: the request was a C{HEAD}.
        @param more: fields beside those of the answer.
        @return: the bytes of the answer.
        """
        lines = [*{**_SECURITY, **dict(self.fields)}.items(), *more]
        if self.status not in _BODILESS:
            lines.append(("Content-Length", str(len(self.body))))
        if self.closes:
            lines.append(("Connection", "close"))
        response = h11.Response(
            status_code=self.status,
            reason=phraseOf(self.status).encode(),
            headers=[(name.encode("ascii"), _plain(value)) for name, value in lines],
        )
        wire = connection.send(response) or b""
        if self.body and not bare and self.status not in _BODILESS:
            wire += connection.send(h11.Data(self.body)) or b""
        return wire + (connection.send(h11.EndOfMessage()) or b"")


def _plain(value: str) -> bytes:
    if not (value.isascii() and value.isprintable()):
        # nothing that we write is; a slip must not become a field of its own
        value = "".join(c if " " <= c <= "~" else "?" for c in value)
    return value.encode("ascii")


def jsonAnswer(
    status: int, document: Any, fields: Fields = (), kind: str = "application/json", **more: Any
) -> Answer:
    """
    @return: an answer with a JSON document.
    """
    body = json.dumps(document).encode("ascii") + b"\n"
    return Answer(status, [("Content-Type", kind), *fields], body, **more)


def problem(
    why: TransferError,
    *,
    conditional: bool = False,
    upload: bool = False,
    more: Sequence[tuple[str, Any]] = (),
) -> Answer:
    """
    @param conditional: and C{upload}: as L{statusOf} takes them.
    @param more: members beside the usual ones.
    @return: the answer that says why a request failed.
    """
    status = statusOf(why, conditional=conditional, upload=upload)
    document, fields, closes = documentOf(why, status, more)
    return jsonAnswer(
        status, document, fields, "application/problem+json", closes=closes, code=why.code
    )


def accountOf(receipt: Receipt, identity: Identity | None) -> dict[str, Any]:
    """
    @return: a receipt as its sender sees it: the directory of a sender is the operator's
        business.
    """
    account = attrs.asdict(receipt)
    if identity is not None and identity.directory is not None:
        for name in ("name", "wanted"):
            account[name] = account[name].removeprefix(identity.directory.path + "/")
    return account


def stored(
    receipt: Receipt,
    identity: Identity | None,
    depth: int,
    base: str = "",
    digests: Mapping[str, bytes] | None = None,
    fields: Fields = (),
) -> Answer:
    """
    @param depth: of the request's target.
    @param base: as L{locate} takes it.
    @param digests: that were computed.
    @return: the answer to a file that is stored.
    """
    account = accountOf(receipt, identity)
    told = [("Location", locate(account["name"], depth, base)), *fields]
    if digests:
        told.append(("Repr-Digest", writeDigest(digests)))
    return jsonAnswer(201 if receipt.status == "stored" else 200, account, told)


def skippedAnswer(why: Skipped, offer: Offer) -> Answer:
    """
    @return: the answer to a file that the rule C{skip} leaves out, which is no failure.
    """
    detail = " ".join(str(why).split())
    document = {"status": "skipped", "detail": detail, "transferId": offer.transferId}
    return jsonAnswer(200, document, code=why.code)
