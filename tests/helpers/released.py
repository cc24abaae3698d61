"""
Released versions and this checkout, side by side: the same programs of each.

C{make released} installs every version of C{tests/transfer/released} into an
environment of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from tests.helpers.processes import CHECKOUT, TWISTD, Running, environment, running
from tests.helpers.trees import publishedBelow

#: The archives of the released versions, and what they left on disk.
RELEASED = CHECKOUT / "tests/transfer/released"

#: Every version that this checkout has to work with.
VERSIONS = sorted(path.parent.name for path in RELEASED.glob("*/twisted-connpool-*.tar.xz"))


@attrs.frozen
class Programs:
    """
    The programs of one version.

    @ivar version: C{today} for this checkout.
    @ivar connpool: the command line of C{connpool}.
    @ivar twistd: the command line of C{twistd}.
    @ivar environment: variables that they want.
    """

    version: str
    connpool: list[str]
    twistd: list[str]
    environment: dict[str, str]

    def send(
        self, *arguments: str | Path, cwd: Path, **more: object
    ) -> subprocess.CompletedProcess[str]:
        """
        Run C{connpool send} to its end.
        """
        return subprocess.run(
            [*self.connpool, "send", *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=cwd,
            env=self.variables(cwd),
            **more,
        )

    def sending(self, *arguments: str | Path, cwd: Path):
        """
        Start C{connpool send}.
        """
        return running(*self.connpool, "send", *arguments, cwd=cwd, **self.variables(cwd))

    def service(self, *arguments: str | Path, cwd: Path):
        """
        Start C{twistd}.
        """
        command = [*self.twistd, "-n", "--pidfile="]
        return running(*command, *arguments, cwd=cwd, **self.variables(cwd))

    def variables(self, cwd: Path) -> dict[str, str]:
        """
        The environment of a program; its secrets lie in C{cwd}.
        """
        return {**environment(XDG_STATE_HOME=str(cwd / "state")), **self.environment}


TODAY = Programs("today", [sys.executable, "-m", "connpool"], TWISTD, {})


def released(version: str) -> Programs:
    """
    The programs of a released version; where it is not installed, skip the
    test with a reason, or fail in CI.
    """
    place = CHECKOUT / ".venv/released" / version / "bin"
    if not (place / "connpool").exists():
        reason = f"connpool {version} is not installed; run: make released"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    # the path to this checkout must not reach it
    return Programs(version, [str(place / "connpool")], [str(place / "twistd")], {"PYTHONPATH": ""})


@attrs.define
class Receiver:
    """
    C{twistd filerecv} of one version on a directory.

    @ivar address: for C{--to}.
    """

    program: Running
    root: Path
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def files(self) -> dict[str, bytes]:
        """
        The content of everything that was published.
        """
        return publishedBelow(self.root)


@contextmanager
def receiving(programs: Programs, root: Path, *options: str | Path) -> Iterator[Receiver]:
    """
    Receive into C{root}, which is made if it is not there.
    """
    root.mkdir(exist_ok=True)
    listen = ["--listen", "tcp:0:interface=127.0.0.1", "--directory", root]
    with programs.service("filerecv", *listen, *options, cwd=root.parent) as program:
        port = int(program.waitFor(r"filerecv listens on 127\.0\.0\.1:(\d+)")[1])
        yield Receiver(program, root, port)
    assert "Traceback" not in program.output, program.output
