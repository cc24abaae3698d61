"""
The bytes of a body, cut out of the stream.

A body of known length is passed on as it came, without a copy.  The pieces of a chunked one
(RFC 9112 section 7.1) are joined; its lines are read strictly, extensions and all: a line end
that one reader sees in an extension and another does not hides a request
(CVE-2025-22871, CVE-2025-55315).
"""

from __future__ import annotations

import re

from connpool.transfer.web.answers import Problem
from connpool.transfer.web.head import MAX_LENGTH, FieldValues, readFields

__all__ = ["Chunked", "Sized"]

#: Bytes of the line before a chunk, and of all trailers.
_MAX_CHUNK_LINE_BYTES = 256
_MAX_TRAILERS_BYTES = 16 * 1024
_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_CHUNK = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb'(?:[ \t]*;[ \t]*%s(?:[ \t]*=[ \t]*(?:%s|"[\t !#-\[\]-~\x80-\xff]*"))?)*\r\n'
    % (_TOKEN, _TOKEN)
)
#: Fields that mean nothing behind a body, and something else to whoever merges them.
_NO_TRAILERS = frozenset({b"content-length", b"transfer-encoding", b"host", b"content-range"})


class Sized:
    """
    A body of known length, of which C{left} bytes have not come.
    """

    trailers: FieldValues = {}  # a Mapping

    def __init__(self, length: int) -> None:
        self.left = length

    @property
    def over(self) -> bool:
        """
        Tell whether all of it came.
        """
        return not self.left

    def feed(self, data: bytes | bytearray) -> tuple[memoryview, bytes | bytearray]:
        """
        @return: the part of C{data} that is content, and what follows the body.
        """
        view = memoryview(data)[: self.left]
        self.left -= len(view)
        return view, data[len(view) :] if len(view) < len(data) else b""


class Chunked:
    """
    A chunked body; C{over} when all of it came, with the fields behind it in C{trailers}.
    """

    def __init__(self) -> None:
        self.over = False
        self.trailers: FieldValues = {}
        #: of the present chunk
        self._left = 0
        self._kept = b""
        self._first = True
        self._last = False

    def feed(self, data: bytes | bytearray) -> tuple[memoryview, bytes | bytearray]:
        """
        Do as L{Sized.feed}; raise a L{Problem} if it is not as it has to be.
        """
        data = self._kept + bytes(data)
        self._kept = b""
        found: list[memoryview] = []
        view = memoryview(data)
        at = 0
        while not self.over and at < len(data):
            if self._left:
                found.append(view[at : at + self._left])
                at += len(found[-1])
                self._left -= len(found[-1])
                continue
            after = self._trailers(data, at) if self._last else self._line(data, at)
            if after is None:
                self._kept, at = data[at:], len(data)
            else:
                at = after
        content = found[0] if len(found) == 1 else memoryview(b"".join(found))
        return content, data[at:]

    def _line(self, data: bytes, at: int) -> int | None:
        """
        @return: the place behind the line before a chunk; L{None} if it is not there yet.
        """
        if not self._first:
            # the end of the chunk before
            if data[at : at + 2] != b"\r\n"[: len(data) - at]:
                raise _broken()
            at += 2
        end = data.find(b"\n", at, at + _MAX_CHUNK_LINE_BYTES)
        if end < 0:
            if len(data) - at >= _MAX_CHUNK_LINE_BYTES:
                raise _broken()
            return None
        line = _CHUNK.fullmatch(data, at, end + 1)
        if line is None or (size := int(line[1], 16)) > MAX_LENGTH:
            raise _broken()
        self._first = False
        self._left = size
        self._last = not size
        return end + 1

    def _trailers(self, data: bytes, at: int) -> int | None:
        if data[at : at + 2] == b"\r\n":
            self.over = True
            return at + 2
        end = data.find(b"\r\n\r\n", at, at + _MAX_TRAILERS_BYTES)
        if end < 0:
            if len(data) - at >= _MAX_TRAILERS_BYTES:
                raise _broken()
            return None
        self.trailers = readFields(data[at:end])
        if not _NO_TRAILERS.isdisjoint(self.trailers):
            raise _broken()
        self.over = True
        return end + 4


def _broken() -> Problem:
    return Problem(400, "the body is not chunked as RFC 9112 says", closes=True)
