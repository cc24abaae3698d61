"""
A file that is sent while its receiver is killed: an S3 engine, two receivers that share it, and
HAProxy (or C{twistd connpool}) in front, all on loopback.  C{make s3-demo} runs this.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

from examples.s3.engines import RunningEngine, freePorts, program, seaweedfs

HERE = Path(__file__).parent
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
CONNPOOL = [sys.executable, "-m", "connpool"]
#: The file, and the bytes of it that are sent in a second.
FILE_BYTES, RATE = 200 << 20, "40M"
#: Seconds in which a program has to be up.
START_SECONDS = 30.0


@attrs.define
class Receiver:
    """
    A receiver that runs.

    @ivar port: behind the balancer, with PROXY headers.
    @ivar statusPort: of its status page.
    """

    name: str
    port: int
    statusPort: int
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: Any = None

    def start(self) -> None:
        """
        Start it, and wait until it listens.
        """
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, cwd=self.log.parent
            )
        waitFor(lambda: self.answers("/balancer"), self.process, self.log)

    def answers(self, path: str) -> str:
        """
        Return what a page of its status listener says; empty if it says nothing.
        """
        try:
            url = f"http://127.0.0.1:{self.statusPort}{path}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def received(self) -> int:
        """
        Return the bytes that it has received.
        """
        found = re.search(
            r"^connpool_transfer_received_bytes_total\{.*\} (\S+)$",
            self.answers("/metrics"),
            re.MULTILINE,
        )
        return int(float(found[1])) if found else 0

    def signal(self, number: int) -> None:
        """
        Send it a signal.
        """
        self.process.send_signal(number)

    @property
    def isStopped(self) -> bool:
        """
        Tell whether a signal has stopped it.
        """
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def stop(self) -> None:
        """
        End it, however it is.
        """
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


def waitFor(holds: Callable[[], Any], process: Any = None, log: Path | None = None) -> Any:
    """
    Wait until something holds, as long as a program may take to start.

    @return: what it is.
    """
    end = time.monotonic() + START_SECONDS
    while not (result := holds()):
        if time.monotonic() > end or (process is not None and process.poll() is not None):
            said = log.read_text()[-2000:] if log is not None else ""
            raise RuntimeError(f"it did not come up; {said}")
        time.sleep(0.05)
    return result


@contextmanager
def receivers(
    directory: Path, engine: RunningEngine, count: int = 2, *more: str, prefix: str = "in"
) -> Iterator[list[Receiver]]:
    """
    Run receivers that share a store.

    @param more: options of each.
    """
    store = f"s3:bucket=files,endpoint={engine.url},prefix={prefix},spool={directory}"
    made: list[Receiver] = []
    try:
        for number in range(count):
            port, statusPort = freePorts(2)
            command = [
                *(*TWISTD, "filerecv", f"--store={store}", f"--name=receiver{number}"),
                f"--listen=proxied:tcp:{port}:interface=127.0.0.1:trusted=127.0.0.1",
                *(f"--status=tcp:{statusPort}:interface=127.0.0.1", "--allow=127.0.0.0/8"),
                *more,
            ]
            environment = {
                **os.environ,
                **engine.environment,
                "PYTHONPATH": str(HERE.parent.parent),
                "CONNPOOL_ALLOW_ROOT": "1",
            }
            log = directory / f"receiver{number}.log"
            made.append(Receiver(f"receiver{number}", port, statusPort, command, environment, log))
        for each in made:
            each.start()
        yield made
    finally:
        for each in made:
            each.stop()


@attrs.frozen
class Server:
    """
    A receiver, as HAProxy has to know it.
    """

    name: str
    port: int
    statusPort: int


def configuration(front: int, behind: Sequence[Server | Receiver]) -> str:
    """
    Return the configuration beside this file, with ports of this machine.
    """
    text = (HERE / "haproxy.cfg").read_text().replace("bind :8640", f"bind 127.0.0.1:{front}")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("server ")]
    lines += [
        f"    server {each.name} 127.0.0.1:{each.port} port {each.statusPort}" for each in behind
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def balancer(directory: Path, behind: list[Receiver]) -> Iterator[tuple[str, int]]:
    """
    Run HAProxy, or our relay where it is not installed.

    @return: which, and its port.
    """
    (front,) = freePorts(1)
    if shutil.which("haproxy"):
        kind = "HAProxy"
        path = directory / "haproxy.cfg"
        path.write_text(configuration(front, behind))
        command = ["haproxy", "-db", "-f", str(path)]
    else:
        kind = "twistd connpool"
        command = [*TWISTD, "connpool", f"--listen=tcp:{front}:interface=127.0.0.1"]
        command += [f"--upstream=tcp:127.0.0.1:{each.port}" for each in behind]
        command += ["--proxy-header=v2", "--min-idle=0"]
    log = directory / "balancer.log"
    with log.open("wb") as out:
        environment = {**os.environ, "CONNPOOL_ALLOW_ROOT": "1"}
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=directory, env=environment)
    try:
        waitFor(lambda: connects(front), process, log)
        yield kind, front
    finally:
        process.kill()
        process.wait(10)


def connects(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


def main() -> int:
    if program("weed") is None:
        print("SeaweedFS is missing; run: make s3-demo")
        return 1
    # whoever stops it, all that it started ends first
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3-demo-")))
        engine = stack.enter_context(seaweedfs(directory / "engine"))
        print(f"an S3 engine (SeaweedFS) answers at {engine.url}")
        behind = stack.enter_context(receivers(directory, engine))
        kind, front = stack.enter_context(balancer(directory, behind))
        print(f"two receivers share it, behind {kind} at 127.0.0.1:{front}")
        source = directory / "holiday.mov"
        source.write_bytes(secrets.token_bytes(FILE_BYTES))
        print(f"$ connpool send --to 127.0.0.1:{front} --bwlimit {RATE} holiday.mov")
        began = time.monotonic()
        sender = subprocess.Popen(
            [*CONNPOOL, "send", "--to", f"127.0.0.1:{front}", "--bwlimit", RATE, "--json", source],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
        )
        stack.callback(sender.kill)
        busy = waitFor(lambda: next((r for r in behind if r.received() > FILE_BYTES // 3), None))
        (other,) = [each for each in behind if each is not busy]
        had = busy.received()
        busy.signal(signal.SIGKILL)
        print(f"{busy.name} is killed (kill -9) after {had >> 20} of {FILE_BYTES >> 20} MiB")
        lines = sender.communicate(timeout=120)[0].decode().splitlines()
        receipt = json.loads(lines[-1])
        seconds = time.monotonic() - began
        twice = max(0, had + other.received() - FILE_BYTES)
        print(f"{other.name} went on: {receipt['status']} after {seconds:.1f} s; ", end="")
        print(f"about {twice >> 20} MiB were sent twice")
        stored = engine.digest("files", "in/holiday.mov")
        same = hashlib.sha256(source.read_bytes()).digest() == stored
        print(f"the engine has the same bytes: {'yes' if same else 'NO'}")
    print("all of it is stopped and removed")
    return 0 if same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
