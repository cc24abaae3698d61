"""
What counts as left over by a test.
"""

import threading

import pytest
from twisted.internet import reactor

from tests.conftest import leftCalls


@pytest.fixture
def cancelledSoon():
    before = set(reactor.getDelayedCalls())
    call = reactor.callLater(60, lambda: None)
    threading.Timer(0.05, reactor.callFromThread, [call.cancel]).start()
    return leftCalls(before)


@pytest.fixture
def madeSoon():
    before = set(reactor.getDelayedCalls())
    call = reactor.callLater(0.05, lambda: None)
    return [each is call for each in leftCalls(before)]


def test_aCallThatIsCancelledAMomentLaterIsNone(cancelledSoon):
    assert cancelledSoon == []


def test_aCallThatIsMadeIsOne(madeSoon):
    assert madeSoon == [True]
