"""
HAProxy in front of several receivers, as the documentation sets it up.
"""

import os
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager

import pytest

from examples.s3.demo import Server, configuration, connects
from tests.helpers.ports import freePort
from tests.helpers.processes import CONNPOOL, Popen, environment, twistd, within
from tests.helpers.trees import filesBelow

pytestmark = pytest.mark.peer("haproxy")


@contextmanager
def balanced(directory, servers):
    front = freePort()
    path = directory / "haproxy.cfg"
    path.write_text(configuration(front, servers))
    checked = subprocess.run(["haproxy", "-c", "-f", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr
    with (directory / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", path], stdout=log, stderr=log)
    try:
        assert within(lambda: connects(front))
        yield front
    finally:
        process.kill()
        process.wait(10)


@contextmanager
def receivers(directory, count=2):
    with ExitStack() as stack:
        made = []
        for number in range(count):
            root = directory / f"root{number}"
            root.mkdir()
            port, status = freePort(), freePort()
            program = stack.enter_context(
                twistd(
                    "filerecv",
                    *(f"--directory={root}", "--allow=127.0.0.0/8"),
                    f"--listen=proxied:tcp:{port}:interface=127.0.0.1:trusted=127.0.0.1",
                    f"--status=tcp:{status}:interface=127.0.0.1",
                    "--drain-timeout=60",
                    cwd=directory,
                )
            )
            program.waitFor("listens on")
            made.append((program, root, port, status))
        yield made


@contextmanager
def send(front, path, *more):
    command = [*CONNPOOL, "send", "--to", f"127.0.0.1:{front}", *more, path]
    with Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as sender:
        try:
            yield sender
        finally:
            sender.kill()


def finished(sender):
    output = sender.communicate(timeout=60)[0]
    assert sender.returncode == 0, output


def whose(made, sender, pattern, seconds=30):
    """
    The receiver in whose directory something like C{pattern} is.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for each in made:
            if any(path.match(pattern) for path in filesBelow(each[1])):
                return each
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} anywhere")


@pytest.fixture
def made(tmp_path):
    with receivers(tmp_path) as made:
        yield made


@pytest.fixture
def front(tmp_path, made):
    servers = [Server(f"r{n}", port, status) for n, (_, _, port, status) in enumerate(made)]
    with balanced(tmp_path, servers) as front:
        yield front


@pytest.mark.slow
def test_aStopLetsTransfersEnd(tmp_path, made, front):
    """
    The receiver that stops ends what it has; who comes then goes to the other one, also if
    the stick table has the first one for him.
    """
    large = tmp_path / "large"
    large.write_bytes(os.urandom(18_000_000))
    with send(front, large, "--bwlimit", "2M") as running:
        busy = whose(made, running, "*.journal")
        (other,) = [each for each in made if each is not busy]
        busy[0].process.send_signal(signal.SIGTERM)
        busy[0].waitFor("SIGTERM")
        # it is not over before the other one, however long that takes
        running.send_signal(signal.SIGSTOP)
        try:
            log = tmp_path / "haproxy.log"
            stops = f"/r{made.index(busy)} is stopping"
            assert within(lambda: stops in log.read_text()), log.read_text()
            small = tmp_path / "small"
            small.write_bytes(b"small")
            with send(front, small) as sender:
                finished(sender)
            assert (other[1] / "small").read_bytes() == b"small"
            assert running.poll() is None
        finally:
            running.send_signal(signal.SIGCONT)
        finished(running)
    assert (busy[1] / "large").read_bytes() == large.read_bytes()
    assert busy[0].process.wait(20) in {0, -15}


@pytest.mark.slow
def test_aStoppedReceiverLosesItsTransfers(tmp_path, made, front):
    """
    One that does not answer any more: its senders are cut off, and go on elsewhere.
    """
    large = tmp_path / "large"
    large.write_bytes(os.urandom(12_000_000))
    with send(front, large, "--bwlimit", "2M") as running:
        busy = whose(made, running, "*.journal")
        (other,) = [each for each in made if each is not busy]
        busy[0].process.send_signal(signal.SIGSTOP)
        try:
            finished(running)
            assert (other[1] / "large").read_bytes() == large.read_bytes()
        finally:
            busy[0].process.send_signal(signal.SIGCONT)
