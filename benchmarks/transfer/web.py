"""
Sections about files that come by HTTP.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import attrs

from benchmarks.machine import fileSystemOf
from benchmarks.processes import Failed, Running, residentOf
from benchmarks.section import Column, Section, Wanted, versus
from benchmarks.setup import Setup
from benchmarks.transfer.bytes import PER_FILE, started
from benchmarks.transfer.others import Nginx, NginxTLS
from benchmarks.transfer.service import beside
from benchmarks.transfer.tools import COLUMNS, Place, net
from benchmarks.transfer.webtools import (
    Copyparty,
    FsyncLoop,
    NginxTree,
    Put,
    PutTLS,
    Tus,
    TusServer,
    installTus,
)

__all__ = ["web", "webDisk", "webDurable", "webIdle", "webMemory", "webSmall", "webTLS"]

_MIB = 1 << 20
_SECONDS = 10.0
_UPLOADS = 8
_IDLE, _HALF = 300, 100


@contextmanager
def web(setup: Setup) -> Iterator[Section]:
    """
    One large file in memory, by PUT and by tus.
    """
    if setup.install:
        installTus()
    with setup.work(setup.memory) as work, ExitStack() as stack:
        place = Place.file(work, setup.large)
        tools = [
            Nginx("nginx PUT", place),
            Put("ours, PUT", place),
            Put("ours, PUT, SHA-256", place, "--web-sha256"),
            Tus("ours, tus", place),
            TusServer("@tus/server", place),
        ]
        bars = [
            versus("ours, PUT", "nginx PUT", 1.0, net),
            versus("ours, PUT", "@tus/server", 2.0, net),
            versus("ours, tus", "nginx PUT", 0.7, net),
            versus("ours, PUT, SHA-256", "nginx PUT", 0.5, net),
        ]
        title = f"One file of {setup.large:,} MiB in memory, from curl"
        yield Section(title, started(stack, tools), COLUMNS, bars)


@contextmanager
def webTLS(setup: Setup) -> Iterator[Section]:
    """
    One large file by PUT within TLS.
    """
    with setup.work(setup.memory) as work, ExitStack() as stack:
        place = Place.file(work, setup.large)
        tools = [NginxTLS("nginx PUT, TLS", place), PutTLS("ours, PUT, TLS", place)]
        bars = [versus("ours, PUT, TLS", "nginx PUT, TLS", 0.8, net)]
        title = f"One file of {setup.large:,} MiB in memory, from curl, TLS 1.3"
        yield Section(title, started(stack, tools), COLUMNS, bars)


@contextmanager
def webDisk(setup: Setup) -> Iterator[Section]:
    """
    One large file by PUT on a disk, for copyparty, which takes no tmpfs.
    """
    with setup.work(setup.disk) as work, ExitStack() as stack:
        place = Place.file(work, setup.large)
        tools = [Copyparty("copyparty PUT", place), Put("ours, PUT", place)]
        bars = [versus("ours, PUT", "copyparty PUT", 2.0, net)]
        title = f"One file of {setup.large:,} MiB on {fileSystemOf(work)}, from curl, not synced"
        yield Section(title, started(stack, tools), COLUMNS, bars)


@contextmanager
def webSmall(setup: Setup) -> Iterator[Section]:
    """
    Small files in memory, by one curl over one connection.
    """
    count = max(setup.small // 10, 1)
    with setup.work(setup.memory) as work, ExitStack() as stack:
        place = Place.tree(work, count)
        tools = [NginxTree("nginx PUT", place), Put("ours, PUT", place)]
        bars = [versus("ours, PUT", "nginx PUT", 0.5, net)]
        title = f"{count:,} files of 4 KiB in memory, from one curl over one connection"
        yield Section(title, started(stack, tools), PER_FILE, bars)


@contextmanager
def webDurable(setup: Setup) -> Iterator[Section]:
    """
    Small files on a disk, synced, over 16 connections.
    """
    count = max(setup.small // 10, 1)
    with setup.work(setup.disk) as work, ExitStack() as stack:
        place = Place.tree(work, count, full=True)
        loop, ours = "write, fsync, rename", "ours, PUT, full"
        tools = [FsyncLoop(loop, place), Put(ours, place, connections=16)]
        title = f"{count:,} files of 4 KiB on {fileSystemOf(work)}, synced, from curl"
        note = "Ours over 16 connections; the loop has no network, and syncs no names."
        bars = [versus(ours, loop, 1.0, net)]
        yield Section(title, started(stack, tools), PER_FILE, bars, note)


@contextmanager
def _crowd(port: int, idle: int, half: int) -> Iterator[None]:
    """
    Clients that keep a connection after an answer, and clients with half a head.
    """
    with ExitStack() as stack:

        def connected(text: bytes) -> socket.socket:
            made = socket.create_connection(("127.0.0.1", port), _SECONDS)
            stack.enter_context(made).sendall(text)
            return made

        for _ in range(idle):
            answer = connected(b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\n\r\n").recv(1 << 16)
            if not answer.startswith(b"HTTP/1.1 20"):
                raise Failed(f"an idle client was answered {answer[:60]!r}")
        for _ in range(half):
            connected(b"PUT /half HTTP/1.1\r\nHost: local")
        yield


@contextmanager
def webIdle(setup: Setup) -> Iterator[Section]:
    """
    A large file beside idle connections and half heads.
    """
    with setup.work(setup.memory) as work, ExitStack() as stack:
        limit = str(2 * (_IDLE + _HALF))
        tool = Put("ours, PUT", Place.file(work, setup.large), "--max-connections", limit)
        started(stack, [tool])
        title = f"One file of {setup.large:,} MiB from curl, beside clients that do nothing"
        others = f"{_IDLE} idle connections and {_HALF} half heads"
        yield beside(tool, lambda: _crowd(tool.port, _IDLE, _HALF), title, others)


@attrs.frozen
class _Memory:
    """
    What each of several uploads at once adds to the memory of the service.
    """

    name: str
    place: Place

    def missing(self) -> str | None:
        return Put(self.name, self.place).missing()

    def once(self) -> dict[str, float]:
        with Put("ours", self.place) as tool:
            assert tool.receiver is not None
            tool.figures(self.place.tiny)  # what is needed once
            before = residentOf(tool.receiver.pid, "VmRSS")
            path = self.place.source.renamed()
            words = tool.client(path)
            senders = [Running([*words[:-1], f"{words[-1]}-{n}"]) for n in range(_UPLOADS)]
            for sender in senders:
                sender.ended()
            grown = residentOf(tool.receiver.pid) - before
        return {"each": grown / _UPLOADS / _MIB}


@contextmanager
def webMemory(setup: Setup) -> Iterator[Section]:
    """
    The memory of uploads.
    """
    with setup.work(setup.memory) as work:
        row = _Memory("ours, PUT", Place.file(work, max(setup.large // 4, 1)))
        bars = [
            Wanted(
                *("for each upload", (row.name,), lambda row: row["each"], 8),
                atMost=True,
                exact=True,
                unit="MiB",
            )
        ]
        columns = (Column(f"each of {_UPLOADS} MiB", lambda row: row["each"], "{:.1f}"),)
        title = f"Memory of the receiving service, {_UPLOADS} uploads from curl at once"
        yield Section(title, [row], columns, bars, rounds=1, warm=False)
