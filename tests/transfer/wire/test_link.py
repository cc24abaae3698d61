import pytest
from twisted.internet.task import Clock

from connpool.errors import TooSlow, TransferTimeout
from connpool.transfer.wire.link import Deadline


def build(minimumRate=10):
    clock, late = Clock(), []
    deadline = Deadline(clock, 5.0, minimumRate, late.append)
    deadline.start()
    return clock, deadline, late


def test_silenceEndsAfterTheIdleTimeout():
    clock, _, late = build()
    clock.advance(4.99)
    assert late == []
    clock.advance(0.02)
    assert [type(why) for why in late] == [TransferTimeout]
    assert clock.getDelayedCalls() == []


def test_aByteJustInTimeIsTooSlow():
    clock, deadline, late = build()
    for _ in range(3):
        clock.advance(2)
        deadline.arrived(1)
    assert [type(why) for why in late] == [TooSlow]
    assert "at least 10" in str(late[0])


@pytest.mark.parametrize("rate", [0, 10])
def test_whoKeepsUpIsNeverLate(rate):
    clock, deadline, late = build(rate)
    for _ in range(100):
        clock.advance(1)
        deadline.arrived(20)
    assert late == []
    deadline.stop()
    assert clock.getDelayedCalls() == []


def test_silenceAfterABurstIsNoticedInTime():
    clock, deadline, late = build()
    clock.advance(1)
    deadline.arrived(10**9)
    clock.pump([1] * 4)
    assert late == []
    clock.pump([1] * 2)
    assert [type(why) for why in late] == [TransferTimeout]


def test_timeWeDidNotReadDoesNotCount():
    clock, deadline, late = build()
    clock.advance(4)
    deadline.stop()
    clock.advance(100)
    deadline.start()
    clock.advance(0.9)
    assert late == []
    clock.advance(0.2)
    assert len(late) == 1


def test_whoStopsUsNowAndThenIsLateAllTheSame():
    clock, deadline, late = build()
    for _ in range(20):
        clock.advance(0.3)
        deadline.stop()
        clock.advance(1.0)
        deadline.start()
    assert len(late) == 1


def test_oneTimerHoweverManyChunks():
    clock, deadline, _ = build()
    for _ in range(1000):
        deadline.arrived(1000)
    assert len(clock.getDelayedCalls()) == 1
    deadline.stop()
