"""
Who may still take how much, and who has to go for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import DeferredList

from connpool.errors import NoSpace, QuotaExceeded, StartFailed
from connpool.transfer import LocalStore
from connpool.transfer.stores import partialdir, reservations
from connpool.transfer.stores.reservations import FIRST_STEP_BYTES
from connpool.transfer.syscalls import Syscalls, asTransferError
from tests.helpers.waiting import bounded
from tests.transfer.stores.kit import BLOCK, offer, visible
from tests.transfer.stores.onpartials import (
    SECRET,
    failing,
    filled,
    inline,
    journals,
    target,
)


def suspend(root, store, clock, count, size=2 * BLOCK):
    """
    Leave partials C{x0}, C{x1}, …, the oldest first.
    """
    for number in range(count):
        asked = offer(f"x{number}", size=2 * size, resumeKey=bytes([number]) * 32)
        partial = clock.wait(store.open(asked))
        filled(clock, partial, b"x" * size)
        clock.wait(partial.suspend())
        newest = max(journals(root), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (1000 + number,) * 2)


def left(store, clock):
    return sorted(info.name for info in clock.wait(store.partials()))


# -- the shared file ----------------------------------------------------------


def broken(number):
    return failing("pwrite", number, 1 << 30, lambda arguments: "/ledger/" in target(arguments[0]))


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC])
def test_whatCannotBeToldIsNotPromised(root, number):
    store, clock, syscalls = inline(root, quota=1 << 30)
    asked = offer("a", size=1 << 29, resumeKey=SECRET)
    for _ in range(3):
        syscalls.before = broken(number)
        with pytest.raises((NoSpace, QuotaExceeded)):
            clock.wait(store.open(asked))
        syscalls.before = None
        assert store.parts.reservations._totals.promised == 0
        assert store.parts.reservations._totals.taken == {}
    partial = clock.wait(store.open(offer("b", size=None)))
    partial.write(0, b"x" * BLOCK)
    reserved = partial._reservation.size
    syscalls.before = broken(number)
    with pytest.raises((NoSpace, QuotaExceeded)):
        store.parts.reservations.grow(partial._reservation, 1 << 20)
    assert (
        partial._reservation.size
        == reserved
        == sum(store.parts.reservations._totals.taken.values())
    )
    syscalls.before = None
    clock.wait(partial.abort())
    clock.wait(clock.wait(store.open(asked)).abort())
    clock.wait(store.close())


@pytest.mark.parametrize("end", ["commit", "suspend", "abort"])
def test_anEndNeverFailsForTheLedger(root, end):
    store, clock, syscalls = inline(root)
    before = len(os.listdir("/proc/self/fd"))
    asked = offer("a", size=BLOCK, resumeKey=SECRET, key=b"k" * 32)
    partial = clock.wait(store.open(asked))
    filled(clock, partial, b"x" * BLOCK)
    syscalls.before = broken(errno.EDQUOT)
    if end == "commit":
        assert clock.wait(partial.commit(b"\1" * 32)).status == "stored"
        assert visible(root) == {"a": b"x" * BLOCK}
    else:
        clock.wait(getattr(partial, end)())
    assert partial.ending is None
    assert store.parts.reservations._totals.promised == 0
    syscalls.before = None
    # a later promise tells the others, too
    clock.wait(clock.wait(store.open(offer("b", size=1))).abort())
    [own] = (root / ".connpool/ledger").glob("process-*")
    assert own.read_text() == '{"promised":0,"taken":{}}'
    # the principal's directory is held for the next one
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    clock.wait(store.close())


def test_aProcessThatStartsIsNotTakenForADeadOne(root):
    (root / ".connpool/ledger").mkdir(parents=True, mode=0o700)
    (root / ".connpool").chmod(0o700)
    seen = []

    def before(name, arguments, keywords):
        if name == "open" and str(arguments[0]).startswith("process-"):
            fd = os.open(root / ".connpool/ledger/lock", os.O_RDWR)
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(fd)
            seen.append(arguments[0])

    store, clock, syscalls = inline(root, before)
    assert len(seen) == 1
    # and the lock is not given back before its file is locked
    locks = [
        (target(arguments[0]).rpartition("/")[2][:8], arguments[1])
        for name, arguments, _, _ in syscalls.log
        if name == "flock"
    ][:3]
    assert locks == [
        ("lock", fcntl.LOCK_EX),
        ("process-", fcntl.LOCK_EX | fcntl.LOCK_NB),
        ("lock", fcntl.LOCK_UN),
    ]
    clock.wait(store.close())


def test_suspendedPartialsAreNotCountedUnderTheLock(root):
    held = []

    def before(name, arguments, keywords):
        if name == "flock" and target(arguments[0]).endswith("/ledger/lock"):
            held.append(arguments[1] != fcntl.LOCK_UN)
        elif name == "listdir" and "/partials/" in target(arguments[0]):
            assert not (held and held[-1])

    store, clock, _ = inline(root, quota=10 * BLOCK)
    suspend(root, store, clock, 1)
    store.parts.syscalls.before = before
    clock.wait(clock.wait(store.open(offer("a", size=BLOCK))).abort())
    assert held
    clock.wait(store.close())


# -- making room --------------------------------------------------------------


def test_whatCanNeverFitRemovesNothing(root):
    store, clock, _ = inline(root)
    suspend(root, store, clock, 3)
    with pytest.raises(NoSpace):
        clock.wait(store.open(offer("huge", size=1 << 60)))
    assert left(store, clock) == ["x0", "x1", "x2"]
    clock.wait(store.close())


@pytest.mark.parametrize("resumeKey", [None, b"h" * 32])
def test_whatIsLargerThanTheQuotaRemovesNothing(root, resumeKey):
    store, clock, _ = inline(root, quota=20 * BLOCK)
    suspend(root, store, clock, 3)
    asked = offer("huge", size=20 * BLOCK + 1, resumeKey=resumeKey)
    with pytest.raises(QuotaExceeded):
        clock.wait(store.open(asked))
    live = clock.wait(store.open(offer("live", size=8 * BLOCK)))
    with pytest.raises(QuotaExceeded):
        clock.wait(store.open(offer("large", size=13 * BLOCK, resumeKey=resumeKey)))
    assert left(store, clock) == ["x0", "x1", "x2"]
    clock.wait(live.abort())
    clock.wait(store.close())


@pytest.mark.parametrize(("size", "expected"), [(13, [0, 1, 2]), (15, [1, 2]), (17, [2]), (20, [])])
def test_onlySoMuchIsRemovedAsIsNeeded(root, size, expected):
    # each of three takes two blocks and its journal
    store, clock, _ = inline(root, quota=20 * BLOCK)
    suspend(root, store, clock, 3)
    partial = clock.wait(store.open(offer("new", size=size * BLOCK)))
    assert left(store, clock) == [f"x{number}" for number in expected]
    clock.wait(partial.abort())
    clock.wait(store.close())


def test_theDiskIsMadeRoomOnToo(root):
    store, clock, syscalls = inline(root, minFree=0)
    suspend(root, store, clock, 3)
    status = os.statvfs(root)

    def fstatvfs(fd):
        values = list(status)
        there = sum(path.stat().st_blocks * 512 for path in root.glob(".connpool/partials/*/*"))
        values[4] = (10 * BLOCK - there) // status.f_frsize  # f_bavail
        return os.statvfs_result(values)

    syscalls.fstatvfs = fstatvfs
    with pytest.raises(NoSpace):
        clock.wait(store.open(offer("new", size=11 * BLOCK)))
    assert left(store, clock) == ["x0", "x1", "x2"]
    partial = clock.wait(store.open(offer("new", size=5 * BLOCK)))
    assert left(store, clock) == ["x1", "x2"]
    clock.wait(partial.abort())
    clock.wait(store.close())


def test_aRefusedOfferTakesNobodysPlace(root, monkeypatch):
    monkeypatch.setattr(partialdir, "MAX_PARTIALS", 3)
    store, clock, _ = inline(root, quota=20 * BLOCK)
    suspend(root, store, clock, 3)
    with pytest.raises(QuotaExceeded):
        clock.wait(store.open(offer("huge", size=21 * BLOCK, resumeKey=SECRET)))
    assert left(store, clock) == ["x0", "x1", "x2"]
    partial = clock.wait(store.open(offer("new", size=BLOCK, resumeKey=SECRET)))
    clock.wait(partial.suspend())
    assert left(store, clock) == ["x1", "x2"]
    clock.wait(store.close())


@pytest_twisted.ensureDeferred
async def test_roomIsMadeWhileOthersGoOn(root, monkeypatch):
    # two offers at once, each of which needs all there is
    evict = partialdir.PartialDirectory.evict
    under = set()
    most = []

    def evictSlowly(self, *arguments):
        under.add(threading.get_ident())
        time.sleep(0.05)
        most.append(len(under))
        try:
            return evict(self, *arguments)
        finally:
            under.discard(threading.get_ident())

    monkeypatch.setattr(partialdir.PartialDirectory, "evict", evictSlowly)
    store, clock, _ = inline(root, quota=20 * BLOCK)
    suspend(root, store, clock, 3)
    clock.wait(store.close())
    store = LocalStore(reactor, root, quota=20 * BLOCK)
    opening = [
        store.open(offer(name, size=20 * BLOCK, resumeKey=name.encode() * 32)) for name in "ab"
    ]
    ended = await bounded(DeferredList(opening, consumeErrors=True))
    assert sorted(success for success, _ in ended) == [False, True]
    [failure] = [result for success, result in ended if not success]
    assert failure.check(QuotaExceeded)
    # what one removes would be missing in the other's count
    assert most == [1, 1]
    await bounded(store.close())


# -- what nobody knows the size of --------------------------------------------


def spacious(store, monkeypatch, free):
    monkeypatch.setattr(store.parts.reservations._space, "free", lambda: free)


def test_aSmallFileOfUnknownSizeNeedsLittle(root, monkeypatch):
    store, clock, _ = inline(root)
    spacious(store, monkeypatch, 38 << 20)
    partial = clock.wait(store.open(offer("a", size=None)))
    partial.write(0, b"abc")
    assert partial._reservation.size == FIRST_STEP_BYTES
    clock.wait(partial.abort())
    spacious(store, monkeypatch, 3)
    partial = clock.wait(store.open(offer("a", size=None)))
    partial.write(0, b"abc")
    spacious(store, monkeypatch, 0)
    with pytest.raises(NoSpace):
        partial.write(3, b"d")
    clock.wait(partial.abort())
    clock.wait(store.close())


def test_whatGrowsReservesMoreAtATime(root):
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(offer("a", size=None)))
    reserved = []
    for number in range(9):
        partial.write(number << 20, bytes(1 << 20))
        reserved.append(partial._reservation.size >> 20)
    assert reserved == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    clock.wait(partial.abort())
    clock.wait(store.close())


def test_aFileAboveTheQuotaIsToldTheQuota(root):
    store, clock, _ = inline(root, quota=1 << 20)
    with pytest.raises(QuotaExceeded, match="quota for one sender is 1048576"):
        clock.wait(store.open(offer("a", size=2 << 20)))
    clock.wait(store.close())


def test_aDiskQuotaIsNoFullDisk():
    error = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    why = asTransferError(error, "storing x")
    assert isinstance(why, NoSpace)
    assert "quota" in str(why)
    assert "full" not in str(why)


# -- other machines ------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch):
    """
    From now on, stores are those of another machine.
    """

    def go():
        monkeypatch.setattr(reservations, "machineOf", lambda *_: "elsewhere")

    return go


def test_aSecondMachineIsRefused(root, elsewhere):
    """
    Over a network file system, whose locks both see.  Processes of one machine share.
    """
    store, clock, _ = inline(root)
    beside, clock2, _ = inline(root)
    before = sorted(os.listdir(root / ".connpool" / "ledger"))
    elsewhere()
    for _ in range(2):
        with pytest.raises(StartFailed, match="--store s3") as caught:
            inline(root)
        assert "\n" not in str(caught.value)
        # it leaves nothing, and takes nothing away from those who run
        assert sorted(os.listdir(root / ".connpool" / "ledger")) == before
    clock.wait(store.close())
    with pytest.raises(StartFailed):
        inline(root)
    clock2.wait(beside.close())
    other, clock3, _ = inline(root)
    clock3.wait(other.close())


def test_aProcessOfAnEarlierReleaseIsNobodyElses(root):
    store, clock, _ = inline(root)
    clock.wait(store.close())
    path = root / ".connpool" / "ledger" / "process-0123456789abcdef"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        again, clock, _ = inline(root)
        clock.wait(again.close())
        assert path.exists()


def test_oneMachineHasOneName(root, tmp_path):
    """
    For all processes, and every directory of one mount.
    """
    names = set()
    for path in (root, tmp_path):
        fd = os.open(path, os.O_RDONLY)
        names.add(reservations.machineOf(Syscalls(), fd))
        os.close(fd)
    assert len(names) == 1
