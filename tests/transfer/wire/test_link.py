import pytest
from twisted.internet.task import Clock

from connpool.errors import TooSlow, TransferTimeout
from connpool.transfer.wire.link import Pace


def build(minimumRate=10):
    clock, late = Clock(), []
    pace = Pace(clock, 5.0, minimumRate, late.append)
    pace.start()
    return clock, pace, late


def test_silenceEndsAfterTheIdleTimeout():
    clock, _, late = build()
    clock.advance(4.99)
    assert late == []
    clock.advance(0.02)
    assert [type(why) for why in late] == [TransferTimeout]
    assert clock.getDelayedCalls() == []


def test_aByteJustInTimeIsTooSlow():
    clock, pace, late = build()
    for _ in range(3):
        clock.advance(2)
        pace.arrived(1)
    assert [type(why) for why in late] == [TooSlow]
    assert "at least 10" in str(late[0])


@pytest.mark.parametrize("rate", [0, 10])
def test_whoKeepsUpIsNeverLate(rate):
    clock, pace, late = build(rate)
    for _ in range(100):
        clock.advance(1)
        pace.arrived(20)
    assert late == []
    pace.stop()
    assert clock.getDelayedCalls() == []


def test_silenceAfterABurstIsNoticedInTime():
    clock, pace, late = build()
    clock.advance(1)
    pace.arrived(10**9)
    clock.pump([1] * 4)
    assert late == []
    clock.pump([1] * 2)
    assert [type(why) for why in late] == [TransferTimeout]


def test_timeWeDidNotReadDoesNotCount():
    clock, pace, late = build()
    clock.advance(4)
    pace.stop()
    clock.advance(100)
    pace.start()
    clock.advance(0.9)
    assert late == []
    clock.advance(0.2)
    assert len(late) == 1


def test_whoStopsUsNowAndThenIsLateAllTheSame():
    clock, pace, late = build()
    for _ in range(20):
        clock.advance(0.3)
        pace.stop()
        clock.advance(1.0)
        pace.start()
    assert len(late) == 1


def test_oneTimerHoweverManyChunks():
    clock, pace, _ = build()
    for _ in range(1000):
        pace.arrived(1000)
    assert len(clock.getDelayedCalls()) == 1
    pace.stop()
