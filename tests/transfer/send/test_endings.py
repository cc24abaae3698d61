"""
What a sender asks for, what ends it, and what it says that it waits for.
"""

import random
from types import SimpleNamespace

import pytest
from twisted.internet import defer
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from connpool.errors import Busy, Forbidden, NoSpace, ProtocolError, Unanswered
from connpool.transfer.receive.policy import Policy
from connpool.transfer.send.client import Retry
from connpool.transfer.send.request import SendRequest
from connpool.transfer.wire import handshake
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.handshake import refusal
from connpool.transfer.wire.messages import Ack, Progress, Put, ReceiptMessage, Reject
from tests.helpers.processes import CHECKOUT
from tests.transfer.scripted import scripted

BLOCK = 4096
BEST = SendRequest(blockSize=BLOCK, extentBytes=2 * BLOCK)

pytestmark = pytest.mark.usefixtures("smallFiles")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "large").write_bytes(random.Random(1).randbytes(9 * BLOCK))
    (tmp_path / "small").write_bytes(b"small")
    return [tmp_path / "small", tmp_path / "large"]


# -- durability --------------------------------------------------------------------------


def asked(receivers):
    return [
        message.durability
        for receiver in receivers
        for frame, message in receiver.frames
        if frame.type in {Type.PUT, Type.OFFER}
    ]


def storing(*refuses):
    """
    Stores at C{none}, and refuses these levels.
    """

    def answer(receiver, frame, message):
        if frame.type in {Type.PUT, Type.OFFER} and message.durability in refuses:
            why = Reject("unsupported", False, f"{message.durability} is not reached here")
            receiver.say(Type.REJECT, frame.stream, why)
        elif frame.type is Type.PUT:
            receiver.say(Type.ACK, 0, Ack(((frame.stream, 1),), "none", "memory", 1))
        elif frame.type is Type.OFFER:
            receiver.accept(frame.stream)
        elif frame.type is Type.COMMIT:
            receipt = ReceiptMessage(
                "stored", b"large", message.size, "none", "memory", "verified", "blake3",
                message.root, 1,
            )  # fmt: skip
            receiver.say(Type.RECEIPT, frame.stream, receipt)

    return answer


def test_bestIsAskedForAndGood(world, files):
    report = world.send(*files, request=BEST)
    assert [outcome.receipt.durability for outcome in report.outcomes] == ["none", "none"]
    assert all(outcome.good and outcome.asked == "best" for outcome in report.outcomes)
    assert report.exitCode == 0


@pytest.mark.parametrize("level", ["data", "full"])
def test_lessThanALevelByNameIsNoSuccess(world, files, level):
    report = world.send(*files, request=SendRequest(durability=level, blockSize=BLOCK))
    assert not any(outcome.good for outcome in report.outcomes)
    assert report.exitCode == 3


def test_aReceiverWithoutTheCapabilityIsAskedForFull(world, files):
    receivers = scripted(world, storing())
    assert world.send(*files, request=BEST).exitCode == 0
    assert asked(receivers) == ["full", "full"]


def test_anOldReceiverIsAskedForFull(world, files, monkeypatch):
    """
    Ours as it was: its HELLO has C{join} only, and it knows three levels.
    """
    monkeypatch.setattr("connpool.transfer.receive.greeting.CAPABILITIES", ("join",))
    seen = []
    original = world.store.put

    def put(offer, *rest):
        seen.append(offer.durability)
        return original(offer, *rest)

    monkeypatch.setattr(world.store, "put", put)
    assert world.send(files[0], request=BEST).exitCode == 0
    assert seen == ["full"]


def test_aRefusedLevelIsLoweredStepByStep(world, files):
    receivers = scripted(world, storing("full", "data"))
    report = world.send(*files, request=BEST)
    assert report.exitCode == 0
    assert asked(receivers).count("none") == 2
    # what was on its way already is not lowered twice
    assert asked(receivers) == ["full", "full", "data", "data", "none", "none"]
    assert len(receivers) == 1


def test_aRefusalOfNoneAndOfALevelByNameIsFinal(world, files):
    receivers = scripted(world, storing("full", "data", "none"))
    report = world.send(files[0], request=BEST)
    assert (report.exitCode, asked(receivers)) == (4, ["full", "data", "none"])
    receivers = scripted(world, storing("full"))
    report = world.send(files[0], request=SendRequest(durability="full"))
    assert (report.exitCode, asked(receivers)) == (4, ["full"])


def test_capabilitiesAreThoseOfTheDocument():
    text = (CHECKOUT / "docs" / "protocol.rst").read_text()
    assert [name for name in handshake.CAPABILITIES if f"``{name}``" not in text] == []
    assert Put(bytes(16), b"a", bytes(32), bytes(32)).durability == "full"


# -- ends --------------------------------------------------------------------------------


class Saying:
    """
    A listener that says something before it has read anything, and closes.
    """

    def __init__(self, data):
        self.data = data

    def makeConnection(self, transport):
        transport.write(self.data)
        transport.loseConnection()

    def dataReceived(self, data):
        pass

    def readConnectionLost(self):
        pass

    def connectionLost(self, reason):
        pass


def answering(world, *answers):
    left = list(answers)
    world.receiver.build = lambda transport: Saying(left.pop(0) if len(left) > 1 else left[0])


@pytest.mark.parametrize(
    ("said", "kind", "exitCode"),
    [
        (refusal(Forbidden("this address may not send here")), Forbidden, 4),
        (bytes.fromhex("15 03 03 00 02 02 0a"), ProtocolError, 7),
        (b"ok", ProtocolError, 7),
    ],
)
def test_whatWillNotChangeIsFinal(world, files, said, kind, exitCode):
    answering(world, said)
    report = world.send(files[0])
    assert isinstance(report.failed[0].error, kind)
    assert report.exitCode == exitCode
    assert len(world.wires) == 1


def test_aBusyReceiverIsAskedAgainAndNamed(world, files):
    answering(world, refusal(Busy("as many connections as it takes")))
    sending = world.sending(files[0], retry=Retry(attempts=3))
    results = world.start(sending)
    world.pump()
    wait = sending.report.wait
    assert wait.what == "place"
    assert "as many connections" in wait.why
    assert 0 < wait.until - world.clock.seconds() < 1
    report = world.finish(results)
    assert report.wait is None
    assert (report.exitCode, len(world.wires)) == (4, 3)


def test_whoeverNeverSaysAnythingIsTriedFourTimes(world, files):
    answering(world, b"")
    report = world.send(files[0], retry=Retry())
    assert isinstance(report.failed[0].error, Unanswered)
    assert "tls:HOST:PORT" in str(report.failed[0].error)
    assert report.exitCode == 7
    assert len(world.wires) == 4


def test_whoeverHasSpokenBeforeIsTriedLonger(world, files):
    world.plan = [{"cut": (1, 300, "rst")}]
    results = world.start(world.sending(files[1], retry=Retry(attempts=6)))
    world.pump()
    answering(world, b"")
    assert world.finish(results).exitCode == 7
    assert len(world.wires) >= 6


def test_aHandshakeThatFailsBeforeAnybodyAsksIsHandled(world):
    """
    A pool calls C{hello} when TLS is up; the session must not fail unheard.
    """
    from connpool.transfer.send.connections import SessionFactory, hello

    link = SessionFactory(world.clock).buildProtocol(None)
    transport = SimpleNamespace(
        write=lambda data: None, registerProducer=lambda *_: None, unregisterProducer=lambda: None,
        abortConnection=lambda: None, getPeer=lambda: None,
    )  # fmt: skip
    link.makeConnection(transport)
    link.connectionLost(Failure(ConnectionLost()))
    failure = []
    hello(link).addErrback(failure.append)
    assert failure[0].check(Unanswered)


def test_theFactoryKeepsWhyAConnectionWasNotLetIn(world):
    from connpool.transfer.send.connections import SessionFactory

    factory = SessionFactory(world.clock)
    link = factory.buildProtocol(None)
    link.makeConnection(SimpleNamespace(write=lambda data: None, abortConnection=lambda: None))
    link.dataReceived(refusal(Busy("no place")))
    assert isinstance(factory.refusal, Busy)


# -- waits -------------------------------------------------------------------------------


def test_aFullDiskIsAskedThreeTimesAndNamed(world, files):
    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            receiver.say(Type.REJECT, frame.stream, Reject("no-space", True, "0 bytes to give"))

    receivers = scripted(world, answer)
    sending = world.sending(files[1], request=BEST)
    results = world.start(sending)
    world.pump()
    wait = sending.report.wait
    assert (wait.what, wait.name) == ("disk", "large")
    assert "0 bytes to give" in wait.why
    assert wait.until > world.clock.seconds()
    began = world.clock.seconds()
    report = world.finish(results)
    assert world.clock.seconds() - began < 10
    assert isinstance(report.failed[0].error, NoSpace)
    assert report.exitCode == 4
    assert len(asked(receivers)) == 3
    assert report.wait is None


@pytest.mark.parametrize(
    ("word", "why"),
    [("place", "a place"), ("rate", "limit"), ("disk", "disk"), ("quota", "quota"), ("?", "?")],
)
def test_aReceiverSaysWhatItWaitsFor(world, files, word, why):
    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            receiver.say(Type.PROGRESS, frame.stream, Progress("receive", 0, word))

    scripted(world, answer)
    sending = world.sending(files[1], request=BEST)
    results = world.start(sending)
    world.pump()
    wait = sending.report.wait
    assert (wait.what, wait.name, wait.until) == (word, "large", None)
    assert why in wait.why
    sending.cancel()
    with pytest.raises(defer.CancelledError):
        world.finish(results)


def test_smallFilesSayTooWhatTheyWaitFor(tmp_path):
    """
    An extension of PING: a sender that does not know it is not disturbed.
    """
    from tests.transfer.world import World

    for number in range(3):
        (tmp_path / f"{number}").write_bytes(bytes(2000))
    world = World(tmp_path / "state", Policy(minimumRate=0, maxRate=500.0))
    sending = world.sending(*(tmp_path / f"{number}" for number in range(3)))
    results = world.start(sending)
    said = set()
    while not results:
        world.pump()
        if sending.report.wait is not None:
            said.add(sending.report.wait.what)
        world.clock.advance(0.5)
    assert said == {"rate"}
    assert results[0].exitCode == 0
    assert results[0].wait is None
    world.close()


def test_aPlaceAmongTheTransfersIsCalledThat(tmp_path, files):
    from tests.transfer.world import World

    world = World(tmp_path / "state", Policy(minimumRate=0, maxTransfers=1))
    first = world.reception.quotas.accounts(None)[0]
    first.take(False)
    sending = world.sending(files[1])
    results = world.start(sending)
    world.pump()
    world.clock.advance(1.5)
    world.pump()
    assert sending.report.wait.what == "place"
    first.leave()
    assert world.finish(results).exitCode == 0
    assert sending.report.wait is None
    world.close()


# -- further connections -------------------------------------------------------------------


def test_theEndDoesNotWaitForAConnectionThatIsStillMade(world, tmp_path):
    """
    A receiver that lets one in: the pool goes on trying, the file is stored meanwhile.
    """
    (tmp_path / "a").write_bytes(random.Random(2).randbytes(64 * BLOCK))
    sending = world.sending(tmp_path / "a", jobs=4)
    original, cancelled = sending._connections.open, []
    opened = []

    async def connect():
        opened.append(1)
        if len(opened) == 1:
            return await original()
        never = defer.Deferred(lambda _: cancelled.append(1))
        return await never

    sending._connections = SimpleNamespace(open=connect)
    report = world.finish(world.start(sending), seconds=5)
    assert report.exitCode == 0
    assert len(opened) > 1
    assert len(cancelled) == len(opened) - 1


def test_aCleanCloseAfterTheGreetingIsNotSilence(world, files):
    receivers = scripted(
        world, lambda receiver, frame, message: receiver.transport.loseConnection()
    )
    report = world.send(files[0], retry=Retry(attempts=2))
    assert not isinstance(report.failed[0].error, Unanswered)
    assert len(receivers) == 2
