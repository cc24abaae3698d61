"""
One port, several protocols: the first bytes decide.

A file name cannot start with NUL, so a preamble that does is never a classic
sender; a connection that begins with no signature is classic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from connpool.interfaces import IDrainableProtocol

__all__ = ["FIRST_BYTES_TIMEOUT", "Choice", "Sniffer", "SnifferFactory"]

#: Seconds a connection may say nothing at all.
FIRST_BYTES_TIMEOUT = 10.0


@attrs.frozen
class Choice:
    """
    A protocol that may be spoken on the port.

    @ivar signature: the bytes its connections begin with; empty for the last
        choice, which takes everything else.
    @ivar build: makes the protocol, given the transport.
    """

    signature: bytes
    build: Callable[[Any], Any]


@implementer(IHalfCloseableProtocol, IDrainableProtocol)
class Sniffer(Protocol):
    """
    Reads until one choice is left, then stands aside: the protocol that was chosen gets the
    real transport, and the bytes come to it directly.

    @param clock: times the wait for the first bytes.
    @param choices: in order; the last one has an empty signature.
    """

    def __init__(self, clock: Any, choices: Sequence[Choice]) -> None:
        self._clock = clock
        self._choices = choices
        self._first = b""
        self.inner: Any = None

    def connectionMade(self) -> None:
        self._late = self._clock.callLater(FIRST_BYTES_TIMEOUT, self._leave)

    def dataReceived(self, data: bytes) -> None:
        self._first += data
        for choice in self._choices:
            if self._first.startswith(choice.signature):
                self._choose(choice)
                return
            if choice.signature.startswith(self._first):
                return  # a prefix: more will tell

    def _choose(self, choice: Choice) -> None:
        if self._late.active():
            self._late.cancel()
        self.inner = choice.build(self.transport)
        self.dataReceived = self.inner.dataReceived  # type: ignore[method-assign]  # from now on it only passes on
        self.inner.makeConnection(self.transport)
        first, self._first = self._first, b""
        self.inner.dataReceived(first)

    def _leave(self) -> None:
        transport: Any = self.transport
        if self._first:
            # a name that begins as a signature does
            self._choose(self._choices[-1])
        else:
            transport.abortConnection()

    def readConnectionLost(self) -> None:
        (self._close if self.inner is None else self.inner.readConnectionLost)()

    def writeConnectionLost(self) -> None:
        if self.inner is not None:
            self.inner.writeConnectionLost()

    def connectionLost(self, reason: Any = None) -> None:
        if self._late.active():
            self._late.cancel()
        if self.inner is not None:
            self.inner.connectionLost(reason)

    def drain(self) -> None:
        # a connection that has not said anything may go
        (self._close if self.inner is None else self.inner.drain)()

    def _close(self) -> None:
        transport: Any = self.transport
        transport.loseConnection()


class SnifferFactory(Factory):
    """
    Builds sniffers.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param choices: in order; the last one has an empty signature.
    """

    noisy = False

    def __init__(self, clock: Any, choices: Sequence[Choice]) -> None:
        self._clock = clock
        self._choices = choices

    def buildProtocol(self, addr: Any) -> Sniffer:
        return Sniffer(self._clock, self._choices)
