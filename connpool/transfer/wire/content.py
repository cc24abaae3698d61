"""
Content that does not travel as it is: holes, and what is compressed.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from connpool.transfer.wire.fields import MAX_PACKED_BYTES, Extensions, Message, Size

__all__ = ["Hole", "Packed"]


class Hole(Message, frozen=True):
    """
    A range of zeros, in the place of C{DATA}: whole blocks, or a part of one.  Only for a
    receiver that has the capability C{holes}.
    """

    offset: Size
    length: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    extensions: Extensions = ()


class Packed(Message, frozen=True):
    """
    C{DATA} of one block, compressed (L{connpool.transfer.wire.packed}).  Only for a receiver
    that has the capability C{zstd}.

    @ivar size: bytes of the content.
    """

    offset: Size
    size: Annotated[int, Meta(ge=1, le=MAX_PACKED_BYTES)]
    extensions: Extensions = ()
