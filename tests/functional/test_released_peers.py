"""
Released versions and today's send to each other.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import pytest

from connpool.transfer.syscalls import VOLATILE
from tests.conftest import filesystemOf
from tests.helpers.processes import run, within
from tests.helpers.receiving import content
from tests.helpers.released import TODAY, VERSIONS, receiving, released
from tests.helpers.trees import checkpointed
from tests.helpers.valve import Valve

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture(params=VERSIONS)
def version(request):
    return released(request.param)


@pytest.fixture(params=["released sends", "released receives"])
def pair(request, version):
    """
    The sender's programs, and the receiver's.
    """
    return (version, TODAY) if request.param == "released sends" else (TODAY, version)


@pytest.fixture
def valve():
    made = Valve()
    yield made
    made.close()


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def answersOf(done):
    """
    The lines of C{--json} by the names of their files, without backslashes; a
    line about something else has no path.
    """
    return {
        Path(line["path"]).name.replace("\\", ""): line
        for line in lines(done.stdout)
        if line.get("path") is not None
    }


def test_aDirectory(pair, source, tmp_path):
    """
    Small files and large ones, with times and modes, as durable as it can be.
    """
    sender, receiver = pair
    wanted = {"source/large": content(9 * MIB + 12_345), "source/报告/empty": b""}
    for number in range(200):
        wanted[f"source/d{number % 5}/{number}"] = content(number * 7, number)
    wanted["source/run"] = b"#!/bin/sh\n"
    for name, data in wanted.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, ns=(10**18, 10**18 + 987_654_321))
    (source / "run").chmod(0o755)
    receipts = tmp_path / "receipts"
    with receiving(receiver, tmp_path / "root", "--keep-exec") as there:
        done = sender.send("--to", there.address, "--receipt", receipts, source, cwd=tmp_path)
        volatile = filesystemOf(str(tmp_path)) in VOLATILE
        assert volatile or done.returncode == 0, done.stderr
        assert there.files() == wanted
        first = lines(receipts.read_text())
        assert {line["name"] for line in first} == set(wanted)
        assert {line["status"] for line in first} == {"stored"}
        assert {line["integrity"] for line in first} == {"verified"}
        assert volatile or {line["durability"] for line in first} == {"full"}
        assert (there.root / "source/run").stat().st_mode & 0o100
        for name in wanted:
            assert (there.root / name).stat().st_mtime_ns == 10**18 + 987_654_321
        # once more: nothing is there twice
        done = sender.send("--to", there.address, "--json", source, cwd=tmp_path)
        assert volatile or done.returncode == 0, done.stderr
        assert there.files() == wanted
        answers = answersOf(done).values()
        assert {line["receipt"]["status"] for line in answers} == {"duplicate"}


def test_durabilityByDefaultWhereNothingIsDurable(pair, source):
    """
    The receiver's version makes no difference to what the sender ends with.
    """
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no writable tmpfs")
    (source / "a").write_bytes(b"x")
    ends = []
    for receiver in (pair[0], pair[1]):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            with receiving(receiver, Path(directory) / "root") as there:
                done = pair[0].send("--to", there.address, source / "a", cwd=Path(directory))
                assert there.files() == {"a": b"x"}
            ends.append(done.returncode)
    assert ends[0] == ends[1]
    assert ends[0] in {0, 3}


def test_severalConnections(pair, source, tmp_path):
    sender, receiver = pair
    data = content(64 * MIB + 1)
    (source / "a").write_bytes(data)
    with receiving(receiver, tmp_path / "root") as there:
        done = sender.send(
            *("--to", there.address, "--durability", "none", "--jobs", "4"),
            source / "a",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert there.files() == {"a": data}


@pytest.mark.parametrize("rule", ["skip", "refuse", "replace", "rename"])
@pytest.mark.parametrize("size", [3, 3 * MIB], ids=["small", "large"])
def test_aNameThatIsTaken(pair, source, tmp_path, rule, size):
    sender, receiver = pair
    new = content(size)
    (source / "taken").write_bytes(new)
    (source / "z").write_bytes(b"z")
    (tmp_path / "root/source").mkdir(parents=True)
    (tmp_path / "root/source/taken").write_bytes(b"old")
    # only a receiver whose own rule it is replaces
    own = ["--if-exists", rule] if rule == "replace" else []
    with receiving(receiver, tmp_path / "root", *own) as there:
        done = sender.send(
            *("--to", there.address, "--durability", "none", "--if-exists", rule, "--json"),
            source,
            cwd=tmp_path,
        )
        files = there.files()
    answers = answersOf(done)
    assert set(answers) == {"taken", "z"}
    assert files.pop("source/z") == b"z"
    wanted = {
        "skip": {"source/taken": b"old"},
        "refuse": {"source/taken": b"old"},
        "replace": {"source/taken": new},
        "rename": {"source/taken": b"old", "source/taken (1)": new},
    }
    assert files == wanted[rule]
    if rule in {"replace", "rename"}:
        assert done.returncode == 0, done.stderr
        assert answers["taken"]["receipt"]["status"] == "stored"
    else:
        # never that it was stored
        receipt = answers["taken"]["receipt"]
        assert receipt is None or receipt["status"] == "skipped"
    if rule == "refuse":
        assert done.returncode != 0


def test_refusedNames(pair, source, tmp_path):
    sender, receiver = pair
    (source / "good").write_bytes(b"x")
    (source / "re\\fused").write_bytes(b"x")
    (source / "re:fused").write_bytes(content(3 * MIB))
    with receiving(receiver, tmp_path / "root") as there:
        done = sender.send(
            "--to", there.address, "--durability", "none", "--json", source, cwd=tmp_path
        )
        assert done.returncode in {3, 4}, done.stderr
        assert there.files() == {"source/good": b"x"}
    codes = {
        name: line["error"] and line["error"]["code"] for name, line in answersOf(done).items()
    }
    assert codes == {"good": None, "refused": "name-refused", "re:fused": "name-refused"}


@pytest.mark.parametrize("size", [0, 5, 3 * MIB + 5])
def test_standardInput(pair, tmp_path, size):
    sender, receiver = pair
    data = content(size)
    with receiving(receiver, tmp_path / "root") as there:
        done = run(
            [
                *sender.connpool,
                *("send", "--to", there.address, "--durability", "none", "--name", "dump.sql", "-"),
            ],
            said=data,
            cwd=tmp_path,
            env=sender.variables(tmp_path),
        )
        assert done.returncode == 0, done.stderr
        assert there.files() == {"dump.sql": data}


def test_onlyAsking(pair, source, tmp_path):
    sender, receiver = pair
    (source / "a").write_bytes(b"x")
    (source / "re\\fused").write_bytes(b"x")
    with receiving(receiver, tmp_path / "root") as there:
        done = sender.send("--to", there.address, "--dry-run", source / "a", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        done = sender.send("--to", there.address, "--dry-run", source, cwd=tmp_path)
        assert done.returncode != 0
        assert there.files() == {}


def test_aPassword(pair, source, tmp_path):
    sender, receiver = pair
    (source / "a").write_bytes(b"x")
    users = tmp_path / "users"
    users.write_text("alice:secret\n")
    for password, code in (("secret", 0), ("wrong", 6)):
        credentials = tmp_path / password
        credentials.write_text(f"alice:{password}\n")
        credentials.chmod(0o600)
        with receiving(receiver, tmp_path / "root", f"--auth=file:{users}") as there:
            done = sender.send(
                *("--to", there.address, "--durability", "none", "--credentials", credentials),
                source / "a",
                cwd=tmp_path,
            )
            assert done.returncode == code, done.stderr
            assert there.files() == {"a": b"x"}


@pytest.mark.parametrize("receiver", ["released receives", "today's receives"])
@pytest.mark.parametrize("first", ["released begins", "today's begins"])
def test_anotherSenderGoesOn(version, first, receiver, source, tmp_path, valve):
    """
    A sender is killed in the middle, and the sender of the other version goes
    on with what the receiver holds.
    """
    begins, goesOn = (version, TODAY) if first == "released begins" else (TODAY, version)
    data = content(40 * MIB)
    (source / "a").write_bytes(data)
    arguments = ["--to", f"127.0.0.1:{valve.port}", "--durability", "none", source / "a"]
    there = version if receiver == "released receives" else TODAY
    with receiving(there, tmp_path / "root") as receiver_:
        valve.target = receiver_.port
        valve.allow(30 * MIB)
        with begins.sending(*arguments, cwd=tmp_path) as sender:
            valve.waitUntilHeld()
            sender.process.kill()
            sender.process.wait(10)
        valve.allow(float("inf"))
        receiver_.program.waitFor("did not receive a")
        done = goesOn.send(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "held before" in done.stderr
        assert receiver_.files() == {"a": data}
        assert valve.passed < 30 * MIB + len(data), "everything was sent again"


@pytest.mark.parametrize("sends", ["released sends", "today's sends"])
@pytest.mark.parametrize("first", ["released begins", "today's begins"])
def test_anotherReceiverGoesOn(version, first, sends, source, tmp_path, valve):
    """
    A receiver is killed in the middle, and the receiver of the other version
    takes its place: an upgrade, and the way back.
    """
    begins, goesOn = (version, TODAY) if first == "released begins" else (TODAY, version)
    sender = version if sends == "released sends" else TODAY
    data = content(40 * MIB)
    (source / "a").write_bytes(data)
    (source / "z").write_bytes(b"z")
    root = tmp_path / "root"
    arguments = ["--to", f"127.0.0.1:{valve.port}", "--durability", "none", source]
    with receiving(begins, root) as receiver:
        valve.target = receiver.port
        valve.allow(30 * MIB)
        sending = sender.sending(*arguments, cwd=tmp_path)
        program = sending.__enter__()
        try:
            valve.waitUntilHeld()
            assert within(lambda: checkpointed(root))
            receiver.program.process.kill()
            receiver.program.process.wait(10)
            with receiving(goesOn, root) as other:
                valve.target = other.port
                valve.allow(float("inf"))
                assert program.process.wait(60) == 0, program.output
                assert other.files() == {"source/a": data, "source/z": b"z"}
                assert valve.passed < 30 * MIB + len(data), "everything was sent again"
        finally:
            sending.__exit__(None, None, None)


@pytest.mark.parametrize("rule", ["skip", "refuse", "rename"])
def test_aFolder(pair, source, tmp_path, rule):
    """
    C{filesend} removes what the other version has stored, and nothing that it
    has left out because the name was taken.
    """
    sender, receiver = pair
    if filesystemOf(str(tmp_path)) in VOLATILE:
        pytest.skip("nothing is durable here, and filesend removes nothing")
    wanted = {"small": b"x", "d/large": content(3 * MIB)}
    taken = {"taken": b"new", "d/taken": content(3 * MIB, 2)}
    for name, data in {**wanted, **taken}.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
        if name in taken:
            (tmp_path / "root" / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / "root" / name).write_bytes(b"old")
    old = dict.fromkeys(taken, b"old")
    renamed = {f"{name} (1)": data for name, data in taken.items()}
    with receiving(receiver, tmp_path / "root", "--if-exists", rule) as there:
        fast = ["--settle=0.05", "--interval=0.05", "--attempts=1"]
        options = [f"--directory={source}", f"--to={there.address}", *fast]
        with sender.service("filesend", *options, cwd=tmp_path) as filesend:
            gone = [source / name for name in {**wanted, **(taken if rule == "rename" else {})}]
            assert within(lambda: not any(path.exists() for path in gone), 30), filesend.output
            time.sleep(2)  # for what must not happen
        assert there.files() == {**wanted, **old, **(renamed if rule == "rename" else {})}
    left = [path.read_bytes() for path in source.rglob("*") if path.is_file()]
    assert all((data in left) == (rule != "rename") for data in taken.values())
    assert "Traceback" not in filesend.output
