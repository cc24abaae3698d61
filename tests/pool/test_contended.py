"""
More acquires than connections: what comes back goes from hand to hand.
"""

import asyncio

import pytest
from twisted.internet.defer import Deferred

from connpool.pool import AcquireTimeout, TooManyWaiters
from tests.helpers.cost import calls
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.pool.building import Setup


def leases(setup, count):
    return [successResultOf(setup.pool.acquire()) for _ in range(count)]


def follow(setup, order, name, timeout=30.0):
    """
    Acquire and note when it ends.
    """
    waiter = setup.pool.acquire(timeout)
    waiter.addCallbacks(
        lambda lease: order.append((name, "served")) or lease,
        lambda reason: reason.trap(AcquireTimeout) and order.append((name, "late")),
    )
    return waiter


def test_aHandOverCostsLittle():
    setup = Setup(maxSize=2)

    async def client(turns):
        for turn in turns:
            async with setup.pool.lease():
                await turn

    turns = [[Deferred() for _ in range(3)] for _ in range(20)]
    clients = [Deferred.fromCoroutine(client(each)) for each in turns]
    # out of the block, the oldest waiter in, and back into the queue
    costs = [calls(lambda turn=each[0]: turn.callback(None)) for each in turns[:10]]
    assert max(costs) <= 75
    assert len(setup.clock.getDelayedCalls()) == 1
    for step in range(3):
        for each in turns:
            if not each[step].called:
                each[step].callback(None)
    for each in clients:
        successResultOf(each)
    setup.end()


def test_whoWaitsGoesWhenItsTimeIsOverWhateverOthersHave():
    setup = Setup(maxSize=1)
    (lease,) = leases(setup, 1)
    order = []
    for name, timeout in (("a", 9.0), ("b", 4.0), ("c", None), ("d", 12.0), ("e", 2.0)):
        follow(setup, order, name, timeout)
        setup.clock.advance(0.5)
        assert len(setup.clock.getDelayedCalls()) == 1
    follow(setup, order, "f", 12.0)
    seen = []
    for _ in range(60):
        setup.clock.advance(0.25)
        if order[len(seen) :]:
            seen.append(setup.clock.seconds())
    assert order == [(name, "late") for name in "ebadf"]
    assert seen == [4.0, 4.5, 9.0, 13.5, 14.5]
    lease.release()
    assert order[-1] == ("c", "served")
    setup.end()


def test_theFirstMayLeaveBeforeTheOthers():
    setup = Setup(maxSize=1)
    (lease,) = leases(setup, 1)
    order = []
    first = follow(setup, order, "first", 5.0)
    setup.clock.advance(1.0)
    follow(setup, order, "second", 5.0)
    first.addErrback(lambda _: None)
    first.cancel()
    setup.clock.advance(4.5)
    assert order == []
    setup.clock.advance(0.5)
    assert order == [("second", "late")]
    lease.release()
    setup.end()


@pytest.mark.parametrize("change", [{"queue": "codel"}, {"acquireTimeout": 1.0}, {"maxSize": 2}])
def test_whoWaitsKeepsItsTimeWhenThePoolIsReconfigured(change):
    setup = Setup(maxSize=1)
    held = leases(setup, 1)
    order = []
    for name, timeout in (("a", 9.0), ("b", 4.0)):
        follow(setup, order, name, timeout).addCallback(held.append)
    setup.pool.reconfigure(**change)
    if "maxSize" in change:
        assert order == [("a", "served")]
        order.append(("a", "late"))
    setup.clock.advance(4.0)
    assert ("b", "late") in order
    setup.clock.advance(5.0)
    assert ("a", "late") in order
    for lease in held:
        if lease is not None:
            lease.release()
    setup.end()


def test_nobodyOvertakesByTrying():
    setup = Setup(maxSize=1)
    (lease,) = leases(setup, 1)
    got = []

    def use(first):
        first.release()
        got.append(setup.pool.tryAcquire())

    setup.pool.acquire().addCallback(use)
    second = setup.pool.acquire()
    lease.release()
    assert got == [None]
    successResultOf(second).release()
    setup.end()


def test_runTakesAnIdleConnectionWhileAnotherIsReturning():
    setup = Setup(maxSize=2)
    for each in leases(setup, 2):
        each.release()
    lease = successResultOf(setup.pool.acquire())
    protocol = lease.protocol
    ran = []

    def dataReceived(data):
        lease.release()
        setup.pool.run(lambda other: ran.append(other))
        assert len(ran) == 1
        assert ran[0] is not protocol

    protocol.dataReceived = dataReceived
    protocol.transport.receive(b"x")
    assert ran
    setup.clock.pump([0, 0, 0])
    setup.end()


def test_noMoreWaitThanMay():
    setup = Setup(maxSize=1, maxWaiting=2)
    (lease,) = leases(setup, 1)
    waiters = [setup.pool.acquire() for _ in range(2)]
    failureResultOf(setup.pool.acquire(), TooManyWaiters)
    lease.release()
    third = setup.pool.acquire()  # one was served, so one may come
    assertNoResult(third)
    failureResultOf(setup.pool.acquire(), TooManyWaiters)
    for each in (*waiters, third):
        successResultOf(each).release()
    setup.end()


def test_aRefusedAcquireLeavesNothingUndone():
    setup = Setup(maxSize=1, maxWaiting=0, idleTimeout=None)
    (lease,) = leases(setup, 1)
    transport = setup.endpoint.transports[0]
    transport.stubborn = True
    lease.release()
    transport.disconnecting = True  # its own protocol hangs up
    failureResultOf(setup.pool.acquire(), TooManyWaiters)
    assert setup.pool.stats().closing == 1
    assert setup.clock.getDelayedCalls()  # closeTimeout
    transport.finish()
    setup.end()


@pytest.mark.parametrize("what", ["producer", "disconnecting", "kernel"])
def test_aConnectionThatIsOfNoUseIsNotPassedOn(what):
    setup = Setup(maxSize=1)
    (lease,) = leases(setup, 1)
    (transport,) = setup.endpoint.transports
    waiter = setup.pool.acquire()
    if what == "producer":
        transport.producer = object()
    elif what == "disconnecting":
        transport.loseConnection()
    else:
        transport.arrive(b"an answer too many")
    lease.release()
    assertNoResult(waiter)
    setup.clock.pump([0, 0, 0, 0])
    setup.check()
    lease = successResultOf(waiter)
    assert lease.protocol.transport is setup.endpoint.transports[1]
    lease.release()
    setup.end()


def test_aBlockThatIsClosedWhileItWaitsLeavesTheQueue(caplogs):
    setup = Setup(maxSize=1)
    (lease,) = leases(setup, 1)
    entering = setup.pool.lease().__aenter__()
    entering.send(None)
    after = setup.pool.acquire()
    assert setup.pool.stats().waiting == 2
    entering.close()
    setup.turn()
    assert setup.pool.stats().waiting == 1
    lease.release()
    successResultOf(after).release()
    setup.turn()
    assert setup.pool.stats().idle == 1  # it is not taken for a leak
    assert not [text for text in caplogs() if "never given back" in text]
    setup.end()


def test_anAsyncioTaskThatHasToWaitIsToldAndLeavesTheQueue():
    setup = Setup(maxSize=1)
    (lease,) = leases(setup, 1)

    async def use():
        async with setup.pool.lease():
            pass

    with pytest.raises(RuntimeError, match="Task got bad yield"):
        asyncio.run(use())
    setup.turn()
    assert setup.pool.stats().waiting == 0
    lease.release()
    assert setup.pool.stats().idle == 1
    setup.end()
