"""
The parts of a local store that its partials need.
"""

from __future__ import annotations

import attrs

from connpool.transfer.stores.commit import Finisher
from connpool.transfer.stores.directories import Tree
from connpool.transfer.stores.iothreads import Lanes
from connpool.transfer.stores.partialdir import Shelf
from connpool.transfer.stores.recovery import Reaper
from connpool.transfer.stores.reservations import Ledger
from connpool.transfer.syscalls import Syscalls

__all__ = ["StoreParts"]


@attrs.frozen
class StoreParts:
    """
    @ivar syscalls: the layer between the store and the kernel.
    @ivar lanes: for work that may block.
    @ivar private: the private directories.
    @ivar shelf: the partials on disk.
    @ivar ledger: the shares of the disk that are reserved.
    @ivar finisher: publishes what is complete.
    @ivar reaper: takes the steps that a process left that died.
    """

    syscalls: Syscalls
    lanes: Lanes
    private: Tree
    shelf: Shelf
    ledger: Ledger
    finisher: Finisher
    reaper: Reaper
