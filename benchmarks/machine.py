"""
The machine that figures come from.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["describe", "fileSystemOf", "versionOf"]

#: Programs and how each says its version.
_ASK = {
    "nginx": "-v",
    "curl": "--version",
    "rsync": "--version",
    "socat": "-V",
    "go": "version",
    "sshd": "-V",
    "openssl": "version",
}


def versionOf(program: str) -> str | None:
    """
    Return the first number with dots that a program says of itself.
    """
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        return None
    done = subprocess.run([path, _ASK[program]], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+(p\d+)?", done.stdout + done.stderr)
    return found[0] if found else "?"


def fileSystemOf(path: Path) -> str:
    """
    Return the type of the file system that a path lies on.
    """
    best, kind = Path("/"), "?"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, found, *_ = line.split()
        if path.resolve().is_relative_to(where) and len(Path(where).parts) >= len(best.parts):
            best, kind = Path(where), found
    return kind


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def describe() -> dict[str, object]:
    """
    Return date, kernel, processor, cores, load and versions.
    """
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in ("twisted", "pyopenssl", "blake3", "xxhash"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "kernel": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": packages | {name: text for name in _ASK if (text := versionOf(name))},
    }
