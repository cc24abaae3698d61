"""
The files, directories and links below the paths that a user names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import attrs

from connpool.errors import SourceError, TransferError

if TYPE_CHECKING:
    from connpool.transfer.send.choosing import Choice

__all__ = ["DIRECTORY", "FILE", "LEFT_OUT", "LINK", "STDIN", "Found", "Walk"]

#: The path that means standard input.
STDIN = "-"
#: Kinds of what is found: to be sent, to be made at the end, to be passed over (links, and
#: what the user chose to leave out).
FILE, DIRECTORY, LINK, LEFT_OUT = "file", "directory", "symbolic link", "left out"
#: Times that trees are read once more because something moved in them.
_MORE_PASSES = 3


@attrs.frozen
class Found:
    """
    @ivar path: where it is.
    @ivar name: the name that the receiver shall give it, UTF-8.
    @ivar error: why it cannot be sent, if so.
    @ivar kind: L{FILE}, L{DIRECTORY}, L{LINK} or L{LEFT_OUT}.
    @ivar inode: number that its directory listed it with; L{None} if it was named itself.
    @ivar modified: time of a directory, nanoseconds since the epoch.
    @ivar why: the reason that it is left out for.
    """

    path: str
    name: bytes = b""
    error: TransferError | None = None
    kind: str = FILE
    inode: int | None = None
    modified: int | None = None
    why: str = ""


class Walk(Iterator[Found]):
    """
    The files under some paths, in order; a L{Found} is taken as it is.  A path that is
    named twice is found once.

    A directory C{d} gives names that begin with C{d/}; C{.} is named after the
    directory it is.  Symbolic links are followed where they are named, and
    passed over inside of directories: a link in a tree may lead anywhere.

    A log that is rotated while its tree is sent gets a name that was not listed.  After
    L{moved}, trees are read once more, and what has a new name is found then.

    @param choice: of what is found; L{None} for all of it.  It is about paths below the
        directories that are named, names of files that are named, and names of a L{Found}.
    """

    def __init__(
        self,
        paths: Iterable[str | Found],
        stdinName: str = "stdin",
        choice: Choice | None = None,
    ) -> None:
        self._choice = choice
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

    def _named(self, paths: Iterable[str | Found], stdinName: str) -> Iterator[Found]:
        seen = set()
        for path in paths:
            # names below a directory begin with its own: only what is named here comes twice
            where = path.path if isinstance(path, Found) else path
            try:
                absolute = STDIN if where == STDIN else os.path.abspath(where)
            except FileNotFoundError:
                why = SourceError("the current directory was removed")
                yield Found(where, os.fsencode(where), why)
                continue
            top = os.path.basename(absolute)
            what = (absolute, path.name if isinstance(path, Found) else os.fsencode(top))
            if what in seen:
                continue
            seen.add(what)
            if isinstance(path, Found):
                yield self._chosen(path, os.fsdecode(path.name))
            elif path == STDIN:
                yield Found(path, stdinName.encode())
            elif os.path.isdir(path):
                self._trees.append((path, top))
                for found in self._tree(path, top):
                    self._seen.add(hash(found.path))
                    yield found
            else:
                yield self._chosen(_found(path, top), top)

    def _chosen(self, found: Found, path: str) -> Found:
        if self._choice is None or found.error is not None:
            return found
        why = self._choice.leftOutBelow(path, found.kind == DIRECTORY)
        return Found(found.path, found.name, kind=LEFT_OUT, why=why) if why else found

    def _unseen(self) -> Iterator[Found]:
        for path, top in self._trees:
            for found in self._tree(path, top):
                if hash(found.path) not in self._seen:
                    self._seen.add(hash(found.path))
                    yield found

    def _tree(self, path: str, name: str) -> Iterator[Found]:
        choice = self._choice
        # a list, not recursion: trees may be deeper than Python's stack
        todo = [(path, name, "")]
        while todo:
            directory, prefix, below = todo.pop()
            try:
                modified = os.stat(directory).st_mtime_ns
                with os.scandir(directory) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as e:
                why = SourceError(f"cannot read the directory: {e.strerror}")
                yield Found(directory, error=why)
                continue
            made = [_found(directory, prefix, DIRECTORY, modified=modified)] if prefix else []
            # one that has nothing of what was chosen is not made
            late = choice is not None and choice.onlyIncluded
            if not late:
                yield from made
            some, deeper = False, []
            for entry in found:
                inside = f"{prefix}/{entry.name}" if prefix else entry.name
                isDirectory = entry.is_dir(follow_symlinks=False)
                chosen = f"{below}{entry.name}"
                if choice is not None and (out := choice.leftOut(chosen, isDirectory)):
                    shown = os.fsencode(f"{inside}{'/' * isDirectory}")
                    yield Found(entry.path, shown, kind=LEFT_OUT, why=out)
                elif isDirectory:
                    deeper.append((entry.path, inside, f"{chosen}/"))
                elif entry.is_symlink():
                    yield Found(entry.path, os.fsencode(inside), kind=LINK)
                else:
                    some = True
                    yield _found(entry.path, inside, inode=entry.inode())
            if late and some:
                yield from made
            todo += reversed(deeper)


def _found(
    path: str,
    name: str,
    kind: str = FILE,
    inode: int | None = None,
    modified: int | None = None,
) -> Found:
    if name.isascii():
        return Found(path, name.encode(), None, kind, inode, modified)
    raw = os.fsencode(name)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return Found(path, error=SourceError("its name is not UTF-8; rename it"))
    return Found(path, raw, kind=kind, inode=inode, modified=modified)
