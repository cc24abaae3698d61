"""
The deadlines, the back-pressure and the ends of a connection.
"""

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer, ISSLTransport
from zope.interface import implementer
from zope.interface.verify import verifyObject

from connpool.errors import Busy
from connpool.interfaces import IDrainableProtocol, IStatsSource
from connpool.transfer.receive.policy import Policy
from connpool.transfer.stores import MemoryStore
from connpool.transfer.web.channel import (
    HEAD_SECONDS,
    IDLE_SECONDS,
    LINGER_BYTES,
    LINGER_SECONDS,
)
from connpool.transfer.web.put import WholeFile
from tests.transfer.web import kit
from tests.transfer.web.kit import Transport, request

GET = request(b"GET", b"/")


@implementer(ISSLTransport)
class Secure(Transport):
    pass


def test_provides(door):
    channel = door.connect().channel
    for interface in (IHalfCloseableProtocol, IPushProducer, IDrainableProtocol):
        verifyObject(interface, channel)
    channel.stopProducing()
    channel.writeConnectionLost()
    verifyObject(IStatsSource, door.counts)


def test_aHeadThatTrickles(door):
    """
    A byte a second is not enough, and a byte in time buys no more time.
    """
    client = door.connect().trickle(GET[:-1], 0.3)
    assert [answer.status for answer in client.answers()] == [408]
    assert client.ended


def test_halfAHead(door):
    for cut in range(1, len(GET)):
        client = door.connect().send(GET[:cut]).wait(HEAD_SECONDS - 0.1)
        assert not client.ended
        client.wait(0.2)
        assert client.answer().status == 408
        assert client.ended


def test_silence(door):
    client = door.connect().wait(HEAD_SECONDS + 0.1)
    assert client.ended
    assert client.answers() == []


def test_betweenTwoRequests(door):
    client = door.connect()
    for _ in range(3):
        client.wait(1.0).send(GET).wait(IDLE_SECONDS - 2)
        assert not client.ended
    client.send(GET[:5]).wait(HEAD_SECONDS - 1)
    assert not client.ended
    client.wait(2)
    assert [answer.status for answer in client.answers()] == [200, 200, 200, 408]
    client = door.connect().send(GET).wait(IDLE_SECONDS + 1)
    assert client.ended
    assert len(client.answers()) == 1


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_manyRequestsAtOnce(door, size):
    client = door.connect()
    wire = GET * 2000
    for at in range(0, len(wire) if size > 1 else 500, size):
        client.send(wire[at : at + size])
    assert {answer.status for answer in client.answers()} == {200}
    assert len(client.answers()) == (2000 if size > 1 else 500 // len(GET))
    assert not client.ended


class Later(MemoryStore):
    """
    One that stores a file when it is told to.
    """

    def __init__(self, **given):
        super().__init__(**given)
        self.waiting = []

    def put(self, offer, data, root):
        self.waiting.append(Deferred())
        return self.waiting[-1].addCallback(lambda _: super(Later, self).put(offer, data, root))


@pytest.mark.parametrize("secure", [False, True])
def test_whileAFileIsStored(doors, monkeypatch, secure):
    """
    A client that waits for its answer is read on, at no cost; of one that does not, a little.
    """
    if secure:  # TLS has no halves: its end would take the answer with it
        monkeypatch.setattr(kit, "Transport", Secure)
    world = doors(store=Later())
    client = world.connect()
    client.send(request(b"PUT", b"/x", b"first"))
    [waiting] = world.store.waiting
    assert client.transport.paused is secure
    # what is sent ahead is read once, and no further
    ahead = GET * (client.transport.bufferSize // len(GET) + 2)
    client.send(ahead)
    assert client.transport.paused
    taken = 0 if secure else client.transport.bufferSize
    assert len(client.transport.arriving) == len(ahead) - taken
    waiting.callback(None)
    client.pump()
    first, *others = [answer.status for answer in client.answers()]
    assert (first, set(others), len(others)) == (201, {200}, len(ahead) // len(GET))


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_theClientLeavesWhileAFileIsStored(doors, how):
    world = doors(store=Later())
    client = world.connect().send(request(b"PUT", b"/x", b"first"))
    getattr(client, how)()
    assert world.counts.unanswered == (how == "reset")
    world.store.waiting.pop().callback(None)
    assert world.files == {"x": b"first"}
    if how == "fin":
        assert client.pump().answer().status == 201
        assert client.ended


def test_theClientWantsTheEnd(door):
    client = door.connect().send(request(b"GET", b"/", None, [b"Connection: close"]) + GET)
    assert client.answer().fields["connection"] == "close"
    assert client.ended
    client.fin()
    assert client.transport.lost


def test_theClientHasNoMore(door):
    client = door.connect().send(GET + GET).fin()
    assert [answer.status for answer in client.answers()] == [200, 200]
    assert client.transport.lost


def test_aRefusalIsReadInSpiteOfTheBody(doors):
    """
    The answer is written, our direction closed, and the body read and dropped for a while.
    """
    world = doors(policy=Policy(maxFileSize=10))
    body = bytes(LINGER_BYTES - 100_000)
    client = world.connect().send(request(b"PUT", b"/x", body))
    assert client.answer().status == 413
    transport = client.transport
    assert transport.halfClosed
    assert not transport.lost
    assert transport.arriving == b""
    client.fin()
    assert transport.lost


def test_aBodyThatNeverEndsIsNotDroppedForEver(doors):
    world = doors(policy=Policy(maxFileSize=10))
    client = world.connect().send(request(b"PUT", b"/x", bytes(LINGER_BYTES + 200_000)))
    assert client.answer().status == 413
    assert client.transport.lost
    client = world.connect().send(request(b"PUT", b"/x", bytes(1000))).wait(LINGER_SECONDS + 2)
    assert client.transport.lost


def test_anAnswerThatIsNotRead(door):
    client = door.connect()
    client.transport.room = 100_000
    client.send(GET * 2000)
    assert client.transport.full
    answered = len(client.answers())
    assert answered < 2000
    client.transport.full = False
    client.channel.resumeProducing()
    client.transport.room = 200_000
    client.pump()
    assert answered < len(client.answers()) < 2000
    client.wait(1000.0)
    assert client.transport.lost


def test_aDrainEndsAnIdleConnectionAndLetsAFileEnd(door):
    idle, used = door.connect(), door.connect().send(GET)
    body = bytes(300_000)
    busy = door.connect().send(request(b"PUT", b"/x", body)[:-1])
    half = door.connect().send(GET[:-1])
    for client in (idle, used, busy, half):
        client.channel.drain()
    assert idle.ended
    assert used.ended
    assert not busy.ended
    busy.send(body[:1])
    half.send(GET[-1:])
    for client in (busy, half):
        assert client.answer().fields["connection"] == "close"
        assert client.ended
    assert door.files == {"x": body}


def test_manyHalfHeadsCostNoTimerEach(door):
    """
    A deadline that is moved costs no timer call.
    """
    client = door.connect()
    for _ in range(100):
        client.send(GET)
    assert len(door.clock.getDelayedCalls()) == 1


def test_anEndThatComesLateIsNotTheNextRequests(door, monkeypatch):
    requests = []
    receive = WholeFile.receive

    def noted(file):
        requests.append(file._request)
        return receive(file)

    monkeypatch.setattr(WholeFile, "receive", noted)
    client = door.connect()
    body = bytes(300_000)
    assert client.put(b"/a", body).status == 201
    client.send(request(b"PUT", b"/b", body)[:-1])
    requests[0].end(Busy("the first one"))
    client.send(body[:1])
    assert client.answer().status == 201
    client.send(request(b"PUT", b"/c", body)[:-1])
    requests[2].end(Busy("the third one"))
    client.pump()
    assert client.answer().status == 503
    assert sorted(door.files) == ["a", "b"]


def test_readingAnswersIsNoBody(doors):
    """
    A client that reads now and then what was written, and sends nothing, is late all the same.
    """
    client = doors(policy=Policy(minimumRate=0, idleTimeout=30)).connect()
    client.send(request(b"PUT", b"/x", b"1234")[:-2])
    for _ in range(4):
        client.wait(8)
        client.channel.pauseProducing()
        client.channel.resumeProducing()
    assert client.answer().status == 408
