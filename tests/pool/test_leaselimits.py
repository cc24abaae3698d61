"""
Limits that act by themselves: keepalive, the end of a lease, a purge that is spread.
"""

import contextlib
import gc
import itertools

import pytest
from twisted.internet.defer import Deferred, ensureDeferred
from zope.interface import implementer

from connpool.errors import LeaseError, LeaseReleased
from connpool.interfaces import IPoolable
from connpool.pool import DestinationBad
from tests.helpers.waiting import failureResultOf, successResultOf
from tests.pool.building import Echoing, Setup


@implementer(IPoolable)
class Pinged(Echoing):
    """
    Counts its validations.
    """

    asked = 0
    outcome = True

    def isReusable(self):
        return True

    def reset(self):
        return None

    def validate(self):
        self.asked += 1
        return self.outcome

    def idleDataReceived(self, data):
        return False

    def goodbye(self):
        return None


def leased(setup, count):
    return [successResultOf(setup.pool.acquire()) for _ in range(count)]


def protocols(setup):
    return [slot.protocol for slot in setup.core.inventory.slots]


def test_idleConnectionsAreValidatedInTheBackground():
    setup = Setup(
        maxSize=20, maxConnecting=3, protocol=Pinged, keepaliveTime=10.0, idleTimeout=None
    )
    for lease in leased(setup, 20):
        lease.release()
    most, before = 0, 0
    for _ in range(1000):
        setup.clock.advance(0.1)
        asked = sum(each.asked for each in protocols(setup))
        most, before = max(most, asked - before), asked
    # every 8 to 10 seconds each, and never all at once
    assert all(8 <= each.asked <= 13 for each in protocols(setup))
    assert most < 20
    assert setup.pool.stats().keepalives == before
    setup.end()


def test_aKeepaliveChangesNeitherAgeNorOrder():
    setup = Setup(maxSize=3, protocol=Pinged, keepaliveTime=4.0, idleTimeout=10.0)
    leases = leased(setup, 3)
    numbers = [lease.number for lease in leases]
    for lease in leases:
        lease.release()
    setup.clock.advance(5.0)
    (lease,) = leased(setup, 1)
    assert lease.number == numbers[-1]  # the last that was used, as ever
    lease.release()
    setup.clock.advance(5.5)
    assert setup.pool.stats().closed["idle"] == 2  # ten seconds after their last use
    setup.end()


def test_aConnectionThatDoesNotAnswerIsReplaced():
    setup = Setup(maxSize=1, minIdle=1, protocol=Pinged, keepaliveTime=4.0, resetTimeout=1.0)
    (lease,) = leased(setup, 1)
    lease.protocol.outcome = Deferred()
    lease.release()
    setup.clock.advance(4.0)
    assert setup.pool.stats().checking == 1
    setup.clock.advance(1.0)
    setup.turn()
    assert setup.pool.stats().validateFailures == 1
    assert setup.pool.stats().idle == 1
    setup.end()


@pytest.mark.parametrize("way", ["validate", "reset", "isReusable"])
def test_anIPoolableMayFindItsDestinationBad(way):
    setup = Setup(endpoints=2, maxSize=2, protocol=Pinged, validateAfterIdle=1.0)
    (lease,) = leased(setup, 1)

    def bad():
        raise DestinationBad("read-only")

    setattr(lease.protocol, way, bad)
    lease.release()
    setup.clock.advance(2.0)
    (lease,) = leased(setup, 1)
    assert lease.protocol.transport in setup.endpoints[1].transports
    lease.release()
    setup.end()


def test_oneAcquireValidatesOneConnection():
    for order in ("lifo", "fifo"):
        setup = Setup(
            maxSize=50, protocol=Pinged, validateAfterIdle=5.0, idleTimeout=None, order=order
        )
        for lease in leased(setup, 50):
            lease.protocol.outcome = Deferred()
            lease.release()
        setup.clock.advance(10)
        waiting = [setup.pool.acquire() for _ in range(3)]
        assert sum(each.asked for each in protocols(setup)) == 3
        for each in protocols(setup):
            if each.asked:
                each.outcome.callback(True)
        for d in waiting:
            successResultOf(d).release()
        setup.end()


def test_aLeaseThatIsHeldTooLongIsEnded(caplogs):
    setup = Setup(maxSize=1, leaseTimeout=5.0, leakThreshold=2.0)
    (lease,) = leased(setup, 1)
    transport = lease.protocol.transport
    waiting = setup.pool.acquire()
    setup.clock.advance(2.0)
    assert setup.pool.stats().leaksSuspected == 1
    setup.clock.advance(3.0)
    setup.turn()
    assert not transport.connected
    assert setup.pool.stats().leasesExpired == 1
    assert setup.pool.stats().closed["expired"] == 1
    assert any("leaseTimeout=5 s" in each for each in caplogs())
    for late in (lambda: lease.protocol, lease.release, lease.discard, lease.detach):
        with pytest.raises(LeaseReleased, match="leaseTimeout=5 s"):
            late()
    successResultOf(waiting).release()
    setup.end()


def test_aRunThatTakesTooLongIsCancelled():
    setup = Setup(maxSize=1, leaseTimeout=5.0)
    cancelled = []
    d = setup.pool.run(lambda protocol: Deferred(cancelled.append))
    setup.clock.advance(5.0)
    assert len(cancelled) == 1
    assert "leaseTimeout=5 s" in str(failureResultOf(d, LeaseReleased))
    setup.turn()
    setup.end()


def test_aBlockThatTakesTooLongLosesItsConnection():
    setup = Setup(maxSize=1, leaseTimeout=5.0)
    gate = Deferred()

    async def use():
        async with setup.pool.lease() as protocol:
            await gate
            return protocol.lost

    d = ensureDeferred(use())
    setup.clock.advance(5.0)
    setup.turn()
    gate.callback(None)
    assert len(successResultOf(d)) == 1
    setup.end()


def test_aPurgeCanBeSpread():
    setup = Setup(maxSize=20, idleTimeout=None)
    for lease in leased(setup, 10):
        lease.release()
    (held,) = leased(setup, 1)
    setup.pool.purge(over=10.0)
    assert setup.pool.stats().idle == 9
    gone = []
    for _ in range(100):
        setup.clock.advance(0.1)
        closed = setup.pool.stats().closed.get("stale", 0)
        gone.append(closed)
        assert setup.pool.stats().idle >= 8  # made before broken
    assert max(after - before for before, after in itertools.pairwise(gone)) <= 1
    setup.clock.advance(1)
    held.release()
    setup.turn()
    assert setup.pool.stats().closed["stale"] == 10
    with pytest.raises(ValueError, match="over=-1"):
        setup.pool.purge(over=-1)
    setup.end()


def test_aScopeThatIsDroppedGivesItsSlotBack(caplogs):
    setup = Setup(maxSize=1)

    async def forgets():
        await contextlib.AsyncExitStack().enter_async_context(setup.pool.lease())

    for _ in range(2):  # through the queue, and past it
        successResultOf(ensureDeferred(forgets()))
        gc.collect()
        setup.turn()
        assert setup.pool.stats().leased == 0
        setup.pool.acquire().addCallback(lambda lease: lease.release())
    assert sum("never given back" in each for each in caplogs()) == 2
    setup.end()


def test_aSharedScopeIsAnError():
    setup = Setup("hold", maxSize=2)
    scope = setup.pool.lease()

    async def use():
        async with scope:
            pass

    first = ensureDeferred(use())
    failureResultOf(ensureDeferred(use()), LeaseError)
    setup.pending()[0].succeed()
    successResultOf(first)
    failureResultOf(ensureDeferred(scope.__aexit__(None, None, None)), LeaseError)
    setup.end()


def test_aBackoffIsATurnAtLeast():
    setup = Setup("refuse", maxSize=1, onDown="wait", backoff=lambda failures: 0.0)
    setup.pool.acquire(timeout=1.0).addErrback(lambda _: None)
    setup.clock.advance(0)
    assert len(setup.endpoint.attempts) == 1
    setup.clock.advance(0.001)
    assert len(setup.endpoint.attempts) == 2
    setup.clock.advance(2.0)
    setup.end()
