"""
Answers of HTTP/1.1, read as they come.

An answer of the plain form, whose head is well-formed and tells the length of its body, is read
here.  C{h11} reads every other one: it takes ten times as long, which would be a third of what
a small file costs.
"""

from __future__ import annotations

import re

import attrs
import h11

__all__ = ["Broken", "Reply", "ReplyReader"]

_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-5]\d\d)(?: [^\r\n\0]*)?\r\n((?:[!#$%&'*+.^_`|~\w-]+:[^\r\n\0]*\r\n)+)\r\n",
    re.ASCII,
).match
_HEAD_ENDS = re.compile(rb"\n\r?\n").search
_LENGTH = re.compile(r"[0-9]{1,15}").fullmatch
_MOST_HEAD_BYTES = 16 * 1024


class Broken(Exception):
    """
    The connection ended, or was silent for too long, before the answer was whole.

    @ivar silent: whether it was silent; then its server should not be asked again at once.
    @ivar early: whether nothing of an answer came on a connection that was used before: the
        server had probably closed it already.
    """

    def __init__(self, why: str, *, silent: bool = False, early: bool = False) -> None:
        super().__init__(why)
        self.silent = silent
        self.early = early


@attrs.frozen
class Reply:
    """
    An answer as HTTP has it.

    @ivar headers: by name, in lower case; of several with one name the last.
    """

    status: int
    headers: dict[str, str]
    body: bytes = attrs.field(repr=False)


class ReplyReader:
    """
    Reads the answer to one request.

    @param method: of the request.
    @param most: bytes that the answer's body may have.
    @ivar begun: whether a byte came.
    @ivar last: whether nothing may follow on the connection; known with the answer.
    """

    def __init__(self, method: str, most: int) -> None:
        self._method = method
        self._most = most
        self.begun = False
        self.last = True
        self._status = 0
        self._headers: dict[str, str] = {}
        self._came = bytearray()
        #: of the body of a plain answer whose head was read
        self._length: int | None = None
        self._http: h11.Connection | None = None

    def feed(self, data: bytes) -> Reply | None:
        """
        Take bytes that came.

        @return: the answer, if this is all of it.
        @raise Broken: it is none that could be read.
        """
        self.begun = True
        if self._http is not None:
            return self._readOther(data)
        self._came += data
        if self._length is None and not self._readHead():
            if _HEAD_ENDS(self._came) is None and len(self._came) <= _MOST_HEAD_BYTES:
                return None
            came, self._came = bytes(self._came), bytearray()
            self._http = h11.Connection(h11.CLIENT)
            asked = h11.Request(method=self._method, target="/", headers=[("host", "engine")])
            self._http.send(asked)
            self._http.send(h11.EndOfMessage())
            return self._readOther(came)
        assert self._length is not None
        if len(self._came) < self._length:
            return None
        last = "close" in self._headers.get("connection", "").lower()
        self.last = last or len(self._came) > self._length
        del self._came[self._length :]
        return Reply(self._status, self._headers, bytes(self._came))

    def end(self) -> Reply | None:
        """
        Take the end of the connection, with which an answer may end.

        @return, @raise: as L{feed}.
        """
        return None if self._http is None else self._readOther(b"")

    def _readHead(self) -> bool:
        """
        Take the head off what came, if it is a plain one.
        """
        found = _HEAD(self._came)
        if found is None:
            return False
        lines = found[2].decode("latin-1").split("\r\n")[:-1]
        pairs = [line.partition(":") for line in lines]
        headers = {name.lower(): value.strip(" \t") for name, _, value in pairs}
        length = headers.get("content-length", "")
        repeats = len(headers) < len(lines)
        if repeats or "transfer-encoding" in headers or not _LENGTH(length):
            return False
        self._status, self._headers = int(found[1]), headers
        bodiless = self._method == "HEAD" or self._status in {204, 304}
        self._length = 0 if bodiless else int(length)
        self._verify(self._length)
        del self._came[: found.end()]
        return True

    def _readOther(self, data: bytes) -> Reply | None:
        assert self._http is not None
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                    self._headers = {
                        name.decode("latin-1"): value.decode("latin-1")
                        for name, value in event.headers
                    }
                elif isinstance(event, h11.Data):
                    self._came += event.data
                    self._verify(len(self._came))
                elif isinstance(event, h11.EndOfMessage):
                    done = self._http.their_state is h11.DONE
                    self.last = not done or bool(self._http.trailing_data[0])
                    return Reply(self._status, self._headers, bytes(self._came))
                elif not isinstance(event, h11.InformationalResponse):
                    return None
        except h11.RemoteProtocolError as e:
            raise Broken(f"the answer is not HTTP: {e}") from None

    def _verify(self, length: int) -> None:
        if length > self._most:
            raise Broken(f"the answer is longer than {self._most} bytes")
