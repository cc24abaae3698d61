"""
One port, several protocols: the first bytes decide.

A file name cannot start with NUL, so a preamble that does is never a classic
sender; the name of a classic sender has no slash, so the first line of an HTTP request is
none.  A connection that begins with no signature is classic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from connpool.interfaces import IDrainableProtocol

__all__ = [
    "FIRST_BYTES_TIMEOUT",
    "HTTP_APPLICATIONS",
    "HTTP_PATIENCE_SECONDS",
    "HTTP_SIGNATURES",
    "Choice",
    "Refusal",
    "Sniffer",
    "SnifferFactory",
]

#: Seconds a connection may say nothing at all.
FIRST_BYTES_TIMEOUT = 10.0
#: Seconds that the beginning of an HTTP signature waits for the rest: a file may be called
#: C{PUT}, and its sender waits for the answer.
HTTP_PATIENCE_SECONDS = 1.0
HTTP_APPLICATIONS = (b"http/1.1",)

_METHODS = (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"POST", b"PATCH", b"DELETE")
#: The beginnings of HTTP requests; the last is the preface of HTTP/2.
HTTP_SIGNATURES = (
    *(b"%b %b" % (method, to) for method in _METHODS for to in (b"/", b"http://", b"https://")),
    b"OPTIONS * H",
    b"PRI * H",
)


@attrs.frozen
class Choice:
    """
    A protocol that may be spoken on the port.

    @ivar signatures: one of them its connections begin with; an empty one for the last
        choice, which takes everything else.
    @ivar build: makes the protocol, given the transport.
    @ivar patience: seconds that the beginning of a signature waits for the rest.
    @ivar applications: its names in TLS (RFC 7301): browsers and curl ask for one, and a
        server that knows none of theirs ends the handshake.
    """

    signatures: tuple[bytes, ...]
    build: Callable[[Any], Any]
    patience: float = FIRST_BYTES_TIMEOUT
    applications: tuple[bytes, ...] = ()


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
        self._hurried = False
        self.inner: Any = None

    def connectionMade(self) -> None:
        self._late = self._clock.callLater(FIRST_BYTES_TIMEOUT, self._leave)

    def dataReceived(self, data: bytes) -> None:
        self._first += data
        for choice in self._choices:
            if self._first.startswith(choice.signatures):
                self._choose(choice)
                return
            if any(signature.startswith(self._first) for signature in choice.signatures):
                # a prefix: more will tell
                if choice.patience < FIRST_BYTES_TIMEOUT and not self._hurried:
                    self._hurried = True
                    self._late.reset(choice.patience)
                return

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


@implementer(IProtocolNegotiationFactory)
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

    def acceptableProtocols(self) -> list[bytes]:
        """
        @return: the application protocols that TLS may agree on with clients that ask for one.
        """
        return [name for choice in self._choices for name in choice.applications]

    def buildProtocol(self, addr: Any) -> Sniffer:
        return Sniffer(self._clock, self._choices)


@implementer(IHalfCloseableProtocol, IDrainableProtocol)
class Refusal(Protocol):
    """
    The answer to a protocol that is not taken from where it comes.  Nothing is read.
    """

    answer: bytes

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(self.answer)
        transport.loseConnection()

    def readConnectionLost(self) -> None:
        """
        Closing already.
        """

    def writeConnectionLost(self) -> None:
        """
        Closing already.
        """

    def drain(self) -> None:
        pass  # closing already
