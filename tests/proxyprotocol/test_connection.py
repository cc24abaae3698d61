"""
The wrapper, with fake transports and a fake clock.
"""

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from connpool.addresses import Networks, UnknownAddress, clientOf
from connpool.proxyprotocol import (
    Header,
    Policy,
    ProxiedFactory,
    ProxyInfo,
    ProxyStats,
    Trusted,
    encodeV1,
    encodeV2,
)
from connpool.proxyprotocol.server import LOG_INTERVAL_SECONDS, MAX_PENDING
from connpool.services.access import Access, Gate

PROXY = IPv4Address("TCP", "10.0.0.5", 5000)
STRANGER = IPv4Address("TCP", "203.0.113.9", 5000)
HERE = IPv4Address("TCP", "10.0.0.1", 443)
CLIENT = IPv4Address("TCP", "192.0.2.7", 40000)
SERVER = IPv4Address("TCP", "198.51.100.1", 443)
TRUSTED = Trusted.parse(["10.0.0.0/8", "127.0.0.1"])
LINE = encodeV1(CLIENT, SERVER)


class Transport(StringTransport):
    aborted = False

    def abortConnection(self):
        self.aborted = True
        super().abortConnection()


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class Application(Protocol):
    """
    Speaks first and notes everything.
    """

    def __init__(self, address):
        self.address = address
        self.data = b""
        self.events = []

    def connectionMade(self):
        self.peer = self.transport.getPeer()
        self.transport.write(b"220 hello\r\n")

    def dataReceived(self, data):
        self.data += data

    def handshakeCompleted(self):
        self.events.append("handshake")

    def readConnectionLost(self):
        self.events.append("read")

    def writeConnectionLost(self):
        self.events.append("write")

    def connectionLost(self, reason=None):
        self.events.append("lost")


class Site:
    """
    A proxied factory, and connections to it.
    """

    def __init__(self, policy=Policy.REQUIRE, trusted=TRUSTED, build=Application):
        self.clock = Clock()
        self.applications = []
        self.factory = ProxiedFactory(self.clock, self, trusted, policy, timeout=5.0)
        self._build = build

    def doStart(self):
        pass

    doStop = doStart

    def buildProtocol(self, addr):
        application = self._build(addr)
        if application is not None:
            self.applications.append(application)
        return application

    def connect(self, peer=PROXY):
        transport = Transport(hostAddress=HERE, peerAddress=peer)
        connection = self.factory.buildProtocol(peer)
        connection.makeConnection(transport)
        return connection, transport

    def counted(self):
        from attrs import asdict

        return {name: n for name, n in asdict(self.factory.stats()).items() if n}


def lose(connection):
    connection.connectionLost(Failure(ConnectionDone()))


def test_interfaces():
    assert verifyObject(IProtocolFactory, Site().factory)


def test_nothingExistsBeforeTheHeader():
    site = Site()
    connection, transport = site.connect()
    for index in range(len(LINE)):
        assert not site.applications
        assert transport.value() == b""
        connection.dataReceived(LINE[index : index + 1])
    (application,) = site.applications
    assert application.address == CLIENT
    assert application.peer == CLIENT
    assert application.transport.getHost() == SERVER
    assert transport.value() == b"220 hello\r\n"
    info = application.transport.proxyInfo
    assert info == ProxyInfo(PROXY, HERE, True, Header(1, False, CLIENT, SERVER))
    connection.dataReceived(b"data")
    assert application.data == b"data"
    lose(connection)
    assert application.events == ["lost"]
    assert site.counted() == {"headers": 1}
    assert not site.clock.getDelayedCalls()


def test_dataInTheSameSegment():
    site = Site()
    connection, _ = site.connect()
    connection.dataReceived(encodeV2(CLIENT, SERVER, checksum=True) + b"first")
    connection.dataReceived(b" second")
    assert site.applications[0].data == b"first second"


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        (b"EHLO mail\r\n", "missing"),
        (b"PROXY TCP4 foo bar 1 2\r\n", "malformed"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 x 2\r\n", "malformed"),
        (b"PROXY TCP4 \xff \xfe 1 2\r\n", "malformed"),
        (b"PROXY UNKNOWN " + b"x" * 60_000 + b"\r\n", "malformed"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x13\0\0", "malformed"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "malformed"),
    ],
)
def test_refusedOnceAndForAll(data, counter):
    """
    A bad header closes; a good one afterwards changes nothing.
    """
    site = Site()
    connection, transport = site.connect()
    connection.dataReceived(data)
    assert transport.disconnecting
    connection.dataReceived(LINE)
    assert not site.applications
    lose(connection)
    assert site.counted() == {counter: 1}
    assert not site.clock.getDelayedCalls()


def test_aCloseThatIsNotAnsweredIsForced():
    """
    A TLS peer may never answer the close.
    """
    site = Site()
    connection, transport = site.connect()
    connection.dataReceived(b"EHLO mail\r\n")
    assert not transport.aborted
    site.clock.advance(5)
    assert transport.aborted
    lose(connection)


def test_strangersAreClosedAtOnce():
    site = Site()
    connection, transport = site.connect(STRANGER)
    assert transport.disconnecting
    connection.dataReceived(LINE)
    assert not site.applications
    lose(connection)
    assert site.counted() == {"untrusted": 1}
    assert not site.clock.getDelayedCalls()


@pytest.mark.parametrize("sent", [b"", b"PROXY TC"])
def test_theHeaderHasItsTime(sent):
    site = Site()
    connection, transport = site.connect()
    connection.dataReceived(sent)
    site.clock.advance(4.9)
    assert site.factory.stats().pending == 1
    assert not transport.disconnecting
    site.clock.advance(0.2)
    assert transport.disconnecting
    lose(connection)
    assert site.counted() == {"late": 1}


def test_dribblingDoesNotGainTime():
    site = Site()
    connection, transport = site.connect()
    for index in range(6):
        connection.dataReceived(LINE[index : index + 1])
        site.clock.advance(1)
    assert transport.disconnecting
    lose(connection)


def test_goneBeforeTheHeader():
    site = Site()
    connection, _ = site.connect()
    connection.dataReceived(b"PROX")
    lose(connection)
    assert site.counted() == {"lost": 1}
    assert not site.clock.getDelayedCalls()


@pytest.mark.parametrize(
    ("header", "counter"),
    [
        (encodeV2(), "local"),
        (encodeV1(), "unknown"),
        (b"PROXY UNKNOWN 127.0.0.1 127.0.0.1 1 2\r\n", "unknown"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0", "unknown"),
        (encodeV2(UNIXAddress(b"/run/a"), UNIXAddress(b"/run/b")), "unknown"),
    ],
)
@pytest.mark.parametrize("peer", [PROXY, IPv4Address("TCP", "127.0.0.1", 9)])
def test_nobodyIsNobody(header, counter, peer):
    """
    Where the proxy names no client, no rule matches it, loopback included.
    """
    site = Site()
    connection, _ = site.connect(peer)
    connection.dataReceived(header)
    (application,) = site.applications
    assert application.address == application.peer == UnknownAddress()
    assert application.peer.host not in Networks.parse(["any"])
    assert application.transport.getHost() == HERE
    assert application.transport.proxyInfo.peer == peer
    client = clientOf(application.transport)
    assert (client.host, client.viaProxy, client.local) == (None, True, False)
    assert site.counted() == {"headers": 1, counter: 1}
    lose(connection)


def test_aHeaderCannotMakeLocal():
    site = Site()
    connection, _ = site.connect()
    here = IPv4Address("TCP", "127.0.0.1", 1)
    connection.dataReceived(encodeV2(here, here))
    client = clientOf(site.applications[0].transport)
    assert (client.host, client.viaProxy, client.local) == ("127.0.0.1", True, False)


@pytest.mark.parametrize(
    ("peer", "host", "local"),
    [
        (STRANGER, "203.0.113.9", False),
        (IPv4Address("TCP", "127.0.0.9", 1), "127.0.0.9", True),
        (IPv6Address("TCP", "::1", 1), "::1", True),
        (IPv6Address("TCP", "::ffff:127.0.0.1", 1), "::ffff:127.0.0.1", True),
        (UNIXAddress(None), None, True),
    ],
)
def test_directClients(peer, host, local):
    client = clientOf(StringTransport(peerAddress=peer))
    assert (client.host, client.viaProxy, client.local) == (host, False, local)


# -- the other policies


@pytest.mark.parametrize("policy", [Policy.USE, Policy.IGNORE])
def test_trustedPeersMayDoWithout(policy):
    site = Site(policy)
    connection, transport = site.connect()
    assert not site.applications
    connection.dataReceived(b"EHLO mail\r\n")
    (application,) = site.applications
    assert application.peer == PROXY
    assert application.data == b"EHLO mail\r\n"
    # a proxy that sends no header speaks for anybody
    assert clientOf(application.transport).viaProxy
    assert not clientOf(application.transport).local
    assert site.counted() == {"bare": 1}
    assert not site.clock.getDelayedCalls()
    assert not transport.disconnecting


@pytest.mark.parametrize("policy", [Policy.USE, Policy.IGNORE])
def test_silentTrustedPeersAreServedInTheEnd(policy):
    site = Site(policy)
    _, transport = site.connect()
    site.clock.advance(5)
    assert transport.value() == b"220 hello\r\n"
    assert site.counted() == {"bare": 1}


@pytest.mark.parametrize("policy", [Policy.USE, Policy.IGNORE])
def test_halfAHeaderIsNone(policy):
    site = Site(policy)
    connection, transport = site.connect()
    connection.dataReceived(b"PROXY TCP4")
    site.clock.advance(5)
    assert transport.disconnecting
    assert not site.applications
    assert site.counted() == {"late": 1}
    lose(connection)


def test_use():
    site = Site(Policy.USE)
    connection, _ = site.connect()
    connection.dataReceived(LINE + b"x")
    assert site.applications[0].peer == CLIENT
    assert site.applications[0].data == b"x"


def test_ignore():
    site = Site(Policy.IGNORE)
    connection, _ = site.connect()
    connection.dataReceived(LINE + b"x")
    assert site.applications[0].address == site.applications[0].peer == PROXY
    assert site.applications[0].data == b"x"
    assert site.applications[0].transport.proxyInfo.header.source == CLIENT


NO_HEADER = [
    (Policy.USE, STRANGER),
    (Policy.IGNORE, STRANGER),
    (Policy.REJECT, STRANGER),
    (Policy.REJECT, PROXY),
]


@pytest.mark.parametrize(("policy", "peer"), NO_HEADER)
def test_whoMaySendNoneNeverWaits(policy, peer):
    site = Site(policy)
    connection, transport = site.connect(peer)
    assert transport.value() == b"220 hello\r\n"
    assert site.applications[0].peer == peer
    connection.dataReceived(b"P")
    assert site.applications[0].data == b""
    connection.dataReceived(b"ING")
    connection.dataReceived(b" PROXY ")
    assert site.applications[0].data == b"PING PROXY "
    assert not site.clock.getDelayedCalls()
    assert site.counted() == {}


@pytest.mark.parametrize(("policy", "peer"), NO_HEADER)
@pytest.mark.parametrize("header", [LINE, encodeV2(CLIENT, SERVER), b"PROXY junk"])
@pytest.mark.parametrize("step", [1, 1000])
def test_whoMaySendNoneAndDoes(policy, peer, header, step):
    site = Site(policy)
    connection, transport = site.connect(peer)
    for index in range(0, len(header), step):
        connection.dataReceived(header[index : index + step])
    assert transport.disconnecting
    assert site.applications[0].data == b""
    lose(connection)
    assert site.applications[0].events == ["lost"]
    assert site.counted() == {"rejected": 1}
    assert not site.clock.getDelayedCalls()


def test_aBeginningThatGoesNowhereIsDelivered():
    site = Site(Policy.REJECT)
    connection, _ = site.connect()
    connection.dataReceived(b"PROX")
    site.clock.advance(5)
    assert site.applications[0].data == b"PROX"
    connection.dataReceived(b"Y ")
    assert site.applications[0].data == b"PROXY "


def test_aBeginningBeforeTheEndIsDelivered():
    site = Site(Policy.REJECT)
    one, _ = site.connect()
    one.dataReceived(b"PROX")
    lose(one)
    assert (site.applications[0].data, site.applications[0].events) == (b"PROX", ["lost"])
    two, _ = site.connect()
    two.dataReceived(b"\r\n")
    two.readConnectionLost()
    assert (site.applications[1].data, site.applications[1].events) == (b"\r\n", ["read"])
    assert not site.clock.getDelayedCalls()


# -- being a transport


def test_halfCloseAndHandshakeGoThrough():
    site = Site()
    connection, _ = site.connect()
    assert not IHalfCloseableProtocol.providedBy(connection)
    connection.handshakeCompleted()
    connection.dataReceived(LINE)
    assert IHalfCloseableProtocol.providedBy(connection)
    connection.readConnectionLost()
    connection.writeConnectionLost()
    assert site.applications[0].events == ["handshake", "read", "write"]


def test_handshakeAfterTheStart():
    site = Site(Policy.REJECT)
    connection, _ = site.connect()
    connection.handshakeCompleted()
    assert site.applications[0].events == ["handshake"]


def test_noHalfCloseForWhoDoesNotWantIt():
    site = Site(build=lambda _: Protocol())
    connection, _ = site.connect()
    connection.dataReceived(LINE)
    assert not IHalfCloseableProtocol.providedBy(connection)


def test_transportCalls():
    site = Site()
    connection, transport = site.connect()
    connection.dataReceived(LINE)
    application = site.applications[0]
    transport.clear()
    application.transport.writeSequence([b"a", b"b"])
    assert transport.value() == b"ab"
    application.transport.registerProducer(producer := object(), streaming=True)
    assert transport.producer is producer
    application.transport.loseConnection()
    assert transport.disconnecting
    with pytest.raises(AttributeError):
        application.transport.nonesuch  # noqa: B018 - asked for


class Pausing(Application):
    def connectionMade(self):
        self.transport.pauseProducing()


def test_aPauseHoldsWhatCameWithTheHeader():
    site = Site(build=Pausing)
    connection, transport = site.connect()
    connection.dataReceived(LINE + b"early")
    (application,) = site.applications
    assert application.data == b""
    application.transport.resumeProducing()
    assert transport.producerState == "paused"
    site.clock.advance(0)
    assert application.data == b"early"
    assert transport.producerState == "producing"


def test_pausedAgainAndGone():
    site = Site(build=Pausing)
    connection, transport = site.connect()
    connection.dataReceived(LINE + b"early")
    (application,) = site.applications
    application.transport.resumeProducing()
    application.transport.pauseProducing()
    site.clock.advance(0)
    assert application.data == b""
    application.transport.resumeProducing()
    lose(connection)
    site.clock.advance(0)
    assert application.data == b""
    assert transport.producerState == "paused"


@pytest.mark.parametrize("close", ["loseConnection", "abortConnection"])
def test_nothingAfterTheApplicationClosed(close):
    class Closing(Application):
        def connectionMade(self):
            getattr(self.transport, close)()

    site = Site(build=Closing)
    connection, _ = site.connect()
    connection.dataReceived(LINE + b"early")
    assert site.applications[0].data == b""


@pytest.mark.parametrize("policy", [Policy.REQUIRE, Policy.REJECT])
def test_aFactoryMayRefuseTheClient(policy):
    site = Site(policy, build=lambda _: None)
    connection, transport = site.connect()
    connection.dataReceived(LINE)
    assert transport.disconnecting
    lose(connection)
    assert not site.clock.getDelayedCalls()


# -- the listener


def test_crowds():
    site = Site()
    waiting = [site.connect()[0] for _ in range(MAX_PENDING)]
    late, transport = site.connect()
    assert transport.disconnecting
    assert site.factory.stats() == ProxyStats(pending=MAX_PENDING, crowded=1)
    waiting[0].dataReceived(LINE)
    assert site.factory.stats().pending == MAX_PENDING - 1
    for connection in [late, *waiting]:
        lose(connection)
    assert site.factory.stats().pending == 0


def test_stoppingEndsWhatWaits():
    site = Site()
    (waiting, one), (served, two) = site.connect(), site.connect()
    served.dataReceived(LINE)
    site.factory.doStop()
    assert one.aborted
    assert not two.aborted
    lose(waiting)


def test_aFloodOfRefusalsIsOneLineAMinute(caplogs):
    site = Site()
    for _ in range(100):
        lose(site.connect(STRANGER)[0])
    site.clock.advance(LOG_INTERVAL_SECONDS)
    lose(site.connect(STRANGER)[0])
    assert [event["count"] for event in caplogs] == [1, 100]
    assert "203.0.113.9" in caplogs.text()
    # a clock that is set back silences nothing
    site.clock.rightNow -= 3600
    lose(site.connect(STRANGER)[0])
    assert len(caplogs) == 3


def test_theLogNamesTheService():
    gate = Gate(Factory(), Access(), "inbox")
    assert ProxiedFactory(Clock(), gate, TRUSTED).logPrefix() == "inbox (PROXY)"


@pytest.fixture
def caplogs():
    from twisted.logger import formatEvent, globalLogPublisher

    class Events(list):
        def text(self):
            return "\n".join(map(formatEvent, self))

    events = Events()

    def note(event):
        if event.get("log_namespace", "").startswith("connpool.proxyprotocol"):
            events.append(event)

    globalLogPublisher.addObserver(note)
    yield events
    globalLogPublisher.removeObserver(note)


def test_trustedUnix():
    assert UNIXAddress(None) in Trusted.parse(["unix"])
    assert UNIXAddress(None) not in TRUSTED
    assert PROXY not in Trusted.parse(["unix"])
    assert None not in TRUSTED
    assert IPv6Address("TCP", "::ffff:10.1.1.1", 1) in TRUSTED
    site = Site(trusted=Trusted.parse(["unix"]))
    connection, _ = site.connect(UNIXAddress(None))
    connection.dataReceived(LINE)
    assert site.applications[0].peer == CLIENT


def test_aFactoryOfTwistedsOwn():
    factory = ProxiedFactory(Clock(), Factory.forProtocol(Application), TRUSTED)
    factory.doStart()
    factory.doStop()
    assert "PROXY" in factory.logPrefix()
