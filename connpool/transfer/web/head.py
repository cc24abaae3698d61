"""
The head of a request, cut out of the stream and judged.

Theory of operation
===================
A proxy in front and we have to agree on where each request ends: else bytes that it
believes to be a body are a request for us.  So everything that two readers understand in
different ways is refused, and the connection ends with it.  The head is cut at the first
empty line within L{MAX_HEAD_BYTES} bytes; then h11 reads exactly these bytes.  The checks
before that are about what h11 takes and others do not.

References: RFC 9112; the cases are those of CVE-2020-10108, CVE-2020-10109,
CVE-2025-22871 and CVE-2025-43859.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs
import h11

from connpool.transfer.web.problems import Problem

__all__ = ["MAX_HEAD_BYTES", "METHODS", "Head", "cutHead", "isHTTP2", "parseHead"]

#: Bytes of a head, its empty line included.
MAX_HEAD_BYTES = 16 * 1024
MAX_FIELDS = 100
MAX_TARGET_BYTES = 8 * 1024
#: Bytes that a body may be said to have.
MAX_LENGTH = (1 << 63) - 1

METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "POST", "PATCH", "DELETE")

_END = b"\r\n\r\n"
#: Everything below the space but a tab and the line ends, and DEL.
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LINE = re.compile(rb"([^ ]+) ([^ ]+) HTTP/(\d)\.(\d)")
_FRAMING = re.compile(
    rb"\r\n(content-length|transfer-encoding)[ \t]*:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE
)
_LENGTH = re.compile(rb"[0-9]{1,19}")
_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+(?::[0-9]{1,5})?"
    rb"|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?"
)


@attrs.frozen
class Head:
    """
    A head that was taken.

    @ivar method: one of L{METHODS}.
    @ivar target: as it was written.
    @ivar fields: names in lower case and values, in order.
    @ivar length: bytes of the body; L{None} if it is chunked.
    @ivar bodied: the request has said whether a body follows, be it an empty one.
    @ivar expects: the client waits for C{100 Continue} before it sends the body.
    """

    method: str
    target: str
    fields: Sequence[tuple[bytes, bytes]]
    length: int | None = 0
    bodied: bool = False
    expects: bool = False
    _named: dict[bytes, list[bytes]] = attrs.field(init=False, eq=False, repr=False)

    @_named.default
    def _byName(self) -> dict[bytes, list[bytes]]:
        named: dict[bytes, list[bytes]] = {}
        for name, value in self.fields:
            named.setdefault(name, []).append(value)
        return named

    def all(self, name: bytes) -> Sequence[bytes]:
        """
        @param name: lower case.
        @return: the values of a field.
        """
        return self._named.get(name, ())

    def one(self, name: bytes) -> bytes | None:
        """
        @param name: lower case.
        @return: the value of a field that may come once; L{None} if it is not there.
        @raise Problem: if it comes twice.
        """
        found = self.all(name)
        if len(found) > 1:
            raise Problem(400, f"the field {name.decode()} comes twice; send it once")
        return found[0] if found else None


def _broken(why: str, status: int = 400, code: str = "protocol") -> Problem:
    return Problem(status, why, code, closes=True)


def cutHead(buffer: bytearray) -> bytes | None:
    """
    Take the head from the beginning of C{buffer}.

    @return: the head with its empty line; L{None} if it is not complete.
    @raise Problem: if it is too long.
    """
    if buffer.startswith(b"\r\n"):
        # RFC 9112 section 2.2: at least one empty line is skipped; more are a fault
        del buffer[:2]
    end = buffer.find(_END, 0, MAX_HEAD_BYTES)
    if end >= 0:
        end += len(_END)
        head = bytes(buffer[:end])
        del buffer[:end]
        return head
    if len(buffer) >= MAX_HEAD_BYTES:
        raise _broken(f"a head has at most {MAX_HEAD_BYTES} bytes", 431)
    return None


def isHTTP2(head: bytes) -> bool:
    """
    Tell whether it is the preface of HTTP/2 (RFC 9113 section 3.4).
    """
    return head == b"PRI * HTTP/2.0\r\n\r\n"


def parseHead(raw: bytes) -> tuple[Head, h11.Connection]:
    """
    Read a head.

    @param raw: as L{cutHead} gives it.
    @return: the head, and the connection that writes the answer.
    @raise Problem: it is not taken.
    """
    lines = raw.count(b"\r\n")
    if raw.count(b"\n") != lines or raw.count(b"\r") != lines:
        raise _broken("a line ends with CR LF, and neither stands alone")
    if _CONTROLS.search(raw):
        raise _broken("a head has no control characters")
    if b"\r\n " in raw or b"\r\n\t" in raw:
        raise _broken("a field is one line (RFC 9112 section 5.2)")
    if lines - 2 > MAX_FIELDS:
        raise _broken(f"a head has at most {MAX_FIELDS} fields", 431)
    old = _judgeLine(raw[: raw.index(b"\r\n")])
    length = _judgeFraming(raw, old)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    connection.receive_data(raw)
    try:
        request = connection.next_event()
    except h11.RemoteProtocolError as e:
        raise _broken(f"this is no request: {e}", e.error_status_hint) from None
    assert isinstance(request, h11.Request)
    fields = tuple(request.headers)
    bodied = any(name in {b"content-length", b"transfer-encoding"} for name, _ in fields)
    for name, value in fields:
        if name == b"host" and not _HOST.fullmatch(value) and value:
            raise _broken("Host is not an address or a name with a port")
    head = Head(
        request.method.decode("ascii"),
        request.target.decode("ascii"),
        fields,
        length,
        bodied,
        not old and _expects(fields, length != 0),
    )
    return head, connection


def _judgeLine(line: bytes) -> bool:
    """
    @return: whether it is HTTP/1.0.
    """
    found = _LINE.fullmatch(line)
    if found is None:
        raise _broken("the first line is METHOD TARGET HTTP/1.1, with one space between")
    method, target, major, minor = found.groups()
    if (major, minor) not in {(b"1", b"1"), (b"1", b"0")}:
        raise _broken("only HTTP/1.1 and HTTP/1.0 are spoken here", 505, "unsupported")
    if method.decode("latin-1") not in METHODS:
        raise _broken(f"methods are {', '.join(METHODS)}, in capitals", 501, "unsupported")
    if len(target) > MAX_TARGET_BYTES:
        raise _broken(f"a target has at most {MAX_TARGET_BYTES} bytes", 414)
    return minor == b"0"


def _judgeFraming(raw: bytes, old: bool) -> int | None:
    """
    @return: bytes of the body; L{None} if it is chunked.
    """
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for name, value in _FRAMING.findall(raw):
        (lengths if name.lower() == b"content-length" else codings).append(value)
    if codings:
        if old or lengths:
            raise _broken("Transfer-Encoding goes neither with HTTP/1.0 nor with Content-Length")
        coding = b", ".join(codings).lower()
        if coding != b"chunked":
            status = 400 if coding == b"identity" else 501
            raise _broken("the only transfer coding is chunked, once", status, "unsupported")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]) or int(lengths[0]) > MAX_LENGTH:
        raise _broken("Content-Length is one decimal number below 2^63")
    return int(lengths[0])


def _expects(fields: Sequence[tuple[bytes, bytes]], body: bool) -> bool:
    asked = [value for name, value in fields if name == b"expect"]
    if not asked:
        return False
    if [value.lower() for value in asked] != [b"100-continue"]:
        raise _broken("the only expectation is 100-continue", 417, "unsupported")
    return body
