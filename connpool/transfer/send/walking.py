"""
What there is to send.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import attrs

from connpool.errors import SourceError, TransferError

__all__ = ["STDIN", "Found", "walk"]

#: The path that means standard input.
STDIN = "-"


@attrs.frozen
class Found:
    """
    @ivar path: where it is.
    @ivar name: what the receiver shall call it, UTF-8.
    @ivar error: why it cannot be sent, if so.
    """

    path: str
    name: bytes = b""
    error: TransferError | None = None


def walk(paths: Sequence[str | Found], stdinName: str = "stdin") -> Iterator[Found]:
    """
    The files under C{paths}, in order; a L{Found} is taken as it is.  What is named
    twice is found once.

    A directory C{d} gives names that begin with C{d/}; C{.} is named after the
    directory it is.  Symbolic links are followed where they are named, and
    passed over inside of directories: a link in a tree may lead anywhere.
    """
    seen = set()
    for path in paths:
        # names below a directory begin with its own: only what is named here comes twice
        where = path.path if isinstance(path, Found) else path
        absolute = STDIN if where == STDIN else os.path.abspath(where)
        top = os.path.basename(absolute)
        what = (absolute, path.name if isinstance(path, Found) else os.fsencode(top))
        if what in seen:
            continue
        seen.add(what)
        if isinstance(path, Found):
            yield path
        elif path == STDIN:
            yield Found(path, stdinName.encode())
        elif os.path.isdir(path):
            yield from _tree(path, top)
        else:
            yield _found(path, top)


def _tree(path: str, name: str) -> Iterator[Found]:
    # a list, not recursion: trees may be deeper than Python's stack
    todo = [(path, name)]
    while todo:
        directory, prefix = todo.pop()
        try:
            with os.scandir(directory) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as e:
            yield Found(directory, error=SourceError(f"cannot read the directory: {e.strerror}"))
            continue
        below = []
        for entry in found:
            inside = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                below.append((entry.path, inside))
            elif not entry.is_symlink():
                yield _found(entry.path, inside)
        todo += reversed(below)


def _found(path: str, name: str) -> Found:
    raw = os.fsencode(name)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return Found(path, error=SourceError("its name is not UTF-8; rename it"))
    return Found(path, raw)
