"""
The prober: sends at a constant rate, whatever comes back.

The schedule is fixed at the start: datagram n is due at C{start + n * interval}.
A sender that was held up sends the overdue ones at once, and says how late they
were; it never waits for an answer.  So a stall shows up in the figures instead of
thinning out the samples that would have shown it (coordinated omission).

A datagram is given up when its time has passed and nothing is left to read, so a
stall of the reader does not turn answers into losses either.

Known flaws:

  - Twisted's timers run by the wall clock: when that is set back by an hour, the
    next send is an hour late, and says so.
  - Every sample is kept, some 400 bytes for a datagram.
"""

from __future__ import annotations

import errno
import math
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol

from connpool.addresses import joinHostPort
from connpool.addresses.zones import checkZone, isLinkLocal, zoneName
from connpool.datagram.echo import EchoWire
from connpool.datagram.figures import Report, Sample, Samples
from connpool.datagram.irtt import IrttWire
from connpool.datagram.limits import ANSWERING_PORTS
from connpool.datagram.marking import Marking
from connpool.datagram.port import SturdyPort
from connpool.datagram.stamp import StampWire
from connpool.datagram.wire import Wire
from connpool.errors import AddressError, ProbeFailed

__all__ = ["MAX_SIZE_BYTES", "WIRES", "Prober", "leastSize"]

MAX_SIZE_BYTES = 65_507

#: Most datagrams sent before the reactor gets its turn.
_SPURT = 64

#: Seconds after which an opening without an answer is sent again, and how often.
_OPENING_SECONDS = 0.5
_OPENINGS = 4

#: Seconds between attempts to open again, while the far side is silent.
_REOPENING_SECONDS = 2.0

#: Difference of two clocks that were read one after the other.
_TICK_NANOSECONDS = 1_000_000

#: Bytes that the answers to openings fit into.
_ROOM_BYTES = 2048

#: Sockets tried for a source port behind which no echo suspects a service.
_PORT_TRIES = 16

WIRES: dict[str, type[Wire]] = {
    "echo": EchoWire,
    "irtt": IrttWire,
    "stamp": StampWire,
    "tcp": EchoWire,
}


def leastSize(protocol: str, *, signed: bool = False) -> int:
    """
    @param signed: whether there is a key.
    @return: bytes of the smallest datagram of a protocol.
    @raise AddressError: no such protocol, or it has no keys.
    """
    if protocol not in WIRES:
        raise AddressError(f"{protocol!r} is no probe protocol; there are {', '.join(WIRES)}")
    wire = WIRES[protocol]
    if not signed:
        return wire.minimum
    if wire.signedMinimum is None:
        able = ", ".join(name for name, each in WIRES.items() if each.signedMinimum is not None)
        raise AddressError(f"{protocol} has no keys; a key goes with {able}")
    return wire.signedMinimum


#: Bytes of a datagram unless said otherwise, where the protocol allows.
DEFAULT_SIZE_BYTES = 64

DEFAULT_MARKING = Marking()


class Prober(DatagramProtocol):
    """
    One run against one address.

    @ivar samples: the datagrams so far, and their fates.
    @ivar done: fires with the L{Report} once the last answer is in or late, or
        after L{stop}; fails with L{ProbeFailed}.

    @param host: an address literal.
    @param count: L{None} to go on until L{stop}.
    @param interval: seconds between sends.
    @param size: UDP payload bytes; L{None} for 64, or more where the protocol needs
        more.
    @param timeout: seconds after which an answer is late.
    @param key: of irtt or STAMP, shared with the far side; L{None} for none.
    @param source: the address of ours to send from; empty for the one that routing
        chooses.
    @param marking: DSCP, TTL and link of the datagrams.
    @param dontFragment: whether a datagram that does not fit is dropped on its
        way instead of being cut.
    @param onSample: called with each L{Sample} as soon as it is known.
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
        size: int | None = None,
        timeout: float = 2.0,
        key: bytes | None = None,
        source: str = "",
        marking: Marking = DEFAULT_MARKING,
        dontFragment: bool = False,
        onSample: Callable[[Sample], Any] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        wallClock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._reactor = reactor
        self._peer = (_canonical(host, marking.interface), port)
        self._protocol = protocol
        if size is None:
            size = max(DEFAULT_SIZE_BYTES, leastSize(protocol, signed=key is not None))
        self._wire = _makeWire(protocol, size, key)
        self.size = size
        self._source = source and _canonical(source, marking.interface, "source ")
        if source and (":" in source) != (":" in host):
            raise AddressError(f"source {source} and target {host} are of two families")
        self._marking = marking
        self._port = self._makePort()
        self._count = math.inf if count is None else count
        self._interval = interval
        self._dontFragment = dontFragment
        self.samples = Samples(timeout, onSample)
        self._clock = clock
        self._wallClock = wallClock
        self._next = 0
        self._start = 0.0
        self._offset = wallClock() - clock()
        self._call: IDelayedCall | None = None
        self._ended = False
        self._opening = False
        self._reopened = 0.0
        self.errors: Counter[str] = Counter()
        self.done: Deferred[Report] = Deferred(lambda _: self._close())

    def start(self) -> Deferred[Report]:
        """
        @return: L{done}; cancelling it ends the run without a report.
        @raise ProbeFailed: no socket can be opened.
        @raise AddressError: this machine has no such source or link.
        """
        self._openPort()
        opening = self._wire.opening(self._interval, self._count * self._interval)
        if opening is None:
            self._begin()
        else:
            self._opening = True
            self._open(opening, _OPENINGS)
        return self.done

    def _makePort(self) -> SturdyPort:
        return SturdyPort(
            self._reactor,
            self,
            0,
            self._source or ("::" if ":" in self._peer[0] else ""),
            wants=frozenset({"time"}),
            errors=True,
            room=max(self.size + 1, _ROOM_BYTES),
        )

    def _openPort(self) -> None:
        """
        Open a socket.  Where the system chooses a source port behind which an echo
        of ours suspects a service, have it choose again.
        """
        self._listen()
        for _ in range(_PORT_TRIES):
            if self._port.getHost().port not in ANSWERING_PORTS:
                break
            self._port.stopListening()
            self._port = self._makePort()
            self._listen()
        port = self._port
        handle = port.getHandle()
        assert handle is not None
        try:
            self._marking.apply(handle)
            if self._dontFragment:
                port.setDontFragment()
        except AddressError:
            port.stopListening()
            raise

    def _listen(self) -> None:
        try:
            self._port.startListening()
        except CannotListenError as e:
            why = e.socketError.strerror
            if self._source and e.socketError.errno == errno.EADDRNOTAVAIL:
                raise AddressError(
                    f"source {self._source}: this machine has no such address"
                ) from None
            raise ProbeFailed(f"cannot open a socket: {why}") from None

    def _open(self, opening: bytes, left: int) -> None:
        if not left:
            self._fail(
                f"{joinHostPort(*self._peer)} does not answer {self._protocol}; "
                "is it the right port, do --protocol and --key-file fit?"
            )
            return
        self._port.write(opening, self._peer)
        self._call = self._reactor.callLater(_OPENING_SECONDS, self._open, opening, left - 1)

    def _begin(self) -> None:
        self._start = self._seconds()
        self._send()

    def stop(self) -> None:
        """
        Send no more, and report: datagrams under way are neither sent nor lost.
        """
        if self._opening:
            self._fail(f"{joinHostPort(*self._peer)} has not answered {self._protocol}")
            return
        if not self._ended and self._readOn():
            self.samples.expire(self._seconds())
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
        wall, at = self._wallClock(), self._seconds()
        self.samples.sent(number, due, at, wall)
        error = self._transmit(datagram)
        if error is not None:
            self.samples.unsent(number, error)

    def _transmit(self, datagram: bytes) -> str | None:
        """
        @return: one word for why the system did not take it, or L{None}.
        """
        return self._port.send(datagram, self._peer)

    def _schedule(self) -> None:
        """
        Give up the datagrams whose time has passed, and see when to go on.
        """
        now = self._seconds()
        # answers that are here already, and may be in time
        whole = self._readOn()
        if self._ended:
            return
        # without all of them nothing is known; the next turn reads on
        ends = self.samples.expire(now) if whole else now
        if self._next < self._count:
            due = self._start + self._next * self._interval
            ends = due if ends is None else min(due, ends)
            self._openAgain(now)
        elif ends is None:
            self._end()
            return
        self._call = self._reactor.callLater(max(ends - self._seconds(), 0.0), self._send)

    def _readOn(self) -> bool:
        """
        @return: whether no answer waits to be read.
        """
        self._port.doRead()
        return self._port.emptied

    def _openAgain(self, now: float) -> None:
        """
        Ask a far side that has been silent for a new session: it may have lost
        ours.
        """
        if now < max(self.samples.lastAnswer + self.samples.timeout, self._reopened):
            return
        opening = self._wire.opening(self._interval, self._count * self._interval)
        if opening is not None and self.samples.lost:
            self._reopened = now + max(_REOPENING_SECONDS, self.samples.timeout)
            self._transmit(opening)

    # -- receiving ---------------------------------------------------------------

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        info = self._port.info
        wall, at = self._wallClock(), self._clock()
        steady = self._watchWallClock(wall - at)
        received = at
        if info.kernelTime is not None and steady:
            waited = wall - info.kernelTime
            # it came after the socket was empty; if not, it was stamped before the
            # wall clock was set
            if 0 <= waited <= at - int(self._port.emptiedAt * 1e9) + _TICK_NANOSECONDS:
                received, wall = at - waited, info.kernelTime
        if addr != self._peer:
            self.samples.ignored += 1
        elif self._opening:
            self._opened(datagram)
        else:
            self.answered(datagram, received / 1e9, wall)

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

    def answered(self, data: bytes, at: float, wall: int) -> None:
        reply = self._wire.reply(data)
        if reply is None:
            if not (self._reopened and self._openedAgain(data)):
                self.samples.ignored += 1
            return
        self.samples.received(
            reply.number,
            at,
            wall,
            remoteReceived=reply.received,
            remoteSent=reply.sent,
            remoteCount=reply.count,
        )
        if self._next >= self._count and not self.samples.outstanding and not self._ended:
            self._end()

    def _openedAgain(self, data: bytes) -> bool:
        try:
            return self._wire.opened(data)
        except ProbeFailed:
            return False  # it allows less than before; then it goes on being lost

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
        @return: the figures of the datagrams whose fate is known.
        """
        self.samples.ignored += self._takeTruncated()
        return self.samples.report(
            protocol=self._protocol,
            target=joinHostPort(*self._peer),
            size=self.size,
            interval=self._interval,
            errors=dict(self.allErrors()),
            points=points,
        )

    def _takeTruncated(self) -> int:
        """
        @return: datagrams that were too long to be answers, since the last time.
        """
        count, self._port.truncated = self._port.truncated, 0
        return count

    def allErrors(self) -> Counter[str]:
        """
        @return: errors on sending and ICMP messages, by errno name.
        """
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


def _canonical(host: str, zone: str, what: str = "") -> str:
    """
    The address as the system will write it: zones by name, and of link-local
    addresses only.

    @param zone: the zone of a link-local address that has none.
    @raise AddressError: for text that is no address, and for a zone that is no link
        of this machine or is missing.
    """
    bare, _, its = host.partition("%")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        packed = socket.inet_pton(family, bare)
    except (OSError, ValueError):
        raise AddressError(f"{what}{host!r} is not an address; resolve names first") from None
    known = socket.inet_ntop(family, packed)
    if isLinkLocal(packed) and (its or zone):
        known = f"{known}%{zoneName(its or zone)}"
    checkZone(known)
    return known


def _makeWire(protocol: str, size: int, key: bytes | None) -> Wire:
    least = leastSize(protocol, signed=key is not None)
    if not least <= size <= MAX_SIZE_BYTES:
        signed = " with a key" if key is not None else ""
        raise AddressError(
            f"size {size}: {protocol}{signed} takes {least} to {MAX_SIZE_BYTES} bytes"
        )
    return WIRES[protocol](size, key)
