import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor, ssl
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from connpool.addresses import Networks, UnknownAddress, parseListen
from connpool.errors import StartFailed
from connpool.interfaces import IDrainable, IDrainableProtocol, IStatsSource
from connpool.services.access import HEARD_CONNECTIONS, HEARD_SECONDS, Access, Gate, Words
from connpool.services.listening import SETTLE_SECONDS, ListeningService
from tests.helpers.protocols import Collecting
from tests.helpers.waiting import assertNoResult, bounded, successResultOf, until

LOOPBACK = parseListen("tcp:0:interface=127.0.0.1")


class Echo(Protocol):
    def dataReceived(self, data):
        self.transport.write(data)


def connect(service):
    host = service.getHost()
    return bounded(
        connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", host.port), Collecting())
    )


def service(**kwargs):
    return ListeningService(reactor, [LOOPBACK], Factory.forProtocol(Echo), **kwargs)


def test_provides():
    verifyObject(IStatsSource, service())
    verifyObject(IDrainable, service().gate)
    verifyObject(IStatsSource, service().gate)


@pytest_twisted.ensureDeferred
async def test_servesStopsAndStartsAgain():
    listening = service()
    for _ in range(2):
        listening.privilegedStartService()
        listening.startService()
        client = await connect(listening)
        client.transport.write(b"hello")
        await until(lambda c=client: c.received == b"hello")
        assert listening.stats().connections == 1
        client.transport.loseConnection()
        await bounded(listening.stopService())
        await bounded(client.lost)
        with pytest.raises(StartFailed, match="start the service first"):
            listening.getHost()
    assert listening.stats().accepted == 2
    assert listening.stats().connections == 0


@pytest_twisted.ensureDeferred
async def test_stopAbortsAfterTheDrainTimeout():
    listening = service(drainTimeout=0.1)
    listening.startService()
    client = await connect(listening)
    await until(lambda: listening.stats().connections)
    await bounded(listening.stopService())
    await bounded(client.lost)
    assert listening.stats().connections == 0


@pytest_twisted.ensureDeferred
async def test_portInUseIsOneLineAndLeavesNothingOpen(monkeypatch):
    import sys

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    first = service()
    first.privilegedStartService()
    taken = f"tcp:{first.getHost().port}:interface=127.0.0.1"
    second = ListeningService(
        reactor, [LOOPBACK, parseListen(taken)], Factory.forProtocol(Echo), name="second"
    )
    with pytest.raises(StartFailed) as caught:
        second.privilegedStartService()
    assert str(caught.value).startswith(f"second: Address already in use: {taken}; ")
    assert "choose another port" in str(caught.value)
    with pytest.raises(StartFailed):
        second.getHosts()
    await bounded(first.stopService())


def build(access, *hosts):
    gate = Gate(Factory.forProtocol(Echo), access, "gate")
    return gate, [gate.buildProtocol(IPv4Address("TCP", host, 1)) for host in hosts]


def letIn(protocol):
    """
    Whether a connection to C{protocol} is served, and not hung up on.
    """
    transport = StringTransport()
    protocol.makeConnection(transport)
    return not transport.disconnecting


def test_denyWinsOverAllow():
    access = Access(allow=Networks.parse(["10.0.0.0/8"]), deny=Networks.parse(["10.6.6.6"]))
    gate, built = build(access, "10.0.0.1", "10.6.6.6", "192.0.2.1")
    assert [letIn(protocol) for protocol in built] == [True, False, False]
    assert gate.stats().refusedAddress == 2


def test_unixPeersMayConnectAndUnknownOnesMatchNoList():
    access = Access(allow=Networks.parse(["any"]))
    assert access.permits(UNIXAddress(b""))
    assert not access.permits(UnknownAddress())
    assert not Access(deny=Networks.parse(["192.0.2.1"])).permits(UnknownAddress())
    assert Access().permits(UnknownAddress())


def said(gate, host):
    transport = StringTransport()
    gate.buildProtocol(IPv4Address("TCP", host, 1)).makeConnection(transport)
    return transport.value(), transport.disconnecting


def test_whoIsRefusedHearsItAtOnceAndInLessThanAPacket():
    access = Access(allow=Networks.parse(["10.0.0.0/8"]), maxConnections=1)
    answers = {"address": Words(b"not you"), "limit": Words(b"not now")}
    gate = Gate(Factory.forProtocol(Echo), access, "gate", answers)
    assert said(gate, "192.0.2.1") == (b"not you", True)
    assert said(gate, "10.0.0.1") == (b"", False)
    assert said(gate, "10.0.0.2") == (b"not now", True)
    assert said(build(access)[0], "192.0.2.1") == (b"", True)


def test_whoIsRefusedHearsItInTheProtocolThatItSpeaks():
    clock = Clock()
    answers = {"address": Words(b"not you", (b"GET /", b"PUT /"), b"403")}
    access = Access(allow=Networks.parse(["10.0.0.0/8"]))
    gate = Gate(Factory.forProtocol(Echo), access, "gate", answers, clock=clock)

    def refused():
        transport = StringTransport()
        protocol = gate.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        protocol.makeConnection(transport)
        return protocol, transport

    for first, expected in (
        (b"PUT /x HTTP", b"403"),
        (b"\0native", b"not you"),
        (b"P", b"not you"),
    ):
        protocol, transport = refused()
        assert not transport.disconnecting
        protocol.dataReceived(first)
        assert (transport.value(), transport.disconnecting) == (expected, True)
        protocol.dataReceived(b"GET /")  # nothing is said twice
        assert transport.value() == expected
        protocol.connectionLost(Failure(ConnectionDone()))
    # one that says nothing, or has gone
    silent, gone = refused(), refused()
    gone[0].connectionLost(Failure(ConnectionDone()))
    clock.advance(HEARD_SECONDS)
    assert (silent[1].value(), silent[1].disconnecting) == (b"not you", True)
    assert gone[1].value() == b""
    # very many are not waited for
    heard = [refused() for _ in range(HEARD_CONNECTIONS + 1)]
    assert [transport.disconnecting for _, transport in heard] == [False] * HEARD_CONNECTIONS + [
        True
    ]
    clock.advance(HEARD_SECONDS)
    assert clock.getDelayedCalls() == []
    assert not refused()[1].disconnecting
    clock.advance(HEARD_SECONDS)


def test_withinTLSAnAlertGoesBeforeAnyHandshake():
    access = Access(allow=Networks.parse(["10.0.0.0/8"]), maxConnections=0)
    gate = Gate(Factory.forProtocol(Echo), access, "gate", {"address": Words(b"not you")})
    key = trustme.CA().issue_cert("localhost")
    pem = key.private_key_and_cert_chain_pem.bytes()
    options = ssl.PrivateCertificate.loadPEM(pem).options()
    factory = TLSMemoryBIOFactory(options, False, gate)
    for host, expected in (("192.0.2.1", bytes.fromhex("15 03 03 00 02 02 31")), ("10.0.0.1", b"")):
        below = StringTransport()
        protocol = factory.buildProtocol(IPv4Address("TCP", host, 1))
        protocol.makeConnection(below)
        assert below.value() == expected
        assert below.disconnecting


def test_refusedAddressesAreLoggedTogether():
    now, lines = [0.0], []
    gate = Gate(
        Factory.forProtocol(Echo),
        Access(allow=Networks.parse(["10.0.0.0/8"]), deny=Networks.parse(["10.6.6.6"])),
        "inbox",
        seconds=lambda: now[0],
    )
    with capturedLogs() as events:
        said(gate, "192.0.2.1")
        for host in ["192.0.2.2"] * 3 + ["192.0.2.3", "10.6.6.6"]:
            said(gate, host)
        assert len(events) == 1
        now[0] += 60
        said(gate, "192.0.2.2")
        said(gate, "192.0.2.9")
        gate.drain()
        lines = [formatEvent(event) for event in events]
    assert lines == [
        f"inbox refused {what}: --allow does not name it"
        for what in (
            "1 connection from 192.0.2.1",
            "6 connections from 192.0.2.2 (4), 192.0.2.3, 10.6.6.6",
            "1 connection from 192.0.2.9",
        )
    ]


def test_aFloodOfRefusedAddressesIsBounded():
    gate, _ = build(Access(allow=Networks.parse(["10.0.0.0/8"])))
    with capturedLogs() as events:
        for number in range(1000):
            said(gate, f"192.0.{number % 250}.{number // 250}")
        gate.drain()
    assert len(events) == 2
    assert len(formatEvent(events[1])) < 500


def test_limitsCountWhatIsOpen():
    gate, built = build(
        Access(maxConnections=3, maxPerPeer=2), *["10.0.0.1"] * 3, *["10.0.0.2"] * 2
    )
    assert [letIn(protocol) for protocol in built] == [True, True, False, True, False]
    assert gate.stats().refusedLimit == 2
    built[0].connectionLost(None)
    assert letIn(gate.buildProtocol(IPv4Address("TCP", "10.0.0.1", 1)))


def test_aHostWithAWholeIPv6NetworkIsOnePeer():
    gate = Gate(Factory.forProtocol(Echo), Access(maxPerPeer=1), "gate")
    hosts = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "::ffff:10.0.0.1", "::ffff:10.0.0.2"]
    built = [gate.buildProtocol(IPv6Address("TCP", host, 1)) for host in hosts]
    assert [letIn(protocol) for protocol in built] == [True, False, True, True, True]
    assert not letIn(gate.buildProtocol(IPv4Address("TCP", "10.0.0.1", 1)))


def test_theProtocolHasTheRealTransport():
    _, (protocol,) = build(Access(), "10.0.0.1")
    transport = StringTransport()
    protocol.makeConnection(transport)
    assert protocol._protocol.transport is transport
    protocol.dataReceived(b"x")
    assert transport.value() == b"x"


def test_drainAsksTheConnections():
    asked = []

    @implementer(IDrainableProtocol)
    class Draining(Protocol):
        def drain(self):
            asked.append(self)

    factory = Factory.forProtocol(Draining)
    listening = ListeningService(Clock(), [], factory, drainTimeout=5)
    listening.startService()
    connection = listening.gate.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
    transport = StringTransport()
    connection.makeConnection(transport)
    d = listening.stopService()
    assert len(asked) == 1
    assertNoResult(d)
    listening._reactor.advance(5)
    assert transport.disconnected
    connection.connectionLost(Failure(ConnectionDone()))
    assert successResultOf(d) is None
    assert listening.stats().connections == 0


@pytest.mark.parametrize("settles", [True, False])
def test_whatIsLateIsSettledBeforeItIsAborted(settles):
    settled, asked = Deferred(), []

    def settle():
        asked.append(True)
        return settled

    factory = Factory.forProtocol(Echo)
    listening = ListeningService(Clock(), [], factory, drainTimeout=60, settle=settle)
    listening.startService()
    connection = listening.gate.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
    transport = StringTransport()
    connection.makeConnection(transport)
    d = listening.stopService()
    listening._reactor.advance(59)
    assert not asked
    listening._reactor.advance(1)
    assert asked == [True]
    assert not transport.disconnected
    if settles:
        settled.callback(None)
    else:
        listening._reactor.advance(SETTLE_SECONDS)
    assert transport.disconnected
    connection.connectionLost(Failure(ConnectionDone()))
    assert successResultOf(d) is None
    if not settles:
        settled.callback(None)
    assert listening._reactor.getDelayedCalls() == []


def test_healthChecksOfAProxyAreNoRefusals():
    gate = Gate(Factory.forProtocol(Echo), Access(allow=Networks.parse(["10.0.0.0/8"])), "gate")
    assert not letIn(gate.buildProtocol(UnknownAddress(healthCheck=True)))
    assert not letIn(gate.buildProtocol(UnknownAddress()))
    assert not letIn(gate.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1)))
    stats = gate.stats()
    assert (stats.healthChecks, stats.refusedAddress, stats.accepted) == (1, 2, 0)
