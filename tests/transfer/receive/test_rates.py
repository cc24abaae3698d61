"""
Limits on the bytes per second that a reception takes.
"""

import pytest_twisted
from twisted.internet.task import Clock

from connpool.transfer.identities import Identity
from connpool.transfer.names import RelativeName
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.reception import Incoming, Reception
from connpool.transfer.receive.smallfiles import WholeFiles
from connpool.transfer.records import Offer, SmallFile
from connpool.transfer.stores import MemoryStore
from tests.helpers.waiting import assertNoResult, successResultOf


def begin(reception, **offer):
    name = RelativeName.parse(offer.pop("name", "f"))
    from twisted.internet.defer import Deferred

    return successResultOf(
        Deferred.fromCoroutine(
            reception.begin(Offer(name=name, transferId="0" * 32, **offer), "peer")
        )
    )


def build(**policy):
    clock = Clock()
    return clock, Reception(MemoryStore(), clock, Policy(**policy))


def test_transfersShareTheRate():
    clock, reception = build(maxRate=1000.0)
    one, two = begin(reception), begin(reception, name="g")
    first, second = one.write(0, bytes(1000)), two.write(0, bytes(1000))
    assert one.slowedBy == two.slowedBy == "rate"
    clock.advance(0.95)
    assert successResultOf(first) is None
    assertNoResult(second)
    clock.advance(1.0)
    assert successResultOf(second) is None
    assert one.slowedBy == "peer"
    assert clock.getDelayedCalls() == []


def test_anIdentityHasARateOfItsOwn():
    clock, reception = build()
    slow = Identity("slow", maxRate=1000)
    limited = begin(reception, principal="slow", identity=slow)
    free = begin(reception, name="g", principal="free", identity=Identity("free"))
    assert limited.write(0, bytes(2000)) is not None
    assert free.write(0, bytes(10**6)) is None
    clock.advance(2.0)
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_smallFilesCountToo():
    clock, reception = build(maxRate=1000.0)
    offer = Offer(name=RelativeName.parse("f"), transferId="0" * 32, size=1000)
    stored = WholeFiles(reception).put([SmallFile(offer, bytes(1000), None)], None, "peer")
    assertNoResult(stored)
    clock.advance(1.0)
    assert [receipt.status for receipt in successResultOf(stored)] == ["stored"]


def test_aStopDoesNotWaitForTheRate():
    clock, reception = build(maxRate=1.0)
    incoming = begin(reception)
    assert isinstance(incoming, Incoming)
    held = incoming.write(0, bytes(1000))
    reception.hurry()
    assert successResultOf(held) is None
    assert clock.getDelayedCalls() == []


def test_withoutARateNothingWaits():
    _, reception = build()
    assert begin(reception).write(0, bytes(10**7)) is None
