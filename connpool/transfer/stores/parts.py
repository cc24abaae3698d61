"""
The parts of a local store that its partials need.
"""

from __future__ import annotations

import attrs

from connpool.transfer.iothreads import IOThreads
from connpool.transfer.stores.commit import Commit
from connpool.transfer.stores.partialdir import PartialDirectory
from connpool.transfer.stores.recovery import Recovery
from connpool.transfer.stores.reservations import Reservations
from connpool.transfer.syscalls import Syscalls

__all__ = ["StoreParts"]


@attrs.frozen
class StoreParts:
    """
    The parts of one store, by name.

    @ivar syscalls: the layer between the store and the kernel.
    @ivar threads: for work that may block.
    @ivar partials: the partials on disk.
    @ivar reservations: the shares of the disk that are reserved.
    @ivar commit: publishes what is complete.
    @ivar recovery: takes the steps that a process left that died.
    """

    syscalls: Syscalls
    threads: IOThreads
    partials: PartialDirectory
    reservations: Reservations
    commit: Commit
    recovery: Recovery
