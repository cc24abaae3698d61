"""
The types of the fields of messages, with their bounds; and what all messages have.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "MAX_PACKED_BYTES",
    "Array",
    "AskedDurability",
    "BlockNumber",
    "BlockSize",
    "DigestBytes",
    "Durability",
    "Extension",
    "Extensions",
    "Id",
    "IfExists",
    "Line",
    "Message",
    "Name",
    "Nanoseconds",
    "Secret",
    "Size",
    "Word",
]

#: Bytes that one C{PACKED} has when it is unpacked.
MAX_PACKED_BYTES = 1 << 20

Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Word = Annotated[str, Meta(max_length=64)]
Line = Annotated[str, Meta(max_length=1024)]
Name = Annotated[bytes, Meta(max_length=49_152)]
Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
Secret = Annotated[bytes, Meta(min_length=32, max_length=32)]
DigestBytes = Annotated[bytes, Meta(min_length=16, max_length=64)]
BlockNumber = Annotated[int, Meta(ge=0, le=65_535)]
#: Nanoseconds since the epoch; before it is allowed.
Nanoseconds = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
BlockSize = Annotated[int, Meta(ge=1 << 12, le=1 << 47)]
IfExists = Literal["", "rename", "replace", "refuse", "skip"]
Durability = Literal["none", "data", "full"]
#: C{best} needs the capability of that name.
AskedDurability = Literal["none", "data", "full", "best"]


class Array(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """
    A MessagePack array of fields; those at the end that have a default may be missing.
    """


class Extension(Array, frozen=True):
    """
    An addition to a message, which a version that does not know it ignores.

    @ivar critical: a peer that does not know C{name} must refuse the message.
    """

    name: Word
    critical: bool
    value: Annotated[bytes, Meta(max_length=4096)]


Extensions = Annotated[tuple[Extension, ...], Meta(max_length=16)]


class Message(Array, frozen=True):
    """
    The control part of a frame.
    """
