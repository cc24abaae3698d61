"""
The contract of L{connpool.interfaces.IReadableStore}, on every store that has it.
"""

import os
import socket

import pytest
import pytest_twisted
from twisted.internet import reactor
from zope.interface.verify import verifyObject

from connpool.errors import NotFound
from connpool.interfaces import IReadableStore
from connpool.transfer import RelativeName
from connpool.transfer.stores import LocalStore, MemoryStore, reading
from connpool.transfer.stores.s3.store import S3Store
from tests.helpers.waiting import bounded
from tests.transfer.stores.kit import offer, storeBy
from tests.transfer.stores.s3.engine import MemoryEngine

#: A time that every store keeps.
MODIFIED = 1_000_000_000_000_000_000


class MemoryUnderTest:
    #: whether a listing has the time that a sender gave
    listsTimes = True

    def __init__(self, root):
        self.store = MemoryStore()


class LocalUnderTest:
    listsTimes = True

    def __init__(self, root):
        self.store = LocalStore(reactor, root)


class S3UnderTest:
    # when they were stored
    listsTimes = False

    def __init__(self, root):
        self.store = S3Store(reactor, MemoryEngine(), prefix="in/", spoolDirectory=str(root))


@pytest.fixture(
    params=[MemoryUnderTest, LocalUnderTest, S3UnderTest], ids=["memory", "local", "s3"]
)
def tested(request, root):
    """
    A store that can be read; another one joins by a class here.
    """
    case = request.param(root)
    yield case
    pytest_twisted.blockon(bounded(case.store.close()))


@pytest.fixture
def readable(tested):
    return tested.store


def name(text):
    return RelativeName.parse(text, profile="posix")


async def put(store, path, content=b"content"):
    await storeBy("put", store, offer(path, modified=MODIFIED, durability="none"), content)


async def listed(store, directory=None, after="", limit=1000):
    where = None if directory is None else name(directory)
    return await bounded(store.listing(where, after, limit))


async def missing(d):
    try:
        await bounded(d)
    except NotFound as e:
        return str(e)
    raise AssertionError("it was found")


def test_itSaysSo(readable):
    verifyObject(IReadableStore, readable)


@pytest_twisted.ensureDeferred
async def test_aFileIsReadInParts(readable):
    content = os.urandom(100_000)
    await put(readable, "d/a", content)
    found = await bounded(readable.read(name("d/a"), 0, 1000))
    assert (found.data, found.size, found.modified) == (content[:1000], 100_000, MODIFIED)
    assert len(found.version) == 16
    rest = await bounded(readable.read(name("d/a"), 1000, 1 << 40))
    assert rest.data == content[1000:]
    assert rest.version == found.version
    for start, end in ((100_000, 100_001), (1 << 40, 1 << 41), (5, 5), (9, 5)):
        assert (await bounded(readable.read(name("d/a"), start, end))).data == b""


@pytest_twisted.ensureDeferred
async def test_notMoreThanFourMiBAtOnce(readable):
    await put(readable, "large", bytes(5 << 20))
    found = await bounded(readable.read(name("large"), 1, 5 << 20))
    assert len(found.data) == 4 << 20


@pytest_twisted.ensureDeferred
async def test_anotherContentIsAnotherVersion(readable):
    await put(readable, "a", b"1")
    before = await bounded(readable.read(name("a"), 0, 1))
    asked = offer("a", modified=MODIFIED, durability="none", ifExists="replace")
    await storeBy("put", readable, asked, b"2")
    after = await bounded(readable.read(name("a"), 0, 1))
    assert after.data == b"2"
    assert after.version != before.version


@pytest_twisted.ensureDeferred
async def test_aDirectoryInPages(tested):
    readable = tested.store
    names = [f"{number:03}" for number in range(25)] + ["B", "a", "é"]
    for each in names:
        await put(readable, f"d/{each}")
    await put(readable, "d/sub/deep")
    names = sorted([*names, "sub"], key=str.encode)
    found, after = [], ""
    for _ in range(10):
        page = await listed(readable, "d", after, 10)
        assert len(page.entries) <= 10
        found += page.entries
        if not page.more:
            break
        after = page.entries[-1].name
    assert [each.name for each in found] == names
    kinds = {each.name: (each.directory, each.size) for each in found}
    assert kinds["a"] == (False, 7)
    assert kinds["sub"] == (True, 0)
    times = {each.modified for each in found if not each.directory}
    assert times == {MODIFIED} if tested.listsTimes else MODIFIED not in times
    top = await listed(readable)
    assert [(each.name, each.directory) for each in top.entries] == [("d", True)]
    assert (await listed(readable, "d", "zzzé")).entries[-1].name == "é"
    assert not (await listed(readable, "d", "é")).entries
    assert not (await listed(readable, "d", "é")).more


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest_twisted.ensureDeferred
async def test_directoriesAreSortedByTheirNames(readable, limit):
    """
    Not by the keys of what they hold: C{a/b} comes after C{a.txt}.
    """
    for each in ("a/b", "a/c", "a!", "a.b", "a.b.c", "a-c/d", "a.txt", "a0", "b.x/y", "b.y", "b"):
        await put(readable, each)
    await put(readable, "d/b-/x")
    await put(readable, "d/b--")
    found, after, more = [], "", True
    while more and len(found) < 30:
        page = await listed(readable, None, after, limit)
        found += page.entries
        after, more = page.entries[-1].name, page.more
    shown = [each.name + "/" * each.directory for each in found]
    assert shown == [
        *("a/", "a!", "a-c/", "a.b", "a.b.c", "a.txt", "a0", "b", "b.x/", "b.y", "d/"),
    ]
    below = [each.name for each in (await listed(readable, "d", "", limit)).entries]
    assert below == ["b-", "b--"][:limit]


@pytest_twisted.ensureDeferred
async def test_anEmptyRoot(readable):
    page = await listed(readable)
    assert (page.entries, page.more) == ((), False)


@pytest_twisted.ensureDeferred
async def test_whatIsNotThere(readable):
    await put(readable, "d/a")
    for path in ("b", "d", "d/b", "d/a/x", "c/a"):
        assert await missing(readable.read(name(path), 0, 1)) == f'there is no "{path}"'
    for path in ("b", "d/a", "d/a/x"):
        assert await missing(readable.listing(name(path), "", 10)) == f'there is no "{path}"'


@pytest.mark.parametrize("ahead", [7, 100, 1000])
@pytest_twisted.ensureDeferred
async def test_aLargeDirectoryIsNotReadForEachPage(local, root, monkeypatch, ahead):
    monkeypatch.setattr(reading, "AHEAD_NAMES", ahead)
    (root / "d").mkdir()
    for number in range(200):
        (root / f"d/{number:03}").touch()
    read = []
    scandir = local.parts.syscalls.scandir
    local.parts.syscalls.scandir = lambda fd: read.append(fd) or scandir(fd)

    async def rest(after):
        found, more = [], True
        while more:
            page = await listed(local, "d", after, 10)
            found += [each.name for each in page.entries]
            after, more = page.entries[-1].name, page.more
        return found

    assert await rest("") == [f"{number:03}" for number in range(200)]
    assert len(read) <= {7: 60, 100: 3, 1000: 1}[ahead]
    # what comes and goes meanwhile is seen
    await listed(local, "d", "", 10)
    (root / "d/0095").touch()
    (root / "d/010").unlink()
    os.utime(root / "d", ns=(1, 1))  # in another tick of the clock
    assert (await rest("009"))[:2] == ["0095", "011"]
    # another directory in between
    assert [each.name for each in (await listed(local)).entries] == ["d"]
    assert (await rest("197")) == ["198", "199"]


# -- what lies in a local directory beside files -----------------------------------------


@pytest.fixture
def local(root):
    store = LocalStore(reactor, root)
    yield store
    pytest_twisted.blockon(bounded(store.close()))


@pytest_twisted.ensureDeferred
async def test_onlyRegularFilesAndNoLinks(local, root, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/f").write_bytes(b"secret")
    (root / "real").write_bytes(b"x")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "inside").symlink_to("real")
    (root / "away").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(root / "fifo")
    if os.geteuid() == 0:
        os.mknod(root / "device", 0o600 | 0o020000, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        there = os.getcwd()
        os.chdir(root)
        listener.bind("socket")
        os.chdir(there)
        (root / os.fsdecode(b"\xff")).write_bytes(b"x")
        page = await listed(local)
        assert [each.name for each in page.entries] == ["real"]
        for path in ("link", "inside", "away", "away/f", "fifo", "device", "socket"):
            assert await missing(local.read(name(path), 0, 10)) == f'there is no "{path}"'
        for path in ("link", "away", "fifo", "inside"):
            assert await missing(local.listing(name(path), "", 10)) == f'there is no "{path}"'


@pytest_twisted.ensureDeferred
async def test_whatMayNotBeReadIsNotThere(local, root):
    (root / "closed").write_bytes(b"x")
    (root / "locked").mkdir()
    real = local._reading._sys.open

    def denied(path, *args, **named):
        if path in {"closed", "locked"}:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **named)

    local._reading._sys.open = denied
    try:
        assert await missing(local.read(name("closed"), 0, 1)) == 'there is no "closed"'
        assert await missing(local.listing(name("locked"), "", 1)) == 'there is no "locked"'
    finally:
        del local._reading._sys.open


@pytest_twisted.ensureDeferred
async def test_itsOwnDirectoryIsNotListed(local, root):
    await put(local, "a")
    assert (root / ".connpool").is_dir()
    assert [each.name for each in (await listed(local)).entries] == ["a"]
