"""
Directories that a sender asks for by themselves.

Theory of operation
===================
A tree is sent with all its directories at the end, since each file that is put into one
changes its time.  They are made in the order in which they were asked for, which is why one
thread makes a batch of them (L{connpool.transfer.stores.groupcommit}), and their names and
times are synced together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import attrs
from twisted.python.failure import Failure

from connpool.errors import TransferError
from connpool.transfer.names import RelativeName
from connpool.transfer.records import DURABILITIES, DirectoryMade
from connpool.transfer.stores.directories import Directories, Directory
from connpool.transfer.stores.syncing import BatchSync
from connpool.transfer.syscalls import Syscalls, asTransferError

__all__ = ["AskedDirectory", "MakeDirectories"]


@attrs.define(eq=False)
class AskedDirectory:
    """
    A directory that somebody asked for, as L{connpool.interfaces.IDirectoryStore.makeDirectory}
    says.

    @ivar directory: while it is in use.
    @ivar made: whether it is new.
    @ivar outcome: in the end.
    """

    name: RelativeName
    modified: int | None
    durability: str
    make: bool
    directory: Directory | None = None
    made: bool = False
    outcome: DirectoryMade | Failure | None = None


class MakeDirectories:
    """
    The way of such directories.

    @param reached: returns the index in C{DURABILITIES} that is asked for and reachable.
    @param now: wall-clock seconds.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        directories: Directories,
        sync: BatchSync,
        reached: Callable[[str, Directory], int],
        now: Callable[[], float],
    ) -> None:
        self._sys = syscalls
        self._directories = directories
        self._sync = sync
        self._reached = reached
        self._now = now

    def __call__(self, asked: Sequence[AskedDirectory]) -> list[DirectoryMade | Failure | None]:
        """
        Make them, and sync what must be durable.

        @return: for each what became of it; L{None} if it is missing and may not be made.
        """
        try:
            for each in asked:
                try:
                    self._make(each)
                except (OSError, TransferError) as error:
                    each.outcome = self._failure(error, each)
            there = [
                (each, each.directory, self._reached(each.durability, each.directory))
                for each in asked
                if each.directory is not None and each.outcome is None
            ]
            levels = self._sync.names({place for _, place, level in there if level == 2})
            for each, place, reachable in there:
                level = levels[place] if reachable == 2 else reachable
                if isinstance(level, OSError):
                    each.outcome = self._failure(level, each)
                else:
                    each.outcome = DirectoryMade(
                        each.made, DURABILITIES[level], place.filesystem, self._now()
                    )
        finally:
            for each in asked:
                if each.directory is not None:
                    self._directories.release(each.directory)
        return [each.outcome for each in asked]

    def _make(self, asked: AskedDirectory) -> None:
        components = asked.name.components
        try:
            asked.directory = self._directories.acquire(components, create=False)
        except FileNotFoundError:
            if not asked.make:
                return
            asked.directory = self._directories.acquire(components, create=True)
            asked.made = True
        if asked.modified is not None:
            with suppress(PermissionError):  # somebody else's: only files are put in
                self._sys.utime(asked.directory.fd, ns=(asked.modified, asked.modified))

    def _failure(self, error: OSError | TransferError, asked: AskedDirectory) -> Failure:
        doing = f'making the directory "{asked.name}"'
        return Failure(asTransferError(error, doing, self._sys, self._directories.root))
