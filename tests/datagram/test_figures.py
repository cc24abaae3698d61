"""
The figures against plain reference calculations on recorded samples.
"""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from connpool.datagram.figures import Samples, percentile, spread


def nearestRank(values, percent):
    """
    By definition: the smallest value that at least so many per cent do not exceed.
    """
    for candidate in sorted(values):
        if sum(1 for v in values if v <= candidate) * 1000 >= round(percent * 10) * len(values):
            return candidate
    raise AssertionError


@pytest.mark.parametrize("n", [1, 2, 3, 19, 20, 99, 100, 101, 999, 1000, 1001])
def test_percentiles(n):
    rng = random.Random(n)
    values = [rng.expovariate(1000) for _ in range(n)]
    ordered = sorted(values)
    for percent in (50.0, 95.0, 99.0, 99.9):
        assert percentile(ordered, percent) == nearestRank(values, percent)
    figures = spread(values)
    assert figures.n == n
    assert (figures.min, figures.max) == (ordered[0], ordered[-1])
    assert figures.mean == pytest.approx(statistics.fmean(values))
    assert figures.stddev == pytest.approx(statistics.pstdev(values))
    assert figures.p50 == nearestRank(values, 50)
    # left out where the rank would only be the maximum again
    assert (figures.p95 is None) == (n < 20)
    assert (figures.p99 is None) == (n < 100)
    assert (figures.p999 is None) == (n < 1000)


def test_nothing():
    assert spread([]) is None
    report = record([]).report(protocol="echo", target="t", size=64, interval=1, errors={})
    assert (report.sent, report.received, report.lost, report.loss) == (0, 0, 0, 0.0)
    assert report.rtt is None
    assert report.jitter is None
    assert report.ipdv is None


def record(events, timeout=1.0):
    """
    @param events: ("sent", number, due, at) or ("got", number, at), in order.
    """
    samples = Samples(timeout)
    for kind, number, *times in events:
        if kind == "sent":
            samples.sent(number, times[0], times[1], int(times[1] * 1e9))
        else:
            samples.received(number, times[0], int(times[0] * 1e9))
    return samples


def figures(samples):
    samples.expire(float("inf"))
    return samples.report(protocol="echo", target="t", size=64, interval=0.1, errors={})


def recording(seed, n=1500):
    """
    A path that loses, duplicates, delays past the timeout and reorders.
    """
    rng = random.Random(seed)
    events, arrivals = [], []
    at = 0.0
    for number in range(n):
        due = 100.0 + number * 0.01
        at = max(at + 1e-6, due + rng.choice([0, 0, 0.0002, 0.02]))
        events.append((at, "sent", number, due))
        fate = rng.random()
        if fate < 0.05:
            continue
        delay = 0.005 + rng.expovariate(200)
        if fate < 0.08:
            delay = 1.5  # late
        arrivals.append((at + delay, "got", number))
        if fate > 0.97:
            arrivals.append((at + delay + 0.003, "got", number))
    merged = sorted([(e[0], 0, e) for e in events] + [(a[0], 1, a) for a in arrivals])
    return [
        ("sent", e[2], e[3], e[0]) if e[1] == "sent" else ("got", e[2], e[0]) for _, _, e in merged
    ]


@pytest.mark.parametrize("seed", range(5))
def test_againstAReference(seed):
    events = recording(seed)
    report = figures(record(events))
    sent = {e[1]: e[3] for e in events if e[0] == "sent"}
    first, duplicates = {}, 0
    for kind, number, *times in events:
        if kind == "got":
            if number in first:
                duplicates += 1
            else:
                first[number] = times[0]
    rtt = {n: at - sent[n] for n, at in first.items() if at - sent[n] <= 1.0}
    order = [n for n in first if n in rtt]  # dicts keep the order of arrival
    assert report.sent == len(sent)
    assert report.received == len(rtt)
    assert report.lost == len(sent) - len(rtt)
    assert report.loss == pytest.approx(1 - len(rtt) / len(sent))
    assert report.late == len(first) - len(rtt) > 0
    assert report.duplicates == duplicates > 0
    assert report.reordered == sum(1 for i, n in enumerate(order) if any(m > n for m in order[:i]))
    assert report.reordered > 0
    values = list(rtt.values())
    assert report.rtt.mean == pytest.approx(statistics.fmean(values))
    assert report.rtt.p50 == nearestRank(values, 50)
    assert report.rtt.p999 == nearestRank(values, 99.9)
    jitter = 0.0
    for one, two in itertools.pairwise(order):
        # RFC 3550 6.4.1, with D of the round trip
        change = (first[two] - first[one]) - (sent[two] - sent[one])
        jitter += (abs(change) - jitter) / 16
    assert report.jitter == pytest.approx(jitter)
    differences = [abs(rtt[n + 1] - rtt[n]) for n in rtt if n + 1 in rtt]
    assert report.ipdv.n == len(differences)
    assert report.ipdv.mean == pytest.approx(statistics.fmean(differences))
    assert report.ipdv.p99 == pytest.approx(nearestRank(differences, 99))
    lateness = [e[3] - e[2] for e in events if e[0] == "sent"]
    assert report.lateness.max == max(lateness)
    assert report.lateness.mean == pytest.approx(statistics.fmean(lateness))
    assert [p.number for p in report.points if p.rtt is None] == sorted(set(sent) - set(rtt))
    assert report.seconds == pytest.approx(
        max(max(sent.values()), *(first[n] for n in rtt)) - min(sent.values())
    )


def test_numbersNeverSentAndImpossibleOnesAreIgnored():
    samples = record([("sent", 0, 0.0, 0.0), ("got", 7, 0.1), ("got", -1, 0.1), ("got", 0, 0.2)])
    report = figures(samples)
    assert (report.received, report.lost, report.ignored) == (1, 0, 2)
    assert report.rtt.max == pytest.approx(0.2)


def test_lossGetsADirectionWhereTheFarSideCounts():
    samples = Samples(1.0)
    for number in range(10):
        samples.sent(number, number, number, 0)
    # 2 and 5 never arrived there; the answer to 3 was lost; 9 is unknown
    counts = {0: 1, 1: 2, 4: 4, 6: 5, 7: 6, 8: 7}
    for number, count in counts.items():
        samples.received(number, number + 0.1, 0, remoteCount=count)
    report = figures(samples)
    assert (report.lost, report.lostUp, report.lostDown) == (4, 2, 1)


def test_overtakenIsNotLost():
    samples = Samples(1.0)
    for number in range(10):
        samples.sent(number, number, number, 0)
    for number in range(8):
        samples.received(number, number + 0.1, 0, remoteCount=number + 1)
    # 9 overtakes 8 on the way there
    samples.received(9, 9.1, 0, remoteCount=9)
    # 8 is under way: neither sent nor lost
    report = samples.report(protocol="echo", target="t", size=64, interval=1, errors={})
    assert (report.sent, report.lost, report.lostUp, report.lostDown) == (9, 0, 0, 0)
    samples.received(8, 8.9, 0, remoteCount=10)
    report = figures(samples)
    assert (report.sent, report.lost, report.lostUp, report.lostDown) == (10, 0, 0, 0)


def test_lateWasLostOnItsWayBackIfAnywhere():
    samples = Samples(1.0)
    for number in range(3):
        samples.sent(number, number, number, 0)
    samples.received(0, 0.1, 0, remoteCount=1)
    samples.received(2, 2.1, 0, remoteCount=2)
    samples.received(1, 2.2, 0, remoteCount=3)
    report = figures(samples)
    assert (report.lost, report.late, report.lostUp, report.lostDown) == (1, 1, 0, 1)


def test_oneWayDelays():
    samples = Samples(1.0)
    # the far clock is 50 ms ahead; there 10 ms, back 30 ms, 1 ms to answer
    for number in range(3):
        at = 1000.0 + number
        samples.sent(number, at, at, int(at * 1e9))
        back = at + 0.041
        samples.received(
            number,
            back,
            int(back * 1e9),
            remoteReceived=int((at + 0.01 + 0.05) * 1e9),
            remoteSent=int((at + 0.011 + 0.05) * 1e9),
        )
    report = figures(samples)
    assert report.up.mean == pytest.approx(0.06, abs=1e-6)
    assert report.down.mean == pytest.approx(-0.02, abs=1e-6)
    assert report.remote.mean == pytest.approx(0.001, abs=1e-6)
    assert report.offset == pytest.approx((0.06 - -0.02) / 2, abs=1e-6)
    assert report.clocksPlausible is False
    assert report.rtt.mean == pytest.approx(0.041, abs=1e-6)
