"""
What only a store in a directory has: restarts, processes, disks.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from connpool.errors import (
    Busy,
    ConflictTakeover,
    DigestMismatch,
    NoSpace,
    QuotaExceeded,
    StartFailed,
    StoreError,
    SyncFailed,
)
from connpool.transfer import LocalStore, RelativeName
from connpool.transfer.identities import Identity
from connpool.transfer.receive.reception import Reception
from connpool.transfer.records import SmallFile
from connpool.transfer.stores import local as local_
from connpool.transfer.stores import partialdir
from connpool.transfer.stores.commit import PASS_FILES
from connpool.transfer.stores.directories import LOOK_SECONDS
from connpool.transfer.syscalls import Syscalls
from tests.helpers.waiting import assertNoResult, bounded, failureResultOf, pause
from tests.transfer.stores.kit import (
    BLOCK,
    InlineReactor,
    Recorded,
    fill,
    offer,
    settled,
    visible,
)

SECRET = b"s" * 32
CONTENT = bytes(range(256)) * (4 * BLOCK // 256)


@pytest.fixture
def opened(root):
    """
    Open stores on C{root}; they are closed at the end.
    """
    stores = []

    def opening(**values):
        store = LocalStore(reactor, root, **values)
        stores.append(store)
        return store

    yield opening
    for store in stores:
        pytest_twisted.blockon(bounded(store.close()))


def inline(root, **values):
    """
    A store without threads, its reactor and its calls.
    """
    clock = InlineReactor()
    syscalls = Recorded(lazy=True)
    store = LocalStore(
        clock, root, syscalls=syscalls, threads=clock, seconds=clock.seconds, **values
    )
    return store, clock, syscalls


def parts(root: Path) -> list[Path]:
    return sorted(path for path in root.glob(".connpool/partials/*/*") if not path.suffix)


def journals(root: Path) -> list[Path]:
    return sorted(root.glob(".connpool/partials/*/*.journal"))


# -- start --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "file", "loop"])
def test_unusableRootsAreOneLine(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("")
    elif kind == "loop":
        path.symlink_to(path)
    with pytest.raises(StartFailed) as failed:
        LocalStore(reactor, path)
    assert "\n" not in str(failed.value)
    assert str(path) in str(failed.value)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_internalDirectoryMustBeOurs(tmp_path, root, kind):
    # item 46: .connpool replaced by a symbolic link
    outside = tmp_path / "outside"
    outside.mkdir()
    internal = root / ".connpool"
    if kind == "link":
        internal.symlink_to(outside)
    else:
        internal.write_text("")
    with pytest.raises(StartFailed, match="not a directory"):
        LocalStore(reactor, root)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["temporary", "done", "ledger", ".connpool"])
def test_aPrivateFileThatIsNotOursIsNamed(root, name):
    class Refusing(Syscalls):
        @staticmethod
        def open(path, *details, **more):
            if path == name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return os.open(path, *details, **more)

    with pytest.raises(StartFailed, match=rf"Permission denied \('{name}'\); it must be writable"):
        LocalStore(reactor, root, syscalls=Refusing())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount read-only")
def test_readOnlyRoot(root):
    import subprocess

    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", root], check=False)
    if mounted.returncode:
        pytest.skip("this kernel does not let us mount a tmpfs")
    try:
        with pytest.raises(StartFailed, match="writable"):
            LocalStore(reactor, root)
    finally:
        subprocess.run(["umount", root], check=True)


def test_internalsArePrivate(root, opened):
    opened()
    assert stat.S_IMODE((root / ".connpool").stat().st_mode) == 0o700


@pytest_twisted.ensureDeferred
async def test_closeLetsGoOfEveryDescriptor(root):
    before = len(os.listdir("/proc/self/fd"))
    store = LocalStore(reactor, root)
    for number in range(100):
        asked = offer(f"a{number}/b/x", size=BLOCK, resumeKey=bytes([number]) * 32)
        partial = await bounded(store.open(asked))
        await fill(partial, b"x" * BLOCK)
        if number % 3 == 0:
            await bounded(partial.commit(None))
        elif number % 3 == 1:
            await bounded(partial.suspend())
        elif number % 2:
            await bounded(partial.abort())
    await bounded(store.close())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("call", "skip"), [("link", 0), ("flock", 1), ("mkdir", 1), ("fstatvfs", 0), ("fsync", 2)]
)
def test_aStartThatFailsLetsGoOfEverything(root, call, skip):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        clock = InlineReactor()
        syscalls = Recorded(failing(call, errno.EIO, skip=skip))
        with pytest.raises(StartFailed, match="cannot be used"):
            LocalStore(clock, root, syscalls=syscalls, threads=clock)
        shutil.rmtree(root / ".connpool/partials", ignore_errors=True)
        if call == "mkdir":
            shutil.rmtree(root / ".connpool")
    assert len(os.listdir("/proc/self/fd")) == before
    for path in (root / ".connpool/ledger").glob("process-*"):
        with path.open("r+") as own:  # nobody has it
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- modes and times ----------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest_twisted.ensureDeferred
async def test_modesDependNeitherOnUmaskNorOnSender(root, opened, umask):
    old = os.umask(umask)
    try:
        store = opened(keepExec=True)
        await bounded(settled(store.put(offer("d/plain", executable=False), b"x", None)))
        await bounded(settled(store.put(offer("d/program", executable=True), b"y", None)))
    finally:
        os.umask(old)
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((root / "d/plain").stat().st_mode) == 0o640
    assert stat.S_IMODE((root / "d/program").stat().st_mode) == 0o750


@pytest_twisted.ensureDeferred
async def test_execOnlyWhenKept(root, opened):
    await bounded(settled(opened().put(offer("x", executable=True), b"x", None)))
    assert stat.S_IMODE((root / "x").stat().st_mode) == 0o640


@pytest_twisted.ensureDeferred
async def test_setgidIsHandedDown(root, opened):
    (root / "d").mkdir()
    (root / "d").chmod(0o2770)
    await bounded(settled(opened().put(offer("d/e/x"), b"x", None)))
    assert stat.S_IMODE((root / "d/e").stat().st_mode) == 0o2750


#: 1960 with nanoseconds, the first second and the last before it, 2200.
TIMES = [-304_000_000 * 10**9 + 123_456_789, 0, -1, 7_258_118_400 * 10**9 + 1]


@pytest.mark.parametrize("modified", TIMES)
@pytest.mark.parametrize("way", ["put", "batch", "partial"])
@pytest_twisted.ensureDeferred
async def test_timesArriveAsTheyAre(root, opened, modified, way):
    store = opened(now=lambda: 1_000_000.0)
    asked = offer("x", modified=modified, durability="full" if way == "batch" else "none")
    if way == "partial":
        partial = await bounded(store.open(attrs.evolve(asked, size=1)))
        partial.write(0, b"x")
        await bounded(partial.commit(None))
    else:
        await bounded(settled(store.put(asked, b"x", None)))
    assert (root / "x").stat().st_mtime_ns == modified
    assert (await bounded(store.stat(asked.name))).modified == modified


# -- restarts -----------------------------------------------------------------


async def suspended(store, root, content=CONTENT, **values):
    """
    A partial that holds all blocks but the last.
    """
    asked = offer(size=len(content), resumeKey=SECRET, **values)
    partial = await bounded(store.open(asked))
    await fill(partial, content[: len(content) - BLOCK])
    await bounded(partial.suspend())
    return asked


@pytest.mark.parametrize("digest", ["sha256", "blake3"])
@pytest_twisted.ensureDeferred
async def test_resumeAfterRestart(root, opened, digest):
    from connpool.transfer.digests import digestNamed

    store = opened()
    asked = offer(size=len(CONTENT), resumeKey=SECRET, digest=digest)
    partial = await bounded(store.open(asked))
    partial.write(0, CONTENT[:BLOCK])
    partial.record(0, digestNamed(digest).of(CONTENT[:BLOCK]))
    partial.write(BLOCK, CONTENT[BLOCK : BLOCK + 10])  # never verified: not kept
    await bounded(store.close())
    partial = await bounded(opened().open(asked))
    assert list(partial.held) == [(0, BLOCK)]
    assert list(partial.durable) == [(0, BLOCK)]
    assert await bounded(partial.settled()) == []
    partial.write(BLOCK, CONTENT[BLOCK:])
    await bounded(partial.commit(b"\1" * 32))
    assert visible(root) == {"report.txt": CONTENT}


@pytest_twisted.ensureDeferred
async def test_damageBehindOurBackIsFound(root, opened):
    # item 48: neither size nor time shows it
    asked = await suspended(opened(), root)
    [part] = parts(root)
    times = part.stat()
    with part.open("r+b") as file:
        file.seek(BLOCK + 5)
        file.write(b"!")
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
    partial = await bounded(opened().open(asked))
    assert list(partial.held) == [(0, 3 * BLOCK)]
    # new bytes are taken meanwhile
    partial.write(3 * BLOCK, CONTENT[3 * BLOCK :])
    assert list(await bounded(partial.settled())) == [(BLOCK, 2 * BLOCK)]
    assert list(partial.held) == [(0, BLOCK), (2 * BLOCK, 4 * BLOCK)]
    assert 1 not in partial.digests
    with pytest.raises(DigestMismatch):
        await bounded(partial.commit(b"\1" * 32))
    partial.write(BLOCK, CONTENT[BLOCK : 2 * BLOCK])
    await bounded(partial.commit(b"\1" * 32))
    assert visible(root) == {"report.txt": CONTENT}


@pytest_twisted.ensureDeferred
async def test_commitWaitsForTheHashing(root, opened):
    asked = await suspended(opened(), root)
    with parts(root)[0].open("r+b") as file:
        file.write(b"damage")
    partial = await bounded(opened().open(asked))
    partial.write(3 * BLOCK, CONTENT[3 * BLOCK :])
    with pytest.raises(DigestMismatch):
        await bounded(partial.commit(b"\1" * 32))
    assert visible(root) == {}
    await bounded(partial.abort())


def edited(data: bytes) -> bytes:
    return data.replace(b"blocks", b"blokcs")


def nextVersion(data: bytes) -> bytes:
    from connpool.transfer.stores.recordlines import decodeLine, encodeLine, linesOf

    records = [decodeLine(line) for _, line in linesOf(data)]
    records[0]["version"] = 99
    return b"".join(map(encodeLine, records))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-3],
        lambda data: os.urandom(5000),
        lambda data: b"[" * 100_000 + b"\n",
        lambda data: b"\n" * (20 << 20) + data,
        edited,
        nextVersion,
    ],
    ids=["empty", "half", "torn", "noise", "nested", "huge", "edited", "version"],
)
@pytest_twisted.ensureDeferred
async def test_strangeJournalsLoseNothing(root, opened, change):
    # item 47: what lies there is hashed instead, and nothing is deleted
    asked = await suspended(opened(), root)
    [journal] = journals(root)
    journal.write_bytes(change(journal.read_bytes()))
    partial = await bounded(opened().open(asked))
    await bounded(partial.settled())
    for block, digest in partial.digests.items():
        assert digest == hashlib.sha256(CONTENT[block * BLOCK : (block + 1) * BLOCK]).digest()
    assert parts(root)[0].stat().st_size == 3 * BLOCK
    if change != edited and partial.held.total:
        assert partial.held.total == 3 * BLOCK
    await fill(partial, CONTENT)
    await bounded(partial.commit(b"\1" * 32))
    assert visible(root) == {"report.txt": CONTENT}


@pytest_twisted.ensureDeferred
async def test_sparseExtension(root, opened):
    # item 49: 8 EiB of nothing are neither read nor published
    asked = await suspended(opened(), root)
    [part] = parts(root)
    os.truncate(part, 1 << 42)
    journals(root)[0].write_bytes(b"")
    partial = await bounded(opened().open(asked))
    await fill(partial, CONTENT)
    await bounded(partial.commit(b"\1" * 32))
    assert visible(root) == {"report.txt": CONTENT}


@pytest_twisted.ensureDeferred
async def test_aChangedSourceKeepsItsEqualBlocks(root, opened):
    asked = await suspended(opened(), root)
    grown = attrs.evolve(asked, size=len(CONTENT) + BLOCK, key=b"n" * 32)
    partial = await bounded(opened().open(grown))
    assert list(partial.held) == [(0, 3 * BLOCK)]
    await fill(partial, CONTENT + b"n" * BLOCK)
    await bounded(partial.commit(b"\1" * 32))
    assert visible(root) == {"report.txt": CONTENT + b"n" * BLOCK}


@pytest_twisted.ensureDeferred
async def test_aPartialWithASecondLinkIsNotWritten(root, tmp_path, opened):
    asked = await suspended(opened(), root)
    spy = tmp_path / "spy"
    os.link(parts(root)[0], spy)
    partial = await bounded(opened().open(asked))
    assert list(partial.held) == []
    await fill(partial, b"z" * len(CONTENT))
    await bounded(partial.commit(b"\1" * 32))
    assert spy.read_bytes() == CONTENT[: 3 * BLOCK]


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory"])
@pytest_twisted.ensureDeferred
async def test_thingsAtThePrivateNames(root, tmp_path, opened, kind):
    # items 38 and 40: what is put at the private names is never opened for writing
    store = opened()
    asked = await suspended(store, root)
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for path in (*parts(root), *journals(root)):
        path.unlink()
        if kind == "link":
            path.symlink_to(outside)
        elif kind == "dangling":
            path.symlink_to(tmp_path / "created")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
    if kind == "directory":
        with pytest.raises(StoreError):
            await bounded(store.open(asked))
        return
    partial = await bounded(store.open(asked))
    await fill(partial, CONTENT)
    await bounded(partial.commit(None))
    assert outside.read_text() == "precious"
    assert not (tmp_path / "created").exists()
    assert visible(root) == {"report.txt": CONTENT}


# -- several processes --------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_oneProcessAtATime(root, opened):
    asked = offer(size=len(CONTENT), resumeKey=SECRET)
    mine = opened()
    partial = await bounded(mine.open(asked))
    await fill(partial, CONTENT[:BLOCK])
    theirs = opened()
    with pytest.raises(Busy):
        await bounded(theirs.open(asked))
    [info] = await bounded(theirs.partials())
    assert info.active
    with pytest.raises(Busy):
        await bounded(theirs.delete(info))
    await bounded(partial.suspend())
    partial = await bounded(theirs.open(asked))
    assert list(partial.held) == [(0, BLOCK)]


@pytest_twisted.ensureDeferred
async def test_receiptsAreShared(root, opened):
    asked = offer(size=1, key=b"k" * 32)
    mine, theirs = opened(), opened()
    receipt = await bounded(settled(mine.put(asked, b"x", None)))
    await pause(2 * LOOK_SECONDS)
    assert await bounded(theirs.open(asked)) == receipt
    assert await bounded(opened().open(asked)) == receipt


@pytest_twisted.ensureDeferred
async def test_reservationsAreShared(root, opened):
    # item 16 of the issues: two transfers that would fill the quota together
    mine, theirs = opened(quota=100 << 20), opened(quota=100 << 20)
    first = await bounded(mine.open(offer("a", size=60 << 20)))
    for store in (mine, theirs):
        with pytest.raises(QuotaExceeded):
            await bounded(store.open(offer("b", size=60 << 20)))
    # another principal has a quota of its own
    other = await bounded(theirs.open(offer("b", size=60 << 20, principal="bob")))
    await bounded(first.abort())
    second = await bounded(theirs.open(offer("b", size=60 << 20)))
    with pytest.raises(QuotaExceeded):
        await bounded(mine.open(offer("c", size=60 << 20)))
    for partial in (second, other):
        await bounded(partial.abort())


@pytest_twisted.ensureDeferred
async def test_aDeadProcessReservesNothing(root, opened):
    dead = root / ".connpool/ledger/process-0123456789abcdef"
    store = opened(quota=100 << 20)
    dead.write_text('{"promised":1,"taken":{"anonymous":104857600}}')
    with dead.open("r+") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        with pytest.raises(QuotaExceeded):
            await bounded(store.open(offer(size=1)))
    partial = await bounded(store.open(offer(size=1)))
    assert not dead.exists()
    await bounded(partial.abort())


# -- room ---------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_theOldestSuspendedMakesRoom(root, opened):
    store = opened(quota=6 * BLOCK)
    for number in range(3):
        asked = offer(f"x{number}", size=2 * BLOCK, resumeKey=bytes([number]) * 32)
        partial = await bounded(store.open(asked))
        await fill(partial, b"x" * 2 * BLOCK)
        await bounded(partial.suspend())
        for path in journals(root):
            os.utime(path, (100 + number, 100 + number)) if path.stat().st_mtime > 1e6 else None
    partial = await bounded(store.open(offer("new", size=3 * BLOCK)))
    assert {info.name for info in await bounded(store.partials())} == {"x2"}
    with pytest.raises(QuotaExceeded):
        await bounded(store.open(offer("more", size=4 * BLOCK)))
    await bounded(partial.abort())


@pytest_twisted.ensureDeferred
async def test_partialsOfOnePrincipalAreCounted(root, opened, monkeypatch):
    monkeypatch.setattr(partialdir, "MAX_PARTIALS", 3)
    store = opened()
    held = []
    for number in range(3):
        asked = offer(f"x{number}", size=2 * BLOCK, resumeKey=bytes([number]) * 32)
        held.append(await bounded(store.open(asked)))
        await fill(held[-1], b"x" * BLOCK)
    more = offer("more", size=BLOCK, resumeKey=b"m" * 32)
    with pytest.raises(QuotaExceeded):
        await bounded(store.open(more))
    assert len(parts(root)) == 3
    await bounded(held[1].suspend())
    await bounded((await bounded(store.open(more))).abort())
    assert len(parts(root)) == 2


def test_theFloorStaysFree(root):
    store, clock, syscalls = inline(root, minFree=10 << 20)
    status = os.statvfs(root)
    values = list(status)
    values[4] = (18 << 20) // status.f_frsize  # f_bavail
    syscalls.fstatvfs = lambda fd: os.statvfs_result(values)
    with pytest.raises(NoSpace):
        clock.wait(store.open(offer(size=9 << 20)))
    clock.now += 1
    with pytest.raises(NoSpace):
        store.put(offer(), bytes(9 << 20), None)
    assert store.trouble() is None
    values[4] //= 2
    clock.now += 1
    assert "less than 10485760 bytes free" in store.trouble()
    with pytest.raises(NoSpace):
        clock.wait(store.open(offer(size=1)))
    values[4] *= 2
    first = clock.wait(store.open(offer(size=5 << 20)))
    with pytest.raises(NoSpace):
        clock.wait(store.open(offer(size=5 << 20)))  # would fit alone
    clock.wait(first.abort())
    clock.wait(clock.wait(store.open(offer(size=5 << 20))).abort())
    clock.now += 1
    clock.wait(store.put(offer(), b"small", None))
    clock.wait(store.close())


@pytest_twisted.ensureDeferred
async def test_unknownSizesReserveInSteps(root, opened):
    store = opened(quota=3 * BLOCK)
    store.parts.reservations.step = BLOCK
    incoming = await bounded(store.open(offer(size=None)))
    for number in range(3):
        incoming.write(number * BLOCK, b"x" * BLOCK)
    with pytest.raises(QuotaExceeded):
        incoming.write(3 * BLOCK, b"x")
    # nothing is lost: what came is still there and can be finished
    await bounded(incoming.commit(None))
    assert visible(root) == {"report.txt": b"x" * 3 * BLOCK}


@pytest_twisted.ensureDeferred
async def test_anIdentityMayHaveAQuotaOfItsOwn(root, opened):
    store = opened(quota=4 * BLOCK)

    def of(name, size, quota=None, principal="alice"):
        identity = Identity(principal, quota=quota)
        return offer(name, size=size, principal=principal, identity=identity)

    with pytest.raises(QuotaExceeded):
        await bounded(store.open(of("a", 5 * BLOCK)))
    first = await bounded(store.open(of("a", 5 * BLOCK, 6 * BLOCK)))
    with pytest.raises(QuotaExceeded, match=f"{5 * BLOCK} of {6 * BLOCK} bytes of quota"):
        await bounded(store.open(of("b", 2 * BLOCK, 6 * BLOCK)))
    # what another one has does not count
    second = await bounded(store.open(of("b", 4 * BLOCK, principal="bob")))
    with pytest.raises(QuotaExceeded):
        await bounded(store.open(of("c", 1, 0, principal="carol")))
    await bounded(first.abort())
    await bounded(second.abort())


@pytest_twisted.ensureDeferred
async def test_aSmallQuotaTakesUnknownSizesToo(root, opened):
    store = opened(quota=4 * BLOCK)
    first = await bounded(store.open(offer("a", size=None)))
    second = await bounded(store.open(offer("b", size=None)))
    await fill(first, b"x" * 2 * BLOCK)
    with pytest.raises(QuotaExceeded):
        await fill(second, b"x" * 3 * BLOCK)
    await bounded(first.abort())
    await bounded(second.abort())


# -- order and syncs ----------------------------------------------------------


def test_theOrderOfOneCommit(root):
    store, clock, syscalls = inline(root)
    asked = offer("a/b/x", size=BLOCK, resumeKey=SECRET, key=b"k" * 32, modified=0)
    partial = clock.wait(store.open(asked))
    partial.write(0, CONTENT[:BLOCK])
    del syscalls.log[:]
    clock.wait(partial.commit(b"\1" * 32))
    order = [
        name
        for name in syscalls.names()
        if name in {"fchmod", "utime", "fsync", "write", "fdatasync", "link", "unlink"}
        or (name == "rename")
    ]
    # modes; content; journal "committing"; [its directory]; name; the
    # directories; done record [and the name of its file]; private names
    text = " ".join(order)
    assert re.fullmatch(
        r"(fchmod )?fchmod utime fsync write fdatasync( fsync)*( fchmod)* link( fsync)+"
        r" write fdatasync( fsync)? unlink( unlink)*",
        text,
    ), text
    clock.wait(store.close())


@pytest.mark.parametrize(
    ("durability", "syncs"),
    [("none", set()), ("data", {"fsync"}), ("full", {"fsync", "fdatasync"})],
)
def test_levelsAskForTheirSyncs(root, durability, syncs):
    store, clock, syscalls = inline(root)
    del syscalls.log[:]
    clock.wait(store.put(offer("a/x", durability=durability, key=b"k" * 32), b"x", None))
    assert set(syscalls.names()) & {"fsync", "fdatasync", "syncfs"} == syncs
    clock.wait(store.close())


def test_smallFilesShareTheirSyncs(root):
    store, clock, syscalls = inline(root)
    for round_ in range(2):  # each way once
        del syscalls.log[:]
        waiting = [
            store.put(offer(f"d/{round_}-{number}", key=os.urandom(32)), b"x", None)
            for number in range(100)
        ]
        receipts = [clock.wait(each) for each in waiting]
        assert {receipt.durability for receipt in receipts} == {"full"}
        names = syscalls.names()
        # the directory, and once more the way to it
        assert names.count("fsync") + names.count("syncfs") <= 100 + 4
        assert names.count("fdatasync") == 1
        if not round_:
            assert names.count("syncfs") == 1
            assert names.count("fsync") <= 4
        links = [number for number, name in enumerate(names) if name == "link"]
        assert "syncfs" in names[: links[0]] or names[: links[0]].count("fsync") == 100
        assert "syncfs" not in names[links[0] :]
    assert len(visible(root)) == 200
    clock.wait(store.close())


def test_oneBadFileOfABatchHarmsNoOther(root):
    store, clock, _ = inline(root)
    (root / "file").write_text("")
    waiting = [store.put(offer(name), b"x", None) for name in ("a", "file/b", "c")]
    results = [clock.wait(waiting[0]), failureResultOf(waiting[1]), clock.wait(waiting[2])]
    assert [results[0].name, results[2].name] == ["a", "c"]
    assert "not a directory" in str(results[1])
    assert list((root / ".connpool/temporary").iterdir()) == []
    clock.wait(store.close())


def test_volatileFileSystemsPromiseNothing(tmp_path):
    if not os.path.isdir("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        store, clock, syscalls = inline(directory)
        receipt = clock.wait(store.put(offer(durability="full"), b"x", None))
        assert (receipt.durability, receipt.filesystem) == ("none", "tmpfs")
        assert not set(syscalls.names()) & {"fsync", "fdatasync", "syncfs"}
        clock.wait(store.close())


# -- slow disks ---------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_slowWritesMoveToThreadsAndBack(root, opened):
    slow = [True]

    def before(name, arguments, keywords):
        if name == "pwrite" and slow[0] and len(arguments[1]) == BLOCK:
            time.sleep(0.05)

    store = opened(syscalls=Recorded(before))
    partial = await bounded(store.open(offer(size=64 * BLOCK)))
    assert partial.write(0, b"x" * BLOCK) is None  # found out by trying
    waiting = partial.write(BLOCK, b"x" * BLOCK)
    assertNoResult(waiting)
    with pytest.raises(StoreError):
        partial.write(BLOCK, b"y" * BLOCK)  # it is on its way
    await bounded(waiting)
    slow[0] = False
    inThreads = 0
    for block in range(2, 64):
        waiting = partial.write(block * BLOCK, b"x" * BLOCK)
        if waiting is not None:
            inThreads += 1
            await bounded(waiting)
    assert 0 < inThreads < 62
    await bounded(partial.commit(None))
    assert visible(root) == {"report.txt": b"x" * 64 * BLOCK}


@pytest_twisted.ensureDeferred
async def test_takeOverWaitsForWritesInThreads(root, opened):
    store = opened()
    asked = offer(size=3 * BLOCK, resumeKey=SECRET)
    older = await bounded(store.open(asked))
    store.parts.threads.latency.inline = False
    writing = older.write(0, b"x" * BLOCK)
    opening = store.open(asked)
    with pytest.raises(ConflictTakeover):
        older.write(BLOCK, b"x" * BLOCK)
    await bounded(writing)
    newer = await bounded(opening)
    assert list(newer.held) == [(0, BLOCK)]
    await bounded(newer.abort())


@pytest_twisted.ensureDeferred
async def test_takeOverOfWhatIsBeingPublished(root, opened):
    # the ACK was lost while the file was synced: the newer connection gets the receipt
    store = opened()
    asked = offer(size=BLOCK, resumeKey=SECRET, key=b"k" * 32)
    older = await bounded(store.open(asked))
    older.write(0, b"x" * BLOCK)
    committing = older.commit(b"\1" * 32)
    opening = store.open(asked)
    receipt = await bounded(committing)
    assert await bounded(opening) == receipt
    assert visible(root) == {"report.txt": b"x" * BLOCK}


# -- age ----------------------------------------------------------------------


def test_oldPartialsAreRemovedWhenThatIsSure(root):
    now = [1e9]
    store, clock, _ = inline(root, now=lambda: now[0], ttl=1000)
    asked = offer(size=2 * BLOCK, resumeKey=SECRET)
    for name in ("suspended", "active"):
        one = attrs.evolve(asked, resumeKey=name.encode() * 2, name=RelativeName.parse(name))
        partial = clock.wait(store.open(one))
        partial.write(0, b"x" * BLOCK)
        partial.record(0, b"\0" * 32)
        if name == "suspended":
            clock.wait(partial.suspend())
    for path in journals(root):
        os.utime(path, (1e9, 1e9))
    now[0] = 1e9 + 2000
    clock.wait(store.reap())
    assert len(parts(root)) == 2  # the clock may have jumped
    now[0] = 1e9
    clock.now += 3600
    clock.wait(store.reap())
    now[0] = 1e9 + 2000
    clock.now += 3599
    clock.wait(store.reap())
    clock.now += 3599
    clock.wait(store.reap())
    assert len(parts(root)) == 2
    clock.now += 1
    clock.wait(store.reap())
    assert [info.name for info in clock.wait(store.partials())] == ["active"]
    clock.wait(store.close())


def test_reapingHappensByItself(root):
    store, clock, syscalls = inline(root)
    clock.now += local_.RECOVERY_SECONDS
    assert store.trouble() is None
    assert "partials" not in syscalls.names()
    assert any(name == "listdir" for name in syscalls.names())
    clock.wait(store.close())


# -- faults -------------------------------------------------------------------


def failing(name, number, times=1, skip=0):
    """
    Let C{times} calls of C{name} fail with C{number}, after C{skip} that do not.
    """
    left = [skip + times]

    def before(called, arguments, keywords):
        if called == name and left[0]:
            left[0] -= 1
            if left[0] < times:
                raise OSError(number, os.strerror(number))

    return before


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_aFailedSyncIsNeverTriedAgain(root, number):
    # item 50: the kernel may call the pages clean after it told once
    store, clock, syscalls = inline(root)
    asked = offer(size=BLOCK, resumeKey=SECRET, key=b"k" * 32)
    partial = clock.wait(store.open(asked))
    partial.write(0, b"x" * BLOCK)
    syscalls.before = failing("fsync", number)
    with pytest.raises(SyncFailed):
        clock.wait(partial.commit(b"\1" * 32))
    clock.wait(partial.suspend())
    assert visible(root) == {}
    assert parts(root) == []
    partial = clock.wait(store.open(asked))
    assert list(partial.held) == []
    clock.wait(partial.abort())
    clock.wait(store.close())


def test_aFailedSyncOfABatch(root):
    store, clock, syscalls = inline(root)
    syscalls.before = failing("fsync", errno.EIO)
    waiting = store.put(offer(key=b"k" * 32), b"x", None)
    with pytest.raises(SyncFailed):
        clock.wait(waiting)
    assert visible(root) == {}
    clock.wait(store.put(offer(key=b"k" * 32), b"x", None))
    assert visible(root) == {"report.txt": b"x"}
    clock.wait(store.close())


def test_aFailedCheckpointPoisons(root):
    store, clock, syscalls = inline(root)
    partial = clock.wait(store.open(offer(size=2 * BLOCK, resumeKey=SECRET)))
    partial.write(0, b"x" * BLOCK)
    partial.record(0, b"\0" * 32)
    syscalls.before = failing("fdatasync", errno.EIO)
    with pytest.raises(StoreError):
        clock.wait(partial.checkpoint())
    with pytest.raises(StoreError):
        partial.write(BLOCK, b"x")
    clock.wait(partial.suspend())
    assert parts(root) == []
    clock.wait(store.close())


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_aFailedWritePoisons(root, number):
    store, clock, syscalls = inline(root)
    partial = clock.wait(store.open(offer(size=2 * BLOCK, resumeKey=SECRET)))
    partial.write(0, b"x" * BLOCK)
    partial.record(0, b"\0" * 32)
    syscalls.before = failing("pwrite", number)
    with pytest.raises(StoreError):
        partial.write(BLOCK, b"x" * BLOCK)
    with pytest.raises(StoreError):
        clock.wait(partial.commit(None))
    clock.wait(partial.suspend())
    assert parts(root) == []
    clock.wait(store.close())


@pytest.mark.parametrize("where", ["write", "commit"])
def test_aFullDiskLosesNothing(root, where):
    store, clock, syscalls = inline(root)
    partial = clock.wait(store.open(offer(size=2 * BLOCK, resumeKey=SECRET)))
    partial.write(0, CONTENT[:BLOCK])
    if where == "write":
        syscalls.before = failing("pwrite", errno.ENOSPC)
        with pytest.raises(NoSpace) as full:
            partial.write(BLOCK, CONTENT[BLOCK : 2 * BLOCK])
        assert full.value.retryable
    partial.write(BLOCK, CONTENT[BLOCK : 2 * BLOCK])
    if where == "commit":
        syscalls.before = failing("link", errno.ENOSPC)
        with pytest.raises(NoSpace):
            clock.wait(partial.commit(None))
    clock.wait(partial.commit(None))
    assert visible(root) == {"report.txt": CONTENT[: 2 * BLOCK]}
    clock.wait(store.close())


@pytest.mark.parametrize(("number", "left"), [(errno.ENOSPC, 1), (errno.EACCES, 0)])
def test_aDiskThatIsFullAtTheEndKeepsThePartial(root, number, left):
    store, clock, syscalls = inline(root)
    asked = offer(size=BLOCK, resumeKey=SECRET)
    coming = Deferred.fromCoroutine(Reception(store, clock).begin(asked, "peer"))
    incoming = clock.wait(coming)
    incoming.write(0, CONTENT[:BLOCK])
    incoming.partial.record(0, hashlib.sha256(CONTENT[:BLOCK]).digest())
    syscalls.before = failing("link", number, times=9)
    with pytest.raises(NoSpace if left else StoreError):
        clock.wait(Deferred.fromCoroutine(incoming.commit(b"\1" * 32)))
    assert len(parts(root)) == left
    clock.wait(store.close())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("durability", ["none", "full"])
def test_tooManyOpenFiles(root, number, durability):
    store, clock, syscalls = inline(root)
    refused = {"put": 0, "open": 0}
    for way in refused:
        # whichever open() it is: of the receipts, the private file, a directory
        for skip in range(20):
            fault = failing("open", number, skip=skip)
            syscalls.before = fault
            asked = offer(
                f"{way}{skip}/b",
                durability=durability,
                key=os.urandom(32),
                resumeKey=os.urandom(32),
            )
            try:
                if way == "put":
                    clock.wait(store.put(asked, b"x", None))
                else:
                    clock.wait(clock.wait(store.open(asked)).abort())
            except Busy:
                refused[way] += 1
    syscalls.before = None
    assert min(refused.values()) >= 2
    assert len(visible(root)) == 20 - refused["put"]
    assert list((root / ".connpool/temporary").iterdir()) == parts(root) == []
    clock.wait(store.close())


def test_shortWritesGoOn(root):
    store, clock, syscalls = inline(root)
    whole = syscalls.pwrite
    syscalls.pwrite = lambda fd, data, offset: whole(fd, memoryview(data)[:1000], offset)
    partial = clock.wait(store.open(offer(size=BLOCK)))
    partial.write(0, memoryview(CONTENT)[:BLOCK])
    clock.wait(partial.commit(None))
    assert visible(root) == {"report.txt": CONTENT[:BLOCK]}
    clock.wait(store.close())


@pytest.mark.parametrize("missing", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
@pytest.mark.parametrize("ifExists", ["rename", "refuse", "replace"])
def test_fileSystemsWithoutLinks(root, missing, ifExists):
    clock = InlineReactor()
    syscalls = Recorded(failing("link", missing, times=1 << 30))
    store = LocalStore(clock, root, syscalls=syscalls, threads=clock)
    values = {"resumeKey": SECRET, "ifExists": ifExists, "size": BLOCK}
    partial = clock.wait(store.open(offer("a", **values)))
    partial.write(0, b"x" * BLOCK)
    clock.wait(partial.commit(None))
    clock.wait(store.put(offer("b", ifExists=ifExists), b"y", None))
    assert visible(root) == {"a": b"x" * BLOCK, "b": b"y"}
    if ifExists == "rename":
        receipt = clock.wait(store.put(offer("b", ifExists="rename"), b"z", None))
        assert receipt.name == "b (1)"
    assert parts(root) == []
    clock.wait(store.close())


def test_noWayToPublishWithoutReplacing(root):
    clock = InlineReactor()

    def before(name, arguments, keywords):
        if name == "link":
            raise OSError(errno.EPERM, "")
        if name == "renameNoReplace":
            raise OSError(errno.EINVAL, "")

    store = LocalStore(clock, root, syscalls=Recorded(before), threads=clock)
    with pytest.raises(StoreError, match="--if-exists replace"):
        clock.wait(store.put(offer("b"), b"z", None))
    clock.wait(store.put(offer("b", ifExists="replace"), b"z", None))
    clock.wait(store.close())


def test_movedRootStopsNewOffers(root, tmp_path):
    # item 45: transfers under way go on through the held descriptor
    store, clock, _ = inline(root)
    partial = clock.wait(store.open(offer(size=1)))
    root.rename(tmp_path / "moved")
    root.mkdir()
    clock.now += 2
    assert "moved away" in store.trouble()
    with pytest.raises(StoreError, match="moved away"):
        clock.wait(store.open(offer()))
    with pytest.raises(StoreError, match="moved away"):
        store.put(offer(), b"", None)
    partial.write(0, b"x")
    clock.wait(partial.commit(None))
    assert (tmp_path / "moved/report.txt").read_bytes() == b"x"
    assert list(root.iterdir()) == []
    root.rmdir()
    (tmp_path / "moved").rename(root)
    clock.now += 2
    assert store.trouble() is None
    clock.wait(store.close())


def test_directoriesThatMoveWhileTheyAreHeld(root, tmp_path):
    # "mv received/d archive" must not take along what comes later
    store, clock, _ = inline(root)
    clock.wait(store.put(offer("d/a", durability="none"), b"1", None))
    (root / "d").rename(tmp_path / "archive")
    time.sleep(2 * LOOK_SECONDS)
    clock.wait(store.put(offer("d/b", durability="none"), b"2", None))
    (tmp_path / "archive/a").unlink()
    (tmp_path / "archive").rmdir()
    # one that is gone is noticed at once
    (root / "d/b").rename(tmp_path / "b")
    (root / "d").rmdir()
    clock.wait(store.put(offer("d/c", durability="none"), b"3", None))
    assert visible(root) == {"d/c": b"3"}
    clock.wait(store.close())


# -- the source ---------------------------------------------------------------


def test_noPathReachesTheKernel():
    """
    Only the layer calls the kernel, and every name it takes is one component.
    """
    directory = Path(local_.__file__).parent
    for path in directory.glob("*.py"):
        # but what a program of the operator is told
        text = path.read_text().replace("os.path.abspath(self._path)", "")
        assert not re.search(r"\bos\.path\b|pathlib|\bPath\(|shutil", text), path
        if path.name not in {"memory.py", "syscalls.py"}:  # memory opens a file without a name
            calls = r"open|link|rename|replace|unlink|remove|mkdir|makedirs|stat|listdir|scandir"
            assert not re.search(rf"\bos\.({calls}|write|truncate|chmod|utime)\(", text), path
        if path.name not in {"memory.py", "syscalls.py"}:
            assert '"/".join' not in text, path
            assert not re.search(r'f"[^"\n]*\{[^"\n]*\}/', text), path


def test_everyNameIsOneComponent(root):
    store, clock, syscalls = inline(root)
    for level in ("none", "full"):
        clock.wait(store.put(offer("a/b/c", durability=level), level.encode(), None))
        partial = clock.wait(store.open(offer("a/b/d", size=BLOCK, resumeKey=SECRET)))
        partial.write(0, CONTENT[:BLOCK])
        partial.record(0, b"\0" * 32)
        clock.wait(partial.checkpoint())
        clock.wait(partial.commit(None))
    clock.wait(store.reap())
    looked = 0
    for name, arguments, keywords, _ in syscalls.log[1:]:
        for argument in arguments:
            if isinstance(argument, str) and argument != str(root):
                looked += 1
                assert "/" not in argument, (name, argument)
                assert any(key.endswith("dir_fd") for key in keywords), (name, argument)
    assert looked > 50
    clock.wait(store.close())


def test_aWriteIsOneCall(root):
    """
    What a large file costs: one C{pwrite} of borrowed memory for each run.
    """
    store, clock, syscalls = inline(root)
    store.parts.threads.latency.took = lambda seconds: None  # whatever else this machine does
    run = memoryview(bytearray(1 << 20))
    for asked in (offer(size=4 << 20), offer(size=4 << 20, resumeKey=SECRET)):
        partial = clock.wait(store.open(asked))
        del syscalls.log[:]
        for number in range(4):
            assert partial.write(number << 20, run) is None
        assert syscalls.names() == ["pwrite"] * 4
        assert all(arguments[1] is run for _, arguments, _, _ in syscalls.log)
        clock.wait(partial.abort())
    clock.wait(store.close())


def test_aBatchHoldsFewDescriptors(root):
    held = []

    def look(name, arguments, keywords):
        if name == "link":
            held.append(len(os.listdir("/proc/self/fd")))

    store, clock, syscalls = inline(root)
    syscalls.before = look
    files = [
        SmallFile(offer(f"f{number}", durability="none", key=os.urandom(32)), b"x", None)
        for number in range(100)
    ]
    before = len(os.listdir("/proc/self/fd"))
    assert len(clock.wait(settled(store.putAll(files)))) == 100
    assert max(held) <= before + PASS_FILES + 5
    clock.wait(store.close())


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_theUmaskNeitherGivesNorTakes(root, umask):
    """
    Of several files in one pass too, of which the first alone shows what the umask took.
    """
    before = os.umask(umask)
    try:
        store, clock, _ = inline(root, fileMode=0o644, keepExec=True)
        files = [
            SmallFile(offer(f"x{n}", durability="none", executable=n % 2 == 1), b"x", None)
            for n in range(6)
        ]
        assert all(each.status == "stored" for each in store.putAll(files))
        modes = [stat.S_IMODE((root / f"x{n}").stat().st_mode) for n in range(6)]
        assert modes == [0o644, 0o755] * 3
        clock.wait(store.close())
    finally:
        os.umask(before)


def test_aSmallFileCostsFewCalls(root):
    store, clock, syscalls = inline(root)
    for number in range(3):
        del syscalls.log[:]
        asked = offer(f"d/x{number}", durability="none", modified=0, key=bytes([number]) * 32)
        store.put(asked, b"x", None)
        now = syscalls.names()
    file = ["open", "pwrite", "utime", "link", "close", "write", "unlink"]
    # and now and then a look at what may have changed
    assert [name for name in now if name not in {"stat", "fstat", "fstatvfs"}] == file
    clock.wait(store.close())
