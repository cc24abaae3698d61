import pytest
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface.verify import verifyObject

from connpool.interfaces import IDrainable
from connpool.transfer.receive.sniffer import FIRST_BYTES_TIMEOUT, Door, FrontDoorFactory
from tests.helpers.waiting import assertNoResult, successResultOf


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
    doors = [
        Door(b"\0CPT1\r\n\x1a", lambda _: Inner("native")),
        Door(b"", lambda _: Inner("classic")),
    ]
    factory = FrontDoorFactory(clock, doors)
    door = factory.buildProtocol(None)
    transport = Transport()
    door.makeConnection(transport)
    return clock, factory, door, transport


def test_provides():
    _, factory, door, _ = build()
    verifyObject(IHalfCloseableProtocol, door)
    verifyObject(IDrainable, factory)
    door.connectionLost()


@pytest.mark.parametrize("split", range(1, 9))
def test_theSignatureMayComeInPieces(split):
    clock, _, door, transport = build()
    stream = b"\0CPT1\r\n\x1aHELLO"
    door.dataReceived(stream[:split])
    door.dataReceived(stream[split:])
    assert door.inner.name == "native"
    assert door.inner.received == stream
    assert door.inner.transport is transport
    assert clock.getDelayedCalls() == []


def test_everythingElseIsClassic():
    for first in (b"a", b"\0x", b"PUT notes.txt", b"\xff"):
        _, _, door, _ = build()
        door.dataReceived(first)
        assert door.inner.name == "classic"
        assert door.inner.received == first


def test_whoSaysNothingIsSentAway():
    clock, _, door, transport = build()
    clock.advance(FIRST_BYTES_TIMEOUT)
    assert transport.disconnecting
    assert door.inner is None
    assert clock.getDelayedCalls() == []


def test_aPrefixThatStaysOneIsClassic():
    clock, _, door, _ = build()
    door.dataReceived(b"\0CP")
    assert door.inner is None
    clock.advance(FIRST_BYTES_TIMEOUT)
    assert door.inner.name == "classic"
    assert door.inner.received == b"\0CP"


def test_endsArePassedOn():
    _, _, door, _ = build()
    door.dataReceived(b"a")
    door.readConnectionLost()
    door.writeConnectionLost()
    door.connectionLost()
    assert door.inner.events == ["eof", "closed", "lost"]


def test_drainWaitsForConnections():
    clock, factory, door, transport = build()
    busy = factory.buildProtocol(None)
    busy.makeConnection(Transport())
    busy.dataReceived(b"a")
    d = factory.drain()
    assert transport.disconnecting
    assert busy.inner.events == ["drain"]
    door.connectionLost()
    assertNoResult(d)
    factory.abort()
    busy.connectionLost()
    assert successResultOf(d) is None
    assert clock.getDelayedCalls() == []
    assert successResultOf(factory.drain()) is None
