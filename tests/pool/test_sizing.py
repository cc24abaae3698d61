"""
How many connections there are: what is replaced, what is filled up, and when
it is not.
"""

from contextlib import contextmanager

import pytest
from twisted.internet.error import ConnectError

from connpool.errors import PoolDown
from connpool.pool import exponentialBackoff
from connpool.pool.sizing import LULL_SECONDS
from connpool.testing import FakeEndpoint
from tests.helpers.cost import calls
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.pool.building import Setup
from tests.pool.test_bugs import Poolable, held, releaseAll


class Fickle(FakeEndpoint):
    """
    Accepts, and at the next turn closes or says something.
    """

    ends = "finish"

    def open(self):
        transport = super().open()
        act = transport.finish if self.ends == "finish" else lambda: transport.receive(b"hello")
        self._later(0.001, act)
        return transport


@pytest.mark.parametrize("ends", ["finish", "receive"])
@pytest.mark.parametrize("how", ["start", "whenReady"])
def test_whatDiesUnusedIsNotDialledAgainAndAgain(ends, how):
    setup = Setup(minIdle=2, backoff=exponentialBackoff(jitter=lambda: 1.0))
    fickle = Fickle(setup.clock)
    fickle.ends = ends
    setup.core.supply.destinations[0].endpoint = fickle
    if how == "start":
        setup.pool.start()
    else:
        ready = setup.pool.whenReady(3)
    setup.clock.pump([0.001] * 10_000)  # 10 s
    # steps of 0.1, 0.16, 0.26 s …, two or three dials each
    assert 10 <= len(fickle.attempts) <= 40
    # who waits does not wait for that
    dialled = len(fickle.attempts)
    successResultOf(setup.pool.acquire()).discard()
    assert len(fickle.attempts) > dialled
    if how == "whenReady":
        ready.addErrback(lambda _: None)
    setup.core.supply.destinations[0].endpoint = setup.endpoint
    setup.clock.pump([0.1] * 600)
    assert setup.pool.stats().idle >= 2
    setup.clock.pump([0.001] * 10)
    setup.end()


def test_aConnectionThatDiesLateIsReplacedAtOnce():
    setup = Setup(minIdle=1)
    setup.pool.start()
    for _ in range(10):
        setup.clock.advance(5.0)  # a server that is patient for 5 s
        setup.endpoint.transports[-1].finish()
        assert setup.pool.stats().idle == 1
    setup.end()


def test_aPoolThatNobodyUsesShrinksAlthoughItsConnectionsAreReplaced():
    setup = Setup(maxSize=10, maxLifetime=30.0, idleTimeout=60.0)
    releaseAll(held(setup, 8))
    setup.clock.pump([1] * 200)
    assert setup.pool.stats().size == 0
    setup.end()


def test_idleConnectionsAboveTheLevelAgeOut():
    setup = Setup(maxSize=30, minIdle=2, maxLifetime=20.0, idleTimeout=20.0, maxUses=1)
    ready = setup.pool.whenReady(12)
    successResultOf(ready)
    setup.clock.pump([1] * 25)
    assert setup.pool.stats().idle == 2
    assert setup.pool.stats().dials <= 14
    setup.end()


def test_aDrainingPoolReplacesNothing():
    setup = Setup(maxSize=5, maxLifetime=10.0, lifetimeJitter=0.0, idleTimeout=None)
    leases = held(setup, 3)
    leases.pop().release()
    setup.pool.drain()
    dials = setup.pool.stats().dials
    setup.clock.advance(11.0)
    assert setup.pool.stats().dials == dials
    releaseAll(leases)
    setup.end()


def test_aLeaseThatEndsWithItsConnectionIsNothingToWaitFor():
    setup = Setup(maxSize=5, maxUses=1)
    (lease,) = held(setup, 1)
    setup.endpoint.answer = "refuse"
    error = failureResultOf(setup.pool.acquire())
    assert isinstance(error.__cause__, ConnectError)
    failureResultOf(setup.pool.acquire(), PoolDown)
    assert setup.pool.stats().down
    lease.release()
    setup.end()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda _: 1 / 0, ZeroDivisionError),
        (lambda _: float("nan"), ValueError),
        (lambda _: -1.0, ValueError),
        (lambda _: None, TypeError),
    ],
)
def test_aBackoffThatFailsCostsNoSlot(wrong, error, expectFailure):
    expectFailure(error)
    setup = Setup("refuse", maxSize=1, backoff=wrong)
    failureResultOf(setup.pool.acquire())
    assert setup.pool.stats().size == 0
    failureResultOf(setup.pool.acquire(), PoolDown)
    setup.endpoint.answer = "accept"
    setup.clock.advance(0.2)
    successResultOf(setup.pool.acquire()).release()
    setup.end()


def test_aNewConnectionIsNotValidated():
    class Refusing(Poolable):
        def validate(self):
            return False

    setup = Setup(maxSize=50, protocol=Refusing, validateAfterIdle=0.0)
    (lease,) = held(setup, 1)
    lease.release()
    setup.clock.advance(1.0)
    held(setup, 1)[0].release()
    assert setup.pool.stats().dials == 2
    assert setup.pool.stats().validateFailures == 1
    setup.end()


def test_aDialGivenUpByACallbackThatThenSucceedsIsClosed():
    setup = Setup("hold", maxSize=2)
    waiting = [setup.pool.acquire(), setup.pool.acquire()]
    first, second = setup.pending()

    def purge(lease):
        setup.pool.purge()
        second.succeed()
        setup.check()
        assert setup.pool.stats().idle == 0
        return lease

    waiting[0].addCallback(purge)
    first.succeed()
    assert second.transport.disconnecting
    assertNoResult(waiting[1])
    setup.endpoint.answer = "accept"
    setup.turn()
    successResultOf(waiting[1]).release()
    successResultOf(waiting[0]).release()
    setup.end()


def test_explainSaysWhyTheLevelIsNotKept():
    setup = Setup(minIdle=1)
    setup.pool.start()
    for _ in range(2):
        setup.endpoint.transports[-1].finish()
    assert "does the server accept this client?" in setup.pool.explain()
    setup.end()


def level(minIdle):
    setup = Setup(minIdle=minIdle, maxSize=10, maxConnecting=10)
    setup.pool.start()
    assert setup.pool.stats().idle == minIdle
    return setup


def test_nobodyWaitsForTheDialOfTheNext():
    setup = level(1)
    (lease,) = held(setup, 1)
    assert setup.pool.stats().dials == 1
    setup.clock.advance(LULL_SECONDS)
    assert setup.pool.stats().dials == 2
    # whoever finds nothing idle does not wait for the lull
    first, second = held(setup, 2)
    assert setup.pool.stats().dials == 3
    releaseAll([lease, first, second])
    setup.end()


def test_theLevelIsFilledHoweverOftenItIsTakenFrom():
    setup = level(5)
    leases = []
    for _ in range(4):
        leases += held(setup, 1)
        setup.clock.advance(LULL_SECONDS / 2)
    assert setup.pool.stats().idle >= 4
    setup.clock.advance(LULL_SECONDS)
    assert setup.pool.stats().idle == 5
    releaseAll(leases)
    setup.end()


def test_whatComesBackAtOnceIsNotReplaced():
    setup = level(2)
    for _ in range(50):
        held(setup, 1)[0].release()
        setup.clock.advance(LULL_SECONDS / 10)
    assert setup.pool.stats().dials == 2
    held(setup, 1)[0].release()
    assert calls(lambda: setup.pool.tryAcquire().release()) <= 25
    assert len(setup.clock.getDelayedCalls()) == 1
    setup.end()


@contextmanager
def late(setup, seconds):
    """
    A machine that has other things to do before each look at the clock.
    """
    shell = setup.pool.shell
    look = shell.seconds

    def looks():
        setup.clock.rightNow += seconds
        return look()

    shell.seconds = looks
    try:
        yield
    finally:
        shell.seconds = look


@pytest.mark.parametrize("tenths", range(1, 15))
def test_theLevelIsFilledHoweverLateTheMachineIs(tenths):
    """
    The lull may be over between the decision that it is not, and the timer for its end.
    """
    setup = level(2)
    with late(setup, tenths / 10 * LULL_SECONDS):
        leases = held(setup, 1)
    setup.clock.advance(LULL_SECONDS)
    assert setup.pool.stats().idle == 2
    releaseAll(leases)
    setup.end()


@pytest.mark.parametrize("tenths", range(1, 10))
def test_aDialIsTriedAgainHoweverLateTheMachineIs(tenths):
    setup = Setup("refuse", onDown="wait", backoff=lambda failures: 0.001)
    with late(setup, tenths * 0.0001):
        waiting = setup.pool.acquire()
    setup.endpoint.answer = "accept"
    setup.clock.advance(0.001)
    successResultOf(waiting).release()
    setup.end()


def test_theLevelIsKeptWhateverCallbacksDoInTheLull():
    setup = level(1)
    lease = successResultOf(setup.pool.acquire())
    lease.release()  # the shortage that began the lull is over
    again = []
    setup.pool.acquire().addCallback(
        lambda lease: (lease.release(), again.append(setup.pool.tryAcquire()))
    )
    assert again[0] is not None
    for _ in range(3):
        setup.clock.advance(LULL_SECONDS)
    assert setup.pool.stats().idle == 1
    again[0].release()
    setup.end()
