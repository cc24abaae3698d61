"""
The Deferreds that wait for one event.
"""

import pytest
from twisted.internet.defer import CancelledError

from connpool.waiting import Waiters


def waitersThatTell():
    waiters, told = Waiters(), []
    for name in "abc":
        waiters.wait().addCallbacks(
            lambda _, name=name: told.append(name),
            lambda failure, name=name: told.append((name, failure.type)),
        )
    return waiters, told


def test_wakeLetsAllGoOnInOrder():
    waiters, told = waitersThatTell()
    waiters.wake()
    assert (told, len(waiters)) == (["a", "b", "c"], 0)
    waiters.wake()
    assert told == ["a", "b", "c"]


def test_wakeOneLetsTheOldestGoOn():
    waiters, told = waitersThatTell()
    waiters.wakeOne()
    assert (told, len(waiters)) == (["a"], 2)
    Waiters().wakeOne()


def test_failReachesAll():
    waiters, told = waitersThatTell()
    waiters.fail(ValueError())
    assert told == [("a", ValueError), ("b", ValueError), ("c", ValueError)]


def test_cancelledOneLeavesAtOnce():
    waiters, told = waitersThatTell()
    d = waiters.wait()
    d.cancel()
    assert len(waiters) == 3
    waiters.wake()
    assert told == ["a", "b", "c"]
    d.addErrback(lambda failure: failure.trap(CancelledError))


@pytest.mark.parametrize("end", [Waiters.wake, lambda waiters: waiters.fail(ValueError())])
def test_cancelledByTheOneBefore(end):
    waiters, told = Waiters(), []
    first = waiters.wait()
    second = waiters.wait()
    first.addBoth(lambda _: second.cancel())
    second.addErrback(lambda failure: told.append(failure.type))
    end(waiters)
    assert told == [CancelledError]


def test_oneThatComesMeanwhileWaitsForTheNextTime():
    waiters = Waiters()
    again = []
    waiters.wait().addCallback(lambda _: again.append(waiters.wait()))
    waiters.wake()
    assert (len(waiters), again[0].called) == (1, False)
