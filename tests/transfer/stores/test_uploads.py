"""
The contract of L{connpool.interfaces.IUploadStore}, on every store that ships; and what an
upload leaves on the disk.
"""

from __future__ import annotations

import hashlib

import attrs
import pytest
import pytest_twisted
from zope.interface.verify import verifyObject

from connpool.errors import (
    Busy,
    ConflictTakeover,
    NoSpace,
    QuotaExceeded,
    StoreError,
    TooLarge,
)
from connpool.interfaces import IFileStore, IUploadPartial, IUploadStore
from connpool.transfer import Receipt
from connpool.transfer.records import Stump
from connpool.transfer.stores.journal import Journal, header
from connpool.transfer.stores.partialdir import MAX_PARTIALS
from tests.helpers.waiting import bounded
from tests.transfer.stores.kit import BLOCK, offer, settled
from tests.transfer.stores.onpartials import (
    KEY,
    SECRET,
    failing,
    filled,
    inline,
    journals,
    killed,
    parts,
)
from tests.transfer.stores.test_contract import onEveryStore, tested  # noqa: F401 - fixtures

CONTENT = bytes(range(251)) * (3 * BLOCK // 251)
AT = BLOCK + 1000


def upload(**values):
    return offer(**{"size": None, "resumeKey": SECRET, "key": KEY, **values})


def append(partial, at, end, content=CONTENT):
    """
    Write what comes next, and record it.
    """
    partial.write(at, content[at:end])
    for block in range(at // BLOCK, -(-end // BLOCK)):
        start, last = block * BLOCK, min(end, (block + 1) * BLOCK)
        digest = hashlib.sha256(content[start:last]).digest()
        partial.record(block, digest, last)


def find(store, principal="anonymous", secret=SECRET, key=KEY, network=""):
    return bounded(store.find(principal, secret, key, network))


@pytest_twisted.ensureDeferred
async def test_interfaces(tested):  # noqa: F811 - a fixture of another module
    verifyObject(IUploadStore, tested.store)
    partial = await bounded(tested.store.open(upload()))
    verifyObject(IUploadPartial, partial)
    await bounded(partial.abort())


@pytest_twisted.ensureDeferred
async def test_anUnfinishedBlockIsKept(tested):  # noqa: F811 - a fixture of another module
    asked = upload(metadata="filename eA==,odd")
    partial = await bounded(tested.store.open(asked))
    append(partial, 0, 700)
    append(partial, 700, AT)
    assert partial.stump == Stump(1, AT, hashlib.sha256(CONTENT[BLOCK:AT]).digest())
    await bounded(partial.checkpoint())
    assert list(partial.durable) == [(0, AT)]
    await bounded(partial.suspend())
    [info] = await bounded(tested.store.partials())
    assert info.received == AT
    found = await find(tested.store)
    assert found == asked
    again = await bounded(tested.store.open(found))
    assert list(again.held) == [(0, AT)]
    assert again.stump == partial.stump
    assert await bounded(again.settled()) == []
    assert await bounded(again.read(700, AT)) == CONTENT[700:AT]
    append(again, AT, 2 * BLOCK)
    assert again.stump is None
    assert sorted(again.digests) == [0, 1]
    receipt = await bounded(again.commit(None))
    assert (receipt.size, receipt.sha256) == (2 * BLOCK, None)
    assert tested.files() == {"report.txt": CONTENT[: 2 * BLOCK]}
    assert await find(tested.store) == receipt


@pytest_twisted.ensureDeferred
async def test_findTellsNothingToOthers(tested):  # noqa: F811 - a fixture of another module
    asked = upload(principal="alice", network="192.0.2.1")
    assert await find(tested.store, "alice", network="192.0.2.1") is None
    partial = await bounded(tested.store.open(asked))
    append(partial, 0, 700)
    for _ in range(2):
        assert await find(tested.store, "alice", network="192.0.2.1") == asked
        for others in (
            ("bob", SECRET, KEY, "192.0.2.1"),
            ("alice", b"w" * 32, KEY, "192.0.2.1"),
            ("alice", SECRET, b"w" * 32, "192.0.2.1"),
            ("alice", SECRET, KEY, "192.0.2.2"),
            ("alice", SECRET, KEY, ""),
        ):
            assert await find(tested.store, *others) is None
        await bounded(partial.suspend())
    partial = await bounded(tested.store.open(asked))
    await bounded(partial.abort())
    assert await find(tested.store, "alice", network="192.0.2.1") is None


@pytest_twisted.ensureDeferred
async def test_findTakesNobodyOver(tested):  # noqa: F811 - a fixture of another module
    partial = await bounded(tested.store.open(upload()))
    append(partial, 0, 10)
    await find(tested.store)
    append(partial, 10, 20)
    await bounded(partial.commit(None))
    assert tested.files() == {"report.txt": CONTENT[:20]}


@pytest_twisted.ensureDeferred
async def test_theReceiptOfASmallFileIsFoundToo(tested):  # noqa: F811 - a fixture of another module
    receipt = await bounded(settled(tested.store.put(upload(size=3, sha256="ab"), b"abc", None)))
    assert receipt.sha256 == "ab"
    assert await find(tested.store) == receipt
    assert await find(tested.store, "bob") is None


@pytest_twisted.ensureDeferred
async def test_theSizeIsDeclaredLater(tested):  # noqa: F811 - a fixture of another module
    asked = upload()
    partial = await bounded(tested.store.open(asked))
    append(partial, 0, AT)
    with pytest.raises(TooLarge):
        partial.declare(attrs.evolve(asked, size=AT - 1))
    sized = attrs.evolve(asked, size=2 * BLOCK - 1, metadata="m", sha256="00")
    partial.declare(sized)
    for wrong in (3 * BLOCK, None):
        with pytest.raises(StoreError):
            partial.declare(attrs.evolve(asked, size=wrong))
    await bounded(partial.suspend())
    with pytest.raises(StoreError):
        partial.declare(sized)
    assert await find(tested.store) == sized
    partial = await bounded(tested.store.open(sized))
    assert list(partial.held) == [(0, AT)]
    with pytest.raises(TooLarge):
        partial.write(AT, CONTENT[AT : 2 * BLOCK])
    append(partial, AT, 2 * BLOCK - 1)
    # the last block is whole, though it is short
    assert sorted(partial.digests) == [0, 1]
    receipt = await bounded(partial.commit(b"\1" * 32))
    assert (receipt.size, receipt.sha256, receipt.root) == (2 * BLOCK - 1, "00", "01" * 32)
    assert tested.files() == {"report.txt": CONTENT[: 2 * BLOCK - 1]}


@pytest_twisted.ensureDeferred
async def test_readingWhatIsNotThere(tested):  # noqa: F811 - a fixture of another module
    partial = await bounded(tested.store.open(upload()))
    append(partial, 0, 10)
    assert await bounded(partial.read(0, 10)) == CONTENT[:10]
    assert await bounded(partial.read(4, 4)) == b""
    for start, end in ((0, 11), (10, 11)):
        with pytest.raises(StoreError, match="not held"):
            await bounded(partial.read(start, end))
    newer = await bounded(tested.store.open(upload()))
    with pytest.raises(ConflictTakeover):
        await bounded(partial.read(0, 1))
    with pytest.raises(ConflictTakeover):
        partial.declare(upload(size=10))
    assert await bounded(newer.read(0, 10)) == CONTENT[:10]
    assert newer.stump == Stump(0, 10, hashlib.sha256(CONTENT[:10]).digest())
    await bounded(newer.abort())


@pytest_twisted.ensureDeferred
async def test_discardingAroundAnUnfinishedBlock(tested):  # noqa: F811 - a fixture of another module
    partial = await bounded(tested.store.open(upload()))
    append(partial, 0, AT)
    partial.write(AT, b"x" * BLOCK)
    partial.discard(AT, AT + BLOCK)
    assert list(partial.held) == [(0, AT)]
    assert partial.stump is not None
    partial.discard(AT - 1, AT)
    assert partial.stump is None
    assert list(partial.digests) == [0]
    await bounded(partial.abort())


# -- the local store ------------------------------------------------------------


def begun(root, end=AT, **values):
    """
    Leave a suspended upload.
    """
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(upload(**values)))
    append(partial, 0, end)
    clock.wait(partial.suspend())
    clock.wait(store.close())


def test_theFirstCheckpointCarriesTheStumpOverADeath(root):
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(upload()))
    append(partial, 0, 100)
    clock.wait(partial.checkpoint())
    append(partial, 100, AT)  # nobody was told of these
    killed(partial)
    store, clock, _ = inline(root)
    found = clock.wait(store.find("anonymous", SECRET, KEY))
    partial = clock.wait(store.open(found))
    assert list(partial.held) == [(0, 100)]
    assert clock.wait(partial.read(0, 100)) == CONTENT[:100]
    clock.wait(partial.abort())


@pytest.mark.parametrize(("place", "left"), [(5, (BLOCK, AT)), (BLOCK + 5, (0, BLOCK))])
def test_whatIsDamagedIsSaid(root, place, left):
    begun(root)
    data = bytearray(parts(root)[0].read_bytes())
    data[place] ^= 1
    parts(root)[0].write_bytes(data)
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(upload()))
    damaged = (0, BLOCK) if place < BLOCK else (BLOCK, AT)
    assert clock.wait(partial.settled()) == [damaged]
    assert list(partial.held) == [left]
    clock.wait(partial.abort())


@pytest.mark.parametrize("cut", [1, AT - BLOCK])
def test_bytesThatAreMissing(root, cut):
    # as after a power cut at a level that syncs nothing
    begun(root)
    with parts(root)[0].open("r+b") as file:
        file.truncate(AT - cut)
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(upload()))
    assert list(partial.held) == [(0, BLOCK)]
    assert partial.stump is None
    clock.wait(partial.abort())


def test_aJournalIsReadTheSameAfterItWasWrittenAnew(root):
    begun(root)
    [path] = journals(root)
    journal = Journal.read(path.read_bytes())
    assert Journal.read(journal.record()) == journal
    assert journal.received == AT
    # a record too long to be one, and one of the wrong shape
    noise = b'\n00000000 {"stump":[1,2]}\n'
    assert Journal.read(path.read_bytes() + noise) == journal


def test_aStumpOfAFinishedBlockIsNone(root):
    begun(root, 2 * BLOCK)
    [path] = journals(root)
    assert Journal.read(path.read_bytes()).stump is None
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(upload()))
    assert (list(partial.held), partial.stump) == ([(0, 2 * BLOCK)], None)
    clock.wait(partial.abort())


def test_anotherOfferBeginsAnew(root):
    begun(root)
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(upload(blockSize=2 * BLOCK)))
    assert partial.stump is None
    assert Journal.read(header(upload())).stump is None
    clock.wait(partial.abort())


def test_aFailedCheckpointIsMadeUpFor(root):
    store, clock, calls = inline(root)
    partial = clock.wait(store.open(upload()))
    append(partial, 0, 100)
    calls.before = failing("write", 28)
    with pytest.raises(NoSpace):
        clock.wait(partial.checkpoint())
    assert list(partial.durable) == []
    clock.wait(partial.checkpoint())
    assert list(partial.durable) == [(0, 100)]
    clock.wait(partial.abort())


def test_theJournalSaysWhatWasDeclared(root):
    begun(root)
    store, clock, _ = inline(root)
    asked = clock.wait(store.find("anonymous", SECRET, KEY))
    partial = clock.wait(store.open(asked))
    partial.declare(attrs.evolve(asked, size=AT + 5))
    clock.wait(partial.checkpoint())
    killed(partial)
    store, clock, _ = inline(root)
    asked = clock.wait(store.find("anonymous", SECRET, KEY))
    assert asked.size == AT + 5
    partial = clock.wait(store.open(asked))
    assert list(partial.held) == [(0, AT)]
    append(partial, AT, AT + 5)
    assert clock.wait(partial.commit(None)).size == AT + 5


def test_aDeclaredSizeIsReserved(root):
    store, clock, _ = inline(root, quota=1 << 20)
    partial = clock.wait(store.open(upload()))
    append(partial, 0, 100)
    with pytest.raises(QuotaExceeded):
        partial.declare(upload(size=2 << 20))
    partial.declare(upload(size=1 << 20))
    with pytest.raises(QuotaExceeded):
        clock.wait(store.open(offer(size=1, resumeKey=b"o" * 32)))
    clock.wait(partial.abort())


def test_anotherProcessHasIt(root):
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(upload()))
    append(partial, 0, 100)
    other, others, _ = inline(root)
    with pytest.raises(Busy):
        others.wait(other.find("anonymous", SECRET, KEY))
    clock.wait(partial.suspend())
    assert others.wait(other.find("anonymous", SECRET, KEY)).size is None


def test_whatWasPublishedByAProcessThatDied(root):
    class Died(BaseException):
        pass

    store, clock, calls = inline(root)
    partial = clock.wait(store.open(upload(size=100)))
    append(partial, 0, 100)

    def linked(name, arguments, keywords):
        if name == "write" and (root / "report.txt").exists():
            raise Died  # before the done record

    calls.before = linked
    with pytest.raises(Died):
        clock.wait(partial.commit(None))
    killed(partial)
    store, clock, _ = inline(root)
    receipt = clock.wait(store.find("anonymous", SECRET, KEY))
    assert isinstance(receipt, Receipt)
    assert (receipt.name, receipt.size) == ("report.txt", 100)
    assert parts(root) == []
    assert clock.wait(store.find("anonymous", SECRET, KEY)) == receipt


@pytest.mark.parametrize("evicts", [True, False])
def test_uploadsOfANetworkMakeWayForItsOwnOnly(root, evicts):
    begun(root, 100, network="192.0.2.1")
    store, clock, _ = inline(root)
    for number in range(MAX_PARTIALS):
        one = upload(resumeKey=b"%032d" % number, network="192.0.2.2", evicts=evicts)
        partial = clock.wait(store.open(one))
        append(partial, 0, 10)
        clock.wait(partial.suspend())
    one = upload(resumeKey=b"l" * 32, network="192.0.2.2", evicts=evicts)
    if evicts:
        clock.wait(clock.wait(store.open(one)).suspend())
        clock.wait(store.foresee(one, None, 0, False))
    else:
        for ask in (lambda: store.open(one), lambda: store.foresee(one, None, 0, False)):
            with pytest.raises(QuotaExceeded):
                clock.wait(ask())
    there = [clock.wait(store.find("anonymous", SECRET, KEY, "192.0.2.1"))]
    assert there[0] is not None
    oldest = clock.wait(store.find("anonymous", b"%032d" % 0, KEY, "192.0.2.2"))
    assert (oldest is None) == evicts


def test_whatNativeSendersLeftIsInItsPlace(root):
    # the directory of a principal without networks is the one it has always been
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(offer(size=BLOCK * 2, resumeKey=SECRET)))
    filled(clock, partial, CONTENT[:BLOCK])
    clock.wait(partial.suspend())
    owner = hashlib.sha256(b"anonymous").hexdigest()[:32]
    assert parts(root)[0].parent.name == owner
    assert IFileStore.providedBy(store)


# -- a long journal


@pytest.fixture
def shortJournals(monkeypatch):
    monkeypatch.setattr("connpool.transfer.stores.partialdir.LONG_JOURNAL_BYTES", 5000)
    monkeypatch.setattr("connpool.transfer.stores.journalwriter.LOOK_BYTES", 6000)


def stepByStep(clock, partial, told, count=150):
    """
    Bytes that come one by one, each safe before it is told.
    """
    for at in range(count):
        append(partial, at, at + 1)
        clock.wait(partial.checkpoint())
        told.append(at + 1)


def survives(root, told):
    store, clock, _ = inline(root)
    found = clock.wait(store.find("anonymous", SECRET, KEY))
    assert found is not None
    partial = clock.wait(store.open(found))
    assert partial.held.end >= told[-1]
    clock.wait(partial.abort())
    clock.wait(store.close())


def test_aJournalDoesNotGrowForEver(root, shortJournals):
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(upload(durability="full")))
    told = []
    stepByStep(clock, partial, told)
    assert journals(root)[0].stat().st_size < 6200
    assert [*root.glob(".connpool/temporary/*")] == []
    killed(partial)
    survives(root, told)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "call", ["pread", "open", "flock", "pwrite", "fdatasync", "rename", "close", "fsync"]
)
def test_deathsWhileAJournalIsReplaced(root, shortJournals, call, count):
    class Died(BaseException):
        pass

    told, seen = [], []

    def before(name, arguments, keywords):
        # only then anybody asks how long the journal is
        if told and (seen or name == "fstat"):
            seen.append(name)
            if seen.count(call) == count and name == call:
                raise Died

    store, clock, _ = inline(root, before)
    partial = clock.wait(store.open(upload(durability="full")))
    with pytest.raises((Died, AssertionError)):
        stepByStep(clock, partial, told)
    assert len(told) > 20
    killed(partial)
    survives(root, told)
