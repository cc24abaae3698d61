import pytest
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface.verify import verifyObject

from connpool.interfaces import IDrainableProtocol
from connpool.transfer.receive.sniffer import (
    FIRST_BYTES_TIMEOUT,
    HTTP_PATIENCE_SECONDS,
    HTTP_SIGNATURES,
    Choice,
    SnifferFactory,
)


class Inner(Protocol):
    def __init__(self, name):
        self.name = name
        self.received = b""
        self.events = []

    def dataReceived(self, data):
        self.received += data

    def readConnectionLost(self):
        self.events.append("eof")

    def writeConnectionLost(self):
        self.events.append("closed")

    def connectionLost(self, reason=None):
        self.events.append("lost")

    def drain(self):
        self.events.append("drain")


class Transport(StringTransport):
    def abortConnection(self):
        self.disconnecting = True


def build():
    clock = Clock()
    choices = [
        Choice((b"\0CPT1\r\n\x1a",), lambda _: Inner("native")),
        Choice(HTTP_SIGNATURES, lambda _: Inner("web"), HTTP_PATIENCE_SECONDS),
        Choice((b"",), lambda _: Inner("classic")),
    ]
    factory = SnifferFactory(clock, choices)
    sniffer = factory.buildProtocol(None)
    transport = Transport()
    sniffer.makeConnection(transport)
    return clock, factory, sniffer, transport


def test_provides():
    _, _, sniffer, _ = build()
    verifyObject(IHalfCloseableProtocol, sniffer)
    verifyObject(IDrainableProtocol, sniffer)
    sniffer.connectionLost()


@pytest.mark.parametrize("split", range(1, 9))
def test_theSignatureMayComeInPieces(split):
    clock, _, sniffer, transport = build()
    stream = b"\0CPT1\r\n\x1aHELLO"
    sniffer.dataReceived(stream[:split])
    sniffer.dataReceived(stream[split:])
    assert sniffer.inner.name == "native"
    assert sniffer.inner.received == stream
    assert sniffer.inner.transport is transport
    assert clock.getDelayedCalls() == []


def test_everythingElseIsClassic():
    for first in (b"a", b"\0x", b"PUT notes.txt", b"\xff"):
        _, _, sniffer, _ = build()
        sniffer.dataReceived(first)
        assert sniffer.inner.name == "classic"
        assert sniffer.inner.received == first


def test_whoSaysNothingIsSentAway():
    clock, _, sniffer, transport = build()
    clock.advance(FIRST_BYTES_TIMEOUT)
    assert transport.disconnecting
    assert sniffer.inner is None
    assert clock.getDelayedCalls() == []


def test_aPrefixThatStaysOneIsClassic():
    clock, _, sniffer, _ = build()
    sniffer.dataReceived(b"\0CP")
    assert sniffer.inner is None
    clock.advance(FIRST_BYTES_TIMEOUT)
    assert sniffer.inner.name == "classic"
    assert sniffer.inner.received == b"\0CP"


@pytest.mark.parametrize("line", [b"PUT /a", b"GET http://x/", b"OPTIONS * HTTP/1.1", b"PRI * HT"])
def test_aRequestIsTheWebDoors(line):
    for split in range(1, len(line)):
        clock, _, sniffer, _ = build()
        sniffer.dataReceived(line[:split])
        clock.advance(HTTP_PATIENCE_SECONDS / 2)
        sniffer.dataReceived(line[split:])
        assert sniffer.inner.name == "web"
        assert sniffer.inner.received == line
        assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("name", [b"P", b"PUT", b"PUT ", b"PRI * ", b"GET http:"])
def test_aFileMayBeCalledAsARequestBegins(name):
    clock, _, sniffer, _ = build()
    for byte in name:
        sniffer.dataReceived(bytes([byte]))
        clock.advance(HTTP_PATIENCE_SECONDS / 20)
    clock.advance(HTTP_PATIENCE_SECONDS)
    assert sniffer.inner.name == "classic"
    assert sniffer.inner.received == name
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("first", [b"put /a", b"PUT  /a", b"PUTS /a", b"TRACE /", b"PUT *"])
def test_othersAreNoRequests(first):
    _, _, sniffer, _ = build()
    sniffer.dataReceived(first)
    assert sniffer.inner.name == "classic"


def test_endsArePassedOn():
    _, _, sniffer, _ = build()
    sniffer.dataReceived(b"a")
    sniffer.readConnectionLost()
    sniffer.writeConnectionLost()
    sniffer.connectionLost()
    assert sniffer.inner.events == ["eof", "closed", "lost"]


def test_drainEndsASilentConnectionAndAsksTheOther():
    clock, factory, silent, transport = build()
    busy = factory.buildProtocol(None)
    busy.makeConnection(Transport())
    busy.dataReceived(b"a")
    silent.drain()
    busy.drain()
    assert transport.disconnecting
    assert busy.inner.events == ["drain"]
    assert not busy.transport.disconnecting
    silent.connectionLost()
    busy.connectionLost()
    assert clock.getDelayedCalls() == []


def test_theChosenProtocolGetsTheBytesItself():
    _, _, sniffer, _ = build()
    sniffer.dataReceived(b"a")
    assert sniffer.dataReceived == sniffer.inner.dataReceived
    sniffer.dataReceived(b"b")
    assert sniffer.inner.received == b"ab"
    sniffer.connectionLost()
