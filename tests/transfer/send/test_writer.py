"""
The writing half of a sender's connection, where it goes through the transport.
"""

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import directlyProvides

from connpool.tlstransport import PIECE_BYTES
from connpool.transfer.send.writer import Writer
from tests.helpers.waiting import successResultOf


class Slow(StringTransport):
    """
    Within TLS; takes one piece, and then no more until it is told to.
    """

    def __init__(self):
        super().__init__()
        directlyProvides(self, ISSLTransport)
        self.pieces = []

    def write(self, data):
        self.pieces.append(data)
        if self.producer is not None:
            self.producer.pauseProducing()


def test_aRunGoesInPiecesThatTheTransportAskedFor():
    transport, clock = Slow(), Clock()
    writer = Writer(clock, transport, lambda why: None)
    writer.start(b"first")
    data = bytes(range(256)) * 4096
    done = []

    async def send():
        async with writer.hold(b"header"):
            await writer.write(memoryview(data))
        done.append(True)

    sending = Deferred.fromCoroutine(send())
    for _ in range(30):
        if not done:
            waiting = len(transport.pieces)
            clock.advance(0)
            assert len(transport.pieces) == waiting
            writer.resumeProducing()
            # one for each time that more was asked for
            assert len(transport.pieces) <= waiting + 2
    successResultOf(sending)
    first, header, *pieces = transport.pieces
    assert (first, header) == (b"first", b"header")
    assert b"".join(pieces) == data
    assert len(pieces) == -(-len(data) // PIECE_BYTES)
    assert max(map(len, pieces)) == PIECE_BYTES
