"""
Trees as they are sent: directories and their times, links, files that move meanwhile or lie
about their size.
"""

import os
import random

import pytest

from connpool.errors import SourceError
from connpool.transfer.receive import greeting
from connpool.transfer.send.request import SendRequest
from connpool.transfer.send.source import openRegular, readWhole, wasRenamed
from connpool.transfer.send.walking import DIRECTORY, FILE, LINK, Walk
from connpool.transfer.wire.frames import Type
from tests.transfer.scripted import scripted

BLOCK = 4096
YEAR_2001 = 1_000_000_000_123_456_789

pytestmark = pytest.mark.usefixtures("smallFiles")


def content(seed, size):
    return random.Random(seed).randbytes(size)


def stored(world):
    return dict(world.store.files)


# -- directories -------------------------------------------------------------------------


@pytest.fixture
def tree(source):
    """
    Directories that are empty, deep, and full; each with a time of its own.
    """
    for number, name in enumerate(["a/b/c", "empty", "full", ""]):
        (source / name).mkdir(parents=True, exist_ok=True)
        if name == "full":
            (source / name / "small").write_bytes(b"x")
            (source / name / "large").write_bytes(content(1, 20 * BLOCK))
        os.utime(source / name, ns=(0, YEAR_2001 + number))
    return source


def times(tree):
    return {
        os.path.relpath(path, tree.parent): os.stat(path).st_mtime_ns
        for path, _, _ in os.walk(tree)
    }


@pytest.mark.parametrize("jobs", [1, 3])
def test_directoriesHaveTheirTimes(world, tree, jobs):
    report = world.send(tree, jobs=jobs)
    assert report.exitCode == 0
    assert world.store.directories == times(tree)
    assert (report.directories, report.directoriesLeftOut) == (len(times(tree)), 0)
    # files are all that is counted as files
    assert {outcome.status for outcome in report.outcomes} == {"stored"}


def test_timesOfDirectoriesThatWereThere(world, tree):
    world.send(tree)
    os.utime(tree / "empty", ns=(0, -5))
    world.send(tree)
    assert world.store.directories == times(tree)


def test_directoriesComeAfterTheirFilesAndBelowFirst(world, tree):
    """
    Whatever order the receiver takes what is on its way together.
    """
    said = []
    sending = world.sending(tree)
    real = sending._jobs.deepest

    def deepest():
        found = real()
        said.append([each.name for each in found])
        return found

    sending._jobs.deepest = deepest
    world.finish(world.start(sending))
    depths = [{name.count(b"/") for name in group} for group in said if group]
    assert depths == [{3}, {2}, {1}, {0}]
    assert len(world.store.files) == 2


def test_directoriesAfterABrokenConnection(world, tree):
    """
    What was not answered goes with the next connection, after the files.
    """
    world.send(tree)
    reference = world.wires[-1].sent[0]
    assert world.store.directories == times(tree)
    for cut in range(reference - 100, reference, 7):
        world.store.directories.clear()
        world.plan = [{"cut": (0, cut, "rst")}]
        report = world.send(tree)
        assert report.exitCode == 0
        assert world.store.directories == times(tree)


def test_aTreeOfEmptyDirectoriesOnly(world, source):
    (source / "project/logs/archive").mkdir(parents=True)
    report = world.send(source / "project")
    assert report.exitCode == 0
    assert report.directories == 3
    assert set(world.store.directories) == {"project", "project/logs", "project/logs/archive"}


def test_anOldReceiverIsSentNoDirectories(world, tree):
    kinds = []

    def answer(receiver, frame, message):
        kinds.append(frame.type)
        if frame.type in {Type.PUT, Type.OFFER}:
            receiver.transport.abortConnection()

    for path in tree.iterdir():
        if path.name == "full":
            for file in path.iterdir():
                file.unlink()
    scripted(world, answer)
    report = world.send(tree)
    assert (report.directories, report.directoriesLeftOut) == (0, len(times(tree)))
    assert report.exitCode == 0
    assert Type.DIRECTORY not in kinds


def test_aStoreWithoutDirectories(world, tree, monkeypatch):
    monkeypatch.setattr(greeting.IDirectoryStore, "providedBy", lambda store: False)
    report = world.send(tree)
    assert report.exitCode == 0
    assert report.directoriesLeftOut == len(times(tree))
    assert len(world.store.files) == 2


def test_aDryRunMakesNone(world, tree):
    report = world.send(tree, request=SendRequest(durability="none", dry=True))
    assert report.directoriesLeftOut == len(times(tree))
    assert world.store.directories == {}


def test_aFileInTheWay(world, tree):
    world.send(tree)
    del world.store.directories["source/empty"]
    world.store.files["source/empty"] = b"x"
    report = world.send(tree)
    [failed] = report.failed
    assert (failed.name, failed.error.code) == ("source/empty", "exists")
    assert report.exitCode == 4
    assert report.directories == len(times(tree)) - 1


def test_whatIsNoUTF8IsSaid(world, source):
    (source / "project").mkdir()
    os.mkdir(os.fsencode(source / "project") + b"/\xff")
    report = world.send(source / "project")
    assert isinstance(report.failed[0].error, SourceError)
    assert report.directories == 1


def test_linksAreCounted(world, source, tmp_path):
    (source / "d").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"x")
    for number in range(3):
        os.symlink(tmp_path / "elsewhere", source / "d" / str(number))
    report = world.send(source / "d")
    assert (report.exitCode, report.passedOver, report.outcomes) == (0, 3, [])
    assert world.store.files == {}


def test_givenUpDirectoriesAreReported(world, source):
    (source / "d/e").mkdir(parents=True)
    world.refuse = True
    report = world.send(source / "d")
    assert {outcome.name for outcome in report.failed} == {"d", "d/e"}


# -- files that move ---------------------------------------------------------------------


def rotateDuring(world, path, rotate, **more):
    """
    Rotate when some of C{path} has arrived.
    """
    results = world.start(world.sending(path, **more))
    for _ in range(100_000):
        if world.reception.stats().receivedBytes > 20 * BLOCK:
            break
        if not any(wire.step() for wire in world.wires if wire.alive):
            world.clock.advance(0.01)
    assert not results
    rotate()
    return world.finish(results)


@pytest.mark.parametrize("named", [False, True], ids=["tree", "file"])
@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_aLogThatIsRotatedWhileItIsSent(world, source, tmp_path, named, outside, jobs):
    data = content(1, 200 * BLOCK)
    log = source / "app.log"
    log.write_bytes(data)

    def rotate():
        log.rename((tmp_path if outside else source) / "app.log.1")
        log.write_bytes(b"new\n")

    world.plan = [{"chunk": 1024}] * 20
    report = rotateDuring(world, log if named else source, rotate, jobs=jobs)
    assert report.exitCode == 0
    assert data in world.store.files.values()


def test_aLogThatIsRotatedBeforeItsTurn(world, source):
    """
    It was listed, and not opened yet: its new name is found at the end.
    """
    first = content(1, 200 * BLOCK)
    (source / "a-large").write_bytes(first)
    data = content(2, 30 * BLOCK)
    log = source / "z.log"
    log.write_bytes(data)
    listed = list(Walk([str(source)]))
    assert [found.kind for found in listed] == [DIRECTORY, FILE, FILE]
    sending = world.sending(source)
    real = sending._jobs._prepare

    def prepare(*arguments):
        prepared = real(*arguments)
        if log.exists() and not (source / "z.log.1").exists():
            log.rename(source / "z.log.1")
            log.write_bytes(b"new\n")
        return prepared

    sending._jobs._prepare = prepare
    report = world.finish(world.start(sending))
    assert report.exitCode == 0
    assert world.store.files == {
        "source/a-large": first,
        "source/z.log": b"new\n",
        "source/z.log.1": data,
    }


def test_aLogThatIsCopiedAndCutWhileItIsSent(world, source):
    """
    As C{copytruncate} does: the copy is found at the end.
    """
    data = content(1, 200 * BLOCK)
    log = source / "app.log"
    log.write_bytes(data)

    def rotate():
        (source / "app.log.1").write_bytes(data)
        os.truncate(log, 0)

    world.plan = [{"chunk": 1024}] * 20
    report = rotateDuring(world, source, rotate)
    assert report.exitCode == 0
    assert world.store.files["source/app.log.1"] == data


def test_whatWasReplacedIsSentAsItIsNow(world, source):
    path = source / "f"
    path.write_bytes(content(1, 200 * BLOCK))

    def replace():
        (source / "new").write_bytes(b"now")
        (source / "new").rename(path)

    world.plan = [{"chunk": 1024}] * 20
    report = rotateDuring(world, path, replace)
    assert report.exitCode == 0
    assert world.store.files == {"f": b"now"}


def test_noDescriptorIsLeft(world, source):
    before = len(os.listdir("/proc/self/fd"))
    log = source / "app.log"
    log.write_bytes(content(1, 200 * BLOCK))

    def rotate():
        log.rename(source / "app.log.1")
        world.refuse = True
        for wire in world.wires:
            for end in wire.ends:
                end.protocol.transport.abortConnection()

    world.plan = [{"chunk": 1024}] * 20
    rotateDuring(world, log, rotate)
    world.settle(5)
    assert len(os.listdir("/proc/self/fd")) == before


def test_passesEnd(source):
    """
    A tree in which something moves all the time is read a few times more, not forever.
    """
    (source / "f").write_bytes(b"x")
    found = Walk([str(source)])
    rounds = 0
    while next(found, None) is not None:
        pass
    while rounds < 100:
        found.moved()
        (source / f"new{rounds}").write_bytes(b"x")
        more = list(iter(lambda: next(found, None), None))
        if not more:
            break
        assert [each.name for each in more] == [b"source/new%d" % rounds]
        rounds += 1
    assert 0 < rounds < 10
    assert not found.unfinished


def test_wasRenamed(source):
    path = source / "f"
    path.write_bytes(b"x")
    fd, _ = openRegular(str(path))
    assert not wasRenamed(fd, str(path))
    path.rename(source / "g")
    assert wasRenamed(fd, str(path))
    path.write_bytes(b"y")
    assert wasRenamed(fd, str(path))
    (source / "g").unlink()
    assert not wasRenamed(fd, str(path))
    os.close(fd)


def test_kindsOfATree(source):
    (source / "d").mkdir()
    (source / "d" / "f").write_bytes(b"")
    os.symlink("f", source / "d" / "l")
    found = list(Walk([str(source / "d")]))
    assert [(each.name, each.kind) for each in found] == [
        (b"d", DIRECTORY),
        (b"d/f", FILE),
        (b"d/l", LINK),
    ]
    assert found[0].modified == os.stat(source / "d").st_mtime_ns
    assert found[1].inode == os.stat(source / "d" / "f").st_ino


# -- sizes that are not true ---------------------------------------------------------------

kernel = pytest.mark.skipif(not os.path.exists("/proc/version"), reason="there is no /proc")


@kernel
@pytest.mark.parametrize("jobs", [1, 3])
def test_aFileWhoseSizeSaysNothing(world, jobs):
    assert os.stat("/proc/version").st_size == 0
    report = world.send("/proc/version", jobs=jobs)
    assert report.exitCode == 0
    assert report.doneBytes == report.outcomes[0].receipt.size > 0
    with open("/proc/version", "rb") as file:
        assert world.store.files == {"version": file.read()}


@kernel
def test_aLargeFileWhoseSizeSaysNothingIsRefused(world):
    """
    More than goes in one piece: it is never stored empty, and the way out is named.
    """
    report = world.send("/proc/self/smaps")
    [failed] = report.failed
    assert isinstance(failed.error, SourceError)
    assert "standard input" in str(failed.error)
    assert world.store.files == {}


def test_anEmptyFileIsEmpty(world, source):
    (source / "f").write_bytes(b"")
    assert world.send(source / "f").exitCode == 0
    assert world.store.files == {"f": b""}


def test_aSizeThatSaysTooMuch(tmp_path, monkeypatch):
    """
    As those of C{/sys}, a page each.
    """
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10)
    fd, status = openRegular(str(path))
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, count: real(fd, count) if count > 10 else b"")
    assert readWhole(fd, status, 2048) == b"x" * 10
    os.lseek(fd, 0, os.SEEK_SET)
    monkeypatch.setattr(os, "read", lambda fd, count: real(fd, 4) if count > 7 else b"")
    with pytest.raises(SourceError, match="standard input"):
        readWhole(fd, status, 2048)
    os.close(fd)
