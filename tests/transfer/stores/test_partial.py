"""
A partial of the local store: whose it is, what its journal says, what ends it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from connpool.errors import Busy, ConflictTakeover, NoSpace, StoreError, SyncFailed
from connpool.transfer import LocalStore, Receipt
from connpool.transfer.stores import partial as partial_
from connpool.transfer.stores.journal import MAX_JOURNAL_BYTES, blocksRecord, header
from connpool.transfer.stores.partialdir import LONG_JOURNAL_BYTES
from tests.helpers.waiting import (
    assertNoResult,
    bounded,
    failureResultOf,
    pause,
    successResultOf,
    until,
)
from tests.transfer.stores.kit import BLOCK, InlineReactor, Recorded, fill, offer, visible
from tests.transfer.stores.onpartials import (
    KEY,
    SECRET,
    failing,
    filled,
    inline,
    journals,
    killed,
    ofJournal,
    ofReceipts,
    parts,
    target,
)

CONTENT = bytes(range(256)) * (4 * BLOCK // 256)
HELD = [(0, 3 * BLOCK)]


class Later(InlineReactor):
    """
    One whose threads do nothing until they are told to.
    """

    def __init__(self):
        super().__init__()
        self.jobs = []
        self.hold = False

    def callInThreadWithCallback(self, *call, **keywords):
        self.jobs.append((call, keywords))
        if not self.hold:
            self.work()

    def work(self, most=1 << 30):
        while self.jobs and most:
            most -= 1
            call, keywords = self.jobs.pop(0)
            super().callInThreadWithCallback(*call, **keywords)


def suspended(root, *, journal=lambda data: data, **values):
    """
    Leave a partial with three of four blocks and a changed journal.
    """
    values = {"size": len(CONTENT), "resumeKey": SECRET, "key": KEY, **values}
    asked = offer("a", **values)
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(asked))
    filled(clock, partial, CONTENT[: 3 * BLOCK])
    clock.wait(partial.suspend())
    clock.wait(store.close())
    path = max(journals(root), key=lambda each: each.stat().st_mtime_ns)
    path.write_bytes(journal(path.read_bytes()))
    return asked


def nextVersion(data: bytes) -> bytes:
    # as another version would write it: no checksum of ours
    return data.replace(b'"version":1', b'"version":2')


# -- journals that nobody can read --------------------------------------------


@pytest_twisted.ensureDeferred
async def test_closingWhileUnknownBlocksAreHashed(root):
    asked = suspended(root, journal=nextVersion)
    before, journal = parts(root)[0].read_bytes(), journals(root)[0].read_bytes()
    reading, goOn = threading.Event(), threading.Event()
    bad = []

    def slow(name, arguments, keywords):
        if name == "pread" and arguments[1] == BLOCK:
            reading.set()
            goOn.wait(20)
            bad.extend(each for each in [arguments[0]] if target(each) != str(parts(root)[0]))

    store = LocalStore(reactor, root, syscalls=Recorded(slow))
    opening = store.open(asked)
    await until(reading.is_set)
    closing = store.close()
    await pause(0.05)
    assertNoResult(closing)
    goOn.set()
    await bounded(closing)
    with pytest.raises(StoreError):
        await bounded(opening)
    assert bad == []
    assert parts(root)[0].read_bytes() == before
    assert journals(root)[0].read_bytes() == journal
    store, clock, _ = inline(root)
    assert list(clock.wait(store.open(asked)).held) == HELD
    clock.wait(store.close())


def test_whatWasHashedIsNotedAtOnce(root):
    # a process that is killed before, or after, has lost nothing
    asked = suspended(root, journal=nextVersion)
    store, clock, syscalls = inline(root)
    partial = clock.wait(store.open(asked))
    assert list(partial.held) == list(partial.durable) == HELD
    told = [
        number
        for number, (name, arguments, _, _) in enumerate(syscalls.log)
        if name == "write" and arguments[0] == partial.slot.journalFd
    ]
    read = [
        number
        for number, (name, arguments, _, _) in enumerate(syscalls.log)
        if name == "pread" and arguments[0] == partial.slot.fd
    ]
    assert len(told) == 1
    assert told[0] > max(read)
    killed(partial)
    store, clock, _ = inline(root)
    assert list(clock.wait(store.open(asked)).held) == HELD
    clock.wait(store.close())


@pytest.mark.parametrize("number", range(3))
def test_killedWhileUnknownBlocksAreHashed(root, number):
    class Die(BaseException):
        pass

    asked = suspended(root, journal=nextVersion)
    seen = []

    def dies(name, arguments, keywords):
        if name == "pread" and arguments[1] == BLOCK:
            seen.append(arguments)
        if len(seen) > number:
            raise Die

    store, clock, _ = inline(root, dies, Later())
    clock.hold = True
    opening = store.open(asked)
    [(call, _)] = clock.jobs
    with pytest.raises(Die):
        call[1](*call[2:])
    assertNoResult(opening)
    [older] = store.admission.active
    killed(older)
    store, clock, _ = inline(root)
    assert list(clock.wait(store.open(asked)).held) == HELD
    clock.wait(store.close())


def test_aJournalThatIsTooLongIsBegunAnew(root):
    asked = suspended(root)
    line = header(asked)
    with journals(root)[0].open("ab") as file:
        file.write(line * (MAX_JOURNAL_BYTES // len(line) + 1))
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(asked))
    assert list(partial.held) == HELD
    partial.write(3 * BLOCK, CONTENT[3 * BLOCK :])
    partial.record(3, hashlib.sha256(CONTENT[3 * BLOCK :]).digest())
    clock.wait(partial.suspend())
    assert journals(root)[0].stat().st_size < LONG_JOURNAL_BYTES
    clock.wait(store.close())
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(asked))
    assert list(partial.held) == [(0, 4 * BLOCK)]
    clock.wait(partial.commit(b"\1" * 32))
    assert visible(root) == {"a": CONTENT}
    clock.wait(store.close())


def test_reconnectionsDoNotGrowTheJournal(root):
    asked = suspended(root)
    size = journals(root)[0].stat().st_size
    store, clock, _ = inline(root)
    for _ in range(5):
        partial = clock.wait(store.open(asked))
        clock.wait(partial.suspend())
    assert journals(root)[0].stat().st_size == size
    # what differs has to be said, but not for ever
    for number in range(1000):
        again = attrs.evolve(asked, transferId=f"{number:032x}")
        partial = clock.wait(store.open(again))
        assert list(partial.held) == HELD
        clock.wait(partial.suspend())
    assert size < journals(root)[0].stat().st_size < LONG_JOURNAL_BYTES + 1000
    [info] = clock.wait(store.partials())
    assert (info.name, info.received) == ("a", 3 * BLOCK)
    clock.wait(store.close())


@pytest_twisted.ensureDeferred
async def test_aLongJournalIsReadInAThread(root):
    blocks, size = 65_536, 1 << 16
    asked = offer("a", size=blocks * size, resumeKey=SECRET, blockSize=size)
    store, clock, _ = inline(root, minFree=0)
    partial = clock.wait(store.open(asked))
    partial.write(0, b"x" * size)
    partial.record(0, b"d" * 32)
    clock.wait(partial.suspend())
    clock.wait(store.close())
    os.truncate(parts(root)[0], blocks * size)
    digests = [(block, block.to_bytes(32, "big")) for block in range(blocks)]
    journals(root)[0].write_bytes(header(asked) + blocksRecord(digests))
    store, clock, syscalls = inline(root, clock=Later(), minFree=0)
    store.parts.reservations._space.floor = -(1 << 50)
    clock.hold = True
    del syscalls.log[:]
    opening = store.open(asked)
    assertNoResult(opening)
    assert "pread" not in syscalls.names()
    clock.work(1)
    partial = successResultOf(opening)
    assert list(partial.held) == [(0, blocks * size)]
    assert len(partial.digests) == blocks
    partial._unread.clear()  # it would be damaged
    clock.hold = False
    clock.work()
    clock.wait(store.close())


# -- what was published, and what was not -------------------------------------


@pytest.mark.parametrize("durability", ["none", "full"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
@pytest.mark.parametrize("rule", ["rename", "refuse", "skip"])
def test_aLinkAfterAFailedCommitIsNotOurs(root, tmp_path, number, durability, rule):
    # rsnapshot, cp -al, hardlink(1)
    store, clock, syscalls = inline(root)
    asked = offer("a", size=BLOCK, resumeKey=SECRET, key=KEY, durability=durability, ifExists=rule)
    partial = clock.wait(store.open(asked))
    filled(clock, partial, CONTENT[:BLOCK])
    syscalls.before = failing("link", number)
    with pytest.raises((NoSpace, Busy)):
        clock.wait(partial.commit(b"\1" * 32))
    clock.wait(partial.suspend())
    os.link(parts(root)[0], tmp_path / "snapshot")
    clock.wait(store.reap())
    partial = clock.wait(store.open(asked))
    assert not isinstance(partial, Receipt)
    filled(clock, partial, CONTENT[:BLOCK])
    assert clock.wait(partial.commit(b"\1" * 32)).status == "stored"
    assert visible(root) == {"a": CONTENT[:BLOCK]}
    clock.wait(store.close())


def test_aRevocationThatCannotBeWrittenComesLater(root, tmp_path):
    store, clock, syscalls = inline(root)
    asked = offer("a", size=BLOCK, resumeKey=SECRET, key=KEY)
    partial = clock.wait(store.open(asked))
    filled(clock, partial, CONTENT[:BLOCK])
    full = [False]

    def before(name, arguments, keywords):
        full[0] = full[0] or name == "link"
        journal = name == "write" and ofJournal(arguments)
        if full[0] and (name == "link" or journal):
            raise OSError(errno.ENOSPC, "")

    syscalls.before = before
    with pytest.raises(NoSpace):
        clock.wait(partial.commit(b"\1" * 32))
    syscalls.before = None
    clock.wait(partial.suspend())
    os.link(parts(root)[0], tmp_path / "snapshot")
    assert not isinstance(clock.wait(store.open(asked)), Receipt)
    clock.wait(store.close())


def test_aLinkThatWasThereBeforeTheCommitIsNotOurs(root, tmp_path):
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(offer("a", size=BLOCK, resumeKey=SECRET)))
    filled(clock, partial, CONTENT[:BLOCK])
    os.link(parts(root)[0], tmp_path / "snapshot")
    clock.wait(partial.commit(b"\1" * 32))
    assert visible(root) == {"a": CONTENT[:BLOCK]}
    clock.wait(store.close())


@pytest.mark.parametrize("rule", ["rename", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("end", ["suspend", "abort", "take over", "restart", "reaper"])
@pytest.mark.parametrize("digests", [True, False])
def test_whatHasItsNameIsFinished(root, rule, number, end, digests):
    # its receipt could not be noted; what it was told after that changes nothing
    store, clock, syscalls = inline(root)
    asked = offer("a", size=BLOCK, resumeKey=SECRET, key=KEY, ifExists=rule)
    partial = clock.wait(store.open(asked))
    partial.write(0, CONTENT[:BLOCK])
    if digests:
        partial.record(0, hashlib.sha256(CONTENT[:BLOCK]).digest())
    syscalls.before = failing("write", number, 9, ofReceipts)
    with pytest.raises((NoSpace, StoreError)):
        clock.wait(partial.commit(b"\1" * 32))
    syscalls.before = None
    inode = (root / "a").stat().st_ino
    if end != "take over":
        clock.wait(partial.abort() if end == "abort" else partial.suspend())
    if end == "restart":
        clock.wait(store.close())
        store, clock, _ = inline(root)
    elif end == "reaper":
        clock.wait(store.reap())
        assert parts(root) == journals(root) == []
    receipt = clock.wait(store.open(asked))
    assert (receipt.status, receipt.name) == ("stored", "a")
    assert clock.wait(store.open(asked)) == receipt
    assert (root / "a").stat().st_ino == inode
    assert parts(root) == journals(root) == []
    assert visible(root) == {"a": CONTENT[:BLOCK]}
    clock.wait(store.close())


def test_aCommitAfterOneThatHadItsName(root):
    store, clock, syscalls = inline(root)
    partial = clock.wait(store.open(offer("a", size=BLOCK, resumeKey=SECRET, key=KEY)))
    filled(clock, partial, CONTENT[:BLOCK])
    syscalls.before = failing("write", errno.ENOSPC, 9, ofReceipts)
    with pytest.raises(NoSpace):
        clock.wait(partial.commit(b"\1" * 32))
    syscalls.before = None
    assert clock.wait(partial.commit(b"\1" * 32)).status == "stored"
    assert visible(root) == {"a": CONTENT[:BLOCK]}
    assert parts(root) == journals(root) == []
    clock.wait(store.close())


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_aNoteThatIsNotOnDiskIsRevoked(root, tmp_path, number):
    # it was written, and its sync failed
    store, clock, syscalls = inline(root)
    asked = offer("a", size=BLOCK, resumeKey=SECRET, key=KEY)
    partial = clock.wait(store.open(asked))
    filled(clock, partial, CONTENT[:BLOCK])
    clock.wait(partial.checkpoint())
    syscalls.before = failing("fdatasync", number, when=ofJournal)
    with pytest.raises((NoSpace, StoreError)):
        clock.wait(partial.commit(b"\1" * 32))
    opening = None
    if number == errno.ENOSPC:
        clock.wait(partial.suspend())
        os.link(parts(root)[0], tmp_path / "snapshot")
        opening = store.open(asked)
    else:
        opening = store.open(asked)  # nobody takes over what had an I/O error
    newer = clock.wait(opening)
    assert not isinstance(newer, Receipt)
    assert list(newer.held) == []
    clock.wait(store.close())


# -- faults -------------------------------------------------------------------


def test_aJournalThatCannotBeWrittenAtFirst(root):
    store, clock, syscalls = inline(root)
    before = len(os.listdir("/proc/self/fd"))
    broken = failing("write", errno.EDQUOT, 1 << 30, ofJournal)
    for number in range(5):
        syscalls.before = broken
        asked = offer("a", size=2 * BLOCK, resumeKey=bytes([number]) * 32)
        partial = clock.wait(store.open(asked))
        filled(clock, partial, CONTENT[:BLOCK])
        with pytest.raises(NoSpace):
            clock.wait(partial.checkpoint())
        syscalls.before = None
        clock.wait(partial.suspend())
        assert store.parts.reservations._totals.promised == 0
        assert store.admission.active == []
        partial = clock.wait(store.open(asked))
        assert list(partial.held) == [(0, BLOCK)]
        assert [info.name for info in clock.wait(store.partials())] == ["a"]
        clock.wait(partial.abort())
    # the directory of the principal is held for the next one
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert parts(root) == journals(root) == []
    clock.wait(store.close())


@pytest.mark.parametrize("call", ["pread", "fstat", "flock"])
def test_anOpenThatFailsLeavesNothingOpen(root, call):
    asked = suspended(root)
    store, clock, syscalls = inline(root)
    clock.wait(clock.wait(store.open(asked)).suspend())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        syscalls.before = failing(call, errno.EIO, when=ofJournal)
        with pytest.raises(StoreError):
            clock.wait(store.open(asked))
    assert len(os.listdir("/proc/self/fd")) == before
    assert store.parts.reservations._totals.promised == 0
    assert list(clock.wait(store.open(asked)).held) == HELD
    clock.wait(store.close())


def test_aRefusedOfferLeavesNoFiles(root):
    store, clock, _ = inline(root, quota=BLOCK)
    for _ in range(2):
        with pytest.raises(Exception, match="quota"):
            clock.wait(store.open(offer("a", size=2 * BLOCK, resumeKey=SECRET)))
        assert parts(root) == journals(root) == []
    clock.wait(store.close())


def test_nobodyTakesOverWhatIsPoisoned(root):
    # the sync of the commit fails while a newer connection waits for it
    store, clock, syscalls = inline(root, clock=Later())
    asked = offer("a", size=BLOCK, resumeKey=SECRET, key=KEY)
    older = clock.wait(store.open(asked))
    filled(clock, older, CONTENT[:BLOCK])
    clock.wait(older.checkpoint())
    clock.hold = True
    committing = older.commit(b"\1" * 32)
    opening = store.open(asked)
    clock.hold = False
    syscalls.before = failing("fsync", errno.EIO)
    clock.work()
    assert isinstance(failureResultOf(committing), SyncFailed)
    newer = successResultOf(opening)
    assert list(newer.held) == []
    clock.wait(older.abort())
    filled(clock, newer, CONTENT[:BLOCK])
    clock.wait(newer.commit(b"\1" * 32))
    assert visible(root) == {"a": CONTENT[:BLOCK]}
    clock.wait(store.close())


def test_aCheckpointThatFailsStopsTheCommitBehindIt(root):
    store, clock, syscalls = inline(root, clock=Later())
    partial = clock.wait(store.open(offer("a", size=BLOCK, resumeKey=SECRET)))
    filled(clock, partial, CONTENT[:BLOCK])
    clock.hold = True
    ends = [partial.checkpoint(), partial.commit(b"\1" * 32)]
    syscalls.before = failing("fdatasync", errno.EIO)
    clock.hold = False
    clock.work()
    assert all(isinstance(failureResultOf(end), StoreError) for end in ends)
    clock.wait(partial.suspend())
    assert visible(root) == {}
    assert parts(root) == []
    clock.wait(store.close())


@pytest.mark.parametrize("writing", [False, True])
def test_suspendedTwice(root, writing):
    # a lost connection, and then SIGTERM
    store, clock, _ = inline(root, clock=Later())
    asked = offer("a", size=len(CONTENT), resumeKey=SECRET)
    partial = clock.wait(store.open(asked))
    filled(clock, partial, CONTENT[: 3 * BLOCK])
    clock.hold = True
    if writing:
        store.parts.threads.latency.inline = False
        partial.write(3 * BLOCK, b"x")
    ends = [partial.suspend(), partial.suspend(), store.close()]
    for end in ends:
        assertNoResult(end)
    while clock.jobs:
        clock.work(1)
    for end in ends:
        successResultOf(end)
    store, clock, _ = inline(root)
    assert list(clock.wait(store.open(asked)).held) == HELD
    clock.wait(store.close())


@pytest.mark.parametrize("digests", [0, 1])
def test_takeOverWhileTheStoreCloses(root, digests):
    store, clock, _ = inline(root, clock=Later())
    asked = offer("a", size=4 * BLOCK, resumeKey=SECRET)
    older = clock.wait(store.open(asked))
    filled(clock, older, CONTENT[: digests * BLOCK])
    store.parts.threads.latency.inline = False
    clock.hold = True
    writing = older.write(2 * BLOCK, CONTENT[:BLOCK])
    opening = store.open(asked)
    closing = store.close()
    clock.hold = False
    clock.work()
    successResultOf(writing)
    assert "stopping" in str(failureResultOf(opening, StoreError))
    clock.wait(closing)
    assert store.admission.active == []
    assert len(parts(root)) == digests


# -- turns --------------------------------------------------------------------


def test_offersOfOneKeyHaveTheirTurns(root):
    asked = suspended(root, journal=nextVersion)
    store, clock, _ = inline(root, clock=Later())
    clock.hold = True
    opening = [store.open(asked) for _ in range(3)]
    for each in opening:
        assertNoResult(each)
    clock.hold = False
    clock.work()
    partials = [clock.wait(each) for each in opening]
    assert list(partials[-1].held) == HELD
    for older in partials[:-1]:
        with pytest.raises(ConflictTakeover):
            older.write(3 * BLOCK, b"x")
    filled(clock, partials[-1], CONTENT)
    clock.wait(partials[-1].commit(b"\1" * 32))
    assert visible(root) == {"a": CONTENT}
    assert store.admission._turns == {}
    clock.wait(store.close())


def test_whoOnlyLooksKeepsNobodyFromResuming(root):
    asked = suspended(root)
    store, clock, _ = inline(root)
    fd = os.open(journals(root)[0], os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_SH)
    opening = store.open(asked)
    assertNoResult(opening)
    os.close(fd)
    assert list(clock.wait(opening).held) == HELD
    clock.wait(store.close())


@pytest_twisted.ensureDeferred
async def test_rereadingKeepsNobodyWaiting(root):
    keys = [bytes([number]) * 32 for number in range(6)]
    for key in keys:
        suspended(root, resumeKey=key)
    goOn = threading.Event()

    def slow(name, arguments, keywords):
        if name == "pread" and arguments[1] == BLOCK:
            goOn.wait(20)

    store = LocalStore(reactor, root, syscalls=Recorded(slow))
    try:
        partials = [
            await bounded(store.open(offer("a", size=len(CONTENT), resumeKey=key))) for key in keys
        ]
        assert [list(each.held) for each in partials] == [HELD] * 6
        await bounded(store.put(offer("small", principal="bob"), b"x", None), 5)
        other = await bounded(store.open(offer("large", size=BLOCK, resumeKey=b"o" * 32)))
        await fill(other, CONTENT[:BLOCK])
        await bounded(other.checkpoint(), 5)
        await bounded(other.commit(b"\1" * 32), 5)
        assert sorted(visible(root)) == ["large", "small"]
    finally:
        goOn.set()
    settled = await bounded(gatherResults([each.settled() for each in partials]))
    assert settled == [[]] * 6
    await bounded(store.close())


def test_aLongRereadingLetsOthersHaveTheirTurn(root, monkeypatch):
    monkeypatch.setattr(partial_, "REHASH_SLICE_BYTES", BLOCK)
    keys = [b"1" * 32, b"2" * 32]
    for key in keys:
        suspended(root, resumeKey=key)
    store, clock, _ = inline(root, clock=Later())
    clock.hold = True
    opened = [
        successResultOf(store.open(offer("a", size=len(CONTENT), resumeKey=key))) for key in keys
    ]
    read = []
    while clock.jobs:
        clock.work(1)
        read.append([len(each._unread) for each in opened])
    assert read == [[2, 3], [2, 2], [1, 2], [1, 1], [0, 1], [0, 0]]
    clock.hold = False
    clock.wait(store.close())


# -- removing -----------------------------------------------------------------


@pytest.mark.parametrize("way", ["abort", "evict", "publish to another mount", "delete"])
@pytest_twisted.ensureDeferred
async def test_nothingLargeIsRemovedInTheReactor(root, way):
    size = 2 << 20
    where = []

    def before(name, arguments, keywords):
        if name in {"unlink", "close"}:
            path = arguments[0] if name == "unlink" else target(arguments[0])
            if path.rpartition("/")[2].removesuffix(" (deleted)") == part[0]:
                where.append((name, threading.current_thread() is threading.main_thread()))
        if name == "link" and way.startswith("publish") and arguments[0] == part[0]:
            raise OSError(errno.EXDEV, "")

    part = [None]
    store = LocalStore(reactor, root, quota=5 << 20, syscalls=Recorded(before))
    asked = offer("a", size=size, resumeKey=SECRET, durability="none")
    partial = await bounded(store.open(asked))
    await fill(partial, os.urandom(size))
    part[0] = parts(root)[0].name
    if way == "abort":
        await bounded(partial.abort())
    elif way == "publish to another mount":
        await bounded(partial.commit(b"\1" * 32))
        assert len(visible(root)["a"]) == size
    else:
        await bounded(partial.suspend())
        del where[:]
        if way == "evict":
            other = await bounded(store.open(offer("b", size=4 << 20)))
            await bounded(other.abort())
        else:
            [info] = await bounded(store.partials())
            await bounded(store.delete(info))
    assert parts(root) == journals(root) == []
    assert ("unlink", False) in where
    assert not any(here for _, here in where)
    await bounded(store.close())
