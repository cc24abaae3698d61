"""
A file system that is mounted over what a store works in, before any of its
system calls, ends nobody's service.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]


def remount(directory, every, seconds):
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    program = [sys.executable, "-m", "tests.transfer.stores.remounts", str(directory), str(every)]
    run = subprocess.run(
        ["unshare", "-m", *program],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if run.returncode == 77 or "unshare failed" in run.stderr:
        pytest.skip("mounting is not permitted here")
    assert run.returncode == 0, run.stderr[-2000:]
    *broken, mounted = [json.loads(line) for line in run.stdout.splitlines()]
    assert broken == []
    assert mounted


def test_mountedOverNowAndThen(tmp_path):
    remount(tmp_path, 97, 60)


@pytest.mark.slow
def test_mountedOverBeforeAnyCall(tmp_path):
    remount(tmp_path, 3, 600)
