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
"""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["PIECE_BYTES", "READ_BYTES", "BulkTLSTransport", "TLSClientEndpoint"]

#: Bytes that one record carries at most (RFC 8446, section 5.1),
_RECORD_BYTES = 1 << 14
#: those that are read together,
READ_BYTES = 32 * _RECORD_BYTES
#: and those that are written together, a whole number of records.
PIECE_BYTES = 7 * _RECORD_BYTES
#: Encrypted bytes that are given to the transport below together: a piece with what its
#: records add.  Twisted's sends as many at once.
_WIRE_BYTES = 1 << 17


class BulkTLSTransport(BufferingTLSTransport):
    """
    Twisted's, with the inner loops over the records written anew.
    """

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

    # -- in place of Twisted's, which are called from elsewhere in it, too

    def _flushReceiveBIO(self) -> None:
        while not self._lostTLSConnection:
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
        try:
            while size < READ_BYTES:
                record = self._tlsConnection.recv(_RECORD_BYTES)
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
                    at += self._tlsConnection.send(view[at : min(at + _RECORD_BYTES, end)])
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
