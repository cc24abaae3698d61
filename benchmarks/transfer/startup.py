"""
The start of the command: one small file against the bare reactor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from benchmarks.processes import run
from benchmarks.section import Column, Section, versus
from benchmarks.setup import Setup
from benchmarks.transfer.ours import Ours
from benchmarks.transfer.sources import FileSource
from benchmarks.transfer.tools import Place, whole

__all__ = ["startup"]


@attrs.frozen
class _Python:
    """
    An interpreter that runs one line.
    """

    name: str
    line: str

    def missing(self) -> str | None:
        return None

    def once(self) -> dict[str, float]:
        spent = run([sys.executable, "-c", self.line])
        return {"whole": spent.seconds, "cpu": spent.cpu}


@attrs.frozen
class _One:
    """
    One small file.
    """

    name: str
    tool: Any

    def missing(self) -> str | None:
        return None

    def once(self) -> dict[str, float]:
        _, figures = self.tool.figures(self.tool.place.tiny)
        return {"whole": figures["whole"], "cpu": figures["sendCPU"]}


@contextmanager
def startup(setup: Setup) -> Iterator[Section]:
    """
    How long a command takes that has next to nothing to do.
    """
    with setup.work(setup.memory) as work:
        tiny = FileSource(work / "tiny", 4096)
        with Ours("ours", Place(work, tiny, tiny)) as tool:
            bare, sending = "import reactor, endpoints", "ours, send one small file"
            rows = [
                _Python("python -c pass", "pass"),
                _Python(bare, "from twisted.internet import reactor, endpoints"),
                _One(sending, tool),
            ]
            columns = (
                Column("s", whole, "{:.3f}"),
                Column("CPU s", lambda row: row["cpu"], "{:.3f}"),
            )
            bar = versus(bare, sending, 1.25, whole, 1.15)
            bars = [attrs.evolve(bar, text=f"{sending} / {bare}", atMost=True)]
            rounds = min(setup.rounds, 5) if setup.quick else 31
            title = "Start-up of the command"
            yield Section(title, rows, columns, bars, rounds=rounds)
