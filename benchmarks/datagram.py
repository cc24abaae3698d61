"""
UDP echo servers side by side: datagrams per second on loopback.

    python benchmarks/datagram.py [--rounds 5] [--seconds 1.0] [--size 64]

Servers: Go, written after the tutorial; Twisted's plain DatagramProtocol; ours
with every check running (loopback not trusted, rates raised so that nothing is
refused; a run in which anything was is an error); ours as it is by default; and
an echo in C, which shows what the load generator can drive.

Two figures for each: answers a second, and answers for each second of processor
time the server used.  The second is what one core can do; it is also the one to
look at on a machine that does other things, where the first says mostly how much
of the processor the server got.

Server and load generator share one processor, or have one each with --two.  The
load generator is C and batched: how long either was busy is printed.  Where they
share, it takes its part of every round, which makes ratios smaller than they are;
where they do not, it is no bottleneck as long as it is busy for less of the time
than the server, or the C echo gets more than the server measured.  Rounds are
interleaved; figures are medians, ratios are medians of the ratios of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
OUTSTANDING = (1, 16, 256)

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
port = AnsweringPort(reactor, makeResponder(sys.argv[2]), Limits(policy), 0, "127.0.0.1")
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


def build(where: Path) -> None:
    for name in ("udpload", "udpecho"):
        source = HERE / "peers" / f"{name}.c"
        subprocess.run(["cc", "-O2", "-o", where / f"{name}-c", source], check=True)
    subprocess.run(
        ["go", "build", "-o", where / "udpecho-go", HERE / "peers" / "udpecho.go"],
        check=True,
        env={**os.environ, "GOCACHE": str(where / "cache"), "GO111MODULE": "off"},
    )


def pin(cpu: int):
    available = sorted(os.sched_getaffinity(0))
    chosen = {available[cpu % len(available)]}
    return lambda: os.sched_setaffinity(0, chosen)


class Server:
    def __init__(self, name: str, *command: str | Path) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=pin(0),  # noqa: PLW1509 - this program has one thread
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        )
        self.port = self.process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self) -> dict:
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def load(where: Path, server: Server, outstanding: int, arguments: argparse.Namespace):
    before = server.cpu()
    output = subprocess.run(
        [
            where / "udpload-c",
            "127.0.0.1",
            server.port,
            str(outstanding),
            str(arguments.seconds),
            str(arguments.size),
        ],
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=pin(1 if arguments.two else 0),
    ).stdout
    answers, lost, wrong, took, cpu = map(float, output.split())
    if wrong:
        raise SystemExit(f"{server.name}: {wrong:g} answers of the wrong size")
    return {
        "rate": answers / took,
        "lost": int(lost),
        "load": cpu / took,
        "server": (server.cpu() - before) / took,
        "per": answers / max(server.cpu() - before, 0.01),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--protocol", default="auto", help="our responder (auto)")
    parser.add_argument("--two", action="store_true", help="server and load have a processor each")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        build(where)
        ours = Server("ours, all checks", sys.executable, "-c", OURS, "checked", arguments.protocol)
        servers = [
            Server("Go tutorial", where / "udpecho-go"),
            Server("plain Twisted", sys.executable, "-c", PLAIN),
            ours,
            Server("ours, default", sys.executable, "-c", OURS, "default", arguments.protocol),
            Server("C reference", where / "udpecho-c"),
        ]
        for server in servers:
            stack.enter_context(server)
        results = {}
        for outstanding in OUTSTANDING:
            rounds = [
                {server.name: load(where, server, outstanding, arguments) for server in servers}
                for _ in range(arguments.rounds)
            ]
            results[outstanding] = {
                server.name: {
                    key: statistics.median(round_[server.name][key] for round_ in rounds)
                    for key in ("rate", "lost", "load", "server", "per")
                }
                for server in servers
            }
            for other in ("Go tutorial", "plain Twisted"):
                for key, what in (("rate", "a second"), ("per", "a processor's second")):
                    results[outstanding][f"ours / {other}, {what}"] = statistics.median(
                        round_[ours.name][key] / round_[other][key] for round_ in rounds
                    )
        state = ours.ask()
        if any(state["refused"].values()) or state["errors"]:
            raise SystemExit(f"ours dropped datagrams: {state}")
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for outstanding, found in results.items():
        print(f"\n{outstanding} outstanding, {arguments.size} bytes")
        for name, figures in found.items():
            if isinstance(figures, float):
                print(f"  {name:45} {figures:5.2f} x")
            else:
                print(
                    f"  {name:18} {figures['rate']:9,.0f}/s  {figures['per']:9,.0f} a "
                    f"processor's second  busy: server {figures['server']:4.0%}, "
                    f"load {figures['load']:4.0%}  "
                    f"lost {figures['lost']:g}"
                )


if __name__ == "__main__":
    main()
