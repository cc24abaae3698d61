"""
The messages by which a sender asks what a receiver has already.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from connpool.transfer.wire.fields import Array, Extensions, Message, Name, Nanoseconds, Size

__all__ = ["ASKED_FILES", "Ask", "AskedFile", "Have"]

#: Files of one C{ASK}.
ASKED_FILES = 512


class AskedFile(Array, frozen=True):
    """
    One file of L{Ask}.

    @ivar modified: its time; L{None} if that does not count.
    @ivar root: of its content; empty if that does not count.
    """

    name: Name
    size: Size
    modified: Nanoseconds | None = None
    root: Annotated[bytes, Meta(max_length=64)] = b""


class Ask(Message, frozen=True):
    """
    Tell what is there of these files.  Only for a receiver that has the capability C{update}.
    """

    files: Annotated[tuple[AskedFile, ...], Meta(min_length=1, max_length=ASKED_FILES)]
    extensions: Extensions = ()


class Have(Message, frozen=True):
    """
    The answer to C{ASK}: a byte for each file, in the data part (L{connpool.transfer.records}).
    """

    extensions: Extensions = ()
