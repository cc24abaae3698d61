"""
A model of what a disk holds after the power went.

It replays the recorded calls of a store.  Every file has the bytes that were
written and the bytes that were synced, every directory the names that were
made and the names that were synced; whatever was not synced may be there or
not, each on its own.  This is stricter than real file systems are, so that the
proof holds for all of them; with C{strict=False} syncing a new file also keeps
the name it was created under, as ext4, xfs and btrfs do.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: A name that is not there.
GONE = None


class Node:
    """
    An inode.

    @ivar data: bytes written; L{None} for a directory.
    @ivar synced: bytes on disk.
    @ivar names: entries, of a directory.
    @ivar syncedNames: entries on disk.
    """

    def __init__(self, *, directory: bool) -> None:
        self.directory = directory
        self.data = bytearray()
        self.synced = b""
        self.names: dict[str, Node] = {}
        self.syncedNames: dict[str, Node] = {}

    def sync(self) -> None:
        self.synced = bytes(self.data)
        self.syncedNames = dict(self.names)


class Disk:
    """
    Takes the log of L{Recorded}, one call at a time.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._born: dict[Node, tuple[Node, str]] = {}
        self.root = Node(directory=True)
        self._fds: dict[int, Node] = {}
        self._nodes: list[Node] = [self.root]

    def apply(self, name: str, arguments: Any, keywords: Any, result: Any) -> None:
        """
        One call that succeeded.
        """
        method = getattr(self, f"_{name}", None)
        if method is not None:
            method(*arguments, result=result, **keywords)

    def load(self, path: Path) -> None:
        """
        Begin with what lies at C{path}, all of it on disk.
        """
        known: dict[int, Node] = {}

        def loaded(where: Path) -> Node:
            status = where.lstat()
            node = known.get(status.st_ino)
            if node is None:
                node = known[status.st_ino] = Node(directory=where.is_dir())
                self._nodes.append(node)
                if where.is_dir():
                    node.names = {each.name: loaded(each) for each in where.iterdir()}
                else:
                    node.data = bytearray(where.read_bytes())
                node.sync()
            return node

        self.root = loaded(path)

    def after(self, chance: random.Random) -> Iterator[dict[str, Any]]:
        """
        What may be there when the power comes back: the extremes, and some in
        between.

        @return: trees: name to L{bytes}, or to another tree; the same object
            where two names lead to one file.
        """
        for names, data in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)):
            yield self._directories(self.root, chance, names, data, {})

    def _directories(
        self,
        node: Node,
        chance: random.Random,
        names: float,
        data: float,
        made: dict[Node, Any],
    ) -> Any:
        if node in made:
            return made[node]
        if not node.directory:
            written = chance.random() < data
            made[node] = File(bytes(node.data) if written else node.synced)
            return made[node]
        tree: dict[str, Any] = {}
        made[node] = tree
        for name in {*node.names, *node.syncedNames}:
            now, before = node.names.get(name), node.syncedNames.get(name)
            there = now if chance.random() < names else before
            if there is not None:
                tree[name] = self._directories(there, chance, names, data, made)
        return tree

    def _at(self, name: str, dir_fd: int | None) -> Node | None:
        assert dir_fd is not None
        return self._fds[dir_fd].names.get(name)

    def _open(
        self, name: Any, flags: int, mode: int = 0, *, dir_fd: int | None = None, result: int
    ) -> None:
        if dir_fd is None:
            self._fds[result] = self.root
            return
        node = self._at(name, dir_fd)
        if node is None:
            node = Node(directory=False)
            self._nodes.append(node)
            self._fds[dir_fd].names[name] = node
            self._born[node] = (self._fds[dir_fd], name)
        if flags & os.O_TRUNC:
            node.data.clear()
        self._fds[result] = node

    def _mkdir(self, name: str, mode: int, *, dir_fd: int, result: None) -> None:
        node = Node(directory=True)
        self._nodes.append(node)
        self._fds[dir_fd].names[name] = node

    def _close(self, fd: int, *, result: None) -> None:
        del self._fds[fd]

    def _pwrite(self, fd: int, data: Any, offset: int, *, result: int) -> None:
        node = self._fds[fd]
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + result] = bytes(data)[:result]

    def _write(self, fd: int, data: Any, *, result: int) -> None:
        self._fds[fd].data.extend(bytes(data)[:result])

    def _ftruncate(self, fd: int, size: int, *, result: None) -> None:
        data = self._fds[fd].data
        data.extend(bytes(max(0, size - len(data))))
        del data[size:]

    def _fsync(self, fd: int, *, result: None) -> None:
        node = self._fds[fd]
        node.sync()
        if not self._strict and node in self._born:
            directory, name = self._born.pop(node)
            if directory.names.get(name) is node:
                directory.syncedNames[name] = node

    _fdatasync = _fsync

    def _syncfs(self, fd: int, *, result: None) -> None:
        for node in self._nodes:
            node.sync()

    def _link(
        self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int, **rest: Any
    ) -> None:
        node = self._at(source, src_dir_fd)
        assert node is not None
        self._fds[dst_dir_fd].names[target] = node

    def _rename(
        self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int, **rest: Any
    ) -> None:
        self._fds[dst_dir_fd].names[target] = self._fds[src_dir_fd].names.pop(source)

    _renameNoReplace = _rename

    def _unlink(self, name: str, *, dir_fd: int, result: None) -> None:
        del self._fds[dir_fd].names[name]

    _rmdir = _unlink


class File(bytes):
    """
    Bytes with an identity: two names of one file.
    """

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def materialise(tree: dict[str, Any], path: Path) -> None:
    """
    Write C{tree} to C{path}, links as links.
    """
    made: dict[int, Path] = {}

    def write(content: Any, where: Path) -> None:
        if isinstance(content, dict):
            where.mkdir(mode=0o700)
            for name, each in content.items():
                write(each, where / name)
        elif id(content) in made:
            os.link(made[id(content)], where)
        else:
            where.write_bytes(content)
            made[id(content)] = where

    write(tree, path)
