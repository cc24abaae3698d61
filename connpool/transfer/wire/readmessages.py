"""
The messages of those who read; see L{connpool.transfer.wire.messages}.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from connpool.transfer.wire.fields import (
    Array,
    DigestBytes,
    Extensions,
    Id,
    Message,
    Name,
    Nanoseconds,
    Size,
)

__all__ = ["Content", "ListMessage", "ListedName", "ListingMessage", "ReadMessage"]


class ListMessage(Message, frozen=True):
    """
    C{LIST}: asks for a page of a directory.  This and C{READ} are only for a receiver that
    has the capability C{read}.

    @ivar directory: empty for the top of what may be read.
    @ivar after: only names that are sorted after this one.
    """

    directory: Name = b""
    after: Annotated[bytes, Meta(max_length=255)] = b""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000
    extensions: Extensions = ()


class ListedName(Array, frozen=True):
    """
    A name of L{ListingMessage}.
    """

    name: Annotated[bytes, Meta(min_length=1, max_length=255)]
    directory: bool
    size: Size
    modified: Nanoseconds


class ListingMessage(Message, frozen=True):
    """
    C{LISTING}: a page, sorted by the bytes of the names.

    @ivar more: whether there are names after the last one.
    """

    entries: Annotated[tuple[ListedName, ...], Meta(max_length=1000)]
    more: bool
    extensions: Extensions = ()


class ReadMessage(Message, frozen=True):
    """
    C{READ}: asks for the bytes of a file from C{start} to C{end}.

    @ivar version: that it must have; L{None} for any.
    @ivar digestOnly: asks for the digest of these bytes, and not for them.
    """

    name: Name
    start: Size
    end: Size
    version: Id | None = None
    digestOnly: bool = False
    extensions: Extensions = ()


class Content(Message, frozen=True):
    """
    C{CONTENT}: the bytes that C{READ} asked for, in the data part; fewer at the end of the
    file.

    @ivar size: of the file.
    @ivar version: another one when the content may have changed.
    @ivar digest: of the bytes that were asked for.
    """

    size: Size
    modified: Nanoseconds
    version: Id
    digest: DigestBytes
    extensions: Extensions = ()
