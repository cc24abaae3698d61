"""
Forms: each file of a C{multipart/form-data} body goes to the reception as it comes.

The names in a form are what a browser's user has, with directories where a folder was chosen;
nothing of them is repaired.  A browser writes a quotation mark and line ends in a name as
C{%22}, C{%0D} and C{%0A}, and leaves every other percent sign as it is (HTML, multipart form
data).
"""

from __future__ import annotations

import html
import logging
import re
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from twisted.internet.defer import Deferred, DeferredLock

from connpool.errors import NameRefused, TransferError
from connpool.transfer.names import displayName
from connpool.transfer.web.answers import (
    Answer,
    Problem,
    accountOf,
    documentOf,
    jsonAnswer,
    pageAnswer,
    statusOf,
)
from connpool.transfer.web.digests import Digests
from connpool.transfer.web.put import WholeFile
from connpool.transfer.web.request import Request

__all__ = ["storeForm"]

#: Parts of a form, and those of them that are no files; bytes of such a field.
MAX_PARTS, MAX_FIELDS, MAX_FIELD_BYTES = 1000, 16, 4096
#: Fields of a part, and bytes of each.
_MAX_HEADERS, _MAX_HEADER_BYTES = 16, 8192

_BOUNDARY = re.compile(
    rb"multipart/form-data[ \t]*;(?:.*;)?[ \t]*boundary="
    rb"""(?:"([ -!#-~]{1,70})"|([!#-+\--:<-~]{1,70}))[ \t]*(?:;.*)?""",
    re.IGNORECASE,
)
_PARAMETER = re.compile(
    rb""";[ \t]*([-!#$%&'+.^_`|~0-9A-Za-z]+\*?)=("(?:[^"\\]|\\.)*"|[^;\s"]*)[ \t]*""", re.DOTALL
)
_PLAIN_CODINGS = {b"", b"7bit", b"8bit", b"binary"}
#: The parser says each fault to a logger; we say it to the client, and summarise.
_SILENT = logging.getLogger(__name__)
_SILENT.disabled = True
_ESCAPES = {b"%22": b'"', b"%0D": b"\r", b"%0A": b"\n", b'\\"': b'"'}


def parametersOf(value: bytes) -> dict[bytes, bytes]:
    """
    Return the parameters of a C{Content-Disposition} of a part of a form, names in lower case.
    """
    kind, semicolon, rest = value.partition(b";")
    found: dict[bytes, bytes] = {}
    at, text = 0, semicolon + rest
    while at < len(text):
        parameter = _PARAMETER.match(text, at)
        if parameter is None or parameter[1].lower() in found:
            break
        content = parameter[2]
        if content.startswith(b'"'):
            content = re.sub(rb'%22|%0D|%0A|\\"', lambda m: _ESCAPES[m[0]], content[1:-1])
        found[parameter[1].lower()] = content
        at = parameter.end()
    if kind.strip().lower() != b"form-data" or at < len(text):
        raise Problem(400, "a part of a form has one Content-Disposition: form-data; name=…")
    return found


def nameIn(parameters: dict[bytes, bytes]) -> bytes | None:
    """
    @return: the name of a file in a part; L{None} if it is no file.
    """
    extended = parameters.get(b"filename*")
    if extended is None:
        return parameters.get(b"filename")
    charset, _, rest = extended.partition(b"'")
    if charset.lower() != b"utf-8" or b"'" not in rest:
        raise NameRefused("a name by filename* begins with UTF-8''")
    return unquote_to_bytes(rest.partition(b"'")[2])


async def storeForm(request: Request) -> Answer:
    """
    Store the files of a form; the target is their directory.
    """
    boundary = _BOUNDARY.fullmatch(b", ".join(request.head.all(b"content-type")))
    if boundary is None:
        raise Problem(
            415,
            "POST takes a form (multipart/form-data with a boundary) or creates an upload of "
            "tus (Tus-Resumable and Upload-Length); send a whole file with PUT",
            "unsupported",
        )
    reading = _Reading(request, boundary[1] or boundary[2])
    try:
        await request.receive(reading.write)
        return reading.answer()
    except BaseException as e:
        await reading.abort(e)
        raise


class _Reading:
    """
    The reading of one form.
    """

    def __init__(self, request: Request, boundary: bytes) -> None:
        self._request = request
        #: receipts and problem documents, in order
        self._told: list[dict[str, Any]] = []
        self._lock = DeferredLock()
        #: the disposition of a part that begins, a slice of its bytes, or L{None} for its end
        self._events: list[bytes | list[Any] | None] = []
        self._field, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._parts = self._plain = 0
        self._ended = False
        #: where the bytes of the present part go: to a file, a field, or nowhere
        self._into: WholeFile | bytearray | None = None
        #: of the present file; and the one that a field before it has, as some clients do
        self._name = self._path = b""
        self._isPath = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": self._headerField,
                "on_header_value": self._headerValue,
                "on_header_end": self._headerEnd,
                "on_headers_finished": self._begun,
                "on_part_data": self._data,
                "on_part_end": lambda: self._events.append(None),
                "on_end": self._over,
            },
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )
        self._parser.logger = _SILENT

    # -- the parser's side: nothing is done at once, everything in order

    def _headerField(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _headerValue(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _headerEnd(self) -> None:
        if self._field.lower() in self._headers:
            raise Problem(400, "a field of a part comes twice")
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _begun(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Problem(413, f"a form has at most {MAX_PARTS} parts", "too-large")
        coding = self._headers.get(b"content-transfer-encoding", b"").strip().lower()
        if coding not in _PLAIN_CODINGS:
            raise Problem(415, "parts come as they are, without Content-Transfer-Encoding")
        self._events.append(self._headers.get(b"content-disposition", b""))

    def _data(self, data: bytes, start: int, end: int) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, list) and last[0] is data and last[2] == start:
            last[2] = end
        else:
            self._events.append([data, start, end])

    def _over(self) -> None:
        self._ended = True

    def write(self, view: memoryview) -> Deferred[None]:
        """
        Take the bytes that follow.
        """
        try:
            self._parser.write(bytes(view))
        except FormParserError as e:
            raise Problem(400, f"the form is broken: {e}") from None
        events, self._events = self._events, []
        return self._lock.run(lambda: Deferred.fromCoroutine(self._take(events)))

    # -- what becomes of the parts

    async def _take(self, events: list[bytes | list[Any] | None]) -> None:
        for event in events:
            try:
                if event is None:
                    await self._end()
                elif isinstance(event, bytes):
                    await self._begin(parametersOf(event))
                else:
                    await self._write(memoryview(event[0])[event[1] : event[2]])
            except Problem:
                raise
            except TransferError as e:
                await self._drop(e)
                document = documentOf(e, statusOf(e))
                self._told.append({**document, "name": displayName(self._name)})

    async def _begin(self, parameters: dict[bytes, bytes]) -> None:
        name = nameIn(parameters)
        if name is None:
            self._plain += 1
            if self._plain > MAX_FIELDS:
                raise Problem(413, f"a form has at most {MAX_FIELDS} fields", "too-large")
            self._into = bytearray()
            self._isPath = parameters.get(b"name") == b"relativePath"
            return
        path, self._path = self._path, b""
        self._name = name if path in {b"", b"null"} else path
        if self._name:  # else no file was chosen
            # a form has no key; this one has the receipt noted before it is told
            offer = self._request.offer(self._name, key=secrets.token_bytes(32))
            file = WholeFile(self._request, offer, Digests())
            await file.begin()
            self._into = file

    async def _write(self, view: memoryview) -> None:
        into = self._into
        if isinstance(into, WholeFile):
            written = into.write(view)
            if written is not None:
                await written
        elif into is not None:
            into += view
            if len(into) > MAX_FIELD_BYTES:
                raise Problem(413, f"a field has at most {MAX_FIELD_BYTES} bytes", "too-large")

    async def _end(self) -> None:
        into, self._into = self._into, None
        if isinstance(into, bytearray):
            self._path = bytes(into) if self._isPath else b""
        elif into is not None:
            receipt = await into.commit({})
            self._told.append(accountOf(receipt, self._request.sender.identity))

    async def _drop(self, why: BaseException) -> None:
        into, self._into = self._into, None
        if isinstance(into, WholeFile):
            await into.abort(why)

    async def abort(self, why: BaseException) -> None:
        """
        Remove the file that was under way.
        """
        await self._lock.run(lambda: None)
        await self._drop(why)

    def answer(self) -> Answer:
        """
        Tell what became of the files.
        """
        if not self._ended:
            raise Problem(400, "the form ended before its last boundary")
        if not self._told:
            raise Problem(400, "the form has no file")
        became = [each["status"] for each in self._told]
        failed = [status for status in became if isinstance(status, int)]
        status = failed[0] if failed else 201 if "stored" in became else 200
        if not self._request.head.wantsPage:
            return jsonAnswer(status, self._told)
        rows = "".join(_rows(self._told))
        return pageAnswer(status, "Received", f'<ul>{rows}</ul><p><a href="./">Send more</a>')


def _rows(told: list[dict[str, Any]]) -> Iterator[str]:
    for each in told:
        text = f"{displayName(each.get('name', ''))}: {each.get('detail') or each['status']}"
        yield f"<li>{html.escape(text.removeprefix(': '))}</li>"
