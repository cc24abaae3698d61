"""
The most bytes a second that are sent to one destination.
"""

import random

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from connpool.errors import WrongSetting
from connpool.services.options import readRate
from connpool.transfer.send.pace import Pace
from connpool.transfer.wire.frames import MAX_DATA_BYTES

BLOCK = 4096

pytestmark = pytest.mark.usefixtures("smallFiles")


class Sender:
    """
    Sends portions as soon as it may.
    """

    def __init__(self, pace, portion):
        self.pace, self.portion, self.sent = pace, portion, 0
        self.go()

    def go(self, _=None):
        while (turn := self.pace.turn()) is None:
            self.send()
        turn.addCallback(lambda _: self.send()).addCallback(self.go)

    def send(self):
        self.pace.spend(self.portion)
        self.sent += self.portion


def test_theAverageHoldsForAllTogether():
    clock = Clock()
    pace = Pace(clock, 80_000)
    senders = [Sender(pace, 1000), Sender(pace, 1000), Sender(pace, 8192)]
    clock.pump([0.01] * 1000)
    total = sum(sender.sent for sender in senders)
    assert total == pytest.approx(800_000, rel=0.05)
    # each has its turn
    assert senders[0].sent == pytest.approx(senders[1].sent, rel=0.3)
    assert senders[2].sent > 6 * senders[0].sent


def test_anotherRateIsForThoseThatWaitToo():
    clock = Clock()
    pace = Pace(clock, 1024)
    pace.spend(1 << 20)
    turns = [pace.turn(), pace.turn()]
    clock.advance(10)
    assert not turns[0].called
    assert pace.waiting
    pace.change(1 << 20)
    assert turns[0].called
    pace.change(0)
    assert turns[1].called
    assert not pace.waiting
    assert pace.turn() is None
    pace.change(1024)
    assert pace.turn() is None, "an earlier debt is forgotten"
    assert not clock.getDelayedCalls()


def test_aTurnThatIsCancelledLeavesNothing():
    clock = Clock()
    pace = Pace(clock, 1024)
    pace.spend(1 << 20)
    first, second = pace.turn(), pace.turn()
    for turn in (first, second):
        turn.cancel()
        turn.addErrback(lambda failure: failure.trap(CancelledError))
    assert not pace.waiting
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize(
    ("rate", "portion"),
    [(0, MAX_DATA_BYTES), (1024, 4096), (1 << 20, 1 << 17), (1 << 40, MAX_DATA_BYTES)],
)
def test_portionsArePowersOfTwo(rate, portion):
    assert Pace(Clock(), rate).portion == portion


def paced(world, rate, *paths, **more):
    """
    Send with a pace: the report, and the seconds that it took.
    """
    pace = Pace(world.clock, rate)
    results = world.start(world.sending(*paths, pace=pace, **more))
    began = world.clock.seconds()
    waits = set()
    for _ in range(20_000):
        world.pump()
        if results:
            return results[0], world.clock.seconds() - began, waits
        world.clock.advance(0.005)
        sending = more.get("watched")
        waits.add(sending.report.wait if sending else pace.waiting)
    raise AssertionError("no end")


@pytest.mark.parametrize("jobs", [1, 3])
def test_aLargeFileOverAllConnections(world, source, jobs):
    (source / "large").write_bytes(random.Random(1).randbytes(40 * BLOCK))
    report, seconds, waits = paced(world, 8 * BLOCK, source / "large", jobs=jobs)
    assert report.exitCode == 0
    assert world.store.files["large"]
    # all but the first portion of a second
    assert seconds == pytest.approx(5, abs=0.8)
    assert True in waits


def test_smallFiles(world, source):
    for number in range(100):
        (source / f"{number}").write_bytes(bytes(400))
    report, seconds, _ = paced(world, 10_000, source)
    assert report.exitCode == 0
    assert len(world.store.files) == 100
    assert 3.5 < seconds < 7  # and what names and entries take


def test_aSlowPaceIsNoSilence(world, source):
    """
    A receiver hears of us in time, and answers are not kept waiting.
    """
    world.policy = type(world.policy)(minimumRate=2000, idleTimeout=10)
    (source / "small").write_bytes(bytes(2000))
    world.restart()
    (source / "large").write_bytes(random.Random(1).randbytes(40 * BLOCK))
    report, seconds, _ = paced(world, 4096, source / "large")
    assert report.exitCode == 0
    assert report.connections == 1
    assert seconds > 35


def test_aConnectionThatBreaksEndsTheWait(world, source):
    (source / "large").write_bytes(random.Random(1).randbytes(40 * BLOCK))
    pace = Pace(world.clock, 4096)
    sending = world.sending(source / "large", pace=pace)
    results = world.start(sending)
    for _ in range(400):
        world.pump()
        world.clock.advance(0.01)
    assert pace.waiting
    assert sending.report.wait.what == "bwlimit"
    world.wires[0].reset(world.wires[0].ends[0])
    world.pump()
    assert not pace.waiting
    assert world.finish(results).exitCode == 0


def test_ratesAsPeopleWriteThem(tmp_path):
    file = tmp_path / "rate"
    for text, rate in (("2M\n", 2 << 20), ("", 0), ("0", 0), (" 1024 ", 1024)):
        file.write_text(text)
        assert readRate(str(file)) == rate
    assert readRate("64K") == 65536
    for text in ("1", "fast", "-1", "1.5M", ""):
        with pytest.raises(WrongSetting):
            readRate(text)
    file.write_bytes(b"\xff fast")
    for path in (file, tmp_path, tmp_path / "no"):
        with pytest.raises(WrongSetting, match=str(path)):
            readRate(str(path))
