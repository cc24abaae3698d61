"""
From the datagrams sent and the answers received to the figures of a path.

Pure: L{Samples} is told of each datagram and L{Samples.report} calculates.
Definitions:

  - Round-trip time: from the actual send to the kernel's receipt.  How late a
    send was against its schedule is a figure of its own, so a stall of the
    sender can neither hide in the round trips nor hide some of them.
  - Percentiles are nearest-rank, and left out where n is too small for the rank
    to be more than the maximum under another name: p95 needs 20 answers, p99
    100, p99.9 1000.
  - Jitter is RFC 3550 6.4.1 over answers in order of arrival, on round trips.
    IPDV (RFC 3393) is the absolute difference between the round trips of
    consecutively numbered datagrams.
  - A datagram is lost when no answer came within the timeout; an answer after
    that is late, and stays lost.  One that the system did not take is lost at
    once, as unsent.  A second answer is a duplicate.
  - A datagram without an answer whose time has not passed is under way: it is
    neither sent nor lost, so that to stop a run does not invent a loss.
  - An answer is reordered when its number is lower than one that came before
    (RFC 4737 3.3).
  - One-way delays are differences between two machines' clocks.  They are given
    as measured, and called plausible when none is negative; the clock offset is
    the correction they would need if the path were symmetric.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs

__all__ = ["Point", "Report", "Sample", "Samples", "Spread", "percentile", "spread"]

_RANKS = (("p50", 50.0, 1), ("p95", 95.0, 20), ("p99", 99.0, 100), ("p999", 99.9, 1000))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """
    Nearest rank: the smallest value with at least C{percent} of all at or under it.

    @param ordered: sorted, not empty.
    """
    # 99.9 % of 1000 is 999, which floating point would round up to 1000
    rank = math.ceil(round(percent * len(ordered) / 100, 9))
    return ordered[max(rank, 1) - 1]


@attrs.frozen
class Spread:
    """
    The spread of values, in their own unit; L{None} where n is too small.
    """

    n: int
    min: float
    mean: float
    max: float
    stddev: float
    p50: float | None
    p95: float | None
    p99: float | None
    p999: float | None


def spread(values: Sequence[float]) -> Spread | None:
    """
    @return: L{None} for no values.
    """
    n = len(values)
    if not n:
        return None
    ordered = sorted(values)
    mean = math.fsum(ordered) / n
    variance = math.fsum((value - mean) ** 2 for value in ordered) / n
    ranks = [percentile(ordered, p) if n >= least else None for _, p, least in _RANKS]
    return Spread(n, ordered[0], mean, ordered[-1], math.sqrt(variance), *ranks)


@attrs.frozen
class Point:
    """
    One datagram: number, when it was sent after the first (seconds), and its
    round trip (seconds; L{None} for lost).
    """

    number: int
    at: float
    rtt: float | None


@attrs.frozen
class Sample:
    """
    An event in the life of a datagram, told when it is known.

    Each datagram has one of C{received}, C{lost} and C{unsent}; an answer that
    comes after that adds one of C{late} or C{duplicate}.

    @ivar number: from 0.
    @ivar status: one of these words.
    @ivar sentAt: when it was sent, nanoseconds since the epoch.
    @ivar lateness: actual send after scheduled send, seconds.
    @ivar rtt: of the answer, seconds; L{None} without one.
    @ivar up: one-way delay there, seconds; L{None} unless the far side says times.
    @ivar down: one-way delay back.
    @ivar remote: time that the far side took for the answer.
    @ivar error: the name of the error for which it was not sent; otherwise empty.
    """

    number: int
    status: str
    sentAt: int
    lateness: float
    rtt: float | None = None
    up: float | None = None
    down: float | None = None
    remote: float | None = None
    error: str = ""


@attrs.frozen(kw_only=True)
class Report:
    """
    Counts, and times in seconds.

    @ivar seconds: from the first send to the last send or answer.
    @ivar sent: datagrams whose fate is known; those that the system did not take
        are among them, those under way are not.
    @ivar lost: of these, not answered within the timeout.
    @ivar unsent: of the lost, not taken by the system.
    @ivar lostUp: of the lost, never arrived at the far side; L{None} unless it says.
    @ivar lostDown: of the lost, answered, and the answer lost.
    @ivar ignored: datagrams that were no answers of ours: from elsewhere, with
        another token, a number never sent, or the wrong length.
    @ivar errors: errors on sending and ICMP messages, by errno name.
    @ivar lateness: actual send after scheduled send.
    @ivar up: one-way delay there; L{None} unless the far side says times.
    @ivar down: one-way delay back.
    @ivar offset: the far clock minus ours if the path were symmetric (median).
    @ivar clocksPlausible: whether no one-way delay is negative and our clock was
        not set during the run.
    @ivar remote: time that the far side took for an answer.
    """

    protocol: str
    target: str
    size: int
    interval: float
    seconds: float = 0.0
    sent: int = 0
    received: int = 0
    lost: int = 0
    unsent: int = 0
    lostUp: int | None = None
    lostDown: int | None = None
    late: int = 0
    duplicates: int = 0
    reordered: int = 0
    ignored: int = 0
    errors: dict[str, int] = attrs.Factory(dict)
    rtt: Spread | None = None
    jitter: float | None = None
    ipdv: Spread | None = None
    lateness: Spread | None = None
    up: Spread | None = None
    down: Spread | None = None
    offset: float | None = None
    clocksPlausible: bool | None = None
    remote: Spread | None = None
    points: tuple[Point, ...] = attrs.field(default=(), repr=False)

    @property
    def loss(self) -> float:
        """
        The lost share of the datagrams sent, 0 to 1.
        """
        return self.lost / self.sent if self.sent else 0.0


@attrs.define
class _Datagram:
    """
    One of a run.

    @ivar at: when it was sent, monotonic seconds.
    @ivar wall: the same, nanoseconds since the epoch.
    @ivar settled: it is answered, lost or unsent.
    """

    at: float
    wall: int
    lateness: float
    settled: bool = False
    unsent: bool = False
    arrived: bool = False
    rtt: float | None = None


class Samples:
    """
    The datagrams of one run, and their fates.

    Times called C{at} are monotonic seconds; C{wall} times are nanoseconds since
    the epoch.

    @ivar lost: datagrams known to be lost, unsent ones included.
    @ivar lastAnswer: when the last answer in time came; when the first datagram
        was sent if none did.
    @ivar stepped: whether the wall clock was set during the run.

    @param timeout: seconds after which an answer is late.
    @param tell: called with each L{Sample}.
    """

    def __init__(self, timeout: float, tell: Callable[[Sample], Any] | None = None) -> None:
        self.timeout = timeout
        self._tell = tell
        self._sent: dict[int, _Datagram] = {}
        #: numbers in the order of sending, from the oldest that may be under way
        self._under: deque[int] = deque()
        self._lastRtt: float | None = None
        self._jitter: float | None = None
        self._highest = -1
        self._up: list[float] = []
        self._down: list[float] = []
        self._remote: list[float] = []
        self._lastAt = 0.0
        self.lastAnswer = 0.0
        #: of all answers that gave a count: the highest number and count
        self._counted: tuple[int, int] | None = None
        self.stepped = False
        self.answered = self.lost = self.unsentCount = 0
        self.late = self.duplicates = self.reordered = self.ignored = 0

    @property
    def settled(self) -> int:
        """
        Datagrams that are answered or lost.
        """
        return self.answered + self.lost

    @property
    def outstanding(self) -> int:
        """
        Datagrams under way.
        """
        return len(self._sent) - self.settled

    def sent(self, number: int, due: float, at: float, wall: int) -> None:
        """
        Note that a datagram goes out now.
        """
        if not self._sent:
            self.lastAnswer = at
        self._sent[number] = _Datagram(at, wall, at - due)
        self._under.append(number)
        self._lastAt = max(self._lastAt, at)

    def unsent(self, number: int, error: str) -> None:
        """
        Note that the system did not take a datagram: it was never on the way.

        @param error: why not, as one word.
        """
        datagram = self._sent[number]
        datagram.settled = datagram.unsent = True
        self.lost += 1
        self.unsentCount += 1
        self._said(number, "unsent", datagram, error=error)

    def expire(self, now: float) -> float | None:
        """
        Give up the datagrams whose time has passed.

        @return: when the next one's time will have; L{None} if none is under way.
        """
        while self._under:
            number = self._under[0]
            datagram = self._sent[number]
            if not datagram.settled:
                ends = datagram.at + self.timeout
                if ends > now:
                    return ends
                datagram.settled = True
                self.lost += 1
                self._said(number, "lost", datagram)
            self._under.popleft()
        return None

    def received(
        self,
        number: int,
        at: float,
        wall: int,
        *,
        remoteReceived: int | None = None,
        remoteSent: int | None = None,
        remoteCount: int | None = None,
    ) -> None:
        """
        Note an answer.

        @param remoteReceived: the far side's wall time of receipt.
        @param remoteSent: the far side's wall time of answering.
        @param remoteCount: datagrams of ours that the far side had received when
            it answered.
        """
        datagram = self._sent.get(number)
        if datagram is None or datagram.unsent:
            self.ignored += 1
            return
        rtt = at - datagram.at
        if datagram.arrived:
            self.duplicates += 1
            self._said(number, "duplicate", datagram, rtt=rtt)
            return
        datagram.arrived = True
        if remoteCount is not None:
            last, count = self._counted or (number, remoteCount)
            self._counted = (max(last, number), max(count, remoteCount))
        if rtt > self.timeout or datagram.settled:
            if not datagram.settled:
                self.expire(at)
            self.late += 1
            self._said(number, "late", datagram, rtt=rtt)
            return
        datagram.settled = True
        datagram.rtt = rtt
        self.answered += 1
        self.lastAnswer = at
        self._lastAt = max(self._lastAt, at)
        if number < self._highest:
            self.reordered += 1
        self._highest = max(self._highest, number)
        if self._lastRtt is not None:
            change = abs(rtt - self._lastRtt)
            before = self._jitter or 0.0
            self._jitter = before + (change - before) / 16
        self._lastRtt = rtt
        delays: tuple[float, float, float] | None = None
        if remoteReceived is not None and remoteSent is not None:
            delays = (
                (remoteReceived - datagram.wall) / 1e9,
                (wall - remoteSent) / 1e9,
                (remoteSent - remoteReceived) / 1e9,
            )
            self._up.append(delays[0])
            self._down.append(delays[1])
            self._remote.append(delays[2])
        self._said(number, "received", datagram, *(delays or ()), rtt=rtt)

    def _said(
        self,
        number: int,
        status: str,
        datagram: _Datagram,
        up: float | None = None,
        down: float | None = None,
        remote: float | None = None,
        *,
        rtt: float | None = None,
        error: str = "",
    ) -> None:
        if self._tell is not None:
            lateness = datagram.lateness
            self._tell(
                Sample(number, status, datagram.wall, lateness, rtt, up, down, remote, error)
            )

    def report(
        self,
        *,
        protocol: str,
        target: str,
        size: int,
        interval: float,
        errors: dict[str, int],
        points: bool = True,
    ) -> Report:
        """
        @return: the figures of the datagrams whose fate is known.
        """
        known = sorted((n, each) for n, each in self._sent.items() if each.settled)
        first = min((each.at for _, each in known), default=0.0)
        rtts = {n: each.rtt for n, each in known if each.rtt is not None}
        lostUp, lostDown = self._directions(known)
        ipdv = [abs(rtt - rtts[n - 1]) for n, rtt in rtts.items() if n - 1 in rtts]
        up, down = spread(self._up), spread(self._down)
        offset = plausible = None
        if up is not None and down is not None:
            halves = sorted((u - d) / 2 for u, d in zip(self._up, self._down, strict=True))
            offset = percentile(halves, 50)
            plausible = up.min >= 0 and down.min >= 0 and not self.stepped
        return Report(
            protocol=protocol,
            target=target,
            size=size,
            interval=interval,
            seconds=self._lastAt - first if known else 0.0,
            sent=self.settled,
            received=self.answered,
            lost=self.lost,
            unsent=self.unsentCount,
            lostUp=lostUp,
            lostDown=lostDown,
            late=self.late,
            duplicates=self.duplicates,
            reordered=self.reordered,
            ignored=self.ignored,
            errors=dict(errors),
            rtt=spread(list(rtts.values())),
            jitter=self._jitter,
            ipdv=spread(ipdv),
            lateness=spread([each.lateness for _, each in known if not each.unsent]),
            up=up,
            down=down,
            offset=offset,
            clocksPlausible=plausible,
            remote=spread(self._remote),
            points=tuple(Point(n, each.at - first, each.rtt) for n, each in known)
            if points
            else (),
        )

    def _directions(self, known: Sequence[tuple[int, _Datagram]]) -> tuple[int | None, int | None]:
        """
        Of the datagrams numbered up to the last answered one the far side told its
        count; those after it are in neither direction's.  One that another overtook
        is in the other's answer not counted yet.
        """
        if self._counted is None:
            return None, None
        last, count = self._counted
        taken = [each for n, each in known if n <= last and not each.unsent]
        missing = sum(each.rtt is None for each in taken)
        lostUp = min(max(len(taken) - count, 0), missing)
        return lostUp, missing - lostUp
