"""
Real files and real processes; on file systems of its own where they can be mounted.
"""

import contextlib
import mmap
import os
import signal
import subprocess
import sys

import pytest

from connpool.transfer.send import openfiles
from connpool.transfer.send.openfiles import Answer, Writers, findWriters, writersOf
from tests.helpers.mounts import mounted

#: Holds a file as it is told, says so, and waits for the end of its input.
HOLDER = """
import fcntl, mmap, signal, sys
path, how = sys.argv[1:]
file = open(path, "rb" if how == "read" else "rb+")
if how == "mapped":
    mapping = mmap.mmap(file.fileno(), 1)
    file.close()
if how == "leased":
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("holds", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(path, how):
    """
    Another process has the file open.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"holds\n"
        yield
    finally:
        process.communicate(timeout=20)


@pytest.fixture(params=["disk", "tmpfs", "overlay", "fuse"])
def place(request, tmp_path):
    if request.param == "disk":
        yield request.param, tmp_path
    else:
        (tmp_path / "mount").mkdir()
        with mounted(request.param, tmp_path / "mount") as at:
            yield request.param, at


def ask(path):
    (answer,) = writersOf([str(path)])
    return answer.writers


def test_writersAreFoundOnAnyFileSystem(place):
    kind, directory = place
    path = directory / "a"
    path.write_bytes(b"x")
    nobody = Writers.UNKNOWN if kind == "fuse" else Writers.NONE
    if kind == "overlay" and not seesEverything():
        nobody = Writers.UNKNOWN
    assert ask(path) is nobody
    for how in ("written", "mapped"):
        with held(path, how):
            assert ask(path) is Writers.SOME, how
        assert ask(path) is nobody, how
    with held(path, "read"):
        assert ask(path) is nobody


def seesEverything():
    # a container without the capability, or with processes of its own
    return openfiles.openForWriting()[1]


def test_aMappingWhoseDescriptorIsClosed(tmp_path):
    """
    In our own process, too.
    """
    path = tmp_path / "a"
    path.write_bytes(b"x")
    with path.open("rb+") as file:
        mapping = mmap.mmap(file.fileno(), 1)
    assert ask(path) is Writers.SOME
    mapping.close()
    assert ask(path) is Writers.NONE


def test_theWriterIsNotHeldUp(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert findWriters([fd]) == [Answer(Writers.NONE)]
    # it would fail at once if the lease were still held
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    os.close(fd)


def test_theSignalOfALeaseIsIgnoredUnlessItIsUsed():
    before = signal.getsignal(signal.SIGIO)
    try:
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        openfiles.ignoreLeaseSignals()
        assert signal.getsignal(signal.SIGIO) is signal.SIG_IGN
        signal.signal(signal.SIGIO, test_theWriterIsNotHeldUp)
        openfiles.ignoreLeaseSignals()
        assert signal.getsignal(signal.SIGIO) is test_theWriterIsNotHeldUp
    finally:
        signal.signal(signal.SIGIO, before)


def asNobody(function):
    """
    Run C{function} in a child with another uid and no capabilities.

    @return: its text.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, function().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files of two users")
def test_filesOfAnotherUserAreNotKnown(tmp_path):
    """
    No lease without C{CAP_LEASE}, and no sight of others' descriptors.
    """
    for directory in (tmp_path, *tmp_path.parents):
        if directory.name.startswith(("pytest-", "popen-", tmp_path.name)):
            directory.chmod(0o755)
    path = tmp_path / "a"
    path.write_bytes(b"x")
    path.chmod(0o666)

    def answer():
        (answer,) = writersOf([str(path)])
        return f"{answer.writers.value} {answer.why}"

    with held(path, "mapped"):
        assert "another user" in asNobody(answer)
        assert asNobody(answer).startswith("unknown")

    def own():
        with path.open("rb+"):
            return answer()

    assert asNobody(own).startswith("some"), "our own descriptors can be seen"


def test_aWriteLeaseIsAWriter(tmp_path):
    """
    Samba holds one for a file that its client has open; opening it fails then.
    """
    path = tmp_path / "a"
    path.write_bytes(b"x")
    with held(path, "leased"):
        assert ask(path) is Writers.SOME
    assert ask(path) is Writers.NONE


def test_whatCannotBeOpenedIsAnError(tmp_path):
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a").write_bytes(b"x")
    missing, link, file = writersOf([str(tmp_path / name) for name in ("no", "link", "a")])
    assert isinstance(missing, FileNotFoundError)
    assert isinstance(link, OSError)
    assert file.writers is Writers.NONE


@pytest.mark.parametrize("hidden", ["container", "process", "hidepid", "none"])
def test_whoIsNotSeenMayWrite(tmp_path, monkeypatch, hidden):
    """
    Where leases prove nothing, C{/proc} does only if it is whole.
    """
    path = tmp_path / "a"
    path.write_bytes(b"x")
    listdir, stat = os.listdir, os.stat
    monkeypatch.setattr(openfiles, "filesystemType", lambda fd: "overlay")
    monkeypatch.setattr(openfiles, "_FIRST_PID_NAMESPACE", stat("/proc/self/ns/pid").st_ino)

    def listing(path):
        if path == "/proc":
            return [str(os.getpid())] + ["1"] * (hidden != "hidepid")
        if path.startswith("/proc/1/"):
            if hidden == "process":
                raise PermissionError
            return []
        return listdir(path) if path.endswith("/fd") else []

    if hidden == "container":
        monkeypatch.setattr(openfiles, "_FIRST_PID_NAMESPACE", 1)
    monkeypatch.setattr(os, "listdir", listing)
    assert ask(path) is (Writers.NONE if hidden == "none" else Writers.UNKNOWN)
    with path.open("rb+"):
        assert ask(path) is Writers.SOME


@pytest.mark.parametrize("filesystem", ["nfs4", "fuse.sshfs", "9p", "never-heard-of"])
def test_otherMachinesAreNotInProc(tmp_path, monkeypatch, filesystem):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    monkeypatch.setattr(openfiles, "filesystemType", lambda fd: filesystem)
    (answer,) = writersOf([str(path)])
    assert answer.writers is Writers.UNKNOWN
    assert filesystem in answer.why
