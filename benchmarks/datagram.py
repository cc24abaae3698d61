"""
UDP echo servers beside each other: datagrams on loopback.

Servers: Go, written after the tutorial; Twisted's plain DatagramProtocol; ours with every
check running (loopback not trusted, rates raised so that nothing is refused; a run in
which anything was is an error); ours as it is by default; and an echo in C, which shows
what the load generator can drive.

Two figures for each: answers for each second of processor time that the server used, which
is what one core can do, and answers a second, which on a machine that does other things
says mostly how much of the processor the server got.

Server and load generator share one processor, or have one each in C{256-two}.  The load
generator is C and batched: how long either was busy is shown.  Where they share, it takes
its part of every round, which makes ratios smaller than they are; where they do not, it is
no bottleneck as long as it is busy for less of the time than the server, or the C echo gets
more than the server measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from benchmarks.processes import CHECKOUT, Failed, cpuOf
from benchmarks.section import Column, Section, Wanted
from benchmarks.setup import Make, Setup
from benchmarks.spread import ratios

__all__ = ["SECTIONS", "SHORT"]

_PEERS = CHECKOUT / "benchmarks" / "peers"
_SIZE_BYTES = 64

PLAIN = """
from twisted.internet import reactor
from twisted.internet.protocol import DatagramProtocol
class Echo(DatagramProtocol):
    noisy = False
    def datagramReceived(self, datagram, addr):
        self.transport.write(datagram, addr)
port = reactor.listenUDP(0, Echo(), interface="127.0.0.1")
print(port.getHost().port, flush=True)
reactor.run()
"""

OURS = """
import json, sys
from twisted.internet import reactor, stdio
from twisted.protocols.basic import LineReceiver
from connpool.datagram import AnsweringPort, Limits, Policy, makeResponder
high = 1e9
policy = Policy(trustLoopback=False, rate=high, burst=10**9, maxRate=high)
if sys.argv[1] == "default":
    policy = Policy()
port = AnsweringPort(reactor, makeResponder("auto"), Limits(policy), 0, "127.0.0.1")
port.startListening()
print(port.getHost().port, flush=True)
class Ask(LineReceiver):
    delimiter = b"\\n"
    def lineReceived(self, line):
        stats = port.stats()
        self.sendLine(json.dumps({"refused": stats.refused, "errors": stats.sendErrors}).encode())
stdio.StandardIO(Ask(), reactor=reactor)
reactor.run()
"""


def _build(where: Path, name: str) -> Path:
    """
    Compile a program of C{benchmarks/peers}.
    """
    source = _PEERS / name
    target = where / name.replace(".", "-")
    command = ["cc", "-O2"] if source.suffix == ".c" else ["go", "build"]
    subprocess.run(
        [*command, "-o", target, source],
        check=True,
        env={**os.environ, "GO111MODULE": "off", "CGO_ENABLED": "0"},
    )
    return target


def _pin(processor: int) -> Callable[[], None]:
    available = sorted(os.sched_getaffinity(0))
    chosen = {available[processor % len(available)]}
    return lambda: os.sched_setaffinity(0, chosen)


class Server:
    """
    An echo, and the load on it.

    @param command: prints its port.
    @param needs: a program without which it cannot be built.
    @param asks: whether it tells what it refused.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], list[Any]],
        load: Callable[[str], str],
        *,
        needs: str = "cc",
        asks: bool = False,
    ) -> None:
        self.name = name
        self._command = command
        self._load = load
        self._needs = needs
        self._asks = asks

    def missing(self) -> str | None:
        for program in ("cc", self._needs):
            if shutil.which(program) is None:
                return f"{program} is not installed"
        return None

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [str(word) for word in self._command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=_pin(0),  # noqa: PLW1509 - this program has one thread
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        assert self.process.stdout is not None
        self.port = self.process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def once(self) -> dict[str, float]:
        before = cpuOf(self.process.pid)
        answers, lost, wrong, took, cpu = map(float, self._load(self.port).split())
        used = cpuOf(self.process.pid) - before
        if wrong:
            raise Failed(f"{self.name}: {wrong:g} answers of the wrong size")
        if self._asks:
            self._nothingRefused()
        return {
            "rate": answers / took,
            "per": answers / max(used, 1e-6),
            "server": used / took * 100,
            "load": cpu / took * 100,
            "lost": lost,
        }

    def _nothingRefused(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        state = json.loads(self.process.stdout.readline())
        if any(state["refused"].values()) or state["errors"]:
            raise Failed(f"{self.name} dropped datagrams: {state}")


_COLUMNS = (
    Column("answers/CPU s", lambda row: row["per"], "{:,.0f}"),
    Column("answers/s", lambda row: row["rate"], "{:,.0f}"),
    Column("server busy %", lambda row: row["server"], "{:.0f}"),
    Column("load busy %", lambda row: row["load"], "{:.0f}"),
    Column("lost", lambda row: row["lost"], "{:.0f}"),
)

_GO, _PLAIN, _OURS = "Go tutorial", "plain Twisted", "ours, every check"
#: Outstanding datagrams to peer and the least that ours is to be of it.
_BARS = {1: {_PLAIN: 1.0}, 16: {_GO: 1.0}, 256: {_GO: 2.0, _PLAIN: 1.5}}


def _bars(outstanding: int) -> list[Wanted]:
    return [
        Wanted(
            f"{_OURS} / {peer}, answers for each second of processor time",
            (_OURS, peer),
            lambda ours, theirs: ratios(ours["per"], theirs["per"]),
            limit,
            unit="x",
        )
        for peer, limit in _BARS.get(outstanding, {}).items()
    ]


@contextmanager
def _echo(outstanding: int, two: bool, setup: Setup) -> Iterator[Section]:
    with setup.work(setup.memory) as work, ExitStack() as stack:
        built: dict[str, Path] = {}

        def program(name: str) -> Path:
            if name not in built:
                built[name] = _build(work, name)
            return built[name]

        def load(port: str) -> str:
            seconds = "0.2" if setup.quick else "1"
            words = ["127.0.0.1", port, str(outstanding), seconds, str(_SIZE_BYTES)]
            return subprocess.run(
                [program("udpload.c"), *words],
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
                preexec_fn=_pin(1 if two else 0),
            ).stdout

        def python(*words: str) -> Callable[[], list[Any]]:
            return lambda: [sys.executable, "-c", *words]

        servers = [
            Server(_GO, lambda: [program("udpecho.go")], load, needs="go"),
            Server(_PLAIN, python(PLAIN), load),
            Server(_OURS, python(OURS, "checked"), load, asks=True),
            Server("ours, default", python(OURS, "default"), load),
            Server("C reference", lambda: [program("udpecho.c")], load),
        ]
        for server in servers:
            if server.missing() is None:
                stack.enter_context(server)
        cores = "a processor each" if two else "one processor for both"
        title = f"Echo, {outstanding} outstanding, {_SIZE_BYTES} bytes, {cores}"
        bars = [] if two else _bars(outstanding)
        yield Section(title, servers, _COLUMNS, bars)


SECTIONS: dict[str, Make] = {
    "1": partial(_echo, 1, False),
    "16": partial(_echo, 16, False),
    "256": partial(_echo, 256, False),
    "256-two": partial(_echo, 256, True),
}

#: Those of the short table and the short chart.
SHORT = ("1", "256")
