"""
One HTTP/1.1 connection to an S3 engine: a request, its answer, the next request.

Theory of operation
===================
A request is sent at once as far as a plain socket takes it, and the rest over a duplicate of
the socket, a body in a file from the page cache by C{sendfile}, while the transport goes on
reading: an engine may answer before it has seen the whole body.  Through TLS, and on reactors
without descriptors, a file is written in pieces as fast as the transport takes them.

An answer that comes amid a body ends the request, and the connection, which has a piece of a
body in it, is not used again.  A connection without a sign of life in either direction for the
request's patience is cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import attrs
from twisted.internet.address import HostnameAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IPushProducer,
    IReactorFDSet,
    ISSLTransport,
    IStreamClientEndpoint,
    IWriteDescriptor,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import StoreError
from connpool.interfaces import IPoolable
from connpool.transfer.stores.s3.calls import Piece
from connpool.transfer.stores.s3.replies import Broken, Reply, ReplyReader

__all__ = ["AddressedEndpoint", "Exchange", "ExchangeFactory"]

#: Bytes of a file that are sent at once, before others have their turn: from the page cache
#: by C{sendfile}, and copied for TLS.
_SENT_BYTES, _COPIED_BYTES = 1 << 20, 64 * 1024
_NOTHING = Piece(-1, 0, 0)

#: Visible ASCII, spaces and ends of lines.
_LINES = re.compile(r"[\n -~]*").fullmatch


@implementer(IWriteDescriptor)
class _SocketWriter:
    """
    Writes bytes and a piece of a file to the socket of a transport that has nothing to write.
    """

    def __init__(self, reactor: Any, exchange: Exchange, head: bytes, body: Piece) -> None:
        self._reactor = reactor
        self._exchange = exchange
        transport: Any = exchange.transport
        self._socket = transport.getHandle().dup()
        self._head = memoryview(head)
        self._file = body.fd
        self._at, self._end = body.start, body.start + body.length
        reactor.addWriter(self)

    def fileno(self) -> int:
        descriptor: int = self._socket.fileno()
        return descriptor

    def logPrefix(self) -> str:
        return "connpool"

    def doWrite(self) -> None:
        try:
            if self._head:
                self._head = self._head[self._socket.send(self._head) :]
            else:
                count = min(self._end - self._at, _SENT_BYTES)
                sent = os.sendfile(self._socket.fileno(), self._file, self._at, count)
                if not sent:
                    self._exchange.cut("a file ends before the part that is to be sent of it")
                    return
                self._at += sent
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            # the engine's last words may still lie in the socket: whoever reads it knows more
            self.close()
            self._exchange.unwritable(os.strerror(e.errno or 0))
            return
        self._exchange.wrote(self._at == self._end and not self._head)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._reactor.removeWriter(self)
            self._socket.close()

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor removed us: it saw an error, or it is ending.
        """
        self._socket.close()
        self._exchange.unwritable(str(reason.value))


@implementer(IPushProducer)
class _FileProducer:
    """
    Writes a head and a piece of a file through a transport.
    """

    def __init__(self, exchange: Exchange, head: bytes, body: Piece) -> None:
        self._exchange = exchange
        transport: Any = exchange.transport
        self._transport = transport
        self._file = body.fd
        self._at, self._end = body.start, body.start + body.length
        self._paused = self._running = False
        self._closed = False
        self._transport.write(head)
        self._transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        if self._running:
            return
        self._running = True
        while not (self._paused or self._closed) and self._at < self._end:
            piece = os.pread(self._file, min(_COPIED_BYTES, self._end - self._at), self._at)
            if not piece:
                self._exchange.cut("a file ends before the part that is to be sent of it")
                break
            self._at += len(piece)
            self._transport.write(piece)
            self._exchange.wrote(False)
        self._running = False
        if self._at == self._end and not self._closed:
            self._exchange.wrote(True)

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._closed = True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._transport.unregisterProducer()


@implementer(IPoolable)
class Exchange(Protocol):
    """
    A connection to an engine.

    @param reactor: also the clock.
    @param host: of the endpoint, as requests name it.
    @ivar host: the same.
    """

    def __init__(self, reactor: Any, host: str) -> None:
        self.host = host
        self._reactor = reactor
        self._answer: Deferred[Reply] | None = None
        self._writer: _SocketWriter | _FileProducer | None = None
        self._silence: Any = None
        self._used = self._spoiled = False

    def connectionMade(self) -> None:
        transport: Any = self.transport
        isPlain = hasattr(transport, "getHandle") and not ISSLTransport.providedBy(transport)
        self._isPlain = isPlain and IReactorFDSet.providedBy(self._reactor)

    def ask(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        body: bytes | Piece,
        most: int,
        patience: float,
    ) -> Deferred[Reply]:
        """
        Send a request; there is one at a time.

        @param target: path and query, encoded.
        @param headers: all of them but C{content-length}.
        @param most: bytes that the answer's body may have.
        @param patience: seconds without a sign of life after which the connection is cut.
        @return: fires with the answer, whatever its status; fails with L{Broken}.
            Cancelling it cuts the connection.
        @raise StoreError: for a header that cannot be sent.
        """
        assert self._answer is None, "one request at a time"
        size = len(body)
        sent = [*headers]
        if size or method in {"PUT", "POST"}:
            sent.append(("content-length", str(size)))
        head = _headOf(method, target, sent)
        answer: Deferred[Reply] = Deferred(lambda _: self._fail(CancelledError()))
        self._answer = answer
        if self._spoiled:
            self._fail(Broken("the connection is closed", early=True))
            return answer
        self._reader, self._patience = ReplyReader(method, most), patience
        self._silence = self._reactor.callLater(patience, self._silent)
        self._send(head, body) if isinstance(body, Piece) else self._send(head + body, _NOTHING)
        return answer

    def _send(self, data: bytes, body: Piece) -> None:
        transport: Any = self.transport
        if self._isPlain:
            with suppress(OSError):  # who writes the rest finds out, or waits
                data = data[transport.getHandle().send(data) :]
            if data or body:
                self._writer = _SocketWriter(self._reactor, self, data, body)
        elif not body:
            transport.write(data)
        else:
            self._writer = _FileProducer(self, data, body)
            if self._answer is None:
                self._closeWriter()

    # -- what becomes of the body

    def wrote(self, whole: bool) -> None:
        """
        Bytes of the body were sent.
        """
        if self._silence is not None:
            self._silence.reset(self._patience)
        if whole:
            self._closeWriter()

    def unwritable(self, why: str) -> None:
        """
        The engine takes no more; its answer may still come.
        """
        self._writer = None
        self._spoiled = True
        if self._answer is not None and self._silence is not None:
            self._silence.reset(min(1.0, self._patience))

    def cut(self, why: str) -> None:
        """
        End the request and the connection.
        """
        self._fail(Broken(why))

    def _silent(self) -> None:
        self._silence = None
        self._fail(Broken(f"nothing came for {self._patience:.0f} s", silent=True))

    def _closeWriter(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    # -- what comes

    def dataReceived(self, data: bytes) -> None:
        if self._answer is None:
            self._spoil()
            return
        self._silence.reset(self._patience)
        self._read(self._reader.feed, data)

    def _read(self, read: Callable[..., Reply | None], *data: bytes) -> None:
        try:
            reply = read(*data)
        except Broken as e:
            self._fail(e)
            return
        if reply is not None:
            if self._writer is not None or self._reader.last:
                self._spoil()
            self._end().callback(reply)

    def connectionLost(self, reason: Failure = ConnectionDone) -> None:  # type: ignore[assignment]  # Twisted's own default
        self._spoiled = True
        if self._answer is not None:
            self._read(self._reader.end)
        if self._answer is not None:
            early = self._used and not self._reader.begun
            why = str(reason.value).rstrip(".")
            self._fail(Broken(f"the connection was lost: {why}", early=early))

    def _fail(self, why: Exception) -> None:
        self._spoil()
        if self._answer is not None:
            self._end().errback(why)

    def _spoil(self) -> None:
        self._spoiled = True
        self._closeWriter()
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def _end(self) -> Deferred[Reply]:
        answer, self._answer = self._answer, None
        assert answer is not None
        self._used = True
        self._closeWriter()
        silence, self._silence = self._silence, None
        if silence is not None:
            silence.cancel()
        return answer

    # -- IPoolable

    def isReusable(self) -> bool:
        return self._answer is None and not self._spoiled

    def reset(self) -> None:
        pass

    def validate(self) -> bool:
        return True  # asking would cost as much as the request that follows

    def idleDataReceived(self, data: bytes) -> bool:
        return False  # an answer to nothing, such as a 408

    def goodbye(self) -> None:
        pass


def _headOf(method: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if not _LINES(text := "\n".join(lines)) or text.count("\n") != len(headers):
        raise StoreError("a header has a character that no header may have")
    return (text.replace("\n", "\r\n") + "\r\n\r\n").encode("ascii")


class ExchangeFactory(Factory):
    """
    Makes the connections of a pool whose endpoints are L{AddressedEndpoint}s.
    """

    noisy = False

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def buildProtocol(self, addr: Any) -> Exchange:
        return Exchange(self._reactor, addr.hostname.decode())


class _Addressing(Factory):
    """
    The factory behind an endpoint, told C{host} in place of the peer's address.
    """

    noisy = False

    def __init__(self, factory: Any, host: str) -> None:
        self._factory = factory
        self._address = HostnameAddress(host.encode(), 0)

    def doStart(self) -> None:
        self._factory.doStart()

    def doStop(self) -> None:
        self._factory.doStop()

    def buildProtocol(self, addr: Any) -> Any:
        return self._factory.buildProtocol(self._address)


@implementer(IStreamClientEndpoint)
@attrs.frozen
class AddressedEndpoint:
    """
    An endpoint of an engine, with the host that its requests name.
    """

    endpoint: Any
    host: str

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        connecting: Deferred[Any] = self.endpoint.connect(_Addressing(protocolFactory, self.host))
        return connecting
