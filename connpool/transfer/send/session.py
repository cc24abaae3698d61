"""
The sending side of one C{cpt/1} connection: greeting, streams, answers.

L{connpool.transfer.send.transmission} decides what is sent and when; here it is said, and
each answer goes to the stream that it belongs to.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

import connpool
from connpool import errors
from connpool.addresses.tls import TLS_ALERT
from connpool.errors import (
    AuthenticationFailed,
    NetworkFailed,
    ProtocolError,
    Skipped,
    TransferError,
    TransferTimeout,
    Unanswered,
)
from connpool.interfaces import IPoolable
from connpool.transfer.digests import Digest, digestNamed
from connpool.transfer.names import displayName, displayText
from connpool.transfer.passwords import credentialsAreSafe
from connpool.transfer.send.credentials import Credentials
from connpool.transfer.send.writer import Writer
from connpool.transfer.wire.frames import PREAMBLE, Frame, Type
from connpool.transfer.wire.frames import frame as pack
from connpool.transfer.wire.handshake import (
    CAPABILITIES,
    READ,
    VERSIONS,
    agree,
    transcriptOf,
)
from connpool.transfer.wire.link import Link
from connpool.transfer.wire.messages import (
    Ack,
    Auth,
    Cancel,
    Error,
    Hello,
    Join,
    Ping,
    Ready,
    ReceiptMessage,
    ReceiverLimits,
    Reject,
    decode,
    encode,
    extensionOf,
    slowIn,
)

if TYPE_CHECKING:
    from connpool.transfer.send.pace import Pace

__all__ = ["IStream", "SenderLink", "SenderSession", "errorFor"]

#: Seconds a greeting may take.
GREETING_SECONDS = 30.0
#: Seconds in which to read what the receiver said before nothing more could be written.
LAST_WORDS_SECONDS = 1.0
#: Seconds of silence that no receiver is blamed for, unless the user asks: a busy one
#: speaks every 5.
_LEAST_IDLE_SECONDS = 10.0
#: PONGs that the receiver may leave unread.
_MAX_UNREAD_PONGS = 1000

_FROM_RECEIVER = frozenset(
    {
        *(Type.ACCEPT, Type.REJECT, Type.REPAIR, Type.PROGRESS, Type.ACK, Type.RECEIPT),
        *(Type.PING, Type.PONG, Type.GOAWAY, Type.JOINED, Type.ERROR),
    }
)
_READ_ANSWERS = frozenset({Type.LISTING, Type.CONTENT})
#: The answers that belong to a stream and do not end it.
_FOR_STREAMS = frozenset({*(Type.ACCEPT, Type.REPAIR, Type.PROGRESS, Type.HAVE), *_READ_ANSWERS})


class IStream(Protocol):
    """
    The part of a stream that is told the receiver's answers; a plain Python protocol.
    """

    def takes(self, kind: Type, length: int) -> bool:
        """
        Tell whether a data part of so many bytes with a frame of C{kind} is to be kept now.
        """

    def frameReceived(self, frame: Frame, message: Any) -> None:
        """
        C{ACCEPT}, C{REPAIR} or C{PROGRESS}; C{LISTING} or C{CONTENT} of a request to read.
        """

    def stored(self, receipt: ReceiptMessage | Ack) -> None:
        """
        The file is stored; the stream is over.
        """

    def rejected(self, why: TransferError, retryable: bool) -> None:
        """
        The file is not taken; the stream is over.
        """


def errorFor(code: str, detail: str) -> TransferError:
    """
    An error the receiver reported, as the class that has its code.
    """
    text = f"the receiver says: {displayText(detail) or displayName(code)}"
    for name in errors.__all__:
        kind = getattr(errors, name)
        if issubclass(kind, TransferError) and kind.code == code:
            error: TransferError = kind(text)
            return error
    return TransferError(f"{text} ({displayName(code)})")


def _refusal(reject: Reject) -> TransferError:
    why = errorFor(reject.code, reject.detail)
    return why if extensionOf(reject, "skipped") is None else Skipped(str(why))


class SenderSession:
    """
    One connection to a receiver.

    @param idleTimeout: seconds of silence from the receiver that end it.
    @param pace: of all that is sent; L{None} for no limit.
    @param more: capabilities of this side beside those of every sender.
    @ivar limits: the receiver's.
    @ivar ticket: for further connections to join.
    @ivar capabilities: those that both sides have.
    @ivar lost: what ended the connection; L{None} while it lives.
    @ivar stopping: the receiver wants nothing new here.
    @ivar onLost: called once with what ended the connection.
    @ivar onSlow: called with what the receiver waits for before it stores small files; empty
        for nothing.
    @ivar onTurn: called when all answers that had come were passed on.
    @ivar onRefused: called with what ended it before the receiver had let us in.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        digests: Sequence[str],
        credentials: Credentials | None,
        idleTimeout: float,
        pace: Pace | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self._offered = (*CAPABILITIES, *more)
        self._reactor = reactor
        self._pace = pace
        self._digests = tuple(digests)
        self._credentials = credentials
        self._idle = idleTimeout
        self._ready: Deferred[SenderSession] = Deferred()
        self._answered = self._spoken = False
        self._state: Callable[[Frame, Any], None] = self._hello
        self._streams: dict[int, IStream] = {}
        self._pings: dict[int, Deferred[None]] = {}
        self._joining: Deferred[None] | None = None
        self._joined = False
        self._number = 0
        self._token = 0
        self._unread = 0
        self._owed: int | None = None
        self.limits: ReceiverLimits
        self.digest: Digest
        self.writer: Writer
        self.ticket = b""
        self.principal = ""
        self.capabilities: frozenset[str] = frozenset()
        self.lost: BaseException | None = None
        self.stopping = False
        self.onLost: Callable[[BaseException], Any] = lambda _: None
        self.onSlow: Callable[[str], Any] = lambda _: None
        self.onTurn: Callable[[], Any] = lambda: None
        self.onRefused: Callable[[TransferError], Any] | None = None
        self._keepAlive: Any = None

    # -- greeting

    def ready(self) -> Deferred[SenderSession]:
        """
        @return: fires when the receiver has let us in; asked for once.
        """
        if self.lost is not None:
            return fail(self.lost)
        d: Deferred[SenderSession] = Deferred()
        self._ready.addCallbacks(d.callback, d.errback)
        return d

    def linkMade(self, link: SenderLink) -> None:
        """
        Say hello: the connection is made.
        """
        self.link = link
        link.reader.expected = {Type.HELLO, Type.ERROR}
        link.reader.wants = self._wants
        self.writer = Writer(self._reactor, link.transport, self._unwritable, self._pace)
        self._deadline = self._reactor.callLater(GREETING_SECONDS, self._tooLate)
        ours = Hello(
            VERSIONS,
            f"connpool/{connpool.__version__}",
            self._offered,
            self._digests,
            os.urandom(32),
        )
        self._ours = ours
        self._sent = encode(Type.HELLO, 0, ours)
        self.writer.send(PREAMBLE, self._sent)

    def greeted(self) -> None:
        """
        The receiver's preamble came.
        """
        self._spoken = True

    def foreign(self, data: bytes) -> None:
        """
        Refuse a peer that said something else.
        """
        self._spoken = True
        if data[:2].lower() == b"ok":
            self.link.abort(
                ProtocolError("the receiver speaks the classic protocol; use --protocol classic")
            )
        elif data[:2] == TLS_ALERT:
            self.link.abort(ProtocolError("the receiver speaks TLS; write --to tls:HOST:PORT"))
        else:
            shown = displayName(data[:40])
            self.link.abort(ProtocolError(f'the peer does not speak cpt/1; it said "{shown}"'))

    def _hello(self, frame: Frame, message: Any) -> None:
        if not isinstance(message, Hello):
            raise ProtocolError(f"{frame.type.name} before HELLO")
        if message.limits is None:
            raise ProtocolError("the receiver's HELLO has no limits")
        agreement = agree(self._ours, message)
        self.digest = digestNamed(agreement.digest)
        self.capabilities = agreement.capabilities
        self.limits = message.limits
        self._transcript = transcriptOf(self._sent, pack(frame.type, 0, frame.control))
        self.writer.send(encode(Type.AUTH, 0, self._auth(message.methods)))
        self._state = self._wait
        self.link.reader.expected = {Type.READY, Type.ERROR}

    def _auth(self, methods: Sequence[str]) -> Auth:
        credentials = self._credentials
        if credentials is not None and "password" in methods:
            if not credentialsAreSafe(self.link.transport):
                raise AuthenticationFailed(
                    "a password is only sent within TLS, on a unix socket or on loopback"
                )
            return Auth(self._transcript, "password", credentials.user, credentials.secret)
        if "none" in methods:
            return Auth(self._transcript, "none")
        raise AuthenticationFailed("the receiver asks for a user and a password")

    def _wait(self, frame: Frame, message: Any) -> None:
        if not isinstance(message, Ready):
            raise ProtocolError(f"{frame.type.name} before READY")
        if not hmac.compare_digest(message.transcript, self._transcript):
            raise ProtocolError("the two sides saw different HELLOs: changed on the way")
        self.ticket = message.ticket
        self.principal = message.principal
        self._state = self._open
        self.link.reader.expected = _FROM_RECEIVER
        if READ in self.capabilities:
            self.link.reader.expected |= _READ_ANSWERS
        if "update" in self.capabilities:
            self.link.reader.expected |= {Type.HAVE}
        self.link.admit()
        self._deadline.cancel()
        self.link.expectWithin(min(self._idle, max(self.limits.idle, _LEAST_IDLE_SECONDS)))
        self._idle = min(self._idle, self.limits.idle)
        self._keepAlive = self._reactor.callLater(self._idle / 4, self._keep)

    def _tooLate(self) -> None:
        self.link.abort(TransferTimeout(f"no greeting within {GREETING_SECONDS:g} s"))

    # -- saying things

    def start(self) -> None:
        """
        Get ready to send much.
        """
        self.writer.start(encode(Type.PING, 0, Ping(0)))

    def open(self, stream: IStream) -> int:
        """
        @return: a number for a new stream.
        """
        self._number += 1
        self._streams[self._number] = stream
        return self._number

    def forget(self, number: int) -> None:
        """
        Pass over all that still comes for a stream.
        """
        self._streams.pop(number, None)

    def cancel(self, number: int, code: str, keep: bool) -> None:
        """
        Give a file up.
        """
        if self._streams.pop(number, None) is not None:
            self.writer.send(encode(Type.CANCEL, number, Cancel(code, keep)))

    def ping(self) -> Deferred[None]:
        """
        @return: fires when the receiver has seen all that was sent before; fails
            with L{NetworkFailed}.
        """
        d: Deferred[None] = Deferred()
        if self.lost is not None:
            d.errback(Failure(self.lost))
            return d
        self._token += 1
        self._pings[self._token] = d
        self.writer.send(encode(Type.PING, 0, Ping(self._token)))
        return d

    def join(self, ticket: bytes) -> Deferred[None]:
        """
        Carry data for another session.
        """
        self._joined = True
        self._joining = Deferred()
        if self.lost is not None:
            self._joining.errback(Failure(self.lost))
        else:
            self.writer.send(encode(Type.JOIN, 0, Join(ticket)))
        return self._joining

    @property
    def quiescent(self) -> bool:
        """
        Tell whether it can be used for something else.
        """
        return not (self.lost or self.stopping or self._streams or self._joined)

    def close(self) -> None:
        """
        End the connection.
        """
        if self.lost is None:
            self.link.close()

    def _keep(self) -> None:
        self._keepAlive = self._reactor.callLater(self._idle / 4, self._keep)
        self.writer.send(encode(Type.PING, 0, Ping(0)))

    def _unwritable(self, why: NetworkFailed) -> None:
        # the receiver may have said why before it closed
        if not self._deadline.active():
            self._deadline = self._reactor.callLater(LAST_WORDS_SECONDS, self.link.failed, why)

    # -- answers

    def frameReceived(self, frame: Frame) -> None:
        """
        A frame came.
        """
        message = decode(frame)
        if isinstance(message, Error):
            self.link.abort(errorFor(message.code, message.detail))
            return
        self._state(frame, message)

    def _wants(self, kind: Type, number: int, length: int) -> bool:
        """
        Tell whether a data part that is announced is to be kept; see L{FrameReader.wants}.
        """
        stream = self._streams.get(number)
        return stream is not None and stream.takes(kind, length)

    def _open(self, frame: Frame, message: Any) -> None:
        kind = frame.type
        if kind is Type.ACK:
            self._acked(message)
        elif kind is Type.PING:
            self.onSlow(slowIn(message))
            self._pinged(message.token)
        elif kind is Type.PONG:
            self._ponged(message.token)
        elif kind is Type.GOAWAY:
            self.stopping = True
        elif kind is Type.JOINED:
            joining, self._joining = self._joining, None
            if joining is None:
                raise ProtocolError("JOINED without JOIN")
            joining.callback(None)
        elif kind is Type.RECEIPT:
            stream = self._streams.pop(frame.stream, None)
            if stream is not None:
                stream.stored(message)
        elif kind is Type.REJECT:
            reject: Reject = message
            stream = self._streams.pop(frame.stream, None)
            if stream is not None:
                stream.rejected(_refusal(reject), reject.retryable)
        elif kind in _FOR_STREAMS:
            stream = self._streams.get(frame.stream)
            if stream is not None:
                stream.frameReceived(frame, message)
            elif not 0 < frame.stream <= self._number:
                raise ProtocolError(f"{kind.name} for stream {frame.stream}, which there never was")
        else:
            raise ProtocolError(f"{kind.name} is not expected from a receiver")

    def _pinged(self, token: int) -> None:
        # who asks and does not read shall not fill our memory: the latest will do
        self._unread += 1
        if self._unread > _MAX_UNREAD_PONGS:
            self._owed = token
            return
        self.writer.send(encode(Type.PONG, 0, Ping(token)))
        if self._unread == _MAX_UNREAD_PONGS:
            self.writer.send(encode(Type.PING, 0, Ping(0)))

    def _ponged(self, token: int) -> None:
        d = self._pings.pop(token, None)
        if d is not None:
            d.callback(None)
        self._unread = 0
        owed, self._owed = self._owed, None
        if owed is not None:
            self._pinged(owed)

    def _acked(self, ack: Ack) -> None:
        for first, count in ack.streams:
            # the first that waits for nothing ends it: no more work than there are PUTs
            for number in range(first, first + count):
                stream = self._streams.pop(number, None)
                if stream is None:
                    raise ProtocolError(f"ACK for stream {number}, which waits for none")
                stream.stored(ack)

    def partReceived(self, view: memoryview) -> None:
        """
        A piece of a data part that was not wanted: its stream has ended meanwhile.
        """

    def turn(self) -> None:
        """
        Let the sender begin: all that had come was read, and a GOAWAY right after READY is
        known.
        """
        if not self._answered and self._state == self._open:
            self._answered = True
            self._ready.callback(self)
        self.onTurn()

    def late(self, why: TransferError) -> None:
        """
        The receiver has been silent.
        """
        self.link.abort(TransferTimeout(f"the receiver is silent: {why}"))

    def broken(self, why: TransferError) -> None:
        """
        The receiver broke the protocol.
        """
        detail = " ".join(str(why).split())[:1024]
        self.writer.send(encode(Type.ERROR, 0, Error(why.code, detail)))
        self._why = why
        self.link.close()

    def halfClosed(self) -> None:
        """
        The receiver has said all it will.
        """
        self.link.abort(NetworkFailed("the receiver closed the connection"))

    def drain(self) -> None:
        """
        Do nothing: receivers drain.
        """

    def linkLost(self, why: BaseException) -> None:
        """
        The connection is gone.
        """
        if self.lost is not None:
            return
        why = getattr(self, "_why", why)
        if not isinstance(why, TransferError):
            why = NetworkFailed("the connection was closed")
        if not self._spoken and type(why) is NetworkFailed:
            why = Unanswered(
                "the receiver closed the connection before it said anything: it speaks TLS (write "
                "--to tls:HOST:PORT), or its --allow leaves this address out"
            )
        self.lost = why
        if not self._answered and self.onRefused is not None:
            self.onRefused(why)
        for call in (self._deadline, self._keepAlive):
            if call is not None and call.active():
                call.cancel()
        self.writer.close(why)
        waiting = [*self._pings.values()]
        if self._joining is not None:
            waiting.append(self._joining)
        self._pings, self._joining = {}, None
        if not self._answered:
            self._answered = True
            self._ready.errback(Failure(why))
            # a pool does not ask before the handshake of TLS is over
            self._ready.addErrback(lambda _: None)
        for d in waiting:
            d.errback(Failure(why))
        self.onLost(why)


@implementer(IPoolable)
class SenderLink(Link):
    """
    A sender's connection, which a pool may lease again.
    """

    session: SenderSession

    def expectWithin(self, seconds: float) -> None:
        """
        Notice a silence of so many seconds from now on.
        """
        self.idleTimeout = seconds
        self._quiet.reset(seconds)

    def isReusable(self) -> bool:
        return self.session.quiescent

    def reset(self) -> None:
        return None

    async def _validate(self) -> bool:
        await self.session.ping()
        return True

    def validate(self) -> Deferred[bool]:
        return Deferred.fromCoroutine(self._validate())

    def idleDataReceived(self, data: bytes) -> bool:
        # PING and PONG; whatever else comes ends the session itself
        self.dataReceived(data)
        return self.session.quiescent

    def goodbye(self) -> None:
        self.session.close()
