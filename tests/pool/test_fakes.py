"""
The fakes do what real TCP does: each story runs on both.
"""

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer
from zope.interface.verify import verifyObject

from connpool.testing import FakeEndpoint
from tests.helpers.waiting import bounded, pause, until
from tests.pool.servers import Server


class Telling(Protocol):
    """
    Writes down what it is told.
    """

    def __init__(self):
        self.story = []

    def connectionMade(self):
        self.story.append("made")

    def dataReceived(self, data):
        self.story.append(data)

    def connectionLost(self, reason):
        self.story.append(reason.type.__name__)


@implementer(IHalfCloseableProtocol)
class HalfTelling(Telling):
    """
    The same, with half a connection.
    """

    def readConnectionLost(self):
        self.story.append("read lost")

    def writeConnectionLost(self):
        pass


class Real:
    """
    TCP.
    """

    async def start(self):
        self.server = await Server().start()
        self.endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.server.number)

    async def connected(self):
        await until(lambda: self.server.live)
        self.peer = self.server.live[-1].transport

    def send(self, data):
        self.peer.write(data)

    def close(self):
        self.peer.loseConnection()

    def endReading(self):
        self.peer.loseWriteConnection()

    async def stop(self):
        await self.server.stop()


class Fake:
    """
    Ours.
    """

    async def start(self):
        self.endpoint = FakeEndpoint(reactor)

    async def connected(self):
        self.peer = self.endpoint.transports[-1]

    def send(self, data):
        self.peer.receive(data)

    def close(self):
        self.peer.finish()

    def endReading(self):
        self.peer.endReading()

    async def stop(self):
        await until(lambda: not self.endpoint.opened)


async def open_(kind, protocol):
    """
    @return: the world and a connected protocol.
    """
    world = kind()
    await world.start()
    factory = Factory.forProtocol(protocol)
    factory.noisy = False
    connected = await bounded(world.endpoint.connect(factory))
    await world.connected()
    return world, connected


async def told(protocol, what):
    await until(lambda: protocol.story and protocol.story[-1] == what)
    return protocol.story


@pytest.mark.parametrize("kind", [Real, Fake])
@pytest_twisted.ensureDeferred
async def test_dataAndTheEnd(kind):
    world, protocol = await open_(kind, Telling)
    world.send(b"hello")
    await told(protocol, b"hello")
    world.close()
    assert await told(protocol, "ConnectionDone") == ["made", b"hello", "ConnectionDone"]
    await world.stop()


@pytest.mark.parametrize("kind", [Real, Fake])
@pytest_twisted.ensureDeferred
async def test_closingComesInALaterTurnAndReadsNoMore(kind):
    world, protocol = await open_(kind, Telling)
    protocol.transport.loseConnection()
    assert protocol.transport.disconnecting
    assert protocol.story == ["made"]
    world.send(b"too late")
    assert await told(protocol, "ConnectionDone") == ["made", "ConnectionDone"]
    await world.stop()


@pytest.mark.parametrize("kind", [Real, Fake])
@pytest_twisted.ensureDeferred
async def test_abortingComesInALaterTurn(kind):
    world, protocol = await open_(kind, Telling)
    protocol.transport.abortConnection()
    assert protocol.story == ["made"]
    assert await told(protocol, "ConnectionAborted") == ["made", "ConnectionAborted"]
    await world.stop()


@pytest.mark.parametrize("kind", [Real, Fake])
@pytest.mark.parametrize(
    ("protocol", "story"),
    [(Telling, ["made", "ConnectionDone"]), (HalfTelling, ["made", "read lost"])],
)
@pytest_twisted.ensureDeferred
async def test_theEndOfOneDirection(kind, protocol, story):
    world, connected = await open_(kind, protocol)
    world.endReading()
    assert await told(connected, story[-1]) == story
    connected.transport.abortConnection()
    await world.stop()


@pytest.mark.parametrize("kind", [Real, Fake])
@pytest_twisted.ensureDeferred
async def test_aPausedTransportNoticesNothing(kind):
    world, protocol = await open_(kind, Telling)
    protocol.transport.pauseProducing()
    world.close() if kind is Real else world.endReading()
    await pause(0.05)
    assert protocol.story == ["made"]
    protocol.transport.resumeProducing()
    if kind is Fake:
        world.endReading()
    assert await told(protocol, "ConnectionDone")
    await world.stop()


@pytest.mark.parametrize("kind", [Real, Fake])
@pytest_twisted.ensureDeferred
async def test_whatTheInterfacesPromise(kind):
    world, protocol = await open_(kind, Telling)
    assert ITCPTransport.providedBy(protocol.transport)
    assert verifyObject(IStreamClientEndpoint, world.endpoint)
    protocol.transport.setTcpKeepAlive(True)
    assert protocol.transport.getTcpKeepAlive()
    protocol.transport.setTcpNoDelay(True)
    assert protocol.transport.getTcpNoDelay()
    assert protocol.transport.producer is None
    protocol.transport.abortConnection()
    await told(protocol, "ConnectionAborted")
    await world.stop()
