"""
Answers: a status, fields and a body; and the account of a stored file as JSON.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import attrs

from connpool.errors import Skipped, TransferError
from connpool.transfer.identities import Identity
from connpool.transfer.records import Receipt
from connpool.transfer.web.problems import Fields, Problem, documentOf, fieldsOf, phraseOf, statusOf

__all__ = ["Answer", "Stream", "accountOf", "jsonAnswer", "problem"]

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


class Stream(Protocol):
    """
    A body that comes in pieces; a plain Python protocol.  What fails on the way breaks the
    connection.
    """

    @property
    def length(self) -> int:
        """
        Bytes of all.
        """

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """
        Read the body, piece by piece.
        """


@attrs.frozen
class Answer:
    """
    An answer that is final.

    @ivar status: of HTTP.
    @ivar fields: beside those that every answer has; one of these is replaced.
    @ivar body: all of it.
    @ivar closes: the connection ends after it.
    @ivar code: the error's, for the counts; empty if it is none.
    @ivar stream: a body that is not all here, instead of C{body}.
    """

    status: int
    fields: Fields = ()
    body: bytes = b""
    closes: bool = False
    code: str = ""
    stream: Stream | None = None

    def write(self, bare: bool, more: Fields = ()) -> bytes:
        """
        @param bare: leave the body out: the request was a C{HEAD}.
        @param more: fields beside those of the answer.
        @return: the bytes of the answer.
        """
        fields = [*{**_SECURITY, **dict(self.fields)}.items(), *more]
        if self.status not in _BODILESS:
            length = len(self.body) if self.stream is None else self.stream.length
            fields.append(("Content-Length", str(length)))
        if self.closes:
            fields.append(("Connection", "close"))
        lines = [f"{name}: {_plain(value)}\r\n" for name, value in fields]
        head = f"HTTP/1.1 {self.status} {phraseOf(self.status)}\r\n{''.join(lines)}\r\n"
        return head.encode("ascii") + (b"" if bare or self.status in _BODILESS else self.body)


def _plain(value: str) -> str:
    if value.isascii() and value.isprintable():
        return value
    # nothing that we write is; a slip must not become a field of its own
    return "".join(c if " " <= c <= "~" else "?" for c in value)


def jsonAnswer(
    status: int, document: Any, fields: Fields = (), kind: str = "application/json", **more: Any
) -> Answer:
    """
    @return: an answer with a JSON document.
    """
    body = json.dumps(document).encode("ascii") + b"\n"
    return Answer(status, [("Content-Type", kind), *fields], body, **more)


def problem(why: TransferError, **context: bool) -> Answer:
    """
    @param context: as L{statusOf} takes it.
    @return: the answer that says why a request failed.
    """
    status = statusOf(why, **context)
    closes = status == 408 or (isinstance(why, Problem) and why.closes)
    kind = "application/json" if isinstance(why, Skipped) else "application/problem+json"
    fields = fieldsOf(why, status)
    return jsonAnswer(status, documentOf(why, status), fields, kind, closes=closes, code=why.code)


def accountOf(receipt: Receipt, identity: Identity | None) -> dict[str, Any]:
    """
    @return: a receipt as its sender sees it: the directory of a sender is the operator's
        business.
    """
    account = attrs.asdict(receipt, recurse=False)
    if identity is not None and identity.directory is not None:
        for name in ("name", "wanted"):
            account[name] = account[name].removeprefix(identity.directory.path + "/")
    return account
