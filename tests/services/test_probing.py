"""
The rounds of a probe that goes on.
"""

from __future__ import annotations

import itertools
import socket
import time

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from zope.interface.verify import verifyObject

from connpool.datagram import Auto, Sample
from connpool.interfaces import IReloadable
from connpool.observe.sources import readSources
from connpool.services.daemon import parts, reload
from connpool.services.probetargets import Target
from connpool.services.probing import Counts, ProbeService, UDPProbe
from tests.datagram.peers import answering, where
from tests.helpers.ports import freePort
from tests.helpers.waiting import pause, until


def target(port, **options):
    host, number = where(port)
    return Target(name="path", address=f"{host}:{number}", **options)


@pytest.mark.parametrize(("interval", "round_"), [(0.1, 0.1), (0.2, 0.1), (0.05, 0.2)])
@pytest_twisted.ensureDeferred
async def test_roundsKeepTheRate(interval, round_):
    """
    The last answer of a round is there at once; the next round is not.
    """
    with answering(Auto()) as port:
        service = ProbeService(reactor, target(port, round=round_, interval=interval))
        start = time.monotonic()
        service.startService()
        try:
            await pause(0.7)
            most = (time.monotonic() - start) / interval + 1
        finally:
            service.stopService()
        assert 2 <= port.received <= most
        assert service.stats().received == service.stats().sent > 0


@pytest_twisted.ensureDeferred
async def test_aFarSideThatClosesIsNotAskedWithoutPause():
    accepted = []

    class Closing(Protocol):
        def connectionMade(self):
            accepted.append(self)
            self.transport.loseConnection()

    factory = Factory.forProtocol(Closing)
    factory.noisy = False
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    service = ProbeService(
        reactor, target(port, round=0.2, interval=0.1, protocol="tcp", timeout=0.3)
    )
    start = time.monotonic()
    service.startService()
    try:
        await until(lambda: len(accepted) >= 2)
        await pause(0.3)
        # one an interval at most
        assert len(accepted) <= (time.monotonic() - start) / 0.1 + 1
    finally:
        service.stopService()
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_whatCannotBeMeasuredIsCountedAndTriedAgain():
    service = ProbeService(
        reactor,
        Target(name="path", address="127.0.0.1:9", round=0.1, interval=0.1, protocol="tcp"),
    )
    service.startService()
    try:
        await until(lambda: service.stats().failures >= 2)
        assert not service.stats().up
    finally:
        service.stopService()
    failures = service.stats().failures
    await pause(0.2)
    assert service.stats().failures == failures


@pytest_twisted.ensureDeferred
async def test_stoppedAndStartedAgain():
    with answering(Auto()) as port:
        service = ProbeService(reactor, target(port, round=0.1, interval=0.05))
        for rounds in (1, 2):
            service.startService()
            await until(lambda rounds=rounds: service.stats().received >= 2 * rounds)
            service.stopService()
        seen = port.received
        await pause(0.2)
        assert port.received == seen
        assert service.stats().failures == 0


# -- figures ------------------------------------------------------------------


def names(stats):
    return {field.name for field in attrs.fields(type(stats)) if getattr(stats, field.name) is None}


GAUGES = {"rttMin", "rttMean", "rttMax", "rttP50", "rttP95", "rttP99", "jitter"}


@pytest_twisted.ensureDeferred
async def test_aDeadTargetHasNoRoundTrip():
    number = freePort(socket.SOCK_DGRAM)
    service = ProbeService(
        reactor,
        Target(name="dead", address=f"127.0.0.1:{number}", round=0.1, interval=0.05, timeout=0.1),
    )
    assert names(service.stats()) == GAUGES | {"up", "roundTrips", "roundSent", "roundLost"}
    service.startService()
    try:
        await until(lambda: service.stats().up is False)
        stats = service.stats()
    finally:
        service.stopService()
    assert names(stats) == GAUGES | {"roundTrips"}
    assert (stats.roundSent, stats.roundLost) == (2, 2)
    assert stats.sent == stats.lost >= 2
    assert stats.errors["ECONNREFUSED"] >= 1


@pytest_twisted.ensureDeferred
async def test_onlyPercentilesThatTheRoundIsLargeEnoughFor():
    with answering(Auto()) as port:
        for count, missing in ((19, {"rttP95", "rttP99"}), (20, {"rttP99"}), (100, set())):
            service = ProbeService(reactor, target(port, round=count / 500, interval=0.002))
            service.startService()
            await until(lambda service=service: service.stats().roundSent)
            service.stopService()
            assert service.stats().roundSent == count
            assert names(service.stats()) == missing
            trips = service.stats().roundTrips
            assert len(trips.counts) == 12
            assert sum(trips.counts) == service.stats().received


@pytest_twisted.ensureDeferred
async def test_anOutageIsLoss():
    """
    Rounds that cannot even begin: the far side does not open a session, or the
    name has no address any more.
    """
    for words in ({"address": "127.0.0.1:9", "protocol": "irtt"}, {"address": "no..such:9"}):
        service = ProbeService(
            reactor, Target(name="out", round=0.2, interval=0.1, timeout=0.1, **words)
        )
        service.startService()
        try:
            await until(lambda service=service: service.stats().failures)
        finally:
            service.stopService()
        stats = service.stats()
        assert stats.sent == stats.lost == stats.unsent >= 2
        assert stats.up is False
        reason = "probe-failed" if "protocol" in words else "lookup-failed"
        assert stats.errors[reason] == stats.failures


@pytest_twisted.ensureDeferred
async def test_countersOnlyGrow():
    """
    Also when a round is stopped in its middle, whose datagrams under way are neither
    sent nor lost.
    """
    with answering(Auto()) as port:
        service = ProbeService(reactor, target(port, round=30, interval=0.01))
        seen = []
        for rounds in range(1, 4):
            service.startService()
            await until(lambda rounds=rounds: service.stats().received >= 5 * rounds)
            seen.append(service.stats())
            service.stopService()
            seen.append(service.stats())
    for before, after in itertools.pairwise(seen):
        assert after.sent >= before.sent
        assert after.received >= before.received
    assert seen[-1].lost == 0
    assert seen[-1].sent == seen[-1].received >= 15
    assert seen[-1].up


def test_reasonsAreAClosedSet():
    counts = Counts()
    for reason in ("ECONNREFUSED", "EWEIRD", "E1234", "closed"):
        counts.error(reason, 1)
    assert counts.errors == {"ECONNREFUSED": 1, "other": 2, "closed": 1}


# -- many targets ------------------------------------------------------------


def listed(*names_, **options):
    return [Target(name=name, address="127.0.0.1:9", interval=60.0, **options) for name in names_]


def labels(probes):
    return sorted(reading.name for reading in readSources([probes]))


def test_targetsBeyondTheExportedAreSummed():
    clock = Clock()
    probes = UDPProbe(clock, listed("a", "b", "c", "d"), exported=2)
    assert labels(probes) == ["a", "b", "others"]
    hidden = [each for each in parts(probes) if getattr(each, "name", "") in {"c", "d"}]
    for probe in hidden:
        probe.counts.sample(Sample(0, "received", 0, 0.0, 0.0015))
        probe.counts.sample(Sample(1, "unsent", 0, 0.0, error="EPERM"))
        probe.counts.error("EPERM", 1)
    (others,) = [each for each in readSources([probes]) if each.name == "others"]
    stats = others.snapshot
    assert (stats.sent, stats.received, stats.lost, stats.unsent) == (4, 2, 2, 2)
    assert stats.errors == {"EPERM": 2}
    assert sum(stats.roundTrips.counts) == 2
    assert stats.up is None


def test_reloadedTargets():
    clock = Clock()
    wanted = listed("a", "b", "c", "d")
    probes = UDPProbe(clock, wanted, lambda: wanted, exported=2)
    verifyObject(IReloadable, probes)
    byName = {each.name: each for each in parts(probes) if hasattr(each, "target")}
    for each in byName.values():
        each.counts.sample(Sample(0, "received", 0, 0.0, 0.0015))
    # a changes, b goes, c goes from the rest, e comes, d stays
    wanted = [*listed("a", size=100), *listed("d", "e")]
    probes.reload()
    assert labels(probes) == ["a", "e", "others"]
    now = {each.name: each for each in parts(probes) if hasattr(each, "target")}
    assert now["d"] is byName["d"]
    assert now["a"] is not byName["a"]
    assert now["a"].target.size == 100
    readings = {reading.name: reading.snapshot for reading in readSources([probes])}
    # counters only grow
    assert readings["a"].received == 1
    assert readings["others"].received == 2
    assert readings["e"].received == 0
    probes.reload()
    assert {each.name: each for each in parts(probes) if hasattr(each, "target")} == now


def test_aMistakeLeavesTheTargetsAsTheyWere():
    def reread():
        raise ValueError("targets:3: ttl: give it once")

    probes = UDPProbe(Clock(), listed("a"), reread)
    assert list(reload(probes)) == ["UDPProbe: targets:3: ttl: give it once"]
    assert labels(probes) == ["a"]


def test_targetsTakeTurns():
    clock = MemoryReactorClock()
    probes = UDPProbe(clock, listed("a", "b", "c", "d"))
    probes.startService()
    try:
        # the first begins at once, the others a quarter of the interval apart
        due = {call.getTime() for call in clock.getDelayedCalls()}
        assert {15.0, 30.0, 45.0} <= due
        assert len(clock.getReaders()) == 1
    finally:
        probes.stopService()
    assert clock.getDelayedCalls() == []
