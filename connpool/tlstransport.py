"""
TLS over any transport, many records at a time.

Theory of operation
===================
A TLS record carries 16 KiB at most.  L{TLSMemoryBIOProtocol} hands each to the protocol by
itself, and gives the transport below each record that it makes by itself: for a file that is
a call of C{dataReceived}, or a write and its bookkeeping, for every 16 KiB.
L{BulkTLSTransport} takes up to L{READ_BYTES} in one go, and gives up to L{PIECE_BYTES}; all
else, the handshake and the ends of a connection among it, is Twisted's.

What is written is cut into shorter pieces than what is read: the transport below sends no more
at once, and would copy the rest.  What is read is bounded by memory: OpenSSL keeps a buffer
of that size for as long as a connection lives.

A run of known length may go past the transport and the one below, each direction by itself
(L{connpool.tlslending}).  That is for TLS 1.3, whose handshakes do not come again, on a
socket.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IPullProducer,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.tlslending import RECORD_BYTES, LentReader, LentWriter

__all__ = ["PIECE_BYTES", "READ_BYTES", "BulkTLSTransport", "TLSClientEndpoint"]

#: Bytes that are read together,
READ_BYTES = 32 * RECORD_BYTES
#: and those that are written together, a whole number of records.
PIECE_BYTES = 7 * RECORD_BYTES
#: Encrypted bytes that are given to the transport below together: a piece with what its
#: records add.  Twisted's sends as many at once.
_WIRE_BYTES = 1 << 17


@implementer(IPullProducer)
class _Emptied:
    """
    Asks the transport below to tell when it has written all.

    @param emptied: called then.
    """

    def __init__(self, emptied: Callable[[], None], stop: Callable[[], None]) -> None:
        self._emptied = emptied
        self.stopProducing = stop
        self.begun = False

    def resumeProducing(self) -> None:
        if self.begun:
            self._emptied()


class BulkTLSTransport(BufferingTLSTransport):
    """
    Twisted's, with the inner loops over the records written anew.
    """

    #: Whether the direction is lent, and the reason why OpenSSL reads no more.
    _readerLent = _writerLent = False
    _end: Error | None = None

    @property
    def bufferSize(self) -> int:
        """
        Bytes that the transport below reads at once; L{READ_BYTES} at most.
        """
        size: int = self._below.bufferSize
        return size

    @bufferSize.setter
    def bufferSize(self, size: int) -> None:
        self._below.bufferSize = min(size, READ_BYTES)

    @property
    def _below(self) -> Any:
        return self.transport

    def unregisterProducer(self) -> None:
        # what is being gathered goes before a close that waited for the producer
        self._aggregator.flush()
        super().unregisterProducer()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # what was read and is still encrypted comes before the end
        self._readerLent = self._writerLent = False
        super().connectionLost(reason)

    # -- going past it

    @property
    def lendable(self) -> bool:
        """
        Tell whether L{lendReader} and L{lendWriter} may be called.
        """
        below = self._below
        return (
            self._handshakeDone
            and self._end is None
            and not (self.disconnecting or self._lostTLSConnection or self._appSendBuffer)
            and self._tlsConnection.get_protocol_version_name() == "TLSv1.3"
            and not ISSLTransport.providedBy(below)
            and isinstance(getattr(below, "getHandle", lambda: None)(), socket.socket)
        )

    def lendReader(self, reactor: Any) -> LentReader:
        """
        Read nothing until what is returned was closed.  The transport has to be paused.

        @param reactor: has what was read meanwhile and is left delivered on a later turn.
        """
        self._readerLent = True
        return LentReader(reactor, self, self._tlsConnection, self._below.getHandle())

    def lendWriter(self) -> LentWriter:
        """
        Write nothing until what is returned was closed.  Nothing may wait to be written: see
        L{writeOut}.
        """
        self._writerLent = True
        return LentWriter(self, self._tlsConnection, self._below.getHandle())

    def writeOut(self, data: bytes, written: Callable[[], None]) -> None:
        """
        Write C{data}, which is something.

        @param written: called on a later turn, when all that was written is with the kernel;
            never if the connection ends before.
        """
        below = self._below

        def stop() -> None:
            if self._producer is not None:
                self._producer.stopProducing()

        def emptied() -> None:
            below.unregisterProducer()
            if self._producer is not None:
                below.registerProducer(self._producer, True)
            written()

        asking = _Emptied(emptied, stop)
        below.unregisterProducer()
        below.registerProducer(asking, False)
        asking.begun = True
        self.write(data)
        self._aggregator.flush()

    def answer(self) -> None:
        self._flushSendBIO()

    def readerBack(self, reactor: Any, end: Error | None) -> None:
        self._readerLent = False
        self._end = end
        if self.connected:
            reactor.callLater(0, self._deliver)

    def _deliver(self) -> None:
        if self.connected and not self._readerLent:
            self._flushReceiveBIO()

    def writerBack(self, wire: memoryview) -> None:
        self._writerLent = False
        if self.connected:
            self._below.write(bytes(wire))
            self._flushSendBIO()

    # -- in place of Twisted's, which are called from elsewhere in it, too

    def _flushReceiveBIO(self) -> None:
        while not (self._lostTLSConnection or self._readerLent):
            data, end = self._decrypt()
            if data and not self._aborted:
                ProtocolWrapper.dataReceived(self, data)
            if isinstance(end, WantReadError):
                break
            if end is not None and not self._lostTLSConnection:
                self._ended(end)
        self._flushSendBIO()

    def _decrypt(self) -> tuple[bytes, Error | None]:
        """
        @return: what the next records carry, and the reason why there are no more.
        """
        records: list[bytes] = []
        size = 0
        if self._end is not None:
            return b"", self._end
        try:
            while size < READ_BYTES:
                record = self._tlsConnection.recv(RECORD_BYTES)
                records.append(record)
                size += len(record)
        except Error as end:
            return b"".join(records), end
        return b"".join(records), None

    def _ended(self, why: Error) -> None:
        if isinstance(why, ZeroReturnError):
            # a proper end: the reason is the one of the transport below
            self._shutdownTLS()
            self._tlsShutdownFinished(None)
        else:
            self._tlsShutdownFinished(Failure(why))

    def _flushSendBIO(self) -> None:
        if self._writerLent:
            return  # it goes with the next bytes of the run
        try:
            while True:
                wire = self._tlsConnection.bio_read(_WIRE_BYTES)
                self._below.write(wire)
                if len(wire) < _WIRE_BYTES:
                    break
        except WantReadError:
            pass  # nothing is left

    def _write(self, data: bytes) -> None:
        view, at = memoryview(data), 0
        while at < len(data) and not self._lostTLSConnection:
            end = min(at + PIECE_BYTES, len(data))
            try:
                while at < end:
                    at += self._tlsConnection.send(view[at : min(at + RECORD_BYTES, end)])
            except WantReadError:
                # the handshake goes on first
                self._bufferedWrite(data[at:])
                break
            except Error:
                self._tlsShutdownFinished(Failure())
                return
            self._flushSendBIO()


@implementer(IStreamClientEndpoint)
class TLSClientEndpoint:
    """
    TLS over what C{endpoint} connects to.

    @param reactor: its clock delays small writes until the next turn.
    @param tls: makes the connections.
    """

    def __init__(
        self,
        reactor: Any,
        tls: IOpenSSLClientConnectionCreator,
        endpoint: IStreamClientEndpoint,
    ) -> None:
        self._reactor = reactor
        self._tls = tls
        self.endpoint = endpoint

    def over(self, endpoint: IStreamClientEndpoint) -> TLSClientEndpoint:
        """
        @return: the same TLS over another endpoint.
        """
        return TLSClientEndpoint(self._reactor, self._tls, endpoint)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        factory = TLSMemoryBIOFactory(self._tls, True, protocolFactory, self._reactor)
        factory.protocol = BulkTLSTransport
        connecting: Deferred[Any] = self.endpoint.connect(factory)
        return connecting.addCallback(lambda tls: tls.wrappedProtocol)
