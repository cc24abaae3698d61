"""
C{connpool send} as a user has it: terminals, files that cannot be written,
mistakes, and Ctrl-C.
"""

import contextlib
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from connpool.commands.progress import Progress
from connpool.transfer.send.credentials import readCredentials
from tests.helpers.processes import CONNPOOL, Popen, connpool, environment, run, running, within
from tests.helpers.receiving import Receiving, content
from tests.helpers.valve import Valve
from tests.transfer import peer

COMMAND = [*CONNPOOL, "send"]


@pytest.fixture
def many(source):
    for number in range(300):
        (source / f"{number}").write_bytes(content(number, number))
    return source


def sent(receiving, *arguments, **streams):
    """
    Run to its end with other streams than pipes.
    """
    return run(
        [*COMMAND, "--to", receiving.place, "--durability", "none", *arguments],
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment(XDG_STATE_HOME=str(receiving.tmp_path / "state")),
        **streams,
    )


def onTerminal(receiving, *arguments, stdout=None):
    """
    Run with a terminal as standard error, and as standard output if that is
    left out.

    @return: the exit code, and what the terminal was given.
    """
    ours, theirs = pty.openpty()
    shown = []

    def read():
        try:
            while data := os.read(ours, 65536):
                shown.append(data)
        except OSError:
            pass  # nobody has it open any more

    thread = threading.Thread(target=read)
    thread.start()
    try:
        stdout = theirs if stdout is None else stdout
        code = sent(receiving, *arguments, stdout=stdout, stderr=theirs).returncode
    finally:
        os.close(theirs)
        thread.join(10)
        os.close(ours)
    return code, b"".join(shown).decode()


# -- a terminal -----------------------------------------------------------------------


def test_linesToAFileWithABar(receiving, source, tmp_path):
    """
    The bar does not take what goes to standard output.
    """
    (source / "a").write_bytes(b"x")
    with (tmp_path / "lines").open("w") as lines:
        code, shown = onTerminal(receiving, "--json", source / "a", source / "no", stdout=lines)
    assert code == 3
    written = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert {line["name"]: line["status"] for line in written} == {"a": "stored", "no": "failed"}
    # a bar, and above it lines of their own
    assert "\x1b[?25l" in shown
    assert "\x1b[2Kconnpool send: no: cannot read it: No such file or directory\r\n" in shown
    assert '"status"' not in shown


def test_linesToTheTerminal(receiving, source):
    """
    Without a bar that would come in between.
    """
    (source / "a").write_bytes(b"x")
    code, shown = onTerminal(receiving, "--json", source / "a")
    assert code == 0
    assert "\x1b" not in shown
    assert json.loads(shown.splitlines()[0])["name"] == "a"


def test_namesOnATerminal(receiving, source):
    name = "a:bomb:[red]b.txt"
    code, shown = onTerminal(receiving, source / name)
    assert code == 3
    assert f"connpool send: {name}: cannot read it" in shown


def test_neverMoreThanAll(monkeypatch):
    monkeypatch.setattr("connpool.commands.progress._LINE_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with Progress() as progress:
        progress.show("f", 15, 3)
        progress.show("f", 15, None)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("f: 3 B of 3 B")
    assert second.startswith("f: 15 B")


# -- output that cannot be written ------------------------------------------------------


def test_receiptsToAFullDisk(receiving, many):
    done = sent(receiving, "--receipt", "/dev/full", many)
    assert done.returncode == 1
    first, summary = done.stderr.splitlines()
    assert first == "connpool send: --receipt: cannot write: No space left on device"
    assert summary.startswith("300 files")
    assert len(receiving.files()) == 300
    # what went wrong with the files counts more
    assert sent(receiving, "--receipt", "/dev/full", many, many / "no").returncode == 3


def test_linesToAClosedPipe(receiving, many):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = sent(receiving, "--json", many, stdout=writing)
    finally:
        os.close(writing)
    assert done.returncode == 1
    first, summary = done.stderr.splitlines()
    assert first == "connpool send: --json: cannot write: Broken pipe"
    assert summary.startswith("300 files")
    assert len(receiving.files()) == 300


def test_nobodyReadsTheMessages(receiving, many):
    with open("/dev/full", "w") as full:
        done = sent(receiving, many, many / "no", stderr=full)
    assert done.returncode == 3
    assert len(receiving.files()) == 300


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closedStreams(receiving, source, closed):
    (source / "a").write_bytes(b"x")
    command = [*COMMAND, "--to", receiving.place, "--durability", "none", "--json", source / "a"]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(XDG_STATE_HOME=str(receiving.tmp_path / "state")),
    )
    if closed == ">&-":
        assert done.returncode == 2
        assert done.stderr == "connpool send: --json: standard output is closed\n"
    else:
        assert done.returncode == 0
        assert json.loads(done.stdout)["status"] == "stored"


def test_receiptsOfWhatWasStored(receiving, source, tmp_path):
    """
    They are there whatever happens to the rest.
    """
    (source / "a").write_bytes(b"x")
    receipts = tmp_path / "receipts"
    reading, writing = os.pipe()
    with Popen(
        [
            *(*COMMAND, "--to", receiving.place, "--durability", "none"),
            *("--receipt", receipts, source / "a", "-"),
        ],
        stdin=reading,
        stderr=subprocess.DEVNULL,
        env=environment(XDG_STATE_HOME=str(tmp_path / "state")),
    ) as sender:
        os.close(reading)
        try:
            assert within(lambda: receipts.exists() and receipts.read_text().endswith("\n"), 20)
        finally:
            sender.kill()
            sender.wait(10)
            os.close(writing)
    assert json.loads(receipts.read_text())["name"] == "a"


# -- mistakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("no/such", "No such file or directory"),
        (".", "Is a directory"),
        ("fifo", "No such device or address"),
        ("", "No such file or directory"),
    ],
)
def test_receiptsThatCannotBeOpened(tmp_path, what, why):
    os.mkfifo(tmp_path / "fifo")
    path = what and tmp_path / what
    done = connpool("send", "--to", "127.0.0.1:1", "--receipt", path, tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"connpool send: --receipt: {path}: {why}\n"


def test_receiptsToAFifo(receiving, source, tmp_path):
    (source / "a").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert sent(receiving, "--receipt", tmp_path / "fifo", source / "a").returncode == 0
        assert json.loads(os.read(reading, 65536))["name"] == "a"
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    "mistake", [("--name", os.fsdecode(b"\xff")), ("--timeout", "1e18"), ("--timeout", "nan")]
)
def test_mistakes(mistake):
    done = connpool("send", *mistake, "-")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"error: argument {mistake[0]}: " in done.stderr.splitlines()[-1]


def test_aPlaceThatIsNotUTF8(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    to = "unix:/no/such/" + os.fsdecode(b"\xff")
    done = connpool("send", "--to", to, tmp_path / "a", XDG_STATE_HOME=str(tmp_path / "state"))
    assert done.returncode == 7
    assert done.stderr.startswith("connpool send: a: cannot connect: ")
    assert done.stderr.count("\n") == 1


def test_aDamagedSecret(tmp_path):
    (tmp_path / "connpool").mkdir()
    (tmp_path / "connpool" / "secret").write_bytes(b"abc")
    done = connpool("send", "--to", "127.0.0.1:1", tmp_path, XDG_STATE_HOME=str(tmp_path))
    assert done.returncode == 3
    assert "secret is damaged; remove it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_credentialsThatCannotBeUsed(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ValueError, match="write USER:PASSWORD"):
        readCredentials(str(tmp_path / "fifo"), {})
    (tmp_path / "strange").write_bytes(b"\xff:secret")
    (tmp_path / "strange").chmod(0o600)
    with pytest.raises(ValueError, match="the user's name is not UTF-8"):
        readCredentials(str(tmp_path / "strange"), {})


# -- what became of it ------------------------------------------------------------------


def test_dryLines(receiving, source):
    (source / "a").write_bytes(b"x")
    (source / "b:c").write_bytes(b"x")
    dry = receiving.send("--dry-run", "--json", source)
    lines = [json.loads(line) for line in dry.stdout.splitlines()]
    found = {
        line["name"]: (line["status"], line["error"] and line["error"]["code"]) for line in lines
    }
    assert found == {
        "source/a": ("would-be-taken", None),
        "source/b:c": ("failed", "name-refused"),
    }
    assert dry.returncode == 4
    assert receiving.files() == {}


def test_severalReasons(receiving, source):
    (source / "a").write_bytes(b"x")
    for number in range(5):
        (source / f"{number}:").write_bytes(b"x")
    # those that failed did for one reason
    refused = receiving.send(source)
    assert refused.returncode == 4
    lines = refused.stderr.splitlines()
    assert len([line for line in lines if 'file name "source/' in line]) == 3
    assert lines[3].startswith(
        'connpool send: 2 more files: the receiver says: file name "…" refused: '
    )
    assert lines[4].startswith("1 of 6 files, 1 B")
    both = receiving.send(source, source / "no")
    assert both.returncode == 3
    assert len(both.stderr.splitlines()) == 6


# -- time, and Ctrl-C --------------------------------------------------------------------


def test_silenceAfterTheGreeting(source):
    """
    C{--timeout} is about the receiver's silence, then too.
    """
    (source / "a").write_bytes(b"x")
    held = []

    class Silent(peer.Receiver):
        def frameReceived(self, *_):
            """
            As if nothing had come.
            """

    def serve(connection):
        with contextlib.suppress(ConnectionResetError):
            Silent(connection).serve()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        with running(*COMMAND, "--to", place, "--timeout", "1", source / "a"):
            connection, _ = listener.accept()
            connection.settimeout(20)
            thread = threading.Thread(target=serve, args=[connection])
            thread.start()
            began = time.monotonic()
            held.append(listener.accept()[0])
            assert 1 <= time.monotonic() - began < 20
        thread.join(20)
        for each in (connection, *held):
            each.close()


#: The command with a tree that takes long to count.
COUNTING = """
import sys, time
import connpool.commands.sendnative
def walk(paths, choice):
    print("counting", flush=True)
    time.sleep(50)
    yield from ()
connpool.commands.sendnative.Walk = walk
from connpool.commands import main
sys.exit(main())
"""


def test_endsBeforeAllIsCounted(receiving, source):
    (source / "a").write_bytes(b"x")
    command = [sys.executable, "-c", COUNTING, *COMMAND[3:], "--durability", "none"]
    with running(*command, "--to", receiving.place, source) as sender:
        assert sender.process.wait(20) == 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        with running(*command, "--to", place, source) as sender:
            sender.waitFor("counting")
            sender.process.send_signal(signal.SIGINT)
            assert sender.process.wait(10) == 130
            sender.waitFor("interrupted: 0 stored")


def test_withoutAHome(tmp_path):
    """
    As in a container: a user without an entry, and no C{HOME}.
    """
    (tmp_path / "a").write_bytes(b"x")
    program = (
        "import os, pwd; pwd.getpwuid = lambda uid: {}[uid]; os.environ.pop('HOME', None);"
        "os.environ.pop('XDG_STATE_HOME', None);"
        "from connpool.commands import main; raise SystemExit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "send", "--to", "127.0.0.1:1", str(tmp_path / "a")],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env=environment(),
    )
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr


# -- what is not stored now, and is no failure --------------------------------------------


def lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_skippedIsSaid(receiving, source):
    (source / "f").write_bytes(b"one")
    receiving.send(source / "f")
    (source / "f").write_bytes(b"two")
    done = receiving.send(source / "f", "--if-exists", "skip", "--json")
    assert done.returncode == 0
    assert "1 file, skipped" in done.stderr
    [line] = lines(done)
    assert (line["status"], line["good"], line["receipt"]) == ("skipped", True, None)
    assert receiving.files() == {"f": b"one"}


def test_emptyDirectoriesAndTheirTimes(receiving, source):
    (source / "project/logs/archive").mkdir(parents=True)
    (source / "project/file").write_bytes(b"x")
    for number, name in enumerate(["project/logs/archive", "project/logs", "project"]):
        os.utime(source / name, ns=(0, 10**18 + number))
    for _ in range(2):  # also those that are there
        done = receiving.send(source / "project", "--json", durability="full")
        assert "3 directories" in done.stderr
        assert lines(done)[-1]["directories"] == 3
        for name in ("project/logs/archive", "project/logs", "project"):
            there = os.stat(receiving.root / name).st_mtime_ns
            assert there == os.stat(source / name).st_mtime_ns


def test_onlyLinks(receiving, source, tmp_path):
    (source / "links").mkdir()
    os.symlink(tmp_path, source / "links/a")
    done = receiving.send(source / "links", "--json")
    assert done.returncode == 0
    assert "1 symbolic link passed over" in done.stderr
    assert lines(done)[-1]["passedOver"] == 1


def test_aDryRunSaysWhatWouldNotGo(receiving, source):
    (source / "build").mkdir()
    for name in ("a", "b.log", "keep.log", "build/o"):
        (source / name).write_bytes(b"x")
    os.symlink("a", source / "link")
    patterns = ["--exclude=*.log", "--exclude=build/", "--include=keep.log"]
    done = receiving.send(source, "--dry-run", *patterns)
    assert done.returncode == 0
    assert set(done.stderr.splitlines()) == {
        "source/a: would be taken",
        "source/b.log: would be left out (--exclude *.log)",
        "source/build/: would be left out (--exclude build/)",
        "source/keep.log: would be taken",
        "source/link: would be left out (symbolic link)",
        "1 symbolic link passed over",
        "2 left out by patterns",
    }
    done = receiving.send(source, "--dry-run", "--json", *patterns)
    *each, summary = lines(done)
    assert {line["name"]: line.get("why") for line in each} == {
        "source/a": None,
        "source/b.log": "--exclude *.log",
        "source/build/": "--exclude build/",
        "source/keep.log": None,
        "source/link": "symbolic link",
    }
    assert (summary["leftOut"], summary["passedOver"]) == (2, 1)
    assert receiving.files() == {}
    assert receiving.send(source, *patterns).returncode == 0
    assert set(receiving.files()) == {"source/a", "source/keep.log"}


def test_aListFromStandardInput(receiving, source):
    (source / "d").mkdir()
    for name in ("a", "d/new\nline", "d/b"):
        (source / name).write_bytes(b"x")
    listing = b".\0./a\0./d\0./d/b\0./nothing\0"
    command = [*COMMAND, "--to", receiving.place, "--durability", "none", "--files-from", "-", "-0"]
    done = run(
        [*command, "--exclude", "new*", source],
        said=listing,
        env=environment(XDG_STATE_HOME=str(receiving.tmp_path / "state")),
    )
    assert done.returncode == 3
    assert b"nothing: cannot read it: No such file" in done.stderr
    assert receiving.files() == {"a": b"x", "d/b": b"x"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "name a PATH"),
        (["-0", "x"], "-0: it is about"),
        (["--files-from=/nonexistent"], "No such file"),
        (["--files-from=/dev/null", "x", "y"], "one PATH may"),
        (["--exclude=[", "x"], "no name fits"),
        (["--exclude-from=/nonexistent", "x"], "No such file"),
        (["--protocol=classic", "--exclude=x", "x"], "--exclude: the classic protocol"),
    ],
)
def test_mistakesInChoosing(words, why):
    done = connpool("send", *words)
    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="there is no /proc")
def test_aFileOfTheKernel(receiving):
    done = receiving.send("/proc/version")
    assert done.returncode == 0
    with open("/proc/version", "rb") as file:
        assert receiving.files() == {"version": file.read()}


def test_whatWasTakenAwaySinceAnEarlierRun(tmp_path):
    """
    Interrupted, emptied by a consumer, run again: delivered once, and said so.
    """
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5):
        (source / f"s{number}").write_bytes(content(number, number + 1))
    (source / "zlarge").write_bytes(content(16 << 20))
    receiving = Receiving(tmp_path)
    with receiving, contextlib.closing(Valve()) as valve:
        valve.target = receiving.port
        valve.allow(1 << 20)
        place = f"127.0.0.1:{valve.port}"
        command = [*COMMAND, "--to", place, "--durability", "none", source]
        state = str(tmp_path / "state")
        with running(*command, XDG_STATE_HOME=state) as sender:
            valve.waitUntilHeld()
            assert within((receiving.root / "source/s4").exists)
            sender.process.send_signal(signal.SIGINT)
            assert sender.process.wait(20) == 130
        for number in range(4):
            (receiving.root / f"source/s{number}").unlink()
        valve.allow(float("inf"))
        done = connpool(*command[len(CONNPOOL) :], "--json", XDG_STATE_HOME=state)
    assert done.returncode == 0, done.stderr
    assert "4 files, stored by an earlier run and taken away" in done.stderr
    assert "1 file, stored by an earlier run and still there" in done.stderr
    assert "2 files, " in done.stderr
    status = {line["name"]: (line["status"], line["earlier"]) for line in lines(done)[:-1]}
    assert status == {
        **{f"source/s{number}": ("taken-away", "gone") for number in range(4)},
        "source/s4": ("stored", "there"),
        "source/zlarge": ("stored", None),
    }
    assert set(receiving.files()) == {"source/s4", "source/zlarge"}
