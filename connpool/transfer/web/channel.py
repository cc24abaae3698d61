"""
One connection that speaks HTTP/1.1: bytes, deadlines and back-pressure, no meaning.

Theory of operation
===================
One request at a time: nothing is read or parsed behind a request until it is answered.  A
head is cut out and judged (L{connpool.transfer.web.head}); the door finds a resource that
answers it, in a coroutine.  The resource asks for the body when it is ready for it; only then
is C{100 Continue} sent, and the body read, a long one of known length past the transport.

The connection ends after an error of framing, after a request whose body was not read to its
end, and when the client or a drain wants it.  It is closed by halves: the answer is written,
our direction closed, and what the client still sends is read and dropped, at most
L{LINGER_BYTES} bytes or L{LINGER_SECONDS} seconds: else its kernel would drop the answer for
the reset.  TLS has no halves; there the client closes.

Deadlines: L{HEAD_SECONDS} for a whole head, however it trickles; L{IDLE_SECONDS} between
requests; the deadline of every transfer for bodies; and an answer has to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing, suppress
from email.utils import formatdate
from enum import Enum, auto
from functools import lru_cache
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorFDSet,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import NetworkFailed, TransferError
from connpool.interfaces import IDrainableProtocol
from connpool.transfer.web.answers import Answer, Fields, Problem, Stream
from connpool.transfer.web.body import Flow, Sink
from connpool.transfer.web.gate import Sender
from connpool.transfer.web.head import FieldValues, Head, cutHead, parseHead
from connpool.transfer.web.settings import WebCounts
from connpool.transfer.wire.borrowed import BorrowedReader, isPlain, lends
from connpool.waiting import Waiters

__all__ = ["HEAD_SECONDS", "IDLE_SECONDS", "LINGER_BYTES", "LINGER_SECONDS", "WebChannel"]

#: Seconds for a whole head, and between two requests.
HEAD_SECONDS, IDLE_SECONDS = 10.0, 75.0
#: Bytes and seconds that are listened to after the last answer.
LINGER_BYTES, LINGER_SECONDS = 8 << 20, 5.0
#: Seconds, and bytes/s beside them, in which an answer has to be read.
_UNREAD_SECONDS, _LEAST_READ_BYTES_PER_SECOND = 60.0, 1024
#: A body with as much to come is worth borrowing the socket for.
_LONG_BYTES = 128 * 1024
#: RFC 9113 section 3.4, up to its empty line.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
#: The first frames of an HTTP/2 server, SETTINGS and then GOAWAY with the error
#: HTTP_1_1_REQUIRED (RFC 9113 section 6.8).
_HTTP_1_1_REQUIRED = bytes(3) + b"\4" + bytes(5) + b"\0\0\10\7" + bytes(5) + bytes(7) + b"\r"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


class _State(Enum):
    HEAD = auto()
    ANSWERING = auto()
    LINGERING = auto()
    OVER = auto()


@implementer(IHalfCloseableProtocol, IPushProducer, IDrainableProtocol)
class WebChannel(Protocol):
    """
    One connection.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param sender: the client.
    @param deadline: tells the seconds of silence, and the bytes/s, that it is held to.
    @param answer: finds the answer to a request, and the fields of it that depend on the
        origin; never fails.
    @param refuse: makes the answer to something that is no request.
    """

    _log = Logger()

    transport: Any

    def __init__(
        self,
        clock: Any,
        sender: Sender,
        counts: WebCounts,
        deadline: Callable[[], tuple[float, float]],
        answer: Callable[[Head, WebChannel], Deferred[tuple[Answer, Fields]]],
        refuse: Callable[[TransferError], Answer],
    ) -> None:
        self._clock = clock
        self._sender = sender
        self._counts = counts
        self._deadline, self._answer, self._refusal = deadline, answer, refuse
        self._state = _State.HEAD
        self._buffer = bytearray()
        self._head: Head | None = None
        self._flow: Flow | None = None
        #: the present request is a HEAD
        self._bare = False
        self._paused = self._draining = self._halfClosed = self._ended = self._working = False
        self._written = self._dropped = 0
        #: the transport holds nothing back, and has a socket of its own
        self._direct = False
        #: one direction ends without the other
        self._halves = False
        #: of a long body
        self._reader: BorrowedReader | None = None
        self._turn: Any = None
        self._timer: Any = None
        self._late: Callable[[], None] = self._abort
        #: while the client does not read what we write: ends it
        self._unread: Any = None
        self._readable = Waiters()

    # -- the transport's side

    def connectionMade(self) -> None:
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self._direct = IReactorFDSet.providedBy(self._clock) and isPlain(self.transport)
        secure = ISSLTransport.providedBy(self.transport)
        self._halves = hasattr(self.transport, "loseWriteConnection") and not secure
        self._await(HEAD_SECONDS, self._headLate)

    def dataReceived(self, data: bytes) -> None:
        if self._state is _State.LINGERING:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self._abort()
        elif self._state is not _State.OVER:
            self._work(data)

    def readConnectionLost(self) -> None:
        self._halfClosed = True
        if self._state is _State.LINGERING:
            self.transport.loseConnection()
        else:
            self._work()

    def writeConnectionLost(self) -> None:
        pass  # ours to close, and closed

    def connectionLost(self, reason: Failure | None = None) -> None:
        unanswered = self._state is _State.ANSWERING
        self._state = _State.OVER
        self._giveBack()
        for call in (self._timer, self._turn):
            if call is not None and call.active():
                call.cancel()
        self._readAgain()
        if self._flow is not None:
            self._flow.fail(NetworkFailed("the client's connection was lost"))
        self._counts.connections -= 1
        self._counts.unanswered += unanswered
        self._sender.leave()

    def pauseProducing(self) -> None:
        """
        The client does not read what we write.
        """
        if self._unread is None:
            seconds = _UNREAD_SECONDS + self._written / _LEAST_READ_BYTES_PER_SECOND
            self._unread = self._clock.callLater(seconds, self._abort)
            self._steer()

    def resumeProducing(self) -> None:
        self._written = 0
        self._readAgain()
        self._work()

    def _readAgain(self) -> None:
        call, self._unread = self._unread, None
        if call is not None and call.active():
            call.cancel()
        self._readable.wake()

    def stopProducing(self) -> None:
        pass

    def drain(self) -> None:
        self._draining = True
        if self._state is _State.HEAD and not self._buffer:
            self._close()

    # -- the request's side

    def receive(self, sink: Sink) -> Deferred[FieldValues]:
        """
        Let the body of the present request flow.
        """
        head, flow = self._head, self._flow
        assert head is not None
        assert flow is not None
        if head.expects and not self._buffer and self._state is _State.ANSWERING:
            self._write(_CONTINUE)
            self._counts.interim += 1
        done = flow.begin(sink)
        self._pour()
        flow.steer()
        return done

    @property
    def end(self) -> Callable[[TransferError], None]:
        """
        The function that breaks off the body of the present request, and of no later one.
        """
        assert self._flow is not None
        return self._flow.fail

    # -- inside

    def _work(self, data: bytes = b"") -> None:
        """
        Do what the bytes that are here allow, and decide once whether to read on.
        """
        self._working = True
        if data and self._flow is not None and self._flow.wants and not self._buffer:
            # a run of a body goes to its sink without a copy
            self._feed(self._flow, data)
        else:
            self._buffer += data
        if self._state is _State.HEAD and self._unread is None and self._turn is None:
            self._cut()
        self._pour()
        self._working = False
        self._steer()

    def _pour(self) -> None:
        """
        Give the body what is here of it.
        """
        while self._flow is not None and self._flow.wants and self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            self._feed(self._flow, data)
        if self._halfClosed and self._flow is not None and self._flow.wants:
            self._flow.fail(NetworkFailed("the body ended before its time"))

    def _feed(self, flow: Flow, data: bytes) -> None:
        # what follows the body is there before anybody hears that it is over
        self._buffer += flow.feed(data)
        flow.steer()

    def _cut(self) -> None:
        try:
            raw = cutHead(self._buffer)
            if raw is None:
                if self._halfClosed:
                    self._close()
                elif self._buffer and self._late != self._headLate:
                    self._await(HEAD_SECONDS, self._headLate)
                return
            self._late = self._answering
            self._written = 0
            if raw == _HTTP2_PREFACE:
                self._write(_HTTP_1_1_REQUIRED)
                self._close()
                return
            self._bare = raw.startswith(b"HEAD ")
            head = self._head = parseHead(raw)
        except Problem as e:
            self._refuse(e)
            return
        self._state = _State.ANSWERING
        self._flow = Flow(self._clock, head.length, self._deadline, self._steer)
        self._answer(head, self).addCallback(self._reply)

    def _refuse(self, why: Problem) -> None:
        """
        Answer something that is no request, and end the connection.
        """
        self._state = _State.ANSWERING
        self._reply((self._refusal(why), ()))

    def _reply(self, answered: tuple[Answer, Fields]) -> None:
        """
        Write the final answer, and go on to the next request.
        """
        answer, more = answered
        if self._state is not _State.ANSWERING:
            return  # the client has left
        head, flow, bare = self._head, self._flow, self._bare
        self._head = self._flow = None
        self._bare = False
        unread = head is None or head.closes or flow is None or not flow.over
        if unread or self._draining or (self._halfClosed and not self._buffer):
            answer = attrs.evolve(answer, closes=True)
        self._write(answer.write(bare, [*more, ("Date", _date(int(self._clock.seconds())))]))
        self._counts.answered(answer.status, answer.code)
        if answer.stream is None or bare:
            self._replied(answer)
        else:
            Deferred.fromCoroutine(self._stream(answer, answer.stream)).addErrback(self._broke)

    async def _stream(self, answer: Answer, stream: Stream) -> None:
        """
        Write a body as fast as the client reads it.
        """
        async with aclosing(stream.pieces()) as pieces:
            async for data in pieces:
                while self._unread is not None and self._state is _State.ANSWERING:
                    await self._readable.wait()
                if self._state is not _State.ANSWERING:
                    return
                self._write(data)
                self._counts.sentBytes += len(data)
        self._replied(attrs.evolve(answer, closes=answer.closes or self._draining))

    def _broke(self, failure: Failure) -> None:
        """
        Break the connection: by the length its client knows that it has not got all.
        """
        if not isinstance(failure.value, TransferError):
            self._log.failure("an answer failed", failure)
        self._abort()

    def _replied(self, answer: Answer) -> None:
        if answer.closes:
            self._close()
            return
        self._state = _State.HEAD
        if self._buffer:
            # others have their turn before what was sent ahead
            self._turn = self._clock.callLater(0, self._next)
        else:
            self._await(IDLE_SECONDS, self._close)
        self._steer()

    def _next(self) -> None:
        self._turn = None
        self._work()

    def _write(self, data: bytes) -> None:
        """
        Write; to a socket that takes it without a turn of the reactor.
        """
        self._written += len(data)
        if self._direct:
            with suppress(OSError):  # the transport finds out, or waits
                data = data[self.transport.getHandle().send(data) :]
            self._direct = not data
        if data:
            self.transport.write(data)

    def _steer(self) -> None:
        """
        Read, or do not.
        """
        flow = self._flow
        if self._working or self._state is _State.OVER:
            return
        if self._state is _State.ANSWERING:
            if flow is not None and flow.flows and self._borrows(flow):
                return
            # a client that waits for its answer sends nothing more; one that does is held up then
            pause = bool(self._buffer or not self._halves) and (flow is None or not flow.wants)
        else:
            # what was sent ahead is looked at first
            waits = self._unread is not None or self._turn is not None
            pause = waits and self._state is _State.HEAD
        self._giveBack()
        self._pause(pause)

    def _pause(self, pause: bool) -> None:
        if pause != self._paused:
            self._paused = pause
            (self.transport.pauseProducing if pause else self.transport.resumeProducing)()

    # -- a long body, read from the socket itself (L{connpool.transfer.wire.borrowed})

    def _borrows(self, flow: Flow) -> bool:
        """
        @return: whether the body goes on that way.
        """
        if self._reader is None:
            plain = self._buffer or self._ended or not flow.wants or flow.left < _LONG_BYTES
            if plain or not lends(self._clock, self.transport):
                return False
            self._pause(True)
            self._reader = BorrowedReader(self._clock, self.transport, self)
        self._reader.steer(flow.wants)
        return True

    def _giveBack(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    @property
    def wanted(self) -> int:
        return self._flow.left if self._flow is not None else 0

    def borrowed(self, view: memoryview, done: Callable[[], None]) -> None:
        flow = self._flow
        if flow is not None:
            flow.feed(view, done)
            # it may be answered, and another's turn, by now
            flow.steer()

    def borrowedEnd(self) -> None:
        # nothing more comes, and it is the transport that is told so
        self._ended = True
        self._giveBack()
        self._steer()

    def failed(self, why: BaseException | None) -> None:
        self._abort()

    def steer(self) -> None:
        self._steer()

    # -- ends

    def _close(self) -> None:
        """
        End the connection after what was written.
        """
        if self._state in {_State.LINGERING, _State.OVER}:
            return
        self._state = _State.LINGERING
        self._buffer.clear()
        self.transport.unregisterProducer()
        self._readAgain()
        # an answer that was not read yet keeps its time
        unread = self._written / _LEAST_READ_BYTES_PER_SECOND
        self._await(LINGER_SECONDS + unread, self._abort)
        self._steer()
        if self._halfClosed:
            self.transport.loseConnection()
        elif self._halves:
            self.transport.loseWriteConnection()

    def _abort(self) -> None:
        self.transport.abortConnection()

    def _await(self, seconds: float, late: Callable[[], None]) -> None:
        """
        Call C{late} after C{seconds}, instead of the one before.
        """
        self._late = late
        if self._timer is None or not self._timer.active():
            self._timer = self._clock.callLater(seconds, self._tick)
        else:
            # later: costs nothing until the timer fires
            self._timer.reset(seconds)

    def _tick(self) -> None:
        self._late()

    def _answering(self) -> None:
        pass  # an answer takes its time

    def _headLate(self) -> None:
        if self._unread is not None:
            # we do not read either, and another deadline runs
            self._await(HEAD_SECONDS, self._headLate)
        elif self._buffer:
            late = f"no whole head in {HEAD_SECONDS:g} s"
            self._refuse(Problem(408, late, "timeout", closes=True))
        else:
            self._close()
