"""
C{twistd connpool}: relaying, with real sockets.
"""

import socket
import struct

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.python import usage
from zope.interface import implementer

from connpool.errors import StartFailed
from connpool.interfaces import IReloadable
from connpool.services import relay as relay_
from connpool.services.poolrelay import Options, makeService
from tests.helpers.waiting import bounded, pause, until
from tests.pool.servers import Served, Server, Talker, makeAuthority


class Relay:
    """
    A relay in this process.
    """

    def __init__(self, *arguments):
        options = Options()
        options.parseOptions(["--listen", "tcp:0:interface=127.0.0.1", *arguments])
        self.service = options.make(reactor)
        self.service.privilegedStartService()
        self.service.startService()
        self.pool = self.service.pool

    def endpoint(self):
        port = self.service.listening.getHost().port
        return TCP4ClientEndpoint(reactor, "127.0.0.1", port)

    def connect(self, protocol=Talker):
        return bounded(connectProtocol(self.endpoint(), protocol()))

    async def stop(self):
        await bounded(self.service.stopService())
        assert self.pool.stats().size == 0
        await pause(0.02)  # a dial that was given up leaves Twisted a call for the next turn


def upstream(server):
    return ["--upstream", f"tcp:127.0.0.1:{server.number}"]


@implementer(IHalfCloseableProtocol)
class Collecting(Protocol):
    """
    Sends nothing by itself, and keeps what comes until the end.
    """

    def __init__(self):
        self.received = b""
        self.ended = Deferred()
        self.gone = Deferred()

    def dataReceived(self, data):
        self.received += data

    def readConnectionLost(self):
        self.ended.callback(self.received)

    def writeConnectionLost(self):
        pass

    def connectionLost(self, reason):
        if not self.ended.called:
            self.ended.callback(self.received)
        self.gone.callback(None)


@implementer(IHalfCloseableProtocol)
class Reporting(Served):
    """
    Answers when it was told everything.
    """

    def dataReceived(self, data):
        self.received += data

    def readConnectionLost(self):
        self.transport.write(b"%d bytes" % len(self.received))
        self.transport.loseConnection()

    def writeConnectionLost(self):
        pass


@pytest_twisted.ensureDeferred
async def test_clientsGetConnectionsMadeAheadOfTime():
    server = await Server().start()
    relay = Relay(*upstream(server), "--min-idle", "2", "--max-size", "5")
    await until(lambda: len(server.live) == 2)
    talker = await relay.connect()
    assert await bounded(talker.ask(b"hello")) == b"hello"
    await until(lambda: len(server.live) == 3)
    assert relay.pool.stats().leased == 1
    talker.transport.loseConnection()
    await until(lambda: relay.pool.stats().leased == 0)
    await relay.stop()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_theUpstreamNeverSeesMoreThanMaxSize():
    server = await Server().start()
    relay = Relay(*upstream(server), "--min-idle", "1", "--max-size", "3")
    done = []

    async def client(number):
        talker = await relay.connect()
        assert await bounded(talker.ask(b"%d" % number)) == b"%d" % number
        talker.transport.loseConnection()
        done.append(number)

    from twisted.internet.defer import ensureDeferred, gatherResults

    await bounded(gatherResults([ensureDeferred(client(number)) for number in range(40)]))
    assert len(done) == 40
    assert server.most <= 3
    await relay.stop()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_aGreetingReachesTheClient():
    server = await Server(greeting=b"220 ready\r\n").start()
    relay = Relay(*upstream(server), "--min-idle", "1")
    await until(lambda: relay.pool.stats().idle == 1)
    for _ in range(3):
        talker = await relay.connect()
        await until(lambda talker=talker: talker.received == b"220 ready\r\n")
        talker.transport.loseConnection()
    await relay.stop()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_anEndOfOneDirectionIsPassedOn():
    server = await Server(protocol=Reporting).start()
    relay = Relay(*upstream(server))
    client = await relay.connect(Collecting)
    client.transport.write(b"x" * 300_000)
    client.transport.loseWriteConnection()
    assert await bounded(client.ended) == b"300000 bytes"
    client.transport.loseConnection()
    await bounded(client.gone)
    await until(lambda: relay.pool.stats().leased == 0)
    await relay.stop()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_aSlowClientSlowsItsUpstreamDown():
    class Flooding(Served):
        """
        Sends as much as it may.
        """

        sent = 0

        def connectionMade(self):
            super().connectionMade()
            self.transport.registerProducer(self, False)

        def resumeProducing(self):
            self.sent += 65536
            self.transport.write(b"x" * 65536)

        def stopProducing(self):
            pass

    server = await Server(protocol=Flooding).start()
    relay = Relay(*upstream(server), "--min-idle", "0")
    client = await relay.connect(Collecting)
    client.transport.pauseProducing()
    await until(lambda: server.live)
    (flooding,) = server.live
    last = -1
    for _ in range(100):  # until buffers, ours and the kernel's, are full
        await pause(0.05)
        if flooding.sent == last:
            break
        last = flooding.sent
    else:
        pytest.fail("it never stopped sending")
    seen = len(client.received)
    client.transport.resumeProducing()
    await until(lambda: len(client.received) > seen + last)
    client.transport.abortConnection()
    await bounded(client.gone)
    await until(lambda: not server.live)
    await relay.stop()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_theNextUpstreamIsUsedWhenOneIsDown():
    first = await Server().start()
    second = await Server().start()
    relay = Relay(*upstream(first), *upstream(second), "--min-idle", "0")
    talker = await relay.connect()
    await bounded(talker.ask(b"one"))
    assert first.total == 1
    await first.stop()
    await until(lambda: talker.lost)
    for _ in range(3):
        talker = await relay.connect()
        await bounded(talker.ask(b"two"))
        talker.transport.loseConnection()
    assert second.total == 3
    await relay.stop()
    await second.stop()


@pytest_twisted.ensureDeferred
async def test_aClientWithoutUpstreamIsToldByTheEndOfItsConnection():
    server = await Server().start()
    await server.stop()
    relay = Relay(*upstream(server), "--min-idle", "0")
    for _ in range(3):
        client = await relay.connect(Collecting)
        assert await bounded(client.ended) == b""
        await bounded(client.gone)
    assert relay.pool.stats().acquiresRejected == 3
    await relay.stop()


@pytest_twisted.ensureDeferred
async def test_aClientThatLeavesTheQueueIsForgotten():
    server = await Server().start()
    relay = Relay(*upstream(server), "--max-size", "1", "--min-idle", "0")
    holding = await relay.connect()
    await bounded(holding.ask(b"mine"))
    leaving = await relay.connect()
    await until(lambda: relay.pool.stats().waiting == 1)
    leaving.transport.abortConnection()
    # not read while it waits: noticed when it is served, and given back then
    holding.transport.loseConnection()
    await until(lambda: relay.pool.stats().leased == 0 and relay.pool.stats().waiting == 0)
    talker = await relay.connect()
    assert await bounded(talker.ask(b"next")) == b"next"
    talker.transport.loseConnection()
    await relay.stop()
    await server.stop()


@pytest.mark.parametrize(
    ("version", "start"),
    [("v1", b"PROXY TCP4 127.0.0.1 127.0.0.1 "), ("v2", b"\r\n\r\n\x00\r\nQUIT\n")],
)
@pytest.mark.parametrize("secured", [False, True])
@pytest_twisted.ensureDeferred
async def test_theUpstreamIsToldWhoTheClientIs(version, start, secured, tmp_path):
    authority = makeAuthority()
    raw = []

    class Recording(Served):
        def dataReceived(self, data):
            self.received += data
            raw.append(data)

    server = await Server(protocol=Recording).start()
    options = ["--upstream", f"tcp:127.0.0.1:{server.number}"]
    if secured:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        options = ["--upstream", f"tls:localhost:{server.number}:trustRoots={tmp_path}"]
    relay = Relay(*options, "--proxy-header", version, "--min-idle", "1")
    await until(lambda: server.live)
    await pause(0.02)
    assert raw == []  # the client is not known yet
    talker = await relay.connect()
    talker.transport.write(b"hello")
    await until(lambda: len(b"".join(raw)) > len(start) + 12)
    said = b"".join(raw)
    assert said.startswith(start)
    if version == "v1":
        line, rest = said.split(b"\r\n", 1)
        assert line.split()[4] == b"%d" % talker.transport.getHost().port
    else:
        rest = said[16 + int.from_bytes(said[14:16], "big") :]
    # TLS begins after the header
    assert rest.startswith(b"\x16\x03" if secured else b"hello")
    # this server never ends a handshake
    for each in list(server.live):
        each.transport.abortConnection()
    await until(lambda: talker.lost)
    await relay.stop()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_theRestMustGoOutInTime():
    class Deaf(Served):
        def connectionMade(self):
            super().connectionMade()
            self.transport.pauseProducing()

    server = await Server(protocol=Deaf).start()
    relay = Relay(*upstream(server), "--min-idle", "0", "--close-timeout", "0.1")
    client = await relay.connect(Collecting)
    client.transport.write(b"x" * 100_000)
    await until(lambda: relay.pool.stats().leased == 1)
    client.transport.loseConnection()
    await until(lambda: relay.pool.stats().leased == 0)
    await relay.stop()
    await server.stop()


@pytest.mark.parametrize("half", [False, True])
@pytest_twisted.ensureDeferred
async def test_whoReadsSlowlyGetsEverything(half):
    size = 3_000_000

    class Sending(Served):
        """
        Sends all when it was asked, and closes.
        """

        def dataReceived(self, data):
            self.transport.write(b"x" * size)
            self.transport.loseConnection()

    class Slow(Collecting):
        def connectionMade(self):
            self.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            self.transport.write(b"all")
            if half:
                self.transport.loseWriteConnection()

        def dataReceived(self, data):
            super().dataReceived(data)
            if len(self.received) < size:
                self.transport.pauseProducing()
                reactor.callLater(0.03, self.transport.resumeProducing)

    server = await Server(protocol=Sending).start()
    relay = Relay(*upstream(server), "--min-idle", "0", "--close-timeout", "0.4")
    client = await relay.connect(Slow)
    await until(lambda: len(client.received) == size, 30)
    client.transport.loseConnection()
    await bounded(client.gone)
    await relay.stop()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_anUpstreamWithTLSIsHandshakenAheadOfTime(tmp_path):
    authority = makeAuthority()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = await Server().start(authority)
    relay = Relay("--upstream", f"tls:localhost:{server.number}:trustRoots={tmp_path}")
    await until(lambda: relay.pool.stats().idle == 2)
    talker = await relay.connect()
    assert await bounded(talker.ask(b"x" * 100_000)) == b"x" * 100_000
    talker.transport.loseConnection()
    await until(lambda: relay.pool.stats().leased == 0)
    await relay.stop()
    await server.stop()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--listen"),
        (["--listen", "tcp:0"], "--upstream"),
        (["--listen", "tcp:0", "--upstream", "nonsense"], "nonsense"),
        (["--listen", "tcp:0", "--upstream", "tcp:h:1", "--max-size", "0"], "--max-size"),
        (["--listen", "tcp:0", "--upstream", "tcp:h:1", "--min-idle", "200"], "--min-idle"),
        (["--listen", "tcp:0", "--upstream", "tcp:h:1", "--idle-timeout", "nan"], "--idle-timeout"),
        (["--listen", "tcp:0", "--upstream", "tcp:h:1", "--proxy-header", "v3"], "v3"),
        (
            ["--listen", "tcp:0", "--upstream", "tls:h:1", "--upstream", "tcp:h:1",
             "--proxy-header", "v2"],
            "one --upstream only",
        ),
    ],
)  # fmt: skip
def test_aMistakeIsOneLine(arguments, message):
    with pytest.raises(usage.UsageError, match=message) as caught:
        Options().parseOptions(arguments)
    assert "\n" not in str(caught.value)


def test_anUpstreamThatOnlyTheReactorRefusesIsOneLine(monkeypatch):
    def parse(given, text):
        if given is None:
            raise AttributeError("a parser of somebody else wants a reactor")
        raise ValueError("no such thing here")

    monkeypatch.setattr(relay_, "clientString", parse)
    options = Options()
    options.parseOptions(["--listen", "tcp:0", "--upstream", "other:h"])
    with pytest.raises(StartFailed, match="--upstream 'other:h': no such thing here"):
        makeService(options, reactor)


def resetNow(protocol):
    """
    Send a reset.
    """
    linger = struct.pack("ii", 1, 0)
    protocol.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    protocol.transport.abortConnection()


class Ending(Talker):
    """
    Tells how its connection ended.
    """

    def __init__(self):
        super().__init__()
        self.end = Deferred()

    def connectionLost(self, reason):
        super().connectionLost(reason)
        self.end.callback(reason.type)


class Halving(Served):
    """
    Answers with the first part of an answer.
    """

    size = 17

    def dataReceived(self, data):
        self.transport.write(b"h" * self.size)


class HalvingMuch(Halving):
    size = 3_000_000


@pytest.mark.parametrize("protocol", [Halving, HalvingMuch])
@pytest.mark.parametrize("secured", [False, True])
@pytest_twisted.ensureDeferred
async def test_anUpstreamsResetReachesTheClientAfterWhatCameBefore(tmp_path, protocol, secured):
    authority = makeAuthority() if secured else None
    server = await Server(protocol=protocol).start(authority)
    where = upstream(server)
    if secured:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        where[1] = f"tls:localhost:{server.number}:trustRoots={tmp_path}"
        where[1] = where[1].replace("localhost", "127.0.0.1")
    relay = Relay(*where)
    client = await relay.connect(Ending)
    client.ask(b"?" * 10_000_000).addErrback(lambda _: None)  # never as much comes back
    client.received = b""
    await until(lambda: len(client.received) >= protocol.size)
    for each in list(server.live):
        each.transport.abortConnection()
    assert await bounded(client.end) is not ConnectionDone
    assert len(client.received) >= protocol.size
    await relay.stop()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_aClientsResetReachesTheUpstream():
    class Watching(Served):
        ends = []

        def connectionLost(self, reason):
            super().connectionLost(reason)
            if self.received:
                self.ends.append(reason.type)

    server = await Server(protocol=Watching).start()
    relay = Relay(*upstream(server))
    client = await relay.connect()
    assert await bounded(client.ask(b"hello")) == b"hello"
    resetNow(client)
    await until(lambda: Watching.ends)
    assert Watching.ends == [ConnectionLost]
    await relay.stop()
    await server.stop()


@pytest.mark.parametrize("how", ["close", "reset", "reset after asking"])
@pytest_twisted.ensureDeferred
async def test_aWaitingClientThatLeavesLeavesTheQueue(how):
    server = await Server().start()
    relay = Relay(*upstream(server), "--max-size", "1", "--min-idle", "0")
    first = await relay.connect()
    assert await bounded(first.ask(b"mine")) == b"mine"
    others = [await relay.connect() for _ in range(3)]
    await until(lambda: relay.pool.stats().waiting == 3)
    for each in others:
        if how == "close":
            each.transport.loseConnection()
        else:
            if "asking" in how:
                each.ask(b"early").addErrback(lambda _: None)
                await pause(0.05)
            resetNow(each)
    await until(lambda: relay.pool.stats().waiting == 0)
    assert server.total == 1
    first.transport.loseConnection()
    await relay.stop()
    await server.stop()


@pytest.mark.parametrize("size", [5, 300_000])
@pytest_twisted.ensureDeferred
async def test_aClientThatAskedAndEndedItsSideStillGetsItsAnswer(size):
    server = await Server(protocol=Reporting).start()
    relay = Relay(*upstream(server), "--max-size", "1", "--min-idle", "0")
    first = await relay.connect()
    await until(lambda: relay.pool.stats().leased == 1)
    other = await relay.connect(Collecting)
    other.transport.write(b"x" * size)
    other.transport.loseWriteConnection()
    await until(lambda: relay.pool.stats().waiting == 1)
    await pause(0.05)
    first.transport.loseConnection()
    assert await bounded(other.ended) == b"%d bytes" % size
    other.transport.loseConnection()
    await bounded(other.gone)
    await relay.stop()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_theRelayCanBeStoppedAndStartedAgain():
    server = await Server().start()
    relay = Relay(*upstream(server))
    for _ in range(3):
        client = await relay.connect()
        assert await bounded(client.ask(b"hello")) == b"hello"
        client.transport.loseConnection()
        await relay.stop()
        relay.service.startService()
    await relay.stop()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_aReloadReplacesWhatIsReady(monkeypatch):
    monkeypatch.setattr(relay_, "RELOAD_SECONDS", 0.5)
    server = await Server().start()
    relay = Relay(*upstream(server), "--min-idle", "3")
    client = await relay.connect()
    assert await bounded(client.ask(b"mine")) == b"mine"
    await until(lambda: relay.pool.stats().idle == 3)
    before = [each for each in server.live if not each.received]
    assert IReloadable.providedBy(relay.service)
    relay.service.reload()
    await until(lambda: not set(before) & set(server.live))
    await until(lambda: relay.pool.stats().idle == 3)
    assert await bounded(client.ask(b"still")) == b"still"  # a connection in use stays
    client.transport.loseConnection()
    await relay.stop()
    await server.stop()
