"""
The prober: sends at a constant rate, whatever comes back.

The schedule is fixed at the start: datagram n is due at C{start + n * interval}.
A sender that was held up sends what is due at once, and says how late it was; it
never waits for an answer.  So a stall shows up in the figures instead of thinning
out the samples that would have shown it (coordinated omission).
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol

from connpool.addresses import joinHostPort
from connpool.datagram.echo import EchoWire
from connpool.datagram.figures import Report, Samples
from connpool.datagram.port import SturdyPort
from connpool.datagram.stamp import StampWire
from connpool.datagram.wire import Wire
from connpool.errors import AddressError, ProbeFailed

__all__ = ["MAX_SIZE", "Prober", "probe"]

MAX_SIZE = 65_507

#: Most datagrams sent before the reactor gets its turn.
_SPURT = 64

WIRES: dict[str, Callable[[int], Wire]] = {"echo": EchoWire, "stamp": StampWire}


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
    @param onAnswer: called with C{(number, rtt)} for each answer in time.
    @param clock: monotonic nanoseconds.
    @param wallClock: nanoseconds since the epoch.
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
        onAnswer: Callable[[int, float], None] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        wallClock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._reactor = reactor
        self._peer = (_canonical(host), port)
        self._wire = makeWire(protocol, size)
        self._size = size
        self._count = math.inf if count is None else count
        self._interval = interval
        self.samples = Samples(timeout)
        self._onAnswer = onAnswer
        self._clock = clock
        self._wallClock = wallClock
        self._next = 0
        self._start = 0.0
        self._offset: int | None = None
        self._call: IDelayedCall | None = None
        self._ended = False
        self.done: Deferred[Report] = Deferred(lambda _: self._close())
        interface = "::" if ":" in host else ""
        self._port = SturdyPort(reactor, self, 0, interface, wants=frozenset({"time"}), errors=True)

    def start(self) -> Deferred[Report]:
        """
        @return: L{done}; cancelling it ends the run without a report.
        @raise ProbeFailed: no socket can be opened.
        """
        try:
            self._port.startListening()
        except CannotListenError as e:
            raise ProbeFailed(f"cannot open a socket: {e.socketError.strerror}") from None
        self._start = self._seconds()
        self._send()
        return self.done

    def stop(self) -> None:
        """
        Send no more; what is under way counts as lost.
        """
        if not self._ended:
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
        failed = self._port.sendErrors.total()
        wall, at = self._wallClock(), self._seconds()
        self._port.write(datagram, self._peer)
        self.samples.sent(number, due, at, wall)
        if self._port.sendErrors.total() > failed:
            self.samples.unsent(number)

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
        self._watchWallClock(wall - at)
        received = at
        if info.kernelTime is not None:
            waited = wall - info.kernelTime
            # a wall clock that was set since then says nonsense
            if 0 <= waited < 1_000_000_000:
                received, wall = at - waited, info.kernelTime
        if addr != self._peer:
            self.samples.ignored += 1
            return
        reply = self._wire.reply(datagram)
        if reply is None:
            self.samples.ignored += 1
            return
        rtt = self.samples.received(
            reply.number,
            received / 1e9,
            wall,
            remoteReceived=reply.received,
            remoteSent=reply.sent,
            remoteCount=reply.count,
        )
        if rtt is not None and self._onAnswer is not None:
            self._onAnswer(reply.number, rtt)
        if self._next >= self._count and not self.samples.outstanding and not self._ended:
            self._end()

    def _watchWallClock(self, offset: int) -> None:
        """
        Notice a wall clock that is set during the run.
        """
        if self._offset is not None and abs(offset - self._offset) > 10_000_000:
            self.samples.stepped = True
        self._offset = offset

    # -- the end -----------------------------------------------------------------

    def report(self, *, points: bool = True) -> Report:
        """
        @return: the figures so far.
        """
        return self.samples.report(
            protocol=self._wire.protocol,
            target=joinHostPort(*self._peer),
            size=self._size,
            interval=self._interval,
            errors=dict(self._port.sendErrors + self._port.receiveErrors),
            points=points,
        )

    def _end(self) -> None:
        report = self.report()
        self._close()
        self.done.callback(report)

    def _close(self) -> None:
        self._ended = True
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._port.stopListening()


def _canonical(host: str) -> str:
    """
    The address as the system will write it.

    @raise AddressError: for what is not an address.
    """
    bare, percent, zone = host.partition("%")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, bare)) + percent + zone
    except (OSError, ValueError):
        raise AddressError(f"{host!r} is not an address; resolve names first") from None


def makeWire(protocol: str, size: int) -> Wire:
    """
    @raise AddressError: no such protocol, or it has no datagrams of this size.
    """
    if protocol not in WIRES:
        raise AddressError(f"{protocol!r} is no probe protocol; there are {', '.join(WIRES)}")
    least = WIRES[protocol].minimum  # type: ignore[attr-defined]
    if not least <= size <= MAX_SIZE:
        raise AddressError(f"size {size}: {protocol} takes {least} to {MAX_SIZE} bytes")
    return WIRES[protocol](size)


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
    return Prober(reactor, host, port, **options).start()
