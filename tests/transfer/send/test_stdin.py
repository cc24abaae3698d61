"""
Standard input: no size, no second reading.
"""

import contextlib
import os
import random
import socket
import threading
import time

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory

from connpool.errors import Busy, DigestMismatch, SourceError
from connpool.transfer import sendFiles
from connpool.transfer.digests import DIGESTS, rootOf
from connpool.transfer.send import readahead
from connpool.transfer.send.client import Retry
from connpool.transfer.send.readahead import readSome
from connpool.transfer.send.request import SendRequest
from connpool.transfer.stores import MemoryStore
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import ReceiptMessage, Reject
from tests.helpers.waiting import bounded, pause
from tests.transfer.scripted import Scripted, scripted
from tests.transfer.world import World

DATA = random.Random(1).randbytes(150_000)


@pytest.fixture
def stdin(tmp_path, monkeypatch):
    """
    Standard input is a file.
    """

    with contextlib.ExitStack() as files:

        def put(data=DATA):
            (tmp_path / "stdin").write_bytes(data)
            file = files.enter_context(open(tmp_path / "stdin", encoding="latin-1"))
            monkeypatch.setattr("sys.stdin", file)

        yield put


@pytest.fixture
def pipe():
    read, write = os.pipe()
    ends = {"read": read, "write": write}
    yield ends
    for end in ends.values():
        os.close(end)


# -- reading ------------------------------------------------------------------------


def test_whatIsThereIsRead(pipe):
    os.write(pipe["write"], b"line\n")
    assert readSome(pipe["read"], 1 << 20, lambda: True) == b"line\n"
    os.write(pipe["write"], b"0123456789")
    assert readSome(pipe["read"], 4, lambda: True) == b"0123"
    assert readSome(pipe["read"], 100, lambda: True) == b"456789"
    os.close(pipe.pop("write"))
    assert readSome(pipe["read"], 100, lambda: True) == b""


def test_theWaitEndsWhenNothingIsWanted(pipe):
    wanted = [True]
    timer = threading.Timer(0.05, wanted.clear)
    timer.start()
    began = time.monotonic()
    assert readSome(pipe["read"], 100, lambda: bool(wanted)) == b""
    assert time.monotonic() - began < 2
    timer.join()


def test_aDirectoryCannotBeRead(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(SourceError, match="directory"):
            readSome(fd, 100, lambda: True)
    finally:
        os.close(fd)


@pytest.mark.parametrize("block", [4096, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 4096, 150_000])
def test_piecesOfAnySizeMakeTheSameFile(world, stdin, monkeypatch, size, block):
    stdin(DATA[:size])
    chance = random.Random(2)

    def some(fd, most, wanted):
        return os.read(fd, min(most, chance.choice([1, 100, 5000, 1 << 20])))

    monkeypatch.setattr("connpool.transfer.send.standardinput.readSome", some)
    report = world.send("-", request=SendRequest(durability="none", blockSize=block))
    assert report.exitCode == 0, report
    assert world.store.files == {"stdin": DATA[:size]}
    assert report.progress == report.doneBytes == size


# -- answers ------------------------------------------------------------------------


def receipt(root, size=1):
    return ReceiptMessage("stored", b"stdin", size, "full", "ext4", "verified", "blake3", root, 1)


def rootOfAll(data=DATA, block=4096):
    blake3 = DIGESTS["blake3"]
    blocks = [blake3.of(data[at : at + block]) for at in range(0, len(data), block)]
    return rootOf(blake3, len(data), block, blocks)


@pytest.mark.parametrize("when", [Type.OFFER, Type.DATA, Type.COMMIT], ids=str)
@pytest.mark.parametrize("root", [bytes(32), None], ids=["another", "none"])
def test_aReceiptForSomethingElseIsNoSuccess(world, stdin, when, root):
    stdin()

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            receiver.accept(frame.stream)
        if frame.type is when:
            receiver.say(Type.RECEIPT, frame.stream, receipt(root))

    scripted(world, answer)
    report = world.send("-")
    assert isinstance(report.failed[0].error, DigestMismatch)
    assert report.exitCode == 5


def test_aReceiptBeforeTheEndIsNoSuccess(world, stdin):
    stdin()

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            receiver.accept(frame.stream)
            receiver.say(Type.RECEIPT, frame.stream, receipt(rootOfAll()))

    scripted(world, answer)
    assert world.send("-").exitCode == 5


def test_theSizeIsOurs(world, stdin):
    stdin()

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            receiver.accept(frame.stream)
        elif frame.type is Type.COMMIT:
            assert (message.size, message.root) == (len(DATA), rootOfAll())
            receiver.say(Type.RECEIPT, frame.stream, receipt(message.root, size=1 << 40))

    scripted(world, answer)
    report = world.send("-")
    assert report.exitCode == 0
    assert report.outcomes[0].receipt.size == report.doneBytes == len(DATA)


def test_whatWasReadIsNotBegunAgain(world, stdin):
    """
    The rest of it would pass for the whole.
    """
    stdin()

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            receiver.accept(frame.stream)
        elif frame.type is Type.DATA:
            receiver.say(Type.REJECT, frame.stream, Reject("busy", True, "later"))

    receivers = scripted(world, answer)
    report = world.send("-")
    assert isinstance(report.failed[0].error, Busy)
    assert receivers[0].kinds().count(Type.OFFER) == 1


class Occupied(MemoryStore):
    """
    Busy, the first time.
    """

    times = 1

    def open(self, offer, holder=None):
        if self.times:
            self.times -= 1
            raise Busy("another process receives it")
        return super().open(offer, holder)


def test_whatWasNotReadIs(tmp_path, stdin):
    stdin()
    world = World(tmp_path / "state", store=Occupied())
    assert world.send("-").exitCode == 0
    assert world.store.files == {"stdin": DATA}
    world.close()


def test_aLostConnectionBeforeAnythingWasRead(world, stdin):
    stdin()

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            if receiver is receivers[0]:
                receiver.transport.abortConnection()
            else:
                receiver.accept(frame.stream)
        elif frame.type is Type.COMMIT:
            receiver.say(Type.RECEIPT, frame.stream, receipt(rootOfAll()))

    receivers = scripted(world, answer)
    assert world.send("-").exitCode == 0
    assert len(receivers) == 2


def test_nothingIsTriedAgainWhenNothingIsLeft(world, stdin):
    stdin()
    world.plan = [{"cut": (0, 100_000, "rst")}]
    report = world.send("-", retry=Retry(attempts=5))
    assert "cannot be sent again" in str(report.failed[0].error)
    assert len(world.wires) == 1


@pytest.mark.parametrize("there", [None, "closed"])
def test_noStandardInput(world, monkeypatch, tmp_path, there):
    with open(os.devnull) as closed:
        pass
    monkeypatch.setattr("sys.stdin", closed if there else None)
    (tmp_path / "other").write_bytes(b"x")
    report = world.send("-", tmp_path / "other")
    assert [type(outcome.error) for outcome in report.failed] == [SourceError]
    assert world.store.files == {"other": b"x"}


# -- beside others ----------------------------------------------------------------------


class Slow(Scripted):
    """
    Reads so slowly that the socket is always full.
    """

    def dataReceived(self, data):
        super().dataReceived(data)
        self.transport.pauseProducing()
        reactor.callLater(0.001, self.transport.resumeProducing)


class Narrow(TCP4ClientEndpoint):
    """
    The kernel takes little.
    """

    def connect(self, factory):
        def connected(link):
            handle = link.transport.getHandle()
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
            return link

        return super().connect(factory).addCallback(connected)


@pytest_twisted.ensureDeferred
async def test_anUnreadableFileBesideIt(stdin, tmp_path, monkeypatch):
    """
    Its run is filled up and ended once: the run that waited for it is not cut.
    """
    stdin(os.urandom(12 << 20))
    (tmp_path / "bad").write_bytes(bytes(20 << 20))
    preadv = os.preadv

    def broken(fd, views, offset):
        if offset >= 2 << 20:
            time.sleep(0.2)
            raise OSError(5, "Input/output error")
        return preadv(fd, views, offset)

    monkeypatch.setattr(readahead.os, "preadv", broken)

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            receivers.append(receiver)
            receiver.accept(frame.stream)
        elif frame.type is Type.COMMIT:
            receiver.say(Type.RECEIPT, frame.stream, receipt(message.root))

    receivers = []
    factory = Factory.forProtocol(lambda: Slow(answer))
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    try:
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        endpoint = Narrow(reactor, "127.0.0.1", port.getHost().port)
        paths = ["-", str(tmp_path / "bad")]
        report = await bounded(sendFiles(reactor, endpoint, paths))
        assert {o.name: type(o.error) for o in report.failed} == {"bad": SourceError}
        assert report.doneBytes == 12 << 20
        assert report.connections == 1
        kinds = receivers[0].kinds()
        assert kinds.count(Type.CANCEL) == kinds.count(Type.COMMIT) == 1
    finally:
        await port.stopListening()
        await pause(0.02)
