"""
The wishes of a sender for its files.
"""

from __future__ import annotations

from collections.abc import Collection

import attrs

from connpool.transfer.digests import BLOCK_SIZE
from connpool.transfer.records import DURABILITIES
from connpool.transfer.send.extents import EXTENT_BYTES

__all__ = ["RequestedDurability", "SendRequest"]


@attrs.frozen
class SendRequest:
    """
    The user's wishes for every file.

    @ivar ifExists: one of L{IF_EXISTS}, or empty for the receiver's rule.
    @ivar durability: one of L{ASKABLE_DURABILITIES}.
    @ivar dry: only ask.
    @ivar update: C{times} or C{checksum}: send only what the receiver does not have, by this;
        empty: all.
    @ivar compress: C{auto}, C{always} or C{never} (L{connpool.transfer.send.packing}).
    @ivar growing: send a file that only gets longer as it was when it was opened.
    @ivar blockSize: smallest bytes of a block.
    @ivar extentBytes: bytes of an extent.
    """

    ifExists: str = ""
    durability: str = "best"
    dry: bool = False
    blockSize: int = BLOCK_SIZE
    extentBytes: int = EXTENT_BYTES
    update: str = ""
    compress: str = "auto"
    growing: bool = False


class RequestedDurability:
    """
    The durability that the files of one session are asked for.

    @param wanted: one of L{ASKABLE_DURABILITIES}.
    @param capabilities: of the session.
    @ivar level: the same, in words that the receiver knows.
    """

    def __init__(self, wanted: str, capabilities: Collection[str]) -> None:
        self._open = wanted == "best"
        self.level = "full" if self._open and "best" not in capabilities else wanted

    def lower(self, refused: str) -> bool:
        """
        Ask for less than a level that was refused, if it was left open which one it is.

        @return: whether there is less to ask for.
        """
        if not self._open or refused not in {"data", "full"}:
            return False
        if refused == self.level:
            self.level = DURABILITIES[DURABILITIES.index(refused) - 1]
        return True
