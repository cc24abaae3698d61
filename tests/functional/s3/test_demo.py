"""
C{make s3-demo}, and what is left of it.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import CHECKOUT, running, within

pytestmark = [pytest.mark.slow, pytest.mark.peer("weed")]

DEMO = [sys.executable, "-u", "-m", "examples.s3.demo"]


def left(directory):
    """
    Processes that have the directory of the demo in their arguments.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(directory) in arguments:
            found.append(arguments)
    return found


@pytest.mark.parametrize("balancer", ["haproxy", "relay"])
def test_demo(tmp_path, balancer):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "CONNPOOL_ALLOW_ROOT": "1"}
    if balancer == "relay":
        # only the engine is found
        environment["PATH"] = "/nonexistent"
    ended = subprocess.run(
        DEMO, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "kill -9" in ended.stdout
    assert "went on: stored" in ended.stdout
    assert "the same bytes: yes" in ended.stdout
    assert ("twistd connpool" in ended.stdout) == (balancer == "relay")
    assert within(lambda: left(tmp_path) == [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped(tmp_path, how):
    with running(*DEMO, cwd=CHECKOUT, TMPDIR=str(tmp_path)) as demo:
        demo.waitFor("connpool send", 90)
        demo.process.send_signal(how)
        demo.process.wait(40)
    assert "Traceback" not in demo.output
    assert within(lambda: left(tmp_path) == [])
    assert list(tmp_path.iterdir()) == []
