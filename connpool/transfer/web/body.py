"""
The body of a request: its bytes, cut out of the stream, on their way to whoever asked for them.

A body of known length is passed on as it came, without a copy.  The pieces of a chunked one
(RFC 9112 section 7.1) are joined; its lines are read strictly, extensions and all: a line end
that one reader sees in an extension and another does not hides a request
(CVE-2025-22871, CVE-2025-55315).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from connpool.errors import StoreError, TransferError
from connpool.transfer.web.answers import Problem
from connpool.transfer.web.head import MAX_LENGTH, FieldValues, readFields
from connpool.transfer.wire.link import Deadline

__all__ = ["Chunked", "Flow", "Sink", "Sized"]

#: Bytes that may wait for the disk or a digest before no more is read.
MAX_OUTSTANDING_BYTES = 4 << 20

#: Takes a run of content; returns L{None} when it is done with it, or a Deferred that fires
#: when it is.
Sink = Callable[[memoryview], "Deferred[None] | None"]

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


@attrs.define(eq=False)
class Flow:
    """
    The body of one request, held to the deadline of seconds without a byte and bytes/s;
    C{changed} is told that L{wants} may have changed.
    """

    _clock: Any
    _length: int | None
    _limits: Callable[[], tuple[float, float]]
    _changed: Callable[[], None]
    _body: Sized | Chunked = attrs.field(init=False)
    #: there is none for a body that is here already
    _deadline: Deadline | None = attrs.field(default=None, init=False)
    _sink: Sink | None = attrs.field(default=None, init=False)
    _outstanding: int = attrs.field(default=0, init=False)
    _done: Deferred[FieldValues] | None = attrs.field(default=None, init=False)
    _why: TransferError | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._body = Chunked() if self._length is None else Sized(self._length)

    @property
    def over(self) -> bool:
        """
        Tell whether nothing of the body is left in the stream.
        """
        return self._body.over

    @property
    def flows(self) -> bool:
        """
        Tell whether more of it is going to be read.
        """
        return self._sink is not None and self._why is None and not self._body.over

    @property
    def wants(self) -> bool:
        """
        Tell whether more of it may be read now.
        """
        return self.flows and self._outstanding <= MAX_OUTSTANDING_BYTES

    @property
    def left(self) -> int:
        """
        Bytes of a body of known length that have not come; 0 for another one.
        """
        return self._body.left if isinstance(self._body, Sized) else 0

    def begin(self, sink: Sink) -> Deferred[FieldValues]:
        """
        Let the body flow, once L{steer} is called; as
        L{connpool.transfer.web.request.Request} says of C{receive}.
        """
        assert self._sink is None, "a body is taken once"
        if self._why is not None:
            return fail(self._why)
        self._sink, self._done = sink, Deferred()
        return self._done

    def feed(self, data: Any, free: Callable[[], None] = lambda: None) -> Any:
        """
        Take bytes of the stream, and call C{free} when they are not needed any more.  Return
        those behind the body; after keeping them, L{steer} is to be called.
        """
        assert self._sink is not None
        if self._deadline is not None:
            self._deadline.arrived(len(data))
        rest: bytes | bytearray = b""
        taking = None
        try:
            run, rest = self._body.feed(data)
            if run and self._why is None:
                taking = self._sink(run)
        except TransferError as e:
            self.fail(e)
        if taking is None:
            free()
            return rest
        count = len(run)
        self._outstanding += count

        def taken(result: Any) -> None:
            self._outstanding -= count
            free()
            if isinstance(result, Failure):
                why: Any = result.value
                self.fail(why)
            else:
                self.steer()

        taking.addBoth(taken)
        return rest

    def steer(self) -> None:
        """
        Find out whether to read on, and tell if all is done.
        """
        # time in which we do not read is not the client's
        if self.wants:
            if self._deadline is None:
                self._deadline = Deadline(self._clock, *self._limits(), self.fail)
            self._deadline.start()
        elif self._deadline is not None:
            self._deadline.stop()
        done = self._done
        if done is not None and self._why is None and self.over and not self._outstanding:
            self._done = None
            done.callback(self._body.trailers)
        self._changed()

    def fail(self, why: BaseException) -> None:
        """
        Break it off: nothing more of it is given to the sink.
        """
        if self._why is not None or (self._sink is not None and self._done is None):
            return
        if not isinstance(why, TransferError):
            why = StoreError(f"the store failed: {type(why).__name__}")
        self._why = why
        done, self._done = self._done, None
        self.steer()
        if done is not None:
            done.errback(why)
