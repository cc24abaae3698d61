"""
The suites as their users run them, with the least there is to measure.
"""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.processes import CHECKOUT, environment, finished

TINY = ("--quick", "--rounds", "1", "--large", "1", "--small", "5", "--count", "20")
SUITES = {
    "transfer": {
        *("large", "command", "small", "durable", "startup", "memory"),
        *("web", "web-tls", "web-disk", "web-small", "web-durable", "web-idle", "web-memory"),
    },
    "pool": {"cycle", "contended-64", "storm", "spike", "bytes", "idle"},
    "datagram": {"1", "256"},
}


def benchmarks(*words):
    return finished(sys.executable, "-m", "benchmarks", *words, cwd=CHECKOUT, timeout=600)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", SUITES)
def test_aSuite(suite, tmp_path):
    only = [word for name in sorted(SUITES[suite]) for word in ("--only", name)]
    small = ("--cancels", "200", "--samples", "3", "--disk", str(tmp_path))
    done = benchmarks(suite, *TINY, *small, *only, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / f"{suite}.json").read_text())
    assert set(found["sections"]) == SUITES[suite]
    for section in found["sections"].values():
        ours = [name for name in section["rounds"] if name.startswith("ours")]
        assert ours or set(section["missing"]), section
        assert all(bar["verdict"] for bar in section["bars"])
    for name in (suite, f"{suite}-short"):
        assert (tmp_path / "out" / f"{name}.svg").read_text().startswith("<svg")
    assert "list-table" in (tmp_path / "out" / f"{suite}.inc").read_text()


def test_aSectionThatIsNoneIsOneLine():
    done = benchmarks("transfer", "--only", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("--only: nothing is none of large, ")
    assert done.stderr.count("\n") == 1


def test_onlyTransferHasSectionsAboutHTTP():
    done = benchmarks("pool", "--web")
    assert done.returncode == 2
    assert done.stderr == "--web: pool has no sections about HTTP\n"


def test_whoeverEndsItEndsWhatItStarted(tmp_path):
    def started():
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += [path.parent.name] * (str(tmp_path).encode() in path.read_bytes())
        return len(found)

    words = ["transfer", "--only", "startup", "--memory", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
        env=environment(),
    ) as process:
        end = time.monotonic() + 30
        while started() < 2:  # the suite itself, and a receiver
            assert time.monotonic() < end
            time.sleep(0.02)
        process.terminate()
        assert process.wait(30) == 143
    end = time.monotonic() + 30
    while started():  # those that were being started had not been waited for
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not list(tmp_path.iterdir())
