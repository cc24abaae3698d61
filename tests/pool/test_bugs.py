"""
Bugs that other pools had, and that this one must not have: one test each, the
number is the bug's in the list this project collected, the name what is proven.
"""

import gc
import itertools

import pytest
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from zope.interface import implementer

from connpool.interfaces import IPoolable
from connpool.pool import (
    AcquireTimeout,
    ConnectFailed,
    ConnectionPool,
    DoubleRelease,
    ForeignLease,
    LeaseReleased,
    PoolClosed,
    PoolDown,
    exponentialBackoff,
)
from connpool.testing import FakeEndpoint
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.pool.building import Echoing, Setup


@implementer(IPoolable)
class Poolable(Echoing):
    """
    Answers what the test sets.
    """

    reusable = True
    resetting = None
    validating = True
    saying = None

    def isReusable(self):
        return self.reusable

    def reset(self):
        return self.resetting

    def validate(self):
        return self.validating

    def idleDataReceived(self, data):
        return data == b"PING"

    def goodbye(self):
        self.transport.write(b"QUIT")
        return self.saying


def held(setup, count):
    return [successResultOf(setup.pool.acquire()) for _ in range(count)]


def releaseAll(leases):
    for lease in leases:
        lease.release()


def serveInTurn(lease, waiters):
    """
    Let each of them have the connection, in their order.
    """
    for waiter in waiters:
        lease.release()
        lease = successResultOf(waiter)
    lease.release()


@pytest.mark.parametrize("cancelled", range(4))
@pytest.mark.parametrize("moment", ["before", "inside", "after"])
def test_01_cancellingAWaiterLosesNoConnection(cancelled, moment):
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    waiters = [setup.pool.acquire() for _ in range(4)]
    served = []

    def use(lease, number):
        served.append(number)
        if moment == "inside" and number == 0:
            waiters[cancelled].cancel()
        setup.check()
        lease.release()

    for number, waiter in enumerate(waiters):
        waiter.addCallbacks(use, lambda reason: reason.trap(CancelledError), (number,))
    if moment == "before":
        waiters[cancelled].cancel()
    lease.release()
    if moment == "after":
        waiters[cancelled].cancel()
    late = moment == "after" or (moment == "inside" and cancelled == 0)
    assert served == [number for number in range(4) if late or number != cancelled]
    setup.check()
    assert setup.pool.stats().idle == 1
    setup.end()


def test_02_cancellingDuringValidationLosesNoConnection():
    setup = Setup(maxSize=1, protocol=Poolable, validateAfterIdle=1.0)
    (lease,) = held(setup, 1)
    protocol = lease.protocol
    lease.release()
    setup.clock.advance(2)
    protocol.validating = Deferred()
    waiter = setup.pool.acquire()
    assert setup.pool.stats().checking == 1
    waiter.cancel()
    failureResultOf(waiter, CancelledError)
    setup.check()
    protocol.validating.callback(True)
    assert setup.pool.stats().idle == 1
    assert successResultOf(setup.pool.acquire()).protocol is protocol
    setup.end()


def test_02_theConnectionIsThePoolsWhileItIsReset():
    setup = Setup(maxSize=1, protocol=Poolable, resetTimeout=3.0)
    (lease,) = held(setup, 1)
    lease.protocol.resetting = Deferred()
    lease.release()
    assert setup.pool.stats().checking == 1
    setup.clock.advance(3)
    setup.turn()
    assert setup.pool.stats().resetFailures == 1
    assert setup.pool.stats().size == 0
    setup.end()


class Answering(Echoing):
    """
    A client whose server answers one request at a time, late.
    """

    def ask(self, question):
        self.answer = Deferred()
        self.transport.write(question)
        return self.answer

    def dataReceived(self, data):
        answer, self.answer = self.answer, None
        answer.callback(data)


def test_03_anAbandonedRequestsAnswerReachesNobodyElse():
    setup = Setup(maxSize=1, protocol=Answering)

    async def ask(question):
        async with setup.pool.lease() as protocol:
            return await protocol.ask(question)

    for round_ in range(50):
        abandoned = ensureDeferred(ask(b"first"))
        first = setup.endpoint.transports[-1]
        abandoned.cancel()
        failureResultOf(abandoned, CancelledError)
        first.receive(b"answer to first")
        second = ensureDeferred(ask(b"second"))
        setup.turn()
        setup.endpoint.transports[-1].receive(b"answer to second")
        assert successResultOf(second) == b"answer to second", round_
        setup.check()
    setup.end()


@pytest.mark.parametrize("stage", ["connect", "prepare"])
def test_04_aCancelledDialFreesItsSlot(stage):
    prepared = Deferred()
    setup = Setup("hold", maxSize=1, prepare=lambda _: prepared, connectTimeout=5.0)
    waiter = setup.pool.acquire()
    if stage == "prepare":
        setup.pending()[0].succeed()
    setup.pool.purge()
    setup.turn()
    setup.check()
    assert setup.endpoint.opened == 0
    waiter.cancel()
    failureResultOf(waiter)
    setup.clock.advance(60)
    setup.turn()
    assert setup.pool.stats().size == 0
    setup.end()


def test_05_aDialOutlivesItsImpatientWaiter():
    setup = Setup("hold", maxSize=1, acquireTimeout=0.1)
    for _ in range(2):
        waiter = setup.pool.acquire()
        setup.clock.advance(0.1)
        failureResultOf(waiter, AcquireTimeout)
    setup.clock.advance(0.8)
    setup.pending()[0].succeed()
    setup.clock.advance(0.1)
    third = successResultOf(setup.pool.acquire())
    assert len(setup.endpoint.attempts) == 1
    third.release()
    setup.end()


def test_06_aFailedDialReachesItsWaiters():
    setup = Setup("refuse", maxSize=5, backoff=lambda failures: 10.0)
    waiters = [setup.pool.acquire() for _ in range(20)]
    for waiter in waiters:
        failureResultOf(waiter, ConnectFailed, PoolDown)
    assert len(setup.endpoint.attempts) == 1
    setup.end()


def test_06_onDownWaitWaitsForTheDestination():
    setup = Setup("refuse", onDown="wait", acquireTimeout=30.0)
    patient = setup.pool.acquire()
    impatient = setup.pool.acquire(timeout=2.0)
    setup.clock.advance(2.0)
    error = failureResultOf(impatient, AcquireTimeout)
    assert isinstance(error.__cause__, ConnectError)
    setup.endpoint.answer = "accept"
    setup.clock.advance(2.0)
    successResultOf(patient).release()
    setup.end()


def test_07_thePoolIsWholeAgainAfterFailedDials():
    setup = Setup("refuse", maxSize=4, backoff=lambda failures: 1.0)
    for _ in range(7):
        failureResultOf(setup.pool.acquire())
        setup.clock.advance(1.0)
    setup.endpoint.answer = "accept"
    releaseAll(held(setup, 4))
    setup.end()


def test_08_discardingServesTheNextWaiter():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    waiters = [setup.pool.acquire() for _ in range(3)]
    for waiter in waiters:
        assertNoResult(waiter)
        lease.discard()
        setup.turn()
        lease = successResultOf(waiter)
    lease.release()
    setup.end()


def test_10_nobodyOvertakesWhoWaits():
    setup = Setup(maxSize=10)
    order = []
    setup.waits = []

    def client(number):
        asked = setup.clock.seconds()

        def use(lease):
            order.append(number)
            setup.waits.append(setup.clock.seconds() - asked)
            setup.clock.callLater(0.2, lease.release)

        setup.pool.acquire().addCallback(use)

    for number in range(100):
        client(number)
    setup.clock.pump([0.05] * 60)
    assert order == list(range(100))
    assert max(setup.waits) <= 2.2
    setup.end()


def test_10_anAcquireInsideACallbackStandsBehindTheQueue():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    order = []

    def first(lease):
        setup.pool.acquire().addCallback(lambda again: (order.append("again"), again.release()))
        order.append("first")
        lease.release()

    setup.pool.acquire().addCallback(first)
    setup.pool.acquire().addCallback(lambda lease: (order.append("second"), lease.release()))
    lease.release()
    assert order == ["first", "second", "again"]
    setup.end()


def test_11_waitersThatLeftLeaveNothingBehind():
    setup = Setup("hold", maxSize=1, acquireTimeout=1.0, connectTimeout=99.0)
    for _ in range(20):
        waiters = [setup.pool.acquire() for _ in range(1000)]
        for waiter in waiters[::2]:
            waiter.cancel()
        setup.clock.advance(1.0)
        for waiter in waiters:
            failureResultOf(waiter, AcquireTimeout, CancelledError)
        assert setup.pool.stats().waiting == 0
        assert len(setup.core.inventory.agenda._heap) < 1000
    setup.end()


def test_12_theCapHoldsWhateverCallbacksDo():
    setup = Setup(maxSize=3)
    random = itertools.cycle([0, 1, 2, 1, 0, 2, 2])
    left = itertools.count()

    def use(lease):
        setup.check()
        choice = next(random)
        if next(left) < 300:
            setup.pool.acquire().addCallbacks(use, lambda reason: reason.trap(PoolClosed))
        if choice == 0:
            lease.release()
        elif choice == 1:
            lease.discard()
        else:
            setup.clock.callLater(0.1, lease.release)
        setup.check()

    for _ in range(10):
        setup.pool.acquire().addCallback(use)
    setup.clock.pump([0.05] * 1500)
    assert next(left) > 300
    setup.check()
    setup.end()


def test_13_aSlotIsFreeWhenTheSocketIsGone():
    setup = Setup(maxSize=2, closeTimeout=5.0)
    leases = held(setup, 2)
    for transport in setup.endpoint.transports:
        transport.stubborn = True
    for lease in leases:
        lease.discard()
    waiter = setup.pool.acquire()
    assert setup.pool.stats().closing == 2
    setup.clock.advance(4.9)
    assertNoResult(waiter)
    assert setup.endpoint.most == 2
    setup.clock.advance(0.1)  # aborted
    assert setup.pool.stats().aborted == 2
    setup.turn()
    successResultOf(waiter).release()
    assert setup.endpoint.most == 2
    setup.end()


def test_14_closeEndsAlthoughThePeerDoesNotCooperate():
    setup = Setup(maxSize=2)
    leases = held(setup, 2)
    leases[0].release()
    for transport in setup.endpoint.transports:
        transport.stubborn = True
    closed = setup.pool.close(5)
    again = setup.pool.close(5)
    setup.clock.advance(4.9)
    assertNoResult(closed)
    setup.clock.advance(0.1)
    setup.turn()
    assert successResultOf(closed) is None
    assert successResultOf(again) is None
    assert successResultOf(setup.pool.close()) is None
    assert setup.clock.getDelayedCalls() == []
    leases[1].release()  # too late, and no error


def test_14_closeEndsEvenIfAbortingDoesNothing(expectFailure):
    setup = Setup(maxSize=1, closeTimeout=5.0)
    (lease,) = held(setup, 1)
    setup.endpoint.transports[0].zombie = True
    closed = setup.pool.close(1)
    setup.clock.pump([1.0] * 6)
    assert successResultOf(closed) is None
    assert setup.clock.getDelayedCalls() == []
    assert setup.pool.stats().size == 0
    lease.release()


def test_15_aPausedTransportIsReadAgainWhenItIsIdle():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    transport = lease.protocol.transport
    transport.pauseProducing()
    lease.release()
    transport.endReading()  # noticed only by a transport that reads
    assert setup.pool.stats().idle == 0
    setup.end()


def test_15_aTransportThatSomebodyWritesToIsNotKept():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    lease.protocol.transport.registerProducer(object(), True)
    lease.release()
    assert setup.pool.stats().closing == 1
    setup.end()


@pytest.mark.parametrize("how", ["finish", "endReading", "loseConnection"])
def test_16_aDeadConnectionIsNeverHandedOut(how):
    setup = Setup(maxSize=10)
    releaseAll(held(setup, 10))
    dead = setup.endpoint.transports[3:9]
    for transport in dead:
        getattr(transport, how)()
    for _ in range(4):
        assert successResultOf(setup.pool.acquire()).protocol.transport not in dead
    setup.turn()
    for _ in range(6):
        assert successResultOf(setup.pool.acquire()).protocol.transport not in dead
    setup.check()
    setup.end()


def test_17_theCapIsACap():
    setup = Setup(maxSize=7)
    served = []

    def use(lease):
        served.append(lease)
        setup.clock.callLater(0.01, lease.release)

    for _ in range(10_000):
        setup.pool.acquire().addCallback(use)
    for _ in range(1500):
        setup.clock.advance(0.01)
    assert len(served) == 10_000
    assert setup.endpoint.most == 7
    setup.end()


def test_19_theReaperTakesNothingThatIsInUse():
    setup = Setup(maxSize=1, idleTimeout=10.0)
    (lease,) = held(setup, 1)
    lease.release()
    setup.clock.callLater(10.0, lambda: taken.append(setup.pool.tryAcquire()))
    taken = []
    # the pool's own timer and this call are due in the same instant
    setup.clock.advance(10.0)
    if taken[0] is not None:
        assert taken[0].protocol.transport.connected
        assert not taken[0].protocol.transport.disconnecting
        taken[0].release()
    setup.check()
    setup.end()


def test_20_theIdleShrinkUnderASteadyTrickle():
    setup = Setup(maxSize=100, minIdle=3, idleTimeout=10.0)
    releaseAll(held(setup, 100))
    for _ in range(12):
        held(setup, 1)[0].release()
        setup.clock.advance(1.0)
    setup.turn()
    assert setup.pool.stats().idle == 3
    assert setup.pool.stats().closed["idle"] >= 97
    setup.end()


def test_21_fifoSharesTheLoadAndLifoDoesNot():
    uses = {}
    for order in ("lifo", "fifo"):
        setup = Setup(maxSize=4, order=order)
        releaseAll(held(setup, 4))
        used = [held(setup, 1)[0] for _ in range(1)]
        releaseAll(used)
        counts = {}
        for _ in range(40):
            lease = setup.pool.tryAcquire()
            counts[lease.number] = counts.get(lease.number, 0) + 1
            lease.release()
        uses[order] = counts
        setup.end()
    assert list(uses["lifo"].values()) == [40]
    assert sorted(uses["fifo"].values()) == [10, 10, 10, 10]


def test_21_aBurstDoesNotPileUpOnTheSlowLinkWithFifo():
    """
    Facebook's link imbalance (2014): with LIFO the answers that come last, those
    over the slow link, are on top of the stack for the next burst.
    """
    shares = {}
    for order in ("lifo", "fifo"):
        setup = Setup(maxSize=8, order=order)
        releaseAll(held(setup, 8))
        slow = 0
        for _ in range(50):
            burst = held(setup, 4)
            # even numbers use the slow link: they come back last
            slow += sum(lease.number % 2 == 0 for lease in burst)
            releaseAll(sorted(burst, key=lambda lease: lease.number % 2 == 0))
        shares[order] = slow / 200
        setup.end()
    assert shares["fifo"] <= 0.6
    assert shares["lifo"] >= shares["fifo"]


def test_22_connectionsBornTogetherDoNotRetireTogether():
    setup = Setup(
        maxSize=1000, minIdle=1000, maxConnecting=1000, maxLifetime=100.0, idleTimeout=None
    )
    setup.pool.start()
    ends = [slot.lifetime.deadline for slot in setup.core.inventory.slots]
    assert len(ends) == 1000
    assert min(ends) >= 90.0
    assert max(ends) <= 100.0
    assert max(ends) - min(ends) >= 9.0
    setup.end()


def test_23_theReplacementIsReadyBeforeTheOldOneRetires():
    setup = Setup(maxSize=2, maxLifetime=10.0, lifetimeJitter=0.0)
    (lease,) = held(setup, 1)
    old = lease.protocol
    lease.release()
    setup.endpoint.answer = "hold"
    setup.clock.advance(10.0)
    again = successResultOf(setup.pool.acquire())
    assert again.protocol is old
    again.release()
    setup.pending()[0].succeed()
    assert setup.pool.stats().idle == 1
    assert successResultOf(setup.pool.acquire()).protocol is not old
    setup.turn()
    assert len(old.lost) == 1
    setup.end()


def test_23_atTheCapTheOldOneClosesFirst():
    setup = Setup(maxSize=1, maxLifetime=10.0, lifetimeJitter=0.0)
    (lease,) = held(setup, 1)
    old = lease.protocol
    lease.release()
    setup.clock.advance(10.0)
    setup.turn()
    assert len(old.lost) == 1
    assert setup.pool.stats().idle == 1  # nobody has to wait for the replacement
    assert successResultOf(setup.pool.acquire()).protocol is not old
    assert setup.endpoint.most == 1
    setup.end()


def test_23_aLeasedConnectionRetiresWhenItComesBack():
    setup = Setup(maxSize=2, maxLifetime=10.0, lifetimeJitter=0.0)
    (lease,) = held(setup, 1)
    old = lease.protocol
    setup.clock.advance(10.0)
    assert not old.transport.disconnecting
    assert setup.pool.stats().idle == 1
    lease.release()
    setup.turn()
    assert setup.pool.stats().closed == {"lifetime": 1}
    setup.end()


def test_24_aHundredWaitersMakeOneDialAStep():
    setup = Setup(
        "refuse", maxSize=25, maxConnecting=25, onDown="wait", acquireTimeout=None,
        backoff=exponentialBackoff(1.0, 30.0, 1.6, jitter=lambda: 1.0),
    )  # fmt: skip
    waiters = [setup.pool.acquire() for _ in range(100)]
    first = len(setup.endpoint.attempts)
    assert first == 1
    setup.clock.pump([0.25] * 240)
    assert len(setup.endpoint.attempts) <= 10
    # recovery: 1, 2, 4, … at once
    setup.endpoint.answer = "hold"
    while not setup.endpoint.pending:
        setup.clock.advance(0.5)
    ramp = []
    while setup.endpoint.pending:
        pending = setup.pending()
        ramp.append(len(pending))
        for attempt in pending:
            attempt.succeed()
    assert ramp == [1, 2, 4, 8, 10]
    assert sum(waiter.called for waiter in waiters) == 25
    setup.end()
    for waiter in waiters[25:]:
        failureResultOf(waiter, PoolClosed)


def test_25_aPoolThatLostEverythingRecovers(expectFailure):
    class Hostile(Poolable):
        def connectionMade(self):
            raise RuntimeError("connectionMade")

        def isReusable(self):
            raise RuntimeError("isReusable")

    expectFailure(RuntimeError)
    setup = Setup("hold", protocol=Poolable, connectTimeout=5.0, onDown="wait", acquireTimeout=None)
    waiter = setup.pool.acquire()
    setup.clock.advance(5.0)  # a black hole
    setup.turn()
    assert setup.pool.stats().dialFailures == 1
    setup.endpoint.answer = "accept"
    setup.clock.advance(2.0)
    lease = successResultOf(waiter)
    lease.protocol.isReusable = lambda: 1 / 0
    expectFailure(ZeroDivisionError)
    lease.release()
    setup.turn()
    successResultOf(setup.pool.acquire()).release()
    setup.end()


def test_26_theErrorSaysWhatIsWrongNow():
    setup = Setup("refuse", maxSize=1)
    failureResultOf(setup.pool.acquire(), ConnectFailed)
    error = failureResultOf(setup.pool.acquire(), PoolDown)
    assert error.retryAfter == 1.0
    assert isinstance(error.__cause__, ConnectError)
    assert "refused" in str(error)
    setup.endpoint.answer = "accept"
    setup.clock.advance(600)
    (lease,) = held(setup, 1)
    late = setup.pool.acquire(timeout=1.0)
    setup.clock.advance(1.0)
    error = failureResultOf(late, AcquireTimeout)
    assert error.__cause__ is None
    assert "leased 1" in str(error)
    lease.release()
    setup.end()


def test_27_aSecondReleaseIsRefused():
    setup = Setup(maxSize=1)
    other = Setup(maxSize=1)
    for end in ("release", "discard", "detach"):
        (lease,) = held(setup, 1)
        protocol = lease.protocol
        getattr(lease, end)()
        for again in ("release", "discard", "detach"):
            with pytest.raises(DoubleRelease):
                getattr(lease, again)()
        with pytest.raises(LeaseReleased):
            _ = lease.protocol
        if end == "detach":
            protocol.transport.loseConnection()
        setup.turn()
    (lease,) = held(setup, 1)
    for take in (other.pool.release, other.pool.discard, other.pool.detach):
        with pytest.raises(ForeignLease):
            take(lease)
        with pytest.raises(ForeignLease):
            take(lease.protocol)
    setup.pool.release(lease)
    assert setup.pool.stats().doubleReleases == 9
    setup.end()
    other.end()


def test_28_releasingAfterThePeerClosedIsNoError():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    setup.endpoint.transports[0].finish()
    assert setup.pool.stats().size == 0
    lease.release()
    with pytest.raises(DoubleRelease):
        lease.release()
    setup.end()


def test_29_anAcquireInsideALeaseThatCanNeverBeServedIsReported(caplogs):
    setup = Setup(maxSize=1, debug=True)

    async def nested():
        async with setup.pool.lease(), setup.pool.lease():
            raise AssertionError("not reached")

    waiting = ensureDeferred(nested())
    (text,) = [text for text in caplogs() if "deadlock" in text]
    assert "test_bugs.py" in text
    waiting.cancel()
    failureResultOf(waiting)
    setup.turn()
    setup.end()


def test_30_theIdleLevelIsKept():
    setup = Setup("hold", maxSize=5, minIdle=3, idleTimeout=10.0)
    assert setup.endpoint.attempts == []
    ready = setup.pool.whenReady()
    while setup.endpoint.pending:
        assertNoResult(ready)
        setup.pending()[0].succeed()
    assert successResultOf(ready) is None
    setup.endpoint.answer = "accept"
    setup.endpoint.transports[0].finish()
    assert setup.pool.stats().idle == 3
    setup.clock.advance(20.0)
    assert setup.pool.stats().idle == 3  # and they do not expire
    setup.end()


def test_31_aSpikeDialsLittle():
    """
    HikariCP's spike: 50 requests at once, 5 idle, dialling takes 150 ms, use 2 ms.
    """
    setup = Setup("hold", maxSize=50, minIdle=5)
    setup.pool.start()
    while setup.endpoint.pending:
        setup.pending()[0].succeed()
    warm = len(setup.endpoint.attempts)
    done = []
    for _ in range(50):
        setup.pool.acquire().addCallback(
            lambda lease: setup.clock.callLater(
                0.002, lambda: (lease.release(), done.append(setup.clock.seconds()))
            )
        )
    for _ in range(30):
        setup.clock.advance(0.001)
    assert len(done) == 50
    assert done[-1] <= 0.021
    assert len(setup.endpoint.attempts) - warm <= 6
    assert setup.endpoint.opened == 5
    assert setup.pool.stats().dialsElided == len(setup.endpoint.attempts) - warm
    setup.end()


def test_32_theConstructorTouchesNothing():
    setup = Setup(minIdle=5)
    assert setup.clock.getDelayedCalls() == []
    assert setup.endpoint.attempts == []
    assert setup.pool.stats().size == 0
    setup.end()


def test_33_anEmptyPoolHasNoTimer():
    setup = Setup(maxSize=5, idleTimeout=10.0)
    releaseAll(held(setup, 5))
    assert len(setup.clock.getDelayedCalls()) == 1
    setup.clock.advance(10.0)
    setup.turn()
    assert setup.clock.getDelayedCalls() == []
    setup.end()


def test_34_everyHookMayCallEverything():
    actions = ["acquire", "tryAcquire", "purge", "pause", "resume", "drain", "close", "stats"]
    for action in actions:
        setup = Setup(maxSize=2, protocol=Poolable)

        def meddle(action=action, setup=setup):
            result = getattr(setup.pool, action)()
            if isinstance(result, Deferred):
                result.addErrback(lambda reason: reason.trap(PoolClosed, CancelledError))

        (lease,) = held(setup, 1)
        protocol = lease.protocol
        protocol.isReusable = lambda: meddle() or True
        protocol.reset = meddle
        protocol.goodbye = meddle
        protocol.connectionLost = lambda _, meddle=meddle: meddle()
        setup.pool.acquire().addCallbacks(
            lambda lease: (meddle(), lease.release(), meddle()),
            lambda reason: reason.trap(PoolClosed),
        )
        lease.release()
        setup.check()
        setup.pool.resume()
        setup.turn()
        protocol.transport.finish()
        setup.check()
        setup.end()


def test_35_fiftyThousandWaitersNeitherRecurseNorGoQuadratic():
    setup = Setup(maxSize=1, acquireTimeout=None)
    (lease,) = held(setup, 1)
    served = []

    def use(lease):
        served.append(None)
        lease.release()

    for _ in range(50_000):
        setup.pool.acquire().addCallback(use)
    lease.release()
    assert len(served) == 50_000
    setup.end()


def test_37_aRefusedPoolDoesNotSpin():
    setup = Setup("refuse", minIdle=5, maxSize=5, backoff=exponentialBackoff())
    setup.pool.start()
    setup.clock.pump([0.01] * 6000)
    assert len(setup.endpoint.attempts) <= 20
    setup.end()


def test_40_theOrderOfChangesDoesNotMatter():
    changes = {"maxSize": 3, "idleTimeout": 5.0, "maxLifetime": 50.0, "order": "fifo"}
    results = set()
    for order in itertools.permutations(changes):
        setup = Setup(backoff=float)
        for name in order:
            setup.pool.reconfigure(**{name: changes[name]})
        results.add(tuple((name, getattr(setup.pool.settings, name)) for name in sorted(changes)))
        setup.end()
    assert len(results) == 1


def test_40_aBadChangeChangesNothing():
    setup = Setup(maxSize=5, minIdle=2)
    before = setup.pool.settings
    with pytest.raises(ValueError, match="minIdle=2"):
        setup.pool.reconfigure(maxSize=1, idleTimeout=1.0)
    assert setup.pool.settings == before
    setup.end()


def test_41_aByteOnAnIdleConnectionEndsItAtOnce():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    protocol = lease.protocol
    lease.release()
    setup.endpoint.transports[0].receive(b"!")
    assert setup.pool.tryAcquire() is None
    assert protocol.received == b""
    waiter = setup.pool.acquire()
    setup.turn()
    assert successResultOf(waiter).protocol is not protocol
    assert setup.pool.stats().closed == {"data": 1}
    setup.end()


def test_41_thePoolableMayWantTheByte():
    setup = Setup(maxSize=1, protocol=Poolable)
    (lease,) = held(setup, 1)
    lease.release()
    setup.endpoint.transports[0].receive(b"PING")
    assert setup.pool.stats().idle == 1
    setup.endpoint.transports[0].receive(b"ERROR")
    assert setup.pool.stats().idle == 0
    setup.end()


def test_leasesLostToTheGarbageCollectorComeBack(caplogs):
    setup = Setup(maxSize=1)
    held(setup, 1)  # and dropped
    gc.collect()
    setup.turn()
    setup.turn()
    assert setup.pool.stats().leasesLostToGC == 1
    assert any("test_bugs.py" in text for text in caplogs())
    successResultOf(setup.pool.acquire()).release()
    setup.end()


def test_aProtocolThatRaisesInConnectionMadeIsAFailedDial():
    class Broken(Protocol):
        def connectionMade(self):
            raise RuntimeError("no")

    clock = Clock()
    endpoint = FakeEndpoint(clock)
    pool = ConnectionPool(clock, endpoint, Factory.forProtocol(Broken), connectTimeout=5.0)
    failureResultOf(pool.acquire(), ConnectFailed)
    assert pool.stats().connecting == 0
    pool.close(0)
    clock.advance(20)


def test_runWithAPlainFunctionADeferredAndACoroutine():
    setup = Setup(maxSize=1)

    async def coroutine(protocol):
        return await succeed(protocol.made)

    for f in (lambda p: p.made, lambda p: succeed(p.made), coroutine):
        assert successResultOf(setup.pool.run(f)) == 1
    assert setup.pool.stats().idle == 1
    failureResultOf(setup.pool.run(lambda _: 1 / 0), ZeroDivisionError)
    setup.turn()
    assert setup.pool.stats().closed == {"discarded": 1}
    setup.end()


def test_09_nothingIsLostBetweenLookingAndQueueing():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    served = []

    class Racing:
        """
        Gives its connection back at the last moment before somebody queues.
        """

        def __init__(self):
            self.lease = lease

        def __call__(self, now=None):
            if self.lease is not None:
                lease, self.lease = self.lease, None
                lease.release()
            return setup.clock.seconds()

    setup.pool.shell.seconds = Racing()
    setup.pool.acquire().addCallback(lambda lease: (served.append(lease), lease.release()))
    assert len(served) == 1
    setup.check()
    setup.end()


def test_18_losingIdleConnectionsFromTheMiddleIsCheap():
    setup = Setup(maxSize=2000, minIdle=2000, maxConnecting=2000, idleTimeout=None)
    setup.pool.start()
    setup.pool.reconfigure(minIdle=0)
    for transport in setup.endpoint.transports[100:1900]:
        transport.finish()
        assert setup.core.inventory.dead <= max(17, setup.core.inventory.idleCount)
    assert setup.pool.stats().idle == 200
    alive = setup.endpoint.transports[:100] + setup.endpoint.transports[1900:]
    lease = setup.pool.tryAcquire()
    assert lease.protocol.transport in alive
    lease.release()
    for transport in alive:
        transport.finish()
    setup.end()


def test_38_aCycleAsksTheTransportNothing():
    setup = Setup(maxSize=1)
    held(setup, 1)[0].release()
    transport = setup.endpoint.transports[0]
    asked = []
    for name in ("write", "getPeer", "getHost", "setTcpKeepAlive", "pauseProducing"):
        setattr(transport, name, lambda *_, name=name: asked.append(name))
    for _ in range(100):
        setup.pool.tryAcquire().release()
    assert asked == []
    setup.end()
