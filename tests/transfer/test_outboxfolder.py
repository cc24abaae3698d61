import contextlib
import errno
import os

import pytest

from connpool.errors import StartFailed
from connpool.transfer.outboxfolder import POISON, PRIVATE, TAKEN, OutboxFolder
from connpool.transfer.source import identity


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    folder = OutboxFolder(str(tmp_path / "out"))
    yield folder
    with contextlib.suppress(OSError):
        folder.close()


def put(folder, name="a", content="x"):
    path = os.path.join(folder.path, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(content)
    return path, identity(os.stat(path))


def read(path):
    with open(path) as file:
        return file.read()


def taken(folder):
    return os.listdir(os.path.join(folder.path, PRIVATE, TAKEN))


def test_scanSeesRegularFilesOnly(folder, tmp_path):
    _, status = put(folder, "a")
    put(folder, "d/b")
    os.symlink("/etc/passwd", os.path.join(folder.path, "link"))
    os.mkfifo(os.path.join(folder.path, "fifo"))
    with open(os.path.join(os.fsencode(folder.path), b"\xff"), "w"):
        pass
    assert set(folder.scan()) == {"a", "d/b"}
    assert folder.scan()["a"] == status


def test_whatWasSentIsRemoved(folder):
    path, status = put(folder)
    assert folder.remove("a", status)
    assert not os.path.exists(path)
    assert taken(folder) == []


def test_orMoved(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "done").mkdir()
    folder = OutboxFolder(str(tmp_path / "out"), keep=str(tmp_path / "done"))
    for content in "12":
        _, status = put(folder, "d/a", content)
        assert folder.remove("d/a", status)
    folder.close()
    assert (tmp_path / "done/d/a").read_text() == "1"
    assert (tmp_path / "done/d/a.1").read_text() == "2"


def test_aChangeSinceTheSendingKeepsIt(folder):
    path, status = put(folder)
    with open(path, "a") as file:
        file.write("more")
    assert not folder.remove("a", status)
    assert read(path) == "xmore"


def test_aWriterThatStillHasItOpenKeepsIt(folder):
    path, _ = put(folder)
    with open(path, "a") as writer:
        status = identity(os.stat(path))
        assert not folder.remove("a", status)
        writer.write("more")
    assert read(path) == "xmore"
    assert taken(folder) == []
    assert folder.remove("a", identity(os.stat(path)))


def test_aReaderDoesNot(folder):
    path, status = put(folder)
    with open(path):
        assert folder.remove("a", status)


def test_whatIsPutBackDoesNotOverwrite(folder, monkeypatch):
    path, _ = put(folder)
    with open(path, "a") as writer:
        rename = os.rename

        def renameAndReplace(source, target):
            rename(source, target)
            put(folder, "a", "new")

        monkeypatch.setattr(os, "rename", renameAndReplace)
        assert not folder.remove("a", identity(os.stat(path)))
        writer.write("more")
    assert read(path) == "new"
    assert read(path + ".1") == "xmore"


def test_aRestartPutsBackWhatWasTaken(folder):
    place = os.path.join(folder.path, PRIVATE, TAKEN, "0123")
    os.mkdir(place)
    with open(os.path.join(place, "name"), "w") as file:
        file.write("d/a")
    with open(os.path.join(place, "file"), "w") as file:
        file.write("content")
    folder.close()
    again = OutboxFolder(folder.path)
    again.close()
    assert read(os.path.join(folder.path, "d/a")) == "content"
    assert taken(again) == []


def test_aRestartLosesNothingWithoutItsName(folder):
    place = os.path.join(folder.path, PRIVATE, TAKEN, "0123")
    os.mkdir(place)
    with open(os.path.join(place, "file"), "w") as file:
        file.write("content")
    folder.close()
    OutboxFolder(folder.path).close()
    assert read(os.path.join(folder.path, "recovered-0123")) == "content"


def test_whatCannotBeMovedStays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "done").mkdir()
    (tmp_path / "done/d").write_text("a file")
    folder = OutboxFolder(str(tmp_path / "out"), keep=str(tmp_path / "done"))
    path, status = put(folder, "d/a")
    with pytest.raises(OSError):
        folder.remove("d/a", status)
    assert identity(os.stat(path)) == status, "it would be another file, and be sent at once"
    assert taken(folder) == []
    folder.close()


def test_anErrorOnTheWayPutsItBack(folder, monkeypatch):
    path, status = put(folder)

    def unlink(path, *_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(folder, "_withoutWriters", lambda taken, *_: unlink(taken))
        with pytest.raises(OSError):
            folder.remove("a", status)
    assert read(path) == "x"
    assert taken(folder) == []


@pytest.mark.parametrize("keep", ["", "sent", "link"])
def test_whatWasSentIsNotSentAgain(tmp_path, keep):
    (tmp_path / "out/sent").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "out/sent")
    keep = tmp_path / ("link" if keep == "link" else f"out/{keep}")
    with pytest.raises(StartFailed, match="outside"):
        OutboxFolder(str(tmp_path / "out"), keep=str(keep))


def test_aFileWhereADirectoryWas(folder):
    place = os.path.join(folder.path, PRIVATE, TAKEN, "0123")
    os.mkdir(place)
    for name, text in (("name", "d/a"), ("file", "content")):
        with open(os.path.join(place, name), "w") as file:
            file.write(text)
    put(folder, "d", "new")
    put(folder, os.path.join(PRIVATE, TAKEN, "stray"), "left by somebody")
    folder.close()
    OutboxFolder(folder.path).close()
    assert read(os.path.join(folder.path, "recovered-a")) == "content"
    assert read(os.path.join(folder.path, "d")) == "new"


def test_aFolderThatCannotBeWrittenToIsOneLine(folder, monkeypatch):
    folder.close()

    def full(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", path)

    with monkeypatch.context() as patched:
        patched.setattr(OutboxFolder, "_tryLease", lambda self: full("probe"))
        with pytest.raises(StartFailed, match="Read-only"):
            OutboxFolder(folder.path)


def test_poisonIsSetAsideWithItsReason(folder):
    for content in "12":
        put(folder, "d/a", content)
        where = folder.setAside("d/a", "name-refused: because")
    assert where == os.path.join(folder.path, PRIVATE, POISON, "a.1")
    assert read(where) == "2"
    assert read(where + ".why") == "d/a: name-refused: because\n"
    assert folder.scan() == {}


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_poisonWithALongName(folder, name):
    for _ in range(2):
        put(folder, name)
        where = folder.setAside(name, "because")
    assert read(where + ".why") == f"{name}: because\n"
    assert folder.scan() == {}


def test_theRecordSurvives(folder):
    strikes = {"d/a": ((1, 2, 3), 2)}
    folder.remember(strikes)
    assert list(folder.remembered()) == [("d/a", (1, 2, 3), 2)]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '[["a", 1, 2]]', '[["a", ["x"], 2]]'])
def test_aDamagedRecordIsNone(folder, damage):
    with open(os.path.join(folder.path, PRIVATE, "record.json"), "w") as file:
        file.write(damage)
    assert list(folder.remembered()) == []


def test_oneProcessAFolder(folder):
    with pytest.raises(StartFailed, match="another process"):
        OutboxFolder(folder.path)


@pytest.mark.parametrize("path", ["/nonexistent/x", "/proc/self/task"])
def test_unusableFoldersAreOneLine(path):
    with pytest.raises(StartFailed) as caught:
        OutboxFolder(path)
    assert "\n" not in str(caught.value)
