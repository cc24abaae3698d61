"""
A receiver under test.
"""

import random
import socket
import subprocess
import sys
from contextlib import contextmanager

from tests.helpers.ports import freePort
from tests.helpers.processes import CHECKOUT, Popen, connpool, environment, twistd
from tests.helpers.trees import filesBelow, publishedBelow


def content(count, seed=1):
    """
    Bytes that look random, and are the same each time.
    """
    return random.Random(seed).randbytes(count)


@contextmanager
def filerecv(root, *options, **more):
    """
    A C{twistd filerecv} on a port that the system chose: the program, and its address.
    """
    listen = "--listen=tcp:0:interface=127.0.0.1"
    with twistd("filerecv", listen, f"--directory={root}", *options, **more) as program:
        yield program, program.waitFor(r"listens on (127.0.0.1:\d+)")[1]


class Receiving:
    """
    A C{twistd filerecv} that can be killed and started again.
    """

    def __init__(self, tmp_path, *options):
        self.root = tmp_path / "root"
        self.root.mkdir()
        self.tmp_path = tmp_path
        self.options = options
        self.port = freePort()
        self.place = f"127.0.0.1:{self.port}"

    def __enter__(self):
        self.context = twistd(
            "filerecv",
            "--listen",
            f"tcp:{self.port}:interface=127.0.0.1",
            "--directory",
            self.root,
            *self.options,
            cwd=self.tmp_path,
        )
        self.program = self.context.__enter__()
        self.program.waitFor("filerecv listens")
        return self

    def __exit__(self, *details):
        self.context.__exit__(*details)

    def kill(self):
        self.program.process.kill()
        self.program.process.wait(10)
        self.__exit__(None, None, None)

    def connect(self):
        s = socket.create_connection(("127.0.0.1", self.port), 20)
        s.settimeout(20)
        return s

    def files(self):
        return publishedBelow(self.root)

    def written(self):
        """
        The bytes that it has of files that have no name yet.
        """
        return sum(
            min(status.st_size, status.st_blocks * 512)
            for where in ("temporary", "partials")
            for status in filesBelow(self.root / ".connpool" / where).values()
        )

    def send(self, *arguments, durability="none", **more):
        return connpool(
            "send",
            "--to",
            self.place,
            "--durability",
            durability,
            *arguments,
            XDG_STATE_HOME=str(self.tmp_path / "state"),
            **more,
        )


@contextmanager
def observed(directory, *command):
    """
    A program that receives files into C{directory}: its port, and a function that asks it for
    a line about itself.
    """
    directory.mkdir()
    process = Popen(
        [sys.executable, "-m", *command, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env=environment(),
    )
    try:
        port = int(process.stdout.readline())

        def ask():
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline().split()

        yield port, ask
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)
        process.stdin.close()
        process.stdout.close()
