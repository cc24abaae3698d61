"""
Parked connections over real sockets: what the caller's protocol is told is what
it is told natively.
"""

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener
from twisted.internet.protocol import ClientFactory
from zope.interface import implementer

from connpool.pool import ConnectionPool, PooledEndpoint
from tests.helpers.waiting import bounded, until
from tests.pool.servers import Server, makeAuthority
from tests.pool.test_fakes import HalfTelling, Telling


@implementer(IHandshakeListener)
class Shaken(Telling):
    """
    Wants to know about the handshake.
    """

    def handshakeCompleted(self):
        self.story.append(f"shaken {self.transport.getPeerCertificate() is not None}")


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class Everything(HalfTelling, Shaken):
    """
    Wants to know everything.
    """


async def stories(protocol, *, secured, act, last):
    """
    @return: what the protocol is told natively, and on a parked connection.
    """
    authority = makeAuthority() if secured else None
    server = await Server(greeting=b"220 hello\r\n").start(authority)
    native = await story(server, server.endpoint(authority), protocol, act, last)
    pooled = PooledEndpoint(reactor, server.endpoint(authority), minIdle=1)
    await bounded(pooled.pool.whenReady(1))
    await until(lambda: len(server.live) == 1)
    parked = await story(server, pooled, protocol, act, last)
    await bounded(pooled.pool.close(0))
    await until(lambda: not server.live)
    await server.stop()
    return native, parked


async def story(server, endpoint, protocol, act, last):
    """
    @return: what C{protocol} is told when C{act} happens at the other end.
    """
    before = list(server.live)
    factory = ClientFactory.forProtocol(protocol)
    factory.noisy = False
    connected = await bounded(endpoint.connect(factory))
    assert connected.story[0] == "made"
    await until(lambda: b"220 hello\r\n" in connected.story)
    peer = before[0] if before else server.live[-1]
    act(peer.transport)
    await until(lambda: last in connected.story)
    told = list(connected.story)
    if "Connection" not in told[-1]:
        connected.transport.abortConnection()
    await until(lambda: "Connection" in str(connected.story[-1]))
    await until(lambda: peer not in server.live)
    return told


@pytest.mark.parametrize(
    ("protocol", "secured"),
    # over TCP Twisted's own endpoints forget half-closing for Everything
    [(each, secured) for each in (Telling, HalfTelling, Shaken) for secured in (False, True)]
    + [(Everything, True)],
)
@pytest_twisted.ensureDeferred
async def test_theEndOfTheConnection(protocol, secured):
    half = issubclass(protocol, HalfTelling) and not secured
    native, parked = await stories(
        protocol,
        secured=secured,
        act=lambda peer: peer.loseConnection(),
        last="read lost" if half else "ConnectionDone",
    )
    assert parked == native
    assert ("shaken True" in native) is (secured and issubclass(protocol, Shaken))


@pytest.mark.parametrize("protocol", [Telling, HalfTelling])
@pytest_twisted.ensureDeferred
async def test_theEndOfOneDirection(protocol):
    native, parked = await stories(
        protocol,
        secured=False,
        act=lambda peer: peer.loseWriteConnection(),
        last="read lost" if protocol is HalfTelling else "ConnectionDone",
    )
    assert parked == native


@pytest_twisted.ensureDeferred
async def test_aReset():
    native, parked = await stories(
        Telling,
        secured=False,
        act=lambda peer: peer.abortConnection(),
        last="ConnectionLost",
    )
    assert parked == native


@pytest_twisted.ensureDeferred
async def test_theStringDialsAheadAndItsPoolIsShared():
    server = await Server().start()
    text = f"pool:tcp:127.0.0.1:{server.number}:poolMin=2:poolMax=4"
    factory = ClientFactory.forProtocol(Telling)
    factory.noisy = False
    first = await bounded(clientFromString(reactor, text).connect(factory))
    await until(lambda: len(server.live) == 3)
    second = await bounded(clientFromString(reactor, text).connect(factory))
    await until(lambda: len(server.live) == 4)
    assert server.most == 4
    for each in (first, second):
        each.transport.loseConnection()
        await until(lambda each=each: each.story[-1] == "ConnectionDone")
    from connpool.pool import strings

    (endpoint,) = strings._shared[reactor].values()
    await bounded(endpoint.pool.close(0))
    strings._shared[reactor].clear()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_aPoolHearsTheEndOfOneDirectionWhoeverHasTheConnection():
    server = await Server().start()
    factory = ClientFactory.forProtocol(HalfTelling)
    factory.noisy = False
    pool = ConnectionPool(reactor, server.endpoint(), factory)
    lease = await bounded(pool.acquire())
    await until(lambda: server.live)
    server.live[0].transport.loseWriteConnection()
    await until(lambda: lease.protocol.story[-1] == "read lost")
    lease.discard()
    await until(lambda: not server.live)
    (await bounded(pool.acquire())).release()
    await until(lambda: server.live)
    server.live[0].transport.loseWriteConnection()
    await until(lambda: pool.stats().idle == 0)
    assert pool.stats().closed == {"discarded": 1, "peer": 1}
    await bounded(pool.close())
    await server.stop()
