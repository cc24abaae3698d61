"""
Fail-over and back: the trouble of one server costs nobody anything once another one is
known, and nothing flaps.
"""

import pytest

from connpool.pool import ConnectionPoolService, PoolError
from connpool.pool.sizing import PROBATION_SECONDS, SLOW_DIAL_SECONDS
from tests.helpers.waiting import failureResultOf, successResultOf
from tests.pool.building import Setup


class Troubled:
    """
    A pool with two servers, of which the first does not do what it should.
    """

    def __init__(self, trouble, **limits):
        limits = {"maxSize": 10, "acquireTimeout": 5.0, "idleTimeout": 10.0} | limits
        limits.setdefault("backoff", lambda failures: min(30.0, 0.1 * 1.6**failures))
        self.setup = Setup("hold", endpoints=2, **limits)
        self.clock = self.setup.clock
        self.pool = self.setup.pool
        self.first, self.second = self.setup.endpoints
        self.second.answer = "accept"
        self.trouble = trouble
        self.since = {}

    def advance(self, seconds):
        """
        Let time pass, and the first server behave as it does.
        """
        end = self.clock.seconds() + seconds
        while True:
            for attempt in list(self.first.pending):
                began = self.since.setdefault(attempt, self.clock.seconds())
                waited = self.clock.seconds() - began
                if self.trouble == "refusing":
                    attempt.fail()
                elif self.trouble == "closing":
                    attempt.succeed().finish()
                elif (self.trouble == "slow" and waited >= 3.0) or self.trouble is None:
                    attempt.succeed()
            if self.clock.seconds() >= end:
                return
            self.clock.advance(0.1)

    def use(self):
        """
        @return: seconds until an acquire was served, and whether by the first server.
        """
        began = self.clock.seconds()
        results = []
        self.pool.acquire().addBoth(results.append)
        while not results:
            self.advance(0.1)
        (lease,) = results
        assert not hasattr(lease, "value"), lease.value
        waited = self.clock.seconds() - began
        mine = lease.protocol.transport in self.first.transports
        lease.release()
        return waited, mine


TROUBLES = ["silent", "refusing", "closing", "slow"]


@pytest.mark.parametrize("maxSize", [1, 2, 10])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_aTroubledFirstServerCostsNobodyAnything(trouble, maxSize):
    world = Troubled(trouble, maxSize=maxSize)
    results = []
    world.pool.acquire().addBoth(results.append)  # finds out, at most
    world.advance(20)
    if hasattr(results[0], "release"):
        results[0].release()
    world.advance(20)
    waits = []
    for turn in range(150):
        waits.append(world.use()[0])
        world.advance([0.5, 3.0, 12.0][turn % 3])  # longer: the idle one expires
    assert max(waits) <= 0.2
    assert not world.pool.stats().down
    world.first.answer = "refuse"
    world.setup.end()


@pytest.mark.parametrize("trouble", TROUBLES)
def test_theFirstServerIsUsedAgainWithinFailBack(trouble):
    world = Troubled(trouble, failBack=10.0, backoff=lambda failures: 2.0)
    world.pool.acquire().addBoth(lambda lease: getattr(lease, "release", int)())
    world.advance(5)
    world.use()
    world.trouble = None
    world.advance(2.0 + 3.0 + PROBATION_SECONDS + 10.0)
    for _ in range(5):
        waited, mine = world.use()
        assert mine
        assert waited <= 0.2
        world.advance(1.0)
    live = [each for each in world.second.transports if each.connected]
    assert live == []
    world.setup.end()


def test_withoutFailBackConnectionsToLaterServersStay():
    world = Troubled("refusing", failBack=None, idleTimeout=None, order="fifo")
    world.advance(0.1)
    world.pool.acquire().addBoth(lambda lease: lease.release())
    world.advance(1)
    world.use()
    world.trouble = None
    world.advance(100)
    assert [each for each in world.second.transports if each.connected]
    world.setup.end()


def test_downChangesOnEvidenceOnly():
    """
    A server that is silent after it refused: neither its back-off nor a dial that has
    no answer makes the pool look up.
    """
    setup = Setup("refuse", maxSize=2, connectTimeout=5.0, backoff=lambda failures: 1.0)
    service = ConnectionPoolService(setup.pool)
    assert service.trouble() is None
    service.startService()
    failureResultOf(setup.pool.acquire(), PoolError)
    setup.endpoint.answer = "hold"
    for _ in range(200):
        assert setup.pool.stats().down
        assert "cannot reach" in service.trouble()
        setup.clock.advance(0.1)
    dials = len(setup.endpoint.attempts)
    assert 3 <= dials <= 5  # by the pool's own, one at a time
    for attempt in list(setup.endpoint.pending):
        attempt.succeed()
    setup.endpoint.answer = "accept"
    setup.clock.advance(2)
    assert not setup.pool.stats().down
    assert service.trouble() is None
    setup.end()


def test_aProbeGivesItsPlaceToWhoeverNeedsIt():
    world = Troubled("refusing", maxSize=1)
    world.pool.acquire().addBoth(lambda lease: lease.release())
    world.advance(1)
    world.trouble = "silent"
    world.advance(12)  # the idle connection gave way to a probe, which is silent
    stats = world.pool.stats()
    if stats.connecting:
        lease = successResultOf(world.pool.acquire())
        assert lease.protocol.transport in world.second.transports
        lease.release()
    world.setup.end()


def test_aSlowDialIsNotWaitedFor():
    world = Troubled("silent")
    waited, mine = world.use()
    assert waited <= SLOW_DIAL_SECONDS + 0.1
    assert not mine
    world.setup.end()


@pytest.mark.parametrize("users", [1, 20])
def test_aServerThatAcceptsAndClosesIsDialledOnceAStep(users):
    pauses = []

    def backoff(failures):
        pauses.append(failures)
        return 0.5

    setup = Setup("hold", maxSize=10, backoff=backoff)

    def again(result):
        if hasattr(result, "protocol"):
            transport = result.protocol.transport
            setup.clock.callLater(0.001, transport.finish)
            # the user has the lease until then, and asks again at once
            result.protocol.connectionLost = lambda _, lease=result: setup.clock.callLater(0, ask)
        elif not setup.over:
            setup.clock.callLater(0.01, ask)

    def ask():
        if not setup.over:
            setup.pool.acquire().addBoth(again)

    setup.over = False
    setup.endpoint.answer = "accept"
    for _ in range(users):
        ask()
    for _ in range(1000):
        setup.clock.advance(0.01)
    # 20 steps of half a second, and what was dialled before anything was known
    assert len(setup.endpoint.attempts) <= 20 + 10 + 2
    assert setup.pool.stats().down
    assert "before it said anything" in setup.pool.trouble() or "closed" in setup.pool.trouble()
    setup.over = True
    setup.clock.advance(40)
    setup.end()


def test_aByteProvesAServerThatClosedEarly():
    setup = Setup(maxSize=1, backoff=lambda failures: 5.0)
    for _ in range(2):
        lease = successResultOf(setup.pool.acquire())
        lease.protocol.transport.finish()
        lease.release()
    assert setup.pool.stats().down
    failureResultOf(setup.pool.acquire(), PoolError)
    setup.clock.advance(5)
    lease = successResultOf(setup.pool.acquire())
    lease.protocol.transport.receive(b"hello")
    assert not setup.pool.explain().count("failed")
    lease.release()
    setup.end()


def test_aBadDestinationIsLeftAtOnce():
    setup = Setup(endpoints=2, maxSize=4)
    first, second = setup.endpoints
    leases = [successResultOf(setup.pool.acquire()) for _ in range(3)]
    leases[1].release()
    leases[0].discard(destinationBad=True)
    setup.turn()
    other = successResultOf(setup.pool.acquire())
    assert other.protocol.transport in second.transports
    other.release()
    leases[2].release()  # it led to the first
    setup.turn()
    assert not [each for each in first.transports if each.connected]
    assert setup.pool.stats().closed["condemned"] == 2
    setup.end()


def test_anObserverMayCondemn():
    setup = Setup(endpoints=2, maxSize=4)
    lease = successResultOf(setup.pool.acquire())
    setup.pool.condemn(lease.number, destinationBad=True)
    lease.release()
    setup.turn()
    other = successResultOf(setup.pool.acquire())
    assert other.protocol.transport in setup.endpoints[1].transports
    setup.pool.condemn(999)  # gone meanwhile: nothing happens
    other.release()
    setup.end()
