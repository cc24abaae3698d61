import contextlib
import errno
import os
import shutil

import pytest

from connpool.errors import StartFailed
from connpool.transfer.digests import BLOCK_SIZE, digestNamed, rootOf
from connpool.transfer.send import outboxfolder, removal
from connpool.transfer.send.choosing import Choice
from connpool.transfer.send.openfiles import Answer, Writers
from connpool.transfer.send.outbox import Remembered
from connpool.transfer.send.outboxfolder import POISON, PRIVATE, TAKEN, OutboxFolder
from connpool.transfer.send.removal import Fate, Sent
from connpool.transfer.send.source import versionOf
from connpool.transfer.send.temporarynames import TemporaryNames
from connpool.transfer.syscalls import Syscalls
from tests.helpers.mounts import mounted

DIGEST = digestNamed("blake3")


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
    return path, versionOf(os.stat(path))


def rootOfText(text):
    blocks = [DIGEST.of(text.encode())] if text else []
    return rootOf(DIGEST, len(text.encode()), BLOCK_SIZE, blocks)


def sent(name, status, text):
    return Sent(name, status, len(text.encode()), DIGEST.name, rootOfText(text))


def remove(folder, name, status, text=None):
    """
    @param text: the content of the receipt; the file's unless given.
    @return: whether it is gone.
    """
    if text is None:
        path = os.path.join(folder.path, name)
        text = read(path) if os.path.exists(path) else ""
    departure = folder.remove([sent(name, status, text)])[name]
    if departure.error is not None:
        raise departure.error
    assert departure.fate in {Fate.GONE, Fate.CHANGED, Fate.UNSURE}
    return departure.fate is Fate.GONE


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
        if PRIVATE not in where or name in {"file", "0"}
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
    assert remove(folder, "a", status)
    assert not os.path.exists(path)
    assert taken(folder) == []


def test_orMoved(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "done").mkdir()
    folder = OutboxFolder(str(tmp_path / "out"), keep=str(tmp_path / "done"))
    for content in "12":
        _, status = put(folder, "d/a", content)
        assert remove(folder, "d/a", status)
    folder.close()
    assert (tmp_path / "done/d/a").read_text() == "1"
    assert (tmp_path / "done/d/a.1").read_text() == "2"


def test_aChangeSinceTheSendingKeepsIt(folder):
    path, status = put(folder)
    with open(path, "a") as file:
        file.write("more")
    assert not remove(folder, "a", status)
    assert read(path) == "xmore"


def test_aWriterThatStillHasItOpenKeepsIt(folder):
    path, _ = put(folder)
    with open(path, "a") as writer:
        status = versionOf(os.stat(path))
        assert not remove(folder, "a", status)
        writer.write("more")
    assert read(path) == "xmore"
    assert taken(folder) == []
    assert remove(folder, "a", versionOf(os.stat(path)))


def test_aReaderDoesNot(folder):
    path, status = put(folder)
    with open(path):
        assert remove(folder, "a", status)


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
    assert not remove(folder, name, status)
    writers[0].write("more")
    writers[0].close()
    assert read(path) == "new"
    assert contents(folder) == ["new", "xmore"]


def test_whatHasAWriterIsNotEvenTaken(folder):
    path, status = put(folder)
    with open(path, "a"):
        assert not remove(folder, "a", status)
    assert versionOf(os.stat(path)) == status, "it would be another file, and be sent at once"


def test_aRestartPutsBackWhatWasTaken(folder):
    place = os.path.join(folder.path, PRIVATE, TAKEN, "0123")
    os.mkdir(place)
    with open(os.path.join(place, "name"), "w") as file:
        file.write("d/a")
    with open(os.path.join(place, "file"), "w") as file:
        file.write("content")
    folder.close()
    again = OutboxFolder(folder.path)
    assert set(again.scan()) == {"d/a"}
    again.close()
    assert read(os.path.join(folder.path, "d/a")) == "content"
    assert taken(again) == []


def test_aRestartLosesNothingWithoutItsName(folder):
    place = os.path.join(folder.path, PRIVATE, TAKEN, "0123")
    os.mkdir(place)
    with open(os.path.join(place, "file"), "w") as file:
        file.write("content")
    folder.close()
    again = OutboxFolder(folder.path)
    again.scan()
    again.close()
    assert read(os.path.join(folder.path, "recovered-0123")) == "content"


def test_whatCannotBeMovedStays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "done").mkdir()
    (tmp_path / "done/d").write_text("a file")
    folder = OutboxFolder(str(tmp_path / "out"), keep=str(tmp_path / "done"))
    path, status = put(folder, "d/a")
    with pytest.raises(OSError):
        remove(folder, "d/a", status)
    assert versionOf(os.stat(path)) == status, "it would be another file, and be sent at once"
    assert taken(folder) == []
    folder.close()


def test_anErrorOnTheWayPutsItBack(folder, monkeypatch):
    path, status = put(folder)

    unlink = os.unlink

    def broken(path):
        if path.endswith("/0"):
            raise OSError(errno.EIO, "Input/output error")
        unlink(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", broken)
        with pytest.raises(OSError):
            remove(folder, "a", status)
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
    again = OutboxFolder(folder.path)
    again.scan()
    again.close()
    assert read(os.path.join(folder.path, "recovered-a")) == "content"
    assert read(os.path.join(folder.path, "d")) == "new"


def test_aFolderThatCannotBeWrittenToIsOneLine(folder, monkeypatch):
    folder.close()

    def full(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
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


def atCall(number, act, made):
    """
    @param made: gets an item for each call.
    @return: wraps functions so that C{act} comes before the call of that number.
    """

    def wrap(call):
        def calling(*arguments, **keywords):
            made.append(call)
            if len(made) == number:
                act()
            return call(*arguments, **keywords)

        return calling

    return wrap


@pytest.mark.parametrize("act", ["remove", "setAside"])
@pytest.mark.parametrize("calls", range(1, 9))
def test_aProducersReplacementStays(folder, monkeypatch, act, calls):
    """
    The producer renames a new file over the old name before any step.
    """
    path, status = put(folder, "a", "old")
    made = []

    def replace():
        with open(path + ".new", "w") as file:
            file.write("new")
        os.replace(path + ".new", path)

    before = atCall(calls, replace, made)
    with monkeypatch.context() as patched:
        for name in ("mkdir", "rename", "unlink", "rmdir", "lstat", "link"):
            patched.setattr(os, name, before(getattr(os, name)))
        if act == "remove":
            remove(folder, "a", status)
        else:
            folder.setAside("a", status, "because")
    if len(made) < calls:
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
        again = OutboxFolder(str(out), str(tmp_path / "done") if act == "keep" else None)
        there = {*again.scan()}
        again.close()
        assert taken(again) == []
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
        elif act != "keep" and not there:
            # the restart goes on: its writer is gone, and it is what was sent
            assert death > 3, "not before it was taken"
        else:
            assert there == {"d/a"}
            assert read(out / "d/a") == "content"
            assert kept == []
        if survived:
            break
    assert survived
    assert there == ({"d/a"} if act == "writer" else set())


def writersOnceTaken(paths):
    return [Answer(Writers.SOME if TAKEN in path else Writers.NONE) for path in paths]


def dieIn(out, act, death):
    """
    In a child: do it, and die before a call.
    """
    dying = atCall(death, lambda: os._exit(9), [])
    try:
        keep = str(out.parent / "done") if act == "keep" else None
        folder = OutboxFolder(str(out), keep)
        status = versionOf(os.stat(out / "d/a"))
        for name in ("mkdir", "fsync", "rename", "unlink", "rmdir", "link"):
            setattr(os, name, dying(getattr(os, name)))
        Syscalls.renameNoReplace = staticmethod(dying(Syscalls.renameNoReplace))
        if act == "setAside":
            folder.setAside("d/a", status, "because")
        elif act == "writer":
            removal.writersOf = writersOnceTaken
            remove(folder, "d/a", status)
        else:
            remove(folder, "d/a", status)
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
            remove(folder, "a", status) if act == "remove" else folder.setAside("a", status, "why")
    assert versionOf(os.stat(path)) == status
    assert taken(folder) == []


@pytest.mark.parametrize("same", [True, False])
def test_whatCannotBePutBackIsByTheNextScan(folder, monkeypatch, same):
    """
    If it is still to be put back: it may be removed by then.
    """
    _, status = put(folder, "d/a")
    text = "x" if same else "y"

    def fail(*arguments, **keywords):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", fail)
        patched.setattr(Syscalls, "renameNoReplace", fail)
        with pytest.raises(OSError):
            remove(folder, "d/a", status, text)
        assert folder.scan() == {}
    assert set(folder.scan()) == (set() if same else {"d/a"})
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
        patched.setattr(removal, "writersOf", writersOnceTaken)
        assert not remove(folder, "a", status)
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
    before = versionOf((out / "readable").stat())
    pid = os.fork()
    if pid == 0:
        os.chdir(out)
        os.setgid(65534)
        os.setuid(65534)
        try:
            folder = OutboxFolder(".")
            assert not remove(folder, "readable", versionOf(os.stat("readable")))
            assert folder.setAside("secret", versionOf(os.stat("secret")), "unreadable")
            assert taken(folder) == []
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert versionOf((out / "readable").stat()) == before
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
    again = OutboxFolder(folder.path)
    found = again.scan()
    again.close()
    assert contents(folder) == ["new", "old"]
    assert name in found


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
        assert remove(folder, name, status)
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
    memory = [Remembered("d/a", (1, 2, 3), 2), Remembered("b", (1,), 0, b"salt")]
    folder.remember(memory)
    assert sorted(folder.remembered(), key=str) == sorted(memory, key=str)


def test_theRecordOfTheReleaseBeforeIsRead(folder):
    with open(os.path.join(folder.path, PRIVATE, "record.json"), "w") as file:
        file.write('[["d/a", [1, 2, 3, 4, 5], 2]]')
    assert folder.remembered() == [Remembered("d/a", (1, 2, 3, 4, 5), 2)]


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


def test_temporaryNamesAreLeftAlone(folder):
    for name in ("a", ".a.Xy12Z9", "b.part", ".~tmp~/c", ".rsync-partial/d", "e/f.tmp", "g.part/h"):
        put(folder, name)
    assert set(folder.scan()) == {"a"}
    assert folder.temporaryCount == 3, "files, as far as they were seen"
    folder.close()
    other = OutboxFolder(
        folder.path, temporary=TemporaryNames(usual=False), choice=Choice.ignoring(["a"])
    )
    assert set(other.scan()) == {
        ".a.Xy12Z9",
        "b.part",
        ".~tmp~/c",
        ".rsync-partial/d",
        "e/f.tmp",
        "g.part/h",
    }
    other.close()


def test_ourOwnDirectoryIsMadeAgain(folder):
    """
    Somebody cleaned up: what is left goes on, and nobody else gets the folder.
    """
    shutil.rmtree(os.path.join(folder.path, PRIVATE))
    path, status = put(folder)
    assert set(folder.scan()) == {"a"}
    assert remove(folder, "a", status)
    assert not os.path.exists(path)
    with pytest.raises(StartFailed, match="another process"):
        OutboxFolder(folder.path)


def test_whatIsOnAnotherFileSystemIsSaid(folder, tmp_path):
    """
    It could not be renamed out of it, and would be sent for ever.
    """
    put(folder, "a")
    with mounted("tmpfs", tmp_path / "out") as at:
        (at / "b").write_text("x")
        assert set(folder.scan()) == {"a"}
        assert folder.leftOut == {
            "it is on another file system; give it a filesend of its own": str(at)
        }


def test_filesThatStayAreRemembered(folder):
    rows = []
    for name in ("a", "b", "c"):
        _, status = put(folder, name)
        rows.append(Remembered(name, status, kept=True))
    folder.rememberKept(rows[:1])
    folder.rememberKept(rows[1:])
    record = os.path.join(folder.path, PRIVATE, "kept.jsonl")
    with open(record, "a") as file:
        file.write('\x00 damaged\n["d"]\n')
    os.unlink(os.path.join(folder.path, "b"))
    put(folder, "c", "changed")
    assert folder.remembered() == rows[:1]
    assert len(read(record).splitlines()) == 1, "what is over is forgotten"
    assert folder.remembered() == rows[:1]


def test_aLookBeforeItIsSent(folder, monkeypatch):
    put(folder, "a", "content")
    looks = folder.look(["a", "gone"])
    assert looks["a"].answer == Answer(Writers.NONE)
    assert looks["a"].content is None
    assert isinstance(looks["gone"].answer, FileNotFoundError)
    unknown = Answer(Writers.UNKNOWN, "because")
    monkeypatch.setattr(outboxfolder, "writersOf", lambda paths: [unknown] * len(paths))
    looks = folder.look(["a", "gone"])
    assert looks["a"].content == rootOfText("content")
    assert looks["gone"].content is None
