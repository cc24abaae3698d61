"""
The head of a request, cut out of the stream and judged.

Theory of operation
===================
A proxy in front and we have to agree on where each request ends: else bytes that it
believes to be a body are a request for us.  So everything that two readers understand in
different ways is refused, and the connection ends with it.  The head is cut at the first
empty line within L{MAX_HEAD_BYTES} bytes, and read line by line.

References: RFC 9112; the cases are those of CVE-2020-10108, CVE-2020-10109,
CVE-2025-22871 and CVE-2025-43859.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import attrs

from connpool.transfer.web.answers import Problem

__all__ = ["METHODS", "FieldValues", "Head", "cutHead", "parseHead", "readFields"]

#: Bytes of a head, its empty line included.
MAX_HEAD_BYTES = 16 * 1024
MAX_FIELDS = 100
MAX_TARGET_BYTES = 8 * 1024
#: Bytes that a body may be said to have.
MAX_LENGTH = (1 << 63) - 1

METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "POST", "PATCH", "DELETE")

#: The values of each field, in order; names in lower case.
FieldValues = Mapping[bytes, Sequence[bytes]]

_END = b"\r\n\r\n"
#: Control characters but the tab, line ends that are not CR LF, and a line that continues
#: the one before (RFC 9112 section 5.2).
_STRAY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n|\n[ \t]")
_LINE = re.compile(rb"([!-~]+) ([!-~]+) HTTP/(\d\.\d)")
_FIELDS = re.compile(rb"(?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*(?:\r\n(?=[^\r\n])|\Z))*")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+(?::[0-9]{1,5})?"
    rb"|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?|"
)


@attrs.frozen
class Head:
    """
    A head that was taken.

    @ivar method: one of L{METHODS}.
    @ivar target: as it was written.
    @ivar length: bytes of the body; L{None} if it is chunked.
    @ivar expects: the client waits for C{100 Continue} before it sends the body.
    @ivar closes: the client wants the connection to end after the answer.
    """

    method: str
    target: str
    fields: FieldValues
    length: int | None = 0
    expects: bool = False
    closes: bool = False

    def all(self, name: bytes) -> Sequence[bytes]:
        """
        Return the values of a field; its name is in lower case, as below.
        """
        return self.fields.get(name, ())

    def one(self, name: bytes) -> bytes | None:
        """
        Return the value of a field that may come once; L{None} if it is not there.
        """
        found = self.all(name)
        if len(found) > 1:
            raise Problem(400, f"the field {name.decode()} comes twice; send it once")
        return found[0] if found else None

    def words(self, name: bytes) -> set[bytes]:
        """
        Return the members of a field that is a list, in lower case.
        """
        return _members(self.all(name))

    @property
    def wantsPage(self) -> bool:
        """
        Tell whether it is a browser's, which shows the answer.
        """
        return any(b"text/html" in value.lower() for value in self.all(b"accept"))


def _members(values: Iterable[bytes]) -> set[bytes]:
    return {member.strip() for value in values for member in value.lower().split(b",")}


def _broken(why: str, status: int = 400, code: str = "protocol") -> Problem:
    return Problem(status, why, code, closes=True)


def cutHead(buffer: bytearray) -> bytes | None:
    """
    Take the head with its empty line from the beginning of C{buffer}; L{None} if it is not
    complete.
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


def readFields(raw: bytes) -> dict[bytes, list[bytes]]:
    """
    Read the lines of fields of a head or a trailer, unless they can be read in two ways.
    """
    if raw.count(b"\n") >= MAX_FIELDS:
        raise _broken(f"a head has at most {MAX_FIELDS} fields", 431)
    if not _FIELDS.fullmatch(raw):
        if _STRAY.search(raw):
            raise _broken("fields are lines that end with CR LF, with no other control characters")
        raise _broken("a field is NAME: VALUE, with no space before the colon")
    fields: dict[bytes, list[bytes]] = {}
    for line in raw.split(b"\r\n") if raw else ():
        name, _, value = line.partition(b":")
        fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
    return fields


def parseHead(raw: bytes) -> Head:
    """
    Read a head that L{cutHead} gave.
    """
    first, _, rest = raw[: -len(_END)].partition(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        raise _broken("the first line is METHOD TARGET HTTP/1.1, with one space between")
    method, target, version = line[1].decode("ascii"), line[2].decode("ascii"), line[3]
    if version not in {b"1.1", b"1.0"}:
        raise _broken("only HTTP/1.1 and HTTP/1.0 are spoken here", 505, "unsupported")
    if method not in METHODS:
        raise _broken(f"methods are {', '.join(METHODS)}, in capitals", 501, "unsupported")
    if len(target) > MAX_TARGET_BYTES:
        raise _broken(f"a target has at most {MAX_TARGET_BYTES} bytes", 414)
    fields = readFields(rest)
    old = version == b"1.0"
    hosts = fields.get(b"host", ())
    if len(hosts) != 1 and not (old and not hosts):
        raise _broken("a request has one Host")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise _broken("Host is not an address or a name with a port")
    length = _judgeFraming(fields, old)
    expected = [value.lower() for value in fields.get(b"expect", ())]
    if expected not in ([], [b"100-continue"]):
        raise _broken("the only expectation is 100-continue", 417, "unsupported")
    expects = bool(expected) and not old and length != 0
    closes = old or b"close" in _members(fields.get(b"connection", ()))
    return Head(method, target, fields, length, expects, closes)


def _judgeFraming(fields: FieldValues, old: bool) -> int | None:
    """
    Return the bytes of the body; L{None} if it is chunked.
    """
    lengths = fields.get(b"content-length", ())
    codings = fields.get(b"transfer-encoding", ())
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
