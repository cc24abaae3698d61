"""
The root of a store, as long as its path leads to it.

Theory of operation
===================
The root is held by a descriptor, so whatever happens to its path nothing is
written elsewhere.  When the path leads to something else (the directory was
moved, another one or a mount was put in its place) nothing new is taken, until
it leads back.  Only a directory that was removed for good is replaced: then a
new one under the same path, on the same device, becomes the root, in the place
of the old descriptor.  On another device it may be the empty directory below a
disk that is not mounted.

An operator is told the path; a sender is not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

import attrs
from twisted.logger import Logger

from connpool.errors import TransferError
from connpool.transfer.names import INTERNAL, displayName
from connpool.transfer.stores.directories import Tree
from connpool.transfer.syscalls import Syscalls

__all__ = ["RootDirectory", "Trouble"]

#: The private directories that everything needs.
_PRIVATE = ("temporary", "done", "ledger", "partials")


@attrs.frozen
class Trouble:
    """
    The reason why nothing is taken.

    @ivar text: one line for the operator.
    @ivar told: one line for senders, without the path.
    """

    text: str
    told: str


class RootDirectory:
    """
    @param path: of the root.
    @param fd: the descriptor that holds it.
    @param trees: of the private directories, and of the published ones.
    @param log: told when the trouble changes.
    """

    def __init__(
        self, syscalls: Syscalls, path: str, fd: int, trees: Sequence[Tree], log: Logger
    ) -> None:
        self._sys = syscalls
        self._path = path
        self._fd = fd
        self._trees = trees
        self._log = log
        self._trouble: Trouble | None = None
        self._vanishing = self._troubleOf(
            "is being removed by somebody", "find out who cleans up there"
        )

    def trouble(self) -> Trouble | None:
        """
        Look, and make private directories that are missing.

        @return: L{None} if the root can be used.
        """
        found = self._look()
        if found != self._trouble:
            self._trouble = found
            if found is None:
                self._log.info("directory {path} can be used again", path=displayName(self._path))
            else:
                self._log.warn("no files are taken: {text}", text=found.text)
        return found

    def _look(self) -> Trouble | None:
        found = self._lookOnce()
        # it may have been removed during the look: the next one says so
        return self._lookOnce() if found == self._vanishing else found

    def _lookOnce(self) -> Trouble | None:
        if not self._isThere():
            return self._troubleOf(
                "was moved away, replaced or covered by a mount",
                "put it back, or restart the receiver to use what is there now",
            )
        if self._sys.fstatvfs(self._fd).f_flag & os.ST_RDONLY:
            return self._troubleOf("is mounted read-only", "remount it read-write")
        private = self._trees[0]
        try:
            for name in _PRIVATE:
                _, directory = private.enter((INTERNAL, name), lambda _: None)
                private.release(directory)
        except FileNotFoundError:
            return self._vanishing
        except (OSError, TransferError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            return Trouble(
                f"directory {displayName(self._path)} cannot be used: {why}; it must be writable,"
                f" and {INTERNAL} in it private",
                f"the receiver cannot use its private directory {INTERNAL}; tell its operator",
            )
        return None

    def _troubleOf(self, what: str, remedy: str) -> Trouble:
        return Trouble(
            f"directory {displayName(self._path)} {what}; {remedy}",
            f"the receiver's directory {what}; tell its operator",
        )

    def _isThere(self) -> bool:
        ours = self._sys.fstat(self._fd)
        try:
            status = self._sys.stat(self._path)
        except OSError:
            return False
        # the descriptor keeps the numbers of a removed one from being given again
        if (status.st_dev, status.st_ino) == (ours.st_dev, ours.st_ino):
            return True
        return not ours.st_nlink and stat.S_ISDIR(status.st_mode) and self._adopt(ours.st_dev)

    def _adopt(self, device: int) -> bool:
        """
        Take the directory that was made in the place of the removed one.
        """
        try:
            fd = self._sys.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            if self._sys.fstat(fd).st_dev != device:
                return False
            self._sys.dup2(fd, self._fd, False)
        finally:
            self._sys.close(fd)
        for tree in self._trees:
            tree.rooted()
        self._log.warn(
            "directory {path} had been removed and was made again; what was in it is lost",
            path=displayName(self._path),
        )
        return True
