"""
The writing half of a sender's connection, where it goes through the transport.
"""

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, ISSLTransport
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


class Lender:
    """
    A transport that lends its TLS, and says when it does.
    """

    lendable = True
    producer = None

    def __init__(self):
        directlyProvides(self, ISSLTransport)
        self.said = []

    def registerProducer(self, producer, streaming):
        pass

    def unregisterProducer(self):
        self.said.append("closable")

    def lendWriter(self):
        self.said.append("lent")
        return self

    def close(self):
        self.said.append("back")

    def writeOut(self, data, written):
        self.said.append(data)
        written()

    def write(self, data):
        self.said.append(data)

    def send(self, view):
        self.said.append(bytes(view))
        return len(view)


async def _parts(writer, *parts):
    for part in parts:
        async with writer.hold(b"header"):
            await writer.write(memoryview(part))


def lent():
    transport, clock = Lender(), Clock()
    directlyProvides(clock, IReactorFDSet)
    writer = Writer(clock, transport, lambda why: None)
    writer.start(b"first")

    def send(*parts):
        sending = Deferred.fromCoroutine(_parts(writer, *parts))
        clock.pump([0] * len(parts))
        successResultOf(sending)

    return transport, writer, send


def test_oneLoanIsEnoughForManyParts():
    transport, writer, send = lent()
    send(b"one", b"two")
    assert transport.said == [b"first", b"header", "lent", b"one", b"header", b"two"]
    writer.rest()
    assert transport.said[-2:] == ["back", "closable"]


def test_aFrameBetweenTwoPartsGoesThroughTheTransportThatLent():
    transport, writer, send = lent()
    send(b"one")
    writer.send(b"frame")
    send(b"two")
    assert transport.said[2:6] == ["lent", b"one", "back", b"frame"]
    assert transport.said[6:] == [b"header", "lent", b"two"]


def test_whatIsLentIsBackBeforeTheConnectionCloses():
    transport, writer, send = lent()
    send(b"one")
    writer.close(ConnectionError())
    assert transport.said[-2:] == ["back", "closable"]
