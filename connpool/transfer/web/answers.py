"""
Answers: a status, fields and a body; problem documents (RFC 9457), and receipts as JSON.
"""

from __future__ import annotations

import html
import json
from collections.abc import AsyncGenerator, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol

import attrs
import msgspec

from connpool.errors import Exists, Skipped, TransferError
from connpool.transfer.identities import Identity
from connpool.transfer.records import Receipt

__all__ = [
    "Answer",
    "Fields",
    "Problem",
    "Stream",
    "accountOf",
    "jsonAnswer",
    "pageAnswer",
    "problem",
]

Fields = Sequence[tuple[str, str]]

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
_PHRASES = {460: "Checksum Mismatch", **{int(each): each.phrase for each in HTTPStatus}}

#: Error code to status, for every method and resource.
_STATUS = {
    "name-refused": 400,
    "protocol": 400,
    "digest-mismatch": 400,
    "network": 400,
    "cancelled": 400,
    # clients that resume retry 409 and 423, and would take one another over for ever
    "conflict-takeover": 400,
    "auth-failed": 401,
    "forbidden": 403,
    # not 429, which stops all other files of some clients
    "quota": 403,
    "expired": 404,
    "not-found": 404,
    "timeout": 408,
    "too-slow": 408,
    "exists": 409,
    "too-large": 413,
    "hook-refused": 422,
    "unsupported": 501,
    "busy": 503,
    "held": 503,
    "unavailable": 503,
    "no-space": 507,
    "no-inodes": 507,
}
#: Seconds after which a request may be worth repeating.
_RETRY_SECONDS = {"held": 60, "busy": 5, "unavailable": 5, "no-space": 60, "no-inodes": 60}
_MAX_DETAIL_CHARACTERS = 1024
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<title>{0}</title><h1>{0}</h1>{1}</html>
"""
_encode = msgspec.json.Encoder().encode
_ACCOUNT = [each.name for each in attrs.fields(Receipt)]


class Problem(TransferError):
    """
    A request that is answered with a status of its own; C{closes} if the connection ends with it,
    where the next request begins being unknown or not worth to know.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        code: str = "protocol",
        *,
        closes: bool = False,
        fields: Fields = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code  # type: ignore[misc]  # its own, not its class's
        self.closes = closes
        self.fields = fields


class Stream(Protocol):
    """
    A body of C{length} bytes that comes in pieces; a plain Python protocol.  What fails on the way
    breaks the connection.
    """

    @property
    def length(self) -> int: ...

    def pieces(self) -> AsyncGenerator[bytes, None]: ...


@attrs.frozen
class Answer:
    """
    An answer that is final.

    @ivar fields: beside those that every answer has; one of these is replaced.
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
        Return the bytes of the answer, with C{more} fields; without the body if it is C{bare}, for
        the request was a C{HEAD}.
        """
        bodiless = self.status in _BODILESS
        fields = [*self.fields, *more]
        if not bodiless:
            length = len(self.body) if self.stream is None else self.stream.length
            fields.append(("Content-Length", str(length)))
        if self.closes:
            fields.append(("Connection", "close"))
        lines = "".join([f"{name}: {_plain(value)}\r\n" for name, value in fields])
        usual = _usualBeside(frozenset([name for name, _ in fields]))
        head = f"HTTP/1.1 {self.status} {_PHRASES[self.status]}\r\n{usual}{lines}\r\n"
        return head.encode("ascii") + (b"" if bare or bodiless else self.body)


@lru_cache(maxsize=64)
def _usualBeside(own: frozenset[str]) -> str:
    """
    Return the fields of every answer, without those that one has itself.
    """
    return "".join(f"{name}: {value}\r\n" for name, value in _SECURITY.items() if name not in own)


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
    body = _encode(document)
    if not body.isascii():
        body = json.dumps(document, separators=(",", ":")).encode()  # nothing a terminal acts on
    return Answer(status, [("Content-Type", kind), *fields], body + b"\n", **more)


def pageAnswer(status: int, title: str, content: str, fields: Fields = (), **more: Any) -> Answer:
    """
    Return an answer for people; C{content} is HTML.
    """
    body = _PAGE.format(html.escape(title), content).encode()
    return Answer(status, [("Content-Type", "text/html; charset=utf-8"), *fields], body, **more)


def statusOf(why: TransferError, *, conditional: bool = False, upload: bool = False) -> int:
    """
    Return the status of an error; C{conditional}: the request asked that nothing is replaced,
    C{upload}: it is about an upload that can be resumed.
    """
    if isinstance(why, Problem):
        return why.status
    if isinstance(why, Skipped):
        return 200  # as the client or the operator wanted it
    if isinstance(why, Exists) and (conditional or upload):
        return 412 if conditional else 422
    return _STATUS.get(why.code, 500)


def documentOf(why: TransferError, status: int) -> dict[str, Any]:
    """
    @return: the problem document; of a file that was skipped, its account.
    """
    detail = " ".join(str(why).split())[:_MAX_DETAIL_CHARACTERS]
    detail = detail.encode("utf-8", "backslashreplace").decode()  # lone surrogates are no UTF-8
    if isinstance(why, Skipped):
        return {"status": "skipped", "detail": detail, "code": why.code}
    return {"title": _PHRASES[status], "status": status, "detail": detail, "code": why.code}


def problem(why: TransferError, page: bool = False, **context: bool) -> Answer:
    """
    Return the answer that says why a request failed, as a C{page} to people; C{context} is that
    of L{statusOf}.
    """
    status = statusOf(why, **context)
    fields, closes = (why.fields, why.closes) if isinstance(why, Problem) else ((), False)
    if why.code in _RETRY_SECONDS:
        fields = [*fields, ("Retry-After", str(_RETRY_SECONDS[why.code]))]
    if status == 401:
        fields = [*fields, ("WWW-Authenticate", 'Basic realm="connpool", charset="UTF-8"')]
    document = documentOf(why, status)
    ends: dict[str, Any] = {"closes": closes or status == 408, "code": why.code}
    if page:
        content = f"<p>{html.escape(document['detail'])}"
        return pageAnswer(status, f"{status} {_PHRASES[status]}", content, fields, **ends)
    kind = "application/json" if isinstance(why, Skipped) else "application/problem+json"
    return jsonAnswer(status, document, fields, kind, **ends)


def accountOf(receipt: Receipt, identity: Identity | None) -> dict[str, Any]:
    """
    Return a receipt as its sender sees it: the directory of a sender is the operator's business.
    """
    account = {name: getattr(receipt, name) for name in _ACCOUNT}
    if identity is not None and identity.directory is not None:
        for name in ("name", "wanted"):
            account[name] = account[name].removeprefix(identity.directory.path + "/")
    return account
