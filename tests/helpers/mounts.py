"""
File systems that a test mounts for itself.
"""

import contextlib
import os
import shutil
import subprocess

import pytest


@contextlib.contextmanager
def mounted(kind, where):
    """
    A directory on a file system of its own.

    @param kind: C{overlay}, C{fuse} or C{tmpfs}.
    @param where: an empty directory for what it needs.
    """
    if os.geteuid() != 0:
        pytest.skip(f"only root can mount {kind}")
    for name in ("lower", "upper", "work", "at"):
        (where / name).mkdir()
    layers = f"lowerdir={where}/lower,upperdir={where}/upper,workdir={where}/work"
    command = {
        "overlay": ["mount", "-t", "overlay", "overlay", "-o", layers],
        "fuse": ["fuse-overlayfs", "-o", layers],
        "tmpfs": ["mount", "-t", "tmpfs", "none"],
    }[kind]
    if shutil.which(command[0]) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{command[0]} is not installed; .ci/run must install it", pytrace=False)
        pytest.skip(f"{command[0]} is not installed")
    run = subprocess.run(
        [*command, where / "at"], capture_output=True, text=True, check=False, timeout=20
    )
    if run.returncode:
        pytest.skip(f"cannot mount {kind} here: {run.stderr.strip()}")
    try:
        yield where / "at"
    finally:
        subprocess.run(["umount", "-l", where / "at"], check=True, timeout=20)
