"""
The prober: sends at a constant rate, whatever comes back.

The schedule is fixed at the start: datagram n is due at C{start + n * interval}.
A sender that was held up sends what is due at once, and says how late it was; it
never waits for an answer.  So a stall shows up in the figures instead of thinning
out the samples that would have shown it (coordinated omission).

Known flaws:

  - Twisted's timers run by the wall clock: when that is set back by an hour, the
    next send is an hour late, and says so.
  - Every sample is kept, some 400 bytes for a datagram.
"""

from __future__ import annotations

import math
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from connpool.addresses import joinHostPort
from connpool.datagram.echo import EchoWire
from connpool.datagram.figures import Report, Samples
from connpool.datagram.irtt import IrttWire
from connpool.datagram.port import SturdyPort, zoneName
from connpool.datagram.stamp import StampWire
from connpool.datagram.wire import Wire
from connpool.errors import AddressError, ProbeFailed

__all__ = ["MAX_SIZE", "Prober", "TCPProber", "makeProber", "probe"]

MAX_SIZE = 65_507

#: Most datagrams sent before the reactor gets its turn.
_SPURT = 64

#: Seconds after which an opening without an answer is sent again, and how often.
_OPENING = 0.5
_OPENINGS = 4

WIRES: dict[str, type[Wire]] = {
    "echo": EchoWire,
    "irtt": IrttWire,
    "stamp": StampWire,
    "tcp": EchoWire,
}


class Prober(DatagramProtocol):
    """
    One run against one address.

    @ivar samples: what has happened so far.
    @ivar done: fires with the L{Report} once the last answer is in or late, or
        after L{stop}; fails with L{ProbeFailed}.

    @param host: an address literal.
    @param count: L{None} to go on until L{stop}.
    @param interval: seconds between sends.
    @param size: UDP payload bytes.
    @param timeout: seconds after which an answer is late.
    @param dontFragment: whether a datagram that does not fit is dropped on its
        way instead of being cut.
    @param onAnswer: called with C{(number, rtt)} for each answer in time.
    @param clock: monotonic nanoseconds.
    @param wallClock: nanoseconds since the epoch.
    @raise AddressError: for an address that is none, no such protocol, or a size
        that it does not have.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        *,
        protocol: str = "echo",
        count: int | None = 10,
        interval: float = 1.0,
        size: int = 64,
        timeout: float = 2.0,
        dontFragment: bool = False,
        onAnswer: Callable[[int, float], None] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        wallClock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._reactor = reactor
        self._peer = (_canonical(host), port)
        self._protocol = protocol
        self._wire = _makeWire(protocol, size)
        self._size = size
        self._count = math.inf if count is None else count
        self._interval = interval
        self._dontFragment = dontFragment
        self.samples = Samples(timeout)
        self._onAnswer = onAnswer
        self._clock = clock
        self._wallClock = wallClock
        self._next = 0
        self._start = 0.0
        self._offset = wallClock() - clock()
        self._call: IDelayedCall | None = None
        self._ended = False
        self._opening = False
        self.errors: Counter[str] = Counter()
        self.done: Deferred[Report] = Deferred(lambda _: self._close())

    def start(self) -> Deferred[Report]:
        """
        @return: L{done}; cancelling it ends the run without a report.
        @raise ProbeFailed: no socket can be opened.
        """
        self._port = port = SturdyPort(
            self._reactor,
            self,
            0,
            "::" if ":" in self._peer[0] else "",
            wants=frozenset({"time"}),
            errors=True,
        )
        try:
            port.startListening()
        except CannotListenError as e:
            raise ProbeFailed(f"cannot open a socket: {e.socketError.strerror}") from None
        if self._dontFragment:
            port.setDontFragment()
        opening = self._wire.opening(self._interval, self._count * self._interval)
        if opening is None:
            self._begin()
        else:
            self._opening = True
            self._open(opening, _OPENINGS)
        return self.done

    def _open(self, opening: bytes, left: int) -> None:
        if not left:
            self._fail(
                f"{joinHostPort(*self._peer)} does not answer {self._protocol}; "
                "is it the right port, and does --protocol fit?"
            )
            return
        self._port.write(opening, self._peer)
        self._call = self._reactor.callLater(_OPENING, self._open, opening, left - 1)

    def _begin(self) -> None:
        self._start = self._seconds()
        self._send()

    def stop(self) -> None:
        """
        Send no more; what is under way counts as lost.
        """
        if self._opening:
            self._fail(f"{joinHostPort(*self._peer)} has not answered {self._protocol}")
        elif not self._ended:
            self._end()

    def _seconds(self) -> float:
        return self._clock() / 1e9

    # -- sending -----------------------------------------------------------------

    def _send(self) -> None:
        self._call = None
        for _ in range(_SPURT):
            number = self._next
            if number >= self._count:
                break
            due = self._start + number * self._interval
            if due > self._seconds():
                break
            self._next += 1
            self._sendOne(number, due)
            if self._ended:
                return
        self._schedule()

    def _sendOne(self, number: int, due: float) -> None:
        datagram = self._wire.request(number)
        wall, at = self._wallClock(), self._seconds()
        self.samples.sent(number, due, at, wall)
        if not self._transmit(datagram):
            self.samples.unsent(number)

    def _transmit(self, datagram: bytes) -> bool:
        """
        @return: whether the system took it.
        """
        failed = self._port.sendErrors.total()
        self._port.write(datagram, self._peer)
        return self._port.sendErrors.total() == failed

    def _schedule(self) -> None:
        now = self._seconds()
        if self._next < self._count:
            due = self._start + self._next * self._interval
        elif self.samples.outstanding:
            due = self.samples.lastSent + self.samples.timeout
            if due <= now:
                self._end()
                return
        else:
            self._end()
            return
        self._call = self._reactor.callLater(max(due - now, 0.0), self._send)

    # -- receiving ---------------------------------------------------------------

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        info = self._port.info
        wall, at = self._wallClock(), self._clock()
        steady = self._watchWallClock(wall - at)
        received = at
        if info.kernelTime is not None and steady:
            waited = wall - info.kernelTime
            # others that were under way when the wall clock was set
            if 0 <= waited < 1_000_000_000:
                received, wall = at - waited, info.kernelTime
        if addr != self._peer:
            self.samples.ignored += 1
        elif self._opening:
            self._opened(datagram)
        else:
            self._answered(datagram, received / 1e9, wall)

    def _opened(self, datagram: bytes) -> None:
        try:
            if not self._wire.opened(datagram):
                self.samples.ignored += 1
                return
        except ProbeFailed as e:
            self._fail(str(e))
            return
        self._opening = False
        self._cancel()
        self._begin()

    def _answered(self, data: bytes, at: float, wall: int) -> None:
        reply = self._wire.reply(data)
        if reply is None:
            self.samples.ignored += 1
            return
        rtt = self.samples.received(
            reply.number,
            at,
            wall,
            remoteReceived=reply.received,
            remoteSent=reply.sent,
            remoteCount=reply.count,
        )
        if rtt is not None and self._onAnswer is not None:
            self._onAnswer(reply.number, rtt)
        if self._next >= self._count and not self.samples.outstanding and not self._ended:
            self._end()

    def _watchWallClock(self, offset: int) -> bool:
        """
        Notice a wall clock that is set during the run.

        @return: whether it was not, since the last time.
        """
        steady = abs(offset - self._offset) <= 10_000_000
        if not steady:
            self.samples.stepped = True
        self._offset = offset
        return steady

    # -- the end -----------------------------------------------------------------

    def report(self, *, points: bool = True) -> Report:
        """
        @return: the figures so far.
        """
        return self.samples.report(
            protocol=self._protocol,
            target=joinHostPort(*self._peer),
            size=self._size,
            interval=self._interval,
            errors=dict(self._errors()),
            points=points,
        )

    def _errors(self) -> Counter[str]:
        return self.errors + self._port.sendErrors + self._port.receiveErrors

    def _end(self) -> None:
        report = self.report()
        closing = self._wire.closing()
        if closing is not None:
            self._transmit(closing)
        self._close()
        self.done.callback(report)

    def _fail(self, why: str) -> None:
        self._close()
        self.done.errback(ProbeFailed(why))

    def _close(self) -> None:
        self._ended = True
        self._opening = False
        self._cancel()
        self._port.stopListening()

    def _cancel(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()


class _Stream(Protocol):
    """
    Cuts what comes back over TCP into the pieces that were sent.
    """

    def __init__(self, prober: TCPProber) -> None:
        self._prober = prober
        self._buffer = bytearray()

    def connectionMade(self) -> None:
        self._prober._connected(self.transport)

    def dataReceived(self, data: bytes) -> None:
        wall, at = time.time_ns(), time.monotonic()
        buffer, size = self._buffer, self._prober._size
        buffer += data
        whole = len(buffer) - len(buffer) % size
        for start in range(0, whole, size):
            self._prober._answered(bytes(buffer[start : start + size]), at, wall)
        del buffer[:whole]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._prober._lost()


class TCPProber(Prober):
    """
    The same over a TCP echo: one connection, no datagrams.  What the network
    loses, TCP sends again, and everything behind it waits.
    """

    _transport: Any = None

    def start(self) -> Deferred[Report]:
        factory = Factory.forProtocol(lambda: _Stream(self))
        factory.noisy = False
        host, port = self._peer
        endpoint = (TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint)(
            self._reactor, host, port, timeout=self.samples.timeout
        )
        self._opening = True
        self._connecting = endpoint.connect(factory)
        self._connecting.addErrback(self._refused)
        return self.done

    def _refused(self, failure: Failure) -> None:
        if not self._ended:
            why = failure.getErrorMessage() or repr(failure.value)
            self._fail(f"cannot connect to {joinHostPort(*self._peer)}: {why}")

    def _connected(self, transport: Any) -> None:
        self._opening = False
        self._transport = transport
        transport.setTcpNoDelay(True)
        self._begin()

    def _transmit(self, datagram: bytes) -> bool:
        self._transport.write(datagram)
        return True

    def _lost(self) -> None:
        if not self._ended:
            self.errors["closed"] += 1
            self._end()

    def _errors(self) -> Counter[str]:
        return self.errors

    def _close(self) -> None:
        self._ended = True
        self._cancel()
        if self._transport is not None:
            self._transport.abortConnection()
        elif self._opening:
            self._opening = False
            self._connecting.cancel()


def makeProber(reactor: Any, host: str, port: int, **options: Any) -> Prober:
    """
    @param options: see L{Prober}.
    """
    kind = TCPProber if options.get("protocol") == "tcp" else Prober
    return kind(reactor, host, port, **options)


def _canonical(host: str) -> str:
    """
    The address as the system will write it: zones by name, and of link-local
    addresses only.

    @raise AddressError: for what is not an address.
    """
    bare, percent, zone = host.partition("%")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        packed = socket.inet_pton(family, bare)
        known = socket.inet_ntop(family, packed)
        linkLocal = packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
        return f"{known}%{zoneName(zone)}" if percent and linkLocal else known
    except (OSError, ValueError):
        raise AddressError(f"{host!r} is not an address; resolve names first") from None


def _makeWire(protocol: str, size: int) -> Wire:
    if protocol not in WIRES:
        raise AddressError(f"{protocol!r} is no probe protocol; there are {', '.join(WIRES)}")
    wire = WIRES[protocol]
    if not wire.minimum <= size <= MAX_SIZE:
        raise AddressError(f"size {size}: {protocol} takes {wire.minimum} to {MAX_SIZE} bytes")
    return wire(size)


def probe(reactor: Any, host: str, port: int, **options: Any) -> Deferred[Report]:
    """
    Measure the path to a responder.

    @param host: an address literal.
    @param options: see L{Prober}.
    @return: fires with the report; cancelling it ends the run.  Fails with
        L{ProbeFailed} when the far side does not speak the protocol.
    @raise AddressError: for options that make no sense together.
    @raise ProbeFailed: no socket can be opened.
    """
    return makeProber(reactor, host, port, **options).start()
