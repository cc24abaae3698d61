"""
The files, directories and links below the paths that a user names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import attrs

from connpool.errors import SourceError, TransferError

__all__ = ["DIRECTORY", "FILE", "LINK", "STDIN", "Found", "Walk"]

#: The path that means standard input.
STDIN = "-"
#: Kinds of what is found: to be sent, to be made at the end, to be passed over.
FILE, DIRECTORY, LINK = "file", "directory", "symbolic link"
#: Times that trees are read once more because something moved in them.
_MORE_PASSES = 3


@attrs.frozen
class Found:
    """
    @ivar path: where it is.
    @ivar name: the name that the receiver shall give it, UTF-8.
    @ivar error: why it cannot be sent, if so.
    @ivar kind: L{FILE}, L{DIRECTORY} or L{LINK}.
    @ivar inode: number that its directory listed it with; L{None} if it was named itself.
    @ivar modified: time of a directory, nanoseconds since the epoch.
    """

    path: str
    name: bytes = b""
    error: TransferError | None = None
    kind: str = FILE
    inode: int | None = None
    modified: int | None = None


class Walk(Iterator[Found]):
    """
    The files under some paths, in order; a L{Found} is taken as it is.  A path that is
    named twice is found once.

    A directory C{d} gives names that begin with C{d/}; C{.} is named after the
    directory it is.  Symbolic links are followed where they are named, and
    passed over inside of directories: a link in a tree may lead anywhere.

    A log that is rotated while its tree is sent gets a name that was not listed.  After
    L{moved}, trees are read once more, and what has a new name is found then.
    """

    def __init__(self, paths: Sequence[str | Found], stdinName: str = "stdin") -> None:
        self._trees: list[tuple[str, str]] = []
        #: hashes of the paths found in trees
        self._seen: set[int] = set()
        self._passes = _MORE_PASSES
        self._moved = False
        self._found = self._named(paths, stdinName)

    def __next__(self) -> Found:
        while True:
            found = next(self._found, None)
            if found is not None:
                return found
            if not self.unfinished:
                raise StopIteration
            self._moved = False
            self._passes -= 1
            self._found = self._unseen()

    @property
    def unfinished(self) -> bool:
        """
        Tell whether another pass is due, although there was nothing more to be found.
        """
        return self._moved and self._passes > 0

    def moved(self) -> None:
        """
        A file of a tree was not where it was listed.
        """
        self._moved = True

    def _named(self, paths: Sequence[str | Found], stdinName: str) -> Iterator[Found]:
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
                self._trees.append((path, top))
                for found in _tree(path, top):
                    self._seen.add(hash(found.path))
                    yield found
            else:
                yield _found(path, top)

    def _unseen(self) -> Iterator[Found]:
        for path, top in self._trees:
            for found in _tree(path, top):
                if hash(found.path) not in self._seen:
                    self._seen.add(hash(found.path))
                    yield found


def _tree(path: str, name: str) -> Iterator[Found]:
    # a list, not recursion: trees may be deeper than Python's stack
    todo = [(path, name)]
    while todo:
        directory, prefix = todo.pop()
        try:
            modified = os.stat(directory).st_mtime_ns
            with os.scandir(directory) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as e:
            yield Found(directory, error=SourceError(f"cannot read the directory: {e.strerror}"))
            continue
        if prefix:
            yield _found(directory, prefix, DIRECTORY, modified=modified)
        below = []
        for entry in found:
            inside = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                below.append((entry.path, inside))
            elif entry.is_symlink():
                yield Found(entry.path, kind=LINK)
            else:
                yield _found(entry.path, inside, inode=entry.inode())
        todo += reversed(below)


def _found(
    path: str,
    name: str,
    kind: str = FILE,
    inode: int | None = None,
    modified: int | None = None,
) -> Found:
    raw = os.fsencode(name)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return Found(path, error=SourceError("its name is not UTF-8; rename it"))
    return Found(path, raw, kind=kind, inode=inode, modified=modified)
