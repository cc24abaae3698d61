"""
CaseIndex that somebody else put there, took away or made too many of, and
what looking for them costs.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace

import pytest
from zope.interface.verify import verifyObject

from connpool.errors import Busy, Exists
from connpool.interfaces import IRememberingStore
from connpool.transfer import LocalStore
from connpool.transfer.receive.reception import Reception
from connpool.transfer.stores import MemoryStore
from connpool.transfer.stores import caseindex as neighbours_
from connpool.transfer.stores.caseindex import (
    LARGE_LISTING_SECONDS,
    LISTING_SECONDS,
    REST_FACTOR,
    CaseIndex,
)
from connpool.transfer.stores.directories import LOOK_SECONDS, Directories
from connpool.transfer.stores.receiptlog import RECENT_BYTES
from connpool.transfer.syscalls import Syscalls
from tests.transfer.stores.kit import InlineReactor, Recorded, offer, stored, visible

#: More than a tick of the clock that the kernel takes C{ctime} from.
TICK = 0.02


class Receiving:
    """
    A store without threads, in front of a clock that a test moves.

    @ivar listing: seconds that a listing takes.
    """

    def __init__(self, root, **values):
        self.root = root
        self.now = 0.0
        self.listing = 0.0
        self.clock = InlineReactor()
        self.syscalls = Recorded(self.before, lazy=True)
        self.store = LocalStore(
            self.clock, root, syscalls=self.syscalls, threads=self.clock, **values
        )

        self._scandir = self.syscalls.scandir
        self.syscalls.scandir = self.scandir
        #: what was looked at each time that somebody looked for neighbours
        self.listed = []

    def before(self, name, arguments, keywords):
        if name == "scandir":
            self.now += self.listing

    @contextmanager
    def scandir(self, fd):
        self.listed.append([])
        with self._scandir(fd) as entries:
            yield (self.listed[-1].append(entry.name) or entry for entry in entries)

    def put(self, name, rule="rename", durability="none"):
        """
        @return: the name it got.
        """
        asked = offer(name, ifExists=rule, durability=durability)
        return self.clock.wait(self.store.put(asked, name.encode(), None)).name


@pytest.fixture
def receiving(root, monkeypatch):
    made = Receiving(root)
    monkeypatch.setattr(neighbours_, "monotonic", lambda: made.now)
    yield made
    made.clock.wait(made.store.close())


# -- what others do -----------------------------------------------------------


def test_whatWasThereBefore(root, receiving):
    (root / "README").write_text("by hand")
    (root / "Docs").mkdir()
    assert receiving.put("readme") == "readme (1)"
    with pytest.raises(Exists, match='"Docs"'):
        receiving.put("docs/x")
    assert receiving.put("Docs/x") == "Docs/x"


def test_whatTheOperatorPutsThere(root, receiving):
    assert receiving.put("x") == "x"
    (root / "README").write_text("by hand")
    (root / "Docs").mkdir()
    receiving.now += LISTING_SECONDS
    assert receiving.put("readme") == "readme (1)"
    with pytest.raises(Exists, match='"Docs"'):
        receiving.put("docs/x")
    assert (root / "README").read_text() == "by hand"


@pytest.mark.parametrize("rule", ["rename", "refuse", "replace"])
def test_whatAConsumerTakesAwayIsFreeAtOnce(root, receiving, rule):
    for name in ("README", "readme", "Readme"):
        assert receiving.put(name, rule) == name
        (root / name).unlink()
    assert receiving.put("Docs/x", rule) == "Docs/x"
    (root / "Docs/x").unlink()
    (root / "Docs").rmdir()
    assert receiving.put("docs/x", rule) == "docs/x"
    assert receiving.put("docs/X", rule="rename") == "docs/X (1)"


@contextmanager
def entries(names):
    yield [SimpleNamespace(name=name) for name in names]


@pytest.mark.parametrize("found", [["A", "a"], ["a", "A"]])
def test_neighboursThatWereThereBefore(root, receiving, found):
    # a store with names="posix" made them, perhaps; each is only itself
    receiving.syscalls.scandir = lambda fd: entries(found)
    for name in found:
        (root / name).write_text(name)
    assert receiving.put("a") == "a"  # a duplicate
    assert receiving.put("a", "replace") == "a"
    assert visible(root) == {"A": b"A", "a": b"a"}
    os.unlink(root / "a")
    os.link(root / "A", root / "a")  # as a file system that folds case has it
    receiving.syscalls.scandir = lambda fd: entries(["A"])
    receiving.now += LISTING_SECONDS
    with pytest.raises(Exists, match='"A"'):
        receiving.put("a", "replace")
    assert (root / "A").read_text() == "A"


def test_namesThatAreNotText(root, receiving):
    (root / os.fsdecode(b"caf\xc9")).write_text("latin-1")
    (root / "CAFÉ").write_text("composed")
    assert receiving.put("cafe\u0301") == "cafe\u0301 (1)"
    assert receiving.put("caf\ufffd") == "caf\ufffd"


def test_aDirectoryThatWasReplaced(root, receiving):
    assert receiving.put("d/README") == "d/README"
    (root / "d").rename(root / "old")
    (root / "d").mkdir()
    (root / "d/Makefile").write_text("by hand")
    time.sleep(2 * LOOK_SECONDS)
    assert receiving.put("d/readme") == "d/readme"
    assert receiving.put("d/makefile") == "d/makefile (1)"
    time.sleep(2 * LOOK_SECONDS)
    assert receiving.put("old/readme") == "old/readme (1)"


def test_oneDirectoryHeldTwice(root):
    # by another way, a bind mount; or opened again while a thread has it
    neighbours = CaseIndex(Syscalls())
    fd = os.open(root, os.O_RDONLY)
    trees = [Directories(Syscalls(), fd, 0o750) for _ in range(2)]
    one, other = (tree.acquire(("d",), create=True) for tree in trees)
    assert one.fd != other.fd
    for number, directory in enumerate((one, other)):
        neighbours.claim(directory, f"{number}", lambda: None)
    neighbours.claim(one, "A", lambda: (root / "d/A").touch())
    with pytest.raises(Exists):
        neighbours.claim(other, "a", lambda: (root / "d/a").touch())
    for tree, directory in zip(trees, (one, other), strict=True):
        tree.release(directory)
        tree.close()
    os.close(fd)


def test_ourOwnNamesDoNotDisturb(root, receiving):
    (root / ".connpool-0123456789abcdef").write_text("a copy on its way to another mount")
    for name in ("connpool", "Connpool.x", ".conn"):
        assert receiving.put(name) == name


def test_tooManyOpenFiles(root, receiving):
    # a listing that failed is not an empty one
    (root / "README").write_text("by hand")

    def before(name, arguments, keywords):
        if name == "scandir":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    receiving.syscalls.before = before
    for _ in range(2):
        with pytest.raises(Busy):
            receiving.put("readme")
    receiving.syscalls.before = None
    assert receiving.put("readme") == "readme (1)"
    assert len(visible(root)) == 2


# -- threads ------------------------------------------------------------------


def inFiftyThreads(race):
    """
    Call C{race} at once, with fifty spellings of one name.
    """
    spellings = ["".join(each) for each in product(*zip("reader", "READER", strict=True))][:50]
    barrier = threading.Barrier(len(spellings))

    def begin(name):
        barrier.wait()
        race(name)

    threads = [threading.Thread(target=begin, args=(name,)) for name in spellings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("rule", ["refuse", "rename", "replace"])
@pytest.mark.parametrize("directory", ["", "d/"])
def test_fiftyThreadsAndOneName(root, rule, directory):
    names, refused = [], []

    def before(name, arguments, keywords):
        if name in {"link", "rename"}:
            time.sleep(0.002)  # let the others look meanwhile

    clock = InlineReactor()
    store = LocalStore(clock, root, syscalls=Recorded(before, lazy=True), threads=clock)

    def race(name):
        asked = offer(f"{directory}{name}", ifExists=rule)
        try:
            names.append(stored(store, asked, name.encode(), None).name)
        except Exists as error:
            refused.append(error)

    inFiftyThreads(race)
    assert sorted(names) == sorted(visible(root))
    assert len(names) + len(refused) == 50
    assert len({name.lower() for name in names}) == len(names)
    assert len(names) == (50 if rule == "rename" else 1)
    clock.wait(store.close())


def test_fiftyThreadsAndOneDirectory(root):
    clock = InlineReactor()
    store = LocalStore(clock, root, threads=clock)
    names, refused = [], []

    def race(name):
        try:
            names.append(stored(store, offer(f"{name}/x"), b"x", None).name)
        except Exists as error:
            refused.append(error)

    inFiftyThreads(race)
    assert names == list(visible(root))
    assert (len(names), len(refused)) == (1, 49)
    clock.wait(store.close())


# -- what it costs ------------------------------------------------------------


def test_nobodyMakesUsList(root, receiving):
    for _ in range(100):
        receiving.put("A", "replace")
        with pytest.raises(Exists):
            receiving.put("a", "replace")
    (root / "A").unlink()
    assert receiving.put("a") == "a"
    assert len(receiving.listed) == 1


def test_listingIsRationed(root, receiving):
    # many directories, in which others are busy too
    receiving.listing = 0.01
    for number in range(400):
        directory = f"{number % 20}"
        receiving.put(f"{directory}/{number}")
        (root / directory / f"other-{number}").touch()
        receiving.now += 0.05
    turns = receiving.now / (REST_FACTOR * receiving.listing)
    assert turns / 2 < len(receiving.listed) - 1 - 20 <= turns


def test_afterAListingThereIsNone(root, receiving):
    receiving.put("x")
    (root / "y").touch()
    receiving.listing = 0.1
    receiving.now += LISTING_SECONDS
    receiving.put("a")
    assert len(receiving.listed) == 2
    (root / "README").touch()
    receiving.now += REST_FACTOR * receiving.listing - 0.01
    assert receiving.put("readme") == "readme"  # nobody looked
    assert len(receiving.listed) == 2
    (root / "readme").unlink()
    # directories that are new to us are looked at all the same
    (root / "d").mkdir()
    (root / "d/README").touch()
    assert receiving.put("d/readme") == "d/readme (1)"
    receiving.now += REST_FACTOR * receiving.listing
    assert receiving.put("Readme") == "Readme (1)"


def test_slowListingsAreSparedWhileOnlyWeChangeTheDirectory(root, receiving):
    receiving.listing = 0.1
    for number in range(20):
        receiving.put(f"{number}")
        receiving.now += 100.0
    assert len(receiving.listed) == 1
    time.sleep(TICK)
    (root / "README").touch()
    assert receiving.put("readme") == "readme (1)"
    assert len(receiving.listed) == 2
    # what somebody did between two looks was not ours
    receiving.now += 100.0
    receiving.put("20")
    time.sleep(TICK)
    (root / "Makefile").touch()
    receiving.put("21")
    receiving.now += 100.0
    assert receiving.put("makefile") == "makefile (1)"


def test_posixLooksAtNothing(root):
    receiving = Receiving(root, names="posix")
    for name in ("x", "X", "d/x", "D/x"):
        assert receiving.put(name) == name
    assert receiving.listed == []
    receiving.clock.wait(receiving.store.close())


# -- bounds -------------------------------------------------------------------


def test_tooManyNames(root, receiving, monkeypatch):
    monkeypatch.setattr(neighbours_, "DIRECTORY_NAMES", 4)
    (root / "d").mkdir()
    for name in ("README", "1", "2", "3", "4", "5"):
        (root / "d" / name).touch()
    assert receiving.put("d/readme") == "d/readme"
    assert [len(found) for found in receiving.listed] == [5]  # no more of them is looked at
    for _ in range(50):
        receiving.now += 1.0
        receiving.put("d/Readme", "replace")
    assert len(receiving.listed) == 1
    for name in ("readme", "Readme", "1", "2", "3"):
        (root / "d" / name).unlink()
    receiving.now += LARGE_LISTING_SECONDS
    assert receiving.put("d/ReadMe") == "d/ReadMe (1)"
    # and our own may become too many
    assert receiving.put("d/6") == "d/6"
    assert receiving.put("d/ReadMe") == "d/ReadMe"


def test_namesOfAllDirectoriesAreCounted(root, monkeypatch):
    monkeypatch.setattr(neighbours_, "DIRECTORY_NAMES", 4)
    monkeypatch.setattr(neighbours_, "TOTAL_NAMES", 8)
    monkeypatch.setattr(neighbours_, "KEPT_DIRECTORIES", 5)
    monkeypatch.setattr(neighbours_, "REST_FACTOR", 10**9)
    neighbours = CaseIndex(Syscalls())
    fd = os.open(root, os.O_RDONLY)
    tree = Directories(Syscalls(), fd, 0o750)
    held = [tree.acquire((f"{number}",), create=True) for number in range(9)]
    for number, directory in enumerate(held):
        for name in ("A", "b", "c"):
            (root / f"{number}" / name).touch()
        with pytest.raises(Exists):
            neighbours.claim(directory, "a", lambda: None)
    assert [each.index.names is not None for each in held] == [False] * 7 + [True] * 2
    assert len(neighbours._indexes) == 5
    assert neighbours._counted == 6
    # what was dropped is not listed again at once
    neighbours.claim(held[0], "a", lambda: None)
    for directory in held:
        tree.release(directory)
    tree.close()
    os.close(fd)


def test_namesTakeTheRoomThatReceiptsLeave(root, monkeypatch):
    monkeypatch.setattr(neighbours_, "REST_FACTOR", 0)
    monkeypatch.setattr(neighbours_, "LISTING_SECONDS", 0.0)
    room = 9 * neighbours_.NAME_BYTES
    neighbours = CaseIndex(Syscalls(), lambda: room)
    fd = os.open(root, os.O_RDONLY)
    tree = Directories(Syscalls(), fd, 0o750)
    held = [tree.acquire((f"{number}",), create=True) for number in range(3)]
    for number, directory in enumerate(held):
        for name in ("A", "b", "c"):
            (root / f"{number}" / name).touch()
        neighbours.claim(directory, "d", lambda: None)
    assert neighbours.takenBytes == 9 * neighbours_.NAME_BYTES
    # receipts came meanwhile: the names that were looked at longest ago make way
    room = 4 * neighbours_.NAME_BYTES
    neighbours.claim(held[1], "e", lambda: None)
    assert [each.index.names is not None for each in held] == [False, True, False]
    assert neighbours.takenBytes <= room
    room = -1
    neighbours.claim(held[1], "f", lambda: None)
    assert neighbours.takenBytes == 0
    for directory in held:
        tree.release(directory)
    tree.close()
    os.close(fd)


def test_whatIsRememberedIsCounted(receiving):
    assert verifyObject(IRememberingStore, receiving.store)
    reception = Reception(receiving.store, receiving.clock)
    for number in range(10):
        keyed = offer(f"d/{number}", key=bytes([number]) * 32)
        receiving.clock.wait(receiving.store.put(keyed, b"x", None))
    stats = reception.stats()
    assert stats.rememberedBytes == receiving.store.rememberedBytes
    assert stats.rememberedBytes >= 10 * RECENT_BYTES
    assert Reception(MemoryStore(), receiving.clock).stats().rememberedBytes == 0
