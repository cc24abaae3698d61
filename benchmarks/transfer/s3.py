"""
Sections about the store on an S3 engine: what is received and stored there, beside a server of
rclone's that does the same, and rclone itself, which receives from nobody.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Failed, Running, cpuOf, freePort
from benchmarks.section import Column, Section, Wanted
from benchmarks.setup import Setup
from benchmarks.spread import ratios
from benchmarks.transfer.ours import sendCommand, serviceCommand
from examples.s3.engines import RunningEngine, program, seaweedfs

__all__ = ["s3Large", "s3Small"]

_SMALL_BYTES = 4096


@attrs.define
class _Case:
    """
    Somebody who stores files in an engine.

    @ivar service: the command of what receives them, with C{PORT} for its port; empty for none.
    @ivar client: the command of what sends C{PATH}.
    @ivar under: the prefix that they are stored under.
    """

    name: str
    engine: RunningEngine
    source: Path
    service: Sequence[str]
    client: Sequence[str]
    under: str
    needs: str = "weed"
    receiver: Running | None = None
    port: int = 0
    round: int = 0

    def missing(self) -> str | None:
        return None if program(self.needs) else f"{self.needs} is not installed; CONNPOOL_ENGINES"

    def start(self) -> None:
        self.port = freePort()
        if self.service:
            self.receiver = self._run(self.service, self.port)
            time.sleep(1)

    def stop(self) -> None:
        if self.receiver is not None:
            self.receiver.stop()

    def _run(self, words: Sequence[str], port: int | None = None) -> Running:
        place = {"PORT": str(self.port), "PATH": str(self.source), "ROUND": str(self.round)}
        command = list(words)
        for name, value in place.items():
            command = [word.replace(name, value) for word in command]
        return Running(command, port=port, env=self.engine.environment)

    def once(self) -> dict[str, float]:
        self.round += 1
        renamed = self.source.with_name(f"{self.source.name.partition('.')[0]}.{self.round}")
        self.source = self.source.rename(renamed)
        before = cpuOf(self.receiver.pid) if self.receiver else 0.0
        spent = self._run(self.client).ended()
        cpu = cpuOf(self.receiver.pid) - before if self.receiver else spent.cpu
        self._check()
        return {"seconds": spent.seconds, "cpu": cpu}

    def _check(self) -> None:
        one = self.source
        key = f"{self.under}/{one.name}"
        if one.is_dir():
            one = max(one.iterdir())
            key += f"/{one.name}"
        if self.engine.digest("files", key) != hashlib.sha256(one.read_bytes()).digest():
            raise Failed(f"{self.name}: what is stored is not what was sent")


def _rclone(engine: RunningEngine, *words: str) -> list[str]:
    remote = f":s3,provider=Other,env_auth=true,endpoint='{engine.url}':files"
    return [str(program("rclone")), *(word.replace("REMOTE", remote) for word in words)]


def _ours(engine: RunningEngine, source: Path, work: Path) -> _Case:
    store = f"s3:bucket=files,endpoint={engine.url},prefix=ours,spool={work}"
    service = serviceCommand(
        "filerecv", "--store", store, "--listen", "tcp:PORT:interface=127.0.0.1"
    )
    client = sendCommand("127.0.0.1:PORT", "PATH")
    return _Case(
        "connpool", engine, source, list(map(str, service)), list(map(str, client)), "ours"
    )


@contextmanager
def _section(
    title: str, cases: list[_Case], columns: Sequence[Column], bars: Sequence[Wanted]
) -> Iterator[Section]:
    started = [case for case in cases if case.missing() is None]
    try:
        for case in started:
            case.start()
        yield Section(title, cases, columns, bars)
    finally:
        for case in started:
            case.stop()


def _engine(work: Path) -> contextmanager[RunningEngine]:
    if program("weed") is None:
        raise Failed("SeaweedFS is not installed; see examples/s3/engines.txt and CONNPOOL_ENGINES")
    # without a limit of memory, which costs it half as much processor time again
    return seaweedfs(work / "engine", memory=None)


@contextmanager
def s3Large(setup: Setup) -> Iterator[Section]:
    """
    A large file, received and stored in an engine.
    """
    size = max(setup.large // 8, 16) << 20
    with setup.work(setup.disk) as work, _engine(work) as engine:
        paths = {}
        for name in ("ours", "webdav", "copyto"):
            paths[name] = work / f"{name}large.0"
            paths[name].write_bytes(os.urandom(size))
        webdav = _rclone(engine, "serve", "webdav", "REMOTE/webdav", "--addr=127.0.0.1:PORT")
        put = ["curl", "--fail", "--silent", "-T", "PATH", "http://127.0.0.1:PORT/"]
        cases = [
            _ours(engine, paths["ours"], work),
            _Case(
                *("rclone serve webdav, curl", engine, paths["webdav"], webdav, put, "webdav"),
                needs="rclone",
            ),
            _Case(
                *("rclone copyto, no receiver", engine, paths["copyto"], ()),
                _rclone(engine, "copyto", "PATH", "REMOTE/copyto/copytolarge.ROUND"),
                *("copyto", "rclone"),
            ),
        ]
        columns = (
            Column("MB/s", lambda row: [size / 1e6 / each for each in row["seconds"]], "{:.0f}"),
            Column(
                "processor, s/GiB", lambda row: [each * (1 << 30) / size for each in row["cpu"]]
            ),
        )
        bars = [
            Wanted(
                "MB/s of connpool / of rclone serve webdav",
                ("rclone serve webdav, curl", "connpool"),
                lambda theirs, mine: ratios(theirs["seconds"], mine["seconds"]),
                1.0,
                unit="x",
            ),
            Wanted(
                "processor time of connpool / of rclone serve webdav",
                ("connpool", "rclone serve webdav, curl"),
                lambda mine, theirs: ratios(mine["cpu"], theirs["cpu"]),
                0.6,
                atMost=True,
                unit="x",
            ),
        ]
        with _section(
            f"A file of {size >> 20} MiB to SeaweedFS on the same machine", cases, columns, bars
        ) as section:
            yield section


@contextmanager
def s3Small(setup: Setup) -> Iterator[Section]:
    """
    Small files, received and stored in an engine.
    """
    count = min(max(setup.small // 10, 100), 900)
    with setup.work(setup.disk) as work, _engine(work) as engine:
        paths = {}
        for name in ("ours", "copy"):
            paths[name] = work / f"{name}small.0"
            paths[name].mkdir()
            for number in range(count):
                (paths[name] / f"{number:05}").write_bytes(os.urandom(_SMALL_BYTES))
        cases = [
            _ours(engine, paths["ours"], work),
            _Case(
                *("rclone copy --transfers 32, no receiver", engine, paths["copy"], ()),
                _rclone(engine, "copy", "PATH", "REMOTE/copy/copysmall.ROUND", "--transfers=32"),
                *("copy", "rclone"),
            ),
        ]
        columns = (
            Column("files/s", lambda row: [count / each for each in row["seconds"]], "{:.0f}"),
            Column(
                "processor, us a file",
                lambda row: [each * 1e6 / count for each in row["cpu"]],
                "{:.0f}",
            ),
        )
        bars = [
            Wanted(
                "files/s of connpool / of rclone copy --transfers 32",
                ("rclone copy --transfers 32, no receiver", "connpool"),
                lambda theirs, mine: ratios(theirs["seconds"], mine["seconds"]),
                0.5,
                unit="x",
            ),
            Wanted(
                "receiver's processor time for a file",
                ("connpool",),
                lambda mine: [each * 1e6 / count for each in mine["cpu"]],
                700.0,
                atMost=True,
                unit=" us",
            ),
        ]
        with _section(
            f"{count} files of 4 KiB to SeaweedFS on the same machine", cases, columns, bars
        ) as section:
            yield section
