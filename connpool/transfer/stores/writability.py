"""
The question whether a file system still takes writes.

After an error of the disk, ext4 refuses every write, and since Linux 6.15 L{os.statvfs} does
not say so; XFS that was shut down never did.  So one write is tried: the time of a private
directory is set.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from connpool.errors import Busy, NoSpace, TransferError
from connpool.transfer.iothreads import IOThreads
from connpool.transfer.stores.directories import Directories
from connpool.transfer.syscalls import Syscalls, asTransferError

__all__ = ["TRY_SECONDS", "Writability"]

#: Seconds between two tries at least.
TRY_SECONDS = 30.0


class Writability:
    """
    The result of the last try, which is made in a thread: a broken disk may take long.

    @param threads: of the store.
    @param directories: of the private directories.
    @param components: of the directory whose time is set.
    @param shown: name of the root, for the operator.
    @param seconds: tells the time.
    """

    _log = Logger()

    def __init__(
        self,
        syscalls: Syscalls,
        threads: IOThreads,
        directories: Directories,
        components: tuple[str, ...],
        shown: str,
        seconds: Callable[[], float],
    ) -> None:
        self._sys = syscalls
        self._threads = threads
        self._directories = directories
        self._components = components
        self._shown = shown
        self._seconds = seconds
        self._due = seconds()
        self._trouble: str | None = None

    def trouble(self) -> str | None:
        """
        Return why nothing can be written, as far as is known; try again if that is due.
        """
        if self._seconds() >= self._due:
            self._due = float("inf")
            self._threads.run(self._try).addCallback(self._tried)
        return self._trouble

    def _try(self) -> str | None:
        try:
            _, directory = self._directories.enter(
                self._components, lambda directory: self._sys.utime(directory.fd)
            )
        except OSError as error:
            passes = isinstance(asTransferError(error, "trying"), (NoSpace, Busy))
            return None if passes else error.strerror
        except TransferError:
            return None  # of the directory itself, which is looked at elsewhere
        self._directories.release(directory)
        return None

    def _tried(self, why: str | None) -> None:
        self._due = self._seconds() + TRY_SECONDS
        older, self._trouble = self._trouble, None
        if why is not None:
            self._trouble = (
                f"directory {self._shown} cannot be written: {why}; look at its disk, and at "
                "what the kernel logged of it"
            )
        if self._trouble == older:
            return
        if self._trouble is not None:
            self._log.warn("not ready: {text}", text=self._trouble)
        else:
            self._log.info("directory {path} can be written again", path=self._shown)
