"""
The socket of a transport, borrowed for many bytes.

Theory of operation
===================
The costly thing in a transport is the buffer it allocates for each read, and the
copy of what it has to write.  So for the length of a long data part the transport stands
still, its socket is duplicated, and the bytes are read into buffers that are used
again and again, or written from the buffer that it was read into.

The next thing that costs is to be woken for little.  Once bytes come fast the kernel is
asked to wake us for L{WAKE_BYTES} only (C{SO_RCVLOWAT}, socket(7)): never for more than the
data part has left, or both sides would wait for ever, and no longer than L{LOOK_SECONDS} after
the last read, since one whose length is not known may end, and a slow peer shall not look
silent.  The end of the stream and errors always wake.

That is sound only for a plain TCP or unix socket (L{lends}), or for our own TLS on one, which
lends what looks like a socket (L{connpool.tlslending}): C{fileno()} of a TLS transport is the
socket below the encryption.  An error on the borrowed descriptor
belongs to the borrower: the kernel tells it once, and the transport would afterwards
see a clean end.  So it ends the connection, and the socket is not given back.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import (
    IReactorFDSet,
    IReadDescriptor,
    ISSLTransport,
    IWriteDescriptor,
)
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["BorrowedReader", "BorrowedWriter", "Borrower", "isPlain", "lends", "lendsTLS"]

#: The buffers of one borrowed socket, and the bytes of each.
_BUFFERS, _BUFFER_BYTES = 4, 1 << 20
#: Bytes to be woken for, and the bytes of a read after which as many again come soon.
WAKE_BYTES, FAST_BYTES = 256 * 1024, 32 * 1024
#: Bytes that are read where the length of what comes is not known: frames beside data parts.
_SMALL_READ_BYTES = 8 * 1024
#: Seconds between two looks whether something was read.
LOOK_SECONDS = 0.025
#: Buffers kept for the next connection, whichever it is.
_SPARE_BUFFERS = 8


def isPlain(transport: Any) -> bool:
    """
    Tell whether C{transport} writes what it is given to a socket of its own.
    """
    return not ISSLTransport.providedBy(transport) and isinstance(
        getattr(transport, "getHandle", lambda: None)(), socket.socket
    )


def lends(reactor: Any, transport: Any) -> bool:
    """
    Tell whether the socket of C{transport} may be borrowed.
    """
    return IReactorFDSet.providedBy(reactor) and (isPlain(transport) or lendsTLS(transport))


def lendsTLS(transport: Any) -> bool:
    """
    Tell whether the socket below C{transport} may be borrowed together with its TLS.
    """
    return bool(getattr(transport, "lendable", False))


class Borrower(Protocol):
    """
    Owner of a connection that reads from its transport's socket.
    """

    @property
    def wanted(self) -> int:
        """
        Bytes that are due: the rest of the data part.  None behind one: then a little of what
        comes is read, whatever it is, and any byte wakes.
        """

    def borrowed(self, view: memoryview, done: Callable[[], None]) -> None:
        """
        Bytes came.

        @param done: to be called when C{view} is not needed any more.
        """

    def borrowedEnd(self) -> None:
        """
        The peer has ended its side; nothing was consumed of that.
        """

    def failed(self, why: BaseException | None) -> None:
        """
        The connection broke.
        """

    def steer(self) -> None:
        """
        Decide again who reads: a buffer is free.
        """


class _Buffers:
    """
    Buffers that are used again: making one costs as much as filling it.
    """

    def __init__(self) -> None:
        self._spare: list[memoryview] = []

    def take(self) -> memoryview:
        return self._spare.pop() if self._spare else memoryview(bytearray(_BUFFER_BYTES))

    def give(self, buffer: memoryview) -> None:
        if len(self._spare) < _SPARE_BUFFERS:
            self._spare.append(buffer)


_buffers = _Buffers()


class _BorrowedSocket:
    """
    A duplicate of a transport's socket.

    @param borrowed: it, or what looks like it; to be closed.
    """

    def __init__(self, reactor: Any, borrowed: Any) -> None:
        self._reactor = reactor
        self._socket = borrowed

    def fileno(self) -> int:
        number: int = self._socket.fileno()
        return number

    def logPrefix(self) -> str:
        return "connpool"


@implementer(IReadDescriptor)
class BorrowedReader(_BorrowedSocket):
    """
    Reads from the socket of a paused transport, which lends it (L{lends}).

    @param borrower: gets the bytes.
    """

    def __init__(self, reactor: Any, transport: Any, borrower: Borrower) -> None:
        secure = lendsTLS(transport)
        super().__init__(
            reactor, transport.lendReader(reactor) if secure else transport.getHandle().dup()
        )
        self._secure = secure
        self._again: Any = None
        self._borrower = borrower
        self._busy = 0
        self._reading = False
        self._expected = 1
        self._came = False
        self._look: Any = None

    def doRead(self) -> None:
        buffer = _buffers.take()
        wanted = self._borrower.wanted
        # the data parts of native end where a block does: so pieces end there, too
        most = (wanted - 1) % _BUFFER_BYTES + 1 if wanted else _SMALL_READ_BYTES
        try:
            count = self._socket.recv_into(buffer[:most])
        except (BlockingIOError, InterruptedError):
            _buffers.give(buffer)
            return
        except OSError as e:
            _buffers.give(buffer)
            self._borrower.failed(ConnectionLost(os.strerror(e.errno or 0)))
            return
        if not count:
            _buffers.give(buffer)
            self._borrower.borrowedEnd()
            return
        self._busy += 1
        self._came = True
        self._borrower.borrowed(buffer[:count], lambda: self._released(buffer))
        if self._socket.fileno() >= 0:
            fast = count >= min(FAST_BYTES, most)
            self._expect(min(WAKE_BYTES, self._borrower.wanted) or 1 if fast else 1)
            self._lookAhead()

    def _lookAhead(self) -> None:
        """
        Read on the next turn where nothing need arrive for it.
        """
        if self._secure and self._reading and self._socket.ahead and self._again is None:
            self._again = self._reactor.callLater(0, self._readAhead)

    def _readAhead(self) -> None:
        self._again = None
        if self._reading:
            self.doRead()

    def _released(self, buffer: memoryview) -> None:
        _buffers.give(buffer)
        self._busy -= 1
        if self._busy == _BUFFERS - 1 and self._socket.fileno() >= 0:
            self._borrower.steer()

    def _expect(self, count: int) -> None:
        """
        Be woken for C{count} bytes.
        """
        if count != self._expected:
            with contextlib.suppress(OSError):  # not everywhere; then any byte wakes
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._expected = count
        if count > 1 and self._look is None:
            self._look = self._reactor.callLater(LOOK_SECONDS, self._lookAgain)

    def _lookAgain(self) -> None:
        self._look = None
        if self._reading and self._came:
            self._came = False
            self._expect(self._expected)
            return
        self._expect(1)
        if self._reading:
            # the kernel looks again at what lies there
            self._reactor.removeReader(self)
            self._reactor.addReader(self)

    def steer(self, wanted: bool) -> None:
        """
        Read or do not, as the borrower wants and buffers allow.
        """
        reading = wanted and self._busy < _BUFFERS
        if reading != self._reading:
            self._reading = reading
            (self._reactor.addReader if reading else self._reactor.removeReader)(self)
            self._lookAhead()

    def close(self) -> None:
        """
        Make the transport's own descriptor the only one again.
        """
        self.steer(False)
        self._expect(1)
        for call in (self._look, self._again):
            if call is not None:
                call.cancel()
        self._look = self._again = None
        self._socket.close()

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor removed us: it saw an error, or it is ending.
        """
        self._reading = False
        self._borrower.failed(reason.value)


@implementer(IWriteDescriptor)
class BorrowedWriter(_BorrowedSocket):
    """
    Writes bytes to the socket of a transport that lends it and has nothing to write.

    @param failed: told why nothing more can be written; what is being written
        waits for L{close} then.
    """

    def __init__(
        self, reactor: Any, transport: Any, failed: Callable[[BaseException], Any]
    ) -> None:
        super().__init__(
            reactor,
            transport.lendWriter() if lendsTLS(transport) else transport.getHandle().dup(),
        )
        self._failed = failed
        self._left = memoryview(b"")
        self._done: Deferred[None] | None = None

    def write(self, view: memoryview) -> Deferred[None] | None:
        """
        @return: L{None} if all of it is written, or a Deferred that fires when it is.
        """
        self._left = view
        self.doWrite()
        if not self._left:
            return None
        self._done = Deferred()
        self._reactor.addWriter(self)
        return self._done

    def doWrite(self) -> None:
        try:
            while self._left:
                self._left = self._left[self._socket.send(self._left) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self._reactor.removeWriter(self)
            self._failed(ConnectionLost(os.strerror(e.errno or 0)))
            return
        self._finish(None)

    def _finish(self, result: Any) -> None:
        done, self._done = self._done, None
        if done is not None:
            self._reactor.removeWriter(self)
            done.callback(result)

    def close(self, why: BaseException | None = None) -> None:
        """
        Make the transport's own descriptor the only one again.

        @param why: what is being written will not be.
        """
        self._left = memoryview(b"")
        self._finish(Failure(why) if why is not None else None)
        self._socket.close()

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor removed us.
        """
        self._failed(reason.value or ConnectionLost())
