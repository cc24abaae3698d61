"""
The socket below a TLS transport, as if it carried the plain bytes.

Theory of operation
===================
A run of bytes whose length is known goes past a plain transport, from its socket to a buffer
that is used again and again or the other way round.  The two ends here let it go past TLS
likewise: they read or write the socket below, and have the connection of OpenSSL, which stays
the transport's, decrypt or encrypt.  While one is lent the transport stands still in that
direction; the other direction goes on through it.

Whatever OpenSSL still holds when an end is given back goes through the transport: what was
read behind the run, a record of which only a part was sent, the error that ended it.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, Protocol

from OpenSSL.SSL import Connection, Error, WantReadError

__all__ = ["RECORD_BYTES", "Lender", "LentReader", "LentWriter"]

#: Bytes that one record carries at most (RFC 8446, section 5.1), and its length on the wire.
RECORD_BYTES = 1 << 14
_RECORD_WIRE_BYTES = RECORD_BYTES + 256 + 5
#: Bytes that are read from the socket, or encrypted, at once: they stay in the processor's cache.
_PIECE_BYTES = 16 * RECORD_BYTES
#: All that encrypting a piece makes, except for what came before it.
_PIECE_WIRE_BYTES = 17 * RECORD_BYTES

#: Encrypted bytes between the socket and OpenSSL, which copies them at once: one is enough.
_wire = memoryview(bytearray(_PIECE_BYTES))


class Lender(Protocol):
    """
    The transport.
    """

    def answer(self) -> None:
        """
        Send what OpenSSL has to say by itself.
        """

    def readerBack(self, reactor: Any, end: Error | None) -> None:
        """
        Read again.

        @param end: the reason why OpenSSL reads no more, or L{None}.
        """

    def writerBack(self, wire: memoryview) -> None:
        """
        Write again.

        @param wire: encrypted bytes that go first.
        """


class _Lent:
    """
    A duplicate of the socket below.
    """

    def __init__(self, lender: Lender, connection: Connection, handle: socket.socket) -> None:
        self._lender = lender
        self._connection = connection
        self._socket = handle.dup()

    def fileno(self) -> int:
        return self._socket.fileno()


class LentReader(_Lent):
    """
    The part of a socket that a reader uses.

    @ivar ahead: there may be more to read without anything arriving.
    """

    def __init__(
        self, reactor: Any, lender: Lender, connection: Connection, handle: socket.socket
    ) -> None:
        super().__init__(lender, connection, handle)
        self._reactor = reactor
        self._end: Error | None = None
        self.ahead = True

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """
        Set C{SO_RCVLOWAT}: less than asked for, since a part of a record may be here already.
        """
        self._socket.setsockopt(level, option, max(1, value - _RECORD_WIRE_BYTES))

    def recv_into(self, view: memoryview) -> int:
        """
        Read as much as there is, decrypting each L{_PIECE_BYTES} while they are in the cache.

        @return: 0 at the end, whatever the reason: the transport tells it.
        @raise OSError: as a socket does.
        """
        count = self._decrypt(view)
        while count < len(view) and self._end is None:
            try:
                wire = self._socket.recv_into(_wire)
            except (BlockingIOError, InterruptedError):
                if count:
                    break
                raise
            if not wire:
                return count
            self._connection.bio_write(_wire[:wire])
            self.ahead = True
            count += self._decrypt(view[count:])
            self._lender.answer()
            if wire < len(_wire):
                break  # that was all
        if not count and self._end is None:
            # a part of a record, or one that is not for us
            raise BlockingIOError(errno.EAGAIN, "no whole record")
        return count

    def _decrypt(self, view: memoryview) -> int:
        at, receive = 0, self._connection.recv_into
        try:
            while self.ahead and at < len(view):
                at += receive(view[at : at + RECORD_BYTES])
        except WantReadError:
            self.ahead = False
        except Error as why:
            self.ahead = False
            self._end = why
        return at

    def close(self) -> None:
        self._socket.close()
        self._lender.readerBack(self._reactor, self._end)


class LentWriter(_Lent):
    """
    The part of a socket that a writer uses.
    """

    def __init__(self, lender: Lender, connection: Connection, handle: socket.socket) -> None:
        super().__init__(lender, connection, handle)
        self._left = memoryview(b"")
        self._taken = 0

    def send(self, view: memoryview) -> int:
        """
        @return: how many bytes are with the kernel, encrypted.
        @raise BlockingIOError: some are not; to be called again with the same bytes.
        @raise OSError: as a socket does.
        """
        if not self._left:
            self._taken = self._encrypt(view[:_PIECE_BYTES])
        while self._left:
            self._left = self._left[self._socket.send(self._left) :]
        return self._taken

    def _encrypt(self, piece: memoryview) -> int:
        at, send = 0, self._connection.send
        try:
            while at < len(piece):
                at += send(piece[at : at + RECORD_BYTES])
        except Error:
            raise ConnectionAbortedError(errno.ECONNABORTED, "TLS has ended") from None
        parts = [self._connection.bio_read(_PIECE_WIRE_BYTES)]
        while len(parts[-1]) == _PIECE_WIRE_BYTES:
            try:
                parts.append(self._connection.bio_read(_PIECE_WIRE_BYTES))
            except WantReadError:
                break
        self._left = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        return at

    def close(self) -> None:
        self._socket.close()
        self._lender.writerBack(self._left)
