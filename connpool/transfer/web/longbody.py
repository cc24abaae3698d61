"""
A long body of known length, read from the socket of its connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from connpool.transfer.web.flow import Flow
from connpool.transfer.wire.borrowed import BorrowedReader

__all__ = ["LongBody"]


class LongBody:
    """
    The socket of a paused transport, borrowed (L{connpool.transfer.wire.borrowed}) for the
    rest of a body.

    @param flow: the body.
    @param ended: called when the client has ended its side: that is for the transport to read.
    """

    def __init__(self, clock: Any, transport: Any, flow: Flow, ended: Callable[[], None]) -> None:
        self._transport = transport
        self._flow = flow
        self._ended = ended
        self._reader = BorrowedReader(clock, transport, self)

    @property
    def wanted(self) -> int:
        return self._flow.left

    def borrowed(self, view: memoryview, done: Callable[[], None]) -> None:
        self._flow.take(view, done)
        self._flow.steer()

    def borrowedEnd(self) -> None:
        self._ended()

    def failed(self, why: BaseException | None) -> None:
        self._transport.abortConnection()

    def steer(self) -> None:
        """
        Read, or do not, as the body wants.
        """
        self._reader.steer(self._flow.wants)

    def close(self) -> None:
        """
        Give the socket back.
        """
        self._reader.close()
