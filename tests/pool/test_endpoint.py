"""
Parked transports, and the C{pool:} string.
"""

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectError, NoProtocol
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import ClientFactory, Factory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from zope.interface.verify import verifyObject

from connpool.interfaces import IPoolable, ISingleUseEndpoint
from connpool.pool import AcquireTimeout, ConnectionPool, PoolDown, PooledEndpoint
from connpool.pool.endpoint import GREETING_BYTES, _Parked
from connpool.pool.sizing import LULL_SECONDS
from connpool.pool.strings import KEYS, parsePool, quote
from connpool.testing import FakeEndpoint
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.pool.building import Echoing


class Counted(ClientFactory):
    """
    Counts what is done with it.
    """

    protocol = Echoing
    noisy = False

    def __init__(self):
        self.starts = self.stops = 0

    def startFactory(self):
        self.starts += 1

    def stopFactory(self):
        self.stops += 1


class Parking:
    """
    A pooled endpoint on a clock.
    """

    def __init__(self, answer="accept", **limits):
        self.clock = Clock()
        self.wrapped = FakeEndpoint(self.clock, answer)
        limits.setdefault("backoff", lambda failures: 1.0 * failures)
        self.endpoint = PooledEndpoint(self.clock, self.wrapped, **limits)
        self.factory = Counted()

    def connect(self):
        return successResultOf(self.endpoint.connect(self.factory))

    def end(self):
        closed = self.endpoint.pool.close(0)
        self.clock.pump([0, 10, 10])
        successResultOf(closed)
        assert self.clock.getDelayedCalls() == []
        assert self.wrapped.opened == 0


def test_theProtocolIsBuiltOnATransportMadeAheadOfTime():
    parking = Parking(minIdle=2, maxSize=8)
    assert parking.wrapped.attempts == []  # nothing before the first connect
    first = parking.connect()
    assert first.made == 1
    assert parking.endpoint.pool.stats().idle == 2
    dialled = len(parking.wrapped.attempts)
    parking.wrapped.answer = "hold"
    assert parking.connect().made == 1  # no dial was waited for
    assert parking.connect().made == 1
    assert len(parking.wrapped.attempts) >= dialled
    parking.end()


def test_everyConnectionServesOneProtocolOnly():
    parking = Parking()
    transports = set()
    for _ in range(20):
        protocol = parking.connect()
        assert protocol.transport not in transports
        transports.add(protocol.transport)
        protocol.transport.loseConnection()
        parking.clock.advance(0)
        assert len(protocol.lost) == 1
    assert parking.endpoint.pool.stats().leased == 0
    assert (parking.factory.starts, parking.factory.stops) == (20, 20)
    parking.end()


def test_theLeaseEndsWithTheConnection():
    parking = Parking(maxSize=2, minIdle=0, acquireTimeout=5.0)
    first, _second = parking.connect(), parking.connect()
    waiting = parking.endpoint.connect(parking.factory)
    assertNoResult(waiting)
    first.transport.loseConnection()
    parking.clock.advance(0)
    successResultOf(waiting)
    late = parking.endpoint.connect(parking.factory)
    parking.clock.advance(5)
    failureResultOf(late, AcquireTimeout)
    parking.end()


def test_aGreetingIsReplayedInTheNextTurn():
    parking = Parking()
    parking.connect()
    parked = parking.wrapped.transports[-1]
    parked.receive(b"220 ")
    parked.receive(b"ready\r\n")
    protocol = parking.connect()
    assert protocol.transport is parked
    assert protocol.received == b""
    parked.receive(b"later")
    parking.clock.advance(0)
    assert protocol.received == b"220 ready\r\nlater"
    parked.receive(b"!")
    assert protocol.received.endswith(b"later!")
    parking.end()


def test_aGreetingBeforeTheEndComesBeforeTheEnd():
    parking = Parking()
    parking.connect()
    parked = parking.wrapped.transports[-1]
    parked.receive(b"421 go away")
    protocol = parking.connect()
    parked.finish()
    assert protocol.received == b"421 go away"
    assert len(protocol.lost) == 1
    parking.clock.advance(0)
    assert protocol.received == b"421 go away"
    parking.end()


@pytest.mark.parametrize(("count", "kept"), [(GREETING_BYTES, True), (GREETING_BYTES + 1, False)])
def test_aGreetingHasALimit(count, kept):
    parking = Parking()
    parking.connect()
    parked = parking.wrapped.transports[-1]
    parked.receive(b"x" * count)
    protocol = parking.connect()
    assert (protocol.transport is parked) is kept
    parking.end()


def test_whatDiesWhileItIsParkedIsReplaced():
    parking = Parking()
    parking.connect()
    for end in ("finish", "endReading", "loseConnection"):
        parked = parking.wrapped.transports[-1]
        getattr(parked, end)()
        parking.clock.advance(LULL_SECONDS)
        assert parking.endpoint.pool.stats().idle == 1
        assert parking.connect().transport is not parked
    parking.end()


def test_aParkedTransportIsReplacedBeforeItIsOld():
    parking = Parking(idleTimeout=10.0, lifetimeJitter=0.0)
    leased = parking.connect()
    parked = parking.wrapped.transports[-1]
    dialled = len(parking.wrapped.attempts)
    parking.clock.advance(10.0)
    parking.clock.advance(0)
    assert not parked.connected
    assert parking.endpoint.pool.stats().idle == 1
    # the one in use is not replaced, and not closed
    assert leased.transport.connected
    assert len(parking.wrapped.attempts) == dialled + 1
    parking.end()


def test_theErrorIsTheWrappedEndpoints():
    parking = Parking("refuse")
    for _ in range(2):
        failureResultOf(parking.endpoint.connect(parking.factory), ConnectError)
    assert len(parking.wrapped.attempts) == 1
    assert (parking.factory.starts, parking.factory.stops) == (2, 2)
    parking.end()


def test_aBlackHoleIsThePoolsTimeout():
    parking = Parking("hold", connectTimeout=2.0)
    first = parking.endpoint.connect(parking.factory)
    parking.clock.advance(2.0)
    failureResultOf(first)
    failureResultOf(parking.endpoint.connect(parking.factory), PoolDown)
    parking.end()


def test_aFactoryThatRefusesOrRaisesCostsNoSlot():
    parking = Parking(maxSize=1, minIdle=0)
    parking.factory.buildProtocol = lambda _: None
    failureResultOf(parking.endpoint.connect(parking.factory), NoProtocol)
    parking.factory.buildProtocol = lambda _: 1 / 0
    parking.clock.advance(0)
    failureResultOf(parking.endpoint.connect(parking.factory), ZeroDivisionError)
    parking.clock.advance(0)
    assert parking.endpoint.pool.stats().leased == 0
    parking.end()


def test_aProtocolThatRaisesWhenItIsConnectedCostsNoSlot():
    class Broken(Echoing):
        def connectionMade(self):
            raise ZeroDivisionError

    parking = Parking(maxSize=1, minIdle=0)
    parking.factory.protocol = Broken
    failureResultOf(parking.endpoint.connect(parking.factory), ZeroDivisionError)
    parking.clock.advance(0)
    assert parking.endpoint.pool.stats().size == 0
    assert (parking.factory.starts, parking.factory.stops) == (1, 1)
    parking.factory.protocol = Echoing
    parking.connect()
    parking.end()


def test_aDestinationThatIsDownIsToldAlthoughSomebodyIsConnected():
    parking = Parking(minIdle=0)
    parking.connect()
    parking.wrapped.answer = "refuse"
    for _ in range(2):
        failureResultOf(parking.endpoint.connect(parking.factory), ConnectError)
    parking.end()


def test_closingLeavesConnectionsInUseToTheirProtocols():
    parking = Parking()
    protocol = parking.connect()
    closed = parking.endpoint.close()
    parking.clock.advance(0)
    assert successResultOf(closed) is None
    assert parking.wrapped.opened == 1
    parking.wrapped.transports[0].receive(b"still mine")
    assert protocol.received == b"still mine"
    protocol.transport.loseConnection()
    parking.clock.advance(0)
    assert len(protocol.lost) == 1
    assert parking.clock.getDelayedCalls() == []


def test_connectCanBeCancelled():
    parking = Parking("hold")
    connecting = parking.endpoint.connect(parking.factory)
    connecting.cancel()
    failureResultOf(connecting)
    next(iter(parking.wrapped.pending)).succeed()
    assert parking.endpoint.pool.stats().idle == 1
    parking.end()


def test_interfaces():
    clock = Clock()
    assert verifyObject(IStreamClientEndpoint, PooledEndpoint(clock, FakeEndpoint(clock)))
    assert verifyObject(IStreamClientEndpoint, parsePool(MemoryReactorClock(), "tcp", "h", "1"))
    assert verifyObject(IPoolable, _Parked())


def test_anEndpointThatSpeaksForOneClientIsNotReused():
    clock = Clock()
    endpoint = FakeEndpoint(clock)
    from zope.interface import directlyProvides

    directlyProvides(endpoint, IStreamClientEndpoint, ISingleUseEndpoint)
    factory = Factory.forProtocol(Echoing)
    with pytest.raises(ValueError, match="maxUses"):
        ConnectionPool(clock, endpoint, factory)
    assert ConnectionPool(clock, endpoint, factory, maxUses=1).settings.maxUses == 1
    assert PooledEndpoint(clock, endpoint).pool.settings.maxUses == 1


# -- the string


def fired(reactor, event="shutdown"):
    """
    Run the triggers, as a stopping reactor does.
    """
    return [
        call(*args, **kwargs)
        for phase, event_, call, args, kwargs in getattr(reactor, "triggered", [])
        if (phase, event_) == ("before", event)
    ]


class Stopping(MemoryReactorClock):
    """
    Remembers its triggers with their arguments.
    """

    def __init__(self):
        super().__init__()
        self.triggered = []

    def addSystemEventTrigger(self, phase, event, call, *args, **kwargs):
        self.triggered.append((phase, event, call, args, kwargs))


def test_theStringIsFoundByTwisted():
    reactor = Stopping()
    endpoint = clientFromString(
        reactor, "pool:tcp:127.0.0.1:5432:timeout=7:poolMin=2:poolMax=3:poolIdle=20"
    )
    assert reactor.tcpClients == []
    connecting = endpoint.connect(Counted())
    host, port, _factory, timeout, _bind = reactor.tcpClients[0]
    assert (host, port, timeout) == ("127.0.0.1", 5432, 7)
    assert len(reactor.tcpClients) == 2  # maxConnecting
    assert len(reactor.triggered) == 1
    (closed,) = fired(reactor)
    failureResultOf(connecting)
    assert isinstance(closed, Deferred)


def test_equalStringsShareAPoolOfTheirReactor():
    reactor, other = Stopping(), Stopping()
    text = "pool:tcp:127.0.0.1:5432:poolMax=1"
    for each in (reactor, reactor, other):
        clientFromString(each, text).connect(Counted()).addErrback(lambda _: None)
    clientFromString(reactor, text + ":poolMin=0").connect(Counted()).addErrback(lambda _: None)
    assert len(reactor.tcpClients) == 2
    assert len(other.tcpClients) == 1
    assert len(reactor.triggered) == 2
    fired(reactor)
    fired(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool:tcp:h:1:poolSize=3", "poolSize"),
        ("pool:tcp:h:1:poolMax=many", "poolMax='many'"),
        ("pool:tcp:h:1:poolMax=0", "maxSize=0"),
        ("pool:tcp:h:1:poolMin=5:poolMax=3", "minIdle=5"),
        ("pool:tcp:h:1:poolIdle=nan", "idleTimeout=nan"),
        ("pool:poolMax=3", "wraps an endpoint"),
        ("pool:nosuch:h:1", "nosuch"),
    ],
)
def test_aMistakeInTheStringIsTold(text, message):
    with pytest.raises(ValueError, match=message):
        clientFromString(Stopping(), text)


@pytest.mark.parametrize("name", ["/a:b", "/a=b", "/a\\b", "/a:=\\\\b="])
def test_quotingSurvivesTheRoundTrip(name):
    reactor = Stopping()
    endpoint = clientFromString(reactor, f"pool:unix:{quote(name)}")
    endpoint.connect(Counted()).addErrback(lambda _: None)
    assert reactor.unixClients[0][0] == name
    fired(reactor)


def test_everyKeyOfTheStringIsALimit():
    for key, (limit, _kind) in KEYS.items():
        endpoint = clientFromString(Stopping(), f"pool:tcp:h:1:{key}=7")
        assert endpoint._limits[limit] == 7
