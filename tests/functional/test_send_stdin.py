"""
C{connpool send -} when its input is slow, or stays away.
"""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from tests.helpers.processes import CONNPOOL, Popen, environment, within
from tests.helpers.receiving import Receiving


@contextlib.contextmanager
def sending(receiving, *arguments):
    """
    The command, and the writing end of its input.
    """
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as stdin, open(write, "wb", buffering=0) as pipe:
        process = Popen(
            [
                *(*CONNPOOL, "send", "--to", receiving.place),
                *("--durability", "none", *arguments, "-"),
            ],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(XDG_STATE_HOME=str(receiving.tmp_path / "state")),
        )
        try:
            yield process, pipe
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def receiving(tmp_path):
    with Receiving(tmp_path, "--idle-timeout", "2") as made:
        yield made


def test_whatComesIsSentAtOnce(receiving):
    """
    A megabyte takes much longer than the receiver waits.
    """
    with sending(receiving) as (process, pipe):
        for number in range(6):
            pipe.write(b"%d" % number * 1000)
            time.sleep(0.5)
            if number == 3:
                assert within(lambda: receiving.written() > 2000)
        pipe.close()
        assert process.wait(20) == 0
    assert receiving.files() == {"stdin": b"".join(b"%d" % n * 1000 for n in range(6))}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruptedWhileNothingComes(receiving, number):
    with sending(receiving) as (process, pipe):
        pipe.write(b"x" * 5000)
        assert within(lambda: receiving.written() >= 5000)
        process.send_signal(number)
        assert process.wait(20) == 130


def test_refusedWhileNothingComes(receiving):
    with sending(receiving, "--name", "../x") as (process, _):
        assert process.wait(20) == 4


def test_lostWhileNothingComes(receiving):
    with sending(receiving) as (process, pipe):
        pipe.write(b"x" * 5000)
        assert within(lambda: receiving.written() >= 5000)
        receiving.program.process.kill()
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 3
        assert b"cannot be sent again" in output
