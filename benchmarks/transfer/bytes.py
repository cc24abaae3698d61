"""
Sections in which a tool sends a file or a tree: large, TLS, small, durable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks.machine import fileSystemOf
from benchmarks.section import Column, Figures, Section, versus
from benchmarks.setup import Setup
from benchmarks.transfer.others import (
    Ftp,
    GoCopy,
    GoTutorial,
    Nginx,
    NginxTLS,
    RawSockets,
    Rsync,
    Scp,
    Sftp,
    Socat,
    TarNetcat,
)
from benchmarks.transfer.ours import Classic, Ours, OursTLS
from benchmarks.transfer.tools import COLUMNS, MEMORY, START, Place, Tool, net, netCPU, whole

__all__ = ["PER_FILE", "command", "durable", "large", "small", "started", "tls"]


def started(stack: ExitStack, tools: Sequence[Tool]) -> Sequence[Tool]:
    """
    Start those that can run here.
    """
    for tool in tools:
        if tool.missing() is None:
            stack.enter_context(tool)
    return tools


@contextmanager
def large(setup: Setup) -> Iterator[Section]:
    """
    One large file in memory.
    """
    with setup.work(setup.memory) as work, ExitStack() as stack:
        place = Place.file(work, setup.large)
        tools = [
            RawSockets("raw sockets", place),
            RawSockets("raw sockets, BLAKE3", place, "blake3"),
            Nginx("nginx PUT + curl", place),
            Classic("ours, classic", place),
            Ours("ours, BLAKE3", place),
            Ours("ours, xxh3", place, "--digests", "xxh3"),
            Ours("ours, SHA-256", place, "--digests", "sha256"),
            GoTutorial("Go tutorial", place),
            GoCopy("Go io.Copy", place),
            Rsync("rsync daemon", place),
            Ftp("pyftpdlib + curl", place),
            Socat("socat, 1 MiB", place),
        ]
        bars = [
            versus("ours, classic", "nginx PUT + curl", 1.25, net, bound="raw sockets"),
            versus("ours, classic", "raw sockets", 0.9, net),
            versus(
                *("ours, BLAKE3", "nginx PUT + curl", 0.83, net),
                stretch=0.95,
                bound="raw sockets, BLAKE3",
            ),
            versus("ours, xxh3", "nginx PUT + curl", 1.0, net, bound="raw sockets"),
            # the protocol of the tutorial
            versus("ours, classic", "Go tutorial", 4.0, net, bound="raw sockets"),
        ]
        title = f"One file of {setup.large:,} MiB in memory"
        yield Section(title, started(stack, tools), COLUMNS, bars)


#: MiB of the file that whole commands are compared by: start-up weighs less the longer it is.
_COMMAND_MEBIBYTES = 2048


@contextmanager
def command(setup: Setup) -> Iterator[Section]:
    """
    A large file as a user waits for it, from the start of the command to its end.
    """
    size = setup.large if setup.quick else _COMMAND_MEBIBYTES
    with setup.work(setup.memory) as work, ExitStack() as stack:
        place = Place.file(work, size)
        nginx, ours = "nginx PUT + curl", "ours, classic"
        tools = [Nginx(nginx, place), Classic(ours, place), Ours("ours, BLAKE3", place)]
        bars = [versus(ours, nginx, 0.9, whole, text=f"{nginx} / {ours}, whole command")]
        columns = (Column("whole command s", whole), START)
        title = f"Whole commands, one file of {size:,} MiB in memory"
        yield Section(title, started(stack, tools), columns, bars)


@contextmanager
def tls(setup: Setup) -> Iterator[Section]:
    """
    One large file within TLS.
    """
    with setup.work(setup.memory) as work, ExitStack() as stack:
        place = Place.file(work, setup.large)
        tools = [NginxTLS("nginx PUT + curl, TLS", place), OursTLS("ours, BLAKE3, TLS", place)]
        bars = [versus("ours, BLAKE3, TLS", "nginx PUT + curl, TLS", 0.65, net, stretch=0.75)]
        title = f"One file of {setup.large:,} MiB in memory, TLS 1.3"
        yield Section(title, started(stack, tools), COLUMNS, bars)


def _rate(row: Figures) -> list[float]:
    return [size / 4096 / seconds for size, seconds in zip(row["size"], net(row), strict=True)]


PER_FILE = (
    Column("files/s", _rate, "{:,.0f}"),
    Column("whole command s", whole),
    START,
    Column("sender CPU us/file", netCPU("sendCPU", 4096, 1e6), "{:.0f}"),
    Column("receiver CPU us/file", netCPU("receiveCPU", 4096, 1e6), "{:.0f}"),
    *MEMORY,
)


@contextmanager
def small(setup: Setup) -> Iterator[Section]:
    """
    Many small files in memory.
    """
    with setup.work(setup.memory) as work, ExitStack() as stack:
        place = Place.tree(work, setup.small)
        tools = [
            Rsync("rsync daemon", place),
            Ours("ours", place),
            TarNetcat("tar | nc", place),
            Scp("scp -O", place),
            Sftp("sftp", place),
        ]
        bars = [versus("ours", "rsync daemon", 0.9, net, stretch=1.05)]
        title = f"{setup.small:,} files of 4 KiB in memory, nothing synced"
        note = "Only ours compares contents at the other end and says what was stored."
        yield Section(title, started(stack, tools), PER_FILE, bars, note)


@contextmanager
def durable(setup: Setup) -> Iterator[Section]:
    """
    Small files on a disk, synced.
    """
    count = max(setup.small // 5, 1)
    with setup.work(setup.disk) as work, ExitStack() as stack:
        place = Place.tree(work, count, full=True)
        tools = [Rsync("rsync --fsync", place), Ours("ours, full", place)]
        bars = [versus("ours, full", "rsync --fsync", 2.0, net, stretch=3.0)]
        title = (
            f"{count:,} files of 4 KiB on {fileSystemOf(work)}, synced before they are acknowledged"
        )
        note = "rsync syncs contents; ours syncs contents, names and directories."
        yield Section(title, started(stack, tools), PER_FILE, bars, note)
