"""
What a local store tells of its files, and to whom.
"""

import os
import time

import pytest
import pytest_twisted
from twisted.internet import reactor
from zope.interface.verify import verifyObject

from connpool.interfaces import IUpdateStore
from connpool.transfer import LocalStore, RelativeName
from connpool.transfer.digests import DIGESTS, rootOf
from connpool.transfer.records import DIFFERS, SAME, UNTOLD, AskedFile
from connpool.transfer.stores.comparison import OWN_SECONDS, sameTime
from tests.helpers.waiting import bounded
from tests.transfer.stores.kit import offer, stored

SHA = DIGESTS["sha256"]
SECOND = 10**9


def rootOfSmall(data):
    return rootOf(SHA, len(data), 1 << 20, [SHA.of(data)] * bool(data))


def put(store, name, data, principal="alice", **more):
    asked = offer(name, principal=principal, key=os.urandom(32), modified=SECOND, **more)
    return stored(store, asked, data, rootOfSmall(data))


def asks(name, size, modified=SECOND, root=b""):
    return AskedFile(RelativeName.parse(name), size, modified, root)


async def told(store, *files, principal="alice"):
    return list(await bounded(store.compare(principal, files, "sha256")))


@pytest.fixture
def store(root):
    made = LocalStore(reactor, root)
    yield made
    pytest_twisted.blockon(bounded(made.close()))


@pytest_twisted.ensureDeferred
async def test_ofOnesOwnFiles(store, root):
    verifyObject(IUpdateStore, store)
    assert await told(store, asks("a/f", 4)) == [UNTOLD]
    put(store, "a/f", b"data")
    put(store, "g", b"other")
    assert await told(
        store,
        asks("a/f", 4),
        asks("a/f", 5),
        asks("a/f", 4, SECOND + 1),
        asks("a/f", 4, root=rootOfSmall(b"data")),
        asks("a/f", 4, root=rootOfSmall(b"dato")),
        asks("g", 5),
        asks("h", 5),
    ) == [SAME, DIFFERS, DIFFERS, SAME, DIFFERS, SAME, UNTOLD]
    (root / "g").unlink()
    (root / "a/f").unlink()
    (root / "a").rmdir()
    assert await told(store, asks("g", 5), asks("a/f", 4)) == [DIFFERS, DIFFERS]
    (root / "g").symlink_to("/etc/passwd")
    assert await told(store, asks("g", 5), asks("g", 5, root=b"r")) == [UNTOLD, UNTOLD]
    assert store.rememberedBytes


@pytest_twisted.ensureDeferred
async def test_ofOthers(store, root):
    put(store, "f", b"data", "bob")
    assert await told(store, asks("f", 4)) == [UNTOLD]
    # the same content was sent by alice, then something else by bob
    put(store, "f", b"data", "alice")
    assert await told(store, asks("f", 4)) == [SAME]
    put(store, "f", b"date", "bob", ifExists="replace")
    assert await told(store, asks("f", 4), asks("f", 4, root=rootOfSmall(b"date"))) == [UNTOLD] * 2
    assert await told(store, asks("f", 4), principal="bob") == [SAME]


@pytest_twisted.ensureDeferred
async def test_whatSomebodyPutInItsPlace(root):
    """
    By hand, or by a protocol that gives no receipts: of that nobody is told anything.
    """
    later = [0.0]
    store = LocalStore(reactor, root, now=lambda: time.time() - later[0])
    later[0] = OWN_SECONDS + 30
    put(store, "f", b"data")
    assert await told(store, asks("f", 4)) == [UNTOLD]
    later[0] = 0.0
    put(store, "g", b"data")
    assert await told(store, asks("g", 4)) == [SAME]
    await bounded(store.close())


@pytest_twisted.ensureDeferred
async def test_receiptsOfOthersProcesses(store, root):
    other = LocalStore(reactor, root)
    for number in range(300):
        put(other, f"f{number}", b"x")
        if number == 100:
            assert await told(store, asks("f7", 1)) == [SAME]
    assert await told(store, *(asks(f"f{number}", 1) for number in range(301))) == [
        *[SAME] * 300,
        UNTOLD,
    ]
    await bounded(other.close())
    again = LocalStore(reactor, root)
    assert await told(again, asks("f299", 1)) == [SAME]
    await bounded(again.close())


@pytest_twisted.ensureDeferred
async def test_namesThatDifferInCase(root):
    store = LocalStore(reactor, root, names="posix")
    put(store, "Makefile", b"one")
    put(store, "makefile", b"other")
    assert await told(store, asks("Makefile", 3), asks("makefile", 5), asks("MAKEFILE", 3)) == [
        SAME,
        SAME,
        UNTOLD,
    ]
    await bounded(store.close())


@pytest.mark.parametrize(
    ("filesystem", "asked", "there", "same"),
    [
        ("ext4", 5 * SECOND + 1, 5 * SECOND + 1, True),
        ("ext4", 5 * SECOND + 1, 5 * SECOND, False),
        ("ext3", 5 * SECOND + 1, 5 * SECOND, True),
        ("ext3", 6 * SECOND + 1, 5 * SECOND, False),
        ("vfat", 5 * SECOND + 999, 4 * SECOND, True),
        ("vfat", 5 * SECOND, 6 * SECOND, True),
        ("vfat", 8 * SECOND, 6 * SECOND, False),
        ("ntfs", 5 * SECOND + 99, 5 * SECOND, True),
        ("ntfs", 5 * SECOND + 100, 5 * SECOND, False),
    ],
)
def test_timesThatAFileSystemKeeps(filesystem, asked, there, same):
    assert sameTime(asked, there, filesystem) is same
