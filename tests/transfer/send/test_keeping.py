"""
Sources that are moved to another file system.
"""

import errno
import os
import shutil
import tempfile
from types import SimpleNamespace

import pytest

from connpool.transfer.send import freenames, keeping, removal
from connpool.transfer.send.keeping import Keeping
from connpool.transfer.send.removal import Fate
from tests.helpers.mounts import mounted
from tests.transfer.send.test_removal import Place

CONTENT = b"content" * 1000
MTIME = 1_000_000_000_123_456_789


@pytest.fixture
def elsewhere(tmp_path):
    """
    A directory on another file system than the temporary ones.
    """
    shm = "/dev/shm"
    if os.path.isdir(shm) and os.stat(shm).st_dev != os.stat(tmp_path).st_dev:
        path = tempfile.mkdtemp(prefix="connpool-test-", dir=shm)
        yield path
        shutil.rmtree(path)
        return
    (tmp_path / "mount").mkdir()
    with mounted("tmpfs", tmp_path / "mount") as path:
        yield str(path)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def files(directory):
    found = {}
    for where, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(where, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, directory)] = file.read()
    return found


def test_aSourceIsCopiedWithWhatItHas(place, elsewhere):
    sent = place.put("d/a", CONTENT)
    os.chmod(place.folder / "d/a", 0o640)
    os.utime(place.folder / "d/a", ns=(0, MTIME))
    sent = removal.Sent("d/a", removal.versionOf(os.stat(place.folder / "d/a")), *_rest(sent))
    for version in (sent, place.put("b")):
        assert place.build(keep=Keeping(elsewhere)).remove([version]) == {
            version.path: removal.Departure(Fate.GONE)
        }
    assert files(elsewhere) == {"d/a": CONTENT, "b": b"x"}
    status = os.stat(os.path.join(elsewhere, "d/a"))
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o640, MTIME)
    assert place.files() == {}


def _rest(sent):
    return sent.size, sent.digest, sent.root


def test_aNameThatIsTakenStays(place, elsewhere):
    for content in (b"1", b"2"):
        place.build(keep=Keeping(elsewhere)).remove([place.put("a", content)])
    assert files(elsewhere) == {"a": b"1", "a.1": b"2"}


def test_aDamagedCopyIsNotPublished(place, elsewhere, monkeypatch):
    copied = keeping._copied

    def damaging(source, hidden, wanted):
        done = copied(source, hidden, wanted)
        with open(hidden, "r+b") as file:
            file.write(b"X")
        return done

    monkeypatch.setattr(keeping, "_copied", damaging)
    sent = place.put("a", CONTENT)
    departure = place.build(keep=Keeping(elsewhere)).remove([sent])["a"]
    assert (departure.fate, departure.error.errno) == (Fate.FAILED, errno.EIO)
    assert files(elsewhere) == {}
    assert place.files() == {"a": CONTENT}


def test_aStopLeavesItForTheNextStart(place, elsewhere):
    sent = place.put("a", CONTENT)
    stopping = place.build(keep=Keeping(elsewhere))
    real = keeping._copied

    def stopped(source, hidden, wanted):
        stopping.interrupt()
        return real(source, hidden, wanted)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keeping, "_copied", stopped)
        assert stopping.remove([sent])["a"].fate is Fate.LATER
    assert files(elsewhere) == {}
    (taken,) = os.listdir(place.taken)
    again = place.build(keep=Keeping(elsewhere))
    assert again.recover(os.path.join(place.taken, taken)) == ["a"]
    assert files(elsewhere) == {"a": CONTENT}
    assert place.files() == {}


def test_aDirectoryThatIsNoLongerMounted(place, elsewhere, monkeypatch):
    keep = Keeping(elsewhere)
    sent = place.put("a")
    monkeypatch.setattr(Keeping, "_deviceNow", lambda self: -1)
    departure = place.build(keep=keep).remove([sent])["a"]
    assert departure.fate is Fate.FAILED
    assert "mount it" in departure.error.strerror
    assert files(elsewhere) == {}
    assert place.files() == {"a": b"x"}


def test_aDirectoryThatIsGone(place, tmp_path):
    """
    The source is not taken for one that has vanished, and sent again for ever.
    """
    done = tmp_path / "done"
    done.mkdir()
    removal = place.build(keep=Keeping(str(done)))
    sent = place.put("a")
    done.rmdir()
    departure = removal.remove([sent])["a"]
    assert departure.fate is Fate.FAILED
    assert departure.error.strerror == (
        f"--move-to: {done}: No such file or directory; make or mount it"
    )
    assert place.files() == {"a": b"x"}
    done.mkdir()
    assert removal.remove([sent])["a"].fate is Fate.GONE
    assert files(done) == {"a": b"x"}


def test_anErrorSaysWhatIsInTheWay(place, tmp_path):
    done = tmp_path / "done"
    done.mkdir()
    (done / "d").write_bytes(b"")
    departure = place.build(keep=Keeping(str(done))).remove([place.put("d/a")])["d/a"]
    assert departure.error.strerror == f"--move-to: {done}/d: File exists"


def test_aFileSystemWithoutLinks(place, elsewhere, monkeypatch):
    def link(*_paths, **_how):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(keeping.os, "link", link)
    for content in (b"1", b"2"):
        place.build(keep=Keeping(elsewhere)).remove([place.put("a", content)])
    assert files(elsewhere) == {"a": b"1", "a.1": b"2"}


def test_aFullFileSystem(place, elsewhere, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keeping.os, "fsync", full)
    departure = place.build(keep=Keeping(elsewhere)).remove([place.put("a")])["a"]
    assert departure.error.errno == errno.ENOSPC
    monkeypatch.undo()
    assert files(elsewhere) == {}
    assert place.files() == {"a": b"x"}


# -- death -------------------------------------------------------------------------------


class Died(BaseException):
    pass


class Mortal:
    """
    The calls of a process that dies before one of them, and does nothing more.
    """

    CHANGING = frozenset({"open", "write", "fchmod", "fchown", "utime", "fsync", "link", "unlink"})

    def __init__(self, before):
        self.left = before

    def wrap(self, function):
        def call(*args, **named):
            self.left -= 1
            if self.left < 0:
                raise Died
            return function(*args, **named)

        return call

    def modules(self):
        changed = {
            name: self.wrap(getattr(os, name)) for name in (*self.CHANGING, "rename", "rmdir")
        }
        return SimpleNamespace(**{**vars(os), **changed})


def test_deathBeforeEveryCall(place, elsewhere):
    """
    Nothing is lost, nothing half is seen, and there is one copy in the end.
    """
    deaths = 0
    for before in range(200):
        sent = place.put("d/a", CONTENT)
        keep = Keeping(elsewhere)
        with pytest.MonkeyPatch.context() as patched:
            mortal = Mortal(before).modules()
            for module in (keeping, removal, freenames):
                patched.setattr(module, "os", mortal)
            try:
                place.build(keep=keep).remove([sent])
            except Died:
                deaths += 1
            else:
                break
        visible = {
            name: content
            for name, content in files(elsewhere).items()
            if not os.path.basename(name).startswith(".")
        }
        assert visible in ({}, {"d/a": CONTENT})
        for taken in os.listdir(place.taken):
            where = os.path.join(place.taken, taken)
            if os.path.exists(os.path.join(where, removal.NAMES)):
                place.build(keep=keep).recover(where)
            else:
                os.rmdir(where)
        if place.files():  # it was not even taken: the next scan sends it again
            assert place.files() == {"d/a": CONTENT}
            assert files(elsewhere) == {}
        else:
            assert files(elsewhere) == {"d/a": CONTENT}
            os.unlink(os.path.join(elsewhere, "d/a"))
    else:
        raise AssertionError("it never lived")
    assert deaths > 15
