"""
A section about uploads that go on: after their connection was lost without a word, and after
their receiver was killed.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs

from benchmarks.processes import Failed
from benchmarks.section import Column, Section, Wanted
from benchmarks.setup import Setup
from benchmarks.transfer.sources import FileSource
from benchmarks.transfer.tools import Place
from benchmarks.transfer.webtools import Tus

__all__ = ["webAgain"]

_SECONDS = 60.0
_PIECE_BYTES = 1 << 20
_TUS = {"Tus-Resumable": "1.0.0"}
_PATCH = {**_TUS, "Content-Type": "application/offset+octet-stream"}


@attrs.frozen
class _GoesOn:
    """
    An upload that stops at nine tenths, and another connection that goes on with it.

    @ivar killed: the receiver is killed between the two, and started again; otherwise the
        first connection just says nothing more.
    """

    name: str
    tool: Tus
    killed: bool

    def missing(self) -> str | None:
        return self.tool.missing()

    def once(self) -> dict[str, float]:
        path = self.tool.place.source.renamed()
        size, data = self.tool.place.source.size, path.read_bytes()
        first = self._connect()
        first.request("POST", "/", headers={**_TUS, "Upload-Length": str(size)})
        created = first.getresponse()
        created.read()
        url = "/" + created.headers["Location"].removeprefix("./").lstrip("/")
        first.putrequest("PATCH", url)
        for name, value in {**_PATCH, "Upload-Offset": 0, "Content-Length": size}.items():
            first.putheader(name, str(value))
        first.endheaders()
        for at in range(0, size * 9 // 10, _PIECE_BYTES):
            first.send(data[at : at + _PIECE_BYTES])
        time.sleep(1)  # it is taken, and one cannot see by what
        if self.killed:
            assert self.tool.receiver is not None
            self.tool.receiver.process.kill()
            self.tool.receiver.process.wait()
            self.tool.receiver.stop()
            self.tool.receiver = self.tool.start()
        began = time.perf_counter()
        second = self._connect()
        second.request("HEAD", url, headers=_TUS)
        told = second.getresponse()
        told.read()
        if told.status != 200:
            raise Failed(f"{self.name}: HEAD was answered {told.status}")
        found = time.perf_counter()
        offset = int(told.headers["Upload-Offset"])
        taken = self._rest(second, url, data, offset)
        first.close()
        self._check(data)
        second.close()
        return {"offset": found - began, "taken": taken - began, "again": 90 - offset / size * 100}

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.tool.port, timeout=_SECONDS)

    def _rest(
        self, connection: http.client.HTTPConnection, url: str, data: bytes, offset: int
    ) -> float:
        """
        Send the bytes from C{offset} on.

        @return: the time at which the receiver said that it takes them.
        """
        rest = len(data) - offset
        head = "".join(
            f"{name}: {value}\r\n"
            for name, value in {
                **_PATCH,
                "Host": f"127.0.0.1:{self.tool.port}",
                "Upload-Offset": offset,
                "Content-Length": rest,
                "Expect": "100-continue",
            }.items()
        )
        connection.sock.sendall(f"PATCH {url} HTTP/1.1\r\n{head}\r\n".encode())
        if not connection.sock.recv(1 << 16).startswith(b"HTTP/1.1 100 "):
            raise Failed(f"{self.name}: the rest was refused")
        taken = time.perf_counter()
        connection.sock.sendall(memoryview(data)[offset:])
        if not connection.sock.recv(1 << 16).startswith(b"HTTP/1.1 204 "):
            raise Failed(f"{self.name}: the rest was not stored")
        return taken

    def _check(self, data: bytes) -> None:
        stored = [path for path in self.tool.root.iterdir() if path.is_file()]
        wanted = hashlib.sha256(data).digest()
        if [hashlib.sha256(path.read_bytes()).digest() for path in stored] != [wanted]:
            raise Failed(f"{self.name}: what is stored is not what was sent")
        with suppress(FileNotFoundError):
            os.unlink(stored[0])


@contextmanager
def webAgain(setup: Setup) -> Iterator[Section]:
    """
    A large upload that goes on.
    """
    with setup.work(setup.memory) as work:
        source = FileSource(work / "file", setup.large << 20)
        place = Place(work, source, source)
        with Tus("ours, tus", place) as tool:
            rows = [
                _GoesOn("from a connection that says nothing", tool, killed=False),
                _GoesOn("after the receiver was killed", tool, killed=True),
            ]
            bars = [
                Wanted(
                    f"{row.name}: from connecting to new bytes",
                    *((row.name,), lambda figures: figures["taken"], limit),
                    atMost=True,
                    unit="s",
                )
                for row, limit in zip(rows, (2.0, 1.0), strict=True)
            ]
            columns = (
                Column("s from connecting to the offset", lambda row: row["offset"], "{:.3f}"),
                Column("s from connecting to new bytes", lambda row: row["taken"], "{:.3f}"),
                Column("% sent again", lambda row: row["again"], "{:.1f}"),
            )
            title = f"An upload of {setup.large:,} MiB by tus that goes on at nine tenths"
            yield Section(title, rows, columns, bars, warm=False)
