"""
Programs measured from outside.
"""

import subprocess
import sys

import pytest

from benchmarks.processes import Failed, Running, cpuOf, freePort, listens, residentOf, run

BUSY = "import time; e = time.process_time() + 0.2\nwhile time.process_time() < e: pass"
LARGE = "x = b'x' * 50_000_000; import time; time.sleep(0.2)"
LISTENING = """
import socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as one:
    one.accept()
"""


def test_whatACommandTakes():
    spent = run([sys.executable, "-c", BUSY])
    assert 0.2 <= spent.cpu < 5
    assert spent.seconds >= 0.2


def test_itsPeakIsItsOwn():
    held = bytearray(200_000_000)  # a fork would count what we have
    spent = run([sys.executable, "-c", LARGE])
    assert 50_000_000 < spent.peak < len(held)


def test_theProcessorTimeOfAServiceAndItsChildren():
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}]); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        while cpuOf(process.pid) < 0.2:
            assert process.poll() is None
        assert residentOf(process.pid, "VmRSS") > 1_000_000
        process.communicate(b"\n")


def test_aServiceIsThereWhenItListensAndIsNotDisturbed():
    port = freePort()
    assert not listens(port)
    running = Running([sys.executable, "-c", LISTENING, str(port)], port=port)
    assert running.process.poll() is None  # nobody took its one connection
    running.stop()
    assert not listens(port)


def test_whatDoesNotStartSaysWhy():
    with pytest.raises(Failed, match="no such thing"):
        Running([sys.executable, "-c", "raise SystemExit('no such thing')"], port=freePort())


def test_anExitCodeThatIsNotFine():
    assert run([sys.executable, "-c", "raise SystemExit(9)"], fine=(9,)).seconds
    with pytest.raises(Failed, match="exit code 9"):
        run([sys.executable, "-c", "raise SystemExit(9)"])


def test_aCommandThatHangsIsEnded():
    with pytest.raises(Failed, match="takes over"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
