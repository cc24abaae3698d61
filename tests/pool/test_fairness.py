"""
Fair between keys: the longest waiter that may use a place gets it; in every order of
what can happen to two keys, one of which is in back-off now and then.
"""

import itertools

import pytest
from twisted.internet.defer import ensureDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from connpool.pool import AcquireTimeout, ConnectionPoolService, KeyedConnectionPool, PoolClosed
from connpool.testing import FakeEndpoint
from tests.helpers.waiting import failureResultOf, successResultOf


class Keys:
    """
    A keyed pool on a clock.
    """

    def __init__(self, **limits):
        self.clock = Clock()
        self.endpoints = {}
        limits = {"acquireTimeout": 30.0, "backoff": lambda failures: 1.0} | limits
        factory = Factory.forProtocol(Protocol)
        self.pool = KeyedConnectionPool(self.clock, self.endpointFor, factory, **limits)

    def endpointFor(self, key):
        if key not in self.endpoints:
            self.endpoints[key] = FakeEndpoint(self.clock)
        return self.endpoints[key]

    def end(self):
        closed = self.pool.close(0)
        for _ in range(5):
            self.clock.advance(10)
        successResultOf(closed)
        assert not self.clock.getDelayedCalls()


def test_aBusyKeyDoesNotStarveAnother():
    keys = Keys(maxTotal=2, maxSize=2, fairAfter=0.1)
    served = []

    def again():
        def got(lease):
            served.append(lease)
            keys.clock.callLater(0.01, lambda: (again(), lease.release()))

        keys.pool.acquire("busy").addCallbacks(got, lambda _: None)

    for _ in range(4):
        again()
    keys.clock.advance(0)
    results = []
    keys.pool.acquire("quiet").addBoth(results.append)
    while not results:
        keys.clock.advance(0.01)
        assert keys.clock.seconds() < 0.3
    assert keys.clock.seconds() >= 0.05
    results[0].release()
    keys.end()


def test_aKeyInBackoffDoesNotBlockOthers():
    keys = Keys(maxTotal=1, maxSize=1, onDown="wait")
    lease = successResultOf(keys.pool.acquire("a"))
    keys.endpointFor("down").answer = "refuse"
    waiting = keys.pool.acquire("down")
    keys.clock.advance(0.01)
    later = keys.pool.acquire("b")
    lease.release()  # the place is tried for "down", then free for "b"
    keys.clock.advance(0.01)
    successResultOf(later).release()
    keys.endpointFor("down").answer = "accept"
    keys.clock.advance(1.0)
    successResultOf(waiting).release()
    keys.end()


def test_aKeyAtItsOwnLimitDoesNotBlockOthers():
    keys = Keys(maxTotal=3, maxSize=1)
    holds = successResultOf(keys.pool.acquire("a"))
    more = [successResultOf(keys.pool.acquire(key)) for key in "bc"]
    first = keys.pool.acquire("a")
    keys.clock.advance(1.0)
    second = keys.pool.acquire("d")
    more.pop().release()
    keys.clock.advance(0)
    successResultOf(second).release()
    holds.release()
    successResultOf(first).release()
    more.pop().release()
    keys.end()


class World:
    """
    Two keys, everything that can happen to them, and who is older.
    """

    FAIR = 0.1

    def __init__(self):
        self.keys = Keys(maxTotal=1, maxSize=1, fairAfter=self.FAIR, onDown="wait")
        self.asked = {"a": [], "b": []}
        self.held = []
        self.trouble = None

    def events(self):
        for key in "ab":
            if len(self.asked[key]) < 2:
                yield f"acquire {key}", lambda key=key: self.acquire(key)
            endpoint = self.keys.endpoints.get(key)
            answer = endpoint.answer if endpoint else "accept"
            other = "refuse" if answer == "accept" else "accept"
            if key == "b":
                yield f"{key} will {other}", lambda key=key, other=other: self.turn(key, other)
        for index in range(len(self.held)):
            yield f"release {index}", lambda index=index: self.held.pop(index)[1].release()
        yield "moment", lambda: self.keys.clock.advance(0.01)
        yield "while", lambda: self.keys.clock.advance(0.15)
        yield "second", lambda: self.keys.clock.advance(1.0)

    def turn(self, key, answer):
        self.keys.endpointFor(key).answer = answer

    def acquire(self, key):
        since = self.keys.clock.seconds()
        d = self.keys.pool.acquire(key)
        entry = (since, d)
        self.asked[key].append(entry)
        d.addCallbacks(self.got, self.refused, (key, entry), None, (key, entry))

    def refused(self, reason, key, entry):
        self.asked[key].remove(entry)

    def got(self, lease, key, entry):
        self.asked[key].remove(entry)
        self.held.append((key, lease))
        other = "b" if key == "a" else "a"
        pool = self.keys.pool.pools().get(other)
        now = self.keys.clock.seconds()
        older = [since for since, _ in self.asked[other] if since < entry[0] - self.FAIR]
        if (
            older
            and pool is not None
            and not any(each.down(now) for each in pool.shell.core.supply.destinations)
        ):
            self.trouble = f"{key} was served although {other} waits since {older[0]:g}"

    def check(self):
        assert self.trouble is None, self.trouble
        assert self.keys.pool.stats().size <= 1
        assert sum(each.opened for each in self.keys.endpoints.values()) <= 1

    def end(self):
        for endpoint in self.keys.endpoints.values():
            endpoint.answer = "accept"
        for _ in range(60):
            while self.held:
                self.held.pop()[1].release()
            self.keys.clock.advance(0.1)
            self.check()
        assert not any(self.asked.values()), "somebody is never served"
        self.keys.end()


def test_noOrderOfEventsIsUnfairToAKey():
    stories = [()]
    seen = 0
    for _ in range(5):
        longer = []
        for story in stories:
            world = World()
            for label in story:
                dict(world.events())[label]()
                world.check()
            seen += 1
            choices = [label for label, _ in world.events()]
            world.end()
            longer.extend((*story, label) for label in choices)
        # what only passes time after time passed adds nothing
        stories = [each for each in longer if each[-2:] not in SAME]
    assert seen > 500


SAME = {
    pair
    for pair in itertools.product(["moment", "while", "second"], repeat=2)
    if pair != ("moment", "while")
} | {("b will refuse", "b will accept"), ("b will accept", "b will refuse")}


def test_aKeyedPoolHasWhatAPlainOneHas():
    keys = Keys(maxTotal=4, maxSize=2)
    told = []
    keys.pool = KeyedConnectionPool(
        keys.clock,
        keys.endpointFor,
        Factory.forProtocol(Protocol),
        maxTotal=4,
        maxSize=2,
        prepare=lambda protocol, key: told.append(key),
    )
    service = ConnectionPoolService(keys.pool)
    service.startService()
    lease = successResultOf(keys.pool.acquire("a"))
    assert told == ["a"]
    successResultOf(keys.pool.whenReady("b", 2))
    assert told == ["a", "b", "b"]
    assert "3 of maxTotal=4" in keys.pool.explain()
    keys.pool.reconfigure(maxTotal=3, maxSize=1)
    assert keys.pool.stats().maxTotal == 3
    assert keys.pool.pools()["a"].settings.maxSize == 1
    with pytest.raises(ValueError, match="maxSize=0"):
        keys.pool.reconfigure(maxTotal=9, maxSize=0)
    with pytest.raises(ValueError, match="fairAfter=-1"):
        keys.pool.reconfigure(fairAfter=-1)
    assert keys.pool.stats().maxTotal == 3
    keys.pool.pause()
    waiting = keys.pool.acquire("c", timeout=1.0)
    assert keys.pool.stats().state == "paused"
    keys.clock.advance(1.0)
    assert "paused" in str(failureResultOf(waiting, AcquireTimeout))
    keys.pool.resume()
    lease.release()
    keys.pool.purge(over=1.0)
    keys.clock.advance(2.0)
    stats = keys.pool.stats()
    assert stats.acquires == 1
    assert service.trouble() is None
    assert service.stats() == stats
    stopped = service.stopService()
    keys.clock.advance(1.0)
    successResultOf(stopped)
    failureResultOf(keys.pool.acquire("a"), PoolClosed)
    service.startService()
    successResultOf(keys.pool.acquire("a")).release()
    assert keys.pool.stats().acquires == 2  # those of keys that are gone included
    keys.end()


def test_aPrepareWithoutAKeyGoesOnWorking():
    keys = Keys()
    told = []
    keys.pool = KeyedConnectionPool(
        keys.clock, keys.endpointFor, Factory.forProtocol(Protocol), prepare=told.append
    )
    successResultOf(keys.pool.acquire("a")).release()
    assert len(told) == 1
    keys.end()


def test_endpointForMayRaise():
    keys = Keys()

    def unknown(key):
        raise KeyError(key)

    keys.pool = KeyedConnectionPool(keys.clock, unknown, Factory.forProtocol(Protocol))
    failureResultOf(keys.pool.acquire("a"), KeyError)
    failureResultOf(keys.pool.run("a", lambda protocol: None), KeyError)

    async def use():
        async with keys.pool.lease("a"):
            pass

    failureResultOf(ensureDeferred(use()), KeyError)
    with pytest.raises(TypeError, match="endpointFor"):
        KeyedConnectionPool(keys.clock, {}, Factory.forProtocol(Protocol))
    keys.pool = KeyedConnectionPool(keys.clock, lambda key: "tcp:x:1", Factory())
    assert "clientFromString" in str(failureResultOf(keys.pool.acquire("a"), TypeError))
    keys.end()


def test_aKeysTimeoutNamesTheSharedLimit():
    keys = Keys(maxTotal=1, maxSize=1, acquireTimeout=1.0)
    lease = successResultOf(keys.pool.acquire("a"))
    late = keys.pool.acquire("b")
    keys.clock.advance(1.0)
    assert "raise maxTotal" in str(failureResultOf(late, AcquireTimeout))
    lease.release()
    keys.end()
