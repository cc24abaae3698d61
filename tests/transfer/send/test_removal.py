"""
Removing sources: only the very content that the receiver has.
"""

import mmap
import os

import pytest

from connpool.transfer.digests import BLOCK_SIZE, digestNamed, rootOf
from connpool.transfer.send import removal
from connpool.transfer.send.openfiles import Answer, Writers
from connpool.transfer.send.removal import Departure, Fate, Removal, Sent, contentRoot
from connpool.transfer.send.source import versionOf

BLAKE3 = digestNamed("blake3")


class Place:
    """
    A folder, our directory in it, and where sources are moved to.
    """

    def __init__(self, directory):
        self.directory = directory
        self.folder = directory / "folder"
        self.taken = self.folder / ".connpool-outbox/taken"
        self.taken.mkdir(parents=True)

    def build(self, **how):
        return Removal(str(self.folder), str(self.taken), **how)

    def put(self, name, content=b"x"):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return sent(path, name, content)

    def files(self):
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


def sent(path, name, content):
    blocks = [BLAKE3.of(content[at : at + BLOCK_SIZE]) for at in range(0, len(content), BLOCK_SIZE)]
    root = rootOf(BLAKE3, len(content), BLOCK_SIZE, blocks)
    return Sent(name, versionOf(path.stat()), len(content), "blake3", root)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def overwrite(path, content, status):
    """
    As a mapping does: the same size, the same times.
    """
    with path.open("rb+") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE + 7])
def test_theRootIsThatOfTheReceipt(tmp_path, size):
    path = tmp_path / "a"
    path.write_bytes(content := os.urandom(size))
    with path.open("rb") as file:
        assert contentRoot(file.fileno(), size, BLAKE3) == sent(path, "a", content).root
        assert contentRoot(file.fileno(), size + 1, BLAKE3) is None


def test_eachHasAFateOfItsOwn(place):
    files = {name: place.put(name, name.encode()) for name in ("a", "b", "c", "d", "e")}
    (place.folder / "b").unlink()
    (place.folder / "c").write_bytes(b"other")
    with (place.folder / "d").open("a"):
        fates = place.build().remove(list(files.values()))
    assert {name: departure.fate for name, departure in fates.items()} == {
        "a": Fate.GONE,
        "b": Fate.GONE,
        "c": Fate.CHANGED,
        "d": Fate.CHANGED,
        "e": Fate.GONE,
    }
    assert place.files() == {"c": b"other", "d": b"d"}
    assert list(place.taken.iterdir()) == []


def test_moreThanFitIntoABatch(place, monkeypatch):
    monkeypatch.setattr(removal, "_BATCH_FILES", 3)
    monkeypatch.setattr(removal, "_PLACE_FILES", 7)
    opened, synced = [], []
    writersOf, fsync = removal.writersOf, os.fsync
    monkeypatch.setattr(
        removal, "writersOf", lambda paths: opened.append(paths) or writersOf(paths)
    )
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd) or fsync(fd))
    files = [place.put(f"{n}", b"%d" % n) for n in range(10)]
    fates = place.build().remove(files)
    assert [departure.fate for departure in fates.values()] == [Fate.GONE] * 10
    assert place.files() == {}
    # before they are taken, and after
    assert [len(paths) for paths in opened] == [3, 3, 1, 3, 3, 1, 3, 3]
    # the list of each place, and its name
    assert len(synced) == 2 * 2


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("digest", ["blake3", "never-heard-of"])
def test_contentCountsNotTimes(place, monkeypatch, size, digest):
    """
    What was written through a mapping after the receipt.
    """
    each = place.put("a", bytes(size))
    path = place.folder / "a"
    rename = os.rename

    def renaming(source, target):
        if source == str(path):
            overwrite(path, b"1", path.stat())
        rename(source, target)

    if digest == "blake3":
        monkeypatch.setattr(os, "rename", renaming)
    else:
        each = Sent(each.path, each.version, each.size, digest, each.root)
    assert place.build().remove([each])["a"].fate is Fate.CHANGED
    assert path.read_bytes()[:1] == (b"1" if digest == "blake3" else b"\0")
    assert list(place.taken.iterdir()) == []


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_aWriterFromBeforeTheRenameKeepsIt(place, monkeypatch, how):
    """
    It opened the file when we had looked already, and writes after the receipt.
    """
    each = place.put("a", b"first")
    path = place.folder / "a"
    rename, writers = os.rename, []

    def renaming(source, target):
        if source == str(path):
            file = path.open("rb+")
            if how == "mapped":
                writers.append(mmap.mmap(file.fileno(), 5))
                file.close()
            else:
                writers.append(file)
        rename(source, target)

    monkeypatch.setattr(os, "rename", renaming)
    assert place.build().remove([each])["a"].fate is Fate.CHANGED
    (writer,) = writers
    writer.write(b"later")
    writer.close()
    assert path.read_bytes() == b"later"


def test_aFileThatIsWrittenWhileItIsReadAgain(place, monkeypatch):
    each = place.put("a", bytes(10))
    read = os.pread

    def reading(fd, size, at):
        data = read(fd, size, at)
        os.utime(fd)  # by who has it open in a way that nobody can see
        return data

    monkeypatch.setattr(os, "pread", reading)
    assert place.build().remove([each])["a"].fate is Fate.CHANGED
    assert place.files() == {"a": bytes(10)}


def test_anotherNameOfTheFileStays(place):
    each = place.put("a", b"content")
    os.link(place.folder / "a", place.directory / "other")
    each = sent(place.folder / "a", "a", b"content")
    assert place.build().remove([each])["a"].fate is Fate.GONE
    (place.directory / "other").write_bytes(b"written later")
    assert place.files() == {}
    assert (place.directory / "other").read_bytes() == b"written later"


def test_twoNamesOfOneFileInTheFolder(place):
    place.put("a", b"content")
    os.link(place.folder / "a", place.folder / "b")
    both = [sent(place.folder / name, name, b"content") for name in ("a", "b")]
    fates = place.build().remove(both)
    assert {departure.fate for departure in fates.values()} == {Fate.GONE}
    assert place.files() == {}


@pytest.mark.parametrize("trust", [True, False])
def test_whereNobodyKnowsItGoesOnlyIfThatIsMeant(place, monkeypatch, trust):
    monkeypatch.setattr(
        removal, "writersOf", lambda paths: [Answer(Writers.UNKNOWN, "because")] * len(paths)
    )
    each = place.put("a")
    fate = place.build(trustSettled=trust).remove([each])["a"].fate
    assert fate is (Fate.GONE if trust else Fate.UNSURE)
    assert place.files() == ({} if trust else {"a": b"x"})


def test_whereThatIsNotKnownAnyMoreItStays(place, monkeypatch):
    """
    It was known before the rename.  It must not be sent again and again.
    """
    monkeypatch.setattr(
        removal,
        "writersOf",
        lambda paths: [
            Answer(Writers.UNKNOWN if "taken" in path else Writers.NONE) for path in paths
        ],
    )
    each = place.put("a")
    departure = place.build().remove([each])["a"]
    there = versionOf((place.folder / "a").stat())
    assert departure == Departure(Fate.UNSURE, version=there)


@pytest.mark.parametrize("keepDirectories", [True, False])
def test_directoriesThatItEmptiedGo(place, keepDirectories):
    (place.folder / "never-used").mkdir()
    files = [place.put(name) for name in ("d/e/f/a", "d/e/b", "g/c", "h/i/k")]
    (place.folder / "g/stays").write_bytes(b"")
    (place.folder / "h/empty").mkdir()
    place.build(keepDirectories=keepDirectories).remove(files)
    there = {str(path.relative_to(place.folder)) for path in place.folder.rglob("*")}
    there -= {".connpool-outbox", ".connpool-outbox/taken"}
    emptied = {"d", "d/e", "d/e/f", "h/i"} if keepDirectories else set()
    assert there == {"never-used", "g", "g/stays", "h", "h/empty"} | emptied


def test_theDirectoryComesBackWithTheFile(place, monkeypatch):
    """
    It was emptied, and one of its files is put back.
    """
    files = [place.put("d/a", b"a"), place.put("d/b", b"b")]
    rename = os.rename

    def renaming(source, target):
        rename(source, target)
        if source.endswith("/b"):
            overwrite(place.taken.joinpath(target), b"c", os.stat(target))
            os.rmdir(place.folder / "d")

    monkeypatch.setattr(os, "rename", renaming)
    place.build().remove(files)
    assert place.files() == {"d/b": b"c"}


@pytest.mark.parametrize("changed", [True, False])
def test_aStopIsNotHeldUpByALargeFile(place, monkeypatch, changed):
    """
    It waits, taken, for the next start.
    """
    monkeypatch.setattr(removal, "_LONG_BYTES", 2 << 20)
    content = os.urandom(4 << 20)
    each = place.put("d/a", content)
    stopping = place.build()
    read = os.pread

    def reading(fd, size, at):
        stopping.interrupt()
        return read(fd, size, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", reading)
        assert stopping.remove([each, place.put("b")]) == {
            "d/a": Departure(Fate.LATER),
            "b": Departure(Fate.GONE),
        }
    assert not (place.folder / "d/a").exists()
    (waiting,) = place.taken.iterdir()
    if changed:
        overwrite(waiting / "0", b"changed", (waiting / "0").stat())
    assert place.build().recover(str(waiting)) == ([] if changed else ["d/a"])
    assert set(place.files()) == ({"d/a"} if changed else set())
    assert list(place.taken.iterdir()) == []


def test_aListThatIsDamagedLosesNothing(place):
    where = place.taken / "0123"
    where.mkdir()
    (where / "names").write_text('[["a", 1, "bl')
    (where / "0").write_bytes(b"content")
    place.build().recover(str(where))
    assert place.files() == {"recovered-0123-0": b"content"}


def test_anErrorSaysWhatIsThereNow(place, monkeypatch):
    """
    What is put back after an error is not another file to be sent at once.
    """
    each = place.put("a")

    def broken(*arguments, **keywords):
        raise OSError(5, "Input/output error")

    unlink = os.unlink
    monkeypatch.setattr(
        os, "unlink", lambda path: broken() if path.endswith("/0") else unlink(path)
    )
    departure = place.build().remove([each])["a"]
    assert departure.fate is Fate.FAILED
    assert departure.version == versionOf((place.folder / "a").stat()) != each.version
