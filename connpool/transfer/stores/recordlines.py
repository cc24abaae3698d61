"""
Append-only files of records that survive a crash.

A record is one line: a checksum, a space, JSON.  A crash may leave half a
line, and another process may append after it, so a line that does not check
is skipped and the next one read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import msgspec

_LINE = re.compile(rb"[^\n]+\n")

__all__ = ["decodeLine", "encodeLine", "linesOf"]


def encodeLine(record: Any) -> bytes:
    """
    Write one record.  It begins a line of its own, whatever was left before it.
    """
    body = msgspec.json.encode(record)
    return b"\n%08x %b\n" % (crc32(body), body)


def decodeLine(line: bytes, shape: Any = Any) -> Any:
    """
    Read one record.

    @param shape: type of the record, as C{msgspec} takes it.
    @return: the record, or L{None} if the line is damaged or has another shape.
    """
    try:
        if int(line[:8], 16) != crc32(line[9:]):
            return None
        return msgspec.json.decode(line[9:], type=shape)
    except (ValueError, RecursionError, msgspec.DecodeError):
        return None


def linesOf(data: bytes) -> Iterator[tuple[int, bytes]]:
    """
    Return offset and content of each line that has ended.
    """
    for found in _LINE.finditer(data):
        yield found.start(), found[0][:-1]
