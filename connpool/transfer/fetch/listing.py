"""
The names at a receiver, page by page.

A walk keeps no connection: each page is asked for by the last name of the one before, so one
that is asked for again, over another connection, goes on where the walk was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

import attrs

from connpool.errors import NameRefused, ProtocolError, TransferError
from connpool.transfer.names import RelativeName
from connpool.transfer.wire.readmessages import ListingMessage

__all__ = ["Pages", "RemoteEntry", "entries", "tree"]


@attrs.frozen
class RemoteEntry:
    """
    A name at the receiver.

    @ivar path: below what may be read there.
    @ivar directory: whether it is a directory, else a file.
    @ivar size: bytes of a file.
    @ivar modified: nanoseconds since the epoch.
    """

    path: str
    directory: bool
    size: int
    modified: int


class Pages(Protocol):
    """
    The receiver that is asked; a plain Python protocol.
    """

    @property
    def lost(self) -> bool:
        """
        Tell whether nothing more can be asked.
        """

    async def page(self, directory: str, after: bytes) -> ListingMessage:
        """
        List names of a directory, empty for the top, that come after C{after}.

        @raise TransferError: why not.
        """


async def entries(pages: Pages, directory: str) -> AsyncIterator[RemoteEntry]:
    """
    List a directory; empty for the top.

    @raise TransferError: why not.
    """
    after = b""
    while True:
        page = await pages.page(directory, after)
        for each in page.entries:
            if each.name <= after:
                raise ProtocolError("LISTING is not sorted")
            after = each.name
            path = _below(directory, each.name)
            yield RemoteEntry(path, each.directory, each.size, each.modified)
        if not page.more or not page.entries:
            return


async def tree(
    pages: Pages, path: str, failed: Callable[[str, TransferError], object]
) -> AsyncIterator[RemoteEntry]:
    """
    List a directory and all below it.

    @param failed: told of a directory below that cannot be listed.
    @raise TransferError: why the directory itself cannot.
    """
    todo = [path]
    while todo:
        where = todo.pop()
        below = []
        try:
            async for entry in entries(pages, where):
                yield entry
                if entry.directory:
                    below.append(entry.path)
        except TransferError as e:
            if pages.lost or where == path:
                raise
            failed(where, e)
        todo += reversed(below)


def _below(directory: str, raw: bytes) -> str:
    """
    @raise ProtocolError: the name could lead somewhere else here.
    """
    try:
        name = RelativeName.parse(raw, profile="posix")
    except NameRefused as e:
        raise ProtocolError(f"the receiver lists a name that is none: {e}") from None
    if len(name.components) != 1:
        raise ProtocolError("the receiver lists a path where a name belongs")
    return f"{directory}/{name.path}" if directory else name.path
