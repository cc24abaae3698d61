"""
The rules of a reception, and its counts.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from connpool.transfer.identities import Limits

__all__ = ["Policy", "TransferStats"]


@attrs.frozen(kw_only=True)
class Policy(Limits):
    """
    The rules of a reception, and the L{Limits} of all senders together.

    @ivar ifExists: what to do when a name is taken, one of L{IF_EXISTS}.
    @ivar names: C{portable} or C{posix}: which names are taken.
    @ivar dotfiles: whether names may begin with a dot.
    @ivar idleTimeout: and C{minimumRate}: of each sender that has none of its own.
    """

    ifExists: str = "rename"
    names: str = "portable"
    dotfiles: bool = True
    idleTimeout: float = 60.0
    minimumRate: float = 1024.0


@attrs.frozen
class TransferStats:
    """
    The counts of a reception.

    @ivar active: transfers now.
    @ivar started: files a partial was opened for.
    @ivar published: files stored, C{duplicate} ones included.
    @ivar failed: files that ended without being published.
    @ivar refused: offers turned away before a byte was stored.
    @ivar receivedBytes: payload bytes given to the store.
    @ivar waiting: transfers that wait because others are under way.
    @ivar skipped: files that were left out because the rule C{skip} keeps another one.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset({"active", "waiting"})

    active: int = 0
    started: int = 0
    published: int = 0
    failed: int = 0
    refused: int = 0
    receivedBytes: int = 0
    waiting: int = 0
    skipped: int = 0
