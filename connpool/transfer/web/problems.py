"""
Errors as HTTP tells them: a status, and a problem document (RFC 9457).
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from connpool.errors import Exists, Skipped, TransferError

__all__ = ["Fields", "Problem", "documentOf", "fieldsOf", "phraseOf", "statusOf"]

Fields = Sequence[tuple[str, str]]

#: Characters of a detail.
_MAX_DETAIL = 1024

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


class Problem(TransferError):
    """
    A request that is answered with a status of its own.

    @ivar status: of the answer.
    @ivar closes: the connection ends with the answer: where the next request begins is not
        known, or not worth to know.
    @ivar fields: more fields of the answer.
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


def phraseOf(status: int) -> str:
    """
    @return: the words that go with a status.
    """
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Checksum Mismatch" if status == 460 else ""


def statusOf(why: TransferError, *, conditional: bool = False, upload: bool = False) -> int:
    """
    @param conditional: the request asked by a condition that nothing is replaced.
    @param upload: the request is about an upload that can be resumed.
    @return: the status that C{why} is answered with.
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
    detail = " ".join(str(why).split())[:_MAX_DETAIL]
    if isinstance(why, Skipped):
        return {"status": "skipped", "detail": detail, "code": why.code}
    return {"title": phraseOf(status), "status": status, "detail": detail, "code": why.code}


def fieldsOf(why: TransferError, status: int) -> Fields:
    """
    @return: the fields that go with a problem document.
    """
    fields = list(why.fields) if isinstance(why, Problem) else []
    if why.code in _RETRY_SECONDS:
        fields.append(("Retry-After", str(_RETRY_SECONDS[why.code])))
    if status == 401:
        fields.append(("WWW-Authenticate", 'Basic realm="connpool", charset="UTF-8"'))
    return fields
