"""
Sources that go while others are sent: in turn, and only on good receipts.
"""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred, succeed

from connpool.transfer.send import departures
from connpool.transfer.send.departures import Departures
from connpool.transfer.send.removal import Departure, Fate
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.transfer.stores.kit import receipt

GONE = Departure(Fate.GONE)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(departures, "WORTH_FILES", 3)
    monkeypatch.setattr(departures, "WORTH_BYTES", 1000)


def removing():
    """
    What is removed, with the Deferred of each call.
    """
    calls = []

    def remove(sent):
        calls.append(([each.path for each in sent], Deferred()))
        return calls[-1][1]

    return Departures(remove), calls


def add(going, *names, **values):
    for name in names:
        going.add(name, (1, 2, 3, 4, 5), receipt(**values))


def test_fewWaitForTheEnd():
    going, calls = removing()
    add(going, "a", "b")
    assert calls == []
    all_ = Deferred.fromCoroutine(going.all())
    assert [names for names, _ in calls] == [["a", "b"]]
    calls[0][1].callback({"a": GONE, "b": GONE})
    assert successResultOf(all_) == {"a": GONE, "b": GONE}


def test_manyGoMeanwhileInTurn():
    going, calls = removing()
    add(going, *"abc")
    add(going, *"defgh")
    assert [names for names, _ in calls] == [["a", "b", "c"]]  # one thread
    calls[0][1].callback(dict.fromkeys("abc", GONE))
    assert [names for names, _ in calls[1:]] == [["d", "e", "f", "g", "h"]]
    add(going, "i")
    all_ = Deferred.fromCoroutine(going.all())
    calls[1][1].callback(dict.fromkeys("defgh", GONE))
    assertNoResult(all_)
    assert [names for names, _ in calls[2:]] == [["i"]]
    calls[2][1].callback({"i": GONE})
    assert successResultOf(all_) == dict.fromkeys("abcdefghi", GONE)


def test_aLargeOneGoesAtOnce():
    going, calls = removing()
    add(going, "a", size=999)
    assert calls == []
    add(going, "b")
    assert [names for names, _ in calls] == [["a", "b"]]
    calls[0][1].callback({"a": GONE, "b": GONE})
    assert successResultOf(Deferred.fromCoroutine(going.all())) == {"a": GONE, "b": GONE}


def test_onlyGoodReceiptsLetSourcesGo():
    going, calls = removing()
    add(going, "a", durability="data", size=5000)
    add(going, "b", status="skipped", size=5000)
    add(going, "c", integrity="unverified", size=5000)
    going.add("d", (), None)
    assert successResultOf(Deferred.fromCoroutine(going.all())) == {}
    assert calls == []


def test_whatFailsIsToldAndEndsIt():
    going, calls = removing()
    add(going, *"abc")
    add(going, "d")
    all_ = Deferred.fromCoroutine(going.all())
    calls[0][1].errback(MemoryError())
    failureResultOf(all_, MemoryError)
    assert len(calls) == 1


def test_aRemovalMayBeOverAtOnce():
    going = Departures(lambda sent: succeed({each.path: GONE for each in sent}))
    add(going, *"abcd")
    assert successResultOf(Deferred.fromCoroutine(going.all())) == dict.fromkeys("abcd", GONE)
