"""
What is sent: under another name each time, since what is there already is not sent again.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from benchmarks.processes import Failed

__all__ = ["FileSource", "Source", "TreeSource", "same"]

_CHUNK = 1 << 20
_number = itertools.count()


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
