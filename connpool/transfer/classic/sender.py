"""
Sending by the classic protocol.

A receiver is never probed: the tutorial's accepts one connection in its life.
Nothing comes back after C{ok}, so the best end there is is L{Unconfirmed}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IPullProducer,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import (
    Forbidden,
    NetworkFailed,
    ProtocolError,
    SourceError,
    TransferError,
    TransferTimeout,
)
from connpool.transfer.names import displayName
from connpool.transfer.pace import Pace
from connpool.transfer.source import openSource

__all__ = ["sendClassic"]

#: Bytes read from the file and handed to the transport at once.
CHUNK = 1 << 20

#: Longest refusal that is read.
LONGEST_ANSWER = 1024


@implementer(IPullProducer, IHalfCloseableProtocol)
class _ClassicSender(Protocol):
    """
    One connection, one file.  C{ended} fires when the receiver closed after
    everything was sent.
    """

    def __init__(
        self,
        clock: Any,
        name: bytes,
        file: BinaryIO,
        progress: Callable[[int], Any],
        timeout: float,
    ) -> None:
        self._name = name
        self._file = file
        self._progress = progress
        self._answer = b""
        self._sending = self._sent = False
        self._pace = Pace(clock, timeout, 0, self._fail)
        self.ended: Deferred[None] = Deferred(lambda _: self._abort())

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self._pace.start()
        transport.write(self._name)

    def dataReceived(self, data: bytes) -> None:
        self._pace.arrived(len(data))
        if self._sending:
            if data.strip():
                # tutorial receivers end their "ok" with a newline at most
                self._fail(ProtocolError(f"the receiver said {displayName(data)} after ok"))
            return
        self._answer += data
        answer = self._answer.strip().lower()
        if answer == b"ok":
            self._sending = True
            transport: Any = self.transport
            transport.registerProducer(self, streaming=False)
        elif not b"ok".startswith(answer) and (
            b"\n" in self._answer or len(self._answer) >= LONGEST_ANSWER
        ):
            self._refused()

    def _refused(self) -> None:
        if self._answer.startswith(b"\0CPT1"):
            self._fail(ProtocolError("the receiver speaks native; leave out --protocol classic"))
        else:
            self._fail(Forbidden(f"the receiver answered: {displayName(self._answer.strip())}"))

    def resumeProducing(self) -> None:
        transport: Any = self.transport
        try:
            data = self._file.read(CHUNK)
        except OSError as e:
            self._fail(SourceError(f"cannot read it: {e.strerror}"))
            return
        if data:
            self._pace.arrived(len(data))
            self._progress(len(data))
            transport.write(data)
        else:
            transport.unregisterProducer()
            self._sent = True
            transport.loseWriteConnection()

    def stopProducing(self) -> None:
        """
        The connection is gone; C{connectionLost} says how.
        """

    def _abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def _fail(self, why: TransferError) -> None:
        if not self.ended.called:
            self.ended.errback(why)
        self._abort()

    def readConnectionLost(self) -> None:
        transport: Any = self.transport
        if self._sent:
            transport.loseConnection()
        elif self._answer and not self._sending:
            self._refused()
        else:
            self._fail(self._early())

    def writeConnectionLost(self) -> None:
        """
        Ours: everything is on its way.
        """

    def _early(self) -> TransferError:
        if self._sending:
            return NetworkFailed("the receiver closed the connection before it had everything")
        return NetworkFailed("the receiver closed the connection without an answer")

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._pace.stop()
        if self.ended.called:
            return
        if self._sent and reason is not None and reason.check(ConnectionDone):
            self.ended.callback(None)
        elif reason is not None and not reason.check(ConnectionDone):
            self.ended.errback(NetworkFailed("the receiver reset the connection"))
        else:
            self.ended.errback(self._early())


async def sendClassic(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    path: str,
    *,
    started: Callable[[int], Any] = lambda _size: None,
    progress: Callable[[int], Any] = lambda _count: None,
    timeout: float = 60.0,
) -> int:
    """
    Send one file by the classic protocol.

    @param reactor: times the deadlines.
    @param endpoint: where the receiver listens.
    @param path: a regular file.
    @param started: called with its size in bytes before the first byte.
    @param progress: called with the bytes of each chunk that was handed over.
    @param timeout: seconds the receiver may take to answer or to read on.
    @return: bytes sent.  That they arrived is not known: the protocol has no
        confirmation.
    @raise TransferError: why it was not sent.
    """
    source = openSource(path)
    with source.file:
        protocol = _ClassicSender(reactor, source.name, source.file, progress, timeout)
        try:
            await endpoint.connect(Factory.forProtocol(lambda: protocol)).addTimeout(
                timeout, reactor
            )
        except TimeoutError:
            raise TransferTimeout(f"no connection within {timeout:g} s") from None
        except Exception as e:
            raise NetworkFailed(f"cannot connect: {e}") from None
        started(source.size)
        await protocol.ended
        source.verifyUnchanged()
        return source.file.tell()
