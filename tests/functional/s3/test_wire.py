"""
A connection to an engine, over a socket.
"""

import os

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from connpool.transfer.stores.s3.calls import Piece
from connpool.transfer.stores.s3.exchange import AddressedEndpoint, ExchangeFactory
from connpool.transfer.stores.s3.replies import Broken
from tests.helpers.waiting import bounded, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LARGE = os.urandom(1 << 20) * 24


class Engine(Protocol):
    """
    Keeps what came, and answers a request when it has all of it; or at its first byte.
    """

    early = False

    def __init__(self):
        self.came = bytearray()
        self.bodies = []

    def dataReceived(self, data):
        self.came += data
        while (end := self.came.find(b"\r\n\r\n")) >= 0:
            length = int(self.came[:end].rpartition(b": ")[2])
            if self.early:
                self.transport.pauseProducing()
                self.transport.write(OK)
                return
            if len(self.came) < end + 4 + length:
                return
            self.bodies.append(bytes(self.came[end + 4 : end + 4 + length]))
            del self.came[: end + 4 + length]
            self.transport.write(OK)


@pytest.fixture
def engine():
    made = Engine()
    factory = Factory()
    factory.buildProtocol = lambda _: made
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    port = pytest_twisted.blockon(bounded(endpoint.listen(factory)))
    made.port = port.getHost().port
    yield made
    pytest_twisted.blockon(bounded(port.stopListening()))


async def connected(engine):
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", engine.port)
    return await bounded(AddressedEndpoint(endpoint, "engine:1").connect(ExchangeFactory(reactor)))


async def closed(exchange):
    exchange.transport.abortConnection()
    await until(lambda: not exchange.transport.connected)


def put(exchange, body):
    return bounded(exchange.ask("PUT", "/k", [("host", exchange.host)], body, 100, 10.0))


@pytest_twisted.ensureDeferred
async def test_bodiesOfAnySizeInTheirOrder(engine, tmp_path):
    path = tmp_path / "spool"
    path.write_bytes(b"--" + LARGE)
    exchange = await connected(engine)
    assert exchange.host == "engine:1"
    with path.open("rb") as file:
        piece = Piece(file.fileno(), 2, len(LARGE))
        bodies = [b"", b"small", LARGE, piece, b"small again", LARGE[:5_000_000], piece]
        for body in bodies:
            assert (await put(exchange, body)).status == 200
            assert exchange.isReusable()
    wanted = [LARGE if isinstance(body, Piece) else body for body in bodies]
    assert engine.bodies == wanted
    await closed(exchange)


@pytest_twisted.ensureDeferred
async def test_anAnswerAmidABodyInMemory(engine):
    """
    It is the answer, and the rest of the body is not in the way of another request.
    """
    engine.early = True
    exchange = await connected(engine)
    assert (await put(exchange, LARGE)).status == 200
    assert not exchange.isReusable()
    with pytest.raises(Broken):
        await put(exchange, b"another")
    await closed(exchange)
