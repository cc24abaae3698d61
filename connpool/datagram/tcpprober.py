"""
The prober over a TCP echo, and the choice between the two.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from connpool.addresses import joinHostPort
from connpool.datagram.figures import Report
from connpool.datagram.port import errnoName
from connpool.datagram.prober import DEFAULT_MARKING, Prober
from connpool.errors import AddressError

__all__ = ["TCPProber", "makeProber", "probe"]

#: Seconds between attempts to connect again.
_RECONNECT_SECONDS = 1.0


class _Stream(Protocol):
    """
    Cuts the bytes that come back over TCP into the pieces that were sent.
    """

    def __init__(self, prober: TCPProber) -> None:
        self._prober = prober
        self._buffer = bytearray()

    def connectionMade(self) -> None:
        self._prober.connected(self.transport)

    def dataReceived(self, data: bytes) -> None:
        wall, at = time.time_ns(), time.monotonic()
        buffer, size = self._buffer, self._prober.size
        buffer += data
        whole = len(buffer) - len(buffer) % size
        for start in range(0, whole, size):
            self._prober.answered(bytes(buffer[start : start + size]), at, wall)
        del buffer[:whole]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._prober.lost()


class TCPProber(Prober):
    """
    The same over a TCP echo: one connection at a time, no datagrams.  What the
    network loses, TCP sends again, and everything behind it waits.  When the
    connection ends, the pieces that are due until there is another are lost.
    """

    _transport: Any = None
    _connecting: Any = None
    _again: IDelayedCall | None = None

    def start(self) -> Deferred[Report]:
        if self._marking != DEFAULT_MARKING:
            raise AddressError(
                "a TCP connection takes no interface, DSCP or TTL here; choose another protocol, "
                "or a source address"
            )
        self._opening = True
        self._connect()
        return self.done

    def _connect(self) -> None:
        factory = Factory.forProtocol(lambda: _Stream(self))
        factory.noisy = False
        host, port = self._peer
        endpoint = (TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint)(
            self._reactor,
            host,
            port,
            timeout=self.samples.timeout,
            bindAddress=(self._source, 0) if self._source else None,
        )
        self._connecting = endpoint.connect(factory)
        self._connecting.addErrback(self._refused)

    def _refused(self, failure: Failure) -> None:
        if self._ended:
            return
        if self._opening:
            why = failure.getErrorMessage() or repr(failure.value)
            self._fail(f"cannot connect to {joinHostPort(*self._peer)}: {why}")
            return
        number = getattr(failure.value, "osError", None)
        self.errors[errnoName(number) if number else "no-connection"] += 1
        self._later()

    def _later(self) -> None:
        self._again = self._reactor.callLater(_RECONNECT_SECONDS, self._connect)

    def connected(self, transport: Any) -> None:
        """
        Begin, or go on over a new connection.
        """
        if self._ended:
            transport.abortConnection()
            return
        self._transport = transport
        transport.setTcpNoDelay(True)
        if self._opening:
            self._opening = False
            self._begin()

    def lost(self) -> None:
        """
        Note that the connection is gone, and try for another.
        """
        self._transport = None
        if not self._ended:
            self.errors["closed"] += 1
            self._later()

    def _transmit(self, datagram: bytes) -> str | None:
        if self._transport is None:
            return "closed"
        self._transport.write(datagram)
        return None

    def _readOn(self) -> bool:
        return True

    def _takeTruncated(self) -> int:
        return 0

    def allErrors(self) -> Any:
        return self.errors

    def _close(self) -> None:
        self._ended = True
        self._cancel()
        if self._again is not None and self._again.active():
            self._again.cancel()
        if self._transport is not None:
            self._transport.abortConnection()
        elif self._connecting is not None:
            self._connecting.cancel()


def makeProber(reactor: Any, host: str, port: int, **options: Any) -> Prober:
    """
    @param options: see L{Prober}.
    """
    kind = TCPProber if options.get("protocol") == "tcp" else Prober
    return kind(reactor, host, port, **options)


def probe(reactor: Any, host: str, port: int, **options: Any) -> Deferred[Report]:
    """
    Measure the path to a responder.

    @param host: an address literal.
    @param options: see L{Prober}.
    @return: fires with the report; cancelling it ends the run.  Fails with
        L{ProbeFailed<connpool.errors.ProbeFailed>} when the far side does not speak
        the protocol.
    @raise AddressError: for options that make no sense together.
    @raise ProbeFailed: no socket can be opened.
    """
    return makeProber(reactor, host, port, **options).start()
