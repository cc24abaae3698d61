"""
What a run is asked for, and what makes up a suite.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import CHECKOUT, Failed
from benchmarks.section import Section

__all__ = ["ENVIRONMENTS", "Make", "Setup", "environment"]


@attrs.frozen
class Setup:
    """
    @ivar quick: the least that shows that everything runs; the figures say little.
    @ivar out: directory for results.
    @ivar rounds: that everybody takes.
    @ivar memory: a directory on a tmpfs.
    @ivar disk: a directory on a disk.
    @ivar large: MiB of a large file.
    @ivar small: number of small files.
    @ivar count: cycles of a pool in a round.
    @ivar cancels: acquires cancelled in a storm.
    @ivar samples: connections for first bytes.
    @ivar install: whether packages of peers are installed, into L{environment}s.
    """

    quick: bool
    out: Path
    rounds: int
    memory: Path
    disk: Path
    large: int
    small: int
    count: int
    cancels: int
    samples: int
    install: bool

    @contextmanager
    def work(self, where: Path) -> Iterator[Path]:
        """
        A directory that is removed afterwards, for everybody to read.
        """
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=where) as work:
            path = Path(work)
            path.chmod(0o755)
            yield path


#: The making of a section, which ends what it started.
Make = Callable[[Setup], AbstractContextManager[Section]]


#: Where environments are made: beside those of "make".
ENVIRONMENTS = CHECKOUT / ".venv" / "benchmarks"


def environment(name: str, *requirements: str) -> Path:
    """
    Make a virtual environment below L{ENVIRONMENTS}, unless it is there.

    @return: its Python.
    @raise Failed: it cannot be made.
    """
    where = ENVIRONMENTS / name
    python = where / "bin" / "python"
    done = where / "installed"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        # pip is not to see this checkout as installed
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        where.parent.mkdir(parents=True, exist_ok=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        for command in ([sys.executable, "-m", "venv", where], [*pip, *requirements]):
            if code := subprocess.run(command, check=False, env=clean).returncode:
                text = " ".join(map(str, command))
                raise Failed(f"{text}: exit code {code}; is the package index there?")
        done.write_text(wanted)
    return python
