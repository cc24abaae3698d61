"""
A run that comes compressed: it is unpacked as it comes.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred

from connpool.errors import ProtocolError
from connpool.transfer.records import Offer
from connpool.transfer.wire.content import Packed
from connpool.transfer.wire.packed import Unpacker

__all__ = ["Unpacking", "unpacking"]


class _Stream(Protocol):
    """
    The stream that the content belongs to.
    """

    offer: Offer

    @property
    def receiving(self) -> bool:
        """
        Tell whether it takes content.
        """

    def write(self, lane: Any, offset: int, view: memoryview) -> Deferred[None] | None:
        """
        Take bytes of a run.
        """

    def saved(self, count: int) -> None:
        """
        Count bytes that did not travel.
        """


class _Link(Protocol):
    """
    The connection that it comes by.
    """

    def waitFor(self, d: Deferred[Any]) -> None:
        """
        Do not read until C{d} has fired.
        """


class Unpacking:
    """
    Stands in the place of a stream while one C{PACKED} comes.

    @param length: bytes of the run.
    """

    def __init__(self, stream: _Stream, link: _Link, message: Packed, length: int) -> None:
        self._stream = stream
        self._link = link
        self._at = message.offset
        self._length = length
        self._size = message.size
        self._unpacker = Unpacker(message.size)

    def write(self, lane: Any, offset: int, view: memoryview) -> None:
        """
        Take bytes of the run.

        @param offset: in the run.
        """
        done = offset + len(view) == self._length
        if self._stream.receiving:
            data = self._unpacker.feed(view)
            if done:
                self._unpacker.finish()
                self._stream.saved(self._size - self._length)
            if data:
                wait = self._stream.write(lane, self._at, memoryview(data))
                self._at += len(data)
                if wait is not None:
                    # a few bytes may be a megabyte: one at a time
                    self._link.waitFor(wait)
        else:
            self._stream.write(lane, self._at, view[:0])  # it may be too early


def unpacking(
    stream: _Stream | None, link: _Link, message: Packed, length: int
) -> Unpacking | None:
    """
    Take the header of a C{PACKED}.

    @param length: bytes of its run.
    @return: what its run goes to; L{None} if the stream has ended.
    @raise ProtocolError: it is not smaller than what comes out, or that is more than a block.
    """
    if not 0 < length < message.size:
        raise ProtocolError(f"PACKED has {length} bytes for {message.size}")
    if stream is None:
        return None
    blockSize = stream.offer.blockSize
    if message.offset % blockSize + message.size > blockSize:
        raise ProtocolError(
            f"PACKED has {message.size} bytes from {message.offset} on: they are not of one block"
        )
    return Unpacking(stream, link, message, length)
