"""
What is sent: under another name each time, since what is there already is not sent again.
"""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

from benchmarks.processes import Failed

__all__ = ["FileSource", "LogSource", "Source", "TreeSource", "same"]

_CHUNK = 1 << 20
_number = itertools.count()
_WORDS = ("static", "images", "users", "orders", "search", "login", "api", "v1", "reports", "2026")


class Source:
    """
    @ivar path: where it lies now.
    @ivar size: bytes, of all its files.
    """

    size = 0

    def __init__(self, where: Path) -> None:
        where.mkdir(parents=True, exist_ok=True)
        self.path = where / self._name()

    def _name(self) -> str:
        return f"source-{next(_number)}"

    def renamed(self) -> Path:
        """
        Give it a name that it never had.
        """
        self.path = self.path.rename(self.path.with_name(self._name()))
        return self.path


class FileSource(Source):
    """
    One file.
    """

    def __init__(self, where: Path, size: int) -> None:
        super().__init__(where)
        self.size = size
        block = os.urandom(_CHUNK)
        with self.path.open("wb") as file:
            for offset in range(0, size, _CHUNK):
                # no two blocks alike
                file.write((offset.to_bytes(8) + block[8:])[: size - offset])


class LogSource(Source):
    """
    One file of text: the log of a server.
    """

    def __init__(self, where: Path, size: int) -> None:
        super().__init__(where)
        self.size = size
        some = random.Random(1)
        paths = [f"/{'/'.join(some.choices(_WORDS, k=some.randint(1, 4)))}" for _ in range(400)]
        left = size
        with self.path.open("wb") as file:
            while left:
                lines = [
                    f"192.0.2.{some.randrange(256)} - - [29/Nov/2026:05:{some.randrange(60):02}:"
                    f'{some.randrange(60):02} +0000] "GET {some.choice(paths)} HTTP/1.1" '
                    f"{some.choice((200, 200, 304, 404))} {some.randrange(100_000)}\n"
                    for _ in range(1000)
                ]
                left -= file.write("".join(lines).encode()[:left])


class TreeSource(Source):
    """
    Files in a hundred directories.
    """

    def __init__(self, where: Path, count: int, size: int = 4096) -> None:
        super().__init__(where)
        self.count = count
        self.size = count * size
        for number in range(count):
            path = self.path / f"{number % 100}" / f"{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(size))


def _sameFile(one: Path, other: Path) -> bool:
    size = one.stat().st_size
    if size != other.stat().st_size:
        return False
    mine, theirs = bytearray(min(size, _CHUNK)), bytearray(min(size, _CHUNK))
    with one.open("rb", buffering=0) as a, other.open("rb", buffering=0) as b:
        while got := a.readinto(mine):
            if b.readinto(theirs) != got or mine[:got] != theirs[:got]:
                return False
    return True


def same(source: Path, target: Path) -> None:
    """
    Make sure that what arrived is what was sent.

    @raise Failed: it is not.
    """
    names = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for name in names or [Path()]:
        there = target / name
        if not there.exists():
            raise Failed(f"{there} did not arrive")
        if not _sameFile(source / name, there):
            raise Failed(f"{there} is not what was sent: {there.stat().st_size} bytes")
