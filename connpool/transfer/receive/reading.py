"""
Reading: what a sender may read, and the requests of one session.

Theory of operation
===================
Reading is the permission of an identity, and a reader sees nothing but its own directory,
or everything if the operator wrote that.  What is not there, what is no regular file, what has a
name that nobody can have and what may not be read have one and the same answer.

A session has its requests answered one after the other, in their order.  Nothing stays open
between them.  While one answer is on its way out the next one is read, and no more than
that: a reader that does not read keeps two answers in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import (
    Busy,
    ChangedSource,
    Forbidden,
    NameRefused,
    NotFound,
    ProtocolError,
    StoreError,
    TransferError,
)
from connpool.interfaces import IReadableStore
from connpool.transfer.digests import Digest
from connpool.transfer.identities import Identity
from connpool.transfer.names import RelativeName, displayName
from connpool.transfer.receive.policy import ReadCounts
from connpool.transfer.receive.reception import Reception
from connpool.transfer.records import FileRange, Listing
from connpool.transfer.wire.frames import MAX_CONTENT_BYTES, Type
from connpool.transfer.wire.messages import encode, rejectFrame
from connpool.transfer.wire.readmessages import (
    Content,
    ListedName,
    ListingMessage,
    ListMessage,
    ReadMessage,
)
from connpool.waiting import Waiters

__all__ = ["MAX_REQUESTS", "Reader", "Requests", "readerOf"]

#: Requests of one session that wait for their answers.
MAX_REQUESTS = 64
#: Names of a page, and bytes that they may take on the wire.
PAGE_NAMES, _PAGE_BYTES, _NAME_BYTES = 1000, 60_000, 40


@attrs.frozen
class Reader:
    """
    The permission of one identity.

    @ivar store: of the receiver.
    @ivar identity: L{None} for everybody who has none.
    @ivar dotfiles: whether names may begin with a dot.
    @ivar counts: of the receiver.
    """

    _log = Logger()

    store: Any
    identity: Identity | None
    dotfiles: bool
    counts: ReadCounts
    peer: str

    def nameOf(self, raw: bytes | str) -> RelativeName | None:
        """
        Read a name as a reader writes it.

        @return: that of the store; L{None} for the root.
        @raise Forbidden: this identity may not read.
        @raise NotFound: nothing has such a name.
        """
        identity = self.identity
        if identity is None or not identity.read or not IReadableStore.providedBy(self.store):
            raise Forbidden(
                "reading is not allowed here; the operator's table says who may (read = true)"
            )
        directory = None if identity.read == "everything" else identity.directory
        if not raw:
            return directory
        try:
            name = RelativeName.parse(raw, profile="posix", dotfiles=self.dotfiles)
            return name if directory is None else name.under(directory)
        except NameRefused:
            raise NotFound(f'there is no "{displayName(raw)}"') from None

    async def listing(self, raw: bytes | str, after: str, limit: int) -> Listing:
        """
        Read a page of a directory.

        @raise TransferError: why not.
        """
        while True:
            page: Listing = await self._ask(
                raw, partial(self._page, after=after, limit=limit), directory=True
            )
            shown = tuple(each for each in page.entries if self.dotfiles or each.name[0] != ".")
            if shown or not page.more:
                self.counts.listings += 1
                return Listing(shown, page.more)
            after = page.entries[-1].name

    def _page(self, name: RelativeName | None, after: str, limit: int) -> Deferred[Listing]:
        page: Deferred[Listing] = self.store.listing(name, after, limit)
        identity = self.identity
        if identity is not None and name == identity.directory:
            # its own directory is made with its first file
            page.addErrback(_empty)
        return page

    async def read(self, raw: bytes | str, start: int, end: int) -> FileRange:
        """
        Read a part of a file.

        @raise TransferError: why not.
        """
        found: FileRange = await self._ask(raw, lambda name: self.store.read(name, start, end))
        if start == 0 and (found.data or not found.size):
            self.counts.files += 1
            assert self.identity is not None
            self._log.info(
                "{name} is read by {principal} from {peer}",
                name=displayName(raw),
                principal=displayName(self.identity.principal),
                peer=self.peer,
            )
        self.counts.readBytes += len(found.data)
        return found

    async def _ask(
        self,
        raw: bytes | str,
        ask: Callable[[Any], Deferred[Any]],
        directory: bool = False,
    ) -> Any:
        try:
            name = self.nameOf(raw)
            if name is None and not directory:
                raise NotFound('there is no ""')
            return await ask(name)
        except NotFound:
            self.counts.refused += 1
            # in the reader's words: its directory is the operator's business
            raise NotFound(f'there is no "{displayName(raw)}"') from None
        except Busy:
            self.counts.refused += 1
            raise Busy(f'"{displayName(raw)}" cannot be read now; try again later') from None
        except TransferError:
            self.counts.refused += 1
            raise


def _empty(failure: Failure) -> Listing:
    failure.trap(NotFound)
    return Listing((), more=False)


def readerOf(reception: Reception, identity: Identity | None, peer: str) -> Reader:
    """
    Make the permission to read of one identity.
    """
    return Reader(reception.store, identity, reception.policy.dotfiles, reception.reads, peer)


@attrs.define(eq=False)
class Requests:
    """
    The requests of one session.

    @param send: writes to the peer.
    @param isFull: tells whether the peer does not read what was written.
    @param ended: called when all that was asked for is answered.
    """

    _log = Logger()

    _reader: Reader
    _digest: Digest
    _send: Callable[..., Any]
    _isFull: Callable[[], bool]
    _ended: Callable[[], Any]
    _waiting: deque[tuple[int, Any]] = attrs.field(factory=deque, init=False)
    _running: bool = attrs.field(default=False, init=False)
    _over: bool = attrs.field(default=False, init=False)
    _writable: Waiters = attrs.field(factory=Waiters, init=False)

    @property
    def busy(self) -> bool:
        """
        Tell whether something is to be answered.
        """
        return self._running

    def ask(self, number: int, message: Any, draining: bool) -> None:
        """
        Take a request.

        @raise ProtocolError: it makes no sense.
        """
        if isinstance(message, ReadMessage):
            count = message.end - message.start
            if not 0 <= count <= MAX_CONTENT_BYTES:
                raise ProtocolError(f"READ asks for {count} bytes; at most {MAX_CONTENT_BYTES}")
        if draining:
            self._send(rejectFrame(number, Busy("the receiver is stopping")))
        elif len(self._waiting) >= MAX_REQUESTS:
            self._send(rejectFrame(number, Busy(f"{MAX_REQUESTS} requests wait already")))
        else:
            self._waiting.append((number, message))
            if not self._running:
                self._running = True
                Deferred.fromCoroutine(self._run()).addErrback(self._failed)

    def writable(self) -> None:
        """
        Go on: the peer has read what was written.
        """
        self._writable.wake()

    def stop(self) -> None:
        """
        Answer nothing more: the connection is gone.
        """
        self._over = True
        self._waiting.clear()
        self._writable.wake()

    async def _run(self) -> None:
        while self._waiting:
            number, message = self._waiting.popleft()
            try:
                if isinstance(message, ListMessage):
                    answer = await self._listing(number, message)
                else:
                    answer = await self._content(number, message)
            except TransferError as e:
                answer = (rejectFrame(number, e),)
            while self._isFull() and not self._over:
                await self._writable.wait()
            if self._over:
                break
            self._send(*answer)
        self._running = False
        self._ended()

    def _failed(self, failure: Failure) -> None:
        self._running = False
        self._log.failure("a request to read failed", failure)
        self._ended()

    async def _listing(self, number: int, message: ListMessage) -> tuple[bytes, ...]:
        try:
            after = message.after.decode()
        except UnicodeDecodeError:
            raise NotFound("there is no such name") from None
        page = await self._reader.listing(message.directory, after, min(message.limit, PAGE_NAMES))
        names: list[ListedName] = []
        room = _PAGE_BYTES
        for each in page.entries:
            raw = each.name.encode()
            room -= len(raw) + _NAME_BYTES
            if room < 0:
                break
            modified = min(max(each.modified, -(2**63)), 2**63 - 1)
            names.append(ListedName(raw, each.directory, each.size, modified))
        more = page.more or len(names) < len(page.entries)
        return (encode(Type.LISTING, number, ListingMessage(tuple(names), more)),)

    async def _content(self, number: int, message: ReadMessage) -> tuple[bytes, ...]:
        try:
            found = await self._reader.read(message.name, message.start, message.end)
        except (OSError, ValueError) as e:
            raise StoreError(f"the store failed: {type(e).__name__}") from None
        if message.version is not None and message.version != found.version:
            raise ChangedSource(f'"{displayName(message.name)}" is another one by now')
        data = b"" if message.digestOnly else found.data
        modified = min(max(found.modified, -(2**63)), 2**63 - 1)
        content = Content(found.size, modified, found.version, self._digest.of(found.data))
        return encode(Type.CONTENT, number, content, len(data)), data
