"""
One limit over many keys.
"""

import gc
import random

import pytest
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from connpool.interfaces import IStatsSource
from connpool.pool import AcquireTimeout, ConnectFailed, KeyedConnectionPool, PoolClosed, PoolDown
from connpool.testing import FakeEndpoint
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.pool.building import Echoing
from tests.pool.test_pool import calls


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
    return keyed.pool.pools()["a"].shell.core.supply.born


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


def served(keyed, keys):
    """
    The order in which a connection is lent that all keys wait for.
    """
    order = []
    lease = keyed.get("a")
    for key in keys:
        keyed.pool.acquire(key).addCallback(
            lambda lease, key=key: (order.append(key), lease.release())
        )
    lease.release()
    keyed.clock.pump([0] * 10)
    return order


def test_starvingKeysAreServedInOrder():
    keyed = Keyed(maxTotal=1)
    order = served(keyed, "bcdb")
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


def test_aScopeFindsItsKeyAgainAfterItVanished():
    keyed = Keyed(maxTotal=2, idleTimeout=5.0)
    scope = keyed.pool.lease("a")
    assert keyed.pool.pools() == {}  # one that is never entered takes no memory

    async def use():
        async with scope as protocol:
            return protocol

    first = successResultOf(ensureDeferred(use()))
    keyed.clock.pump([0, 6, 0])
    assert keyed.pool.pools() == {}
    assert successResultOf(ensureDeferred(use())) is not first
    assert set(keyed.pool.pools()) == {"a"}
    others = [keyed.pool.acquire("b"), keyed.pool.acquire("b")]
    keyed.clock.pump([0, 0])
    for each in others:  # the connection of "a" makes room
        successResultOf(each).release()
    keyed.end()
    with pytest.raises(PoolClosed):
        use().send(None)


def test_theVanishedPoolOfAKeyDialsNoMore():
    keyed = Keyed(maxTotal=1)
    keyed.get("a").release()
    pool = keyed.pool.pools()["a"]
    pool.purge()
    keyed.clock.advance(0)
    failureResultOf(pool.acquire(), PoolClosed)
    keyed.get("a").release()
    keyed.end()


def test_nothingIsEvictedForAKeyThatWasServed():
    keyed = Keyed(maxTotal=2)
    a, b = keyed.get("a"), keyed.get("b")
    waiting = keyed.pool.acquire("a")
    a.release()
    again = successResultOf(waiting)
    b.release()
    keyed.clock.advance(0)
    assert keyed.pool.stats().evictions == 0
    assert keyed.opened() == 2
    again.release()
    keyed.end()


def test_roomThatAppearsWhileAKeyIsFedIsUsed():
    keyed = Keyed(maxTotal=1)
    lease = keyed.get("a")
    waiting = []

    def detach(lease):
        waiting.append(keyed.pool.acquire("c"))
        return lease.detach()

    detached = keyed.pool.acquire("b").addCallback(detach)
    lease.discard()
    keyed.clock.advance(0)
    successResultOf(waiting[0]).release()
    successResultOf(detached).transport.loseConnection()
    keyed.clock.advance(0)
    keyed.end()


def test_aKeyUsedWithoutWaitingIsNotTheColdest():
    keyed = Keyed(maxTotal=2, acquireTimeout=None)
    for key in "ab":
        keyed.get(key).release()
    for _ in range(3):
        keyed.pool.tryAcquire("a").release()
        keyed.get("a").release()
    waiting = keyed.pool.acquire("c")
    keyed.clock.advance(0)
    assert set(keyed.pool.pools()) == {"a", "c"}
    successResultOf(waiting).release()
    keyed.end()


def test_noReturnIsMissedWhileAKeyStarves():
    keyed = Keyed(maxTotal=2)
    for key in "ab":
        keyed.get(key).release()
    a, b = keyed.get("a"), keyed.get("b")  # both pools are calm
    waiting = [keyed.pool.acquire("c"), keyed.pool.acquire("d")]
    a.release()
    keyed.clock.advance(0)
    got = successResultOf(waiting[0])
    b.release()
    keyed.clock.advance(0)
    got.release()
    successResultOf(waiting[1]).release()
    keyed.end()


def test_closingCanBeGivenUp():
    keyed = Keyed()
    leases = [keyed.get(key) for key in "abc"]
    closed = keyed.pool.close(5.0)
    closed.cancel()
    failureResultOf(closed)
    for lease in leases:
        lease.release()
    del closed
    gc.collect()  # no failure was left behind, see the autouse fixture
    keyed.end()


@pytest.mark.parametrize("how", ["acquire", "tryAcquire", "run"])
def test_aKeysLeaseKnowsWhoAcquiredIt(how):
    keyed = Keyed()
    keyed.get("a").release()
    ending = Deferred()
    if how == "run":
        keyed.pool.run("a", lambda _: ending)
    else:
        held = getattr(keyed.pool, how)("a")
    assert __file__ in keyed.pool.pools()["a"].explain()
    ending.callback(None)
    if how != "run":
        (held if how == "tryAcquire" else successResultOf(held)).release()
    keyed.end()


def test_anUncontendedKeyCostsLittle():
    keyed = Keyed()
    keyed.get("a").release()
    assert calls(lambda: keyed.pool.tryAcquire("a").release()) <= 20
    assert calls(lambda: keyed.get("a").release()) <= 40
    keyed.end()


def test_minIdleDoesNotTakeTheRoomMadeForWhoWaits():
    keyed = Keyed(maxTotal=1, minIdle=1)
    keyed.get("a").release()
    waiting = keyed.pool.acquire("b")
    keyed.clock.pump([0] * 3)
    successResultOf(waiting).release()
    assert keyed.pool.stats().evictions == 1
    keyed.end()


def test_aKeyInDemandDoesNotKeepItsRoomForItself():
    keyed = Keyed(maxTotal=1, maxUses=1)
    order = served(keyed, "abaca")
    assert "".join(order) == "abcaa"
    keyed.end()


class Chance:
    """
    Anything, in any order, also inside callbacks.
    """

    def __init__(self, seed):
        self.dice = dice = random.Random(seed)
        self.total = dice.choice([1, 2, 3, 5])
        self.keyed = Keyed(
            maxTotal=self.total,
            maxSize=dice.choice([1, 2, 4]),
            minIdle=dice.choice([0, 0, 1]),
            idleTimeout=dice.choice([1.0, 5.0, None]),
            acquireTimeout=None,
            maxLifetime=dice.choice([None, 3.0]),
            maxUses=dice.choice([None, None, 1, 2]),
        )
        self.held = []
        self.asked = {}
        self.depth = 0

    def acquire(self, key):
        waiting = self.keyed.pool.acquire(key)
        self.asked[waiting] = key
        waiting.addBoth(self.answered, waiting)

    def answered(self, result, waiting):
        self.asked.pop(waiting, None)
        if isinstance(result, Failure):
            return
        if self.depth < 4 and self.dice.random() < 0.5:
            self.depth += 1
            self.act()
            self.depth -= 1
        chance = self.dice.random()
        if chance < 0.25:
            result.release()
        elif chance < 0.35:
            result.discard()
        else:
            self.held.append(result)

    def act(self):
        dice, pool = self.dice, self.keyed.pool
        endpoint = dice.choice([*self.keyed.endpoints.values()] or [FakeEndpoint()])
        chance = dice.random()
        if chance < 0.4:
            self.acquire(dice.choice("abcdef"))
        elif chance < 0.6 and self.held:
            lease = self.held.pop(dice.randrange(len(self.held)))
            dice.choice([lease.release, lease.release, lease.discard])()
        elif chance < 0.65 and self.asked:
            dice.choice(list(self.asked)).cancel()
        elif chance < 0.7:
            self.held.extend(filter(None, [pool.tryAcquire(dice.choice("abcdef"))]))
        elif chance < 0.78:
            endpoint.answer = dice.choice(["accept", "hold"])
            endpoint.abrupt = dice.random() < 0.3
        elif chance < 0.86 and endpoint.pending:
            next(iter(endpoint.pending)).succeed()
        elif chance < 0.92 and (live := [each for each in endpoint.transports if each.connected]):
            dice.choice(live).finish()
        else:
            self.keyed.clock.advance(dice.choice([0, 0.1, 1.0]))

    def check(self):
        keyed = self.keyed.pool
        pools = keyed.pools()
        assert (
            keyed.stats().size
            == sum(pool.shell.core.inventory.size for pool in pools.values())
            <= self.total
        )
        assert not keyed._starving or keyed.stats().size == self.total, "room beside who starves"
        for key, pool in pools.items():
            core = pool.shell.core
            assert not core.calm or not keyed._starving
            if (
                len(core.queue)
                and key not in keyed._starving
                and core.mayDial(self.keyed.clock.seconds())
            ):
                assert core.inventory.connecting, f"{key} is forgotten: {pool.explain()}"

    def end(self):
        for _ in range(200):
            for endpoint in self.keyed.endpoints.values():
                endpoint.answer = "accept"
                for attempt in list(endpoint.pending):
                    if attempt.pending:
                        attempt.succeed()
            while self.held:
                self.held.pop().release()
            self.keyed.clock.advance(0.1)
        assert not self.asked, "somebody is never served"
        self.keyed.end()


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=[pytest.mark.slow] * (n >= 30)) for n in range(0, 100, 10)]
)
def test_noKeyIsForgottenWhateverHappens(seed):
    for each in range(seed, seed + 10):
        chance = Chance(each)
        for _ in range(150):
            chance.act()
            chance.check()
        chance.end()
