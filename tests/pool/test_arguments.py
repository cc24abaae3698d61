"""
Arguments are judged when they are given, by name, with what would be right.
"""

import math
import re

import pytest
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from connpool.pool import (
    ConnectionPool,
    ConnectionPoolService,
    KeyedConnectionPool,
    newPool,
)
from connpool.testing import FakeEndpoint
from tests.pool.building import Setup

FACTORY = Factory.forProtocol(Protocol)


def pool(**arguments):
    clock = Clock()
    return ConnectionPool(clock, FakeEndpoint(clock, "accept"), FACTORY, **arguments)


def keyed(**arguments):
    clock = Clock()
    return KeyedConnectionPool(clock, lambda _: FakeEndpoint(clock, "accept"), FACTORY, **arguments)


SECONDS = [-1, math.nan, math.inf, True, "3", []]


@pytest.mark.parametrize("value", SECONDS)
@pytest.mark.parametrize("kind", [pool, keyed])
@pytest.mark.parametrize("method", ["drain", "close"])
def test_anEndHasToCome(kind, method, value):
    one = kind()
    with pytest.raises(ValueError, match=re.escape(f"timeout={value!r} is out of range")):
        getattr(one, method)(value)
    assert one.stats().state == "open"


@pytest.mark.parametrize("value", SECONDS)
def test_secondsAreSeconds(value):
    one = pool()
    with pytest.raises(ValueError, match=re.escape(f"timeout={value!r} is out of range")):
        one.whenReady(1, value)
    with pytest.raises(ValueError, match=re.escape(f"over={value!r} is out of range")):
        one.purge(value)
    with pytest.raises(ValueError, match=re.escape(f"drainTimeout={value!r} is out of range")):
        ConnectionPoolService(one, value)


@pytest.mark.parametrize("count", [-1, 2.5, math.nan, True, "3", 11])
def test_aNumberOfConnectionsIsOne(count):
    with pytest.raises(ValueError, match=re.escape(f"count={count!r} is out of range")):
        pool().whenReady(count)


@pytest.mark.parametrize("kind", [pool, keyed])
def test_whatIsCalledCanBe(kind):
    with pytest.raises(TypeError, match="prepare=3 is no function; pass one that takes a prot"):
        kind(prepare=3)
    one, key = kind(), ("key",) if kind is keyed else ()
    with pytest.raises(TypeError, match="f=None is no function; pass one that takes a protocol"):
        one.run(*key, None)
    assert one.stats().acquires == one.stats().waiting == 0
    with pytest.raises(TypeError, match="connect=None is no function"):
        newPool(1, 1.0, None, Clock())


def test_whoWatchesIsAnObserver():
    with pytest.raises(TypeError, match=r"observers\[0\]=3 is no observer; declare @implementer"):
        pool(observers=[3])
    with pytest.raises(TypeError, match=r"observers=3 is no list; pass \[3\]"):
        pool(observers=3)


@pytest.mark.parametrize("kind", [pool, keyed])
def test_aLimitThatIsNoneIsNamed(kind):
    with pytest.raises(TypeError, match=r"maxsize is no limit of a pool; did you mean maxSize\?"):
        kind(maxsize=3)
    with pytest.raises(TypeError, match="colour is no limit of a pool; there are maxSize, "):
        kind().reconfigure(colour=3)


def test_aReactorIsOneAndAServiceHasAPool():
    with pytest.raises(TypeError, match="reactor=None is no reactor; pass twisted"):
        ConnectionPool(None, FakeEndpoint(), FACTORY)
    with pytest.raises(TypeError, match="pool=None is no pool; pass a ConnectionPool"):
        ConnectionPoolService(None)


def test_aNumberThatIsRightWorks():
    setup = Setup(maxSize=3)
    ready = []
    setup.pool.whenReady(3, 5).addCallback(ready.append)
    setup.clock.pump([0, 0, 0])
    assert ready == [None]
    setup.pool.purge(2)
    setup.clock.pump([0.5] * 10)
    setup.end()
