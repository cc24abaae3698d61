"""
Sections about the path between the two: delay, compress, resume.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import attrs

from benchmarks.processes import Failed, Running, run
from benchmarks.section import Column, Figures, Section, Wanted
from benchmarks.setup import Setup
from benchmarks.transfer.ours import Ours
from benchmarks.transfer.relay import Relay
from benchmarks.transfer.sources import FileSource, LogSource, Source, TreeSource
from benchmarks.transfer.tools import START, Place, net, whole

__all__ = ["compress", "delay", "resume"]

#: Seconds that a byte takes one way.
_ONE_WAY = 0.1
_TRIP = 2 * _ONE_WAY


@attrs.frozen
class _Delayed:
    """
    Something sent directly or through a relay.
    """

    name: str
    tool: Ours
    source: Source
    tiny: Source
    port: int

    def missing(self) -> str | None:
        return self.tool.missing()

    def once(self) -> dict[str, float]:
        _, start = self.tool.figures(self.tiny)  # directly: trips of its own are of the path
        direct, self.tool.port = self.tool.port, self.port
        try:
            _, figures = self.tool.figures(self.source)
        finally:
            self.tool.port = direct
        return {"whole": figures["whole"], "start": start["whole"]}


@contextmanager
def delay(setup: Setup) -> Iterator[Section]:
    """
    Small files over a path on which every byte is late.
    """
    few, many = max(min(100, setup.small // 2), 1), setup.small
    with setup.work(setup.memory) as work:
        tiny = TreeSource(work / "tiny", 1)
        trees = {count: TreeSource(work / f"tree-{count}", count) for count in (few, many)}
        with Ours("ours", Place(work, trees[many], tiny)) as tool:
            relay = Relay(tool.port, _ONE_WAY)
            ways = {"direct": tool.port, "delayed": relay.port}
            rows = [
                _Delayed(f"ours, {count:,} files, {way}", tool, trees[count], tiny, port)
                for count in trees
                for way, port in ways.items()
            ]

            def trips(delayed: Figures, direct: Figures) -> list[float]:
                pairs = zip(net(delayed), net(direct), strict=True)
                return [(late - soon) / _TRIP for late, soon in pairs]

            def beyond(delayed: Figures, direct: Figures) -> list[float]:
                pairs = zip(net(delayed), net(direct), strict=True)
                return [(late - 5 * _TRIP) / soon for late, soon in pairs]

            def growth(*four: Figures) -> list[float]:
                return [median(trips(four[3], four[2])) - median(trips(four[1], four[0]))]

            names = tuple(row.name for row in rows)
            bars = [
                Wanted(
                    f"{many:,} files: (delayed - 5 round trips) / direct",
                    *((names[3], names[2]), beyond, 1.3),
                    atMost=True,
                    unit="x",
                ),
                Wanted(
                    f"round trips waited for, {many:,} files more than {few:,}",
                    *(names, growth, 5),
                    atMost=True,
                    exact=True,
                ),
            ]
            title = f"Small files, {_ONE_WAY * 1000:.0f} ms each way"
            columns = (Column("s", net), Column("whole command s", whole), START)
            yield Section(title, rows, columns, bars)
            relay.close()


#: Bytes a second of a narrow path: 100 Mbit/s.
_NARROW_RATE = 12.5e6


@contextmanager
def compress(setup: Setup) -> Iterator[Section]:
    """
    Text over a narrow path, and bytes that do not shrink over a wide one.
    """
    with setup.work(setup.memory) as work:
        tiny = FileSource(work / "tiny", 1)
        text = LogSource(work / "text", min(setup.large, 128) << 20)
        noise = FileSource(work / "noise", setup.large << 20)
        with (
            Ours("compressed", Place(work / "a", text, tiny)) as packed,
            Ours("as it is", Place(work / "b", text, tiny), "--no-compress") as plain,
        ):
            relays = [Relay(tool.port, rate=_NARROW_RATE) for tool in (packed, plain)]
            rows = [
                _Delayed(f"text over 100 Mbit/s, {tool.name}", tool, text, tiny, relay.port)
                for tool, relay in zip((packed, plain), relays, strict=True)
            ]
            rows += [
                _Delayed(f"random over loopback, {tool.name}", tool, noise, tiny, tool.port)
                for tool in (packed, plain)
            ]

            def gain(soon: Figures, late: Figures) -> list[float]:
                return [b / a for a, b in zip(net(soon), net(late), strict=True)]

            def loss(tried: Figures, never: Figures) -> list[float]:
                return [a / b for a, b in zip(net(tried), net(never), strict=True)]

            names = tuple(row.name for row in rows)
            bars = [
                Wanted(
                    "text over 100 Mbit/s: as it is / compressed", names[:2], gain, 3.0, unit="x"
                ),
                Wanted(
                    "random over loopback: compressed / as it is",
                    *(names[2:], loss, 1.03),
                    atMost=True,
                    unit="x",
                ),
            ]
            columns = (Column("s", net), Column("whole command s", whole), START)
            yield Section("Compression", rows, columns, bars)
            for relay in relays:
                relay.close()


@attrs.frozen
class _Resumed:
    """
    A file whose sender is killed at nine tenths, sent again.
    """

    name: str
    tool: Ours
    source: Source
    relay: Relay

    def missing(self) -> str | None:
        return self.tool.missing()

    def once(self) -> dict[str, float]:
        path = self.source.renamed()
        self.tool.port = self.relay.port
        command, variables = self.tool.client(path), self.tool.variables()
        watch = self.relay.expect(self.source.size * 9 // 10, last=True)
        first = Running(command, env=variables)
        if not watch.passed.wait(600):
            first.stop()
            raise Failed("nine tenths did not arrive")
        first.process.kill()
        first.process.wait()
        time.sleep(1)  # the receiver hears of it
        watch = self.relay.expect(_CONTENT_BYTES)
        began = time.perf_counter()
        ended = run(command, env=variables)
        again = watch.received
        if again > self.source.size // 2 or not watch.passed.is_set():
            raise Failed(f"{again} bytes were sent again: that is no resume")
        target = self.tool.arrived(path)
        self.tool.check(path, target)
        os.unlink(target)
        return {
            "first": watch.at - watch.accepted,
            "command": watch.at - began,
            "whole": ended.seconds,
            "again": again / self.source.size * 100,
        }


#: More than a sender says before its first byte of content.
_CONTENT_BYTES = 128 << 10


@contextmanager
def resume(setup: Setup) -> Iterator[Section]:
    """
    A large file that was interrupted.
    """
    with setup.work(setup.memory) as work:
        source = FileSource(work / "file", setup.large << 20)
        with Ours("ours", Place(work, source, source)) as tool:
            relay = Relay(tool.port)
            columns = (
                Column("s from connecting to new bytes", lambda row: row["first"], "{:.3f}"),
                Column("s from start to new bytes", lambda row: row["command"]),
                Column("whole command s", whole),
                Column("% sent again", lambda row: row["again"], "{:.1f}"),
            )
            name = "ours, BLAKE3"
            bars = [
                Wanted(
                    "from connecting to new bytes",
                    *((name,), lambda row: row["first"], 1.0),
                    atMost=True,
                    unit="s",
                )
            ]
            title = f"Resume of a file of {setup.large:,} MiB whose sender died at nine tenths"
            row = _Resumed(name, tool, source, relay)
            yield Section(title, [row], columns, bars, warm=False)
            relay.close()
            shutil.rmtree(tool.root, ignore_errors=True)
