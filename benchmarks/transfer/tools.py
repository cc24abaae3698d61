"""
Contestants that send files: a receiver, and a command that sends to it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Self

import attrs

from benchmarks.machine import fileSystemOf
from benchmarks.processes import Failed, Running, Spent, cpuOf, freePort, residentOf, run
from benchmarks.section import Column, Figures
from benchmarks.transfer.sources import FileSource, Source, TreeSource, same

__all__ = [
    "COLUMNS",
    "MEMORY",
    "START",
    "Certified",
    "OneShot",
    "Place",
    "Tool",
    "net",
    "netCPU",
    "whole",
]

_ARRIVE_SECONDS = 10.0


@attrs.frozen
class Place:
    """
    @ivar work: directory in which everything lies.
    @ivar full: durability that is asked for: full, otherwise none.
    @ivar keep: whether what arrived stays until the end.  Files made soon after many were
        deleted are eight times as dear on ext4.
    @ivar source: to send.
    @ivar tiny: the least that can be sent in its stead: what it takes is start-up.
    """

    work: Path
    source: Source
    tiny: Source
    full: bool = False
    keep: bool = False

    @classmethod
    def file(cls, work: Path, mebibytes: int) -> Self:
        """
        Return the place of one file.
        """
        return cls(work, FileSource(work / "file", mebibytes << 20), FileSource(work / "tiny", 1))

    @classmethod
    def tree(cls, work: Path, files: int, *, full: bool = False) -> Self:
        """
        Return the place of a tree of small files; with C{full}, they are synced and stay.
        """
        tree, tiny = TreeSource(work / "tree", files), TreeSource(work / "tiny", 1)
        return cls(work, tree, tiny, full=full, keep=full)


class Tool:
    """
    A receiver that serves one sender after another.

    @cvar needs: programs.
    @cvar fine: exit codes of a sender that has done its work.
    """

    needs: tuple[str, ...] = ()
    fine: tuple[int, ...] = (0,)

    def __init__(self, name: str, place: Place) -> None:
        self.name = name
        self.place = place
        self.work = place.work / "".join(c if c.isalnum() else "-" for c in name)
        self.root = self.work / "root"
        self.port = freePort()
        self.receiver: Running | None = None

    def missing(self) -> str | None:
        """
        Return why it cannot run here.
        """
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
        if self.place.full and fileSystemOf(self.place.work) in {"tmpfs", "ramfs"}:
            return f"{self.place.work.parent} is in memory: --disk names a directory on a disk"
        without = [name for name in self.needs if shutil.which(name, path=path) is None]
        return f"{', '.join(without)} not installed" if without else None

    # -- for each tool

    def server(self) -> list[Any]:
        """
        Return the command of the receiver.
        """
        raise NotImplementedError

    def client(self, source: Path) -> list[Any]:
        """
        Return the command that sends.
        """
        raise NotImplementedError

    def variables(self) -> dict[str, str]:
        """
        Return what is in the environment of the sender.
        """
        return {}

    def prepare(self) -> None:
        """
        Write what the programs read.
        """

    def arrived(self, source: Path) -> Path:
        """
        Return where the receiver puts it.
        """
        return self.root / source.name

    # -- the same for all

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True)
        self.prepare()
        self.receiver = self.start()
        return self

    def start(self) -> Running | None:
        return Running(self.server(), cwd=self.root, port=self.port)

    def __exit__(self, *_: object) -> None:
        if self.receiver is not None:
            self.receiver.stop()

    def once(self) -> dict[str, float]:
        """
        Send the least, then what is to be sent.
        """
        _, start = self.figures(self.place.tiny)
        size, figures = self.figures(self.place.source)
        return figures | {
            "size": size,
            "start": start["whole"],
            "startSendCPU": start["sendCPU"],
            "startReceiveCPU": start["receiveCPU"],
        }

    def figures(self, source: Source) -> tuple[int, dict[str, float]]:
        path = source.renamed()
        sent, received = self.send(path)
        target = self.arrived(path)
        self.check(path, target)
        if not self.place.keep:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        return source.size, {
            "whole": max(sent.seconds, received.seconds),
            "sendCPU": sent.cpu,
            "receiveCPU": received.cpu,
            "sendPeak": sent.peak,
            "receivePeak": received.peak,
        }

    def send(self, path: Path) -> tuple[Spent, Spent]:
        """
        @return: of the sender; of the receiver, which has no seconds of its own.
        """
        assert self.receiver is not None
        pid = self.receiver.pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak so far
        before = cpuOf(pid)
        sent = run(self.client(path), env=self.variables(), fine=self.fine)
        return sent, Spent(0.0, cpuOf(pid) - before, residentOf(pid))

    def check(self, source: Path, target: Path) -> None:
        """
        Compare, when the receiver has had the time to end.
        """
        end = time.monotonic() + _ARRIVE_SECONDS
        while True:
            try:
                return same(source, target)
            except Failed as e:
                if time.monotonic() > end:
                    raise Failed(f"{self.name}: {e}") from None
            time.sleep(0.02)


class Certified(Tool):
    """
    A tool that needs C{server.pem}, with its key, and the C{ca.pem} that signed it.
    """

    def missing(self) -> str | None:
        if importlib.util.find_spec("trustme") is None:
            return "the package trustme, which makes certificates, is not installed"
        return super().missing()

    def prepare(self) -> None:
        import trustme

        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.work / "ca.pem"))
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self.work / "server.pem"))


class OneShot(Tool):
    """
    A receiver for one file; it is there when the clock starts, and its end stops it.
    """

    def start(self) -> None:
        return None

    def receive(self, source: Path) -> list[Any]:
        """
        Return the command that receives.
        """
        raise NotImplementedError

    def send(self, path: Path) -> tuple[Spent, Spent]:
        self.port = freePort()
        receiver = Running(self.receive(path), cwd=self.root, port=self.port)
        try:
            before = time.perf_counter()
            sent = run(self.client(path), env=self.variables(), fine=self.fine, beside=[receiver])
            received = receiver.ended(60)
            return sent, attrs.evolve(received, seconds=time.perf_counter() - before)
        finally:
            receiver.stop()


# -- columns


def whole(row: Figures) -> list[float]:
    """
    Return seconds from start to exit.
    """
    return row["whole"]


def net(row: Figures) -> list[float]:
    """
    Return the seconds beyond those of the least that can be sent: a tenth of them if less,
    which cannot be told from nothing.
    """
    start = median(row["start"])
    return [max(seconds - start, start / 10) for seconds in row["whole"]]


def netCPU(which: str, unit: float = 1e9, times: float = 1.0) -> Callable[[Figures], list[float]]:
    """
    Return what gives processor time beyond that of the least that can be sent.

    @param which: C{"sendCPU"} or C{"receiveCPU"}.
    @param unit: bytes that it is the time for.
    @param times: what a second is of the figure's unit.
    """

    def of(row: Figures) -> list[float]:
        start = median(row[f"start{which[0].upper()}{which[1:]}"])
        pairs = zip(row[which], row["size"], strict=True)
        return [max(seconds - start, 0.0) / size * unit * times for seconds, size in pairs]

    return of


def _mebibytes(which: str) -> Callable[[Figures], list[float]]:
    return lambda row: [value / (1 << 20) for value in row[which]]


def _rate(row: Figures) -> list[float]:
    return [size / seconds / 1e9 for size, seconds in zip(row["size"], net(row), strict=True)]


START = Column("start-up s", lambda row: row["start"])
MEMORY = (
    Column("sender MiB", _mebibytes("sendPeak"), "{:.0f}"),
    Column("receiver MiB", _mebibytes("receivePeak"), "{:.0f}"),
)
#: Of files that are large.
COLUMNS = (
    Column("GB/s", _rate),
    Column("whole command s", whole),
    START,
    Column("sender CPU s/GB", netCPU("sendCPU")),
    Column("receiver CPU s/GB", netCPU("receiveCPU")),
    *MEMORY,
)
