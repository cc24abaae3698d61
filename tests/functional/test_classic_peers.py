"""
The classic protocol with the tutorial's own Go programs, both ways, through
real C{twistd} and C{connpool send}.
"""

import os
import subprocess

import pytest

from tests.helpers.gopeers import goProgram
from tests.helpers.processes import connpool, finished, running
from tests.helpers.receiving import filerecv

pytestmark = [pytest.mark.peer("go"), pytest.mark.timeout(300)]

FILES = [
    ("empty", 0),
    ("one byte", 1),
    ("page.bin", 4096),
    ("odd.bin", 1_000_003),
    ("large.iso", 100_000_000),
    ("with some spaces.txt", 5001),
    ("报告 二〇二六.pdf", 5002),
    ("100%s {0} $(id).txt", 3),
]


def sourceFile(directory, name, size):
    path = directory / name
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.write(block[: size % len(block)])
    return path


def same(a, b):
    return subprocess.run(["cmp", a, b], check=False).returncode == 0


def test_goSendersToOurReceiver(tmp_path, root):
    with filerecv(root, cwd=tmp_path) as (receiver, place):
        for name, size in FILES:
            path = sourceFile(tmp_path, name, size)
            sent = finished(goProgram("sender"), place, path)
            assert (sent.returncode, sent.stdout) == (0, "")
            receiver.waitFor(rf"received .* \({size} bytes, stored, unverified")
            assert same(path, root / name)
    visible = {entry for entry in os.listdir(root) if not entry.startswith(".connpool")}
    assert visible == {name for name, _ in FILES}


def test_manyGoSendersAtOnce(tmp_path, root):
    with filerecv(root, cwd=tmp_path) as (receiver, place):
        paths = [sourceFile(tmp_path, f"file {n}", 300_000 + n) for n in range(20)]
        senders = [subprocess.Popen([goProgram("sender"), place, path]) for path in paths]
        assert [sender.wait(60) for sender in senders] == [0] * len(paths)
        receiver.waitFor(r"(?s)(received file.*){20}")
        for path in paths:
            assert same(path, root / path.name)


def test_aRefusedNameTellsTheGoSenderWhy(tmp_path, root):
    with filerecv(root, cwd=tmp_path) as (_, place):
        path = sourceFile(tmp_path, "bad\nname", 10)
        sent = finished(goProgram("sender"), place, path)
        assert sent.returncode == 2
        assert sent.stdout.startswith("answer: name-refused: ")
        assert sent.stdout.count("\n") == 1


@pytest.mark.parametrize(("name", "size"), FILES)
def test_ourSenderToTheGoReceiver(tmp_path, root, name, size):
    path = sourceFile(tmp_path, name, size)
    with running(goProgram("receiver"), "127.0.0.1:0", cwd=root) as receiver:
        place = receiver.waitFor(r"listening (\S+)")[1]
        sent = connpool("send", "--protocol", "classic", "--to", place, path)
        assert sent.returncode == 9
        assert f"sent {size} bytes, unconfirmed" in sent.stderr
        receiver.waitFor("received")
        assert receiver.stop() == 0
    assert same(path, root / name)
