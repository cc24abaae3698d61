"""
Sections about the service: clients that do nothing, its memory.
"""

from __future__ import annotations

import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import attrs

from benchmarks.processes import Failed, Running, residentOf
from benchmarks.section import Column, Figures, Section, Wanted
from benchmarks.setup import Setup
from benchmarks.spread import ratios
from benchmarks.transfer.ours import Ours
from benchmarks.transfer.tools import Place, Tool, net, whole

__all__ = ["beside", "connections", "crowd", "memory"]

_MIB = 1 << 20
_SECONDS = 30.0
#: Open files that the service reckons with for a connection; connections and files beside.
_FILES_PER_CONNECTION = 3
_FURTHER = 100


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        got = connection.recv(count - len(data))
        if not got:
            raise Failed("the receiver ended the connection of an idle client")
        data += got
    return data


def _frame(connection: socket.socket) -> bytes:
    """
    Read one frame without data, as it was on the wire.
    """
    header = _exactly(connection, 16)
    return header + _exactly(connection, struct.unpack(">BBHII", header[:12])[2])


@contextmanager
def idleClients(port: int, count: int) -> Iterator[list[socket.socket]]:
    """
    Clients that have greeted the receiver and say nothing more.
    """
    from connpool.transfer.wire.frames import PREAMBLE, Type
    from connpool.transfer.wire.handshake import CAPABILITIES, transcriptOf
    from connpool.transfer.wire.messages import Auth, Hello, encode

    hello = encode(
        Type.HELLO, 0, Hello((1,), "benchmark", CAPABILITIES, ("blake3", "sha256"), bytes(32))
    )
    with ExitStack() as stack:
        clients: list[socket.socket] = []
        while len(clients) < count:  # a few at a time: each is waited for 10 seconds only
            some = []
            for _ in range(min(100, count - len(clients))):
                client = socket.create_connection(("127.0.0.1", port), _SECONDS)
                some.append(stack.enter_context(client))
                client.sendall(PREAMBLE + hello)
            for client in some:
                _exactly(client, len(PREAMBLE))
                theirs = _frame(client)
                client.sendall(encode(Type.AUTH, 0, Auth(transcriptOf(hello, theirs), "none")))
                if _frame(client)[0] != Type.READY:
                    raise Failed("an idle client was not let in")
            clients += some
        yield clients
        for client in clients:
            client.setblocking(False)
            with suppress(BlockingIOError):
                if not client.recv(1, socket.MSG_PEEK):
                    raise Failed("the receiver ended the connection of an idle client")


@attrs.frozen
class _Beside:
    """
    A file that is sent while some clients do nothing.
    """

    name: str
    tool: Tool
    crowd: Callable[[], AbstractContextManager[object]]

    def missing(self) -> str | None:
        return self.tool.missing()

    def once(self) -> dict[str, float]:
        with self.crowd():
            figures = self.tool.once()
        time.sleep(0.2)  # they leave
        return figures


def beside(
    tool: Tool, crowd: Callable[[], AbstractContextManager[object]], title: str, others: str
) -> Section:
    """
    Return the section about a file alone, and beside clients.

    @param crowd: lets the clients come, and go.
    @param others: the clients, in words.
    """
    rows = [
        _Beside("ours, alone", tool, nullcontext),
        _Beside(f"ours, beside {others}", tool, crowd),
    ]
    bars = [
        Wanted(
            f"time beside {others} / alone",
            *((rows[1].name, rows[0].name), lambda a, b: ratios(net(a), net(b)), 1.05),
            atMost=True,
            unit="x",
        )
    ]
    columns = (Column("s", net), Column("whole command s", whole))
    return Section(title, rows, columns, bars)


class _Patient(Ours):
    """
    A receiver that keeps clients who say nothing.
    """

    def server(self) -> list[Any]:
        return [*super().server(), "--idle-timeout", "3600", *self.more]

    more: tuple[str, ...] = ()


@contextmanager
def crowd(setup: Setup) -> Iterator[Section]:
    """
    A large file beside idle clients.
    """
    count = 30 if setup.quick else 300
    with (
        setup.work(setup.memory) as work,
        _Patient("ours", Place.file(work, setup.large)) as tool,
    ):
        title = f"One file of {setup.large:,} MiB beside idle clients"
        yield beside(tool, lambda: idleClients(tool.port, count), title, f"{count} idle clients")


@attrs.frozen
class _Connections:
    """
    What one idle client costs, and a file that is sent beside them all.
    """

    name: str
    place: Place
    count: int

    def missing(self) -> str | None:
        return None

    def once(self) -> dict[str, float]:
        work = self.place.work / str(time.monotonic_ns())
        tool = _Patient("ours", attrs.evolve(self.place, work=work))
        tool.more = ("--max-connections", str(self.count + _FURTHER))
        with tool:
            assert tool.receiver is not None
            tool.figures(self.place.tiny)  # what is needed once
            before = residentOf(tool.receiver.pid, "VmRSS")
            alone = tool.figures(self.place.source)[1]["whole"]
            with idleClients(tool.port, self.count):
                each = (residentOf(tool.receiver.pid, "VmRSS") - before) / self.count
                beside = tool.figures(self.place.source)[1]["whole"]
        return {"each": each / 1024, "alone": alone, "beside": beside}


def _affordable(count: int) -> int:
    """
    Raise the limit of open files so far that a service started here takes so many
    connections, or return how many it takes.
    """
    wanted = (count + _FURTHER) * _FILES_PER_CONNECTION + _FURTHER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (ValueError, OSError):  # who is not root has the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return min(count, (hard - _FURTHER) // _FILES_PER_CONNECTION - _FURTHER)
    return count


@contextmanager
def connections(setup: Setup) -> Iterator[Section]:
    """
    Ten thousand idle connections, or as many as the limit of open files is enough for.
    """
    count = _affordable(500 if setup.quick else 10_000)
    with setup.work(setup.memory) as work:
        place = Place.file(work, max(setup.large // 8, 1))
        row = _Connections(f"ours, {count:,} idle", place, count)
        columns = (
            Column("KiB each", lambda row: row["each"], "{:.1f}"),
            Column("a file alone s", lambda row: row["alone"]),
            Column("a file beside them s", lambda row: row["beside"]),
        )
        bars = [
            Wanted(
                *("memory of an idle connection", (row.name,), lambda row: row["each"], 25),
                atMost=True,
                exact=True,
                unit="KiB",
            )
        ]
        note = "Each has greeted the receiver; a file is sent beside them all."
        title = f"{count:,} idle connections"
        yield Section(title, [row], columns, bars, note, rounds=1, warm=False)


@attrs.frozen
class _Memory:
    """
    The memory of a service that does nothing, and what each active transfer adds.
    """

    name: str
    place: Place
    count: int

    def missing(self) -> str | None:
        return None

    def once(self) -> dict[str, float]:
        work = self.place.work / str(time.monotonic_ns())
        with Ours("ours", attrs.evolve(self.place, work=work)) as tool:
            assert tool.receiver is not None
            pid = tool.receiver.pid
            time.sleep(1)
            idle = residentOf(pid, "VmRSS")
            tool.figures(self.place.tiny)
            one = tool.figures(self.place.source)[1]["receivePeak"]
            path = self.place.source.renamed()
            senders = [
                Running(
                    [*tool.client(path)[:-1], "--if-exists", "rename", path],
                    env={"XDG_STATE_HOME": str(work / f"state-{number}")},
                )
                for number in range(self.count)
            ]
            for sender in senders:
                sender.ended()
            several = residentOf(pid)
        grown = (several - idle) / self.count
        return {"idle": idle / _MIB, "one": one / _MIB, "each": grown / _MIB}


@contextmanager
def memory(setup: Setup) -> Iterator[Section]:
    """
    The memory of the service.
    """
    with setup.work(setup.memory) as work:
        row = _Memory("ours, filerecv", Place.file(work, max(setup.large // 4, 1)), 8)
        columns = (
            Column("idle MiB", lambda row: row["idle"], "{:.1f}"),
            Column("at most with one transfer MiB", lambda row: row["one"], "{:.1f}"),
            Column("each of eight MiB", lambda row: row["each"], "{:.1f}"),
        )

        def decimal(row: Figures) -> list[float]:
            return [value * _MIB / 1e6 for value in row["idle"]]

        def active(row: Figures) -> list[float]:
            return row["each"]

        bars = [
            Wanted("memory of an idle service", (row.name,), decimal, 55, None, True, True, "MB"),
            Wanted("for each transfer", (row.name,), active, 4, None, True, True, "MiB"),
        ]
        title = "Memory of the receiving service; eight transfers at once"
        yield Section(title, [row], columns, bars, rounds=1)
