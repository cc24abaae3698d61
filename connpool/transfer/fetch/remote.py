"""
A receiver that is read: requests over one session, and what they bring.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import (
    DigestMismatch,
    NameRefused,
    NetworkFailed,
    NotFound,
    ProtocolError,
    TransferError,
    Unsupported,
)
from connpool.transfer.digests import Digest
from connpool.transfer.names import RelativeName
from connpool.transfer.send.session import SenderSession
from connpool.transfer.wire.frames import Frame, Type
from connpool.transfer.wire.handshake import READ
from connpool.transfer.wire.messages import Ack, ReceiptMessage, encode
from connpool.transfer.wire.readmessages import (
    Content,
    ListMessage,
    ReadMessage,
)

__all__ = ["Answer", "Remote", "RemoteEntry"]

#: Names that are asked for at once.
_PAGE_NAMES = 1000


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


@attrs.frozen
class Answer:
    """
    A part of a file.

    @ivar content: what the receiver says of it.
    @ivar data: its bytes; none if only the digest was asked for.
    """

    content: Content
    data: bytes = attrs.field(repr=False)


class _Request:
    """
    The stream of one request.
    """

    def __init__(self, remote: Remote, wanted: Type, most: int) -> None:
        self._remote = remote
        self._wanted = wanted
        self._most = most
        self.answered: Deferred[tuple[Any, Frame]] = Deferred(lambda _: self._over())
        self.number = remote.session.open(self)

    def _over(self) -> None:
        self._remote.session.forget(self.number)
        self._remote.open.discard(self)

    def takes(self, kind: Type, length: int) -> bool:
        return kind is self._wanted and length <= self._most

    def frameReceived(self, frame: Frame, message: Any) -> None:
        if frame.type is not self._wanted:
            raise ProtocolError(f"{frame.type.name} for a request to read")
        if frame.length != len(frame.data):
            raise ProtocolError("CONTENT has more bytes than were asked for")
        self._over()
        self.answered.callback((message, frame))

    def stored(self, receipt: ReceiptMessage | Ack) -> None:
        raise ProtocolError("a receipt for a request to read")

    def rejected(self, why: TransferError, retryable: bool) -> None:
        self._over()
        self.answered.errback(why)

    def failed(self, why: BaseException) -> None:
        """
        The connection is gone.
        """
        self._over()
        self.answered.errback(why)


class Remote:
    """
    A receiver that lets us read.

    @param session: let in, and nobody else's.
    @ivar digest: the algorithm of the session.
    @ivar open: requests that wait for their answer.
    @raise Unsupported: nobody may read there.
    """

    def __init__(self, session: SenderSession) -> None:
        if READ not in session.capabilities:
            raise Unsupported(
                "the receiver lets nobody read: its version is too old, or no entry of its "
                "--identities has read = true"
            )
        self.session = session
        self.digest: Digest = session.digest
        self.open: set[_Request] = set()
        session.onLost = self._lost

    def _lost(self, why: BaseException) -> None:
        error = why if isinstance(why, TransferError) else NetworkFailed("the connection was lost")
        while self.open:  # each may end others
            self.open.pop().failed(error)

    async def _ask(
        self, kind: Type, message: Any, wanted: Type, most: int = 0
    ) -> tuple[Any, Frame]:
        if self.session.lost is not None:
            raise self.session.lost
        request = _Request(self, wanted, most)
        self.open.add(request)
        self.session.writer.send(encode(kind, request.number, message))
        return await request.answered

    async def read(
        self, name: str, start: int, end: int, version: bytes | None, digestOnly: bool = False
    ) -> Answer:
        """
        Read a part of a file, and verify what came.

        @param version: that the file must have; L{None} for any.
        @raise DigestMismatch: the bytes arrived damaged.
        @raise TransferError: why not.
        """
        message = ReadMessage(name.encode(), start, end, version, digestOnly)
        content, frame = await self._ask(Type.READ, message, Type.CONTENT, end - start)
        due = 0 if digestOnly else min(end, content.size) - start
        if len(frame.data) != max(0, due) or (version is not None and version != content.version):
            raise ProtocolError("CONTENT is not what READ asked for")
        if not digestOnly and self.digest.of(frame.data) != content.digest:
            raise DigestMismatch(f"bytes {start} to {end} arrived damaged")
        return Answer(content, frame.data)

    async def file(self, path: str) -> RemoteEntry:
        """
        Find out about a file.

        @raise TransferError: why not.
        """
        content = (await self.read(path, 0, 0, None)).content
        return RemoteEntry(path, False, content.size, content.modified)

    async def isDirectory(self, path: str) -> bool:
        """
        Tell whether it is one that can be listed; empty for the top.

        @raise TransferError: why that cannot be told.
        """
        try:
            await self._ask(Type.LIST, ListMessage(path.encode(), b"", 1), Type.LISTING)
        except NotFound:
            return False
        return True

    async def entries(self, directory: str) -> AsyncIterator[RemoteEntry]:
        """
        List a directory; empty for the top.

        @raise TransferError: why not.
        """
        after = b""
        while True:
            message = ListMessage(directory.encode(), after, _PAGE_NAMES)
            page, _ = await self._ask(Type.LIST, message, Type.LISTING)
            for each in page.entries:
                if each.name <= after:
                    raise ProtocolError("LISTING is not sorted")
                after = each.name
                path = _below(directory, each.name)
                yield RemoteEntry(path, each.directory, each.size, each.modified)
            if not page.more or not page.entries:
                return

    async def tree(
        self, path: str, failed: Callable[[str, TransferError], Any]
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
                async for entry in self.entries(where):
                    yield entry
                    if entry.directory:
                        below.append(entry.path)
            except TransferError as e:
                if self.session.lost is not None or where == path:
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
