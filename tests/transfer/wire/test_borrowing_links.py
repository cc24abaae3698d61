"""
A connection whose socket is read past its transport: for how long.
"""

import socket

import pytest
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from zope.interface import directlyProvides

from connpool.transfer.wire.frames import PREAMBLE, Type
from connpool.transfer.wire.link import Link
from connpool.transfer.wire.messages import Data, Digests, Ping, encode

PART = bytes(range(256)) * 1024
DIGEST = bytes(32)


class Reactor(Clock):
    """
    Has the one reader read.
    """

    reading = None

    def addReader(self, reader):
        self.reading = reader

    def removeReader(self, reader):
        self.reading = None


class Transport:
    """
    A socket, and what was asked of its transport.
    """

    def __init__(self, handle):
        self._handle = handle
        self.asked = []

    def getHandle(self):
        return self._handle

    def pauseProducing(self):
        self.asked.append("pause")

    def resumeProducing(self):
        self.asked.append("resume")

    def abortConnection(self):
        self.asked.append("abort")

    def loseConnection(self):
        self.asked.append("lose")

    def unregisterProducer(self):
        pass


class Session:
    """
    Takes what comes.
    """

    def __init__(self):
        self.kinds, self.content = [], b""
        self.lost = None

    def linkMade(self, link):
        pass

    greeted = turn = lambda self: None

    def frameReceived(self, frame):
        self.kinds.append(frame.type)

    def partReceived(self, view):
        self.content += view

    def linkLost(self, why):
        self.lost = why


class Pair:
    """
    A link, and the peer that it is connected to.
    """

    def __init__(self):
        self.reactor = Reactor()
        directlyProvides(self.reactor, IReactorFDSet)
        self.session = Session()
        self.link = Link(self.reactor, self.session)
        self.peer, self.handle = socket.socketpair()
        for each in (self.peer, self.handle):
            each.settimeout(20)
        self.handle.setblocking(False)
        self.transport = Transport(self.handle)
        self.link.makeConnection(self.transport)
        self.link.dataReceived(PREAMBLE)

    def say(self, *wire):
        """
        Send something, and have as much of it read as is read past the transport.
        """
        self.peer.setblocking(False)
        left = memoryview(b"".join(wire))
        while left:
            left = left[self.peer.send(left[: 64 * 1024]) :]
            while self.reactor.reading is not None:
                before = len(self.session.content), len(self.session.kinds)
                self.reactor.reading.doRead()
                if before == (len(self.session.content), len(self.session.kinds)):
                    break


@pytest.fixture
def pair():
    made = Pair()
    yield made
    made.link.abort(ConnectionError())
    made.peer.close()
    made.handle.close()


def data():
    return encode(Type.DATA, 1, Data(0), len(PART))


def digests():
    return encode(Type.DIGESTS, 1, Digests(0), len(DIGEST)) + DIGEST


def test_theSocketIsLentOnceForTheFramesOfALargeFile(pair):
    pair.link.dataReceived(data())
    pair.say(PART, digests(), data(), PART, digests(), data(), PART)
    assert pair.session.content == PART * 3
    assert pair.session.kinds == [Type.DATA, Type.DIGESTS] * 2 + [Type.DATA]
    assert pair.transport.asked == ["pause"]


def test_itIsGivenBackWithTheFirstOtherFrame(pair):
    pair.link.dataReceived(data())
    pair.say(PART, digests(), encode(Type.PING, 0, Ping(1)))
    assert pair.session.kinds == [Type.DATA, Type.DIGESTS, Type.PING]
    assert pair.transport.asked == ["pause", "resume"]
    assert pair.reactor.reading is None
    pair.link.dataReceived(data())
    pair.say(PART)
    assert pair.session.content == PART * 2
    assert pair.transport.asked == ["pause", "resume", "pause"]


def test_anEndBehindTheDataIsForTheTransport(pair):
    pair.link.dataReceived(data())
    pair.say(PART, digests())
    pair.peer.shutdown(socket.SHUT_WR)
    pair.reactor.reading.doRead()
    assert pair.transport.asked == ["pause", "resume"]
    assert pair.session.lost is None
    assert pair.handle.recv(1) == b""


def test_aSilentPeerIsNotWaitedForInsideAFrame(pair):
    """
    Between two frames no byte is due, so no deadline runs.
    """
    pair.link.dataReceived(data())
    pair.say(PART)
    pair.reactor.pump([0.1] * 3)
    # of the connection, that nothing comes for long
    assert len(pair.reactor.getDelayedCalls()) == 1
    pair.say(digests()[:5])
    assert len(pair.reactor.getDelayedCalls()) == 2
    pair.say(digests()[5:])
    assert len(pair.reactor.getDelayedCalls()) == 1


def test_nothingIsReadWhileTheSessionHolds(pair):
    pair.link.dataReceived(data())
    pair.say(PART)
    pair.link.hold()
    assert pair.reactor.reading is None
    pair.peer.send(digests())
    pair.link.release()
    pair.say()
    pair.reactor.reading.doRead()
    assert pair.session.kinds == [Type.DATA, Type.DIGESTS]
    assert pair.transport.asked == ["pause"]


def test_oneThatClosesBetweenTwoFramesReadsTheEnd(pair):
    pair.link.dataReceived(data())
    pair.say(PART, digests())
    pair.link.close()
    assert pair.transport.asked == ["pause", "resume", "lose"]
    assert pair.reactor.reading is None
