"""
The classic receiver's timing, with a clock of our own.
"""

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from connpool.transfer.classic import ClassicReceiver
from connpool.transfer.classic.receiver import SETTLE
from connpool.transfer.reception import Reception
from connpool.transfer.stores import MemoryStore


class Transport(StringTransport):
    def abortConnection(self):
        self.disconnecting = True


def build():
    clock = Clock()
    receiver = ClassicReceiver(clock, Reception(MemoryStore()))
    transport = Transport(peerAddress=IPv4Address("TCP", "127.0.0.1", 1))
    receiver.makeConnection(transport)
    return clock, receiver, transport


def test_aNameMayComeInPieces():
    clock, receiver, transport = build()
    name = "二.txt".encode()
    for byte in name:
        receiver.dataReceived(bytes([byte]))
        clock.advance(SETTLE * 0.9)
        assert transport.value() == b""
    clock.advance(SETTLE)
    clock.advance(0)
    assert transport.value() == b"ok"
    receiver.readConnectionLost()
    assert clock.getDelayedCalls() == []
