"""
C{python -m benchmarks transfer|pool|datagram}: peers side by side, in one run.
C{python -m benchmarks scale}: the S3 store alone, in virtual time (L{benchmarks.scale}).

Contestants take turns, round by round; figures are medians.  A bar was set beforehand; it
is met, missed, or not resolved: within a tenth of it 15 pairs are asked for, and never
may the interval hold it.  Contestants of a bar that is not resolved go on until 15.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.chart import draw
from benchmarks.machine import describe
from benchmarks.processes import CHECKOUT, Failed, endChildren
from benchmarks.report import asJSON, asRST, asText, dumped, inserted, measuredOn, summary
from benchmarks.section import Measured, run
from benchmarks.setup import ENVIRONMENTS, Setup, environment
from benchmarks.spread import ENOUGH

SUITES = ("transfer", "pool", "datagram")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure peers side by side."
    )
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: a trial")
    parser.add_argument("--out", type=Path, help="directory for JSON, SVG and RST")
    parser.add_argument("--readme", type=Path, help="put the short table into this page")
    parser.add_argument(
        "--only", action="append", metavar="SECTION", help="this section (repeatable)"
    )
    parser.add_argument(
        "--web", action="store_true", help="of transfer: the sections about HTTP alone"
    )
    parser.add_argument(
        "--s3", action="store_true", help="of transfer: the sections about an S3 engine alone"
    )
    parser.add_argument("--rounds", type=int, help="rounds that everybody takes (default 5)")
    parser.add_argument(
        "--pairs",
        type=int,
        default=ENOUGH,
        help="rounds at most for those whose bars are not resolved (default %(default)s)",
    )
    parser.add_argument(
        "--install", action="store_true", help="install packages of peers, below .venv"
    )
    parser.add_argument(
        "--memory", type=Path, default=Path("/dev/shm"), help="a directory on a tmpfs"
    )
    parser.add_argument(
        "--disk", type=Path, default=Path(tempfile.gettempdir()), help="a directory on a disk"
    )
    parser.add_argument("--large", type=int, help="MiB of a large file (default 2048)")
    parser.add_argument("--small", type=int, help="number of small files (default 10000)")
    parser.add_argument("--count", type=int, help="cycles of a pool in a round (default 20000)")
    parser.add_argument("--cancels", type=int, help="cancels of a pool (default 1000000)")
    parser.add_argument("--samples", type=int, help="first bytes of a pool (default 200)")
    return parser.parse_args(words)


def setupOf(chosen: argparse.Namespace) -> Setup:
    """
    Return what is asked for, with what is not said.
    """
    quick = chosen.quick
    return Setup(
        quick=quick,
        out=(chosen.out or Path("benchmarks/results")).resolve(),
        rounds=chosen.rounds or (2 if quick else 5),
        memory=chosen.memory,
        disk=chosen.disk,
        large=chosen.large or (128 if quick else 2048),
        small=chosen.small or (500 if quick else 10_000),
        count=chosen.count or (500 if quick else 20_000),
        cancels=chosen.cancels or (2_000 if quick else 1_000_000),
        samples=chosen.samples or (20 if quick else 200),
        install=chosen.install,
    )


def environmentOf(name: str, suite: Any) -> Path | None:
    """
    Make the environment of a suite.

    @return: its Python; L{None} if that runs already, or the suite needs none.
    """
    if not hasattr(suite, "PEERS"):
        return None
    if Path(sys.prefix).resolve() == (ENVIRONMENTS / f"venv-{name}").resolve():
        return None
    return environment(f"venv-{name}", "-e", str(CHECKOUT), *suite.PEERS)


def ended(*_: Any) -> None:
    """
    End what was started, then this.
    """
    endChildren()
    sys.exit(143)


def main(words: list[str] | None = None) -> int:
    """
    @return: an exit code: 1 if something did not run, 2 for a mistake on the command line.
    """
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["scale"]:
        return int(import_module("benchmarks.scale").main(words[1:]))
    chosen = arguments(words)
    setup = setupOf(chosen)
    suite = import_module(f"benchmarks.{chosen.suite}")
    try:
        python = environmentOf(chosen.suite, suite) if chosen.install else None
    except Failed as e:
        print(e, file=sys.stderr)
        return 1
    if python:
        variables = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        again = [python, "-m", "benchmarks", *words]
        return subprocess.run(again, check=False, env=variables).returncode
    sections = suite.SECTIONS
    if chosen.web and not hasattr(suite, "WEB"):
        print(f"--web: {chosen.suite} has no sections about HTTP", file=sys.stderr)
        return 2
    if chosen.s3 and not hasattr(suite, "S3"):
        print(f"--s3: {chosen.suite} has no sections about an S3 engine", file=sys.stderr)
        return 2
    asked = dict.fromkeys(
        [
            *(chosen.only or []),
            *(suite.WEB if chosen.web else ()),
            *(suite.S3 if chosen.s3 else ()),
        ]
    )
    wanted = list(asked) or list(sections)
    for name in wanted:
        if name not in sections:
            print(f"--only: {name} is none of {', '.join(sections)}", file=sys.stderr)
            return 2
    machine = describe()
    command = " ".join(["python -m benchmarks", *words])
    print(", ".join(f"{key} {value}" for key, value in machine.items() if key != "versions"))
    measured: list[Measured] = []
    code = 0
    for name in wanted:
        print(f"\n{name} …", flush=True)
        try:
            with sections[name](setup) as section:
                # a quick run does not try to decide anything
                found = run(name, section, setup.rounds, 0 if setup.quick else chosen.pairs)
            code = code or int(found.failed)
        except Failed as e:
            # the others are measured all the same
            found, code = Measured(name, name, (), {}, missing={name: str(e)}), 1
        measured.append(found)
        print(asText(found), flush=True)
        if chosen.out:  # as far as it is, should it be interrupted
            write(setup.out / chosen.suite, machine, command, measured, suite)
    if chosen.readme:
        table = summary([each for each in measured if each.key in suite.SHORT])
        short = f"{table}\n{measuredOn(machine)}"
        chosen.readme.write_text(inserted(chosen.readme.read_text(), short))
    print(summary(measured))
    return code


def write(
    base: Path, machine: dict[str, Any], command: str, measured: list[Measured], suite: Any
) -> None:
    """
    Write the results beside each other: JSON, the tables, a chart of all and a short one.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    title = f"{base.name}, {machine['date']}"
    short = [each for each in measured if each.key in suite.SHORT]
    for suffix, text in (
        (".json", dumped(asJSON(base.name, machine, command, measured))),
        (".inc", asRST(machine, command, measured)),
        (".svg", draw(title, measured)),
        ("-short.svg", draw(title, short)),
    ):
        base.with_name(base.name + suffix).write_text(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, ended)
    sys.exit(main())
