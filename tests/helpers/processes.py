"""
Programs under test, started from this checkout and always ended.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from tests.helpers.forkserver import ForkServer

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


@cache
def forkServer() -> ForkServer:
    """
    The server that starts our programs for these tests.
    """
    return ForkServer(environment())


#: twistd without its script, which may not be on the PATH.
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
TWIST = [sys.executable, "-m", "twisted"]
CONNPOOL = [sys.executable, "-m", "connpool"]


class Popen(subprocess.Popen[Any]):
    """
    As in C{subprocess}, but one of our programs may be started by the L{ForkServer}.

    @param afresh: not this time: the test asks what the system says of the program.
    """

    def __init__(self, command: Sequence[str | Path], *, afresh: bool = False, **named: Any):
        self._afresh = afresh or os.environ.get("CONNPOOL_TEST_STARTS", "fork") != "fork"
        super().__init__([str(word) for word in command], **named)

    def _execute_child(self, *args: Any) -> None:
        """
        Start it: the place where C{subprocess} itself differs from platform to platform.
        """
        given = signature(super()._execute_child).bind(*args).arguments
        if self._afresh or not forkable(given):
            super()._execute_child(*args)
            return
        ends = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        streams = {number: number if fd == -1 else fd for number, fd in enumerate(ends)}
        self.pid = forkServer().start(
            given["args"][1:],
            given["cwd"],
            os.environ if given["env"] is None else given["env"],
            streams | {fd: fd for fd in given["pass_fds"]},
        )
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in pipes))


def forkable(given: Mapping[str, Any]) -> bool:
    """
    Whether this is a start of one of our programs, with nothing that it would be told by
    a fork only too late.
    """
    usual = environment()
    env = usual if given["env"] is None else given["env"]
    changed = {name for name in {*env, *usual} if env.get(name) != usual.get(name)}
    return (
        sys.platform == "linux"
        and any(given["args"][: len(ours)] == ours for ours in (TWISTD, TWIST, CONNPOOL))
        and not any(name.startswith(("PYTHON", "LC_", "LANG")) for name in changed)
        and given["preexec_fn"] is None
        and not given["start_new_session"]
    )


def run(
    command: Sequence[str | Path],
    *,
    timeout: float = 60.0,
    said: bytes | None = None,
    **named: Any,
) -> subprocess.CompletedProcess[Any]:
    """
    Run a program to its end, and keep what it prints.  It blocks: a peer must be another
    process.

    @param said: its standard input is a pipe that says this.
    @param named: anything else for L{Popen}.
    """
    if said is not None:
        named["stdin"] = subprocess.PIPE
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    with Popen(command, **streams | named) as process:
        try:
            printed = process.communicate(said, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, *printed)


def finished(
    *command: str | Path,
    cwd: Path | None = None,
    timeout: float = 60.0,
    afresh: bool = False,
    **extra: str,
) -> subprocess.CompletedProcess[str]:
    """
    Run a program in this environment and more to its end.
    """
    more = environment(**extra)
    return run(command, text=True, cwd=cwd, timeout=timeout, env=more, afresh=afresh)


def connpool(
    *arguments: str | Path, timeout: float = 60.0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """
    Run the C{connpool} command to its end.
    """
    return finished(*CONNPOOL, *arguments, timeout=timeout, **extra)


class Running:
    """
    A started program whose output is read as it comes.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self._pipe = process.stdout
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), True)
        self._pieces: list[str] = []
        self._ended = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ended:
            self._comes(0.2)
            self._take()

    def _comes(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _take(self) -> None:
        with self._lock:
            while not self._ended and self._comes(0):
                data = os.read(self._pipe.fileno(), 65536)
                self._ended = not data
                self._pieces.append(self._decoder.decode(data, final=self._ended))

    @property
    def output(self) -> str:
        """
        All that it has printed until now: also what the thread has not read yet, as a line
        from before an answer that we have had.
        """
        self._take()
        return "".join(self._pieces)

    def close(self) -> None:
        """
        Read what is left of an ended program's output.
        """
        self._thread.join(5)  # a child of its own may go on with its output
        self._take()
        with self._lock:
            self._ended = True
        self._thread.join()
        self._pipe.close()

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
        return self.process.wait(seconds)


@contextmanager
def running(
    *command: str | Path, cwd: Path | None = None, descriptors: Sequence[int] = (), **extra: str
) -> Iterator[Running]:
    """
    Start a program; whatever happens, it is gone afterwards.

    @param descriptors: it inherits these, with the numbers they have.
    """
    process = Popen(
        command,
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
        program.close()


@contextmanager
def twistd(*arguments: str | Path, cwd: Path, **extra: str) -> Iterator[Running]:
    """
    C{twistd -n --pidfile= ARGUMENTS}.
    """
    with running(*TWISTD, "-n", "--pidfile=", *arguments, cwd=cwd, **extra) as program:
        yield program


def within(predicate: Callable[[], object], seconds: float = 30.0) -> bool:
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


def fetch(path: Path, target: str) -> str:
    """
    The answer of a service's status listener on a unix socket.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()
