"""
From the last byte to the receipt, when something fails on the way.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from connpool.errors import StoreError, TransferError
from connpool.transfer import LocalStore, RelativeName, syscalls
from connpool.transfer.records import DURABILITIES, SmallFile
from connpool.transfer.stores import commit, directories
from connpool.transfer.stores.directories import Directories
from connpool.transfer.stores.publish import Source
from connpool.transfer.syscalls import filesystemType
from tests.helpers.waiting import bounded, failureResultOf
from tests.transfer.stores.deaths import hidden, lookLater, opened, published
from tests.transfer.stores.kit import (
    BLOCK,
    InlineReactor,
    Recorded,
    fill,
    offer,
    settled,
    stored,
    visible,
)
from tests.transfer.stores.onpartials import target
from tests.transfer.stores.test_attacks import mounted

KEY = b"k" * 32
SECRET = b"s" * 32
LEVELS = pytest.mark.parametrize("level", ["none", "full"])


def inline(root, before=None, **values):
    """
    A store without threads, its reactor and its calls.
    """
    clock = InlineReactor()
    calls = Recorded(before, lazy=True)
    values.setdefault("seconds", clock.seconds)
    return LocalStore(clock, root, syscalls=calls, threads=clock, **values), clock, calls


def private(root):
    return sorted(path.name for path in (root / ".connpool/temporary").iterdir())


def isDone(arguments):
    return "/done/" in os.readlink(f"/proc/self/fd/{arguments[0]}")


class Faults:
    """
    Calls that fail while C{on} is true.
    """

    def __init__(self, name, number=errno.EIO, where=lambda arguments: True):
        self._name = name
        self._number = number
        self._where = where
        self.on = False

    def __call__(self, name, arguments, keywords):
        if self.on and name == self._name and self._where(arguments):
            raise OSError(self._number, os.strerror(self._number))


def fullLog():
    """
    There is room for files and none for receipts.
    """
    return Faults("write", errno.ENOSPC, isDone)


# -- the file system ----------------------------------------------------------


def strongest(store):
    """
    The level that is promised to those who ask for the best.
    """
    return DURABILITIES[store.parts.commit.level(offer(durability="best"))]


@pytest.mark.parametrize("way", ["put", "batch", "commit", "renamed"])
def test_theReceiptNamesWhereTheFileIs(root, way):
    (root / "m").mkdir()
    with mounted(root / "m", "-t", "tmpfs", "none"):
        (root / "m/d").mkdir()
        store, clock, _ = inline(root, keepExec=True)
        for directory, promised in (("m", "none"), ("m/d", "none"), (".", "full")):
            name = "x" if directory == "." else f"{directory}/x"
            asked = offer(name, size=4)
            if way == "put":
                receipt = stored(store, asked, b"data", None)
            elif way == "batch":
                receipt = clock.wait(store.put(asked, b"data", None))
            elif way == "renamed":
                receipt = store.parts.commit.wasRenamed(asked, 4, None)
            else:
                partial = clock.wait(store.open(attrs.evolve(asked, resumeKey=SECRET)))
                partial.write(0, b"data")
                receipt = clock.wait(partial.commit(None))
            assert receipt.durability == promised
            expected = "tmpfs" if promised == "none" else filesystemOf(root)
            assert receipt.filesystem == expected
        clock.wait(store.close())


@pytest.mark.parametrize("asked", ["best", "full"])
@pytest.mark.parametrize("way", ["put", "batch", "commit", "renamed"])
def test_eachDirectoryReachesWhatItsOwnFileSystemDoes(root, way, asked):
    """
    A disk inside a directory in memory, and memory inside a disk.
    """
    synced = set()

    def note(name, arguments, keywords):
        if name == "fsync":
            synced.add(target(arguments[0]))

    disk, elsewhere = root / "disk", root / "elsewhere"
    disk.mkdir()
    elsewhere.mkdir()
    with mounted(elsewhere, "-t", "tmpfs", "none"):
        (elsewhere / "d").mkdir()
        with mounted(elsewhere / "d", "--bind", str(disk)):
            store, clock, _ = inline(elsewhere, note)
            assert strongest(store) == "none"
            for name, promised in (("d/x", "full"), ("x", "none"), ("d/y", "full")):
                synced.clear()
                wanted = offer(name, size=4, durability=asked)
                if way == "put":
                    receipt = stored(store, wanted, b"data", None)
                elif way == "batch":
                    receipt = clock.wait(settled(store.put(wanted, b"data", None)))
                elif way == "renamed":
                    receipt = store.parts.commit.wasRenamed(wanted, 4, None)
                else:
                    partial = clock.wait(store.open(attrs.evolve(wanted, resumeKey=SECRET)))
                    partial.write(0, b"data")
                    receipt = clock.wait(partial.commit(None))
                assert receipt.durability == promised, name
                assert (f"{elsewhere}/d" in synced) == (promised == "full")
            clock.wait(store.close())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("way", ["one", "batch"])
def test_directoriesThatCannotBeSyncedReachData(root, way, number):
    """
    Some file systems sync files only; an error of the disk is another thing.
    """
    faults = Faults(
        "fsync", number, lambda arguments: os.path.isdir(f"/proc/self/fd/{arguments[0]}")
    )
    faults.on = True
    store, clock, _ = inline(root, faults)
    assert strongest(store) == "data"
    receipt = clock.wait(settled(store.put(offer("a", durability="best"), b"x", None)))
    assert receipt.durability == "data"
    clock.wait(store.close())
    # another mount than the one that was tried at the start
    faults.on = False
    store, clock, _ = inline(root, faults)
    assert strongest(store) == "full"
    faults.on = True
    if way == "one":
        receipt = stored(store, offer("b", durability="best"), b"x", None)
    else:
        receipt = clock.wait(settled(store.put(offer("b", durability="full"), b"x", None)))
    assert receipt.durability == "data"
    made = clock.wait(store.makeDirectory(RelativeName.parse("d"), 5, "full"))
    assert (made.made, made.durability) == (True, "data")
    clock.wait(store.close())


def test_anErrorOfTheDiskIsNoLowerLevel(root):
    faults = Faults(
        "fsync", errno.EIO, lambda arguments: os.path.isdir(f"/proc/self/fd/{arguments[0]}")
    )
    store, clock, _ = inline(root, faults)
    faults.on = True
    with pytest.raises(TransferError):
        clock.wait(settled(store.put(offer("a", durability="best"), b"x", None)))
    clock.wait(store.close())


def filesystemOf(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return filesystemType(fd)
    finally:
        os.close(fd)


def test_theTypeIsFoundOutOncePerMount(root, monkeypatch):
    looked = []
    monkeypatch.setattr(directories, "filesystemType", lambda fd: looked.append(fd) or "ext4")
    store, clock, _ = inline(root)
    del looked[:]
    for number in range(30):
        receipt = clock.wait(store.put(offer(f"a{number}/b/c/x", durability="none"), b"x", None))
        assert receipt.filesystem == "ext4"
    assert looked == []
    clock.wait(store.close())


@pytest.fixture
def noProc(monkeypatch):
    def missing(path, *arguments, **keywords):
        raise FileNotFoundError(path)

    monkeypatch.setattr(syscalls, "open", missing, raising=False)


@pytest.mark.usefixtures("noProc")
def test_withoutProcTheKernelIsAsked():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        assert filesystemOf(directory) == "tmpfs"
        store, clock, _ = inline(directory)
        receipt = clock.wait(store.put(offer(), b"x", None))
        assert (receipt.durability, receipt.filesystem) == ("none", "tmpfs")
        clock.wait(store.close())


@pytest.mark.usefixtures("noProc")
def test_whatNobodyKnowsIsNotDurable(root, monkeypatch):
    monkeypatch.setattr(syscalls, "_MAGIC", {})
    store, clock, _ = inline(root)
    receipt = clock.wait(store.put(offer(), b"x", None))
    assert (receipt.durability, receipt.filesystem) == ("none", "unknown")
    assert strongest(store) == "none"
    clock.wait(store.close())


# -- the done record ----------------------------------------------------------


def slowToNote(root):
    """
    @return: a store that notes a receipt only after C{go}; what is set when it is about to; C{go}.
    """
    syncing, go = threading.Event(), threading.Event()

    def before(name, arguments, keywords):
        if name == "fdatasync" and isDone(arguments):
            syncing.set()
            assert go.wait(10)

    return LocalStore(reactor, root, syscalls=Recorded(before), minFree=0), syncing, go


@pytest_twisted.ensureDeferred
async def test_theReactorDoesNotWaitForTheDoneLog(root):
    store, syncing, go = slowToNote(root)
    first = store.put(offer("a", key=KEY), b"a", None)
    await bounded(deferToThread(syncing.wait, 10))
    began = time.monotonic()
    asked = offer("b", key=b"2" * 32, durability="none")
    receipt = store.put(asked, b"b", None)
    assert store.put(asked, b"b", None) == receipt
    partial = await bounded(store.open(offer("c", key=b"3" * 32, resumeKey=SECRET)))
    again = store.put(offer("a", key=KEY), b"a", None)
    assert time.monotonic() - began < 5
    # whoever repeats the file waits for the disk as well
    assert not first.called
    assert not again.called
    go.set()
    assert await bounded(first) == await bounded(again)
    await bounded(partial.abort())
    await bounded(store.close())


@pytest_twisted.ensureDeferred
async def test_theReactorDoesNotWaitForACommitThatIsAskedForAgain(root):
    store, syncing, go = slowToNote(root)
    asked = offer("a", size=1, key=KEY, resumeKey=SECRET)
    partial = await bounded(store.open(asked))
    partial.write(0, b"x")
    committing = partial.commit(b"r" * 32)
    await bounded(deferToThread(syncing.wait, 10))
    began = time.monotonic()
    opening = store.open(asked)
    assert time.monotonic() - began < 5
    assert not opening.called
    go.set()
    assert await bounded(committing) == await bounded(opening)
    await bounded(store.close())


@pytest.mark.parametrize("way", ["put", "batch"])
@pytest.mark.parametrize(
    ("level", "fault"),
    [("none", "write"), ("full", "write"), ("full", "directory"), ("full", "fdatasync")],
)
def test_theEvidenceStaysUntilTheDoneRecord(root, way, level, fault):
    faults = {
        "write": fullLog(),
        "directory": Faults("fsync", where=lambda a: os.path.isdir(f"/proc/self/fd/{a[0]}")),
        "fdatasync": Faults("fdatasync", where=isDone),
    }[fault]
    store, clock, _ = inline(root, faults)
    asked = offer("d/a", durability=level, key=KEY)

    def store_():
        if way == "put":
            return stored(store, asked, b"x", None)
        [result] = store.parts.commit.batch([SmallFile(asked, b"x", None)])
        if isinstance(result, Failure):
            result.raiseException()
        return result

    faults.on = True
    for _ in range(2):
        with pytest.raises(TransferError):
            store_()
        assert visible(root) == {"d/a": b"x"}
        assert len(private(root)) == 1
    # a consumer takes it, and the sender comes again
    (root / "d/a").rename(root / "consumed")
    faults.on = False
    receipt = store_()
    assert (receipt.name, receipt.status) == ("d/a", "stored")
    assert visible(root) == {"consumed": b"x"}
    assert private(root) == []
    assert store.parts.commit.finished(asked, receipt.size) == receipt
    clock.wait(store.close())


def test_noFileIsBegunOnceTheTimeIsUp(root, monkeypatch):
    """
    One that came twice is answered where it came first, and those after the time are not, also
    where they are the same as one before it.
    """
    store, clock, _ = inline(root)
    monkeypatch.setattr(commit, "PASS_FILES", 2)
    ticks = iter(range(100))
    monkeypatch.setattr(commit, "perf_counter", lambda: next(ticks))

    def small(name):
        asked = offer(name, durability="none", key=name.encode() * 32)
        return SmallFile(asked, name.encode(), None)

    files = [small(name) for name in "aabcdeafg"]
    outcomes = store.parts.commit.batch(files, 2)
    assert [each.name for each in outcomes] == ["a", "a", "b", "c", "d"]
    assert visible(root) == {name: name.encode() for name in "abcd"}
    assert private(root) == []
    outcomes = store.parts.commit.batch(files[5:], 200)
    assert [each.name for each in outcomes] == ["e", "a", "f", "g"]
    assert store.parts.commit.batch(files, 0) == []
    clock.wait(store.close())


@pytest.mark.parametrize("nth", [1, 2, 4, 6])
@pytest.mark.parametrize(
    ("call", "directory"), [("link", "d"), ("pwrite", ".connpool/temporary"), ("utime", "d")]
)
def test_aDirectoryVanishesWithinABatch(root, nth, call, directory):
    """
    It is made again: what was published in it before is gone with it, and nothing else.
    """
    store, clock, syscalls = inline(root)
    called = []

    def before(name, arguments, keywords):
        if name == call:
            called.append(name)
            if len(called) == nth:
                shutil.rmtree(root / directory)

    syscalls.before = before
    files = [
        SmallFile(offer(f"{where}/{n}", durability="none", key=os.urandom(32)), b"x", None)
        for where, n in zip("cddddddd", range(8), strict=True)
    ]
    outcomes = store.parts.commit.batch(files)
    syscalls.before = None
    assert [each.name for each in outcomes] == [file.offer.name.path for file in files]
    there = visible(root).keys()
    assert there >= {file.offer.name.path for file in files[nth + (call == "link") :]}
    assert len(there) >= len(files) - nth
    assert private(root) == []
    clock.wait(store.close())


@pytest.mark.parametrize("way", ["put", "batch"])
def test_whatWasNotPublishedLeavesNothing(root, way):
    store, clock, _ = inline(root, faults := Faults("link"))
    faults.on = True
    for level in ("none", "full"):
        asked = offer("a", durability=level, key=KEY)
        if way == "put":
            with pytest.raises(StoreError):
                stored(store, asked, b"x", None)
        else:
            [result] = store.parts.commit.batch([SmallFile(asked, b"x", None)])
            assert isinstance(result.value, StoreError)
    assert visible(root) == {}
    assert private(root) == []
    clock.wait(store.close())


# -- tidying up ---------------------------------------------------------------


@pytest.mark.parametrize("call", ["unlink", "close"])
def test_whatWasNotedIsAcknowledged(root, call):
    # one that fails, of 50
    failed = []

    def before(name, arguments, keywords):
        if armed and name == call and not failed and not isPublic(arguments):
            failed.append(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def isPublic(arguments):
        return isinstance(arguments[0], int) and ".connpool" not in os.readlink(
            f"/proc/self/fd/{arguments[0]}"
        )

    armed = False
    store, clock, _ = inline(root, before)
    before_ = len(os.listdir("/proc/self/fd"))
    armed = True
    waiting = [store.put(offer(f"f{n}", key=bytes([n]) * 32), b"x", None) for n in range(50)]
    receipts = [clock.wait(each) for each in waiting]
    assert [receipt.name for receipt in receipts] == [f"f{n}" for n in range(50)]
    assert failed == [call]
    assert len(private(root)) == (1 if call == "unlink" else 0)
    # a close() that failed has closed on Linux; this one was never made
    assert len(os.listdir("/proc/self/fd")) == before_ + (1 if call == "close" else 0)
    del failed[:]
    receipt = stored(store, offer("g", key=b"g" * 32), b"x", None)
    assert failed == [call]
    assert store.parts.commit.finished(offer("g", key=b"g" * 32), receipt.size) == receipt
    armed = False
    clock.wait(store.close())


def test_aDirectoryThatCannotBeSyncedHarmsNoOther(root):
    (root / "bad").mkdir()
    (root / "good").mkdir()
    bad = Faults("fsync", where=lambda a: os.readlink(f"/proc/self/fd/{a[0]}").endswith("/bad"))
    store, clock, _ = inline(root, bad)
    bad.on = True
    names = ["bad/1", "good/1", "bad/2", "good/2"]
    waiting = [store.put(offer(name, key=name.encode().ljust(32)), b"x", None) for name in names]
    clock.wait(None)
    assert [clock.wait(waiting[n]).name for n in (1, 3)] == ["good/1", "good/2"]
    for number in (0, 2):
        assert isinstance(failureResultOf(waiting[number]), StoreError)
    bad.on = False
    for name in names:
        again = offer(name, key=name.encode().ljust(32))
        assert clock.wait(store.put(again, b"x", None)).name == name
    assert sorted(visible(root)) == sorted(names)
    assert private(root) == []
    clock.wait(store.close())


@LEVELS
def test_aNameThatRenameTookAwayIsNotOurs(root, level):
    # another process may have begun a new file under it
    store, clock, _ = inline(root)
    other = os.open(root / ".connpool/temporary", os.O_RDONLY)
    for fresh in (True, False):
        fd = os.open("p", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=other)
        os.write(fd, b"mine")
        source = Source(fd, other, "p", 4, fresh=fresh)
        append = store.parts.commit._receiptLog.append

        def meanwhile(*arguments, append=append, **keywords):
            (root / ".connpool/temporary/p").write_bytes(b"theirs")
            append(*arguments, **keywords)

        store.parts.commit._receiptLog.append = meanwhile
        asked = offer("a", durability=level, ifExists="replace", key=KEY)
        store.parts.commit.one(asked, source, None)
        store.parts.commit._receiptLog.append = append
        assert visible(root) == {"a": b"mine"}
        assert (root / ".connpool/temporary/p").read_bytes() == b"theirs"
        (root / ".connpool/temporary/p").unlink()
        os.close(fd)
    os.close(other)
    clock.wait(store.close())


def test_aPrivateNameThatLeadsElsewhereStays(root):
    store, clock, _ = inline(root)
    other = os.open(root / ".connpool/temporary", os.O_RDONLY)
    fd = os.open("p", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=other)
    source = Source(fd, other, "p", 0)
    append = store.parts.commit._receiptLog.append

    def meanwhile(*arguments, **keywords):
        (root / ".connpool/temporary/p").unlink()
        (root / ".connpool/temporary/p").write_bytes(b"theirs")
        append(*arguments, **keywords)

    store.parts.commit._receiptLog.append = meanwhile
    store.parts.commit.one(offer("a", key=KEY), source, None)
    assert (root / ".connpool/temporary/p").read_bytes() == b"theirs"
    os.close(fd)
    os.close(other)
    clock.wait(store.close())


# -- other mounts -------------------------------------------------------------


class Died(BaseException):
    pass


@pytest.mark.parametrize("way", ["put", "batch", "keyless", "commit"])
def test_aCopyThatWasNotFinishedIsFound(root, way):
    """
    Without the sender's help: the directories of users are not searched.
    """
    dead = []

    def before(name, arguments, keywords):
        if dead or (
            name == "fchmod" and "/.connpool-" in os.readlink(f"/proc/self/fd/{arguments[0]}")
        ):
            dead.append(name)
            raise Died

    store, clock, calls = opened(root, before, apart=True)
    asked = offer("d/a", key=None if way == "keyless" else KEY, size=BLOCK)
    with pytest.raises(Died):
        if way == "commit":
            partial = clock.wait(store.open(attrs.evolve(asked, resumeKey=SECRET)))
            partial.write(0, b"x" * BLOCK)
            clock.wait(partial.commit(b"r" * 32))
        elif way == "batch":
            clock.wait(store.put(asked, b"x" * BLOCK, None))
        else:
            stored(store, asked, b"x" * BLOCK, None)
    assert len(hidden(root)) == 1
    for _ in range(2):  # who had the files open is gone
        store, clock, calls = opened(root, apart=True)
        lookLater(store, clock)
        listed = {
            os.readlink(f"/proc/self/fd/{a[0]}")
            for name, a, *_ in calls.log
            if name in {"listdir", "scandir"}
        }
        assert all("/.connpool" in path for path in listed)
        clock.wait(store.close())
    assert hidden(root) == []
    assert [name for name in private(root) if name.startswith("copy")] == []


@pytest.mark.parametrize("noted", [b"", b"\n", b"junk", b"\n00000000 []\n"])
def test_aNoteOfNothing(root, noted):
    store, clock, _ = inline(root)
    (root / ".connpool/temporary/copy-0123456789abcdef").write_bytes(noted)
    (root / ".connpool/temporary/copy-x").write_bytes(noted)
    temporary = os.open(root / ".connpool/temporary", os.O_RDONLY)
    for name in ("copy-0123456789abcdef", "copy-x", "copy-0000000000000000"):
        store.parts.recovery._publisher.remove(name, temporary)
    os.close(temporary)
    assert private(root) == []
    clock.wait(store.close())


@pytest.mark.parametrize("gone", ["directory", "copy", "moved"])
def test_aNoteOfWhatIsGone(root, tmp_path, gone):
    store, clock, _ = opened(root, apart=True)
    faults = Faults("unlink")
    store.parts.syscalls.before, apart = None, store.parts.syscalls.before

    def both(*arguments):
        faults(*arguments)
        apart(*arguments)

    store.parts.syscalls.before = both
    faults.on = True
    receipt = clock.wait(store.put(offer("d/a", key=KEY), b"x", None))
    assert receipt.name == "d/a"  # what could not be removed is no failure
    faults.on = False
    [copy] = hidden(root)
    if gone == "directory":
        (root / copy).unlink()
        (root / "d/a").unlink()
        (root / "d").rmdir()
    elif gone == "copy":
        (root / copy).unlink()
    else:
        (root / "d").rename(tmp_path / "moved")
        (root / "d").write_text("")
    [note] = [name for name in private(root) if name.startswith("copy")]
    temporary = os.open(root / ".connpool/temporary", os.O_RDONLY)
    store.parts.recovery._publisher.remove(note, temporary)
    os.close(temporary)
    assert [name for name in private(root) if name.startswith("copy")] == []
    clock.wait(store.close())


# -- the tree -----------------------------------------------------------------


def test_aDirectoryIsNamedWhenItsWholeWayIs(root):
    # the sync of an ancestor that failed is not forgotten
    broken = Faults("fsync", where=lambda a: os.readlink(f"/proc/self/fd/{a[0]}") == str(root))
    store, clock, calls = inline(root, broken)
    broken.on = True
    for name in ("one", "two"):
        with pytest.raises(StoreError):
            clock.wait(store.put(offer(f"a/b/{name}"), b"x", None))
    broken.on = False
    del calls.log[:]
    receipt = clock.wait(store.put(offer("a/b/three"), b"x", None))
    assert receipt.durability == "full"
    synced = [a[0] for name, a, *_ in calls.log if name == "fsync"]
    assert store._root in synced
    clock.wait(store.close())


def test_nobodyIsToldBeforeTheWholeWayIsSynced(root):
    inRoot, go = threading.Event(), threading.Event()
    order = []

    def before(name, arguments, keywords):
        if name == "fsync" and arguments[0] == fd:
            inRoot.set()
            go.wait(5)
            order.append("synced")

    fd = os.open(root, os.O_RDONLY)
    held = Directories(Recorded(before, lazy=True), fd, 0o750)
    directories = [held.acquire(("a", "b"), create=True) for _ in range(2)]

    def sync(directory):
        held.sync(directory)
        order.append("acknowledged")

    threads = [threading.Thread(target=sync, args=(each,)) for each in directories]
    threads[0].start()
    assert inRoot.wait(5)
    threads[1].start()
    threads[1].join(0.2)
    assert order == []
    go.set()
    for thread in threads:
        thread.join()
    assert order.index("acknowledged") > order.index("synced")
    for each in directories:
        held.release(each)
    held.close()
    os.close(fd)


@pytest.mark.parametrize("way", ["stat", "put"])
def test_walksThatFailHoldNoDescriptors(root, way):
    store, clock, _ = inline(root)
    for number in range(300):
        (root / f"d{number}").mkdir()
        (root / f"d{number}/file").write_text("")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        asked = offer(f"d{number}/file/x", durability="none")
        if way == "stat":
            assert clock.wait(store.stat(asked.name)) is None
        else:
            with pytest.raises(TransferError):
                clock.wait(settled(store.put(asked, b"x", None)))
    assert len(os.listdir("/proc/self/fd")) <= before + 65
    clock.wait(store.close())


@pytest_twisted.ensureDeferred
async def test_aLargeFileIntoAnotherMount(root):
    (root / "m").mkdir()
    with mounted(root / "m", "-t", "tmpfs", "none"):
        store = LocalStore(reactor, root)
        content = os.urandom(3 * BLOCK + 5)
        partial = await bounded(store.open(offer("m/x", size=len(content), resumeKey=SECRET)))
        await fill(partial, content)
        receipt = await bounded(partial.commit(b"r" * 32))
        assert (receipt.durability, receipt.filesystem) == ("none", "tmpfs")
        receipt = await bounded(settled(store.put(offer("m/y"), b"y", None)))
        assert (receipt.durability, receipt.filesystem) == ("none", "tmpfs")
        assert published(root) == visible(root) == {"m/x": content, "m/y": b"y"}
        assert private(root) == []
        await bounded(store.close())
