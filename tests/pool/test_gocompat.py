"""
C{newPool}: the seed's semantics, and a regression test for each of its bugs.
"""

import pytest
from twisted.internet.endpoints import connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.task import Clock

from connpool.pool import ConnectFailed, DoubleRelease, ForeignLease, PoolClosed, newPool
from connpool.testing import FakeEndpoint
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.pool.building import Echoing


class Seed:
    """
    C{newPool} on a clock.
    """

    def __init__(self, size=1, timeout=30.0, answer="accept"):
        self.clock = Clock()
        self.endpoint = FakeEndpoint(self.clock, answer)
        self.pool = newPool(
            size, timeout, lambda: connectProtocol(self.endpoint, Echoing()), self.clock
        )

    def get(self):
        return successResultOf(self.pool.get())

    def end(self):
        closed = self.pool.close()
        self.clock.advance(6)
        assert successResultOf(closed) is None
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []
        assert self.endpoint.opened == 0


def test_bug1_onePermitCyclesForEver():
    seed = Seed(1)
    first = seed.get()
    seed.pool.put(first)
    for _ in range(10_000):
        protocol = seed.get()
        assert protocol is first
        seed.pool.put(protocol)
    assert len(seed.endpoint.attempts) == 1
    seed.end()


def test_bug2_noWakeUpIsLost():
    seed = Seed(1)
    held = seed.get()
    waiting = [seed.pool.get() for _ in range(3)]
    for waiter in waiting:
        assertNoResult(waiter)
        seed.pool.put(held)
        assert successResultOf(waiter) is held
    seed.pool.put(held)
    seed.end()


def test_bug3_aFailedDialCostsNoSlot():
    seed = Seed(1, answer="refuse")
    for _ in range(5):
        failureResultOf(seed.pool.get(), ConnectFailed)
        seed.clock.advance(60)
    seed.endpoint.answer = "accept"
    seed.pool.put(seed.get())
    seed.end()


def test_bug3_waitersBehindAFailedDialAreServed():
    seed = Seed(1, answer="hold")
    waiting = [seed.pool.get() for _ in range(2)]
    next(iter(seed.endpoint.pending)).fail()
    for waiter in waiting:
        failureResultOf(waiter)
    seed.end()


def test_bug4_aSlowDialBlocksNobody():
    seed = Seed(2)
    idle = seed.get()
    seed.endpoint.answer = "hold"
    slow = seed.pool.get()
    seed.pool.put(idle)
    assert successResultOf(slow) is idle
    late = seed.pool.get()
    assertNoResult(late)
    seed.pool.put(idle)
    assert successResultOf(late) is idle
    seed.pool.put(idle)
    seed.end()


def test_bug5_closeOfAnEmptyPoolWorks():
    seed = Seed()
    assert successResultOf(seed.pool.close()) is None
    assert successResultOf(seed.pool.close()) is None


def test_bug5_closeClosesEveryConnectionAndWakesWaiters():
    seed = Seed(3)
    held = [seed.get() for _ in range(3)]
    waiter = seed.pool.get()
    seed.pool.put(held.pop())  # to the waiter
    held.append(successResultOf(waiter))
    waiter = seed.pool.get()
    seed.pool.close()
    failureResultOf(waiter, PoolClosed)
    failureResultOf(seed.pool.get(), PoolClosed)
    for protocol in held:
        seed.pool.put(protocol)
    seed.clock.advance(0)
    assert [len(protocol.lost) for protocol in held] == [1, 1, 1]
    seed.end()


def test_bug6_doublePutIsRefused():
    seed = Seed(2)
    protocol = seed.get()
    seed.pool.put(protocol)
    with pytest.raises(DoubleRelease):
        seed.pool.put(protocol)
    assert seed.get() is protocol
    assert seed.get() is not protocol
    seed.pool.pool.close(0)
    seed.end()


@pytest.mark.parametrize("foreign", [None, object(), Echoing()])
def test_bug6_foreignPutIsRefused(foreign):
    seed = Seed()
    with pytest.raises(ForeignLease):
        seed.pool.put(foreign)
    seed.end()


def test_bug7_aBrokenConnectionIsNotKept():
    seed = Seed(1)
    broken = seed.get()
    seed.endpoint.transports[0].finish()
    seed.pool.put(broken)
    hungUp = seed.get()
    assert hungUp is not broken
    hungUp.transport.loseConnection()
    seed.pool.put(hungUp)
    seed.clock.advance(0)
    assert seed.get() is not hungUp
    seed.pool.pool.close(0)
    seed.end()


def test_bug8_theTimeoutCountsIdleTimeOnly():
    seed = Seed(1, timeout=30)
    protocol = seed.get()
    seed.clock.advance(29)
    seed.pool.put(protocol)
    seed.clock.advance(29)
    assert seed.get() is protocol
    seed.clock.advance(100)  # in use: nothing ends it
    assert not protocol.lost
    seed.pool.put(protocol)
    seed.clock.advance(29)
    assert seed.get() is protocol
    seed.pool.put(protocol)
    seed.end()


@pytest.mark.parametrize("cycles", [1, 100])
def test_bug9_reusedBeforeTheTimeoutAndReplacedAtIt(cycles):
    seed = Seed(1, timeout=30)
    for cycle in range(cycles):
        first = seed.get()
        seed.pool.put(first)
        seed.clock.advance(30 - 0.001)
        assert seed.get() is first
        seed.pool.put(first)
        seed.clock.advance(30)
        waiter = seed.pool.get()
        seed.clock.advance(0)
        second = successResultOf(waiter)
        assert second is not first
        assert len(first.lost) == 1
        assert len(seed.endpoint.attempts) == cycle + 2
        seed.pool.put(second)
        assert seed.endpoint.most == 1
    seed.end()


def test_bug9_anExpiredConnectionIsReplacedEvenIfTheTimerIsLate():
    seed = Seed(1, timeout=30)
    first = seed.get()
    seed.pool.put(first)
    seed.clock.rightNow += 30  # a blocked reactor: time passed, nothing ran
    waiter = seed.pool.get()
    assertNoResult(waiter)
    seed.clock.advance(0)
    assert successResultOf(waiter) is not first
    seed.pool.pool.close(0)
    seed.end()


def test_bug10_idleConnectionsAreClosedWithoutAGet():
    seed = Seed(5, timeout=30)
    held = [seed.get() for _ in range(5)]
    for protocol in held:
        seed.pool.put(protocol)
    seed.clock.advance(30)
    seed.clock.advance(0)
    assert seed.endpoint.opened == 0
    assert seed.clock.getDelayedCalls() == []
    seed.end()


def test_bug11_thePoolShrinksToWhatIsUsed():
    seed = Seed(5, timeout=30)
    held = [seed.get() for _ in range(5)]
    for protocol in held:
        seed.pool.put(protocol)
    for _ in range(40):
        seed.pool.put(seed.get())
        seed.clock.advance(1)
    seed.clock.advance(0)
    assert seed.endpoint.opened == 1
    seed.end()


def test_bug12_readingAndWritingDoNotTouchTheDeadline():
    seed = Seed(1, timeout=30)
    protocol = seed.get()
    protocol.transport.write(b"x")
    seed.endpoint.transports[0].receive(b"y")
    assert protocol.received == b"y"
    seed.pool.put(protocol)
    seed.clock.advance(29.9)
    assert seed.endpoint.opened == 1
    seed.clock.advance(0.1)
    seed.clock.advance(0)
    assert seed.endpoint.opened == 0
    seed.end()


@pytest.mark.parametrize(("size", "timeout"), [(0, 1), (-1, 1), (1, 0), (1, -5), (1, float("nan"))])
def test_bug13_impossibleLimitsAreRefused(size, timeout):
    with pytest.raises(ValueError, match="out of range"):
        newPool(size, timeout, Echoing, Clock())


def test_bug14_aGetCanBeCancelled():
    seed = Seed(1)
    held = seed.get()
    waiter = seed.pool.get()
    waiter.cancel()
    failureResultOf(waiter)
    seed.pool.put(held)
    assert seed.get() is held
    seed.pool.pool.close(0)
    seed.end()


def test_bug15_aConnectThatRaisesFailsTheGet():
    def connect():
        raise ConnectError(string="no route")

    pool = newPool(1, 1, connect, Clock())
    error = failureResultOf(pool.get(), ConnectFailed)
    assert "no route" in str(error)


def test_bytesNobodyAskedForCloseAnIdleConnection():
    seed = Seed(1)
    protocol = seed.get()
    seed.pool.put(protocol)
    seed.endpoint.transports[0].receive(b"late answer")
    assert protocol.received == b""
    waiter = seed.pool.get()
    seed.clock.advance(0)
    assert successResultOf(waiter) is not protocol
    seed.pool.pool.close(0)
    seed.end()
