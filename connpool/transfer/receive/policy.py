"""
The rules of a reception, and its counts.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from connpool.errors import Forbidden
from connpool.transfer.identities import Limits

__all__ = ["Policy", "ReadCounts", "TransferStats"]

#: The rules that a sender may ask for under each rule of ours, beside that rule itself.
_MAY_ASK = {"rename": ("refuse", "skip"), "replace": ("rename", "refuse", "skip")}


@attrs.frozen(kw_only=True)
class Policy(Limits):
    """
    The rules of a reception, and the L{Limits} of all senders together.

    @ivar ifExists: what to do when a name is taken, one of L{IF_EXISTS}.
    @ivar names: C{portable} or C{posix}: which names are taken.
    @ivar dotfiles: whether names may begin with a dot.
    @ivar reading: whether anybody may read; who, and what, is in the entry of each identity.
    @ivar compression: whether content may come compressed.
    @ivar idleTimeout: and C{minimumRate}: of each sender that has none of its own.
    """

    ifExists: str = "rename"
    names: str = "portable"
    dotfiles: bool = True
    compression: bool = True
    reading: bool = False
    idleTimeout: float = 60.0
    minimumRate: float = 1024.0

    def ruleFor(self, asked: str | None) -> str:
        """
        Return the rule for a file whose name is taken.

        @param asked: the rule that its sender asks for; empty or L{None} for none.
        @raise Forbidden: if it may not ask for that.
        """
        rule = self.ifExists
        if not asked or asked == rule or asked in _MAY_ASK.get(rule, ()):
            return asked or rule
        raise Forbidden(f"the receiver does not let senders {asked!r}; its rule is {rule!r}")


@attrs.define
class ReadCounts:
    """
    The counts of what was read from a receiver.

    @ivar files: files whose first bytes were read.
    @ivar readBytes: bytes of files that were read.
    @ivar listings: pages of directories.
    @ivar refused: requests that were not answered with what was asked for.
    """

    files: int = 0
    readBytes: int = 0
    listings: int = 0
    refused: int = 0


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
    @ivar rememberedBytes: memory that the store's knowledge of names and receipts takes, about.
    @ivar readFiles: files that were begun to be read.
    @ivar readBytes: bytes of files that were read.
    @ivar listings: pages of directories that were read.
    @ivar readRefused: requests to read that did not get what was asked for.
    @ivar judging: files that are being judged before they are published.
    @ivar judgeRefused: files that a judge refused.
    @ivar judgeHeld: times that a file was held, because nobody could judge it.
    @ivar skipped: files that were left out because the rule C{skip} keeps another one.
    @ivar savedBytes: bytes that compression kept off the network.
    @ivar asked: files that senders asked about.
    @ivar unchanged: those of them that were told to be there.
    @ivar holeBytes: bytes of holes, which did not come and were not written.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset(
        {"active", "judging", "rememberedBytes", "waiting"}
    )

    active: int = 0
    started: int = 0
    published: int = 0
    failed: int = 0
    refused: int = 0
    receivedBytes: int = 0
    waiting: int = 0
    skipped: int = 0
    rememberedBytes: int = 0
    holeBytes: int = 0
    savedBytes: int = 0
    asked: int = 0
    unchanged: int = 0
    readFiles: int = 0
    readBytes: int = 0
    listings: int = 0
    readRefused: int = 0
    judging: int = 0
    judgeRefused: int = 0
    judgeHeld: int = 0
