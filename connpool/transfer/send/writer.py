"""
The writing half of a sender's connection.

Theory of operation
===================
Frames of control are written through the transport.  The bytes of C{DATA} bypass
it on a plain socket: when the transport has nothing left to write, its socket is
duplicated and they go out by C{send} from the buffer it was read into, no
copy in between.  Our own TLS is bypassed likewise: its bytes are encrypted there.
The duplicate is kept for the next data part, until it is said that none comes
(L{Writer.rest}); that of TLS, until something is written through the transport.
Until the data part is complete, control frames wait here, so they
never come between its bytes.  Elsewhere (the TLS of others, reactors without descriptors)
the bytes are written through the transport, as fast as that takes it.

See L{connpool.transfer.wire.borrowed} for when a socket may be borrowed.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import (
    IPullProducer,
    IPushProducer,
)
from twisted.internet.task import deferLater
from zope.interface import implementer

from connpool.errors import NetworkFailed
from connpool.transfer.wire.borrowed import BorrowedWriter, isPlain, lends
from connpool.transfer.wire.frames import MAX_DATA_BYTES
from connpool.waiting import Waiters

if TYPE_CHECKING:
    from connpool.transfer.send.pace import Pace

__all__ = ["Writer"]

#: Bytes of C{DATA} that are copied for the transport at once: whole TLS records, and with what
#: these add less than the 128 KiB that it sends at once.
_COPIED_BYTES = 112 * 1024


@implementer(IPushProducer, IPullProducer)
class Writer:
    """
    @param failed: called when the connection takes nothing any more, with a
        L{NetworkFailed}: the reading side may know better why.  L{Writer.close} must follow.
    @param pace: of all that is sent; L{None} for no limit.
    @ivar written: bytes given to the connection so far.
    """

    def __init__(
        self,
        reactor: Any,
        transport: Any,
        failed: Callable[[NetworkFailed], Any],
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace
        #: those that wait for their turn
        self._turns: set[Deferred[None]] = set()
        self._reactor = reactor
        self._transport = transport
        self._failed = failed
        self._borrowed: BorrowedWriter | None = None
        self._queued: list[bytes] = []
        self._blocked = False
        self._waiters = Waiters()
        self._lock = DeferredLock()
        self._held = False
        #: whether others had their turn since the last data part began
        self._waited = True
        self._closed: BaseException | None = None
        self.written = 0
        # a pull producer is asked whenever the transport has written all; TLS
        # would ask again and again
        self._plain = isPlain(transport)
        self._registered = False

    def start(self, first: bytes) -> None:
        """
        Let the transport say when it wants more: C{DATA} and many frames are coming.

        @param first: a frame to begin with: when that is written, all before
            it is.
        """
        if not self._registered and self._closed is None:
            self._registered = True
            self._transport.registerProducer(self, not self._plain)
            self.send(first)

    def rest(self) -> None:
        """
        Take the producer back: nothing is coming for now, and a transport that has one
        cannot be closed by others.
        """
        if self._registered:
            self._registered = False
            if not self._held:
                self._giveBack()
            self._transport.unregisterProducer()
            self._blocked = False

    def send(self, *parts: bytes) -> None:
        """
        Write a frame, after the data part that is being written.
        """
        if self._closed is not None:
            return
        if self._held:
            self._queued.extend(parts)
        else:
            self._send(parts[0] if len(parts) == 1 else b"".join(parts))

    def _send(self, wire: bytes) -> None:
        if self._plain and self._registered:
            self._blocked = True
        elif not self._plain:
            self._giveBack()
        self.written += len(wire)
        self._transport.write(wire)

    async def flushed(self) -> None:
        """
        Wait until the transport takes more (a plain one: has written all).

        @raise TransferError: what ended the connection.
        """
        if self._closed is not None:
            raise self._closed
        if self._blocked:
            self._waited = True
            await self._waiters.wait()

    @property
    def portion(self) -> int:
        """
        The bytes that make sense at once.
        """
        return MAX_DATA_BYTES if self._pace is None else self._pace.portion

    async def turn(self) -> None:
        """
        Wait until the pace lets us send something; L{spend} must follow at once.

        @raise TransferError: what ended the connection.
        """
        turn = None if self._pace is None else self._pace.turn()
        if turn is not None:
            self._turns.add(turn)
            try:
                await turn
            except CancelledError:
                raise self._closed or CancelledError() from None
            finally:
                self._turns.discard(turn)
        if self._closed is not None:
            raise self._closed

    def spend(self, count: int) -> None:
        """
        Tell the pace what is sent.
        """
        if self._pace is not None:
            self._pace.spend(count)

    @contextlib.asynccontextmanager
    async def hold(self, header: bytes) -> AsyncIterator[None]:
        """
        Hold the connection for a data part: its frame's header and control part are written now,
        its bytes by L{write}.  There is one at a time.

        @raise TransferError: what ended the connection.
        """
        async with self._lock:
            self._held = True
            try:
                await self.flushed()
                if not self._waited:
                    # a peer that reads as fast as we write: it, and others, have their turn
                    await deferLater(self._reactor, 0)
                    await self.flushed()
                self._waited = False
                if self._borrowed is not None:
                    await self._write(memoryview(header))
                elif not lends(self._reactor, self._transport):
                    self._send(header)
                elif self._plain:
                    self._borrow()
                    await self._write(memoryview(header))
                else:
                    await self._writeOut(header)
                    if lends(self._reactor, self._transport):
                        self._borrow()
                yield
            finally:
                self._held = False
                if not self._registered:
                    self._giveBack()
                queued, self._queued = self._queued, []
                if queued:
                    self.send(*queued)

    def _borrow(self) -> None:
        self._borrowed = BorrowedWriter(self._reactor, self._transport, self._cut)

    def _giveBack(self, why: BaseException | None = None) -> None:
        borrowed, self._borrowed = self._borrowed, None
        if borrowed is not None:
            borrowed.close(why)

    async def _writeOut(self, header: bytes) -> None:
        """
        Write C{header} through TLS, until nothing waits to be written.
        """
        self._blocked = True
        self.written += len(header)
        self._transport.writeOut(header, self.resumeProducing)
        await self.flushed()

    async def write(self, view: memoryview) -> None:
        """
        Write bytes of the data part; C{view} is free again afterwards.

        @raise TransferError: what ended the connection.
        """
        if self._closed is not None:
            raise self._closed
        if self._borrowed is not None:
            await self._write(view)
        else:
            for at in range(0, len(view), _COPIED_BYTES):
                self._send(bytes(view[at : at + _COPIED_BYTES]))
                await self.flushed()

    async def _write(self, view: memoryview) -> None:
        assert self._borrowed is not None
        done = self._borrowed.write(view)
        if done is not None:
            self._waited = True
            await done
        self.written += len(view)

    def _cut(self, why: BaseException) -> None:
        self._failed(NetworkFailed(f"the connection was lost: {str(why).rstrip('.')}"))

    def close(self, why: BaseException) -> None:
        """
        Write nothing more: the connection is gone or going.
        """
        if self._closed is None:
            self._closed = why
            self._queued = []
            self._giveBack(why)
            self.rest()
            self._waiters.fail(why)
            for turn in list(self._turns):
                turn.cancel()

    # -- called by the transport

    def resumeProducing(self) -> None:
        self._blocked = False
        self._waiters.wake()

    def pauseProducing(self) -> None:
        self._blocked = True

    def stopProducing(self) -> None:
        pass
