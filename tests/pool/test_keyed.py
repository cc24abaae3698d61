"""
One limit over many keys.
"""

import gc

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from connpool.interfaces import IStatsSource
from connpool.pool import AcquireTimeout, ConnectFailed, KeyedConnectionPool, PoolClosed, PoolDown
from connpool.testing import FakeEndpoint
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.pool.building import Echoing


class Keyed:
    """
    A keyed pool on a clock.
    """

    def __init__(self, answer="accept", **limits):
        self.clock = Clock()
        self.answer = answer
        self.endpoints = {}
        limits.setdefault("backoff", lambda failures: 1.0 * failures)
        self.pool = KeyedConnectionPool(
            self.clock, self.endpointFor, Factory.forProtocol(Echoing), **limits
        )
        self.most = 0

    def endpointFor(self, key):
        return self.endpoints.setdefault(key, FakeEndpoint(self.clock, self.answer))

    def get(self, key):
        return successResultOf(self.pool.acquire(key))

    def opened(self):
        return sum(endpoint.opened for endpoint in self.endpoints.values())

    def end(self):
        closed = self.pool.close(0)
        self.clock.pump([0, 10, 10])
        successResultOf(closed)
        assert self.opened() == 0
        assert self.clock.getDelayedCalls() == []
        assert self.pool.stats().size == 0


def test_eachKeyHasItsOwnConnections():
    keyed = Keyed()
    a, b = keyed.get("a"), keyed.get("b")
    a.release()
    b.release()
    assert keyed.pool.tryAcquire("c") is None
    again = keyed.pool.tryAcquire("a")
    assert again.number == a_number(keyed)
    again.release()
    assert keyed.pool.stats().keys == 2
    keyed.end()


def a_number(keyed):
    return keyed.pool.pools()["a"]._core._born


def test_theTotalIsACap():
    keyed = Keyed(maxTotal=3, maxSize=2)
    leases = [keyed.get("a"), keyed.get("a"), keyed.get("b")]
    waiting = keyed.pool.acquire("c")
    assertNoResult(waiting)
    assert keyed.opened() == 3
    leases.pop().discard()
    keyed.clock.advance(0)
    successResultOf(waiting).release()
    for lease in leases:
        lease.release()
    assert keyed.opened() == 3
    keyed.end()


def test_anIdleConnectionOfTheColdestKeyMakesRoom():
    keyed = Keyed(maxTotal=3)
    for key in "abc":
        keyed.get(key).release()
    keyed.clock.advance(1)
    keyed.get("a").release()  # now b is the coldest
    waiting = keyed.pool.acquire("d")
    keyed.clock.advance(0)
    successResultOf(waiting).release()
    assert set(keyed.pool.pools()) == {"a", "c", "d"}
    assert keyed.pool.stats().evictions == 1
    keyed.end()


def test_aReturnedConnectionMakesRoomForAKeyThatStarves():
    keyed = Keyed(maxTotal=2)
    first, second = keyed.get("a"), keyed.get("a")
    waiting = [keyed.pool.acquire("b"), keyed.pool.acquire("c")]
    first.release()
    keyed.clock.advance(0)
    got = successResultOf(waiting[0])
    assertNoResult(waiting[1])
    second.release()
    keyed.clock.advance(0)
    successResultOf(waiting[1]).release()
    got.release()
    keyed.end()


def test_starvingKeysAreServedInOrder():
    keyed = Keyed(maxTotal=1)
    order = []
    lease = keyed.get("a")
    for key in "bcdb":
        keyed.pool.acquire(key).addCallback(
            lambda lease, key=key: (order.append(key), lease.release())
        )
    lease.release()
    keyed.clock.pump([0] * 10)
    assert sorted(order) == ["b", "b", "c", "d"]
    keyed.end()


def test_39_emptyKeysVanish():
    keyed = Keyed(maxTotal=10, idleTimeout=1.0)
    for key in range(3_000):
        waiting = keyed.pool.acquire(key)
        keyed.clock.advance(0.0)
        lease = successResultOf(waiting)
        lease.discard()
        keyed.clock.advance(0.0)
        assert len(keyed.pool.pools()) <= 10
        keyed.endpoints.clear()
    gc.collect()
    assert keyed.pool.stats().keys == 0
    assert not keyed.pool._idlers
    assert not keyed.pool._starving
    keyed.end()


def test_aKeyThatIsDownIsRememberedUntilItsBackOffIsOver():
    keyed = Keyed("refuse", maxTotal=10)
    failureResultOf(keyed.pool.acquire("a"), ConnectFailed)
    failureResultOf(keyed.pool.acquire("a"), PoolDown)
    assert len(keyed.endpoints["a"].attempts) == 1
    for key in range(100):
        failureResultOf(keyed.pool.acquire(key), ConnectFailed)
    keyed.clock.advance(2)
    for key in range(100, 160):
        failureResultOf(keyed.pool.acquire(key), ConnectFailed)
    assert len(keyed.pool.pools()) <= 60
    keyed.end()


def test_minIdleAloneEvictsNobody():
    keyed = Keyed(maxTotal=4, minIdle=2)
    for key in "abc":
        waiting = keyed.pool.acquire(key)
        keyed.clock.advance(0)
        successResultOf(waiting).release()
    evictions = keyed.pool.stats().evictions
    keyed.clock.pump([1] * 30)
    assert keyed.pool.stats().evictions == evictions
    assert keyed.opened() <= 4
    keyed.end()


def test_aTimedOutWaiterDoesNotKeepItsKeyStarving():
    keyed = Keyed(maxTotal=1)
    lease = keyed.get("a")
    waiting = keyed.pool.acquire("b", timeout=1.0)
    keyed.clock.advance(1.0)
    failureResultOf(waiting, AcquireTimeout)
    lease.release()
    assert keyed.pool.stats().starving == 0
    assert set(keyed.pool.pools()) == {"a"}
    keyed.end()


def test_aClosedKeyedPoolRefuses():
    keyed = Keyed()
    keyed.end()
    failureResultOf(keyed.pool.acquire("a"), PoolClosed)
    failureResultOf(keyed.pool.run("a", print), PoolClosed)
    with pytest.raises(PoolClosed):
        keyed.pool.lease("a")


@pytest.mark.parametrize("limits", [{"maxTotal": 0}, {"maxTotal": True}, {"maxSize": 0}])
def test_impossibleLimitsAreRefusedAtOnce(limits):
    with pytest.raises(ValueError, match="out of range"):
        Keyed(**limits)


def test_theStatsAreAStatsSource():
    keyed = Keyed()
    assert verifyObject(IStatsSource, keyed.pool)
    assert keyed.pool.stats().state == "open"
    keyed.end()


def test_theCapHoldsForManyKeysInAnyOrder():
    keyed = Keyed(maxTotal=5, maxSize=2, acquireTimeout=None)
    served = []

    def use(lease, key):
        served.append(key)
        assert keyed.opened() <= 5
        if len(served) % 3:
            keyed.clock.callLater(0.01 * (len(served) % 4), lease.release)
        else:
            lease.discard()

    for number in range(400):
        keyed.pool.acquire(number % 23).addCallback(use, number % 23)
    keyed.clock.pump([0.005] * 2000)
    assert len(served) == 400
    assert keyed.pool.stats().size == keyed.opened()
    keyed.end()
