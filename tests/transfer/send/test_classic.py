"""
When the classic sender gives a receiver up, and when not.
"""

import socket

import pytest
from twisted.internet import defer, error
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from connpool.errors import Forbidden, NetworkFailed, TransferTimeout
from connpool.transfer.send.classic import SMALL_CHUNK_BYTES, sendClassic
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf

TIMEOUT = 8


class Wire(StringTransport):
    """
    Hands a chunk over when asked to, to a real socket if it has one.
    """

    def __init__(self, handle=None):
        super().__init__()
        self.handle = handle

    def getHandle(self):
        return self.handle

    def write(self, data):
        super().write(data)
        if self.handle is not None:
            # a unix socket lets go of whole pieces only
            for at in range(0, len(data), 10_000):
                self.handle.sendall(data[at : at + 10_000])

    def giveAll(self):
        while self.producer is not None:
            self.producer.resumeProducing()

    def loseWriteConnection(self):
        pass

    def abortConnection(self):
        self.loseConnection()
        self.protocol.connectionLost(Failure(error.ConnectionAborted()))


class Endpoint:
    """
    Connects at once, over C{wire}; or never, without one.
    """

    def __init__(self, wire=None):
        self.wire = wire

    def connect(self, factory):
        if self.wire is None:
            # as Twisted's do
            return defer.Deferred(lambda d: d.errback(error.ConnectingCancelledError("there")))
        self.wire.protocol = protocol = factory.buildProtocol(None)
        protocol.makeConnection(self.wire)
        return defer.succeed(protocol)


@pytest.fixture
def clock():
    clock = Clock()
    yield clock
    assert not clock.getDelayedCalls()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    return path


@pytest.fixture
def pair():
    pair = socket.socketpair()
    pair[0].setblocking(False)
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
    yield pair
    for each in pair:
        each.close()


def begin(clock, path, wire, **more):
    sending = sendClassic(clock, Endpoint(wire), str(path), timeout=TIMEOUT, **more)
    return defer.Deferred.fromCoroutine(sending)


def pass_(clock, seconds):
    for _ in range(int(seconds * 4)):
        clock.advance(0.25)


def test_drainingIsProgress(clock, path, pair):
    wire = Wire(pair[0])
    d = begin(clock, path, wire)
    assert pair[1].recv(100) == b"file"
    wire.protocol.dataReceived(b"ok")
    wire.giveAll()
    for _ in range(4):
        pass_(clock, TIMEOUT * 0.8)
        pair[1].recv(10_000)
        assertNoResult(d)
    pass_(clock, TIMEOUT * 1.2)
    assert "took nothing" in str(failureResultOf(d, TransferTimeout))


def test_closedBeforeItHadEverything(clock, path, pair):
    wire = Wire(pair[0])
    d = begin(clock, path, wire)
    pair[1].recv(100)
    wire.protocol.dataReceived(b"ok")
    wire.giveAll()
    wire.protocol.readConnectionLost()
    assert "before it had everything" in str(failureResultOf(d, NetworkFailed))


def test_all(clock, path, pair):
    wire = Wire(pair[0])
    seen = []
    d = begin(clock, path, wire, progress=lambda *of: seen.append(of))
    pair[1].recv(100)
    wire.protocol.dataReceived(b"ok\n")
    wire.giveAll()
    assert len(pair[1].recv(100_000, socket.MSG_WAITALL)) == 100_000
    wire.protocol.readConnectionLost()
    assert wire.disconnecting
    wire.protocol.connectionLost(Failure(error.ConnectionDone()))
    assert successResultOf(d) == 100_000
    assert seen == [(100_000, 100_000)]


def test_withoutASocketChunksAreProgress(clock, path):
    wire = Wire()
    d = begin(clock, path, wire)
    wire.protocol.dataReceived(b"ok")
    wire.clear()
    pass_(clock, TIMEOUT * 0.8)
    wire.producer.resumeProducing()
    assert len(wire.value()) == SMALL_CHUNK_BYTES
    pass_(clock, TIMEOUT * 0.8)
    assertNoResult(d)
    pass_(clock, TIMEOUT * 0.4)
    failureResultOf(d, TransferTimeout)


@pytest.mark.parametrize("before", [b"", b"ok"])
def test_whatComesIsNoProgress(clock, path, before):
    wire = Wire()
    d = begin(clock, path, wire)
    wire.protocol.dataReceived(before)
    for _ in range(3):
        assertNoResult(d)
        wire.protocol.dataReceived(b"\n")
        pass_(clock, TIMEOUT * 0.4)
    failureResultOf(d, TransferTimeout)


def test_theAnswerIsBounded(clock, path):
    wire = Wire()
    d = begin(clock, path, wire)
    wire.protocol.dataReceived(b"\n" * 2000)
    failureResultOf(d, Forbidden)


def test_connectingHasADeadline(clock, path):
    d = begin(clock, path, None)
    pass_(clock, TIMEOUT)
    assert str(failureResultOf(d, TransferTimeout)) == "no connection within 8 s"


@pytest.mark.parametrize("answer", [None, b"", b"ok"])
def test_cancelled(clock, path, answer):
    wire = None if answer is None else Wire()
    d = begin(clock, path, wire)
    if wire is not None:
        wire.protocol.dataReceived(answer)
    d.cancel()
    failureResultOf(d, defer.CancelledError)
    assert wire is None or wire.disconnecting
