"""
A pool on a clock and a fake endpoint.
"""

from __future__ import annotations

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from connpool.pool import ConnectionPool
from connpool.testing import FakeEndpoint


class Echoing(Protocol):
    """
    Remembers what happened to it.
    """

    def __init__(self):
        self.made = 0
        self.received = b""
        self.lost = []

    def connectionMade(self):
        self.made += 1

    def dataReceived(self, data):
        self.received += data

    def connectionLost(self, reason):
        self.lost.append(reason)


class Setup:
    """
    A pool with everything around it.
    """

    def __init__(self, answer="accept", *, endpoints=1, protocol=Echoing, **limits):
        self.clock = Clock()
        self.endpoints = [FakeEndpoint(self.clock, answer) for _ in range(endpoints)]
        self.endpoint = self.endpoints[0]
        limits.setdefault("backoff", lambda failures: 1.0 * failures)
        self.pool = ConnectionPool(
            self.clock,
            self.endpoint if endpoints == 1 else self.endpoints,
            Factory.forProtocol(protocol),
            name="test",
            **limits,
        )

    @property
    def core(self):
        return self.pool.shell.core

    def turn(self):
        """
        Let closings that were asked for happen.
        """
        self.clock.advance(0)

    def pending(self):
        """
        The dials without an outcome.
        """
        return list(self.endpoint.pending)

    def check(self):
        """
        What must hold at every moment.
        """
        stats = self.pool.stats()
        gauges = (stats.leased, stats.idle, stats.connecting, stats.closing)
        gauges += (stats.returning, stats.checking)
        assert sum(gauges) == stats.size <= stats.maxSize
        assert min(gauges) >= 0
        assert self.endpoint.most <= stats.maxSize

    def end(self):
        """
        Close, and leave nothing behind.
        """
        closed = []
        self.pool.close(0).addCallback(closed.append)
        for _ in range(20):
            if closed:
                break
            self.clock.advance(10)
        assert closed == [None]
        assert self.pool.stats().size == 0
        assert self.endpoint.opened == 0
        assert self.clock.getDelayedCalls() == []
