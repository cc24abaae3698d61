"""
The prober against echoes that behave, and paths that do not.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from xml.etree import ElementTree as ET

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import DatagramProtocol

from connpool.datagram import (
    Auto,
    Irtt,
    Marking,
    Prober,
    Report,
    Stamp,
    TCPEchoFactory,
    makeProber,
    plot,
    probe,
    sweep,
)
from connpool.datagram.figures import Point, spread
from connpool.errors import AddressError, ProbeFailed
from tests.datagram.peers import answering, client, sturdy, where
from tests.helpers.ports import freePort
from tests.helpers.waiting import bounded, pause, until


async def run(port, **options):
    options = {"count": 30, "interval": 0.002, "timeout": 1.0, **options}
    return await bounded(probe(reactor, *where(port), **options))


class Path(DatagramProtocol):
    """
    An echo behind a path that C{fate} decides on: it gets number and datagram,
    and returns what comes back.
    """

    noisy = False

    def __init__(self, fate):
        self.fate = fate

    def datagramReceived(self, datagram, addr):
        number = int.from_bytes(datagram[8:12], "big")
        for back in self.fate(number, datagram):
            if isinstance(back, tuple):
                delay, back = back
                reactor.callLater(delay, self.transport.write, back, addr)
            else:
                self.transport.write(back, addr)


@pytest.mark.parametrize("protocol", ["echo", "irtt"])
@pytest.mark.parametrize(("interface", "host"), [("127.0.0.1", "127.0.0.1"), ("::", "::1")])
@pytest_twisted.ensureDeferred
async def test_aPathThatLosesNothing(protocol, interface, host):
    with answering(Auto(), interface=interface) as port:
        report = await bounded(
            probe(reactor, *where(port, host), protocol=protocol, count=40, interval=0.002)
        )
        assert (report.sent, report.received, report.lost) == (40, 40, 0)
        assert (report.duplicates, report.reordered, report.late, report.ignored) == (0, 0, 0, 0)
        assert report.errors == {}
        assert 0 < report.rtt.min <= report.rtt.p50 <= report.rtt.p95 <= report.rtt.max < 0.3
        assert report.rtt.p99 is None
        assert report.lateness.min >= 0
        # at its rate: the last was due 39 intervals after the first
        assert report.points[-1].at >= 39 * 0.002 - 0.001
        if protocol == "irtt":
            assert (report.lostUp, report.lostDown) == (0, 0)
            assert report.clocksPlausible
            await until(lambda: port.stats().refused == {"irtt-closed": 1})


@pytest_twisted.ensureDeferred
async def test_tcp():
    port = reactor.listenTCP(0, TCPEchoFactory(), interface="127.0.0.1")
    try:
        report = await run(port, protocol="tcp", size=5000)
        assert (report.sent, report.received, report.size) == (30, 30, 5000)
        assert report.protocol == "tcp"
        with pytest.raises(ProbeFailed, match="cannot connect"):
            await bounded(probe(reactor, "127.0.0.1", 9, protocol="tcp"))
    finally:
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_tcpThatEndsGoesOnOverAnotherConnection():
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        prober = makeProber(
            reactor, *listener.getsockname(), protocol="tcp", count=None, interval=0.01
        )
        done = prober.start()
        listener.setblocking(False)

        def accepted():
            try:
                return listener.accept()
            except BlockingIOError:
                return None

        sock, _ = await until(accepted)
        sock.close()
        # what is due until there is another connection is lost
        await until(lambda: prober.samples.unsentCount >= 3)
        sock, _ = await until(accepted)
        echoed = prober.samples.answered

        def echo():
            with contextlib.suppress(BlockingIOError):
                sock.sendall(sock.recv(6400))
            return prober.samples.answered > echoed + 3

        sock.setblocking(False)
        await until(echo)
        prober.stop()
        sock.close()
        report = await bounded(done)
        assert report.errors == {"closed": 1}
        assert report.unsent >= 3
        assert report.received > 3
        await until(lambda: prober._transport is None)


@pytest_twisted.ensureDeferred
async def test_everyKindOfTrouble():
    waiting = []

    def fate(number, datagram):
        if number in {3, 17}:
            return []  # lost
        if number == 5:
            return [datagram, datagram, datagram]  # twice too often
        if number == 8:
            waiting.append(datagram)  # overtaken
            return []
        if number == 9:
            return [datagram, waiting.pop()]
        if number == 11:
            return [(0.8, datagram)]  # late
        if number == 12:
            # another run's token, cut, longer, a number never sent
            forged = datagram[:8] + (7000).to_bytes(4, "big") + datagram[12:]
            return [b"x" * 64, datagram[:20], datagram + b"!", forged, datagram]
        return [datagram]

    with sturdy(Path(fate)) as port:
        prober = Prober(reactor, *where(port), count=100, interval=0.01, timeout=0.6)
        report = await bounded(prober.start())
        await pause(0.05)
    assert report.sent == 100
    assert report.lost == 3
    assert report.duplicates == 2
    assert report.reordered == 1
    assert report.late == 1
    assert report.ignored == 4
    assert [point.number for point in report.points if point.rtt is None] == [3, 11, 17]


@pytest_twisted.ensureDeferred
async def test_29_answersFromAThirdPartyAreIgnored():
    with client() as other:

        def fate(number, datagram):
            other.sendto(datagram, (host, prober._port.getHost().port))
            return [datagram] if number % 2 else []

        with sturdy(Path(fate)) as port:
            host = "127.0.0.1"
            prober = Prober(reactor, *where(port), count=10, interval=0.002, timeout=1.0)
            report = await bounded(prober.start())
    assert (report.received, report.lost, report.ignored) == (5, 5, 10)


@pytest.mark.parametrize("seconds", [3600, 0.5, -0.5, -3600])
@pytest_twisted.ensureDeferred
async def test_31_aSteppedWallClock(seconds):
    """
    Set after the kernel wrote the time of an answer, before we read it.
    """
    step = 0

    class Stepped(Prober):
        def datagramReceived(self, datagram, addr):
            nonlocal step
            self._port.info.kernelTime += step
            if int.from_bytes(datagram[8:12], "big") == 10:
                step = int(seconds * 10**9)
            super().datagramReceived(datagram, addr)

    with sturdy(Path(lambda number, datagram: [datagram])) as port:
        prober = Stepped(
            reactor, *where(port), count=30, interval=0.002,
            wallClock=lambda: time.time_ns() + step,
        )  # fmt: skip
        report = await bounded(prober.start())
    assert report.received == 30
    assert 0 < report.rtt.min <= report.rtt.max < 0.4
    assert prober.samples.stepped


@pytest_twisted.ensureDeferred
async def test_nobodyThere():
    port = freePort(socket.SOCK_DGRAM)
    report = await bounded(probe(reactor, "127.0.0.1", port, count=5, interval=0.01, timeout=0.1))
    assert (report.sent, report.received) == (5, 0)
    assert report.errors == {"ECONNREFUSED": 5}
    assert report.rtt is None


@pytest_twisted.ensureDeferred
async def test_stalledAnswersDoNotThinOutTheSamples():
    """
    Coordinated omission: the far side stops for a while; every datagram that was
    due in that time is sent in it, and waits.
    """
    held = []

    def fate(number, datagram):
        if 10 <= number < 50:
            held.append(datagram)
            return []
        back, held[:] = [*held, datagram], []
        return back

    with sturdy(Path(fate)) as port:
        report = await run(port, count=60, interval=0.005, timeout=10)
    assert report.received == 60
    # all were sent in that time, and none waited for the one before it
    waits = [point.rtt for point in report.points[10:50]]
    assert waits[0] > 20 * 0.005  # of 40, on a machine that is late itself
    assert waits[0] > waits[10] > waits[20] > waits[30]


@pytest_twisted.ensureDeferred
async def test_stoppingAndCancelling():
    with answering() as port:
        prober = Prober(reactor, *where(port), count=None, interval=0.01)
        done = prober.start()
        await until(lambda: prober.samples.answered >= 3)
        prober.stop()
        report = await bounded(done)
        assert report.received >= 3
        prober.stop()
        cancelled = probe(reactor, *where(port), count=None, interval=0.01)
        cancelled.addErrback(lambda _: "cancelled")
        cancelled.cancel()
        assert await cancelled == "cancelled"


@pytest_twisted.ensureDeferred
async def test_irttThatIsNotThere():
    with answering(Stamp()) as port:
        prober = Prober(reactor, *where(port), protocol="irtt")
        done = prober.start()
        with pytest.raises(ProbeFailed, match="does not answer irtt"):
            await bounded(done)


@pytest.mark.peer("irtt")
@pytest_twisted.ensureDeferred
async def test_debiansServer():
    with client() as free:
        host, number = free.getsockname()
    server = subprocess.Popen(
        ["irtt", "server", "-b", f"{host}:{number}", "-i", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        report = await bounded(
            probe(reactor, host, number, protocol="irtt", count=50, interval=0.01, size=200)
        )
    finally:
        server.kill()
        server.wait()
    assert (report.sent, report.received, report.lostUp, report.lostDown) == (50, 50, 0, 0)
    assert report.clocksPlausible


@pytest_twisted.ensureDeferred
async def test_lossHasADirection():
    """
    irtt through a path that loses some on the way there and some on the way back.
    """

    class Lossy(Irtt):
        def respond(self, data, info):
            number = int.from_bytes(data[12:16], "little") if data[3] == 0 else None
            if number in {4, 9}:
                return None  # never got here
            answer = super().respond(data, info)
            return None if number in {6, 7, 8} else answer

    with answering(Lossy()) as port:
        report = await run(port, protocol="irtt")
    assert (report.lost, report.lostUp, report.lostDown) == (5, 2, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": "localhost"}, "not an address"),
        ({"protocol": "smtp"}, "no probe protocol; there are echo, irtt, stamp, tcp"),
        ({"size": 11}, "echo takes 12 to 65507 bytes"),
        ({"protocol": "stamp", "size": 43}, "stamp takes 44"),
        ({"protocol": "irtt", "size": 43}, "irtt takes 44"),
    ],
)
def test_optionsThatMakeNoSense(options, says):
    options = {"host": "127.0.0.1", "port": 9, **options}
    with pytest.raises(AddressError, match=says):
        Prober(reactor, **options)


@pytest_twisted.ensureDeferred
async def test_sweep():
    def fate(number, datagram):
        return [datagram] if len(datagram) <= 1472 else []

    with sturdy(Path(fate)) as port:
        report = await bounded(
            Deferred.fromCoroutine(sweep(reactor, *where(port), timeout=0.1, tries=2)), 30
        )
    assert (report.largest, report.mtu) == (1472, 1500)
    assert dict(report.tried)[1473] is False


@pytest_twisted.ensureDeferred
async def test_sweepOverNothing():
    address = "127.0.0.1", freePort(socket.SOCK_DGRAM)
    with pytest.raises(ProbeFailed, match="not even 12 bytes"):
        await bounded(Deferred.fromCoroutine(sweep(reactor, *address, timeout=0.05)))


@pytest_twisted.ensureDeferred
async def test_sweepWaitsAsLongAsTheWayTakes(monkeypatch):
    """
    For the first as long as was said, then as the slowest answer suggests.
    """
    waits = []

    class Answered:
        def __init__(self, reactor, host, port, *, size, timeout, **options):
            waits.append(timeout)
            self.rtt = spread([0.3 + size / 10_000]) if size <= 1000 else None

        def start(self):
            received = 0 if self.rtt is None else 1
            return succeed(attrs.evolve(empty(), received=received, rtt=self.rtt))

    monkeypatch.setitem(sweep.__globals__, "makeProber", Answered)
    report = await Deferred.fromCoroutine(sweep(reactor, "192.0.2.7", 9, timeout=1.7))
    assert report.largest == 1000
    assert waits[0] == 1.7
    assert waits[1] == pytest.approx(4 * (0.3 + 12 / 10_000) + 0.2)
    assert waits[2:] == sorted(waits[2:])
    assert waits[-1] == 1.7


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("fe80::1%1", "fe80::1%{}"),
        ("2001:db8::1%1", "2001:db8::1"),
        ("::1%1", "::1"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_zones(host, known):
    prober = Prober(reactor, host, 9)
    assert prober._peer == (known.format(socket.if_indextoname(1)), 9)


def circles(svg):
    return list(svg.iter("{http://www.w3.org/2000/svg}circle"))


@pytest_twisted.ensureDeferred
async def test_plot():
    with sturdy(Path(lambda number, datagram: [datagram] if number % 5 else [])) as port:
        report = await run(port)
    text = plot(report)
    svg = ET.fromstring(text)
    assert len(circles(svg)) == report.received == 24
    assert text.count('stroke="#c62828"') == report.lost + 1  # and the legend's
    assert "30 sent, 24 received, 6 lost (20.00 %)" in text
    assert "<script" not in text


def test_plotOfManyAndOfNone():
    base = attrs.evolve(empty(), target="<evil>&")
    ET.fromstring(plot(base))
    points = tuple(Point(i, i * 0.001, 0.001 + i % 7 * 0.0001) for i in range(20_000))
    text = plot(attrs.evolve(base, points=points))
    svg = ET.fromstring(text)
    assert 0 < len(circles(svg)) < 800
    assert len(text) < 200_000
    assert "<evil>" not in text
    lost = tuple(Point(i, i * 0.001, None) for i in range(100_000))
    assert len(plot(attrs.evolve(base, points=lost))) < 1_000_000


def empty():
    return Report(protocol="echo", target="t", size=64, interval=0.001)


@pytest_twisted.ensureDeferred
async def test_anIrttServerThatBeginsAgainIsAskedForANewSession(monkeypatch):
    """
    What is lost meanwhile is lost on its way there: it was counted by nobody.
    """
    monkeypatch.setattr("connpool.datagram.prober._REOPENING_SECONDS", 0.1)
    irtt = Irtt()
    with answering(irtt) as port:
        prober = Prober(
            reactor, *where(port), protocol="irtt", count=None, interval=0.01, timeout=0.1
        )
        done = prober.start()
        await until(lambda: prober.samples.answered >= 10)
        irtt.__init__()
        await until(lambda: prober.samples.lost >= 3)
        before = prober.samples.answered
        await until(lambda: prober.samples.answered >= before + 10)
        prober.stop()
        report = await bounded(done)
    assert report.lostUp == report.lost >= 3
    assert report.lostDown == 0
    assert irtt.refused["irtt-token"] >= report.lost


@pytest_twisted.ensureDeferred
async def test_datagramsUnderWayAreNeitherSentNorLost():
    with sturdy(Path(lambda number, datagram: [(0.2, datagram)])) as port:
        seen = []
        prober = Prober(
            reactor, *where(port), count=None, interval=0.01, timeout=1.0, onSample=seen.append
        )
        done = prober.start()
        await until(lambda: prober.samples.answered >= 5)
        assert prober.samples.outstanding > 5
        prober.stop()
        report = await bounded(done)
        await pause(0.25)  # the answers that come too late for it
    assert (report.sent, report.lost) == (report.received, 0)
    assert len(report.points) == report.received == len(seen)
    assert {sample.status for sample in seen} == {"received"}
    assert [sample.rtt for sample in seen] == [point.rtt for point in report.points]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"key": b"k"}, "echo has no keys; a key goes with irtt, stamp"),
        ({"key": b"k", "protocol": "stamp", "size": 111}, "stamp with a key takes 112"),
        ({"key": b"k", "protocol": "irtt", "size": 59}, "irtt with a key takes 60"),
        ({"source": "name"}, "source 'name' is not an address"),
        ({"source": "::1"}, "source ::1 and target 127.0.0.1 are of two families"),
        ({"host": "fe80::1"}, "fe80::1 is link-local: say on which link"),
        ({"host": "fe80::1%nolink"}, "no link 'nolink'"),
    ],
)
def test_optionsThatDoNotGoTogether(options, says):
    with pytest.raises(AddressError, match=says):
        Prober(reactor, **{"host": "127.0.0.1", "port": 9, **options})


def test_sizesByDefault():
    for protocol, key, size in (("echo", None, 64), ("stamp", b"k", 112), ("irtt", b"k", 64)):
        assert Prober(reactor, "127.0.0.1", 9, protocol=protocol, key=key).size == size


def test_markingIsNotForTCP():
    prober = makeProber(reactor, "127.0.0.1", 9, protocol="tcp", marking=Marking(ttl=3))
    with pytest.raises(AddressError, match="takes no interface, DSCP or TTL"):
        prober.start()
