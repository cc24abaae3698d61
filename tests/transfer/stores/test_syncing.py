"""
Two syncs for a batch, and what is done where they cannot be shared.
"""

from __future__ import annotations

import errno
import os

import pytest

from connpool.errors import TransferError
from connpool.transfer import RelativeName
from connpool.transfer.records import SmallFile
from connpool.transfer.stores import directories
from tests.helpers.waiting import failureResultOf
from tests.transfer.stores.kit import offer, visible
from tests.transfer.stores.onpartials import inline, target

MANY = 20


@pytest.fixture
def onExt4(monkeypatch):
    """
    The tests may lie on anything.
    """
    monkeypatch.setattr(directories, "filesystemType", lambda fd: "ext4")


def files(places, durability="full"):
    return [
        SmallFile(offer(f"{place}/x", key=os.urandom(32), durability=durability), b"x", None)
        for place in places
    ]


def spread():
    return [f"d/{number}" for number in range(MANY)]


class Told:
    """
    What became of each call, and the calls that fail.
    """

    def __init__(self, failing=()):
        self.failing = dict(failing)
        self.synced = []

    def __call__(self, name, arguments, keywords):
        if name in {"fsync", "syncfs", "link", "fdatasync"}:
            self.synced.append(name)
        where = target(arguments[0]) if name == "fsync" else ""
        for (call, end), number in self.failing.items():
            if name == call and where.endswith(end):
                raise OSError(number, os.strerror(number))
        if name == "fsync":
            self.synced[-1] = f"fsync {where}"


def order(told):
    """
    What was done, in a row once.
    """
    names = [each.split()[0] for each in told.synced]
    return [name for at, name in enumerate(names) if at == 0 or name != names[at - 1]]


def test_manyDirectoriesAreSyncedTogether(root, onExt4):
    told = Told()
    store, clock, _ = inline(root, told)
    for round_ in range(2):
        del told.synced[:]
        receipts = clock.wait(store.putAll(files([f"{where}-{round_}" for where in spread()])))
        assert {receipt.durability for receipt in receipts} == {"full"}
        # the contents, the names, the receipts
        assert order(told)[:4] == ["syncfs", "link", "syncfs", "fdatasync"]
        assert told.synced.count("syncfs") == 2
        assert len([each for each in told.synced if each.startswith("fsync")]) <= 1 - round_
    assert len(visible(root)) == 2 * MANY
    clock.wait(store.close())


def test_eachDirectoryIsSyncedOnceWhereTheyCannotBeSyncedTogether(root, onExt4):
    told = Told({("syncfs", ""): errno.ENOSYS})
    store, clock, _ = inline(root, told)
    receipts = clock.wait(store.putAll(files(spread())))
    assert {receipt.durability for receipt in receipts} == {"full"}
    last = len(told.synced) - told.synced[::-1].index("link")
    names = [each for each in told.synced[last:] if each.startswith("fsync")]
    ways = [f"fsync {root}/{where}" for where in spread()]
    assert set(names) >= {*ways, f"fsync {root}/d", f"fsync {root}"}
    assert len(set(names)) == len(names)
    # and the way to them is known from now on
    del told.synced[:]
    clock.wait(store.putAll(files(["d/0"])))
    assert f"fsync {root}/d" not in told.synced
    clock.wait(store.close())


@pytest.mark.parametrize("kind", ["fuse.sshfs", "cifs", "nfs4"])
def test_whatSyncfsLeavesToOthersIsSyncedOneByOne(root, monkeypatch, kind):
    monkeypatch.setattr(directories, "filesystemType", lambda fd: kind)
    told = Told()
    store, clock, _ = inline(root, told)
    del told.synced[:]
    receipts = clock.wait(store.putAll(files(spread())))
    assert {(each.durability, each.filesystem) for each in receipts} == {("full", kind)}
    assert "syncfs" not in told.synced
    assert told.synced.index("link") == MANY
    clock.wait(store.close())


def test_aDirectoryThatFailsIsThatOfItsFilesOnly(root, onExt4):
    told = Told({("syncfs", ""): errno.EIO})
    store, clock, _ = inline(root, told)
    told.failing["fsync", "/d/7"] = errno.EIO
    told.failing["fsync", "/d/8"] = errno.EINVAL
    outcomes = clock.wait(store.putAll(files(spread())))
    assert isinstance(outcomes[7].value, TransferError)
    assert outcomes[8].durability == "data"
    rest = outcomes[:7] + outcomes[9:]
    assert [each.durability for each in rest] == ["full"] * (MANY - 2)
    # the sender comes again
    told.failing.clear()
    again = clock.wait(store.putAll(files(["d/7"])))
    assert [each.durability for each in again] == ["full"]
    clock.wait(store.close())


def test_theWayThereIsSyncedAgainWhenThatFailed(root, onExt4):
    told = Told({("fsync", "/d"): errno.EIO})
    store, clock, _ = inline(root, told)
    [outcome] = clock.wait(store.putAll(files(["d/e"])))
    assert isinstance(outcome.value, TransferError)
    told.failing.clear()
    del told.synced[:]
    [receipt] = clock.wait(store.putAll(files(["d/f"])))
    assert receipt.durability == "full"
    assert f"fsync {root}/d" in told.synced
    assert f"fsync {root}" in told.synced
    clock.wait(store.close())


# -- directories that are asked for -------------------------------------------


def asked(store, names, durability="full"):
    return [
        store.makeDirectory(RelativeName.parse(name), 10**9 * number, durability)
        for number, name in enumerate(names, 1)
    ]


def test_directoriesOfOneTurnShareTheirSyncs(root, onExt4):
    told = Told()
    store, clock, _ = inline(root, told)
    (root / "file").write_text("")
    del told.synced[:]
    names = [*spread(), "d", "file/x"]
    waiting = asked(store, names)
    made = [clock.wait(each) for each in waiting[:-1]]
    assert [(each.made, each.durability) for each in made] == [(True, "full")] * MANY + [
        (False, "full")
    ]
    assert "not a directory" in str(failureResultOf(waiting[-1]))
    assert told.synced == ["syncfs"]
    # one that is made in another later would have changed its time
    times = [(root / name).stat().st_mtime for name in names[:-1]]
    assert times == [float(number) for number in range(1, MANY + 2)]
    clock.wait(store.close())


def test_directoriesInMemoryAreNotSynced(root, onExt4):
    told = Told()
    store, clock, _ = inline(root, told)
    del told.synced[:]
    made = [clock.wait(each) for each in asked(store, spread(), "none")]
    assert {each.durability for each in made} == {"none"}
    assert told.synced == []
    clock.wait(store.close())


def test_aDirectoryThatCannotBeSyncedFailsAlone(root, onExt4):
    told = Told({("syncfs", ""): errno.EIO, ("fsync", "/d/7"): errno.EIO})
    store, clock, _ = inline(root, told)
    waiting = asked(store, spread())
    assert clock.wait(waiting[0]).durability == "full"
    assert isinstance(failureResultOf(waiting[7]), TransferError)
    assert [clock.wait(each).durability for each in waiting[8:]] == ["full"] * (MANY - 8)
    clock.wait(store.close())


def test_aDirectoryWhoseTimeCannotBeSetIsLetGoOf(root, onExt4):
    def failing(name, arguments, keywords):
        if name == "utime":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    store, clock, calls = inline(root, failing)
    [one] = asked(store, ["d"])
    with pytest.raises(TransferError):
        clock.wait(one)
    made = clock.wait(store.makeDirectory(RelativeName.parse("e"), None, "full"))
    assert made.made
    clock.wait(store.close())
    names = calls.names()
    assert names.count("open") == names.count("close")
