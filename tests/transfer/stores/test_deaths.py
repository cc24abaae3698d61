"""
A receiver that is killed at any system call loses nothing that it
acknowledged, publishes nothing incomplete, and makes no second copy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]


def die(directory: Path, kills: int, seed: int, seconds: float = 110) -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.transfer.stores.deaths",
            str(directory),
            str(kills),
            str(seed),
        ],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    *broken, last = [json.loads(line) for line in run.stdout.splitlines()]
    assert broken == []
    assert last == {"died": kills, "broken": 0}


def test_thirtyDeaths(tmp_path):
    die(tmp_path, 30, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_manyDeaths(tmp_path):
    # CONNPOOL_KILLS=5300 is every call of every scenario
    die(tmp_path, int(os.environ.get("CONNPOOL_KILLS", "200")), 2, 850)
