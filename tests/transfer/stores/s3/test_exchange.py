"""
A connection to an engine, over a transport in memory.
"""

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from connpool.errors import StoreError
from connpool.interfaces import IPoolable
from connpool.transfer.stores.s3.calls import Piece
from connpool.transfer.stores.s3.exchange import Exchange
from connpool.transfer.stores.s3.replies import Broken

OK = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 2\r\n\r\nok'


class Wire:
    """
    An exchange, its transport and clock.
    """

    def __init__(self):
        self.clock = Clock()
        self.exchange = Exchange(self.clock, "engine.example")
        self.transport = StringTransportWithDisconnection()
        self.transport.protocol = self.exchange
        self.transport.registerProducer = lambda producer, streaming: setattr(
            self, "producer", producer
        )
        self.transport.unregisterProducer = lambda: None
        self.transport.abortConnection = lambda: setattr(self, "aborted", True)
        self.aborted = False
        self.exchange.makeConnection(self.transport)

    def ask(self, body=b"", most=100, patience=10.0, method="PUT"):
        headers = [("host", "engine.example"), ("x-amz-date", "now")]
        return self.exchange.ask(method, "/b/k?q=1", headers, body, most, patience)

    def lose(self):
        self.exchange.connectionLost(Failure(ConnectionDone()))


@pytest.fixture
def wire():
    made = Wire()
    yield made
    assert made.clock.getDelayedCalls() == []


def result(d):
    got = []
    d.addBoth(got.append)
    assert len(got) == 1, "it has not fired"
    return got[0]


def broken(d):
    failure = result(d)
    assert failure.check(Broken), failure
    return failure.value


def test_isPoolable(wire):
    verifyObject(IPoolable, wire.exchange)


def test_requestAndAnswer(wire):
    d = wire.ask(b"body")
    sent = wire.transport.value()
    assert sent.startswith(b"PUT /b/k?q=1 HTTP/1.1\r\n")
    assert b"content-length: 4\r\n" in sent.lower()
    assert sent.endswith(b"\r\n\r\nbody")
    assert not wire.exchange.isReusable()
    for byte in OK:
        wire.exchange.dataReceived(bytes([byte]))
    reply = result(d)
    assert (reply.status, reply.headers["etag"], reply.body) == (200, '"e"', b"ok")
    assert wire.exchange.isReusable()
    assert not wire.aborted


def test_severalInOneConnection(wire):
    for _ in range(3):
        d = wire.ask()
        wire.exchange.dataReceived(OK)
        assert result(d).status == 200


def test_headHasNoBody(wire):
    d = wire.ask(method="HEAD")
    wire.exchange.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n")
    assert result(d).headers["content-length"] == "999999"
    assert wire.exchange.isReusable()


def test_lastAnswerOfAConnection(wire):
    d = wire.ask()
    wire.exchange.dataReceived(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert result(d).body == b"ok"
    assert not wire.exchange.isReusable()


def test_answerThatEndsWithTheConnection(wire):
    d = wire.ask()
    wire.exchange.dataReceived(b"HTTP/1.1 500 Oops\r\n\r\n<Err")
    wire.lose()
    assert result(d).body == b"<Err"


def test_cutAmidAnAnswer(wire):
    d = wire.ask()
    wire.exchange.dataReceived(OK[:-1])
    wire.lose()
    assert not broken(d).early


def test_closedWhileItWasIdle(wire):
    """
    Only a connection that was used before may have been closed by then.
    """
    d = wire.ask()
    wire.lose()
    assert not broken(d).early
    second = Wire()
    d = second.ask()
    second.exchange.dataReceived(OK)
    result(d)
    d = second.ask()
    second.lose()
    assert broken(d).early


def test_silence(wire):
    d = wire.ask(patience=10.0)
    wire.clock.advance(9)
    wire.exchange.dataReceived(b"HTTP/1.1 200 OK\r\n")
    wire.clock.advance(9)
    wire.exchange.dataReceived(b"Content-Length: 0\r\n")
    wire.clock.advance(11)
    assert broken(d).silent
    assert wire.aborted


def test_tooLong(wire):
    d = wire.ask(most=100)
    wire.exchange.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n" + b"x" * 101)
    assert "longer than 100" in str(broken(d))
    assert wire.aborted


@pytest.mark.parametrize("junk", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nA" + b"b" * 70000])
def test_noHTTP(wire, junk):
    d = wire.ask()
    wire.exchange.dataReceived(junk)
    assert "not HTTP" in str(broken(d))
    assert wire.aborted


def test_cancelled(wire):
    d = wire.ask()
    d.cancel()
    assert result(d).check(CancelledError)
    assert wire.aborted
    assert not wire.exchange.isReusable()


def test_bytesThatNobodyAskedFor(wire):
    assert not wire.exchange.idleDataReceived(b"HTTP/1.1 408 Timeout\r\n\r\n")
    wire.exchange.dataReceived(b"x")
    assert not wire.exchange.isReusable()


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "spool"
    path.write_bytes(b"-" * 1000 + bytes(range(256)) * 1024)
    with open(path, "rb") as file:
        yield file.fileno()


def test_fileThroughAProducer(wire, large):
    """
    The transport is no socket here: it is written in pieces, which it may pause.
    """
    pieces = []
    wire.transport.write = lambda data: (
        pieces.append(data),
        wire.producer.pauseProducing() if len(pieces) == 3 else None,
    )
    d = wire.ask(Piece(large, 1000, 256 * 1024))
    assert len(pieces) == 3
    wire.producer.resumeProducing()
    assert b"content-length: 262144" in pieces[0].lower()
    assert b"".join(pieces[1:]) == bytes(range(256)) * 1024
    wire.exchange.dataReceived(OK)
    assert result(d).status == 200
    assert wire.exchange.isReusable()


def test_answerAmidABody(wire, large):
    """
    It is the answer, and the connection is not used again.
    """
    pieces = []
    wire.transport.write = lambda data: (
        pieces.append(data),
        wire.producer.pauseProducing() if len(pieces) == 2 else None,
    )
    d = wire.ask(Piece(large, 0, 256 * 1024))
    wire.exchange.dataReceived(b"HTTP/1.1 503 Slow\r\nContent-Length: 0\r\n\r\n")
    assert result(d).status == 503
    assert wire.aborted
    assert not wire.exchange.isReusable()
    wire.producer.resumeProducing()
    assert len(pieces) == 2


def test_fileThatIsTooShort(wire, large):
    d = wire.ask(Piece(large, 1000, 256 * 1024 + 1))
    assert "ends before" in str(broken(d))
    assert wire.aborted


@pytest.mark.parametrize("value", ["a\r\nhost: other", "a\nb", "a\0b", "ä"])
def test_noHeaderInAHeader(wire, value):
    with pytest.raises(StoreError, match="no header may have"):
        wire.exchange.ask("PUT", "/b/k", [("host", "h"), ("x", value)], b"", 1, 1.0)
    assert wire.transport.value() == b""
    assert wire.exchange.isReusable()
