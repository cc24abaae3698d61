"""
What a pool promises, one behaviour a test.
"""

import math
import threading

import pytest
from twisted.application.service import IService
from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    INegotiated,
)
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from zope.interface import directlyProvides, implementer
from zope.interface.verify import verifyClass, verifyObject

from connpool.interfaces import (
    IConnecting,
    IConnectionPool,
    ILease,
    IPoolable,
    IPoolObserver,
    IReadiness,
    IStatsSource,
)
from connpool.pool import (
    AcquireTimeout,
    ConnectFailed,
    ConnectionPool,
    ConnectionPoolService,
    LeaseError,
    Overloaded,
    PoolClosed,
    PoolDown,
    PoolPaused,
    TooManyWaiters,
    exponentialBackoff,
)
from connpool.pool.lease import Lease
from connpool.testing import FakeEndpoint, FakeTransport
from tests.helpers.cost import calls
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.pool.building import Echoing, Setup
from tests.pool.test_bugs import Poolable, held, releaseAll, serveInTurn

# -- limits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("maxSize", 0), ("maxSize", -1), ("maxSize", 2.5), ("maxSize", True), ("maxSize", "5"),
        ("minIdle", -1), ("minIdle", 11), ("maxConnecting", 0), ("maxWaiting", -1),
        ("acquireTimeout", -1), ("acquireTimeout", math.nan), ("connectTimeout", 0),
        ("connectTimeout", None), ("connectTimeout", math.inf), ("idleTimeout", 0),
        ("idleTimeout", -3.0), ("maxLifetime", 0), ("lifetimeJitter", 1.5),
        ("lifetimeJitter", -0.1), ("maxUses", 0), ("validateAfterIdle", -1), ("resetTimeout", 0),
        ("closeTimeout", math.nan), ("order", "random"), ("queue", "stack"), ("queueTarget", 0),
        ("queueInterval", -1), ("onDown", "pray"), ("backoff", 3.0), ("leakThreshold", 0),
        ("debug", "yes"), ("tcpKeepAlive", None),
    ],
)  # fmt: skip
def test_anImpossibleLimitIsRefusedByNameValueAndRange(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*must be") as caught:
        Setup(**{name: value})
    assert repr(value) in str(caught.value)
    setup = Setup()
    before = setup.pool.settings
    with pytest.raises(ValueError, match=f"{name}=.*must be"):
        setup.pool.reconfigure(**{name: value})
    assert setup.pool.settings == before


def test_anUnknownLimitIsRefused():
    with pytest.raises(TypeError, match="maxSice"):
        Setup(maxSice=3)


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf])
def test_anImpossibleAcquireTimeoutIsRefused(timeout):
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    with pytest.raises(ValueError, match="timeout="):
        setup.pool.acquire(timeout)
    lease.release()
    setup.end()


def test_noEndpointIsRefused():
    with pytest.raises(ValueError, match="endpoint="):
        ConnectionPool(Clock(), [], Factory())


def test_theBackoffGrowsWithItsJitterAndIsBounded():
    calm = exponentialBackoff(1.0, 30.0, 2.0, jitter=lambda: 1.0)
    assert [calm(n) for n in (1, 2, 3, 4, 5, 6)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert calm(10**9) == 30.0
    low = exponentialBackoff(1.0, 30.0, 2.0, jitter=lambda: 0.0)
    assert [low(1), low(9)] == [0.5, 15.0]


def test_interfaces():
    setup = Setup(maxSize=1)
    assert verifyObject(IConnectionPool, setup.pool)
    assert verifyObject(IStatsSource, setup.pool)
    assert verifyObject(IConnecting, setup.pool)
    (lease,) = held(setup, 1)
    assert verifyObject(ILease, lease)
    lease.release()
    assert verifyClass(ILease, Lease)
    assert verifyObject(IPoolObserver, Recorder())
    assert verifyObject(IPoolable, Poolable())
    service = ConnectionPoolService(setup.pool)
    for interface in (IService, IReadiness, IStatsSource):
        assert verifyObject(interface, service)
    setup.end()


# -- acquire


def test_anAcquireWithTimeoutZeroTakesOnlyWhatIsThere():
    setup = Setup(maxSize=1)
    failureResultOf(setup.pool.acquire(timeout=0), AcquireTimeout)
    assert setup.endpoint.attempts == []
    held(setup, 1)[0].release()
    successResultOf(setup.pool.acquire(timeout=0)).release()
    setup.end()


def test_whoIsServedAtOnceHasNotWaited():
    setup = Setup(maxSize=3, leakThreshold=60.0)  # watched: never calm
    releaseAll(held(setup, 1))
    before = setup.pool.stats().acquiresWaited
    for _ in range(5):
        successResultOf(setup.pool.acquire()).release()
    assert setup.pool.stats().acquires == 6
    assert setup.pool.stats().acquiresWaited == before
    setup.end()


def test_anAcquireThatFindsOneToValidateDoesNotWaitForTheTimer():
    setup = Setup(maxSize=1, protocol=Poolable, validateAfterIdle=5.0)
    releaseAll(held(setup, 1))
    setup.clock.advance(50.0)  # the timer is armed for 10 s from now
    successResultOf(setup.pool.acquire()).release()
    setup.end()


def test_waitersMayCancelEachOther():
    setup = Setup("hold", maxSize=1, debug=True)
    waiting = [setup.pool.acquire() for _ in range(5)]

    def giveUp(reason):
        for each in waiting:
            each.cancel()

    for each in waiting:
        each.addErrback(giveUp)
    setup.end()  # nothing is logged, see the autouse fixture


def test_aCoroutineThatIsClosedGivesBackInTheReactorsThread():
    setup = Setup(maxSize=2)
    from_ = []
    setup.clock.callFromThread = lambda f, *args: from_.append((f, args))
    lease = held(setup, 1)[0]

    async def scoped():
        async with setup.pool.lease():
            await Deferred()

    async def leased():
        async with lease:
            await Deferred()

    for coroutine in (scoped(), leased()):
        coroutine.send(None)
        collector = threading.Thread(target=coroutine.close)
        collector.start()
        collector.join(5)
    assert setup.pool.stats().leased == 2  # nothing happened in that thread
    for f, args in from_:
        f(*args)
    assert setup.pool.stats().leased == 0
    assert setup.pool.stats().closed == {"discarded": 2}
    setup.end()


def test_aConnectionWhosePeerEndedIsForNobodyElse():
    @implementer(IHalfCloseableProtocol)
    class Half(Echoing):
        def readConnectionLost(self):
            pass

        def writeConnectionLost(self):
            pass

    setup = Setup(maxSize=1, protocol=Half)
    (lease,) = held(setup, 1)
    waiting = setup.pool.acquire()
    first = setup.endpoint.transports[0]
    first.endReading()
    assert not first.disconnecting  # who has it may go on
    lease.release()
    assertNoResult(waiting)
    setup.turn()
    successResultOf(waiting).release()
    assert setup.pool.stats().closed == {"peer": 1}
    # while it is prepared, it is a failed dial
    setup.pool.purge()
    setup.pool.shell.prepare = lambda protocol: protocol.transport.endReading() or Deferred()
    setup.turn()
    failureResultOf(setup.pool.acquire(), ConnectFailed)
    setup.turn()
    setup.end()


def test_theQueueIsBoundedButDialsAreNotCounted():
    setup = Setup("hold", maxSize=2, maxWaiting=1)
    dialling = [setup.pool.acquire() for _ in range(2)]
    queued = setup.pool.acquire()
    error = failureResultOf(setup.pool.acquire(), TooManyWaiters)
    assert "maxWaiting=1" in str(error)
    for attempt in setup.pending():
        attempt.succeed()
    for waiter in (*dialling, queued):
        successResultOf(waiter).release()
    setup.end()


def test_maxWaitingZeroStillDials():
    setup = Setup(maxSize=1, maxWaiting=0)
    (lease,) = held(setup, 1)
    failureResultOf(setup.pool.acquire(), TooManyWaiters)
    lease.release()
    held(setup, 1)[0].release()
    setup.end()


def test_tryAcquireNeverDialsNorWaits():
    setup = Setup()
    assert setup.pool.tryAcquire() is None
    assert setup.endpoint.attempts == []
    held(setup, 1)[0].release()
    lease = setup.pool.tryAcquire()
    assert lease.uses == 2
    assert not lease.released
    lease.release()
    assert lease.released
    setup.end()


def test_aLeaseIsAContextManager():
    setup = Setup(maxSize=1)

    async def use(fails):
        async with await setup.pool.acquire() as protocol:
            assert protocol.made == 1
            if fails:
                raise KeyError

    successResultOf(ensureDeferred(use(False)))
    assert setup.pool.stats().idle == 1
    failureResultOf(ensureDeferred(use(True)), KeyError)
    assert setup.pool.stats().idle == 0
    setup.end()


def test_aScopeCannotBeEnteredTwiceAtOnceButAgain():
    setup = Setup(maxSize=2)
    scope = setup.pool.lease()

    async def twice():
        async with scope, scope:
            pass

    async def again():
        async with scope as one:
            pass
        async with scope as two:
            assert one is two

    failureResultOf(ensureDeferred(twice()), LeaseError)
    setup.turn()
    successResultOf(ensureDeferred(again()))
    setup.end()


def test_leavingByExceptionAsksThePoolable():
    setup = Setup(maxSize=1, protocol=Poolable)

    async def use():
        async with setup.pool.lease() as protocol:
            raise KeyError(protocol)

    failureResultOf(ensureDeferred(use()), KeyError)
    assert setup.pool.stats().idle == 1  # it said it was reusable
    (lease,) = held(setup, 1)
    lease.protocol.reusable = False
    lease.release()
    assert setup.pool.stats().idle == 0
    setup.end()


def test_detachFreesTheSlotAndKeepsTheConnection():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    protocol = lease.detach()
    assert setup.pool.stats().size == 0
    held(setup, 1)[0].release()
    setup.endpoint.transports[0].receive(b"mine")
    assert protocol.received == b"mine"
    setup.endpoint.transports[0].finish()
    assert len(protocol.lost) == 1
    assert setup.pool.stats().closed == {"detached": 1}
    setup.end()


def test_aLostConnectionCannotBeDetached():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    setup.endpoint.transports[0].finish()
    with pytest.raises(LeaseError):
        lease.detach()
    setup.end()


# -- becoming ready


@pytest.mark.parametrize("prepare", [lambda p: None, lambda p: succeed(p.made)])
def test_prepareRunsBeforeTheFirstLease(prepare):
    prepared = []
    setup = Setup(prepare=lambda protocol: (prepared.append(protocol), prepare(protocol))[1])
    (lease,) = held(setup, 1)
    assert prepared == [lease.protocol]
    lease.release()
    held(setup, 1)[0].release()
    assert len(prepared) == 1
    setup.end()


def test_prepareMayBeACoroutineFunction():
    gate = Deferred()

    async def prepare(protocol):
        await gate

    setup = Setup(prepare=prepare)
    waiter = setup.pool.acquire()
    assertNoResult(waiter)
    assert setup.pool.stats().connecting == 1
    gate.callback(None)
    successResultOf(waiter).release()
    setup.end()


def test_aFailingPrepareIsAFailedDial():
    setup = Setup(prepare=lambda _: fail(KeyError("wrong password")), maxSize=1)
    error = failureResultOf(setup.pool.acquire(), ConnectFailed)
    assert "wrong password" in str(error)
    assert isinstance(error.__cause__, KeyError)
    setup.turn()
    assert setup.endpoint.opened == 0
    setup.end()


@pytest.mark.parametrize("closes", ["connectionMade", "prepare"])
def test_aConnectionThatItsProtocolClosedIsAFailedDial(closes):
    def hangUp(protocol):
        protocol.transport.loseConnection()

    class Shy(Echoing):
        connectionMade = hangUp

    setup = Setup(protocol=Shy if closes == "connectionMade" else Echoing)
    setup.pool.shell.prepare = hangUp if closes == "prepare" else None
    failureResultOf(setup.pool.acquire(), ConnectFailed)
    setup.turn()
    failureResultOf(setup.pool.acquire(), PoolDown)
    assert len(setup.endpoint.attempts) == 1
    setup.end()


def test_anObserverMayCloseWhatIsDetached():
    class Closing(Recorder):
        def released(self, *_):
            setup.endpoint.transports[0].finish()

    setup = Setup(maxSize=1, observers=[Closing()])
    (lease,) = held(setup, 1)
    protocol = lease.detach()
    assert len(protocol.lost) == 1
    assert setup.pool.stats().closed == {"detached": 1}
    setup.end()


@pytest.mark.parametrize("stage", ["connect", "handshake", "prepare"])
def test_connectTimeoutCoversConnectHandshakeAndPrepare(stage):
    class Secure(FakeTransport):
        pass

    setup = Setup("hold", connectTimeout=3.0, prepare=lambda _: Deferred(), maxSize=1)
    waiter = setup.pool.acquire()
    setup.clock.advance(1.0)
    attempt = setup.pending()[0]
    if stage != "connect":
        if stage == "handshake":
            secure(setup.endpoint)
        attempt.succeed()
    setup.clock.advance(1.9)
    assertNoResult(waiter)
    setup.clock.advance(0.1)
    error = failureResultOf(waiter, ConnectFailed)
    assert "within 3 s" in str(error)
    setup.turn()
    assert setup.pool.stats().size == 0
    setup.end()


def secure(endpoint):
    """
    Let the endpoint's transports be TLS ones.
    """
    open_ = endpoint.open

    def openSecurely():
        transport = open_()
        directlyProvides(transport, INegotiated)
        return transport

    endpoint.open = openSecurely


def test_aTLSConnectionIsReadyAfterItsHandshake():
    @implementer(IHandshakeListener)
    class Listening(Echoing):
        shaken = 0

        def handshakeCompleted(self):
            self.shaken += 1

    prepared = []
    setup = Setup(protocol=Listening, prepare=prepared.append)
    secure(setup.endpoint)
    waiter = setup.pool.acquire()
    assertNoResult(waiter)
    assert prepared == []
    guard = setup.endpoint.transports[0].protocol
    # what an endpoint wraps around factories asks for this interface
    assert IHandshakeListener.providedBy(guard)
    guard.handshakeCompleted()
    lease = successResultOf(waiter)
    assert prepared == [lease.protocol]
    assert lease.protocol.shaken == 1
    guard.handshakeCompleted()  # a renegotiation
    assert lease.protocol.shaken == 2
    lease.release()
    setup.end()


def test_aFailedHandshakeIsAFailedDial():
    setup = Setup(maxSize=1)
    secure(setup.endpoint)
    waiter = setup.pool.acquire()
    setup.endpoint.transports[0].finish(ValueError("certificate verify failed"))
    error = failureResultOf(waiter, ConnectFailed)
    assert "certificate verify failed" in str(error)
    setup.end()


def test_aConnectionLostWhileItIsPreparedIsAFailedDial():
    setup = Setup(maxSize=1, prepare=lambda _: Deferred())
    waiter = setup.pool.acquire()
    setup.endpoint.transports[0].finish()
    failureResultOf(waiter, ConnectFailed)
    setup.end()


def test_anEndpointThatIgnoresTheFactoryIsAFailedDial():
    class Strange(FakeEndpoint):
        def connect(self, factory):
            return succeed(object())

    clock = Clock()
    pool = ConnectionPool(clock, Strange(clock), Factory.forProtocol(Echoing))
    assert "did not use the factory" in str(failureResultOf(pool.acquire(), ConnectFailed))
    pool.close(0)
    assert clock.getDelayedCalls() == []


def test_aFactoryThatRefusesIsAFailedDial():
    setup = Setup(maxSize=1)
    setup.pool.shell.factory.buildProtocol = lambda _: None
    failureResultOf(setup.pool.acquire(), ConnectFailed)
    setup.end()


def test_keepaliveIsOn():
    for on in (True, False):
        setup = Setup(tcpKeepAlive=on)
        (lease,) = held(setup, 1)
        assert setup.endpoint.transports[0].keepAlive is on
        lease.release()
        setup.end()


# -- fail over


def test_theNextEndpointIsDialledWhenTheFirstIsDown():
    setup = Setup(endpoints=2, maxSize=4)
    first, second = setup.endpoints
    first.answer = "refuse"
    (lease,) = held(setup, 1)
    assert lease.protocol.transport in second.transports
    lease.discard()
    setup.turn()
    held(setup, 1)[0].release()
    assert len(first.attempts) == 1  # its back-off is respected
    first.answer = "accept"
    setup.clock.advance(100)  # nothing is left, so nobody looks
    held(setup, 1)[0].release()
    setup.clock.advance(2)  # a probe answered, and its connection has lasted
    (lease,) = held(setup, 1)
    assert lease.protocol.transport in first.transports
    lease.release()
    setup.end()


def test_anAcquireFailsWhenAllEndpointsAreDown():
    setup = Setup("refuse", endpoints=3)
    failureResultOf(setup.pool.acquire(), ConnectFailed)
    assert [len(each.attempts) for each in setup.endpoints] == [1, 1, 1]
    assert setup.pool.stats().down
    assert not setup.endpoint.opened
    setup.end()


def test_aFailedGrowthDialIsNoOutage():
    setup = Setup(maxSize=3)
    (lease,) = held(setup, 1)
    setup.endpoint.answer = "refuse"
    waiting = [setup.pool.acquire(), setup.pool.acquire(timeout=0.5)]
    for each in waiting:  # there is a live connection: they wait for it
        assertNoResult(each)
    assert not setup.pool.stats().down
    setup.clock.advance(0.5)
    error = failureResultOf(waiting[1], AcquireTimeout)
    assert isinstance(error.__cause__, ConnectError)
    lease.release()
    successResultOf(waiting[0]).release()
    setup.end()


# -- idle, order, uses, validation


def test_maxUsesClosesAfterSoManyLeases():
    setup = Setup(maxSize=1, maxUses=3)
    numbers = []
    for _ in range(7):
        waiter = setup.pool.acquire()
        setup.turn()
        lease = successResultOf(waiter)
        numbers.append(lease.number)
        lease.release()
    assert numbers == [1, 1, 1, 2, 2, 2, 3]
    assert setup.pool.stats().closed["uses"] == 2
    setup.end()


@pytest.mark.parametrize("outcome", [True, False, "raise", "never"])
def test_aConnectionIdleForLongIsValidated(outcome):
    setup = Setup(maxSize=1, protocol=Poolable, validateAfterIdle=5.0, resetTimeout=2.0)
    (lease,) = held(setup, 1)
    protocol = lease.protocol
    lease.release()
    setup.clock.advance(4.9)
    protocol.validating = None  # not asked yet
    held(setup, 1)[0].release()
    setup.clock.advance(5.0)
    answer = Deferred()
    protocol.validating = answer
    waiter = setup.pool.acquire()
    assertNoResult(waiter)
    if outcome == "raise":
        answer.errback(KeyError())
    elif outcome == "never":
        setup.clock.advance(2.0)
    else:
        answer.callback(outcome)
    setup.turn()
    lease = successResultOf(waiter)
    assert (lease.protocol is protocol) is (outcome is True)
    assert setup.pool.stats().validateFailures == (outcome is not True)
    lease.release()
    setup.end()


def test_tryAcquireValidatesForTheNextOne():
    setup = Setup(maxSize=1, protocol=Poolable, validateAfterIdle=5.0)
    held(setup, 1)[0].release()
    setup.clock.advance(6.0)
    assert setup.pool.tryAcquire() is None
    lease = setup.pool.tryAcquire()
    assert lease is not None
    lease.release()
    setup.end()


@pytest.mark.parametrize("stubborn", [False, True])
def test_goodbyeIsSaidAndBounded(stubborn):
    setup = Setup(maxSize=1, protocol=Poolable, closeTimeout=2.0)
    (lease,) = held(setup, 1)
    said = lease.protocol.saying = Deferred()
    transport = setup.endpoint.transports[0]
    lease.release()
    setup.pool.purge()
    assert transport.written == b"QUIT"
    assert transport.connected
    assert not transport.disconnecting
    if stubborn:
        setup.clock.advance(2.0)
        setup.turn()
        assert setup.pool.stats().aborted == 1
    else:
        said.callback(None)
        setup.turn()
    assert not transport.connected
    setup.end()


def test_aResetDecidesWhetherTheConnectionIsKept():
    setup = Setup(maxSize=1, protocol=Poolable)
    (lease,) = held(setup, 1)
    first = lease.protocol
    first.resetting = Deferred()
    waiter = setup.pool.acquire()
    lease.release()
    assertNoResult(waiter)
    first.resetting.callback(None)
    lease = successResultOf(waiter)
    assert lease.protocol is first
    first.resetting = fail(KeyError())
    lease.release()
    setup.turn()
    assert setup.pool.stats().resetFailures == 1
    assert setup.pool.stats().idle == 0
    setup.end()


# -- overload


def test_codelShedsWhatWaitedTooLongAndServesTheNewest():
    setup = Setup(
        maxSize=1, queue="codel", queueTarget=0.05, queueInterval=0.5, acquireTimeout=None
    )
    outcomes = []

    def client(number):
        def use(lease):
            outcomes.append((number, "served"))
            setup.clock.callLater(0.1, lease.release)

        def shed(reason):
            reason.trap(Overloaded)
            outcomes.append((number, "shed"))

        setup.pool.acquire().addCallbacks(use, shed)

    for number in range(100):  # twice as many as can be served
        client(number)
        setup.clock.advance(0.05)
    setup.clock.pump([0.05] * 40)
    served = [number for number, what in outcomes if what == "served"]
    shed = [number for number, what in outcomes if what == "shed"]
    assert len(served) + len(shed) == 100
    assert len(served) >= 45
    assert setup.pool.stats().acquiresDropped == len(shed)
    assert served[:8] == sorted(served[:8])  # in order while it may be a burst
    # then who comes does not stand behind who is lost
    assert setup.pool.stats().wait.quantile(0.5) <= 0.6
    setup.end()


def test_codelServesABurstInOrder():
    setup = Setup(maxSize=1, queue="codel", queueTarget=0.05, queueInterval=0.5)
    order = []
    (lease,) = held(setup, 1)
    for number in range(10):
        setup.pool.acquire().addCallback(
            lambda lease, number=number: (order.append(number), lease.release())
        )
    lease.release()
    assert order == list(range(10))
    setup.end()


# -- the pool as a whole


def test_aPausedPoolQueuesOrRefuses():
    setup = Setup(maxSize=1)
    held(setup, 1)[0].release()
    setup.pool.pause()
    waiter = setup.pool.acquire()
    assertNoResult(waiter)
    assert setup.pool.tryAcquire() is None
    setup.pool.resume()
    successResultOf(waiter).release()
    setup.pool.pause(queue=False)
    failureResultOf(setup.pool.acquire(), PoolPaused)
    setup.pool.resume()
    held(setup, 1)[0].release()
    setup.end()


def test_purgeLetsNothingOldBeLeasedAgain():
    setup = Setup(maxSize=3)
    leases = held(setup, 2)
    old = {lease.protocol for lease in leases}
    leases[0].release()
    setup.endpoint.answer = "hold"
    dialling = setup.pool.acquire()
    lease = successResultOf(dialling)
    setup.pool.purge()
    setup.turn()
    assert setup.pool.stats().idle == 0
    lease.release()
    leases[1].release()
    setup.turn()
    assert setup.pool.stats().closed == {"stale": 2}
    setup.endpoint.answer = "accept"
    assert held(setup, 1)[0].protocol not in old
    setup.pool.close(0)
    setup.end()


def test_shrinkingClosesIdleNowAndLeasedOnReturn():
    setup = Setup(maxSize=6)
    leases = held(setup, 6)
    releaseAll(leases[:2])
    setup.pool.reconfigure(maxSize=2)
    setup.turn()
    assert setup.pool.stats().size == 4
    releaseAll(leases[2:])
    setup.turn()
    assert setup.pool.stats().idle == 2
    setup.pool.reconfigure(maxSize=3)
    releaseAll(held(setup, 3))
    setup.end()


def test_reconfigureServesWhoWaits():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    waiter = setup.pool.acquire()
    setup.pool.reconfigure(maxSize=2)
    successResultOf(waiter).release()
    lease.release()
    setup.end()


def test_theQueueKeepsItsWaitersWhenItsKindChanges():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    waiters = [setup.pool.acquire() for _ in range(3)]
    setup.pool.reconfigure(queue="codel")
    serveInTurn(lease, waiters)
    setup.end()


def test_drainServesWhoWaitsAndThenCloses():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    waiter = setup.pool.acquire()
    drained = setup.pool.drain()
    failureResultOf(setup.pool.acquire(), PoolClosed)
    assert setup.pool.tryAcquire() is None
    lease.release()
    last = successResultOf(waiter)
    assertNoResult(drained)
    last.release()
    setup.turn()
    assert successResultOf(drained) is None
    assert setup.clock.getDelayedCalls() == []


def test_theShorterDrainHolds():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    ends = [setup.pool.drain(), setup.pool.drain(1.0), setup.pool.drain(50.0)]
    setup.clock.pump([1.0, 0.0])
    for each in ends:
        successResultOf(each)
    lease.release()
    assert setup.clock.getDelayedCalls() == []


def test_drainAbortsLeasesAfterItsTimeout():
    setup = Setup(maxSize=2)
    first, second = held(setup, 2)
    drained = setup.pool.drain(3.0)
    setup.clock.advance(3.0)
    setup.turn()
    assert successResultOf(drained) is None
    assert first.protocol.lost
    first.release()
    second.release()


def test_closeGivesLeasesTheirTime():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    waiter = setup.pool.acquire()
    closed = setup.pool.close(10.0)
    failureResultOf(waiter, PoolClosed)
    setup.clock.advance(9.0)
    assert not lease.protocol.lost
    lease.release()
    setup.turn()
    assert successResultOf(closed) is None
    assert setup.clock.getDelayedCalls() == []


def test_moreThanThereCanBeIsNeverReady():
    with pytest.raises(ValueError, match="at most maxSize=2"):
        Setup(maxSize=2).pool.whenReady(3)


def test_whenReadyTellsAndTimesOut():
    setup = Setup("hold", minIdle=2)
    ready = setup.pool.whenReady(1)
    late = setup.pool.whenReady(timeout=3.0)
    setup.pending()[0].succeed()
    assert successResultOf(ready) is None
    setup.clock.advance(3.0)
    failureResultOf(late, AcquireTimeout)
    cancelled = setup.pool.whenReady(5)
    cancelled.cancel()
    failureResultOf(cancelled)
    assert setup.core.supply.warm == 0
    never = setup.pool.whenReady(5)
    setup.end()
    failureResultOf(never, PoolClosed)


def test_whenReadyDialsForThatAndOnDespiteFailures():
    setup = Setup("refuse")
    ready = setup.pool.whenReady(3)
    setup.clock.advance(5.0)
    assertNoResult(ready)
    setup.endpoint.answer = "accept"
    setup.clock.advance(10.0)
    assert successResultOf(ready) is None
    assert setup.pool.stats().idle == 3
    setup.end()


def test_theServiceWarmsAndDrains():
    setup = Setup(minIdle=2)
    service = ConnectionPoolService(setup.pool, drainTimeout=5.0)
    assert service.trouble() is None
    service.startService()
    assert service.stats().idle == 2
    (lease,) = held(setup, 1)
    stopped = service.stopService()
    assertNoResult(stopped)
    lease.release()
    setup.turn()
    assert successResultOf(stopped) is None


def test_theServiceSaysWhenItsDestinationIsDown():
    setup = Setup("refuse", minIdle=1)
    service = ConnectionPoolService(setup.pool)
    service.startService()
    assert "cannot reach" in service.trouble()
    successResultOf(service.stopService())


# -- seeing


@implementer(IPoolObserver)
class Recorder:
    """
    Writes down everything.
    """

    def __init__(self):
        self.events = []

    def connectionCreated(self, pool, number):
        self.events.append(f"created {number}")

    def connectionReady(self, pool, number, seconds):
        self.events.append(f"ready {number} after {seconds:g}")

    def connectionClosed(self, pool, number, reason):
        self.events.append(f"closed {number}: {reason}")

    def acquireStarted(self, pool):
        self.events.append("acquire")

    def acquired(self, pool, number, seconds):
        self.events.append(f"acquired {number} after {seconds:g}")

    def acquireFailed(self, pool, error, seconds):
        self.events.append(f"acquire failed: {type(error).__name__} after {seconds:g}")

    def released(self, pool, number, seconds):
        self.events.append(f"released {number} after {seconds:g}")

    def leakSuspected(self, pool, number, where, seconds):
        self.events.append(f"leak {number} after {seconds:g}")

    def poolPurged(self, pool, generation):
        self.events.append(f"purged {generation}")

    def poolPaused(self, pool):
        self.events.append("paused")

    def poolResumed(self, pool):
        self.events.append("resumed")

    def poolClosed(self, pool):
        self.events.append("pool closed")


def test_anObserverSeesEverything():
    recorder = Recorder()
    setup = Setup("hold", maxSize=1, observers=[recorder], leakThreshold=3.0, idleTimeout=10.0)
    waiter = setup.pool.acquire(timeout=60.0)
    setup.clock.advance(1.0)
    setup.pending()[0].succeed()
    lease = successResultOf(waiter)
    setup.clock.advance(3.0)
    lease.release()
    late = setup.pool.tryAcquire()
    failing = setup.pool.acquire(timeout=0.5)
    setup.clock.advance(0.5)
    failureResultOf(failing)
    late.discard()
    setup.turn()
    setup.pool.purge()
    setup.pool.pause()
    setup.pool.resume()
    setup.pool.close()
    setup.turn()
    assert recorder.events == [
        "acquire", "created 1", "ready 1 after 1", "acquired 1 after 1", "leak 1 after 3",
        "released 1 after 3", "acquired 1 after 0", "acquire",
        "acquire failed: AcquireTimeout after 0.5", "released 1 after 0.5",
        "closed 1: discarded", "purged 1", "paused", "resumed", "pool closed",
    ]  # fmt: skip


def test_aBrokenObserverHarmsNothing(expectFailure):
    expectFailure(AttributeError)

    @implementer(IPoolObserver)
    class Broken:
        pass

    setup = Setup(observers=[Broken()])
    held(setup, 1)[0].release()
    setup.end()


def test_whatIsNoObserverIsRefused():
    with pytest.raises(TypeError):
        Setup(observers=[object()])


def test_aLongLeaseIsLoggedAndAgainWhenItComesBack(caplogs):
    setup = Setup(leakThreshold=5.0)
    (lease,) = held(setup, 1)
    setup.clock.advance(5.0)
    (text,) = [text for text in caplogs() if "is held for" in text]
    assert "test_bugs.py" in text  # where held() acquires
    setup.clock.advance(2.0)
    lease.release()
    assert any("came back after 7 s" in text for text in caplogs())
    assert setup.pool.stats().leaksSuspected == 1
    setup.end()


def test_debugShowsWhereALeaseWasGivenBackFirst():
    setup = Setup(debug=True)
    (lease,) = held(setup, 1)
    releaseAll([lease])
    with pytest.raises(LeaseError, match="releaseAll"):
        lease.release()
    with pytest.raises(LeaseError, match="releaseAll"):
        _ = lease.protocol
    setup.end()


def test_explainSaysWhySomebodyWaits():
    setup = Setup("hold", maxSize=1)
    waiter = setup.pool.acquire()
    assert "1 dials are on their way" in setup.pool.explain()
    assert "test_pool.py" in setup.pool.explain()
    setup.pending()[0].succeed()
    lease = successResultOf(waiter)
    setup.pool.acquire().addErrback(lambda _: None)
    assert "all connections are leased" in setup.pool.explain()
    assert "longest lease" in setup.pool.explain()
    setup.pool.pause()
    assert "the pool is paused" in setup.pool.explain()
    setup.pool.resume()
    setup.endpoint.transports[0].stubborn = True
    lease.discard()
    assert "still closing" in setup.pool.explain()
    setup.end()
    down = Setup("refuse", onDown="wait")
    down.pool.acquire().addErrback(lambda _: None)
    assert "the destination is down" in down.pool.explain()
    assert "dialled again in" in down.pool.explain()
    down.end()


def test_statsCount():
    setup = Setup(maxSize=2)
    one, two = held(setup, 2)
    waiter = setup.pool.acquire()
    setup.clock.advance(2.0)
    one.release()
    successResultOf(waiter).discard()
    two.detach().transport.loseConnection()
    setup.turn()
    stats = setup.pool.stats()
    assert (stats.acquires, stats.releases, stats.discards, stats.detaches) == (3, 1, 1, 1)
    assert stats.dials == 2
    assert stats.waitMost == 2.0
    assert stats.use.count == 2
    assert stats.wait.quantile(1.0) >= 2.0
    assert stats.dial.count == 2
    assert stats.closed == {"discarded": 1, "detached": 1}
    setup.end()
    gauges = {"size", "leased", "idle", "connecting", "checking", "closing", "waiting", "maxSize"}
    assert gauges <= stats.GAUGES


def test_aLeaseIsNoLeakAnyMoreWhenTheThresholdIsTakenAway():
    setup = Setup(leakThreshold=5.0)
    (lease,) = held(setup, 1)
    setup.pool.reconfigure(leakThreshold=None)
    lease.release()
    setup.clock.advance(6.0)
    assert setup.pool.stats().idle == 1
    setup.pool.tryAcquire().release()
    setup.end()


# -- cost


def test_theHotPathCallsFewFunctions():
    setup = Setup(maxSize=10)
    releaseAll(held(setup, 10))

    def tryAcquire():
        setup.pool.tryAcquire().release()

    def acquire():
        setup.pool.acquire().addCallback(Lease.release)

    def scope():
        async def use():
            async with setup.pool.lease():
                pass

        with pytest.raises(StopIteration):
            use().send(None)

    def nothing():
        async def use():
            pass

        with pytest.raises(StopIteration):
            use().send(None)

    for action in (tryAcquire, acquire, scope):
        action()
    timers = setup.clock.getDelayedCalls()
    assert len(timers) == 1
    assert calls(tryAcquire) <= 22
    assert calls(scope) - calls(nothing) <= 22
    assert calls(acquire) <= 34
    assert setup.clock.getDelayedCalls() == timers
    setup.end()


def test_waitingAndBeingServedCallFewFunctions():
    setup = Setup(maxSize=1, acquireTimeout=30.0)
    (lease,) = held(setup, 1)
    waiters = [setup.pool.acquire()]  # arms the timer
    assert calls(lambda: waiters.append(setup.pool.acquire())) <= 26
    assert calls(lease.release) <= 72
    successResultOf(waiters[0]).release()
    successResultOf(waiters[1]).release()
    setup.end()


def test_aWaiterThatIsDueBeforeTheTimerArmsItEarlier():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    late = setup.pool.acquire(timeout=30.0)
    soon = setup.pool.acquire(timeout=2.0)
    assert len(setup.clock.getDelayedCalls()) == 1
    setup.clock.advance(2.0)
    failureResultOf(soon, AcquireTimeout)
    lease.release()
    successResultOf(late).release()
    setup.end()


@pytest.mark.parametrize("idle", [10, 10_000])
def test_theCostOfAnAcquireDoesNotDependOnThePoolsSize(idle):
    setup = Setup(maxSize=idle, maxConnecting=idle)
    setup.pool.reconfigure(minIdle=idle)
    setup.pool.start()
    assert setup.pool.stats().idle == idle
    assert len(setup.clock.getDelayedCalls()) <= 1
    cost = calls(lambda: setup.pool.tryAcquire().release())
    assert cost <= 22
    setup.pool.reconfigure(minIdle=0)
    for transport in setup.endpoint.transports:
        transport.finish()
    setup.end()


def test_theCostOfAHandOverDoesNotDependOnTheQueue():
    costs = []
    for count in (10, 8_192):
        setup = Setup(maxSize=1, acquireTimeout=30.0)
        (lease,) = held(setup, 1)
        waiters = [setup.pool.acquire() for _ in range(count)]
        costs.append(calls(lease.release))
        lease = successResultOf(waiters[0])
        lease.discard()
        setup.end()
        for waiter in waiters[1:]:
            waiter.addErrback(lambda _: None)
    assert costs[1] <= costs[0] * 1.2


def test_connectErrorsKeepTheirCause():
    setup = Setup("refuse")
    error = failureResultOf(setup.pool.acquire(), ConnectFailed)
    assert isinstance(error.__cause__, ConnectError)
    setup.end()
