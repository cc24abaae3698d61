"""
One answer for many small files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from connpool.transfer.records import DirectoryMade, Receipt
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Ack, encode

__all__ = ["Acks"]

#: Runs of streams in one ACK.
_MOST = 4096


class Acks:
    """
    The streams that are stored as they were asked for, collected until the end of the turn.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param send: writes a frame.
    """

    def __init__(self, clock: Any, send: Callable[[bytes], None]) -> None:
        self._clock = clock
        self._send = send
        self._streams: list[list[int]] = []
        self._receipt: Receipt | DirectoryMade | None = None
        self._call: Any = None

    def add(self, number: int, receipt: Receipt | DirectoryMade) -> None:
        """
        Stream C{number} is stored.
        """
        before = self._receipt
        if before is not None and (before.durability, before.filesystem) != (
            receipt.durability,
            receipt.filesystem,
        ):
            self.flush()
        self._receipt = receipt
        if self._streams and sum(self._streams[-1]) == number:
            self._streams[-1][1] += 1
        else:
            self._streams.append([number, 1])
            if len(self._streams) >= _MOST:
                self.flush()
        if self._call is None:
            self._call = self._clock.callLater(0, self.flush)

    def flush(self) -> None:
        """
        Say it.
        """
        self.stop()
        receipt = self._receipt
        if self._streams and receipt is not None:
            ack = Ack(
                tuple((first, count) for first, count in self._streams),
                receipt.durability,  # type: ignore[arg-type]
                receipt.filesystem,
                int(receipt.finished * 1000),
            )
            self._streams = []
            self._send(encode(Type.ACK, 0, ack))

    def stop(self) -> None:
        """
        Wait for nothing.
        """
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()
