import contextlib
import errno
import os

import pytest

from connpool.errors import StartFailed
from connpool.transfer.send.outboxfolder import POISON, PRIVATE, TAKEN, OutboxFolder
from connpool.transfer.send.source import identity
from connpool.transfer.syscalls import Syscalls


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


def contents(folder):
    """
    Every user's file there is, set aside or not.
    """
    found = [
        os.path.join(where, name)
        for where, _, names in os.walk(folder.path)
        for name in names
        if PRIVATE not in where or name == "file"
    ]
    return sorted(read(path) for path in found)


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


@pytest.mark.parametrize("name", ["a", "x" * 255, "é" * 127])
def test_whatIsPutBackDoesNotOverwrite(folder, monkeypatch, name):
    path, status = put(folder, name)
    writers = []
    rename = os.rename

    def renameAndReplace(source, target):
        writers.append(open(path, "a"))  # noqa: SIM115 - open until after the removal
        rename(source, target)
        put(folder, name, "new")

    monkeypatch.setattr(os, "rename", renameAndReplace)
    assert not folder.remove(name, status)
    writers[0].write("more")
    writers[0].close()
    assert read(path) == "new"
    assert contents(folder) == ["new", "xmore"]


def test_whatHasAWriterIsNotEvenTaken(folder):
    path, status = put(folder)
    with open(path, "a"):
        assert not folder.remove("a", status)
    assert identity(os.stat(path)) == status, "it would be another file, and be sent at once"


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

    unlink = os.unlink

    def broken(path):
        if path.endswith("/file"):
            raise OSError(errno.EIO, "Input/output error")
        unlink(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", broken)
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


def aside(folder):
    """
    Path to content of everything among the poison.
    """
    poison = os.path.join(folder.path, PRIVATE, POISON)
    return {
        os.path.relpath(os.path.join(where, name), poison): read(os.path.join(where, name))
        for where, _, names in os.walk(poison)
        for name in names
    }


def test_poisonIsSetAsideWithItsReason(folder):
    for content in "12":
        _, status = put(folder, "d/a", content)
        where = folder.setAside("d/a", status, "name-refused: because")
    assert where == os.path.join(folder.path, PRIVATE, POISON, "a.1")
    assert read(where + "/file") == "2"
    assert read(where + "/name") == "d/a"
    assert read(where + "/why") == "d/a: name-refused: because\n"
    assert folder.scan() == {}
    assert taken(folder) == []


def test_poisonReplacesNoPoison(folder):
    """
    Whatever it is called.
    """
    names = ["a.why", "a", "why", "name", "file", "a.1", "d/a", "d/a.why"]
    for name in names:
        _, status = put(folder, name, f"the only {name}")
        folder.setAside(name, status, "because")
    assert contents(folder) == sorted(f"the only {name}" for name in names)
    assert len(aside(folder)) == 3 * len(names)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_poisonWithALongName(folder, name):
    for _ in range(2):
        _, status = put(folder, name)
        where = folder.setAside(name, status, "because")
    assert read(where + "/why") == f"{name}: because\n"
    assert folder.scan() == {}


def test_poisonThatIsClearedAway(folder):
    os.rmdir(os.path.join(folder.path, PRIVATE, POISON))
    _, status = put(folder)
    assert os.path.exists(folder.setAside("a", status, "because") + "/file")


@pytest.mark.parametrize("act", ["remove", "setAside"])
@pytest.mark.parametrize("calls", range(1, 9))
def test_aProducersReplacementStays(folder, monkeypatch, act, calls):
    """
    The producer renames a new file over the old name before any step.
    """
    path, status = put(folder, "a", "old")
    count = 0

    def before(call):
        def calling(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == calls:
                with open(path + ".new", "w") as file:
                    file.write("new")
                os.replace(path + ".new", path)
            return call(*arguments, **keywords)

        return calling

    with monkeypatch.context() as patched:
        for name in ("mkdir", "rename", "unlink", "rmdir", "lstat", "link"):
            patched.setattr(os, name, before(getattr(os, name)))
        if act == "remove":
            folder.remove("a", status)
        else:
            folder.setAside("a", status, "because")
    if count < calls:
        put(folder, "a", "new")
    assert read(path) == "new"
    if act == "setAside":
        assert aside(folder).get("a/file", "old") == "old"
    assert taken(folder) == []


@pytest.mark.parametrize("act", ["remove", "keep", "setAside", "writer"])
def test_aDeathAtAnyStepLosesNothing(tmp_path, act):
    """
    Before each call that changes the folder: afterwards the file is where it
    was or where it should be, once, and nothing is half done.
    """
    (tmp_path / "done").mkdir()
    for death in range(1, 30):
        out = tmp_path / f"out{death}"
        out.mkdir()
        (out / "d").mkdir()
        (out / "d/a").write_text("content")
        pid = os.fork()
        if pid == 0:
            dieIn(out, act, death)
        survived = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        again = OutboxFolder(str(out))
        again.close()
        assert taken(again) == []
        there = {*again.scan()}
        kept = [path.read_text() for path in (tmp_path / "done").rglob("*") if path.is_file()]
        if act == "setAside" and not there:
            assert aside(again) == {
                "a/file": "content",
                "a/name": "d/a",
                "a/why": "d/a: because\n",
            }
        elif act == "keep" and not there:
            assert kept == ["content"]
            (tmp_path / "done/d/a").unlink()
        elif act == "remove" and not there:
            assert death > 4, "not before it was taken"
        else:
            assert there == {"d/a"}
            assert read(out / "d/a") == "content"
            assert kept == []
        if survived:
            break
    assert survived
    assert there == ({"d/a"} if act == "writer" else set())


def dieIn(out, act, death):
    """
    In a child: do it, and die before a call.
    """
    count = 0

    def dying(call):
        def calling(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == death:
                os._exit(9)
            return call(*arguments, **keywords)

        return calling

    try:
        keep = str(out.parent / "done") if act == "keep" else None
        folder = OutboxFolder(str(out), keep)
        status = identity(os.stat(out / "d/a"))
        for name in ("mkdir", "fsync", "rename", "unlink", "rmdir", "link"):
            setattr(os, name, dying(getattr(os, name)))
        Syscalls.renameNoReplace = staticmethod(dying(Syscalls.renameNoReplace))
        if act == "setAside":
            folder.setAside("d/a", status, "because")
        elif act == "writer":
            folder._withoutWriters = lambda path, *_: TAKEN not in path
            folder.remove("d/a", status)
        else:
            folder.remove("d/a", status)
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("call", ["mkdir", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("act", ["remove", "setAside"])
def test_whatFailsBeforeItIsTakenLeavesNothing(folder, monkeypatch, call, number, act):
    path, status = put(folder)

    def fail(*arguments, **keywords):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(OSError):
            folder.remove("a", status) if act == "remove" else folder.setAside("a", status, "why")
    assert identity(os.stat(path)) == status
    assert taken(folder) == []


def test_whatCannotBePutBackIsByTheNextScan(folder, monkeypatch):
    _, status = put(folder, "d/a")

    def fail(*arguments, **keywords):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", fail)
        patched.setattr(Syscalls, "renameNoReplace", fail)
        with pytest.raises(OSError):
            folder.remove("d/a", status)
        assert folder.scan() == {}
    assert set(folder.scan()) == {"d/a"}
    assert taken(folder) == []


@pytest.mark.parametrize("noReplace", [True, False])
def test_whoeversFileItIsItIsPutBack(folder, monkeypatch, noReplace):
    """
    C{fs.protected_hardlinks}: a file of another user cannot be linked; and a
    file system whose rename cannot refuse to replace.
    """
    path, status = put(folder)

    def protected(*arguments, **keywords):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def unknown(*arguments, **keywords):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with monkeypatch.context() as patched:
        if noReplace:
            patched.setattr(os, "link", protected)
        else:
            patched.setattr(Syscalls, "renameNoReplace", unknown)
        patched.setattr(folder, "_withoutWriters", lambda path, *_: TAKEN not in path)
        assert not folder.remove("a", status)
    assert read(path) == "x"
    assert taken(folder) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of another user")
def test_filesOfOtherUsers(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, 65534, 65534)
    for name, mode in (("readable", 0o644), ("secret", 0o600)):
        (out / name).write_text(name)
        (out / name).chmod(mode)
    before = identity((out / "readable").stat())
    pid = os.fork()
    if pid == 0:
        os.chdir(out)
        os.setgid(65534)
        os.setuid(65534)
        try:
            folder = OutboxFolder(".")
            with pytest.raises(PermissionError):
                folder.remove("readable", identity(os.stat("readable")))
            assert folder.setAside("secret", identity(os.stat("secret")), "unreadable")
            assert taken(folder) == []
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert identity((out / "readable").stat()) == before
    assert (out / PRIVATE / POISON / "secret/file").read_text() == "secret"


@pytest.mark.parametrize("name", ["a\rb", "a\nb", " a ", "x" * 255, "é" * 127])
def test_aRestartKnowsTheName(folder, name):
    for content in ("old", "new"):
        place = os.path.join(folder.path, PRIVATE, TAKEN, content)
        os.mkdir(place)
        for note, text in (("name", name), ("file", content)):
            with open(os.path.join(place, note), "w", newline="") as file:
                file.write(text)
    folder.close()
    OutboxFolder(folder.path).close()
    assert contents(folder) == ["new", "old"]
    assert name in folder.scan()


def test_aLongNameWhoseDirectoryIsAFileNow(folder):
    place = os.path.join(folder.path, PRIVATE, TAKEN, "0123")
    os.mkdir(place)
    for note, text in (("name", "d/" + "x" * 255), ("file", "content")):
        with open(os.path.join(place, note), "w") as file:
            file.write(text)
    put(folder, "d", "new")
    folder.recover()
    assert contents(folder) == ["content", "new"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_longNamesAreMovedToo(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "done").mkdir()
    folder = OutboxFolder(str(tmp_path / "out"), keep=str(tmp_path / "done"))
    for content in "12":
        _, status = put(folder, name, content)
        assert folder.remove(name, status)
    folder.close()
    assert sorted(path.read_text() for path in (tmp_path / "done").iterdir()) == ["1", "2"]


def test_whatBelongsToAReceiverIsLeftOut(folder):
    """
    A folder that is received into and forwarded.
    """
    for name in (".connpool/done/hook", ".connpool-0123", "d/.Connpool-outbox/state/secret"):
        put(folder, name)
    put(folder, "d/a")
    assert set(folder.scan()) == {"d/a"}
    assert folder.leftOut == {}


def test_whatCannotBeReadIsSaid(folder, monkeypatch):
    put(folder, "a")
    put(folder, "d/a")
    put(folder, "gone/a")
    scandir = os.scandir

    def denied(path):
        for name, kind in (("d", PermissionError), ("gone", FileNotFoundError)):
            if path.endswith(f"/{name}"):
                raise kind(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert set(folder.scan()) == {"a"}
    ((why, where),) = folder.leftOut.items()
    assert "Permission denied" in why
    assert where == os.path.join(folder.path, "d")


def test_aFolderThatCannotBeReadIsAnError(folder, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError):
        folder.scan()


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
