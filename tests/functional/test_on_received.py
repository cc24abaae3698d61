"""
C{--on-received}: at least once for every file, whatever the program does.
"""

import errno
import json
import os
import signal
import socket
import stat
import sys

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.python import usage
from zope.interface.verify import verifyObject

from connpool.errors import StartFailed
from connpool.interfaces import ITransferListener
from connpool.services import onreceived
from connpool.services.filerecv import Options, makeService
from connpool.transfer.stores.receiptcursor import ReceiptCursor
from connpool.transfer.syscalls import Syscalls
from tests.functional.test_filerecv_classic import send
from tests.helpers.waiting import bounded, pause, until
from tests.transfer import peer
from tests.transfer.stores.kit import followed


@pytest.fixture
def told(tmp_path):
    return tmp_path / "told"


def program(tmp_path, told, body=""):
    """
    A program that appends what it gets to C{told}, then does C{body}.
    """
    path = tmp_path / "program"
    path.write_text(
        f"#!{sys.executable}\n"
        "import os, sys, time, signal\n"
        f"with open({str(told)!r}, 'a') as file: file.write(sys.stdin.read())\n"
        f"{body}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"--on-received={path}"


def shell(tmp_path, told, body):
    """
    The same, for a test with a time limit: a shell starts at once, on any machine.
    """
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\ncat >> {told}\n{body}\n")
    path.chmod(0o755)
    return f"--on-received={path}"


def start(root, *argv):
    options = Options()
    options.parseOptions(
        [f"--directory={root}", "--listen=tcp:0:interface=127.0.0.1", "--allow-root", *argv]
    )
    service = makeService(options, reactor)
    service.startService()
    return service


def receipts(told):
    return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


@pytest_twisted.ensureDeferred
async def test_theProgramGetsTheReceiptAndNothingElse(tmp_path, root, told):
    receiver = start(root, program(tmp_path, told, "assert len(sys.argv) == 1"))
    name = '-rf $(touch x); "quoted".txt'
    assert await send(receiver, name.encode(), b"content") == b"ok"
    (receipt,) = await until(lambda: receipts(told))
    assert receipt["name"] == name
    assert receipt["size"] == 7
    assert receipt["integrity"] == "unverified"
    assert receipt["directory"] == str(root)
    assert os.listdir(root) == [".connpool", name] or os.listdir(root) == [name, ".connpool"]
    await bounded(receiver.stopService())


@pytest_twisted.ensureDeferred
async def test_aFileThatWasNotSyncedIsTold(tmp_path, root, told):
    """
    Its receipt is written down after the sender was answered.
    """
    receiver = start(root, program(tmp_path, told))
    port = receiver.listening.getHost().port

    def put():
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            sender = peer.Sender(connection).greet()
            sender.answers([sender.put(b"a", b"x", durability="none")])

    await bounded(deferToThread(put))
    assert [receipt["name"] for receipt in await until(lambda: receipts(told))] == ["a"]
    await bounded(receiver.stopService())


@pytest_twisted.ensureDeferred
async def test_twoAtATimeAndEachOnce(tmp_path, root, told):
    body = f"os.mkdir({str(tmp_path)!r} + f'/run{{os.getpid()}}'); time.sleep(0.1)\n"
    receiver = start(root, program(tmp_path, told, body))
    for n in range(6):
        await send(receiver, b"%d" % n, b"x")
    assert len(receiver._hook._running) <= onreceived.PROGRAMS_AT_ONCE
    await until(lambda: len(receipts(told)) == 6)
    assert {receipt["name"] for receipt in receipts(told)} == set("012345")
    await bounded(receiver.stopService())


@pytest_twisted.ensureDeferred
async def test_failuresAndLongOutputChangeNothing(tmp_path, root, told):
    receiver = start(
        root, program(tmp_path, told, "sys.stdout.write('x' * 5_000_000); sys.exit(137)")
    )
    for n in range(3):
        await send(receiver, b"%d" % n, b"x")
    await until(lambda: len(receipts(told)) == 3)
    await bounded(receiver.stopService())
    assert sorted(os.listdir(root)) == [".connpool", "0", "1", "2"]


@pytest_twisted.ensureDeferred
async def test_aProgramThatHangsIsKilledAndTheNextRuns(tmp_path, root, told, monkeypatch):
    monkeypatch.setattr(onreceived, "TIME_LIMIT_SECONDS", 2.0)
    receiver = start(root, shell(tmp_path, told, "exec sleep 1000"))
    for n in range(3):  # one more than run at once
        await send(receiver, b"%d" % n, b"x")
    await until(lambda: len(receipts(told)) == 3)
    await bounded(receiver.stopService())


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("end", ["", "exec sleep 1000"])
async def test_whatAProgramLeavesBehindHoldsNobodyUp(tmp_path, root, told, monkeypatch, end):
    """
    A process of its own that keeps its output open, as C{sleep} in a script does.
    """
    monkeypatch.setattr(onreceived, "TIME_LIMIT_SECONDS", 2.0)
    pids = tmp_path / "pids"
    pids.touch()
    receiver = start(root, shell(tmp_path, told, f"sleep 600 &\necho $! >> {pids}\n{end}"))
    try:
        for n in range(3):
            await send(receiver, b"%d" % n, b"x")
        await until(lambda: len(pids.read_text().splitlines()) == 3)
        await bounded(receiver.stopService())
        assert len(receipts(told)) == 3
    finally:
        for pid in pids.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


@pytest_twisted.ensureDeferred
async def test_whatWasNotToldIsToldAfterARestart(tmp_path, root, told, monkeypatch):
    monkeypatch.setattr(onreceived, "PROGRAMS_AT_ONCE", 0)
    receiver = start(root, program(tmp_path, told))
    for n in range(5):
        await send(receiver, b"%d" % n, b"x")
    await bounded(receiver.stopService())
    assert receipts(told) == []
    monkeypatch.setattr(onreceived, "PROGRAMS_AT_ONCE", 2)
    receiver = start(root, program(tmp_path, told))
    await until(lambda: len(receipts(told)) == 5)
    await bounded(receiver.stopService())
    receiver = start(root, program(tmp_path, told))
    await pause(0.3)
    await bounded(receiver.stopService())
    assert len(receipts(told)) == 5, "told again though it was told"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("broken", ["absent", "#!/nonexistent/interpreter\n", "no format\n"])
async def test_aProgramThatComesBackIsToldEverything(tmp_path, root, told, monkeypatch, broken):
    """
    Removed, or replaced by what the kernel cannot run: one line, and no file is
    taken for told.
    """
    monkeypatch.setattr(onreceived, "FIRST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(onreceived, "LONGEST_WAIT_SECONDS", 0.05)
    receiver = start(root, program(tmp_path, told))
    path = tmp_path / "program"
    good = path.read_text()
    with capturedLogs() as logs:
        if broken == "absent":
            path.unlink()
        else:
            path.write_text(broken)
        for n in range(5):
            await send(receiver, b"%d" % n, b"x")
        await until(lambda: any("what" in event for event in logs))
        await pause(0.3)
    (event,) = [event for event in logs if "what" in event]
    assert "cannot be run" in event["what"]
    assert receipts(told) == []
    # as an upgrade does it: the one that is there may be running
    (tmp_path / "new").write_text(good)
    (tmp_path / "new").chmod(0o755)
    (tmp_path / "new").rename(path)
    await until(lambda: len(receipts(told)) == 5)
    await bounded(receiver.stopService())
    assert {receipt["name"] for receipt in receipts(told)} == set("01234")


@pytest_twisted.ensureDeferred
async def test_forksThatFailAreTriedAgain(tmp_path, root, told, monkeypatch):
    monkeypatch.setattr(onreceived, "FIRST_WAIT_SECONDS", 0.2)
    receiver = start(root, program(tmp_path, told))
    fork = os.fork
    short = True

    def exhausted():
        if short:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", exhausted)
    before = len(os.listdir("/proc/self/fd"))
    for n in range(5):
        await send(receiver, b"%d" % n, b"x")
    await pause(0.3)
    assert receipts(told) == []
    assert len(os.listdir("/proc/self/fd")) <= before + 3, "its pipes are closed"
    short = False
    await until(lambda: len(receipts(told)) == 5)
    await bounded(receiver.stopService())


@pytest_twisted.ensureDeferred
async def test_onlyOneProcessTells(tmp_path, root, told):
    receiver = start(root, program(tmp_path, told))
    done = os.open(root / ".connpool/done", os.O_RDONLY)
    with pytest.raises(StartFailed, match="one of them"):
        ReceiptCursor(Syscalls(), followed(Syscalls(), done))
    os.close(done)
    await bounded(receiver.stopService())


def test_provides(root, tmp_path, told):
    verifyObject(ITransferListener, onreceived.OnReceived(None, "/x", "/y", None, None))


@pytest.mark.parametrize("path", ["/nonexistent", "/etc/passwd", "/etc"])
def test_aProgramThatCannotRunIsOneLine(root, path):
    with pytest.raises(usage.UsageError, match="chmod"):
        Options().parseOptions([f"--directory={root}", "--allow-root", f"--on-received={path}"])
