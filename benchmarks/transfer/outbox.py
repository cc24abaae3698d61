"""
C{twistd filesend} beside C{connpool send}: from the moment that files are there until
they have arrived, durably, and are gone from the folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from benchmarks.machine import fileSystemOf
from benchmarks.processes import Failed, Running, Spent, cpuOf, residentOf
from benchmarks.section import Column, Section, versus
from benchmarks.setup import Setup
from benchmarks.transfer.ours import Ours, serviceCommand
from benchmarks.transfer.sources import FileSource, TreeSource
from benchmarks.transfer.tools import MEMORY, START, Place, net, whole

__all__ = ["outbox"]

_SETTLE_SECONDS = 0.1
_LOOK_SECONDS = 0.01
_MOST_SECONDS = 600.0


class Outbox(Ours):
    """
    A folder that is watched.  What it takes for one small file is start-up: the files
    settle, and the folder is looked at.
    """

    sender: Running

    def __enter__(self) -> Self:
        super().__enter__()
        self.folder = self.work / "outbox"
        self.folder.mkdir()
        self.sender = Running(
            serviceCommand(
                *("filesend", "--directory", self.folder, "--to", *self.to()),
                *("--settle", _SETTLE_SECONDS, "--interval", 1),
            ),
            env=self.variables(),
        )
        time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.sender.stop()
        super().__exit__()

    def send(self, path: Path) -> tuple[Spent, Spent]:
        assert self.receiver is not None
        copy = self.work / path.name
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
        pids = self.sender.pid, self.receiver.pid
        before = [cpuOf(pid) for pid in pids]
        began = time.perf_counter()
        there = copy.rename(self.folder / path.name)
        while there.exists():
            if time.perf_counter() - began > _MOST_SECONDS:
                raise Failed(f"filesend did not send {there}")
            time.sleep(_LOOK_SECONDS)
        seconds = time.perf_counter() - began
        spent = [
            Spent(seconds, cpuOf(pid) - used, residentOf(pid))
            for pid, used in zip(pids, before, strict=True)
        ]
        return spent[0], spent[1]


@contextmanager
def outbox(setup: Setup) -> Iterator[Section]:
    """
    A folder with a few large and many small files in turn.
    """
    count = max(setup.small // 5, 1)
    with setup.work(setup.disk) as work:
        sources: dict[str, tuple[Any, Any]] = {
            f"{count:,} files of 4 KiB": (
                TreeSource(work / "tree", count),
                TreeSource(work / "one", 1),
            ),
            f"one file of {max(setup.large // 4, 1)} MiB": (
                FileSource(work / "file", max(setup.large // 4, 1) << 20),
                FileSource(work / "tiny", 1),
            ),
        }
        rows: list[Ours] = []
        bars = []
        for what, (source, tiny) in sources.items():
            place = Place(work, source, tiny, full=True, keep=True)
            send, filesend = f"ours, send, {what}", f"ours, filesend, {what}"
            rows += [Ours(send, place), Outbox(filesend, place)]
            bars.append(versus(filesend, send, 0.5, net))
        started = [row for row in rows if row.missing() is None]
        try:
            for row in started:
                row.__enter__()
            columns = (Column("s", net), Column("whole s", whole), START, *MEMORY)
            title = f"A watched folder beside the command, on {fileSystemOf(work)}, synced"
            yield Section(title, rows, columns, bars)
        finally:
            for row in started:
                row.__exit__()
