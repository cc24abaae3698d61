"""
A program that is forked behaves as one that is started afresh.
"""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.helpers.processes import CONNPOOL, TWIST, TWISTD, Popen, environment, finished, run

#: A program of twistd's that tells what it finds; its plugins are not looked for.
TELLING = """\
import atexit, json, os, signal, sys
atexit.register(print, "ended", flush=True)
said = sys.stdin.read()
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "said": said, "main": __name__,
    "environment": os.environ["TELL"], "open": sorted(map(int, os.listdir("/dev/fd")))[:-1],
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "pipe": signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN,
    "unbuffered": [stream.write_through for stream in (sys.stdout, sys.stderr)],
    "umask": os.umask(0),
    "reactor": "twisted.internet.reactor" in sys.modules,
}))
sys.exit(int(said))
"""


def told(monkeypatch, tmp_path, afresh):
    telling = [*TWISTD[:2], TELLING]
    monkeypatch.setattr("tests.helpers.processes.TWISTD", telling)
    reading, writing = os.pipe()
    umask = os.umask(0o027)
    try:
        done = run(
            [*telling, "-n", "ä"],
            said=b"3",
            cwd=tmp_path,
            env=environment(TELL="ö"),
            pass_fds=[reading],
            afresh=afresh,
        )
    finally:
        os.umask(umask)
        os.close(reading)
        os.close(writing)
    line, last = done.stdout.splitlines()
    return done.returncode, json.loads(line), last, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux only")
def test_itFindsTheSame(monkeypatch, tmp_path):
    forked, afresh = (told(monkeypatch, tmp_path, each) for each in (False, True))
    assert forked == afresh
    code, found, last, errors = forked
    assert (code, last, errors) == (3, b"ended", b"")
    assert found["umask"] == 0o027
    assert found["argv"] == ["-c", "-n", "ä"]
    assert found["cwd"] == str(tmp_path)
    assert len(found["open"]) == 4


@pytest.mark.parametrize("afresh", [False, True])
def test_itIsAChildOfTheTests(afresh):
    with Popen(
        [*CONNPOOL, "ping", "127.0.0.1:1", "--count", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        afresh=afresh,
    ) as process:
        process.send_signal(signal.SIGKILL)
        pid, status = os.waitpid(process.pid, 0)
        assert (pid, os.waitstatus_to_exitcode(status)) == (process.pid, -signal.SIGKILL)
        process.returncode = -signal.SIGKILL


@pytest.mark.parametrize("command", [CONNPOOL, TWIST, TWISTD], ids=lambda words: words[-1])
def test_allOfThemAreFound(command):
    forked, afresh = (finished(*command, "--version", afresh=each) for each in (False, True))
    assert forked.stdout
    assert (forked.returncode, forked.stdout) == (afresh.returncode, afresh.stdout)
