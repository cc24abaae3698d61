"""
One connection that speaks HTTP/1.1: bytes, deadlines and back-pressure, no meaning.

Theory of operation
===================
One request at a time: nothing is read or parsed behind a request until it is answered.  A
head is cut out and judged (L{connpool.transfer.web.head}); the door finds a resource that
answers it, in a coroutine.  The resource asks for the body when it is ready for it; only then
is C{100 Continue} sent, and the body read.

The connection ends after an error of framing, after a request whose body was not read to its
end, and when the client or a drain wants it.  It is closed by halves: the answer is written,
our direction closed, and what the client still sends is read and dropped, at most
L{LINGER_BYTES} bytes or L{LINGER_SECONDS} seconds: else its kernel would drop the answer for
the reset.  TLS has no halves; there the client closes.

Deadlines: L{HEAD_SECONDS} for a whole head, however it trickles; L{IDLE_SECONDS} between
requests; the pace of every transfer for bodies; and an answer has to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import formatdate
from enum import Enum, auto
from typing import Any, Protocol

import attrs
import h11
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import NetworkFailed, TransferError
from connpool.interfaces import IDrainableProtocol
from connpool.transfer.web.alarm import Alarm
from connpool.transfer.web.answers import Answer
from connpool.transfer.web.body import Chunked, Sized
from connpool.transfer.web.flow import Flow, Sink
from connpool.transfer.web.head import Head, cutHead, isHTTP2, parseHead
from connpool.transfer.web.problems import Fields, Problem, phraseOf

__all__ = ["HEAD_SECONDS", "IDLE_SECONDS", "LINGER_BYTES", "LINGER_SECONDS", "WebChannel"]

#: Seconds for a whole head, and between two requests.
HEAD_SECONDS = 10.0
IDLE_SECONDS = 75.0
#: Bytes and seconds that are listened to after the last answer.
LINGER_BYTES = 8 << 20
LINGER_SECONDS = 5.0
#: Seconds, and bytes/s beside them, in which an answer has to be read.
_UNREAD_SECONDS, _LEAST_READ_BYTES_PER_SECOND = 60.0, 1024
#: The transport's reads for heads.
_HEAD_READ_BYTES = 64 * 1024
#: The first frames of an HTTP/2 server, SETTINGS and then GOAWAY with the error
#: HTTP_1_1_REQUIRED (RFC 9113 section 6.8).
_HTTP_1_1_REQUIRED = bytes(3) + b"\4" + bytes(5) + b"\0\0\10\7" + bytes(5) + bytes(7) + b"\r"


class _State(Enum):
    HEAD = auto()
    ANSWERING = auto()
    LINGERING = auto()
    OVER = auto()


class Door(Protocol):
    """
    The door that a connection came through.
    """

    def pace(self) -> tuple[float, float]:
        """
        @return: seconds of silence, and bytes/s, that a client of this connection is held to.
        """

    def answer(self, head: Head, channel: WebChannel) -> Deferred[tuple[Answer, Fields]]:
        """
        @return: fires with the answer, and the fields that depend on the request's origin;
            never fails.
        """

    def refuse(self, why: TransferError) -> Answer:
        """
        @return: the answer to something that is no request.
        """

    def answered(self, answer: Answer) -> None:
        """
        An answer was given to the transport.
        """

    def interim(self) -> None:
        """
        An answer that is not final was given to the transport.
        """

    def left(self, unanswered: bool) -> None:
        """
        The connection is gone.
        """


@implementer(IHalfCloseableProtocol, IPushProducer, IDrainableProtocol)
class WebChannel(TwistedProtocol):
    """
    One connection.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param door: answers the requests.
    """

    _log = Logger()

    def __init__(self, clock: Any, door: Door) -> None:
        self._clock = clock
        self._door = door
        self._state = _State.HEAD
        self._buffer = bytearray()
        self._head: Head | None = None
        self._connection: h11.Connection | None = None
        self._flow: Flow | None = None
        self._paused = self._unread = self._draining = self._halfClosed = False
        self._written = self._dropped = 0
        self._working = self._idle = False
        self._turn: Any = None
        self._alarm = Alarm(clock)

    # -- the transport's side

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.bufferSize = _HEAD_READ_BYTES
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        self._alarm.set(HEAD_SECONDS, self._headLate)

    def dataReceived(self, data: bytes) -> None:
        if self._state is _State.LINGERING:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self._abort()
        elif self._state is not _State.OVER:
            if self._flow is not None and self._flow.wants and not self._buffer:
                # a run of a body goes to its sink without a copy
                self._feed(data)
            else:
                self._buffer += data
            self._work()

    def readConnectionLost(self) -> None:
        self._halfClosed = True
        if self._state is _State.LINGERING:
            self._finish()
        else:
            self._work()

    def writeConnectionLost(self) -> None:
        """
        Ours to close, and closed.
        """

    def connectionLost(self, reason: Failure | None = None) -> None:
        unanswered = self._state is _State.ANSWERING
        self._state = _State.OVER
        self._connection = None
        self._alarm.stop()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self._unread:
            self._readAgain()
        if self._flow is not None:
            self._flow.fail(NetworkFailed("the client's connection was lost"))
        self._door.left(unanswered)

    def pauseProducing(self) -> None:
        """
        The client does not read what we write.
        """
        if not self._unread:
            self._unread = True
            seconds = _UNREAD_SECONDS + self._written / _LEAST_READ_BYTES_PER_SECOND
            self._unreadCall = self._clock.callLater(seconds, self._abort)
            self._steer()

    def resumeProducing(self) -> None:
        self._written = 0
        if self._unread:
            self._readAgain()
            self._work()

    def _readAgain(self) -> None:
        self._unread = False
        if self._unreadCall.active():
            self._unreadCall.cancel()

    def stopProducing(self) -> None:
        pass

    def drain(self) -> None:
        self._draining = True
        if self._state is _State.HEAD and not self._buffer:
            self._close()

    # -- the request's side

    def receive(self, sink: Sink) -> Deferred[Sequence[tuple[bytes, bytes]]]:
        """
        Let the body of the present request flow.
        """
        head, flow = self._head, self._flow
        assert head is not None
        assert flow is not None
        if head.expects and not self._buffer:
            self.interim(100, ())
        transport: Any = self.transport
        transport.bufferSize = flow.readBytes
        done = flow.begin(sink)
        self._work()
        return done

    def interim(self, status: int, fields: Fields) -> None:
        """
        Send an answer that is not final.
        """
        connection = self._connection
        if connection is not None and connection.their_http_version == b"1.1":
            lines = [(name.encode(), value.encode()) for name, value in fields]
            answer = h11.InformationalResponse(
                status_code=status, headers=lines, reason=phraseOf(status).encode()
            )
            self._write(connection.send(answer) or b"")
            self._door.interim()

    def end(self, why: TransferError) -> None:
        """
        Break off the body of the present request.
        """
        if self._flow is not None:
            self._flow.fail(why)

    # -- inside

    def _work(self) -> None:
        """
        Do what the bytes that are here allow.
        """
        if self._working:
            return
        self._working = True
        try:
            if self._state is _State.HEAD and not self._unread and self._turn is None:
                self._cut()
            while self._flow is not None and self._flow.wants and self._buffer:
                data, self._buffer = bytes(self._buffer), bytearray()
                self._feed(data)
            if self._halfClosed and self._flow is not None and self._flow.wants:
                self._flow.fail(NetworkFailed("the body ended before its time"))
        finally:
            self._working = False
        self._steer()

    def _feed(self, data: bytes) -> None:
        flow = self._flow
        assert flow is not None
        # what follows the body is there before anybody hears that it is over
        self._buffer += flow.feed(data)
        flow.steer()

    def _cut(self) -> None:
        if self._idle and self._buffer:
            self._idle = False
            self._alarm.set(HEAD_SECONDS, self._headLate)
        try:
            raw = cutHead(self._buffer)
            if raw is None:
                if self._halfClosed:
                    self._close()
                return
            self._alarm.clear()
            self._written = 0
            if isHTTP2(raw):
                self._write(_HTTP_1_1_REQUIRED)
                self._close()
                return
            self._head, self._connection = parseHead(raw)
        except Problem as e:
            self._refuse(e)
            return
        self._state = _State.ANSWERING
        head = self._head
        body = Chunked() if head.length is None else Sized(head.length)
        self._flow = Flow(self._clock, body, self._door.pace, self._steer)
        self._door.answer(head, self).addCallback(self._reply)

    def _refuse(self, why: Problem) -> None:
        """
        Answer something that is no request, and end the connection.
        """
        self._head, self._connection = None, h11.Connection(h11.SERVER)
        self._state = _State.ANSWERING
        self._reply((self._door.refuse(why), ()))

    def _reply(self, answered: tuple[Answer, Fields]) -> None:
        """
        Write the final answer, and go on to the next request.
        """
        answer, more = answered
        if self._state is not _State.ANSWERING:
            return  # the client has left
        head, flow, connection = self._head, self._flow, self._connection
        assert connection is not None
        unread = flow is None or not flow.over
        last = self._draining or (self._halfClosed and not self._buffer)
        if (last or unread) and not answer.closes:
            answer = attrs.evolve(answer, closes=True)
        more = [*more, ("Date", formatdate(self._clock.seconds(), usegmt=True))]
        wire = answer.write(connection, head is not None and head.method == "HEAD", more)
        self._head = self._flow = self._connection = None
        self._write(wire)
        self._door.answered(answer)
        if connection.our_state is h11.MUST_CLOSE or answer.closes:
            self._close()
            return
        self._state = _State.HEAD
        transport: Any = self.transport
        transport.bufferSize = _HEAD_READ_BYTES
        if self._buffer:
            self._alarm.set(HEAD_SECONDS, self._headLate)
            # others have their turn before what was sent ahead
            self._turn = self._clock.callLater(0, self._next)
        else:
            self._idle = True
            self._alarm.set(IDLE_SECONDS, self._close)
        self._steer()

    def _next(self) -> None:
        self._turn = None
        self._work()

    def _write(self, data: bytes) -> None:
        self._written += len(data)
        transport: Any = self.transport
        transport.write(data)

    def _steer(self) -> None:
        """
        Read, or do not.
        """
        if self._state is _State.OVER:
            return
        if self._state is _State.ANSWERING:
            pause = self._flow is None or not self._flow.wants
            if not pause and self._flow is not None:
                transport: Any = self.transport
                transport.bufferSize = self._flow.readBytes
        else:
            # what was sent ahead is looked at first
            waits = self._unread or self._turn is not None
            pause = waits and self._state is _State.HEAD
        if pause != self._paused:
            self._paused = pause
            transport = self.transport
            (transport.pauseProducing if pause else transport.resumeProducing)()

    # -- ends

    def _close(self) -> None:
        """
        End the connection after what was written.
        """
        if self._state in {_State.LINGERING, _State.OVER}:
            return
        self._state = _State.LINGERING
        self._buffer.clear()
        transport: Any = self.transport
        transport.unregisterProducer()
        if self._unread:
            self._readAgain()
        # an answer that was not read yet keeps its time
        unread = self._written / _LEAST_READ_BYTES_PER_SECOND
        self._alarm.set(LINGER_SECONDS + unread, self._abort)
        self._steer()
        if self._halfClosed:
            self._finish()
        elif not ISSLTransport.providedBy(transport) and hasattr(transport, "loseWriteConnection"):
            transport.loseWriteConnection()

    def _finish(self) -> None:
        transport: Any = self.transport
        transport.loseConnection()

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def _headLate(self) -> None:
        if self._unread:
            # we do not read either, and another deadline runs
            self._alarm.set(HEAD_SECONDS, self._headLate)
        elif self._buffer:
            late = f"no whole head in {HEAD_SECONDS:g} s"
            self._refuse(Problem(408, late, "timeout", closes=True))
        else:
            self._close()
