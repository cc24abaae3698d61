"""
The classic receiver's timing, with a clock of our own.
"""

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface.verify import verifyObject

from connpool.interfaces import IDrainableProtocol
from connpool.transfer.receive.classic import SETTLE_SECONDS, ClassicReceiver, ClassicRefusal
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.reception import Reception
from connpool.transfer.stores import MemoryStore
from connpool.transfer.wire.link import Link


class Transport(StringTransport):
    def abortConnection(self):
        self.disconnecting = True


def build(**policy):
    clock = Clock()
    receiver = ClassicReceiver(clock, Reception(MemoryStore(), clock, Policy(**policy)))
    transport = Transport(peerAddress=IPv4Address("TCP", "127.0.0.1", 1))
    receiver.makeConnection(transport)
    return clock, receiver, transport


def test_provides():
    _, receiver, transport = build()
    verifyObject(IDrainableProtocol, receiver)
    verifyObject(IDrainableProtocol, ClassicRefusal())
    verifyObject(IDrainableProtocol, Link(Clock(), None))
    receiver.drain()
    assert transport.disconnecting


def test_aNameMayComeInPieces():
    clock, receiver, transport = build()
    name = "二.txt".encode()
    for byte in name:
        receiver.dataReceived(bytes([byte]))
        clock.advance(SETTLE_SECONDS * 0.9)
        assert transport.value() == b""
    clock.advance(SETTLE_SECONDS)
    clock.advance(0)
    assert transport.value() == b"ok"
    receiver.readConnectionLost()
    assert clock.getDelayedCalls() == []


def named(clock, receiver):
    receiver.dataReceived(b"name")
    clock.advance(SETTLE_SECONDS)
    clock.advance(0)


def test_theTimeOfATransferEnds():
    clock, receiver, transport = build(maxTime=30.0)
    named(clock, receiver)
    for _ in range(30):
        assert not transport.disconnecting
        receiver.dataReceived(bytes(5000))
        clock.advance(1.0)
    clock.advance(0.1)
    assert transport.disconnecting
    assert clock.getDelayedCalls() == []


def test_whoFindsNoPlaceIsToldSo():
    clock, receiver, transport = build(maxTransfers=0)
    named(clock, receiver)
    assert transport.value() == b"busy: 0 transfers are under way; try later\n"
    assert clock.getDelayedCalls() == []
