"""
Programs under test, started from this checkout and always ended.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent.parent


def environment(**extra: str) -> dict[str, str]:
    """
    The environment with this checkout, and so its plugins, on the path.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONUNBUFFERED": "1",
        "CONNPOOL_ALLOW_ROOT": "1",
        **extra,
    }


def finished(
    *command: str | Path, cwd: Path | None = None, timeout: float = 60.0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """
    Run a program to its end.  It blocks: a peer must be another process.
    """
    return subprocess.run(
        [str(word) for word in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=environment(**extra),
    )


def connpool(
    *arguments: str | Path, timeout: float = 60.0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """
    Run the C{connpool} command to its end.
    """
    return finished(sys.executable, "-m", "connpool", *arguments, timeout=timeout, **extra)


#: twistd without its script, which may not be on the PATH.
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
TWIST = [sys.executable, "-m", "twisted"]


class Running:
    """
    A started program whose output is read as it comes.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    @property
    def output(self) -> str:
        """
        What it has printed so far.
        """
        return "".join(self._lines)

    def waitFor(self, pattern: str, seconds: float = 30.0) -> re.Match[str]:
        """
        The first match of C{pattern} in the output.
        """
        end = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None and not self._thread.is_alive()
            if (match := re.search(pattern, self.output)) is not None:
                return match
            assert not ended, f"ended with {self.process.returncode}: {self.output}"
            assert time.monotonic() < end, f"no {pattern!r} within {seconds} s: {self.output}"
            time.sleep(0.02)

    def stop(self, seconds: float = 30.0) -> int:
        """
        SIGTERM, and the exit code.
        """
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        finally:
            self._thread.join(5)


@contextmanager
def running(
    *command: str | Path, cwd: Path | None = None, descriptors: Sequence[int] = (), **extra: str
) -> Iterator[Running]:
    """
    Start a program; whatever happens, it is gone afterwards.

    @param descriptors: it inherits these, with the numbers they have.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        pass_fds=descriptors,
        env=environment(**extra),
    )
    program = Running(process)
    try:
        yield program
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        program._thread.join(5)
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def twistd(*arguments: str | Path, cwd: Path, **extra: str) -> Iterator[Running]:
    """
    C{twistd -n --pidfile= ARGUMENTS}.
    """
    with running(*TWISTD, "-n", "--pidfile=", *arguments, cwd=cwd, **extra) as program:
        yield program


def within(predicate: Callable[[], object], seconds: float = 10.0) -> bool:
    """
    Whether C{predicate()} becomes true in time: the parent of a daemonizing
    C{twistd} ends a moment before the child removes its pidfile and logs.
    """
    end = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def goes(path: Path) -> bool:
    """
    Whether C{path} goes away in time.
    """
    return within(lambda: not path.exists())
