"""
Downloads: files that may be read, and lists of them.

Theory of operation
===================
Who may read what is decided as everywhere (L{connpool.transfer.receive.reading}); here it is
said in HTTP.  A file is never shown, only saved: whoever put it there must not get the origin
of the receiver for a page of their own.  One range is served, for those who go on.  A file
goes out in pieces of one version; if there is another one before its end, the connection
breaks, and its client knows by the length that it has not got all.
"""

from __future__ import annotations

import html
import re
from collections.abc import AsyncGenerator
from email.utils import formatdate, parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import ChangedSource, NotFound
from connpool.transfer.names import displayName
from connpool.transfer.receive.reading import Reader, readerOf
from connpool.transfer.records import FileRange, ListedEntry
from connpool.transfer.web.answers import Answer, Fields, Problem, jsonAnswer, pageAnswer
from connpool.transfer.web.head import Head
from connpool.transfer.web.request import Request
from connpool.transfer.web.target import TOP_LIST

__all__ = ["download", "showDirectory"]

#: Bytes that are read at once, and names of one list.
PIECE_BYTES, MAX_NAMES = 1 << 20, 10_000
_PAGE_NAMES = 1000

#: An entity tag without its C{W/}: weak ones are compared with, too, and we make none.
_TAG = re.compile(rb'"[^"]*"|\*')
_RANGE = re.compile(rb"bytes=([0-9]{0,19})-([0-9]{0,19})")
#: A page that the file is, if a browser shows it all the same, may do nothing.
_SANDBOX = "sandbox; default-src 'none'; frame-ancestors 'none'"
_LIST_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _readerOf(request: Request) -> Reader:
    sender = request.sender
    return readerOf(request.reception, sender.identity, sender.peer)


# -- files -------------------------------------------------------------------------------


async def download(request: Request) -> Answer:
    """
    Give a file, or one range of it.
    """
    reader, raw = _readerOf(request), request.target.path
    found = await reader.read(raw, 0, 0)
    size = found.size
    tag = f'"{found.version.hex()}"'
    modified = max(0, found.modified // 10**9)
    fields = [("ETag", tag), ("Last-Modified", formatdate(modified, usegmt=True))]
    if _isKnown(request.head, tag, modified):
        return Answer(304, fields)
    fields += [
        ("Content-Type", "application/octet-stream"),
        ("Content-Disposition", _disposition(raw)),
        ("Content-Security-Policy", _SANDBOX),
        ("Accept-Ranges", "bytes"),
    ]
    wanted = _rangeOf(request.head, size) if _mayRange(request.head, tag) else None
    if wanted is None:
        return Answer(200, fields, stream=_Content(reader, raw, 0, size, found))
    start, end = wanted
    if start >= end:
        unsatisfiable: Fields = [("Content-Range", f"bytes */{size}")]
        raise Problem(416, f"the file has {size} bytes", "protocol", fields=unsatisfiable)
    fields.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
    return Answer(206, fields, stream=_Content(reader, raw, start, end, found))


def _disposition(raw: bytes) -> str:
    name = raw.rpartition(b"/")[2]
    plain = re.sub(r"[^A-Za-z0-9 ._()+-]", "_", name.decode("ascii", "replace"))
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _isKnown(head: Head, tag: str, modified: int) -> bool:
    """
    Judge the conditions of a request in their order (RFC 9110, 13.2.2).

    @param modified: seconds since the epoch.
    @return: whether the client has this very version already.
    @raise Problem: it wants another one.
    """

    def lists(name: bytes) -> bool | None:
        tags = [each for value in head.all(name) for each in _TAG.findall(value)]
        return None if not head.all(name) else b"*" in tags or tag.encode() in tags

    wanted, since = lists(b"if-match"), _dateOf(head, b"if-unmodified-since")
    if wanted is False or (wanted is None and since is not None and modified > since):
        raise Problem(412, "the file is another version", "protocol")
    known = lists(b"if-none-match")
    # not a later date: a file may be replaced by one with an older time
    return modified == _dateOf(head, b"if-modified-since") if known is None else known


def _dateOf(head: Head, name: bytes) -> float | None:
    """
    @return: seconds since the epoch; L{None} for what is no date, which is ignored.
    """
    try:
        return parsedate_to_datetime((head.one(name) or b"").decode("ascii")).timestamp()
    except (ValueError, OverflowError):
        return None


def _mayRange(head: Head, tag: str) -> bool:
    """
    Tell whether the client has a part of this very version, if it says so (RFC 9110, 13.1.5).
    """
    # a date is no strong validator: it gets all of it
    condition = head.one(b"if-range")
    return condition is None or condition == tag.encode()


def _rangeOf(head: Head, size: int) -> tuple[int, int] | None:
    """
    Return the offsets of the one range that is asked for, equal ones if nothing is there; L{None}
    to give all, which is what several ranges get.
    """
    value = head.one(b"range")
    found = None if value is None else _RANGE.fullmatch(value)
    if found is None or found[0] == b"bytes=-":
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size
    start = int(found[1])
    end = min(int(found[2]) + 1, size) if found[2] else size
    if found[2] and int(found[2]) < start:
        return None  # it is no range at all
    return start, max(start, end)


@attrs.frozen
class _Content:
    """
    The bytes of one version of a file from C{start} to C{end}.
    """

    reader: Reader
    raw: bytes
    start: int
    end: int
    first: FileRange

    @property
    def length(self) -> int:
        """
        Bytes of all.
        """
        return self.end - self.start

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """
        Read the body, piece by piece.
        """
        at = self.start
        ahead = self._read(at)
        try:
            while at < self.end:
                found = await ahead
                if found.version != self.first.version or not found.data:
                    raise ChangedSource(f'"{displayName(self.raw)}" is another one by now')
                at += len(found.data)
                # while this one is on its way
                ahead = self._read(at)
                yield found.data
        finally:
            ahead.addErrback(lambda _: None)
            ahead.cancel()

    def _read(self, at: int) -> Deferred[FileRange]:
        end = min(at + PIECE_BYTES, self.end)
        return Deferred.fromCoroutine(self.reader.read(self.raw, at, max(at, end)))


# -- directories -------------------------------------------------------------------------


async def showDirectory(request: Request) -> Answer:
    """
    List a directory: for browsers as a page, else as JSON.
    """
    reader, path = _readerOf(request), request.target.path.removesuffix(b"/")
    if request.target.path == TOP_LIST:
        path = b""
    elif not path:
        raise NotFound('there is no "/"')  # //: the top has one URL
    entries: list[ListedEntry] = []
    more = True
    while more and len(entries) < MAX_NAMES:
        after = entries[-1].name if entries else ""
        page = await reader.listing(path, after, min(_PAGE_NAMES, MAX_NAMES - len(entries)))
        entries += page.entries
        more = page.more
    if request.head.wantsPage:
        return _asPage(request.target.path, path, entries, more)
    document: dict[str, Any] = {
        "path": path.decode("utf-8", "replace"),
        "entries": [
            {
                "name": each.name,
                "kind": "directory" if each.directory else "file",
                "size": None if each.directory else each.size,
                "modified": each.modified,
            }
            for each in entries
        ],
        "more": more,
    }
    return jsonAnswer(200, document)


def _asPage(target: bytes, path: bytes, entries: list[ListedEntry], more: bool) -> Answer:
    top = target == TOP_LIST
    # names of the top lie beside our own directory, in which the list of them is
    base = "../../" if top else "./"
    rows = [
        f'<tr><td><a href="{base}{quote(each.name)}{slash}">'
        f"{html.escape(displayName(each.name))}{slash}</a>"
        f"<td align=right>{'' if each.directory else each.size}"
        f"<td>{formatdate(max(0, each.modified // 10**9), usegmt=True) if each.modified else ''}"
        for each in entries
        for slash in ["/" * each.directory]
    ]
    depth = path.count(b"/")
    parent = "../" if depth else f"../{TOP_LIST.decode()}"
    up = "" if top else f'<p><a href="{parent}">..</a>'
    rest = f"<p>The first {len(entries)} names; connpool list has all." if more else ""
    table = "<table><thead><tr><th>Name<th>Bytes<th>Modified<tbody>"
    content = f"{up}{table}{''.join(rows)}</table>{rest}"
    fields = [("Content-Security-Policy", _LIST_POLICY)]
    return pageAnswer(200, displayName(path) or "/", content, fields)
