"""
A receiver that is read: requests over one session, and what they bring.
"""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import (
    DigestMismatch,
    NetworkFailed,
    NotFound,
    ProtocolError,
    TransferError,
    Unsupported,
)
from connpool.transfer.digests import Digest
from connpool.transfer.fetch.listing import RemoteEntry
from connpool.transfer.send.session import SenderSession
from connpool.transfer.wire.frames import Frame, Type
from connpool.transfer.wire.handshake import READ
from connpool.transfer.wire.messages import Ack, ReceiptMessage, encode
from connpool.transfer.wire.readmessages import (
    Content,
    ListingMessage,
    ListMessage,
    ReadMessage,
)

__all__ = ["Answer", "Remote"]

#: Names that are asked for at once.
_PAGE_NAMES = 1000


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
        session.onLost = self._onLost

    @property
    def lost(self) -> bool:
        """
        Tell whether the connection is gone.
        """
        return self.session.lost is not None

    def _onLost(self, why: BaseException) -> None:
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
            await self.page(path, b"", 1)
        except NotFound:
            return False
        return True

    async def page(self, directory: str, after: bytes, most: int = _PAGE_NAMES) -> ListingMessage:
        """
        List names of a directory, empty for the top, that come after C{after}.

        @raise TransferError: why not.
        """
        message = ListMessage(directory.encode(), after, most)
        page: ListingMessage
        page, _ = await self._ask(Type.LIST, message, Type.LISTING)
        return page
