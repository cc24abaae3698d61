"""
The good-neighbour rules, without a network: each on, and each switched off.
"""

from __future__ import annotations

import ipaddress
import os
import tracemalloc

import pytest

from connpool.addresses import Networks
from connpool.datagram import RULES, Limits, OwnPorts, Policy
from connpool.datagram.limits import (
    ANSWERING_PORTS,
    LOOP_COUNT,
    LOOP_EVERY,
    LOOP_GAP_SECONDS,
    LOOP_HOLD_SECONDS,
)
from connpool.errors import AddressError

#: Rounds of one datagram after which it is recognised.
ROUNDS = (LOOP_COUNT + 1) * LOOP_EVERY


def packed(host):
    return ipaddress.ip_address(host).packed


class World:
    """
    Limits with a clock.
    """

    def __init__(self, ownPorts=None, **policy):
        self.limits = Limits(Policy(**policy), ownPorts or OwnPorts())
        self.now = 1000.0

    def source(self, host="192.0.2.7", port=40_000):
        return self.limits.source(packed(host), port, (host, port))

    def ask(self, host="192.0.2.7", port=40_000, count=1):
        return self.limits.admit(self.source(host, port), count, self.now)

    def look(self, payload, *, host="192.0.2.7", port=40_000):
        self.limits.look(self.source(host, port), payload, self.now)


STATIC = [
    ("low-ports", {"port": 1023}),
    ("low-ports", {"port": 7}),
    ("low-ports", {"port": 19}),
    ("low-ports", {"port": 53}),
    ("low-ports", {"port": 123}),
    ("answering-ports", {"port": 1900}),
    ("answering-ports", {"port": 5353}),
    ("answering-ports", {"port": 8641}),
    ("answering-ports", {"port": 11_211}),
    ("own-ports", {"port": 20_000}),
    ("sources", {"host": "255.255.255.255"}),
    ("sources", {"host": "224.0.0.1"}),
    ("sources", {"host": "240.0.0.1"}),
    ("sources", {"host": "0.0.0.0"}),
    ("sources", {"host": "ff02::1"}),
    ("sources", {"host": "::"}),
]


@pytest.mark.parametrize(("rule", "who"), STATIC)
def test_whoIsNotAnswered(rule, who):
    own = OwnPorts()
    own.add(20_000)
    world = World(own)
    assert world.ask(**who) == 0
    assert world.limits.refused == {rule: 1}
    # each has its switch; a low port may be on the list of answering ones too
    assert World(own, relax=frozenset({rule, "answering-ports"})).ask(**who) == 1


def test_portZeroHasNoSwitch():
    world = World(relax=frozenset(RULES))
    assert world.ask(port=0) == 0
    assert world.limits.refused == {"port-zero": 1}


def test_theWellKnownAnswerersAreListed():
    for port in (7, 13, 17, 19, 53, 69, 123, 161, 389, 1900, 3478, 5060, 5353, 11_211):
        assert port in ANSWERING_PORTS


def test_aSiblingThatStartsLaterIsKnownAtOnce():
    own = OwnPorts()
    world = World(own)
    assert world.ask(port=20_000) == 1
    own.add(20_000)
    assert world.ask(port=20_000) == 0
    own.add(20_000)
    own.remove(20_000)
    assert world.ask(port=20_000) == 0
    own.remove(20_000)
    assert world.ask(port=20_000) == 1


def test_lists():
    world = World(allow=Networks.parse(["192.0.2.0/24"]), deny=Networks.parse(["192.0.2.9"]))
    assert world.ask("192.0.2.7") == 1
    assert world.ask("192.0.2.9") == 0
    assert world.ask("198.51.100.1") == 0
    assert world.ask("2001:db8::1") == 0
    assert world.limits.refused == {"denied": 3}


@pytest.mark.parametrize(
    ("near", "far"),
    [("192.0.2.200", "192.0.3.1"), ("2001:db8:1:2:ffff::9", "2001:db8:1:3::1")],
)
def test_oneNetworkOneRate(near, far):
    world = World(rate=100, burst=200)
    home = "192.0.2.7" if "." in near else "2001:db8:1:2::7"
    assert world.ask(home, count=150) == 150
    assert world.ask(near, port=50_000, count=100) == 50
    assert world.ask(home) == 0
    assert world.ask(far, count=100) == 100
    assert world.limits.refused == {"rate": 51}
    world.now += 0.5
    assert world.ask(home, count=100) == 50
    world.now += 1000
    assert world.ask(home, count=1000) == 200


def test_manyNetworksOfOneSite():
    world = World(rate=100, burst=100)
    granted = sum(world.ask(f"2001:db8:1:{i:x}::1", count=100) for i in range(40))
    # a collision of two of forty in 32,768 slots costs a hundred
    assert 300 <= granted <= 400
    assert world.ask("2001:db8:2::1", count=100) == 100


def test_maxRate():
    world = World(maxRate=1000)
    granted = sum(world.ask(f"10.{i}.0.1", count=100) for i in range(100))
    assert granted == 2000  # two seconds' worth is the burst
    world.now += 1
    assert sum(world.ask(f"11.{i}.0.1", count=100) for i in range(100)) == 1000


def test_refusedAnswersCostNoTokens():
    world = World(rate=100, burst=100, maxRate=1000)
    for _ in range(100):
        world.ask("10.0.0.1", count=100)
    assert world.ask("10.0.1.1", count=100) == 100


def test_rateSwitchedOff():
    assert World(rate=1, burst=1, relax=frozenset({"rate"})).ask(count=10_000) == 10_000


def test_trustedSourcesAreCountedNotDropped():
    world = World(rate=100, burst=100, trusted=Networks.parse(["192.0.2.0/24"]))
    assert world.ask(count=150) == 150
    assert world.limits.overLimit == 50
    assert world.ask("127.0.0.1", count=150) == 150
    assert world.ask("::1", count=150) == 150
    assert world.limits.overLimit == 150
    assert not +world.limits.refused
    # rules about ports hold for them too
    assert world.ask(port=19) == 0
    assert World(rate=100, burst=100, trustLoopback=False).ask("127.0.0.1", count=150) == 100


def test_longerAnswersAreOneASecond():
    world = World()
    one, neighbour, other = world.source(), world.source("192.0.2.99"), world.source("198.51.100.1")
    limits = world.limits
    assert limits.longer(one, world.now)
    assert not limits.longer(one, world.now)
    assert not limits.longer(neighbour, world.now + 0.9)
    assert limits.longer(other, world.now + 0.9)
    assert limits.longer(neighbour, world.now + 1.1)


def loop(world, datagrams, gap=0.001, rounds=10_000):
    """
    So many datagrams going round between us and an echo that answers at once.

    @return: rounds until none was left.
    """
    circling = [b"datagram %d" % i for i in range(datagrams)]
    for round_ in range(rounds):
        if not circling:
            return round_
        left = []
        for payload in circling:
            if world.ask():
                world.look(payload)
                left.append(payload)
        circling = left
        world.now += gap
    return rounds


def test_aLoopEnds():
    assert loop(World(), 1) <= ROUNDS + 2


def test_manyDatagramsInALoopEndInAFewMoreRounds():
    assert loop(World(), 64) <= ROUNDS + 10


def test_aLoopOverTheInternetEnds():
    assert loop(World(), 1, gap=0.2) <= ROUNDS + 2


@pytest.mark.parametrize(
    ("datagrams", "gap"), [(101, 0.3), (1001, 0.3), (6001, 0.3), (1001, 2.0), (20_001, 1.0)]
)
def test_manyDatagramsInASlowLoopEnd(datagrams, gap):
    """
    Each comes too seldom to be noticed for itself, or they are more than there
    are slots.  What is left in the end is fewer than four a second.
    """
    world = World()
    circling = [b"datagram %d" % i for i in range(datagrams)]
    for _ in range(40):
        left = []
        for payload in circling:
            if world.ask():
                world.look(payload)
                left.append(payload)
            world.now += gap / len(circling)
        circling = left or circling[:1]
    assert len(circling) <= 4 * gap + 1


def test_loopsSwitchedOff():
    assert loop(World(relax=frozenset({"loops"})), 1, rounds=1000) == 1000


def test_trustedLoopsAreLeftAlone():
    assert loop(World(trusted=Networks.parse(["192.0.2.7"])), 1, rounds=1000) == 1000


def test_numberedDatagramsAreNoLoop():
    world = World()
    for number in range(20_000):
        assert world.ask() == 1
        world.look(b"%d" % number)
        world.now += 0.0001


def test_numbersMayComeLast():
    world = World()
    for number in range(2000):
        assert world.ask() == 1
        world.look(bytes(1400) + b"%d" % number)
        world.now += 0.001


def test_oneSourcesRepetitionsAreNotAnothers():
    world = World()
    for _ in range(2000):
        for port in range(40_000, 40_010):
            # all the same, each as often as it may
            assert world.ask(port=port) == 1
            world.look(b"hello", port=port)
        world.now += 1.01


def test_constantDatagramsWithPausesAreNoLoop():
    world = World()
    for _ in range(1000):
        assert world.ask() == 1
        world.look(b"hello")
        world.now += LOOP_GAP_SECONDS * 1.01


def test_suspicionPasses():
    world = World()
    for _ in range(ROUNDS):
        world.look(b"hello")
    assert world.ask(count=100) == 50
    assert world.limits.refused == {"loops": 50}
    assert world.ask("192.0.2.8", count=100) == 100
    world.now += LOOP_HOLD_SECONDS + 0.1
    assert world.ask(count=100) == 100


def test_aMillionSpoofedSourcesCostUnderAMebibyte():
    """
    CONNPOOL_SOURCES=1000000 for the whole of it.
    """
    world = World(trustLoopback=False)
    limits = world.limits
    count = int(os.environ.get("CONNPOOL_SOURCES", "30000"))

    def flood(n):
        for i in range(n):
            address = os.urandom(4 if i % 3 else 16)
            port = 1024 + i % 60_000
            source = limits.source(address, port, (address, port))
            if limits.admit(source, 1, world.now):
                limits.look(source, address, world.now)
            world.now += 0.00001

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        flood(count)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < 1 << 20
    # and somebody who is there is still answered
    assert World().ask(count=100) == 100
    assert world.ask("203.0.113.5", count=10) == 10


def test_everythingThereIsUnderAMebibyte():
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        limits = Limits(Policy(), OwnPorts())
        assert tracemalloc.get_traced_memory()[0] - before < 1 << 20
    finally:
        tracemalloc.stop()
    assert limits.overLimit == 0


def test_unknownRules():
    with pytest.raises(AddressError, match="no such rule; there are low-ports"):
        Policy(relax=frozenset({"everything"}))


def test_linkLocalHostsHaveRatesOfTheirOwn():
    """
    All of them are in one /64, and the same address on two links is two hosts.
    """
    limits = Limits(Policy(rate=10, burst=10, maxRate=10**6), OwnPorts())
    one = bytes.fromhex("fe80000000000000") + bytes(7) + b"\1"
    other = one[:-1] + b"\2"
    sources = [
        limits.source(address, 40_000, (address, zone), zone)
        for address, zone in ((one, 2), (other, 2), (one, 3))
    ]
    assert limits.admit(sources[0], 100, 5.0) == 10
    assert limits.admit(sources[0], 100, 5.0) == 0
    for source in sources[1:]:
        assert limits.admit(source, 10, 5.0) == 10
    assert len({source.key for source in sources}) == 3
    near = bytes.fromhex("20010db800000001") + bytes(7)
    assert limits.admit(limits.source(near + b"\1", 40_000, "a"), 10, 5.0) == 10
    assert limits.admit(limits.source(near + b"\2", 40_000, "b"), 10, 5.0) == 0


def test_longerAnswersToTrustedSourcesOnlyCount():
    limits = Limits(Policy(), OwnPorts())
    loopback = limits.source(b"\x7f\0\0\1", 40_000, "a")
    stranger = limits.source(b"\xc0\0\2\7", 40_000, "b")
    assert [limits.longer(loopback, 5.0) for _ in range(3)] == [True] * 3
    assert [limits.longer(stranger, 5.0) for _ in range(3)] == [True, False, False]
    strict = Limits(Policy(trustLoopback=False), OwnPorts())
    loopback = strict.source(b"\x7f\0\0\1", 40_000, "a")
    assert [strict.longer(loopback, 5.0) for _ in range(3)] == [True, False, False]
