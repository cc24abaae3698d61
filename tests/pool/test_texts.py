"""
What the pool says: causes, places, remedies; and mistakes that are judged when made.
"""

import gc
import weakref

import pytest
import pytest_twisted
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import directlyProvides, implementer

from connpool.addresses.clientstrings import clientString
from connpool.interfaces import IPoolable, ISingleUseEndpoint
from connpool.pool import (
    AcquireTimeout,
    ConnectFailed,
    ConnectionPool,
    KeyedConnectionPool,
    PooledEndpoint,
    newPool,
)
from connpool.testing import FakeEndpoint
from tests.helpers.ports import freePort
from tests.helpers.waiting import bounded, failureResultOf, successResultOf
from tests.pool.building import Echoing, Setup
from tests.pool.servers import Server, Talker, makeAuthority, talkers


def test_whenReadyTellsWhyNothingConnects():
    setup = Setup("refuse")
    late = setup.pool.whenReady(1, timeout=5.0)
    setup.clock.advance(6)
    error = failureResultOf(late, AcquireTimeout)
    assert "refused" in str(error)
    assert "refused" in str(error.__cause__)
    setup.end()


def test_aTimeoutOfAPausedPoolSaysSo():
    setup = Setup(maxSize=2)
    successResultOf(setup.pool.acquire()).release()
    setup.pool.pause()
    late = setup.pool.acquire(timeout=1.0)
    setup.clock.advance(1)
    assert "paused; resume() it" in str(failureResultOf(late, AcquireTimeout))
    setup.end()


@pytest_twisted.ensureDeferred
async def test_aFailedDialSaysWhere():
    authority = makeAuthority()
    root = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(authority.cert_pem.bytes())])
    number = freePort()
    plain = TCP4ClientEndpoint(reactor, "127.0.0.1", number)
    secure = wrapClientTLS(ssl.optionsForClientTLS("localhost", root), plain)
    ours = clientString(reactor, f"tls:localhost:endpoint=tcp\\:127.0.0.1\\:{number}")
    for endpoint in (plain, secure, ours):
        pool = ConnectionPool(reactor, endpoint, talkers(), name="db")
        with pytest.raises(ConnectFailed, match=f"pool db cannot .* 127.0.0.1:{number}: .*refused"):
            await bounded(pool.acquire())
        await bounded(pool.close())


MISTAKES = {
    "a string": ("tcp:127.0.0.1:6379", "clientFromString"),
    "a Deferred": (Deferred(), "wait for the Deferred"),
    "nothing": (None, "IStreamClientEndpoint"),
    "a class": (FakeEndpoint, "IStreamClientEndpoint"),
}


@pytest.mark.parametrize("kind", MISTAKES)
@pytest.mark.parametrize("listed", [False, True])
def test_anEndpointThatIsNoneIsRefused(kind, listed):
    endpoint, remedy = MISTAKES[kind]
    clock = Clock()
    given = [FakeEndpoint(clock), endpoint] if listed else endpoint
    name = r"endpoint\[1\]" if listed else "endpoint"
    with pytest.raises(TypeError, match=f"{name}=.*{remedy}"):
        ConnectionPool(clock, given, talkers())
    with pytest.raises(TypeError, match=f"{name}=.*{remedy}"):
        PooledEndpoint(clock, given)
    keyed = KeyedConnectionPool(clock, lambda key: given, talkers())
    assert remedy in str(failureResultOf(keyed.acquire("a"), TypeError))


def test_aProtocolClassIsNoFactory():
    with pytest.raises(TypeError, match=r"Factory.forProtocol\(Echoing\)"):
        ConnectionPool(Clock(), FakeEndpoint(), Echoing)


def test_aSingleUseEndpointIsRefusedOnEveryPath():
    clock = Clock()
    endpoint = FakeEndpoint(clock)
    directlyProvides(endpoint, ISingleUseEndpoint)
    pool = ConnectionPool(clock, endpoint, talkers(), maxUses=1)
    with pytest.raises(ValueError, match="maxUses must be 1, not 5"):
        pool.reconfigure(maxUses=5)
    assert pool.settings.maxUses == 1
    keyed = KeyedConnectionPool(clock, lambda key: endpoint, talkers())
    failureResultOf(keyed.acquire("a"), ValueError)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "5", True])
@pytest.mark.parametrize("busy", [False, True])
def test_aTimeoutIsJudgedWhenItIsGiven(timeout, busy):
    setup = Setup(maxSize=1)
    lease = successResultOf(setup.pool.acquire())
    if not busy:
        lease.release()
    for ask in (setup.pool.acquire, setup.pool.lease):
        with pytest.raises(ValueError, match="timeout="):
            ask(timeout=timeout)
    with pytest.raises(ValueError, match="timeout="):
        setup.pool.run(lambda protocol: None, timeout=timeout)
    if busy:
        lease.release()
    setup.end()


def test_aPartialPoolableIsAFailedDial():
    @implementer(IPoolable)
    class Half(Echoing):
        def isReusable(self):
            return True

    setup = Setup(protocol=Half)
    text = str(failureResultOf(setup.pool.acquire(), ConnectFailed))
    assert "without reset, validate, idleDataReceived, goodbye()" in text
    setup.turn()
    setup.end()


def test_independentTasksAreNoDeadlock(caplogs):
    setup = Setup(maxSize=1, debug=True)
    successResultOf(setup.pool.acquire()).release()  # a plain callback
    gates = [Deferred() for _ in range(3)]

    async def use(gate):
        async with setup.pool.lease():
            await gate

    tasks = [ensureDeferred(use(gate)) for gate in gates]
    for gate in gates:
        gate.callback(None)
    for task in tasks:
        successResultOf(task)
    assert not any("deadlock" in each for each in caplogs())

    async def nests():
        async with setup.pool.lease(), setup.pool.lease(timeout=1.0):
            pass

    task = ensureDeferred(nests())
    assert any("deadlock" in each for each in caplogs())
    setup.clock.advance(1.0)
    failureResultOf(task, AcquireTimeout)
    setup.turn()
    setup.end()


def test_lostConnectionsOfNewPoolAreForgotten():
    clock = Clock()
    endpoint = FakeEndpoint(clock)
    old = newPool(2, 30.0, lambda: connectProtocol(endpoint, Talker()), clock)
    refs = []
    for _ in range(50):
        protocol = successResultOf(old.get())
        endpoint.transports[-1].receive(b"hello")  # a server that is there
        endpoint.transports[-1].finish()
        refs.append(weakref.ref(protocol))
    old.put(protocol)  # it is no mistake to put what broke
    del protocol
    endpoint.transports.clear()
    endpoint.attempts.clear()
    clock.advance(1)
    gc.collect()
    assert sum(ref() is not None for ref in refs) <= 1
    successResultOf(old.close())


def test_surplusDialsAreGivenUpBeforeAConnection():
    setup = Setup("hold", maxSize=5, maxConnecting=5)
    waiting = [setup.pool.acquire() for _ in range(5)]
    setup.pool.reconfigure(maxSize=1)
    (attempt,) = setup.pending()
    attempt.succeed()
    successResultOf(waiting[0]).release()
    for each in waiting[1:]:
        successResultOf(each).release()
    setup.end()


def test_aDoomedLeaseIsNothingToWaitFor():
    setup = Setup(maxSize=4, acquireTimeout=30.0)
    lease = successResultOf(setup.pool.acquire())
    setup.pool.purge()
    setup.endpoint.answer = "refuse"
    failureResultOf(setup.pool.acquire(), ConnectFailed)
    lease.release()
    setup.turn()
    setup.end()


@pytest_twisted.ensureDeferred
async def test_aFactoryThatNegotiatesDoesSoThroughThePool():
    class Says(Protocol):
        def dataReceived(self, data):
            self.transport.write(repr(self.transport.negotiatedProtocol).encode())

    @implementer(IProtocolNegotiationFactory)
    class Negotiating(Factory):
        noisy = False
        protocol = Talker

        def acceptableProtocols(self):
            return [b"h2"]

    authority = makeAuthority()
    server = Server(protocol=Says)
    server.live, server.received = [], b""
    directlyProvides(server, IProtocolNegotiationFactory)
    server.acceptableProtocols = lambda: [b"h2", b"http/1.1"]
    issued = authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
    options = ssl.PrivateCertificate.loadPEM(issued).options()
    port = reactor.listenTCP(0, TLSMemoryBIOFactory(options, False, server), interface="127.0.0.1")
    root = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(authority.cert_pem.bytes())])
    endpoint = wrapClientTLS(
        ssl.optionsForClientTLS("localhost", root),
        TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port),
    )
    pool = ConnectionPool(reactor, endpoint, Negotiating())
    assert await bounded(pool.run(lambda protocol: protocol.ask(b"12345"))) == b"b'h2'"
    await bounded(pool.close())
    await bounded(port.stopListening())


def test_explainTellsOfTheLimitsThatAct():
    setup = Setup(
        maxSize=4, endpoints=2, leaseTimeout=5.0, keepaliveTime=2.0, idleTimeout=None, failBack=9.0
    )
    leases = [successResultOf(setup.pool.acquire()) for _ in range(2)]
    leases[0].release()
    text = setup.pool.explain()
    assert "ends it in 5 s (leaseTimeout)" in text
    assert "every 2 s (keepaliveTime), 0 times" in text
    setup.clock.advance(5.0)
    setup.turn()
    assert "1 leases were ended after leaseTimeout" in setup.pool.explain()
    setup.pool.purge(over=60.0)
    assert "1 connections are to be replaced after a purge" in setup.pool.explain()
    setup.pool.condemn(leases[0].released and 1, destinationBad=True)
    setup.turn()
    assert "1 connections led to a destination that was bad" in setup.pool.explain()
    setup.end()


def test_explainTellsOfReturningConnections():
    setup = Setup(maxSize=1)
    lease = successResultOf(setup.pool.acquire())
    waiting, texts = [], []

    def dataReceived(data):
        lease.release()
        waiting.append(setup.pool.acquire())
        assert setup.pool.tryAcquire() is None
        texts.append(setup.pool.explain())

    lease.protocol.dataReceived = dataReceived
    setup.endpoint.transports[0].receive(b"answer")
    assert "1 connections return when their read is delivered" in texts[0]
    successResultOf(waiting[0]).release()
    assert len(setup.endpoint.attempts) == 1
    setup.end()
