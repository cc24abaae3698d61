"""
Time that somebody sets.
"""

import time

import pytest
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.python import runtime

from connpool.errors import AcquireTimeout, PoolDown
from connpool.pool import clock as module
from connpool.pool import shell
from tests.helpers.waiting import failureResultOf, successResultOf
from tests.pool import building
from tests.pool.building import Setup


class Stepped(Clock):
    """
    Timers by a wall clock that can be set, as Twisted's are on POSIX.
    """

    step = 0.0

    def true(self):
        return self.rightNow - self.step

    def set(self, by):
        self.step += by
        self.rightNow += by
        self.advance(0)


@pytest.fixture
def stepped(monkeypatch):
    monkeypatch.setattr(shell, "steady", lambda reactor: reactor.true)
    monkeypatch.setattr(building, "Clock", Stepped)


def test_theWallClockIsNotUsed():
    assert module.steady(Clock()) is not time.monotonic
    if reactor.seconds is runtime.seconds:
        assert module.steady(reactor) is time.monotonic


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_settingTheClockEndsNothing(stepped, step):
    setup = Setup(maxSize=2, minIdle=1, maxLifetime=600.0, idleTimeout=60.0)
    lease = successResultOf(setup.pool.acquire())
    waiting = [setup.pool.acquire(timeout=None) for _ in range(2)]
    lease.release()
    setup.clock.set(step)
    for each in waiting:
        successResultOf(each).release()
    assert setup.pool.stats().dials <= 2
    assert setup.pool.stats().closed == {}
    assert setup.pool.stats().use.total >= 0
    setup.end()


def test_aDestinationIsNotDownForAnHour(stepped):
    setup = Setup("refuse", maxSize=2)
    failureResultOf(setup.pool.acquire())
    setup.clock.set(-3600.0)
    failureResultOf(setup.pool.acquire(), PoolDown)
    setup.endpoint.answer = "accept"
    setup.clock.advance(1.0)
    successResultOf(setup.pool.acquire()).release()
    setup.end()


def test_whatIsLateHappensWhenAnythingDoes(stepped):
    setup = Setup(maxSize=1)
    lease = successResultOf(setup.pool.acquire())
    early = setup.pool.acquire(timeout=5.0)
    setup.clock.set(-3600.0)
    setup.clock.advance(10.0)
    late = setup.pool.acquire(timeout=5.0)
    failureResultOf(early, AcquireTimeout)
    setup.clock.advance(5.0)  # the timer is right again
    failureResultOf(late, AcquireTimeout)
    lease.release()
    setup.end()
