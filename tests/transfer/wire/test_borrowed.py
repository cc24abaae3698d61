"""
Reading a run from a borrowed socket: how many bytes are waited for.
"""

import fcntl
import socket
import struct
import sys
import termios
import time

import pytest
from twisted.internet.task import Clock

from connpool.transfer.wire import borrowed
from connpool.transfer.wire.borrowed import FAST_BYTES, LOOK_SECONDS, WAKE_BYTES, BorrowedReader

MIB = 1 << 20


class Reactor(Clock):
    """
    Reads when it is told to.
    """

    reading = None
    added = 0

    def addReader(self, reader):
        self.reading = reader
        self.added += 1

    def removeReader(self, reader):
        self.reading = None


class Transport:
    """
    Lends its socket.
    """

    def __init__(self, handle):
        self._handle = handle

    def getHandle(self):
        return self._handle


class Run:
    """
    One borrowed socket, and the peer that it is connected to.

    @ivar wanted: bytes that are still due.
    @ivar lingers: whether the socket stays borrowed then.
    @ivar behind: bytes that were read then.
    """

    lingers, behind = False, 0

    def __init__(self, due):
        self.wanted = due
        self.content = b""
        self.ended = self.broken = False
        self.reactor = Reactor()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.peer = socket.create_connection(listening.getsockname(), 20)
            self.transport, _ = listening.accept()
        self.transport.setblocking(False)
        self.reader = BorrowedReader(self.reactor, Transport(self.transport), self)
        self.steer()

    def steer(self):
        self.reader.steer(True)

    def borrowed(self, view, done):
        if not self.wanted:
            self.behind += len(view)
            done()
            return
        assert len(view) <= self.wanted
        self.content += view
        self.wanted -= len(view)
        done()
        if not self.wanted and not self.lingers:
            self.reader.close()

    def borrowedEnd(self):
        self.ended = True
        self.reader.close()

    def failed(self, why):
        self.broken = True
        self.reader.close()

    @property
    def expected(self):
        return self.transport.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

    def send(self, data):
        """
        Send something that is not read yet.
        """
        self.peer.sendall(data)
        until = time.monotonic() + 20
        while self.unread < len(data):
            assert time.monotonic() < until
            time.sleep(0.001)

    @property
    def unread(self):
        return struct.unpack("i", fcntl.ioctl(self.transport, termios.FIONREAD, bytes(4)))[0]

    def say(self, count):
        """
        Send something, and let all of it be read.
        """
        self.send(bytes(count))
        while self.unread:
            self.reader.doRead()


@pytest.fixture
def runs():
    made = []

    def make(due):
        made.append(Run(due))
        return made[-1]

    yield make
    for run in made:
        run.reader.close()
        assert run.expected == 1
        assert run.reactor.getDelayedCalls() == []
        run.peer.close()
        run.transport.close()


def test_neverMoreIsWaitedForThanIsDue(runs):
    run = runs(WAKE_BYTES + FAST_BYTES + 1000)
    assert run.expected == 1
    run.say(FAST_BYTES)
    assert run.expected == WAKE_BYTES
    run.say(1000)
    # little came, although much was waited for: the kernel had its reasons
    assert run.expected == 1
    run.say(WAKE_BYTES - 10)
    assert run.expected == 10
    run.say(10)
    assert run.wanted == 0
    assert run.expected == 1


def test_aSlowPeerIsHeardByteByByte(runs):
    run = runs(sys.maxsize)
    for _ in range(20):
        run.say(1000)
        assert run.expected == 1
    assert run.reactor.getDelayedCalls() == []


def test_silenceEndsTheWaiting(runs):
    run = runs(sys.maxsize)
    run.say(FAST_BYTES)
    assert run.expected == WAKE_BYTES
    run.send(b"the rest")
    # within two looks the kernel is asked anew, for any byte
    run.reactor.pump([LOOK_SECONDS] * 2)
    assert run.expected == 1
    assert run.reactor.added == 2
    assert run.reactor.reading is run.reader
    assert run.reactor.getDelayedCalls() == []


def test_bytesThatKeepComingKeepItWaiting(runs):
    run = runs(sys.maxsize)
    for _ in range(5):
        run.say(FAST_BYTES)
        run.reactor.advance(LOOK_SECONDS)
        assert run.expected == WAKE_BYTES


def test_nothingIsReadForOneThatHoldsBack(runs):
    run = runs(sys.maxsize)
    run.say(FAST_BYTES)
    run.reader.steer(False)
    run.send(b"more")
    run.reactor.pump([LOOK_SECONDS] * 2)
    assert len(run.content) == FAST_BYTES
    assert run.expected == 1
    run.reader.steer(True)
    assert run.reactor.reading is run.reader


def test_theEndIsSeenWhateverIsWaitedFor(runs):
    run = runs(sys.maxsize)
    run.say(FAST_BYTES)
    run.peer.shutdown(socket.SHUT_WR)
    run.transport.settimeout(20)
    assert run.transport.recv(1) == b""
    run.reader.doRead()
    assert run.ended


def test_whereTheKernelKnowsNoSuchThing(runs, monkeypatch):
    monkeypatch.setattr(borrowed.socket, "SO_RCVLOWAT", 9999)
    run = runs(sys.maxsize)
    run.say(FAST_BYTES)
    run.say(1000)
    run.reactor.pump([LOOK_SECONDS] * 2)
    run.say(1)
    monkeypatch.undo()
    assert len(run.content) == FAST_BYTES + 1001


def test_piecesEndWhereTheRunsBlocksDo(runs):
    run = runs(3 * MIB + 1000)
    run.send(bytes(2000))
    run.reader.doRead()
    assert run.wanted == 3 * MIB
    run.reader.doRead()
    assert run.wanted == 3 * MIB - 1000


def test_behindTheRunALittleIsReadAndAnyByteWakes(runs):
    run = runs(FAST_BYTES)
    run.lingers = True
    run.send(bytes(FAST_BYTES + 20_000))
    run.reader.doRead()
    assert run.wanted == 0
    assert run.expected == 1
    run.reader.doRead()
    assert run.behind == 8192
    assert run.expected == 1
