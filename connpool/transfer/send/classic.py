"""
Sending by the classic protocol.

A receiver is never probed: the tutorial's accepts one connection in its life.
Nothing comes back after C{ok}, so the best end there is is L{Unconfirmed}.

Whether the receiver still reads is seen from what its kernel has confirmed:
megabytes may wait in ours, longer than any deadline where the path is slow.

The file goes from one buffer to the borrowed socket (L{connpool.transfer.wire.borrowed}), or
through the transport, as fast as that asks for more.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from io import FileIO
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IPullProducer,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.addresses.tls import TLS_ALERT, connectionLoss
from connpool.errors import (
    Forbidden,
    NetworkFailed,
    ProtocolError,
    SourceError,
    TransferError,
    TransferTimeout,
)
from connpool.sendqueue import unconfirmedBytes
from connpool.transfer.names import displayName
from connpool.transfer.send.source import openSource
from connpool.transfer.wire.borrowed import BorrowedWriter, lends

__all__ = ["sendClassic"]

#: Bytes read from the file and handed to the transport at once.
CHUNK_BYTES = 1 << 20
#: The same where there is no socket to ask: only another chunk shows that it goes on.
SMALL_CHUNK_BYTES = 1 << 16

#: Bytes after which others have their turn.
TURN_BYTES = 4 << 20

#: Longest refusal that is read.
LONGEST_ANSWER_BYTES = 1024


def refusalIn(answer: bytes) -> TransferError | None:
    """
    Read the native refusal of a receiver that does not know yet what we speak.

    @return: what it says; L{None} if that is not all there, or something else.
    """
    # here: a receiver that says ok does not make us wait for them
    from connpool.transfer.send.session import errorFor
    from connpool.transfer.wire.frames import PREAMBLE, Frame, FrameReader
    from connpool.transfer.wire.messages import Error, decode

    if not answer.startswith(PREAMBLE):
        return None
    try:
        for frame in FrameReader().feed(answer[len(PREAMBLE) :]):
            message = decode(frame) if isinstance(frame, Frame) else None
            return errorFor(message.code, message.detail) if isinstance(message, Error) else None
    except ProtocolError:
        pass
    return None


@implementer(IPullProducer, IHalfCloseableProtocol)
@attrs.define(eq=False, repr=False, slots=False)
class _ClassicSender(Protocol):
    """
    One connection, one file.  C{ended} fires when the receiver closed after
    everything was sent.
    """

    _clock: Any
    _name: bytes
    _file: FileIO
    _progress: Callable[[int], Any]
    _timeout: float
    _answer: bytes = attrs.field(default=b"", init=False)
    _sending: bool = attrs.field(default=False, init=False)
    _sent: bool = attrs.field(default=False, init=False)
    _socket: socket.socket | None = attrs.field(default=None, init=False)
    _writer: BorrowedWriter | None = attrs.field(default=None, init=False)
    _given: int = attrs.field(default=0, init=False)
    _seen: tuple[int, int] = attrs.field(default=(0, 0), init=False)
    _look: Any = attrs.field(default=None, init=False)
    ended: Deferred[None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.ended = Deferred(lambda _: self._fail(CancelledError()))

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self._socket = _socketOf(transport)
        self._since = self._clock.seconds()
        self._watch()
        transport.write(self._name)

    def _watch(self) -> None:
        """
        Look now and then whether the receiver has taken anything.
        """
        now = self._clock.seconds()
        waiting = unconfirmedBytes(self._socket)
        given, before = self._seen
        if self._sending and (self._given > given or waiting < before):
            self._since = now
        self._seen = self._given, waiting
        if now - self._since < self._timeout:
            self._look = self._clock.callLater(self._timeout / 16, self._watch)
        elif not self._sending:
            self._fail(TransferTimeout(f"no answer for {self._timeout:g} s"))
        elif self._sent and not waiting:
            self._fail(TransferTimeout(f"the receiver did not close for {self._timeout:g} s"))
        else:
            self._fail(TransferTimeout(f"the receiver took nothing for {self._timeout:g} s"))

    def dataReceived(self, data: bytes) -> None:
        if self._sending:
            if data.strip():
                # tutorial receivers end their "ok" with a newline at most
                self._fail(ProtocolError(f"the receiver said {displayName(data)} after ok"))
            return
        self._answer += data
        answer = self._answer.strip().lower()
        if answer == b"ok":
            self._sending = True
            self._since = self._clock.seconds()
            transport: Any = self.transport
            if lends(self._clock, transport):
                Deferred.fromCoroutine(self._pour()).addErrback(self._broke)
            else:
                transport.registerProducer(self, streaming=False)
        elif self._answer.startswith(b"\0") and len(self._answer) < LONGEST_ANSWER_BYTES:
            if refusalIn(self._answer) is not None:
                self._refused()
        elif len(self._answer) >= LONGEST_ANSWER_BYTES or (
            not b"ok".startswith(answer) and b"\n" in self._answer
        ):
            self._refused()

    def _refused(self) -> None:
        if self._answer.startswith(b"\0"):
            native = ProtocolError("the receiver speaks native; leave out --protocol classic")
            self._fail(refusalIn(self._answer) or native)
        elif self._answer.startswith(TLS_ALERT):
            self._fail(ProtocolError("the receiver speaks TLS; write --to tls:HOST:PORT"))
        else:
            self._fail(Forbidden(f"the receiver answered: {displayName(self._answer.strip())}"))

    def resumeProducing(self) -> None:
        transport: Any = self.transport
        try:
            data = self._file.read(SMALL_CHUNK_BYTES if self._socket is None else CHUNK_BYTES)
        except OSError as e:
            self._fail(SourceError(f"cannot read it: {e.strerror}"))
            return
        if data:
            self._gave(len(data))
            transport.write(data)
        else:
            transport.unregisterProducer()
            self._finish()

    def _gave(self, count: int) -> None:
        self._given += count
        self._progress(self._given)

    def _finish(self) -> None:
        """
        Say that it was all.
        """
        transport: Any = self.transport
        self._sent = True
        if ISSLTransport.providedBy(transport):
            # TLS has no half-close; below it, one would look like an attack
            transport.loseConnection()
        else:
            transport.loseWriteConnection()

    async def _pour(self) -> None:
        """
        Write the file to the borrowed socket.
        """
        transport: Any = self.transport
        buffer = memoryview(bytearray(CHUNK_BYTES))
        self._writer = writer = BorrowedWriter(self._clock, transport, self._cut)
        while not self.ended.called:
            count = self._file.readinto(buffer)
            if not count:
                writer.close()
                self._finish()
                return
            self._gave(count)
            written = writer.write(buffer[:count])
            if written is not None:
                await written
            elif not self._given % TURN_BYTES:
                # the receiver reads as fast as we write: others have their turn
                await deferLater(self._clock, 0)

    def _broke(self, failure: Failure) -> None:
        why: Any = failure.value
        if isinstance(why, OSError):
            why = SourceError(f"cannot read it: {why.strerror}")
        self._fail(why)

    def _cut(self, why: BaseException) -> None:
        self._fail(NetworkFailed("the receiver reset the connection"))

    def stopProducing(self) -> None:
        """
        The connection is gone; C{connectionLost} says how.
        """

    def _abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def _fail(self, why: TransferError | CancelledError) -> None:
        if not self.ended.called:
            self.ended.errback(why)
        self._giveBack(why)
        self._abort()

    def _giveBack(self, why: BaseException) -> None:
        if self._writer is not None:
            self._writer.close(why)

    def readConnectionLost(self) -> None:
        transport: Any = self.transport
        if self._sent and not unconfirmedBytes(self._socket):
            transport.loseConnection()
        elif self._answer and not self._sending:
            self._refused()
        else:
            self._fail(self._early())

    def writeConnectionLost(self) -> None:
        """
        Do nothing: everything is on its way.
        """

    def _early(self) -> TransferError:
        if self._sending:
            return NetworkFailed("the receiver closed the connection before it had everything")
        return NetworkFailed("the receiver closed the connection without an answer")

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._look is not None and self._look.active():
            self._look.cancel()
        why = None if reason is None else reason.value
        self._giveBack(why or ConnectionDone())
        if self.ended.called:
            return
        if self._sent and isinstance(why, ConnectionDone):
            self.ended.callback(None)
        elif why is not None and not isinstance(why, ConnectionDone):
            final = connectionLoss(why)
            if isinstance(final, NetworkFailed):
                final = NetworkFailed("the receiver reset the connection")
            self.ended.errback(final)
        else:
            self.ended.errback(self._early())


def _late(_: Any, timeout: float) -> None:
    raise TransferTimeout(f"no connection within {timeout:g} s")


def _socketOf(transport: Any) -> socket.socket | None:
    """
    Find the socket below C{transport}, if there is one.
    """
    while transport is not None:
        handle = getattr(transport, "getHandle", lambda: None)()
        if isinstance(handle, socket.socket):
            return handle
        # TLS
        transport = getattr(transport, "transport", None)
    return None


async def sendClassic(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    path: str,
    *,
    progress: Callable[[int, int], Any] = lambda _done, _size: None,
    timeout: float = 60.0,
) -> int:
    """
    Send one file by the classic protocol.

    @param reactor: times the deadlines.
    @param endpoint: where the receiver listens.
    @param path: a regular file.
    @param progress: called with the bytes handed over so far, and the file's.
    @param timeout: seconds that connecting, the answer, and any pause in what the
        receiver takes may last.
    @return: bytes sent.  That they arrived is not known: the protocol has no
        confirmation.
    @raise TransferError: why it was not sent.
    """
    source = openSource(path)
    with source.file:

        def given(count: int) -> None:
            progress(count, source.status.st_size)

        protocol = _ClassicSender(reactor, source.name, source.file, given, timeout)
        try:
            await endpoint.connect(Factory.forProtocol(lambda: protocol)).addTimeout(
                timeout, reactor, _late
            )
        except TransferTimeout:
            raise
        except (CancelledError, ConnectingCancelledError):
            raise CancelledError from None
        except Exception as e:
            raise NetworkFailed(f"cannot connect: {e}") from None
        await protocol.ended
        source.verifyUnchanged()
        return source.file.tell()
