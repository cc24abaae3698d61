"""
Several receivers on one engine.
"""

import hashlib

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface.verify import verifyObject

from connpool.errors import (
    Busy,
    ConflictTakeover,
    Exists,
    Expired,
    NameRefused,
    NoSpace,
    QuotaExceeded,
    StartFailed,
    StoreError,
    SyncFailed,
    Unavailable,
)
from connpool.interfaces import IFileStore, ISharedUploadStore, IUploadPartial
from connpool.transfer import Receipt
from connpool.transfer.records import StoreSettings
from connpool.transfer.stores.partialdir import MAX_PARTIALS
from connpool.transfer.stores.s3 import store as s3store
from connpool.transfer.stores.s3.calls import BadDigest, NoSuchUpload, Put, performed
from connpool.transfer.stores.s3.layout import agreement
from connpool.transfer.stores.s3.store import S3Store
from tests.helpers.waiting import (
    assertNoResult,
    bounded,
    failureResultOf,
    successResultOf,
)
from tests.transfer.stores.kit import BLOCK, fill, offer, settled
from tests.transfer.stores.s3.engine import MemoryEngine

KEY, SECRET = b"k" * 32, b"s" * 32
PART = 2 * BLOCK
CONTENT = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(7 * BLOCK // 32 + 3))
ROOT = b"\7" * 32


class Receiver:
    """
    A process with a store; it may die at once.
    """

    def __init__(self, engine):
        self.engine = engine
        self.dead = False
        self.held = None  # calls that wait, if they do
        self.holds = {"PutPart"}
        self.seen = []
        self.answers = {}

    def perform(self, call, patience=None):
        self.seen.append(call)
        if self.dead:
            return Deferred()
        kind = type(call).__name__
        if kind in self.answers:
            d = Deferred()
            d.callback(self.answers[kind].pop(0))
            if not self.answers[kind]:
                del self.answers[kind]
            return d
        if self.held is not None and kind in self.holds:
            d = Deferred()
            self.held.append((d, call))
            return d.addCallback(lambda _: self.engine.perform(call))
        return self.engine.perform(call)

    def go(self):
        held, self.held = self.held, None
        for d, _ in held:
            d.callback(None)

    def trouble(self):
        return None

    def count(self, kind):
        return sum(type(call).__name__ == kind for call in self.seen)


@pytest.fixture
def engine():
    return MemoryEngine()


@pytest.fixture
def make(engine, tmp_path):
    made = []

    def store(settings=None, **values):
        receiver = Receiver(engine)
        values = {"leastPart": PART, "prefix": "in/", "spoolDirectory": str(tmp_path)} | values
        made.append(S3Store(reactor, receiver, settings, **values))
        made[-1].receiver = receiver
        return made[-1]

    yield store
    for each in made:
        if each.receiver.dead:
            die(each)
        else:
            pytest_twisted.blockon(bounded(each.close()))


def die(store):
    """
    What the death of its process does to a store: nothing of it is carried out any more.
    """
    store.receiver.dead = True
    if store._nextReap is not None:
        store._nextReap.cancel()
        store._nextReap = None
    store._threads.stop()


def asked(**values):
    usual = {"size": len(CONTENT), "key": KEY, "resumeKey": SECRET}
    return offer("d/big.bin", **usual | values)


def published(engine):
    files = {key: there.body for key, there in engine.objects.items() if key.startswith("in/")}
    return {key.removeprefix("in/"): body for key, body in files.items()}


async def until(holds):
    for _ in range(2000):
        if holds():
            return
        d = Deferred()
        reactor.callLater(0.005, d.callback, None)
        await d
    raise AssertionError("it never came to that")


async def filled(partial, content=CONTENT):
    await bounded(Deferred.fromCoroutine(fill(partial, content)))


def quiet(store):
    return until(lambda: not any(partial._tasks for partial in store._partials))


@pytest_twisted.ensureDeferred
async def test_interfaces(make):
    store = make()
    verifyObject(IFileStore, store)
    verifyObject(ISharedUploadStore, store)
    partial = await bounded(store.open(asked()))
    verifyObject(IUploadPartial, partial)
    await bounded(partial.abort())


@pytest_twisted.ensureDeferred
async def test_twoRequestsForASmallFile(make, engine):
    store = make()
    receipt = await bounded(store.put(offer("a", key=KEY), b"abc", ROOT))
    assert (receipt.filesystem, receipt.durability) == ("s3", "full")
    assert engine.calls == {"Put": 2}
    # the ancestors of a name are claimed once
    for name in ("d/e/1", "d/e/2"):
        await bounded(store.put(offer(name), b"abc", ROOT))
    assert engine.calls["Put"] == 2 + 2 + 2 + 2


@pytest_twisted.ensureDeferred
async def test_aNewDirectoryIsClaimedOnce(make, engine):
    """
    However many files come for it at once; if the claim fails each tries it, all at once.
    """
    store = make()
    store.receiver.held, store.receiver.holds = [], {"Put"}
    waiting = [store.put(offer(f"new/{n}", size=1), b"x", None) for n in range(20)]
    ((_, call),) = store.receiver.held
    assert call.key == store.layout.claim("new")
    store.receiver.go()
    for each in waiting:
        assert (await bounded(each)).status == "stored"
    assert store.receiver.count("Put") == 1 + 2 * 20
    engine.down = Unavailable("away")
    store.receiver.held, store.receiver.holds = [], {"Put"}
    waiting = [store.put(offer(f"newer/{n}", size=1), b"x", None) for n in range(20)]
    store.receiver.go()
    for each in waiting:
        with pytest.raises(Unavailable):
            await bounded(each)
    assert store.receiver.count("Put") == 1 + 2 * 20 + 20


@pytest_twisted.ensureDeferred
async def test_anotherReceiverGoesOn(make, engine):
    first, second = make(), make()
    partial = await bounded(first.open(asked()))
    await filled(partial, CONTENT[: 5 * BLOCK])
    await quiet(first)
    die(first)
    partial = await bounded(second.open(asked()))
    # all whole parts; the one that was being filled comes again
    assert list(partial.held) == [(0, 4 * BLOCK)]
    assert sorted(partial.digests) == [0, 1, 2, 3]
    await filled(partial)
    receipt = await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": CONTENT}
    assert await bounded(second.open(asked())) == receipt
    await bounded(second.close())
    # nothing but its end stays
    assert [key for key in engine.objects if "/log/" in key and not key.endswith("/log/")][1:] == []
    assert engine.uploads == {}
    assert await bounded(make().find("anonymous", SECRET, KEY)) == receipt


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("size", [5, len(CONTENT), None])
async def test_anUploadWithoutAByteIsEverybodys(make, engine, size):
    one, two = make(), make()
    content = CONTENT[:size]
    of = asked(size=size, protocol="web")
    await bounded(one.begin(of))
    found = await bounded(two.find(of.principal, SECRET, KEY))
    assert (found.name, found.size) == (of.name, size)
    await bounded((await bounded(one.open(of))).suspend())
    partial = await bounded(two.open(found))
    assert partial.held.total == 0
    await filled(partial, content)
    await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": content}
    for number in range(100):
        await bounded(one.begin(asked(resumeKey=b"%d" % number)))
    with pytest.raises(QuotaExceeded):
        await bounded(two.begin(asked(resumeKey=b"one more")))


@pytest_twisted.ensureDeferred
async def test_aLookThatEndsAfterTheFileWasStored(make, engine):
    """
    It saw none, which is no sign that a consumer took it away.
    """
    store = make()
    perform, looked, written = store.receiver.perform, [], []

    def late(call):
        kind, waiting = type(call).__name__, Deferred()
        if kind == "Head":
            looked.append(waiting)
            return perform(call).addCallback(lambda there: waiting.addCallback(lambda _: there))
        if kind == "Put" and call.key == "in/x":
            written.append(waiting)
            return waiting.addCallback(lambda _: perform(call))
        return perform(call)

    store.receiver.perform = late
    one = store.put(offer("x", ifExists="refuse"), b"one", ROOT)
    other = store.put(offer("X", ifExists="refuse"), b"other", ROOT)
    (write,), (look,) = written, looked
    write.callback(None)
    assert (await bounded(one)).name == "x"
    look.callback(None)
    with pytest.raises(Busy):
        await bounded(other)
    assert published(engine) == {"x": b"one"}


@pytest_twisted.ensureDeferred
async def test_aZombieIsStopped(make, engine):
    first, second = make(), make()
    older = await bounded(first.open(asked()))
    await filled(older, CONTENT[: 3 * BLOCK])
    await quiet(first)
    newer = await bounded(second.open(asked()))
    await filled(older)
    await quiet(first)
    with pytest.raises(ConflictTakeover):
        await bounded(older.commit(ROOT))
    await bounded(older.abort())
    await filled(newer)
    await bounded(newer.commit(ROOT))
    assert published(engine) == {"d/big.bin": CONTENT}


@pytest_twisted.ensureDeferred
async def test_aSuspendedPartialKeepsEverything(make, engine):
    first, second = make(), make()
    partial = await bounded(first.open(asked()))
    await filled(partial, CONTENT[: 3 * BLOCK])
    partial.write(3 * BLOCK, CONTENT[3 * BLOCK : 3 * BLOCK + 100])
    stump = hashlib.sha256(CONTENT[3 * BLOCK : 3 * BLOCK + 100]).digest()
    partial.record(3, stump, 3 * BLOCK + 100)
    await bounded(partial.suspend())
    [info] = await bounded(second.partials())
    assert (info.received, info.active, info.name) == (3 * BLOCK + 100, False, "d/big.bin")
    found = await bounded(second.find("anonymous", SECRET, KEY))
    assert found == asked(transferId=found.transferId)
    partial = await bounded(second.open(asked()))
    assert list(partial.held) == [(0, 3 * BLOCK + 100)]
    assert (partial.stump.end, partial.stump.digest) == (3 * BLOCK + 100, stump)
    at = 3 * BLOCK + 50
    assert await bounded(partial.read(at, at + 50)) == CONTENT[at : at + 50]
    await bounded(partial.abort())
    assert await bounded(second.partials()) == []


@pytest_twisted.ensureDeferred
async def test_settledBeforeItsConnectionIsCut(make, engine):
    """
    Another receiver has all that came before the older one suspends; what comes meanwhile
    waits, and is not taken.
    """
    first, second = make(), make()
    partial = await bounded(first.open(asked()))
    empty = await bounded(first.open(asked(resumeKey=b"another")))
    await filled(partial, CONTENT[: 3 * BLOCK])
    await bounded(first.settle())
    held = [partial.write(3 * BLOCK, b"late"), empty.write(0, b"late")]
    assert all(isinstance(each, Deferred) and not each.called for each in held)
    again = await bounded(second.open(asked()))
    assert list(again.held) == [(0, 3 * BLOCK)]
    writes = engine.calls["Put"]
    await bounded(first.close())
    assert engine.calls["Put"] == writes
    for each in held:
        with pytest.raises(StoreError):
            await bounded(each)
    await filled(again)
    await bounded(again.commit(ROOT))
    assert published(engine) == {"d/big.bin": CONTENT}


@pytest_twisted.ensureDeferred
async def test_nothingIsSettledAtADeadEngine(make, engine):
    store = make()
    partial = await bounded(store.open(asked()))
    await filled(partial, CONTENT[:BLOCK])
    engine.down = Unavailable("away")
    await bounded(store.settle())


@pytest_twisted.ensureDeferred
async def test_aFileOfOnePartIsSuspendedToo(make, engine):
    first, second = make(), make()
    small = asked(size=2 * BLOCK)
    partial = await bounded(first.open(small))
    await filled(partial, CONTENT[:BLOCK])
    await bounded(partial.suspend())
    partial = await bounded(second.open(small))
    assert list(partial.held) == [(0, BLOCK)]
    await filled(partial, CONTENT[: 2 * BLOCK])
    await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": CONTENT[: 2 * BLOCK]}
    assert engine.calls.get("CreateUpload") is None
    await bounded(second.close())
    assert await bounded(make().partials()) == []


@pytest.mark.parametrize("dies", ["Complete", "before"])
@pytest_twisted.ensureDeferred
async def test_whoeverMeetsACommitFinishesIt(make, engine, dies):
    first, second = make(), make()
    partial = await bounded(first.open(asked()))
    await filled(partial)
    await quiet(first)
    perform = first.receiver.perform

    def dying(call):
        kind = type(call).__name__
        claims = kind == "Put" and b"big.bin" in call.body and "/names/" in call.key
        if kind == dies or (dies == "before" and claims):
            first.receiver.dead = True
        return perform(call)

    first.receiver.perform = dying
    committing = partial.commit(ROOT)
    await until(lambda: first.receiver.dead)
    assertNoResult(committing)
    assert published(engine) == {}
    receipt = await bounded(second.open(asked()))
    assert isinstance(receipt, Receipt)
    assert receipt.transferId == partial.offer.transferId
    assert published(engine) == {"d/big.bin": CONTENT}
    die(first)


@pytest_twisted.ensureDeferred
async def test_theReaper(make, engine):
    settings = StoreSettings(keepPartials=10_000.0)
    first, second = make(settings), make(settings)
    partial = await bounded(first.open(asked()))
    await filled(partial, CONTENT[: 5 * BLOCK])
    await bounded(partial.suspend())
    engine.now += 9_900
    await bounded(second.run(second.reap()))
    assert len(await bounded(second.partials())) == 1
    engine.now += 101
    # one pass in a while is enough for all receivers
    for each in (first, second):
        await bounded(each.run(each.reap()))
    assert len(await bounded(second.partials())) == 1
    engine.now += 400
    await bounded(first.run(first.reap()))
    assert await bounded(second.partials()) == []
    assert engine.uploads == {}
    assert [key for key in engine.objects if "/tail/" in key] == []
    engine.now += 10_001
    await bounded(second.run(second.reap()))
    assert list(engine.objects) == [".connpool/in/reaper"]


@pytest.mark.parametrize("size", [2 * BLOCK, len(CONTENT)])
@pytest_twisted.ensureDeferred
async def test_aFileThatIsBeingPublishedIsNotTakenOver(make, engine, size):
    store = make()
    given = asked(size=size)
    partial = await bounded(store.open(given))
    await filled(partial, CONTENT[:size])
    await quiet(store)
    store.receiver.held, store.receiver.holds = [], {"Complete", "Put"}
    committing = partial.commit(ROOT)
    await until(lambda: store.receiver.held)
    again = store.open(given)
    assertNoResult(again)
    store.receiver.go()
    receipt = await bounded(committing)
    assert await bounded(again) == receipt
    assert published(engine) == {"d/big.bin": CONTENT[:size]}
    await bounded(store.close())
    assert store.spool.usedBytes == 0
    last = [key for key in engine.objects if "/log/" in key]
    assert len(last) <= 1


@pytest_twisted.ensureDeferred
async def test_aRevokedBlockTakesItsPartAlong(make, engine):
    store = make()
    partial = await bounded(store.open(asked()))
    await filled(partial, CONTENT[: 3 * BLOCK])
    await quiet(store)
    # the third block's part is still here, the first two blocks' is not
    assert list(partial.discard(2 * BLOCK, 3 * BLOCK)) == []
    assert list(partial.discard(0, BLOCK)) == [(BLOCK, 2 * BLOCK)]
    assert list(partial.held) == []
    assert dict(partial.digests) == {}
    changed = b"!" + CONTENT[1:]
    await filled(partial, changed)
    await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": changed}


@pytest_twisted.ensureDeferred
async def test_bytesThatAreDiscardedWhileTheirPartLeaves(make, engine):
    store = make()
    store.receiver.held = []
    partial = await bounded(store.open(asked()))
    await filled(partial, CONTENT[: 2 * BLOCK])
    await until(lambda: store.receiver.held)
    partial.discard(0, BLOCK)
    changed = b"!" + CONTENT[1:]
    partial.write(0, changed[:BLOCK])
    partial.record(0, hashlib.sha256(changed[:BLOCK]).digest())
    store.receiver.go()
    await filled(partial, changed)
    await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": changed}


@pytest_twisted.ensureDeferred
async def test_aWriteWaitsForPartsThatLeave(make, engine):
    store = make(spoolSize=2 * PART)
    store.receiver.held = []
    partial = await bounded(store.open(asked()))
    await filled(partial, CONTENT[: 4 * BLOCK])
    waiting = partial.write(4 * BLOCK, CONTENT[4 * BLOCK : 5 * BLOCK])
    assertNoResult(waiting)
    # another upload waits for room, and takes its turn
    other = store.open(asked(resumeKey=b"o" * 32, key=b"o" * 32))
    assertNoResult(other)
    store.receiver.go()
    await bounded(waiting)
    partial.record(4, hashlib.sha256(CONTENT[4 * BLOCK : 5 * BLOCK]).digest())
    assertNoResult(other)
    assert store.spool.usedBytes == 2 * PART
    await filled(partial)
    await bounded(partial.commit(ROOT))
    await bounded((await bounded(other)).abort())
    assert store.spool.usedBytes == 0
    with pytest.raises(NoSpace, match="spool-size"):
        await store.spool.take(2 * PART + 1)


@pytest_twisted.ensureDeferred
async def test_atMostFourPartsWaitForTheEngine(make, engine):
    content = CONTENT * 4
    store = make()
    store.receiver.held = []
    partial = await bounded(store.open(asked(size=len(content))))
    await filled(partial, content[: 8 * BLOCK])
    waiting = partial.write(8 * BLOCK, content[8 * BLOCK : 9 * BLOCK])
    await until(lambda: len(store.receiver.held) == 4)
    assertNoResult(waiting)
    store.receiver.go()
    await bounded(waiting)
    partial.record(8, hashlib.sha256(content[8 * BLOCK : 9 * BLOCK]).digest())
    await filled(partial, content)
    await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": content}


@pytest_twisted.ensureDeferred
async def test_partsWhoseDigestsComeLate(make, engine):
    # the engine has them, and the sender is not kept from telling the digests
    store = make(spoolSize=16 * PART)
    partial = await bounded(store.open(asked(size=len(CONTENT * 2))))
    content = CONTENT * 2
    for number in range(13):
        waiting = partial.write(number * BLOCK, content[number * BLOCK : (number + 1) * BLOCK])
        if waiting is not None:
            await bounded(waiting)
    for number in range(13):
        partial.record(
            number, hashlib.sha256(content[number * BLOCK : (number + 1) * BLOCK]).digest()
        )
    await filled(partial, content)
    await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": content}


@pytest_twisted.ensureDeferred
async def test_lanesDoNotWaitForOneAnother(make, engine):
    # each fills a part of its own, and there is room for two
    store = make(spoolSize=2 * PART)
    partial = await bounded(store.open(asked()))
    for number in (0, 2, 4, 6):
        assert partial.write(number * BLOCK, CONTENT[number * BLOCK : number * BLOCK + 10]) is None
    await bounded(partial.abort())
    assert store.spool.usedBytes == 0


@pytest_twisted.ensureDeferred
async def test_anEngineThatIsAway(make, engine):
    store = make()
    partial = await bounded(store.open(asked()))
    await filled(partial, CONTENT[: 2 * BLOCK])
    await quiet(store)
    engine.down = Unavailable("no answer from the engine")
    partial.write(2 * BLOCK, CONTENT[2 * BLOCK : 4 * BLOCK])
    await quiet(store)
    with pytest.raises(Unavailable):
        partial.write(4 * BLOCK, b"x")
    await bounded(partial.suspend())
    with pytest.raises(Unavailable):
        await bounded(settled(store.put(offer("a"), b"x", ROOT)))
    engine.down = None
    partial = await bounded(store.open(asked()))
    assert list(partial.held) == [(0, 2 * BLOCK)]
    await filled(partial)
    await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": CONTENT}


@pytest_twisted.ensureDeferred
async def test_damagedOnTheWay(make, engine):
    store = make()
    store.receiver.answers = {"PutPart": [BadDigest()] * 2}
    partial = await bounded(store.open(asked()))
    await filled(partial)
    await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": CONTENT}
    perform = store.receiver.perform

    def damaging(call):
        return succeed(BadDigest()) if call.key == "in/a" else perform(call)

    store.receiver.perform = damaging
    with pytest.raises(SyncFailed):
        await bounded(store.put(offer("a"), b"x", ROOT))


@pytest_twisted.ensureDeferred
async def test_anUploadThatTheEngineForgot(make, engine):
    store = make()
    store.receiver.answers = {"PutPart": [NoSuchUpload()]}
    partial = await bounded(store.open(asked()))
    await filled(partial, CONTENT[: 2 * BLOCK])
    await quiet(store)
    with pytest.raises(Expired):
        partial.write(3 * BLOCK, b"x")
    await bounded(partial.suspend())
    partial = await bounded(store.open(asked()))
    assert list(partial.held) == []
    await filled(partial)
    await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": CONTENT}


@pytest_twisted.ensureDeferred
async def test_aPartThatIsNotWhatItWas(make, engine):
    store = make()
    partial = await bounded(store.open(asked()))
    await filled(partial)
    await quiet(store)
    [upload] = engine.uploads.values()
    upload.parts[2] = ('"other"', b"z" * PART)
    with pytest.raises(Unavailable, match="come again"):
        await bounded(partial.commit(ROOT))
    await bounded(partial.suspend())
    partial = await bounded(store.open(asked()))
    # that part only
    assert list(partial.held) == [(0, PART), (2 * PART, len(CONTENT))]
    await filled(partial)
    await bounded(partial.commit(ROOT))
    assert published(engine) == {"d/big.bin": CONTENT}


@pytest_twisted.ensureDeferred
async def test_twoLargeFilesOfOneName(make, engine):
    stores = make(), make()
    other = bytes(len(CONTENT))
    partials = [
        await bounded(store.open(asked(key=key, resumeKey=key)))
        for store, key in zip(stores, (b"1" * 32, b"2" * 32), strict=True)
    ]
    for partial, content in zip(partials, (CONTENT, other), strict=True):
        await filled(partial, content)
    receipts = [await bounded(partial.commit(ROOT)) for partial in partials[:1]]
    receipts.append(await bounded(partials[1].commit(b"\6" * 32)))
    assert [each.name for each in receipts] == ["d/big.bin", "d/big (1).bin"]
    assert published(engine) == {"d/big.bin": CONTENT, "d/big (1).bin": other}
    # and where the hint of the listing failed
    given = asked(key=b"3" * 32, resumeKey=b"3" * 32, ifExists="refuse")
    third = await bounded(stores[0].open(given))
    await filled(third, bytes(len(CONTENT)))
    with pytest.raises(Exists):
        await bounded(third.commit(b"\5" * 32))
    await bounded(third.abort())
    assert engine.uploads == {}


@pytest_twisted.ensureDeferred
async def test_unknownSize(make, engine):
    store = make(leastPart=BLOCK // 8)
    for size in (0, BLOCK - 1, 3 * BLOCK + 5):
        given = offer(f"{size}", size=None, digest=None, protocol="classic")
        partial = await bounded(store.open(given))
        for at in range(0, size, 1 << 15):
            waiting = partial.write(at, CONTENT[at : min(size, at + (1 << 15))])
            if waiting is not None:
                await bounded(waiting)
        receipt = await bounded(partial.commit(None))
        assert receipt.size == size
    assert published(engine) == {
        str(size): CONTENT[:size] for size in (0, BLOCK - 1, 3 * BLOCK + 5)
    }
    assert engine.calls["CreateUpload"] == 1


@pytest_twisted.ensureDeferred
async def test_uploadsAreCountedForEachNetwork(make, engine):
    store = make()

    def of(network, number):
        return asked(network=network, resumeKey=b"%032d" % number)

    for network in ("192.0.2.1", "192.0.2.2", ""):
        for number in range(MAX_PARTIALS):
            await bounded(store.begin(of(network, number)))
        with pytest.raises(QuotaExceeded):
            await bounded(store.begin(of(network, MAX_PARTIALS)))
        with pytest.raises(QuotaExceeded):
            await bounded(store.open(of(network, MAX_PARTIALS)))
    found = await bounded(make().find("anonymous", b"%032d" % 0, KEY, "192.0.2.2"))
    assert found.network == "192.0.2.2"
    assert await bounded(make().find("anonymous", b"%032d" % 0, KEY, "192.0.2.3")) is None
    # the operator sees all of them, and the bytes of all are one sum
    assert len(await bounded(store.partials("anonymous"))) == 3 * MAX_PARTIALS
    full = make(StoreSettings(quota=3 * MAX_PARTIALS * len(CONTENT)))
    with pytest.raises(QuotaExceeded, match="bytes"):
        await bounded(full.begin(of("192.0.2.3", 0)))
    await bounded(store.begin(of("192.0.2.3", 0)))


@pytest_twisted.ensureDeferred
async def test_quota(make, engine):
    store = make(StoreSettings(quota=len(CONTENT) + 10))
    partial = await bounded(store.open(asked()))
    await filled(partial, CONTENT[: 2 * BLOCK])
    await bounded(partial.suspend())
    with pytest.raises(QuotaExceeded):
        await bounded(make(StoreSettings(quota=len(CONTENT) + 10)).open(asked(resumeKey=KEY)))
    # of two that begin at once at two receivers, neither or one stays
    stores = [make(StoreSettings(quota=3 * len(CONTENT))) for _ in range(4)]
    made = []
    for number, each in enumerate(stores):
        made.append(await bounded(each.open(asked(resumeKey=bytes([number]) * 32))))
    refused = 0
    for each in made:
        try:
            await filled(each, CONTENT[: 5 * BLOCK])
            await quiet(stores[made.index(each)])
            each.discard(0, 0)  # it says what went wrong
        except QuotaExceeded:
            refused += 1
    for each in stores:
        await quiet(each)
    for each in made:
        await bounded(each.suspend())
    assert sum(info.size for info in await bounded(store.partials())) <= 3 * len(CONTENT)
    assert refused
    other = await bounded(store.open(asked(resumeKey=KEY, principal="bob")))
    await bounded(other.abort())


def test_receiversMustAgree(engine):
    for names in ("portable", "portable"):
        successResultOf(performed(agreement("in/", names), engine))
    error = failureResultOf(performed(agreement("in/", "posix"), engine), StartFailed)
    assert "--names" in str(error)
    successResultOf(performed(agreement("out/", "posix"), engine))


@pytest.mark.parametrize("body", [b"\xff", b"", b"null", b"[1]", b'{"a": "b\\nc"}'])
def test_settingsThatSomebodyElseWrote(engine, body):
    engine.carryOut(Put(".connpool/in/store", body))
    error = failureResultOf(performed(agreement("in/", "posix"), engine), StartFailed)
    assert "\n" not in str(error)
    assert "remove the object .connpool/in/store" in str(error) or '{"a"' in str(error)


@pytest.mark.parametrize("body", [b"\xff", b"", b"{}", b"[]", b"null"])
@pytest_twisted.ensureDeferred
async def test_aClaimThatSomebodyElseWrote(make, engine, body):
    store = make()
    await bounded(store.put(offer("a", key=KEY), b"abc", ROOT))
    engine.carryOut(Put(store.layout.claim("a"), body))
    with pytest.raises(StoreError, match="remove the object") as caught:
        await bounded(store.put(offer("a", key=b"2" * 32), b"def", ROOT))
    assert store.layout.claim("a") in str(caught.value)
    assert published(engine) == {"a": b"abc"}


@pytest_twisted.ensureDeferred
async def test_aLogThatSomebodyElseWrote(make, engine):
    first, second = make(), make()
    for key in (b"one", b"two"):
        partial = await bounded(
            first.open(offer("d/" + key.decode(), size=len(CONTENT), key=key, resumeKey=key))
        )
        await filled(partial, CONTENT[: 5 * BLOCK])
        await bounded(partial.suspend())
    infos = await bounded(second.partials())
    assert sorted(info.name for info in infos) == ["d/one", "d/two"]
    [pointer] = [info.partialId for info in infos if info.name == "d/one"]
    token = engine.objects[pointer].body.split()[0].decode()
    for key in [key for key in engine.objects if f"/log/{token}" in key]:
        engine.carryOut(Put(key, b"{}"))
    assert [info.name for info in await bounded(second.partials())] == ["d/two"]
    with pytest.raises(StoreError, match="remove the object"):
        await bounded(second.open(offer("d/one", size=len(CONTENT), key=b"one", resumeKey=b"one")))


@pytest_twisted.ensureDeferred
async def test_itClosesThoughItsEngineDoesNotAnswer(make, monkeypatch):
    monkeypatch.setattr(s3store, "WATCH_SECONDS", 0.01)
    waiting, ended = [], []

    def closed():
        ended.append(True)
        for each in waiting:
            if not each.called:
                each.errback(Unavailable("the store is closed"))
        return succeed(None)

    store = make(closed=closed)
    partial = await bounded(store.open(asked()))
    await filled(partial, CONTENT[: 5 * BLOCK])
    await quiet(store)
    perform = store.receiver.perform

    def silent(call):
        if ended:
            return fail(Unavailable("the store is closed"))
        waiting.append(Deferred())
        return waiting[-1]

    store.receiver.perform = silent
    await filled(partial, CONTENT[: 7 * BLOCK])
    closing = store.close()
    await until(lambda: waiting)
    assert not closing.called
    store.receiver.trouble = lambda: "the engine fails"
    await bounded(closing)
    assert ended == [True]
    store.receiver.perform = perform


def test_theSpoolMustBeUsable(engine, tmp_path):
    with pytest.raises(StartFailed, match="spool="):
        S3Store(reactor, Receiver(engine), spoolDirectory=str(tmp_path / "none"))
    with pytest.raises(StartFailed, match="larger spool-size="):
        S3Store(reactor, Receiver(engine), spoolDirectory=str(tmp_path), spoolSize=1 << 20)


@pytest_twisted.ensureDeferred
async def test_namesThatS3CannotHave(make):
    store = make()
    long = "/".join(["x" * 200] * 6)
    for name in ("a\\b", long):
        given = attrs.evolve(offer(), name=type(offer().name).parse(name, profile="posix"))
        with pytest.raises(NameRefused):
            store.put(given, b"x", ROOT)
        with pytest.raises(NameRefused):
            await bounded(store.open(given))


@pytest_twisted.ensureDeferred
async def test_twoReceiversBeginOneUpload(make, engine):
    first, second = make(), make()
    one, two = [await bounded(store.open(asked())) for store in (first, second)]
    await filled(one, CONTENT[: 2 * BLOCK])
    await quiet(first)
    two.write(0, CONTENT[: 2 * BLOCK])
    await quiet(second)
    with pytest.raises(Busy):
        two.write(2 * BLOCK, b"x")
    await bounded(two.suspend())
    two = await bounded(second.open(asked()))
    assert list(two.held) == [(0, 2 * BLOCK)]
    await bounded(one.abort())
    await filled(two)
    await bounded(two.commit(ROOT))
    assert published(engine) == {"d/big.bin": CONTENT}
