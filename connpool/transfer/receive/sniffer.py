"""
One port, several protocols: the first bytes decide.

A file name cannot start with NUL, so a preamble that does is never a classic
sender; what no door knows is classic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from connpool.interfaces import IDrainable
from connpool.waiting import Waiters

__all__ = ["FIRST_BYTES_TIMEOUT", "Door", "FrontDoor", "FrontDoorFactory"]

#: Seconds a connection may say nothing at all.
FIRST_BYTES_TIMEOUT = 10.0


@attrs.frozen
class Door:
    """
    A protocol behind the front door.

    @ivar signature: the bytes its connections begin with; empty for the last
        door, which takes everything else.
    @ivar build: given the front door's transport, makes the protocol.
    """

    signature: bytes
    build: Callable[[Any], Any]


@implementer(IHalfCloseableProtocol)
class FrontDoor(Protocol):
    """
    Reads until one door is left, then only passes on.

    The protocol behind gets the real transport.

    @param clock: times the wait for the first bytes.
    """

    def __init__(self, clock: Any, factory: FrontDoorFactory) -> None:
        self._clock = clock
        self._factory = factory
        self._doors = factory.doors
        self._first = b""
        self.inner: Any = None

    def connectionMade(self) -> None:
        self._factory.open.add(self)
        self._late = self._clock.callLater(FIRST_BYTES_TIMEOUT, self._leave)

    def dataReceived(self, data: bytes) -> None:
        if self.inner is not None:
            self.inner.dataReceived(data)
            return
        self._first += data
        for door in self._doors:
            if self._first.startswith(door.signature):
                self._enter(door)
                return
            if door.signature.startswith(self._first):
                return  # a prefix: more will tell

    def _enter(self, door: Door) -> None:
        if self._late.active():
            self._late.cancel()
        self.inner = door.build(self.transport)
        self.inner.makeConnection(self.transport)
        first, self._first = self._first, b""
        self.inner.dataReceived(first)

    def _leave(self) -> None:
        if self._first:
            # a name that begins as a signature does
            self._enter(self._doors[-1])
        else:
            transport: Any = self.transport
            transport.abortConnection()

    def readConnectionLost(self) -> None:
        if self.inner is not None:
            self.inner.readConnectionLost()
        else:
            transport: Any = self.transport
            transport.loseConnection()

    def writeConnectionLost(self) -> None:
        if self.inner is not None:
            self.inner.writeConnectionLost()

    def connectionLost(self, reason: Any = None) -> None:
        if self._late.active():
            self._late.cancel()
        if self.inner is not None:
            self.inner.connectionLost(reason)
        self._factory.closed(self)

    def drain(self) -> None:
        """
        The service stops: who has not said anything may go.
        """
        if self.inner is None:
            transport: Any = self.transport
            transport.loseConnection()
        else:
            self.inner.drain()


@implementer(IDrainable)
class FrontDoorFactory(Factory):
    """
    Builds front doors.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @ivar doors: in order; the last one has an empty signature.
    @ivar open: the connections there are.
    """

    noisy = False

    def __init__(self, clock: Any, doors: Sequence[Door]) -> None:
        self._clock = clock
        self.doors = doors
        self.open: set[FrontDoor] = set()
        self._drained = Waiters()

    def buildProtocol(self, addr: Any) -> FrontDoor:
        return FrontDoor(self._clock, self)

    def closed(self, door: FrontDoor) -> None:
        """
        A connection is gone.
        """
        self.open.discard(door)
        if not self.open:
            self._drained.wake()

    def drain(self) -> Deferred[None]:
        drained = self._drained.wait()
        for door in list(self.open):
            door.drain()
        if not self.open:
            self._drained.wake()
        return drained

    def abort(self) -> None:
        for door in list(self.open):
            transport: Any = door.transport
            transport.abortConnection()
