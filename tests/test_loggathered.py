"""
Events that are logged together.
"""

import pytest
from twisted.internet.task import Clock

from connpool.logonce import GATHER_SECONDS, MAX_GATHERED, LogGathered


@pytest.fixture
def gathered():
    """
    The log, its clock, and the lists that it was told.
    """
    clock, told = Clock(), []
    clock.advance(1000)
    log = LogGathered(clock, told.append)
    yield log, clock, told
    log.flush()
    assert not clock.getDelayedCalls()


def test_theFirstAtOnceTheOthersTogether(gathered):
    log, clock, told = gathered
    for number in range(4):
        log.happened([number])
    assert told == [[0]]
    clock.advance(GATHER_SECONDS)
    assert told == [[0], [1, 2, 3]]
    clock.advance(GATHER_SECONDS)
    log.happened([4, 5])
    assert told[2:] == [[4, 5]]


def test_manyDoNotWait(gathered):
    log, clock, told = gathered
    log.happened([0])
    log.happened([1])
    log.happened(range(2, MAX_GATHERED + 1))
    assert [len(each) for each in told] == [1, MAX_GATHERED]
    assert not clock.getDelayedCalls()


def test_nothingIsSaidOfNothing(gathered):
    log, _, told = gathered
    log.flush()
    assert told == []


def test_aClockThatIsSetBackHoldsNothingUp(gathered):
    log, clock, told = gathered
    log.happened([0])
    clock.rightNow -= 500
    log.happened([1])
    assert told == [[0], [1]]
