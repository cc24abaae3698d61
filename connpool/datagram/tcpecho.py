"""
Echo over TCP (RFC 862), with half-close and backpressure done right.

A client that sends and then shuts down its side gets every byte back before
the connection ends; with a plain Twisted protocol the end of reading closes the
transport and what was not yet written is lost.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

__all__ = ["TCPEcho", "TCPEchoFactory"]


@implementer(IHalfCloseableProtocol, IPushProducer)
class TCPEcho(Protocol):
    """
    Stops reading while the client does not read, so a client costs one socket
    buffer and no more.
    """

    transport: Any

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, streaming=True)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)

    def readConnectionLost(self) -> None:
        self.transport.unregisterProducer()
        # after what is still to be written
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        self.transport.loseConnection()

    def pauseProducing(self) -> None:
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        self.transport.stopProducing()


class TCPEchoFactory(Factory):
    protocol = TCPEcho
    noisy = False
