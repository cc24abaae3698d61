"""
Programs of ours that start by a fork: a start of Python and its imports costs
a third of a second of CPU time, and C{make test} starts some six hundred.

A server has imported what our programs import, and no reactor.  For each start it
forks, and the child takes over the standard streams, the working directory, the
environment and the arguments, and goes on as C{python -m} or C{python -c} would.
What differs is what the system says of the program (its command line in
C{/proc}, the memory that it shares with the server) and what the interpreter does
before C{__main__}; C{CONNPOOL_TEST_STARTS=exec}, as in C{.ci/run}, starts each as its user does.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from typing import Any

PACKAGES = ["connpool.commands", "connpool.services"]
MODULES = [
    "rich.console",
    "rich.progress",
    "twisted.internet.epollreactor",
    "twisted.plugins.connpool_plugins",
    "twisted.scripts.twistd",
]
PR_SET_CHILD_SUBREAPER = 36
REQUEST_BYTES = 1 << 20
#: above all descriptors that a test hands over by their number
FIRST_FREE = 500


class ForkServer:
    """
    The server, as tests see it; it ends when they do.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._asked, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def start(
        self,
        args: Sequence[str],
        cwd: str | Path | None,
        environment: Mapping[str, str],
        descriptors: Mapping[int, int],
    ) -> int:
        """
        Start C{python ARGS} as a child of this process.

        @param descriptors: ours by the numbers that they have in the child.
        @return: its number.
        """
        umask = os.umask(0o077)
        os.umask(umask)
        request = {
            "umask": umask,
            "args": list(args),
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(environment),
            "descriptors": list(descriptors),
        }
        with self._lock, adopting():
            socket.send_fds(self._asked, [json.dumps(request).encode()], list(descriptors.values()))
            pid = self._asked.recv(16)
        assert pid, "the server could not start; it has said why"
        return int(pid)


@contextmanager
def adopting() -> Iterator[None]:
    """
    Grandchildren whose parents end become our children.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def serve(asked: socket.socket) -> dict[str, Any]:
    """
    Start children until the tests are over; return in each child, with its request.
    """
    while True:
        said, fds, _, _ = socket.recv_fds(asked, REQUEST_BYTES, 64)
        if not said:
            os._exit(0)
        request: dict[str, Any] = json.loads(said)
        reading, writing = os.pipe()
        if (between := os.fork()) == 0:
            if (pid := os.fork()) == 0:
                takeOver(fds, request["descriptors"])
                return request
            os.write(writing, b"%d" % pid)
            os._exit(0)
        os.waitpid(between, 0)
        asked.send(os.read(reading, 16))
        for fd in (*fds, reading, writing):
            os.close(fd)


def takeOver(fds: Sequence[int], numbers: Sequence[int]) -> None:
    """
    Give descriptors their numbers, and close all others.
    """
    for fd, number in zip(
        [fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FREE) for fd in fds], numbers, strict=True
    ):
        os.dup2(fd, number)
    for number in {int(name) for name in os.listdir("/dev/fd")}.difference(numbers):
        with suppress(OSError):  # one of them listed the others
            os.close(number)


def openStreams() -> None:
    """
    Open the standard streams as C{PYTHONUNBUFFERED} has it.
    """
    given = io.BufferedReader(io.FileIO(0, closefd=False))
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(given, encoding=sys.stdin.encoding)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        was = getattr(sys, name)
        now = io.TextIOWrapper(
            io.FileIO(fd, "w", closefd=False),
            encoding=was.encoding,
            errors=was.errors,
            newline="\n",
            write_through=True,
        )
        setattr(sys, name, now)
        setattr(sys, f"__{name}__", now)


def become(request: Mapping[str, Any]) -> None:
    """
    Run a program as the interpreter does.
    """
    openStreams()
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    option, what, *words = request["args"]
    sys.argv[:] = [option, *words]
    if option == "-m":
        sys.path[0] = request["cwd"]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert option == "-c", option
        sys.path[0] = ""
        main = {"__name__": "__main__", "__builtins__": __builtins__}
        exec(compile(what, "<string>", "exec"), main)


def preload() -> None:
    """
    Import all that our programs import.
    """
    for package in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
    for name in MODULES:
        importlib.import_module(name)
    assert "twisted.internet.reactor" not in sys.modules
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    preload()
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
