"""
The rounds of a probe that goes on.
"""

from __future__ import annotations

import time

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol

from connpool.datagram import Auto
from connpool.services.probetargets import Target
from connpool.services.probing import ProbeService
from tests.datagram.peers import answering, where
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
    service.startService()
    try:
        await until(lambda: accepted)
        await pause(0.5)
        assert 2 <= len(accepted) <= 5
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
