"""
A program is told of every file, whichever receiver dies.
"""

import pytest
import pytest_twisted
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from connpool.interfaces import INotingStore
from connpool.transfer.records import StoreSettings
from connpool.transfer.stores.s3.calls import Put
from connpool.transfer.stores.s3.store import S3Store
from tests.helpers.waiting import bounded, successResultOf
from tests.transfer.stores.kit import offer
from tests.transfer.stores.s3.engine import MemoryEngine

ROOT = b"\7" * 32


class Receiver:
    """
    A store whose process may die.
    """

    def __init__(self, engine, spool):
        self.clock = Clock()
        self.store = S3Store(
            self.clock, engine, StoreSettings(), prefix="in/", spoolDirectory=str(spool)
        )
        self.calls = 0
        self.outbox = self.store.receivedOutbox(self.more)

    def more(self):
        self.calls += 1

    def put(self, name, content=b"abc"):
        return successResultOf(self.store.put(offer(name), content, ROOT))

    def takeOver(self):
        successResultOf(self.store.run(self.outbox.takeOver()))

    def taken(self):
        found = []
        while (taken := self.outbox.take()) is not None:
            found.append(taken)
        return found


@pytest.fixture
def engine():
    return MemoryEngine()


@pytest.fixture
def make(engine, tmp_path):
    return lambda: Receiver(engine, tmp_path)


def notes(engine):
    return [key for key in engine.objects if "/outbox/" in key]


def test_aFileIsTakenOnceAndForgottenWhenTold(make, engine):
    first = make()
    verifyObject(INotingStore, first.store)
    receipt = first.put("a")
    [(position, taken)] = first.taken()
    assert (taken, first.calls) == (receipt, 1)
    assert first.store.placeOf(taken) == {"key": "in/a"}
    # it is being told: nobody takes it over meanwhile, nor by itself later
    other = make()
    other.takeOver()
    engine.now += 121
    first.takeOver()
    assert (first.taken(), other.taken()) == ([], [])
    first.outbox.told(position)
    assert notes(engine) == []


def test_theNotesOfOneThatDied(make, engine):
    receipt = make().put("a")
    others = make(), make()
    for each in others:
        each.takeOver()
    assert [each.taken() for each in others] == [[], []]
    engine.now += 121
    for each in others:
        each.takeOver()
    # one of them has it
    (position, taken), *more = [*others[0].taken(), *others[1].taken()]
    assert (taken, more) == (receipt, [])
    assert others[0].calls == 1
    others[0].outbox.told(position)
    assert notes(engine) == []


def test_ofTwoThatTakeANoteOverOneSucceeds(make, engine):
    make().put("a")
    engine.now += 121
    first, second = make(), make()
    perform, seen = engine.perform, []

    def interleaved(call):
        # the second one comes between the look and the wish of the first
        if type(call).__name__ == "Put" and not seen:
            seen.append(call)
            second.takeOver()
        return perform(call)

    engine.perform = interleaved
    first.takeOver()
    assert len(first.taken()) + len(second.taken()) == 1


def test_aFileThatWasNotStored(make, engine):
    first = make()
    first.put("a")
    [(position, _)] = first.taken()
    first.outbox.told(position)
    del engine.objects["in/a"]
    # its receiver died between the note and the object
    claims = [there for key, there in engine.objects.items() if "/names/" in key]
    engine.objects[first.store.layout.private + "outbox/" + "0" * 32] = claims[0]
    engine.now += 121
    first.takeOver()
    assert first.taken() == []
    assert len(notes(engine)) == 1
    engine.now += 86_400
    first.takeOver()
    assert notes(engine) == []


@pytest_twisted.ensureDeferred
async def test_nothingIsNotedWhenNobodyAsks(engine, tmp_path):
    store = S3Store(Clock(), engine, spoolDirectory=str(tmp_path))
    await bounded(store.put(offer("a"), b"x", ROOT))
    assert notes(engine) == []
    assert engine.calls["Put"] == 2


def test_itLooksAgainAndAgain(make, engine):
    perform, looks = engine.perform, []

    def seeing(call):
        if "/outbox/" in getattr(call, "prefix", ""):
            looks.append(call)
        return perform(call)

    engine.perform = seeing
    receiver = make()
    receiver.clock.advance(120)
    assert len(looks) == 2
    receiver.outbox.close()
    receiver.clock.advance(500)
    assert len(looks) == 2


def test_aNoteThatSomebodyElseWrote(make, engine):
    """
    It keeps no other one from being taken over, and is told to the operator once.
    """
    make().put("a")
    engine.carryOut(Put(".connpool/in/outbox/000", b"\xff"))
    other = make()
    engine.now += 121
    with capturedLogs() as events:
        for _ in range(2):
            other.takeOver()
    [said] = [formatEvent(each) for each in events if "outbox" in formatEvent(each)]
    assert "remove the object" in said
    assert [receipt.name for _, receipt in other.taken()] == ["a"]
