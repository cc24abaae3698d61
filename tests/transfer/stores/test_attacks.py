"""
What somebody with access to the directory may have put there: items 35 to 50
of the corpus.  An independent look proves that nothing outside was touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from connpool.errors import Exists, NoSpace, StartFailed, StoreError, TransferError
from connpool.transfer import LocalStore, RelativeName
from tests.helpers.waiting import bounded
from tests.transfer.stores.kit import InlineReactor, offer, settled, storeBy, visible

RULES = ["rename", "replace", "refuse", "skip"]
CONTENT = b"new content" * 1000


@contextlib.contextmanager
def mounted(path: Path, *options: str):
    """
    A file system of its own at C{path}; skips where that is not allowed.
    """
    run = subprocess.run(["mount", *options, str(path)], capture_output=True, check=False)
    if run.returncode:
        pytest.skip(f"cannot mount here: {run.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def outside(tmp_path):
    """
    A place that must never change.
    """
    path = tmp_path / "outside"
    (path / "d").mkdir(parents=True)
    (path / "precious").write_text("precious")
    (path / "precious").chmod(0o600)
    yield path
    assert sorted(each.name for each in path.rglob("*")) == ["d", "precious"]
    assert (path / "precious").read_text() == "precious"
    assert stat.S_IMODE((path / "precious").stat().st_mode) == 0o600


@pytest.fixture
def store(root, outside):
    store = LocalStore(reactor, root)
    yield store
    pytest_twisted.blockon(bounded(store.close()))


async def sent(store, way, name, rule, durability="full"):
    """
    @return: the receipt, or the error.
    """
    asked = offer(name, size=len(CONTENT), ifExists=rule, durability=durability)
    try:
        return await storeBy(way, store, asked, CONTENT)
    except TransferError as error:
        return error


def plant(kind: str, path: Path, outside: Path) -> None:
    if kind == "link":
        path.symlink_to(outside / "precious")
    elif kind == "dangling":
        path.symlink_to(outside / "created")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            here = os.getcwd()
            os.chdir(path.parent)  # its path may be too long
            try:
                listening.bind(path.name)
            finally:
                os.chdir(here)
    elif kind == "hardlink":
        os.link(outside / "precious", path)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root can make devices")
    else:
        path.mkdir()


WAYS = [(way, rule) for way in ("put", "commit") for rule in RULES]


@pytest.mark.parametrize(
    "kind", ["link", "dangling", "loop", "fifo", "socket", "hardlink", "device", "directory"]
)
@pytest_twisted.ensureDeferred
async def test_thingsAtTheFinalName(root, outside, store, kind):
    # items 35 and 39 to 42
    for way, rule in WAYS:
        directory = root / f"{way}-{rule}"
        directory.mkdir()
        path = directory / "x"
        plant(kind, path, outside)
        before = path.lstat()
        result = await sent(store, way, f"{directory.name}/x", rule)
        if rule == "replace" and kind != "directory":
            assert result.name == f"{directory.name}/x"
            assert not path.is_symlink()
            assert path.read_bytes() == CONTENT
            continue
        if rule == "rename":
            assert result.name == f"{directory.name}/x (1)"
            assert (directory / "x (1)").read_bytes() == CONTENT
        else:
            assert isinstance(result, Exists)
        assert os.path.samestat(path.lstat(), before)
        assert stat.S_IFMT(path.lstat().st_mode) == stat.S_IFMT(before.st_mode)


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "socket", "device", "directory link"])
@pytest_twisted.ensureDeferred
async def test_thingsAtAParent(root, outside, store, kind):
    # item 36
    if kind == "directory link":
        (root / "p").symlink_to(outside / "d")
    else:
        plant(kind, root / "p", outside)
    for way, rule in WAYS:
        for name in ("p/x", "p/q/x"):
            result = await sent(store, way, name, rule)
            assert isinstance(result, Exists), result
            assert "not a directory" in str(result)
    assert await bounded(store.stat(offer("p/precious").name)) is None
    assert visible(root) == {}


#: Exchange two names as fast as can be, at uneven times.
FLIP = """
import ctypes, os, sys
exchange = ctypes.CDLL(None).renameat2
one, two = map(os.fsencode, sys.argv[1:])
print("flipping", flush=True)
turn = 0
while exchange(-100, one, -100, two, 2) == 0:
    turn += 1
    for _ in range(turn * 7919 % 1000):
        pass
"""


@pytest.mark.parametrize("way", ["put", "commit"])
@pytest_twisted.ensureDeferred
async def test_aParentThatFlips(root, outside, store, way):
    """
    Item 37: a directory that becomes a link to outside and back, all the time.
    Every file is where its receipt says or was refused, and none is outside.
    """
    (root / "d").mkdir()
    (root / "link").symlink_to(outside / "d")
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("the C library has no renameat2()")
    attacker = subprocess.Popen(
        [sys.executable, "-c", FLIP, str(root / "d"), str(root / "link")], stdout=subprocess.PIPE
    )
    stored = refused = 0
    try:
        assert attacker.stdout.readline() == b"flipping\n"
        for number in range(20_000):
            result = await sent(store, way, f"d/x{number}", "refuse", "none")
            if isinstance(result, TransferError):
                assert isinstance(result, Exists)
                refused += 1
            else:
                stored += 1
            if number >= 400 and min(stored, refused) > 3:
                break
            time.sleep(0.0005)  # meet it at another time
    finally:
        attacker.kill()
        attacker.communicate()
    assert min(stored, refused) > 3
    inside = root / ("link" if (root / "d").is_symlink() else "d")
    assert len([path for path in inside.iterdir() if path.read_bytes() == CONTENT]) == stored


@pytest.mark.parametrize("rule", ["refuse", "rename", "replace"])
def test_fiftySendersOfOneName(root, rule):
    # exactly one wins, whatever the interleaving
    results: list[object] = []
    stores = []
    for _ in range(5):
        clock = InlineReactor()
        stores.append((LocalStore(clock, root, threads=clock), clock))
    barrier = threading.Barrier(5)

    def race(store, clock, number):
        barrier.wait()
        for turn in range(10):
            data = b"%d-%d" % (number, turn)
            try:
                receipt = clock.wait(
                    store.put(offer("d/x", ifExists=rule, durability="none"), data, None)
                )
            except TransferError as error:
                results.append(error)
            else:
                results.append((receipt.name, data))

    threads = [
        threading.Thread(target=race, args=(*each, number)) for number, each in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = visible(root)
    won = [each for each in results if isinstance(each, tuple)]
    assert len(results) == 50
    if rule == "refuse":
        assert len(won) == 1
        assert files == {"d/x": won[0][1]}
    elif rule == "rename":
        assert len(won) == 50
        assert files == dict(won)
    else:
        assert len(won) == 50
        assert list(files) == ["d/x"]
    for store, clock in stores:
        clock.wait(store.close())


@pytest.mark.parametrize("way", ["put", "commit"])
@pytest.mark.parametrize("rule", RULES)
@pytest_twisted.ensureDeferred
async def test_anotherFileSystemInside(root, store, way, rule):
    # item 44: EXDEV; the copy is hidden until it is complete
    (root / "m").mkdir()
    with mounted(root / "m", "-t", "tmpfs", "-o", "size=1m", "none"):
        result = await sent(store, way, "m/x", rule)
        assert result.name == "m/x"
        assert (root / "m/x").read_bytes() == CONTENT
        assert stat.S_IMODE((root / "m/x").stat().st_mode) == 0o640
        (root / "m/x").write_text("other")
        result = await sent(store, way, "m/x", rule)
        if rule == "rename":
            assert result.name == "m/x (1)"
        elif rule == "replace":
            assert (root / "m/x").read_bytes() == CONTENT
        else:
            assert isinstance(result, Exists)
        assert [each.name for each in (root / "m").iterdir() if each.name[0] == "."] == []


@pytest.mark.parametrize("way", ["put", "commit"])
@pytest_twisted.ensureDeferred
async def test_aBindMountInside(root, store, way, tmp_path):
    # the same device number, and still EXDEV
    (root / "m").mkdir()
    (tmp_path / "elsewhere").mkdir()
    with mounted(root / "m", "--bind", str(tmp_path / "elsewhere")):
        assert (await sent(store, way, "m/a/x", "refuse")).name == "m/a/x"
    assert (tmp_path / "elsewhere/a/x").read_bytes() == CONTENT


@pytest.mark.parametrize("rule", ["replace", "refuse"])
@pytest_twisted.ensureDeferred
async def test_anImmutableFile(root, store, rule):
    # item 43
    path = root / "x"
    path.write_text("old")
    if shutil.which("chattr") is None:
        pytest.skip("chattr is not installed")
    if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
        pytest.skip("this file system or user cannot make files immutable")
    try:
        result = await sent(store, "commit", "x", rule)
        assert isinstance(result, StoreError if rule == "replace" else Exists)
        assert path.read_text() == "old"
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    assert list((root / ".connpool/temporary").iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_aReadOnlyDirectory(root, store):
    (root / "d").mkdir()
    if shutil.which("chattr") is None:
        pytest.skip("chattr is not installed")
    if subprocess.run(["chattr", "+i", root / "d"], capture_output=True, check=False).returncode:
        pytest.skip("this file system or user cannot make directories immutable")
    try:
        for way in ("put", "commit"):
            assert isinstance(await sent(store, way, "d/x", "rename"), StoreError)
            assert isinstance(await sent(store, way, "d/e/x", "rename"), StoreError)
    finally:
        subprocess.run(["chattr", "-i", root / "d"], check=True)


@pytest_twisted.ensureDeferred
async def test_aFullDisk(root):
    # item 50, on a real file system that is full
    with mounted(root, "-t", "tmpfs", "-o", "size=1m", "none"):
        store = LocalStore(reactor, root, minFree=0)
        filler = root / "filler"
        filler.write_bytes(bytes(600 << 10))
        with pytest.raises(NoSpace):
            await bounded(store.open(offer(size=800 << 10)))
        partial = await bounded(store.open(offer(size=300 << 10, resumeKey=b"s" * 32)))
        other = root / "other"
        other.write_bytes(bytes(300 << 10))  # somebody else was quicker
        written = 0
        step = 16 << 10
        with pytest.raises(NoSpace):
            while written < 300 << 10:
                partial.write(written, b"x" * step)
                written += step
        assert list(partial.held) == [(0, written)]
        other.unlink()
        while written < 300 << 10:
            size = min(step, (300 << 10) - written)
            partial.write(written, b"x" * size)
            written += size
        receipt = await bounded(partial.commit(None))
        assert (root / receipt.name).read_bytes() == b"x" * (300 << 10)
        await bounded(store.close())


@pytest_twisted.ensureDeferred
async def test_noInodes(root):
    with mounted(root, "-t", "tmpfs", "-o", "size=8m,nr_inodes=30", "none"):
        store = LocalStore(reactor, root, minFree=0)
        stored = 0
        with pytest.raises(NoSpace):
            for number in range(40):
                await bounded(
                    settled(store.put(offer(f"d{number}/x", durability="none"), b"x", None))
                )
                stored += 1
        assert len(visible(root)) == stored > 3
        assert list((root / ".connpool/temporary").iterdir()) == []
        await bounded(store.close())


@pytest.mark.parametrize("kind", ["world", "group", "owner"])
@pytest_twisted.ensureDeferred
async def test_aPrivateDirectoryThatIsNotPrivate(root, kind):
    # planted before the first start, in a directory that everybody may write to
    root.chmod(0o1777)
    planted = root / ".connpool"
    planted.mkdir()
    planted.chmod({"world": 0o777, "group": 0o770, "owner": 0o700}[kind])
    if kind == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(planted, 1000, 1000)
    with pytest.raises(StartFailed, match="chmod 700") as refused:
        LocalStore(reactor, root)
    assert "\n" not in str(refused.value)
    assert str(root) in str(refused.value)
    assert list(planted.iterdir()) == []
    planted.chmod(0o750)
    os.chown(planted, os.geteuid(), -1)
    await bounded(LocalStore(reactor, root).close())


@pytest.mark.parametrize("where", ["d", "d/below"])
@pytest_twisted.ensureDeferred
async def test_noDirectoryThroughALink(store, root, outside, where):
    """
    Neither made nor given a time on the other side.
    """
    (root / "d").symlink_to(outside / "d")
    before = (outside / "d").stat().st_mtime_ns
    with pytest.raises(Exists):
        await bounded(store.makeDirectory(RelativeName.parse(where), 5, "full"))
    assert (outside / "d").stat().st_mtime_ns == before


@pytest_twisted.ensureDeferred
async def test_aDirectoryOfAnother(store, root):
    """
    Its time stays, and files go into it.
    """
    (root / "d").mkdir()
    real = store.parts.syscalls.utime

    def utime(fd, ns):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    store.parts.syscalls.utime = utime
    made = await bounded(store.makeDirectory(RelativeName.parse("d"), 5, "none"))
    store.parts.syscalls.utime = real
    assert not made.made
    assert (root / "d").stat().st_mtime_ns != 5


@pytest_twisted.ensureDeferred
async def test_aDirectoryThatIsMadeIsSynced(root):
    """
    At C{full}: it and its name, and those of the directories above it.
    """
    store = LocalStore(reactor, root)
    synced = []
    real = store.parts.syscalls.fsync

    def fsync(fd):
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root))
        real(fd)

    store.parts.syscalls.fsync = fsync
    made = await bounded(store.makeDirectory(RelativeName.parse("a/b"), 5, "full"))
    store.parts.syscalls.fsync = real
    await bounded(store.close())
    if made.durability == "full":
        assert set(synced) == {"a/b", "a", "."}
        assert synced[0] == "a/b"
