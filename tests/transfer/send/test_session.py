"""
What a sender makes of a receiver that is silent, hostile, stopping or cut short.
"""

import random

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from connpool.errors import Forbidden, NetworkFailed, ProtocolError, TransferTimeout
from connpool.transfer import sendFiles
from connpool.transfer.send.client import Retry
from connpool.transfer.send.transmission import Transmission
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Accept, Ack, Error, Goaway, Ping, Progress
from tests.helpers.waiting import bounded, pause
from tests.transfer.scripted import Scripted, scripted

ONCE = Retry(attempts=1)


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(300_000))
    return path


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(b"x")
    return path


def silent(receiver, frame, message):
    pass


# -- silence --------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "theirs", "noticed"), [(5, 86_400, 5), (60, 20, 20), (60, 1, 10)])
def test_theShorterPatienceCounts(world, small, own, theirs, noticed):
    """
    The receiver's is not taken below the seconds in which it must say something.
    """
    scripted(world, silent, idle=theirs)
    results = world.start(world.sending(small, retry=ONCE, idleTimeout=own))
    world.pump()
    world.clock.advance(noticed - 1)
    world.pump()
    assert not results
    world.clock.advance(1.5)
    world.pump()
    assert isinstance(results[0].failed[0].error, TransferTimeout)


@pytest.mark.parametrize(("own", "theirs"), [(8, 86_400), (60, 8)])
def test_keepsBothSidesAwake(world, large, own, theirs):
    def answer(receiver, frame, message):
        if frame.type is Type.PING:
            receiver.say(Type.PONG, 0, message)

    receivers = scripted(world, answer, idle=theirs)
    results = world.start(world.sending(large, retry=ONCE, idleTimeout=own))
    for _ in range(120):
        world.clock.advance(1)
        world.pump()
    assert not results
    assert receivers[0].kinds().count(Type.PING) >= 60
    receivers[0].transport.abortConnection()
    world.pump()


# -- a place that is waited for -------------------------------------------------------------


def test_waitsForAPlaceAsLongAsItIsTold(world, large, monkeypatch):
    waiting = []

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            waiting.append(frame.stream)

    receivers = scripted(world, answer)
    rounds = []
    commits = Transmission._commits
    monkeypatch.setattr(Transmission, "_commits", lambda self: rounds.append(1) or commits(self))
    sending = world.sending(large, jobs=3)
    results = world.start(sending)
    world.pump()
    for _ in range(600):
        receivers[0].say(Type.PROGRESS, waiting[0], Progress("receive", 0, "quota"))
        world.clock.advance(1)
        world.pump()
    assert not results
    assert len(receivers) == 1
    assert len(rounds) <= 610
    report = sending.report
    assert (list(report.open), report.phase, report.slow) == (["large"], "receive", "quota")
    assert report.progress == 0
    receivers[0].say(Type.ACCEPT, waiting[0], Accept("new", 0))
    world.pump()
    assert report.progress == 300_000
    receivers[0].transport.abortConnection()
    sending.cancel()
    world.pump()
    world.settle(3)


# -- why it ended -------------------------------------------------------------------------


@pytest.mark.parametrize("closes", [False, True])
@pytest_twisted.ensureDeferred
async def test_anErrorInsideARunIsHeard(tmp_path, closes):
    """
    The receiver says why it does not want any more, and perhaps hangs up; the
    sender is writing into a full socket.
    """
    (tmp_path / "large").write_bytes(bytes(64 << 20))
    made = []

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            receiver.accept(frame.stream)
        elif frame.type is Type.DATA and not made:
            made.append(receiver)
            receiver.transport.pauseProducing()
            reactor.callLater(0.1, refuse, receiver)

    def refuse(receiver):
        receiver.say(Type.ERROR, 0, Error("forbidden", "go away"))
        if closes:
            # unread data: what follows is a reset
            receiver.transport.loseConnection()

    factory = Factory.forProtocol(lambda: Scripted(answer))
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    try:
        report = await bounded(
            sendFiles(
                reactor,
                TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port),
                [str(tmp_path / "large")],
            )
        )
        assert isinstance(report.failed[0].error, Forbidden)
        assert (report.exitCode, report.connections) == (4, 1)
    finally:
        made[0].transport.abortConnection()
        await port.stopListening()
        await pause(0.02)


# -- what it may not make us do -----------------------------------------------------------


def test_pingsThatAreNotReadFillNothing(world, large):
    receivers = scripted(world, silent)
    sending = world.sending(large, retry=ONCE)
    world.start(sending)
    world.pump()
    wire = world.wires[0]
    wire.ends[1].pauseProducing()
    session = sending._session
    for token in range(1, 100_001):
        session._open(_frame(Type.PING), Ping(token))
    assert wire.ends[0].unsent < 50_000
    # it reads again: the latest has its answer
    wire.ends[1].resumeProducing()
    for _ in range(30):
        world.pump()
        if receivers[0].kinds()[-1] is Type.PING:
            receivers[0].say(Type.PONG, 0, Ping(0))
    pongs = [message.token for frame, message in receivers[0].frames if frame.type is Type.PONG]
    assert len(pongs) == 1001
    assert pongs[-1] == 100_000
    sending.cancel()
    world.pump()


def _frame(kind):
    from connpool.transfer.wire.frames import Frame

    return Frame(kind, 0, b"")


@pytest.mark.parametrize("runs", [((1, 3), (1, 3)), ((1, 3), (3, 1)), ((1, 4),), ((4, 1),)])
def test_aPutIsAnsweredOnce(world, tmp_path, runs):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"x")

    def answer(receiver, frame, message):
        if frame.type is Type.PUT and frame.stream == 3:
            receiver.say(Type.ACK, 0, Ack(runs, "full", "ext4", 1))

    receivers = scripted(world, answer)
    # one file goes unanswered, or else it is over before the second run is looked at
    waiting = tmp_path / "large"
    waiting.write_bytes(bytes(3000))
    report = world.send(*paths, waiting, retry=ONCE)
    errors = [message for frame, message in receivers[0].frames if frame.type is Type.ERROR]
    assert [error.code for error in errors] == ["protocol"]
    assert isinstance(report.failed[-1].error, ProtocolError)


# -- stopping -----------------------------------------------------------------------------


def test_nothingNewAfterGoaway(world, small):
    """
    It comes while the first files are being read.
    """

    def answer(receiver, frame, message):
        if frame.type is Type.PING and receiver is receivers[0]:
            receiver.say(Type.GOAWAY, 0, Goaway("stopping"))
        elif frame.type is Type.PUT:
            receiver.say(Type.ACK, 0, Ack(((frame.stream, 1),), "none", "tmpfs", 1))

    receivers = scripted(world, answer)
    report = world.send(small, inThread=lambda f: deferLater(world.clock, 0.1, f))
    assert [receiver.kinds().count(Type.PUT) for receiver in receivers] == [0, 1]
    assert report.exitCode == 0


def test_aReceiverThatStopsForEverIsGivenUp(world, small):
    def answer(receiver, frame, message):
        if frame.type is Type.AUTH:
            receiver.say(Type.GOAWAY, 0, Goaway("stopping"))

    receivers = scripted(world, answer)
    report = world.send(small)
    assert not any(Type.PUT in receiver.kinds() for receiver in receivers)
    assert len(receivers) == 3
    assert isinstance(report.failed[0].error, NetworkFailed)
    assert report.exitCode == 7
