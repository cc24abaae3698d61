"""
From what was sent and what came back to the figures of a path.

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
    that is late, and stays lost.  A second answer is a duplicate.
  - An answer is reordered when its number is lower than one that came before
    (RFC 4737 3.3).
  - One-way delays are differences between two machines' clocks.  They are given
    as measured, and called plausible when none is negative; the clock offset is
    what they would have to be corrected by if the path were symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

__all__ = ["Point", "Report", "Samples", "Spread", "percentile", "spread"]

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
    How values spread, in their own unit; L{None} where n is too small.
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
class Report:
    """
    Counts, and times in seconds.

    @ivar seconds: from the first send to the last send or answer.
    @ivar lost: sent, and not answered within the timeout.
    @ivar lostUp: of these, never arrived at the far side; L{None} unless it says.
    @ivar lostDown: of these, answered, and the answer lost.
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
    seconds: float
    sent: int
    received: int
    lost: int
    lostUp: int | None
    lostDown: int | None
    late: int
    duplicates: int
    reordered: int
    ignored: int
    errors: dict[str, int]
    rtt: Spread | None
    jitter: float | None
    ipdv: Spread | None
    lateness: Spread | None
    up: Spread | None
    down: Spread | None
    offset: float | None
    clocksPlausible: bool | None
    remote: Spread | None
    points: tuple[Point, ...] = attrs.field(default=(), repr=False)

    @property
    def loss(self) -> float:
        """
        The lost share of what was sent, 0 to 1.
        """
        return self.lost / self.sent if self.sent else 0.0


class Samples:
    """
    What happened to the datagrams of one run.

    Times called C{at} are monotonic seconds; C{wall} times are nanoseconds since
    the epoch.

    @ivar lastSent: when the last datagram was sent.
    @ivar stepped: whether the wall clock was set during the run.

    @param timeout: seconds after which an answer is late.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._sent: dict[int, tuple[float, int]] = {}
        self._lateness: list[float] = []
        self._arrived: dict[int, float] = {}
        self._rtts: dict[int, float] = {}
        self._lastRtt: float | None = None
        self._jitter: float | None = None
        self._highest = -1
        self._up: list[float] = []
        self._down: list[float] = []
        self._remote: list[float] = []
        self._lastAt = 0.0
        self.lastSent = 0.0
        #: of all answers that gave a count: the highest number and count
        self._counted: tuple[int, int] | None = None
        self.stepped = False
        self.late = self.duplicates = self.reordered = self.ignored = 0

    @property
    def total(self) -> int:
        """
        Datagrams sent.
        """
        return len(self._sent)

    @property
    def answered(self) -> int:
        """
        Datagrams with an answer in time.
        """
        return len(self._rtts)

    @property
    def outstanding(self) -> int:
        """
        Datagrams without an answer.
        """
        return len(self._sent) - len(self._rtts)

    def sent(self, number: int, due: float, at: float, wall: int) -> None:
        self._sent[number] = (at, wall)
        self._lateness.append(at - due)
        self.lastSent = at
        self._lastAt = max(self._lastAt, at)

    def unsent(self, number: int) -> None:
        """
        The system did not take it: it was never on the way.
        """
        del self._sent[number]
        self._lateness.pop()

    def received(
        self,
        number: int,
        at: float,
        wall: int,
        *,
        remoteReceived: int | None = None,
        remoteSent: int | None = None,
        remoteCount: int | None = None,
    ) -> float | None:
        """
        @param remoteReceived: the far side's wall time of receipt.
        @param remoteSent: the far side's wall time of answering.
        @param remoteCount: how many of our datagrams the far side had received
            when it answered.
        @return: the round trip in seconds, for a first answer in time.
        """
        sent = self._sent.get(number)
        if sent is None:
            self.ignored += 1
            return None
        if number in self._arrived:
            self.duplicates += 1
            return None
        self._arrived[number] = at
        if remoteCount is not None:
            last, count = self._counted or (number, remoteCount)
            self._counted = (max(last, number), max(count, remoteCount))
        rtt = at - sent[0]
        if rtt > self.timeout:
            self.late += 1
            return None
        self._lastAt = max(self._lastAt, at)
        if number < self._highest:
            self.reordered += 1
        self._highest = max(self._highest, number)
        if self._lastRtt is not None:
            change = abs(rtt - self._lastRtt)
            before = self._jitter or 0.0
            self._jitter = before + (change - before) / 16
        self._lastRtt = rtt
        self._rtts[number] = rtt
        if remoteReceived is not None and remoteSent is not None:
            self._up.append((remoteReceived - sent[1]) / 1e9)
            self._down.append((wall - remoteSent) / 1e9)
            self._remote.append((remoteSent - remoteReceived) / 1e9)
        return rtt

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
        @return: the figures as of now; what is still without an answer counts
            as lost.
        """
        numbers = sorted(self._sent)
        first = self._sent[numbers[0]][0] if numbers else 0.0
        rtts = self._rtts
        lost = len(numbers) - len(rtts)
        lostUp = lostDown = None
        if self._counted is not None:
            # of those numbered up to the last answered one the far side told
            # its count; what was sent after it is in neither direction's count.
            # One that another overtook is in the other's answer not counted yet
            last, count = self._counted
            upTo = sum(1 for number in numbers if number <= last)
            missing = upTo - sum(1 for number in rtts if number <= last)
            lostUp = min(max(upTo - count, 0), missing)
            lostDown = missing - lostUp
        ipdv = [
            abs(rtts[number] - rtts[number - 1])
            for number in numbers
            if number in rtts and number - 1 in rtts
        ]
        up, down = spread(self._up), spread(self._down)
        offset = plausible = None
        if up is not None and down is not None:
            halves = sorted((u - d) / 2 for u, d in zip(self._up, self._down, strict=True))
            offset = percentile(halves, 50)
            plausible = up.min >= 0 and down.min >= 0 and not self.stepped
        return Report(
            protocol,
            target,
            size,
            interval,
            self._lastAt - first if numbers else 0.0,
            len(numbers),
            len(rtts),
            lost,
            lostUp,
            lostDown,
            self.late,
            self.duplicates,
            self.reordered,
            self.ignored,
            dict(errors),
            spread(list(rtts.values())),
            self._jitter,
            spread(ipdv),
            spread(self._lateness),
            up,
            down,
            offset,
            plausible,
            spread(self._remote),
            tuple(Point(n, self._sent[n][0] - first, rtts.get(n)) for n in numbers)
            if points
            else (),
        )
