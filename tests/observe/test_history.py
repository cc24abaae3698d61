import json

import attrs
import pytest
from twisted.application.service import MultiService
from twisted.internet.task import Clock

from connpool.observe.history import (
    SAMPLE_INTERVAL_SECONDS,
    SAMPLES,
    History,
    HistoryService,
)
from connpool.observe.sources import Reading
from connpool.services.probing import ProbeStats
from connpool.transfer.receive.policy import TransferStats
from tests.observe.sample import Source, busy


def reading(kind="transfer", name="inbox", **values):
    snapshot = {"transfer": TransferStats, "probe": ProbeStats}[kind](**values)
    return Reading(kind, name, snapshot)


def test_ratesOfWhatGrew():
    history = History()
    history.add(100, [reading(receivedBytes=5000, published=1)])
    history.add(105, [reading(receivedBytes=6000, published=11)])
    assert history.points("bytes")[-2:] == [0.0, 200.0]
    assert history.points("files")[-2:] == [0.0, 2.0]
    assert history.points("bytes")[:-2] == [None] * (SAMPLES - 2)
    assert history.points("roundTrip") == [None] * SAMPLES


def test_severalSourcesAreAddedUp():
    history = History()
    for at, count in ((0, 0), (5, 50)):
        history.add(at, [reading(name=name, receivedBytes=count, waiting=2) for name in "ab"])
    assert history.points("bytes")[-1] == 20.0
    assert history.points("waiters")[-1] == 4


def test_aSourceThatBeginsAgainOrIsNewMakesNoPeak():
    history = History()
    history.add(0, [reading(receivedBytes=1 << 40)])
    history.add(5, [reading(receivedBytes=10)])
    history.add(10, [reading(receivedBytes=10), reading(name="new", receivedBytes=1 << 40)])
    history.add(10, [reading(receivedBytes=1 << 30)])  # the clock stands
    history.add(3, [reading(receivedBytes=1 << 31)])  # or is set back
    assert history.points("bytes")[-5:] == [0.0] * 5


def test_theSlowestPathThatAnswers():
    history = History()
    history.add(0, [reading("probe", name, up=rtt > 0, rttMean=rtt) for name, rtt in ROUND_TRIPS])
    history.add(5, [reading("probe", "dead")])
    assert history.points("roundTrip")[-2:] == [0.2, None]


ROUND_TRIPS = (("a", 0.1), ("b", 0.2), ("dead", 0.0))


def test_aFixedAmountOfMemory():
    history = History()
    for turn in range(5 * SAMPLES):
        # names come and go, as those of an operator who reloads a list of targets
        history.add(5.0 * turn, [reading(name=f"n{turn}", waiting=turn)])
    for series in ("bytes", "files", "waiters", "roundTrip"):
        assert len(history.points(series)) == SAMPLES
    assert history.points("waiters") == list(range(4 * SAMPLES, 5 * SAMPLES))
    assert len(history.json()) < 10_000
    assert len(history._counters) == 2


def test_itIsKeptWhetherSomebodyWatchesOrNot():
    clock = Clock()
    root, sources = busy()
    keeper = HistoryService(clock, [root])
    keeper.startService()
    source = sources["transfer"]
    for _ in range(3):
        grown = source.snapshot.receivedBytes + 500
        source.snapshot = attrs.evolve(source.snapshot, receivedBytes=grown)
        clock.advance(SAMPLE_INTERVAL_SECONDS)
    keeper.stopService()
    assert clock.getDelayedCalls() == []
    told = json.loads(keeper.history.json())
    assert told["interval"] == SAMPLE_INTERVAL_SECONDS
    assert told["series"]["bytes"][-3:] == [100.0] * 3


def test_aBrokenSourceDoesNotEndIt(expectFailure):
    expectFailure(ZeroDivisionError)

    class Broken(Source):
        def stats(self):
            raise ZeroDivisionError

    clock, root = Clock(), MultiService()
    Broken("pool", "x", None).setServiceParent(root)
    keeper = HistoryService(clock, [root])
    keeper.startService()
    clock.advance(SAMPLE_INTERVAL_SECONDS)
    assert keeper._loop.running
    keeper.stopService()


@pytest.mark.parametrize("value", [None, "x", float("nan")])
def test_valuesThatAreNoNumbers(value):
    history = History()
    history.add(0, [Reading("probe", "a", attrs.make_class("S", ["rttMean"])(value))])
    assert history.points("roundTrip")[-1] is None
