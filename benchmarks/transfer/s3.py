"""
Sections about the store on an S3 engine: what is received and stored there, beside servers of
rclone's and of tus that do the same, and rclone itself, which receives from nobody.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

from benchmarks.processes import Failed, Running, Spent, cpuOf, freePort, residentOf
from benchmarks.section import Column, Figures, Section, Wanted, versus
from benchmarks.setup import ENVIRONMENTS, Setup
from benchmarks.spread import ratios
from benchmarks.transfer.others import PEERS
from benchmarks.transfer.ours import sendCommand, serviceCommand
from benchmarks.transfer.relay import Relay
from benchmarks.transfer.sources import FileSource, Source
from benchmarks.transfer.webtools import installNode, patched, tusFields
from connpool.transfer.stores.s3.partplan import LEAVING, PART_BYTES
from examples.s3.engines import RunningEngine, program, seaweedfs

__all__ = ["s3Again", "s3Large", "s3Memory", "s3Small"]

_NODE = ENVIRONMENTS / "npm-tus-s3"
_OURS, _WEBDAV, _TUS = "connpool", "rclone serve webdav, curl", "@tus/server, S3 store"
_COPY = "rclone copy --transfers 32, no receiver"
_MIB = 1 << 20
#: Uploads at once whose memory is measured.
_UPLOADS = 8
#: Bytes a second of a file whose receiver is killed, and what is more than a sender says
#: before its first byte of content.
_RATE, _CONTENT_BYTES = 40e6, 128 << 10


@attrs.define
class _Case:
    """
    Somebody who stores files in an engine.

    @ivar source: to send; each has its own, since its name changes.
    @ivar service: the command of what receives them at a port; L{None} for nobody.
    @ivar client: the command of what sends a path to a port.
    @ivar under: the bucket, and the prefix in it, that they are stored under.
    @ivar needs: programs.
    """

    name: str
    engine: RunningEngine
    source: Source
    service: Callable[[int], Sequence[Any]] | None
    client: Callable[[Path, int], Sequence[Any]]
    under: tuple[str, str]
    needs: tuple[str, ...] = ()
    without: str = ""
    receiver: Running | None = None
    port: int = 0

    def missing(self) -> str | None:
        absent = [name for name in self.needs if program(name) is None]
        return self.without or (f"{', '.join(absent)} not installed" if absent else None)

    def start(self) -> None:
        self.port = freePort()
        if self.service is not None:
            words = self.service(self.port)
            self.receiver = Running(words, port=self.port, env=self.engine.environment)

    def stop(self) -> None:
        if self.receiver is not None:
            self.receiver.stop()

    def send(self) -> tuple[Path, Spent]:
        path = self.source.renamed()
        return path, Running(self.client(path, self.port), env=self.engine.environment).ended()

    def once(self) -> dict[str, float]:
        os.sync()  # nobody pays for what another one has left to be written
        before = cpuOf(self.receiver.pid) if self.receiver else 0.0
        path, spent = self.send()
        cpu = cpuOf(self.receiver.pid) - before if self.receiver else spent.cpu
        verify(self.engine, *self.under, path)
        return {"seconds": spent.seconds, "cpu": cpu}


def verify(engine: RunningEngine, bucket: str, prefix: str, path: Path) -> None:
    """
    Compare a file, or the last one of a directory, with what is stored.
    """
    key = prefix + path.name
    if path.is_dir():
        path = max(path.iterdir())
        # where there are no directories the name tells both
        key += f"/{path.name}" if prefix else f"-{path.name}"
    if engine.digest(bucket, key) != hashlib.sha256(path.read_bytes()).digest():
        raise Failed(f"{bucket}/{key}: what is stored is not what was sent")


def _store(engine: RunningEngine, port: int, work: Path) -> list[Any]:
    store = f"s3:bucket=files,endpoint={engine.url},prefix=ours,spool={work}"
    listen = f"tcp:{port}:interface=127.0.0.1"
    return serviceCommand("filerecv", "--store", store, "--listen", listen)


def _ours(engine: RunningEngine, source: Source, work: Path) -> _Case:
    return _Case(
        *(_OURS, engine, source),
        lambda port: _store(engine, port, work),
        lambda path, port: sendCommand(f"127.0.0.1:{port}", path),
        ("files", "ours/"),
    )


def _rclone(engine: RunningEngine, *words: Any) -> list[Any]:
    remote = f":s3,provider=Other,env_auth=true,endpoint='{engine.url}':files"
    return [program("rclone"), *(str(word).replace("REMOTE", remote) for word in words)]


def _webdav(engine: RunningEngine, source: Source) -> _Case:
    return _Case(
        *(_WEBDAV, engine, source),
        lambda port: _rclone(
            *(engine, "serve", "webdav", "REMOTE/webdav", f"--addr=127.0.0.1:{port}")
        ),
        lambda path, port: ["curl", "-sSf", "-T", path, f"http://127.0.0.1:{port}/"],
        ("files", "webdav/"),
        ("rclone", "curl"),
    )


def _copied(engine: RunningEngine, source: Source, name: str, *words: str) -> _Case:
    return _Case(
        *(f"rclone {' '.join(words)}, no receiver", engine, source, None),
        lambda path, _: _rclone(engine, *words, path, f"REMOTE/{name}/{path.name}"),
        ("files", f"{name}/"),
        ("rclone",),
    )


def _tus(setup: Setup, engine: RunningEngine, source: Source, work: Path) -> _Case:
    """
    @tus/server, to which curl speaks tus: a file in two requests, small ones in one each.
    """
    if setup.install:
        installNode(_NODE, "@tus/server@2", "@tus/s3-store@2")
    without = ""
    if not (_NODE / "node_modules" / "@tus").exists():
        without = "the npm package @tus/s3-store is not installed (--install installs it)"
    shutil.copy(PEERS / "tuss3.mjs", work)
    (work / "node_modules").symlink_to(_NODE / "node_modules")
    engine.makeBucket("tus")

    def client(path: Path, port: int) -> list[Any]:
        url = f"http://127.0.0.1:{port}/"
        return _created(url, path, work) if path.is_dir() else patched(url, path)

    return _Case(
        *(_TUS, engine, source),
        lambda port: ["node", work / "tuss3.mjs", port, engine.url, "tus"],
        *(client, ("tus", ""), ("node", "curl"), without),
    )


def _created(url: str, tree: Path, work: Path) -> list[Any]:
    """
    Return the command that creates an upload with all of its bytes for each file of a tree.
    """
    config = work / "curl.conf"
    kind = "Content-Type: application/offset+octet-stream"
    uploads = []
    for path in sorted(each for each in tree.rglob("*") if each.is_file()):
        fields = [*tusFields(path, f"{tree.name}-{path.name}"), kind, "Expect:"]
        headers = "".join(f'header = "{field}"\n' for field in fields)
        uploads.append(f'url = "{url}"\n{headers}data-binary = "@{path}"\noutput = /dev/null\n')
    config.write_text("next\n".join(uploads))
    return ["curl", "-sSf", "-Z", "--parallel-immediate", "--parallel-max", "16", "-K", config]


class _Flat(Source):
    """
    Files of 4 KiB in one directory.
    """

    def __init__(self, where: Path, count: int) -> None:
        super().__init__(where)
        self.path.mkdir()
        for number in range(count):
            (self.path / f"{number:05}").write_bytes(os.urandom(4096))


@contextmanager
def _engine(setup: Setup) -> Iterator[tuple[Path, RunningEngine]]:
    if program("weed") is None:
        raise Failed("SeaweedFS is not installed; see examples/s3/engines.txt and CONNPOOL_ENGINES")
    # without a limit of memory, which costs it half as much processor time again
    with setup.work(setup.disk) as work, seaweedfs(work / "engine", memory=None) as engine:
        yield work, engine


def _started(stack: ExitStack, cases: Sequence[_Case]) -> Sequence[_Case]:
    for case in cases:
        if case.missing() is None:
            stack.callback(case.stop)
            case.start()
    return cases


def _size(setup: Setup) -> int:
    return max(setup.large // 4, 16) * _MIB


@contextmanager
def s3Large(setup: Setup) -> Iterator[Section]:
    """
    A large file, received and stored in an engine.
    """
    size = _size(setup)
    with _engine(setup) as (work, engine), ExitStack() as stack:

        def file() -> Source:
            return FileSource(work / "files", size)

        cases = [
            _ours(engine, file(), work),
            _webdav(engine, file()),
            _tus(setup, engine, file(), work),
            _copied(engine, file(), "copyto", "copyto"),
        ]
        columns = (
            Column("MB/s", lambda row: [size / 1e6 / each for each in row["seconds"]], "{:.0f}"),
            Column(
                "processor, s/GiB", lambda row: [each * (1 << 30) / size for each in row["cpu"]]
            ),
        )
        bars = [
            versus(_OURS, _WEBDAV, 1.0, _seconds, text="MB/s of connpool / of rclone serve webdav"),
            Wanted(
                "processor time of connpool / of rclone serve webdav",
                (_OURS, _WEBDAV),
                lambda mine, theirs: ratios(mine["cpu"], theirs["cpu"]),
                *(0.6, None),
                atMost=True,
                unit="x",
            ),
            versus(_OURS, _TUS, 1.5, _seconds, text="MB/s of connpool / of @tus/server"),
        ]
        title = f"A file of {size // _MIB} MiB to SeaweedFS on the same machine"
        yield Section(title, _started(stack, cases), columns, bars)


def _seconds(row: Figures) -> list[float]:
    return row["seconds"]


@contextmanager
def s3Small(setup: Setup) -> Iterator[Section]:
    """
    Small files, received and stored in an engine.
    """
    count = min(max(setup.small // 10, 100), 900)

    def micros(row: Figures) -> list[float]:
        return [each * 1e6 / count for each in row["cpu"]]

    with _engine(setup) as (work, engine), ExitStack() as stack:

        def tree() -> Source:
            return _Flat(work / "trees", count)

        cases = [
            _ours(engine, tree(), work),
            _tus(setup, engine, tree(), work),
            _copied(engine, tree(), "copy", "copy", "--transfers", "32"),
        ]
        columns = (
            Column("files/s", lambda row: [count / each for each in row["seconds"]], "{:.0f}"),
            Column("processor, us a file", micros, "{:.0f}"),
        )
        text = "files/s of connpool / of"
        bars = [
            versus(_OURS, _COPY, 0.5, _seconds, text=f"{text} rclone copy --transfers 32"),
            versus(_OURS, _TUS, 5.0, _seconds, text=f"{text} @tus/server"),
            Wanted(
                *("receiver's processor time for a file", (_OURS,), micros, 700.0),
                atMost=True,
                unit=" us",
            ),
        ]
        title = f"{count} files of 4 KiB to SeaweedFS on the same machine"
        yield Section(title, _started(stack, cases), columns, bars)


@attrs.frozen
class _Uploads:
    """
    What each of several uploads at once adds to the memory of a receiver.
    """

    case: _Case
    name: str = _OURS

    def missing(self) -> str | None:
        return self.case.missing()

    def once(self) -> dict[str, float]:
        case, source = self.case, self.case.source
        case.start()
        try:
            assert case.receiver is not None
            pid = case.receiver.pid
            case.send()  # what is needed once
            before = residentOf(pid, "VmRSS")
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak so far
            path = source.renamed()
            links = [path.with_name(f"{path.name}-{number}") for number in range(_UPLOADS)]
            for link in links:
                os.link(path, link)
            environment = case.engine.environment
            senders = [Running(case.client(link, case.port), env=environment) for link in links]
            for sender in senders:
                sender.ended()
            peak = residentOf(pid)
            for link in links:
                verify(case.engine, *case.under, link)
                link.unlink()
            return {"each": (peak - before) / _UPLOADS / _MIB}
        finally:
            case.stop()


@contextmanager
def s3Memory(setup: Setup) -> Iterator[Section]:
    """
    The memory of uploads.
    """
    size = _size(setup) // 2
    with _engine(setup) as (work, engine):
        row = _Uploads(_ours(engine, FileSource(work / "files", size), work))
        columns = (Column("MiB each", lambda row: row["each"], "{:.1f}"),)
        bars = [
            Wanted(
                *("receiver's memory for each upload", (_OURS,), lambda row: row["each"], 8.0),
                atMost=True,
                exact=True,
                unit=" MiB",
            )
        ]
        title = f"{_UPLOADS} files of {size // _MIB} MiB to SeaweedFS at once"
        yield Section(title, [row], columns, bars, rounds=1, warm=False)


@attrs.define
class _Killed:
    """
    A file whose receiver is killed at a random moment; another one goes on with it.
    """

    engine: RunningEngine
    source: Source
    work: Path
    relay: Relay
    name: str = _OURS

    def missing(self) -> str | None:
        return None

    def once(self) -> dict[str, float]:
        with ExitStack() as stack:
            ports = freePort(), freePort()
            one, _ = (self._receiver(stack, port) for port in ports)
            path = self.source.renamed()
            size = self.source.size
            first = self.relay.expect(random.randrange(size // 5, size * 4 // 5))
            self.relay.target = ports[0]
            words = sendCommand(f"127.0.0.1:{self.relay.port}", path)
            sender = Running(words, env=self.engine.environment)
            stack.callback(sender.stop)
            if not first.passed.wait(600):
                raise Failed("the file does not arrive")
            self.relay.target = ports[1]
            second = self.relay.expect(_CONTENT_BYTES)
            one.process.kill()
            sender.ended()
            verify(self.engine, "files", "ours/", path)
            again = first.received + second.received - size
            return {"first": second.at - second.accepted, "again": again / _MIB}

    def _receiver(self, stack: ExitStack, port: int) -> Running:
        words = _store(self.engine, port, self.work)
        made = Running(words, port=port, env=self.engine.environment)
        stack.callback(made.stop)
        return made


@contextmanager
def s3Again(setup: Setup) -> Iterator[Section]:
    """
    A large file whose receiver is killed.
    """
    size = _size(setup)
    with _engine(setup) as (work, engine):
        relay = Relay(0, rate=_RATE)
        row = _Killed(engine, FileSource(work / "files", size), work, relay)
        columns = (
            Column("s from connecting to new bytes", lambda row: row["first"]),
            Column("MiB sent again", lambda row: row["again"], "{:.1f}"),
        )
        most = (1 + LEAVING) * PART_BYTES / _MIB
        bars = [
            Wanted(
                *("from connecting to new bytes", (_OURS,), lambda row: row["first"], 2.0),
                atMost=True,
                unit=" s",
            ),
            Wanted(
                *("sent again at most", (_OURS,), lambda row: [max(row["again"])], most),
                atMost=True,
                exact=True,
                unit=" MiB",
            ),
        ]
        title = f"A file of {size // _MIB} MiB at {_RATE / 1e6:.0f} MB/s whose receiver is killed"
        note = "Of two receivers on one engine: kill -9 at a random moment, and the other goes on."
        yield Section(title, [row], columns, bars, note, warm=False)
        relay.close()
