"""
What MongoDB's specification asks of every driver's pool (Connection Monitoring
and Pooling), as cases of our own.  Its "clear" is our C{purge}, which keeps the
waiters; its "paused" is C{pause(queue=False)}.
"""

import pytest

from connpool.pool import AcquireTimeout, ConnectFailed, PoolClosed, PoolPaused
from connpool.pool.sizing import LULL_SECONDS
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.pool.building import Setup
from tests.pool.test_bugs import held, releaseAll, serveInTurn
from tests.pool.test_pool import Recorder


def test_connectionsHaveNumbersThatGrow():
    setup = Setup(maxSize=3)
    leases = held(setup, 3)
    assert [lease.number for lease in leases] == [1, 2, 3]
    leases.pop(0).discard()
    setup.turn()
    leases += held(setup, 1)
    assert leases[-1].number == 4
    releaseAll(leases)
    setup.end()


def test_aCheckInMakesTheConnectionAvailable():
    setup = Setup()
    (lease,) = held(setup, 1)
    number = lease.number
    lease.release()
    (lease,) = held(setup, 1)
    assert lease.number == number
    lease.release()
    setup.end()


@pytest.mark.parametrize(("act", "why"), [("close", "pool"), ("purge", "stale")])
def test_aCheckInThatComesTooLateDestroysTheConnection(act, why):
    setup = Setup()
    (lease,) = held(setup, 1)
    getattr(setup.pool, act)()
    lease.release()
    setup.turn()
    assert setup.pool.stats().closed == {why: 1}
    setup.end()


def test_aCheckOutNeverGetsAnIdleConnectionThatIsTooOld():
    setup = Setup(idleTimeout=10.0)
    held(setup, 1)[0].release()
    setup.clock.rightNow += 10.0
    waiter = setup.pool.acquire()
    setup.turn()
    assert successResultOf(waiter).number == 2
    setup.pool.close(0)
    setup.end()


def test_aCheckOutNeverGetsAStaleConnection():
    setup = Setup()
    held(setup, 1)[0].release()
    setup.pool.purge()
    setup.turn()
    (lease,) = held(setup, 1)
    assert lease.number == 2
    lease.release()
    setup.end()


def test_aCheckOutFromAClosedPoolFails():
    setup = Setup()
    setup.end()
    failureResultOf(setup.pool.acquire(), PoolClosed)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_noMoreThanMaxConnectingDialAtOnce(limit):
    setup = Setup("hold", maxSize=10, maxConnecting=limit)
    waiters = [setup.pool.acquire() for _ in range(10)]
    for served in range(10):
        assert len(setup.pending()) == min(limit, 10 - served)
        setup.pending()[0].succeed()
    for waiter in waiters:
        successResultOf(waiter).release()
    setup.end()


def test_aReturnedConnectionServesAWaiterWhileOthersDial():
    setup = Setup(maxSize=10, maxConnecting=2)
    leases = held(setup, 2)
    setup.endpoint.answer = "hold"
    waiters = [setup.pool.acquire() for _ in range(3)]
    assert len(setup.pending()) == 2
    leases.pop().release()
    successResultOf(waiters[0]).release()
    successResultOf(waiters[1])
    assertNoResult(waiters[2])
    setup.pending()[0].succeed()
    successResultOf(waiters[2])
    setup.pool.close(0)
    setup.end()


def test_aTimeoutLeavesTheQueueAtOnce():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    late = setup.pool.acquire(timeout=1.0)
    patient = setup.pool.acquire(timeout=9.0)
    setup.clock.advance(1.0)
    failureResultOf(late, AcquireTimeout)
    assert setup.pool.stats().waiting == 1
    lease.release()
    successResultOf(patient).release()
    setup.end()


def test_theQueueIsFair():
    setup = Setup(maxSize=1)
    (lease,) = held(setup, 1)
    waiters = [setup.pool.acquire() for _ in range(5)]
    serveInTurn(lease, waiters)
    setup.end()


def test_minIdleIsFilledInTheBackgroundAndAgainAfterAPurge():
    setup = Setup(minIdle=3)
    setup.pool.start()
    assert setup.pool.stats().idle == 3
    setup.pool.purge()
    setup.turn()
    assert setup.pool.stats().idle == 3
    assert setup.pool.stats().dials == 6
    setup.end()


def test_aWaiterIsServedByAConnectionThatMinIdleDialled():
    setup = Setup("hold", minIdle=2, maxConnecting=2)
    setup.pool.start()
    waiter = setup.pool.acquire()
    setup.pending()[0].succeed()
    successResultOf(waiter)
    setup.clock.advance(LULL_SECONDS)
    assert setup.pool.stats().dials == 3  # and one more for the level
    setup.pool.close(0)
    setup.end()


def test_aPausedPoolDialsNothingAndFailsCheckOutsUntilItIsReady():
    setup = Setup(minIdle=2)
    setup.pool.pause(queue=False)
    setup.pool.start()
    failureResultOf(setup.pool.acquire(), PoolPaused)
    assert setup.endpoint.attempts == []
    setup.pool.resume()
    assert setup.pool.stats().idle == 2
    held(setup, 1)[0].release()
    setup.end()


def test_aFailedDialFailsTheCheckOutThatWaitedForIt():
    setup = Setup("hold", maxSize=2)
    waiters = [setup.pool.acquire() for _ in range(2)]
    first, second = setup.pending()
    first.fail()
    failureResultOf(waiters[0], ConnectFailed)
    second.succeed()
    successResultOf(waiters[1]).release()
    setup.end()


def test_theEventsComeInOrder():
    recorder = Recorder()
    setup = Setup(maxSize=1, observers=[recorder])
    (lease,) = held(setup, 1)
    lease.release()
    setup.pool.close()
    setup.turn()
    words = [event.split()[0] for event in recorder.events]
    assert words == [
        "acquire", "created", "ready", "acquired", "released", "closed", "pool",
    ]  # fmt: skip
    setup.end()
