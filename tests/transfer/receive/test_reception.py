"""
What a reception says about files: counts, log lines, live transfers.
"""

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from zope.interface import implementer
from zope.interface.verify import verifyObject

from connpool.errors import NoSpace, QuotaExceeded, StoreError, TooLarge, TransferError
from connpool.interfaces import ILiveTransfers, IPartialHolder, IStatsSource, ITransferListener
from connpool.transfer.names import RelativeName
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.smallfiles import WholeFiles
from connpool.transfer.records import Offer, SmallFile
from connpool.transfer.stores import MemoryStore
from tests.helpers.waiting import bounded, failureResultOf, successResultOf

ID = "0123456789abcdef" * 2


class Partial:
    """
    Takes what it is given, and pauses when told to.
    """

    def __init__(self, held=()):
        self.held = held
        self.pause = None
        self.committed = Deferred()

    def write(self, offset, data):
        return self.pause

    def commit(self, root):
        return self.committed

    def abort(self):
        return succeed(None)

    suspend = abort


class Store:
    def __init__(self, partial=None, put=None):
        self.partial = partial
        self.put = put

    def open(self, offer, holder=None):
        self.holder = holder
        return succeed(self.partial)


def offer(**given):
    return Offer(name=RelativeName.parse("d/x"), transferId=ID, **given)


def lines(logs):
    return [formatEvent(each) for each in logs]


def test_provides():
    verifyObject(IStatsSource, Reception(Store(), Clock()))
    verifyObject(ILiveTransfers, Reception(Store(), Clock()))


def test_aTransferHoldsItsPartial():
    """
    It takes its place when the store says so, and ends when a newer one takes over.
    """
    store, ended = Store(Partial()), []
    reception = Reception(store, Clock(), Policy(maxTransfers=1))
    d = Deferred.fromCoroutine(reception.begin(offer(size=1), "192.0.2.7", ended.append))
    incoming = successResultOf(d)
    verifyObject(IPartialHolder, store.holder)
    (everybody,) = reception.quotas.accounts(None)
    assert everybody.transfers == 0
    successResultOf(store.holder.ready())
    assert everybody.transfers == 1
    store.holder.evicted()
    assert [why.code for why in ended] == ["conflict-takeover"]
    successResultOf(Deferred.fromCoroutine(incoming.suspend(ended[0])))
    assert everybody.transfers == 0


@pytest_twisted.ensureDeferred
async def test_aTransferIsLiveUntilItHasItsName():
    partial = Partial(held=[(0, 10)])
    reception = Reception(Store(partial), Clock())
    incoming = await reception.begin(offer(size=100, protocol="native"), "192.0.2.7")
    (live,) = reception.liveTransfers(5)
    assert (live.transferId, live.name, live.done, live.size) == (ID, "d/x", 10, 100)
    assert (live.phase, live.slowedBy) == ("moving", "peer")
    partial.pause = Deferred()
    incoming.write(10, b"y" * 40)
    (live,) = reception.liveTransfers(5)
    assert (live.done, live.slowedBy) == (50, "disk")
    partial.pause.callback(None)
    partial.pause = None
    # what was damaged comes twice
    incoming.write(0, b"z" * 90)
    (live,) = reception.liveTransfers(5)
    assert (live.done, live.slowedBy) == (100, "peer")
    committing = Deferred.fromCoroutine(incoming.commit(None))
    (live,) = reception.liveTransfers(5)
    assert (live.phase, live.slowedBy) == ("publishing", "disk")
    assert reception.stats().active == 1
    partial.committed.errback(NoSpace("full"))
    failureResultOf(committing, NoSpace)
    assert reception.liveTransfers(5) == ()
    assert (reception.stats().active, reception.stats().failed) == (0, 1)


@pytest_twisted.ensureDeferred
async def test_oldestFirstAndNotMoreThanAsked():
    reception = Reception(Store(Partial()), Clock())
    for name in "abcde":
        await reception.begin(Offer(name=RelativeName.parse(name), transferId=name), "peer")
    assert [live.name for live in reception.liveTransfers(3)] == ["a", "b", "c"]


@pytest_twisted.ensureDeferred
async def test_theIdIsInEveryLine():
    reception = Reception(Store(Partial()), Clock(), Policy(maxFileSize=10))
    with capturedLogs() as logs:
        with pytest.raises(TooLarge):
            await reception.begin(offer(size=11), "peer")
        incoming = await reception.begin(offer(size=1), "peer")
        await bounded(Deferred.fromCoroutine(incoming.suspend(NoSpace("full"))))
    assert [each["id"] for each in logs] == [ID, ID]
    assert lines(logs) == [
        f"refused d/x from peer: too-large: d/x has 11 bytes; at most 10 are taken, id {ID}",
        f"did not receive d/x from peer after 0 bytes: no-space: full, id {ID}",
    ]


def raising(error):
    raise error


@pytest.mark.parametrize("how", [raising, fail])
def test_aSmallFileThatCannotBeStoredIsCountedAndLogged(how):
    reception = Reception(Store(put=lambda *_: how(NoSpace("full"))), Clock())
    with capturedLogs() as logs:
        stored = WholeFiles(reception).put([SmallFile(offer(size=1), b"x", None)], None, "peer")
        [failure] = stored if how is raising else successResultOf(stored)
    assert isinstance(failure.value, NoSpace)
    assert lines(logs) == [f"did not receive d/x from peer after 1 bytes: no-space: full, id {ID}"]
    stats = reception.stats()
    assert (stats.started, stats.failed, stats.published) == (1, 1, 0)


@pytest_twisted.ensureDeferred
async def test_aStoreThatCannotTidyUpKeepsNoPlace():
    partial = Partial()
    reception = Reception(Store(partial), Clock())
    incoming = await reception.begin(offer(size=1), "peer")
    committing = Deferred.fromCoroutine(incoming.commit(None))
    partial.abort = lambda: fail(OSError("EIO"))
    partial.committed.errback(StoreError("full"))
    failureResultOf(committing, OSError)
    assert (reception.stats().active, reception.stats().failed) == (0, 1)
    # whichever comes second does nothing
    await incoming.abort(NoSpace("full"))
    with pytest.raises(TransferError, match="ended already"):
        await incoming.commit(None)
    assert reception.stats().failed == 1


@implementer(ITransferListener)
class Told:
    def __init__(self):
        self.events = []

    def offered(self, offer, peer):
        self.events.append("offered")

    def refused(self, name, peer, why):
        self.events.append(f"refused {why.code}")

    def started(self, offer, peer):
        self.events.append("started")

    def progressed(self, offer, peer, done):
        self.events.append(done)

    def published(self, receipt):
        self.events.append("published")

    def failed(self, offer, peer, why):
        self.events.append(f"failed {why.code}")


@pytest_twisted.ensureDeferred
async def test_aListenerHearsOfItOnceASecond():
    clock, told = Clock(), Told()
    verifyObject(ITransferListener, told)
    clock.advance(1000.0)
    reception = Reception(MemoryStore(), clock, Policy(maxFileSize=100), [told])
    incoming = await reception.begin(offer(size=100), "peer")
    for at in range(0, 100, 10):
        incoming.write(at, b"0123456789")
        clock.advance(0.25)
    await incoming.commit(None)
    with pytest.raises(TooLarge):
        await reception.begin(offer(size=101), "peer")
    incoming = await reception.begin(offer(size=100), "peer")
    await incoming.abort(NoSpace("full"))
    assert told.events == [
        *("offered", "started", 10, 50, 90, "published"),
        *("offered", "refused too-large"),
        *("offered", "started", "failed no-space"),
    ]


# -- uploads in several requests


UPLOAD = {"resumeKey": b"r" * 32, "key": b"k" * 32, "digest": "blake3"}


@pytest_twisted.ensureDeferred
async def test_aPausedUploadHasNotFailed():
    told, clock = Told(), Clock()
    reception = Reception(MemoryStore(), clock, Policy(maxTransfers=1), [told])
    asked = offer(size=4, **UPLOAD)
    incoming = await reception.begin(asked, "p")
    incoming.write(0, b"ab")
    incoming.partial.record(0, b"d" * 32, 2)
    for _ in range(2):
        await incoming.suspend(None)  # the second time changes nothing
    assert reception.liveTransfers(5) == ()
    clock.advance(5)
    incoming = await reception.begin(asked, "q", again=True)
    assert incoming.done == 2
    incoming.write(2, b"cd")
    receipt = await incoming.commit(None, b"\1" * 32)
    assert receipt.sha256 == "01" * 32
    assert told.events == ["offered", "started", 4, "published"]
    stats = reception.stats()
    assert (stats.started, stats.published, stats.failed, stats.active) == (1, 1, 0, 0)


@pytest_twisted.ensureDeferred
async def test_aSizeThatIsDeclaredLater():
    policy = Policy(maxFileSize=10, maxBytes=9)
    reception = Reception(MemoryStore(), Clock(), policy)
    incoming = await reception.begin(offer(**UPLOAD), "p")
    incoming.write(0, b"abc")
    for size, why in ((11, TooLarge), (10, QuotaExceeded), (2, TooLarge)):
        with pytest.raises(why):
            incoming.declare(size)
    incoming.declare(8)
    incoming.note("text")
    assert (incoming.offer.size, incoming.offer.metadata) == (8, "text")
    assert incoming.partial.offer == incoming.offer
    # what was declared is promised, and no more than that comes
    with pytest.raises(QuotaExceeded):
        await reception.begin(offer(size=3), "q")
    with pytest.raises(TooLarge):
        incoming.write(3, b"defghi")
    incoming.write(3, b"defgh")
    assert (await incoming.commit(None)).size == 8
    assert reception.store.files == {"d/x": b"abcdefgh"}


@pytest_twisted.ensureDeferred
async def test_aStoreThatTakesNoDigestOfAll():
    partial = Partial()
    reception = Reception(Store(partial), Clock())
    incoming = await reception.begin(offer(size=0), "p")
    partial.committed.callback(MemoryStore().put(offer(), b"", None))
    assert (await incoming.commit(None, b"\1" * 32)).sha256 is None
