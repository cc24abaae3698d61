"""
A receiver that is read over as many connections as it takes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.task import deferLater

from connpool.errors import TransferError
from connpool.transfer.fetch.remote import Remote
from connpool.transfer.wire.readmessages import ListingMessage

__all__ = ["LastingRemote"]

#: Tries in a row that bring nothing, and seconds before another one.
_ATTEMPTS, _FIRST_SECONDS, _LONGEST_SECONDS = 8, 0.5, 15.0

_T = TypeVar("_T")


class LastingRemote:
    """
    A L{Remote} that is connected to again when its connection is lost.

    @param connect: makes the connection.
    @param waits: called with the name that is asked for, why it did not come, and the seconds
        until the next try.
    @ivar remote: the receiver, over the newest connection.
    """

    def __init__(
        self,
        clock: Any,
        connect: Callable[[], Awaitable[Remote]],
        waits: Callable[[str, TransferError, float], object],
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._waits = waits
        self._gaveUp: TransferError | None = None
        self.remote: Any = None

    @property
    def lost(self) -> bool:
        """
        Tell whether the connection was given up.
        """
        return self._gaveUp is not None

    async def open(self) -> None:
        """
        Connect for the first time, which is tried once.

        @raise TransferError: why that is not possible.
        """
        self.remote = await self._connect()

    async def ask(
        self,
        name: str,
        question: Callable[[Remote], Awaitable[_T]],
        far: Callable[[], int] = lambda: 0,
        *,
        patient: bool = True,
    ) -> _T:
        """
        Ask until there is an answer.

        @param name: that it is about.
        @param far: tells how much of the answer has come, over all connections.
        @param patient: whether a receiver that says that it cannot answer now is asked again,
            and not only one whose connection was lost.
        @raise TransferError: why there is none; once the connection was given up, at once.
        """
        failures, best = 0, -1
        while True:
            if self._gaveUp is not None:
                raise self._gaveUp
            connected = False
            try:
                if self.remote.lost:
                    self.remote = await self._connect()
                connected = True
                return await question(self.remote)
            except TransferError as e:
                failures = 1 if far() > best else failures + 1
                best = max(best, far())
                lost = not connected or self.remote.lost
                if not e.retryable or failures >= _ATTEMPTS or not (lost or patient):
                    if lost:
                        self._gaveUp = e
                    raise
                wait = min(_FIRST_SECONDS * 2 ** (failures - 1), _LONGEST_SECONDS)
                self._waits(name, e, wait)
            await deferLater(self._clock, wait, lambda: None)

    async def page(self, directory: str, after: bytes) -> ListingMessage:
        """
        List names of a directory, empty for the top, that come after C{after}.

        @raise TransferError: why not; whoever lists is told at once that a receiver cannot now.
        """
        return await self.ask(
            directory or "/", lambda remote: remote.page(directory, after), patient=False
        )
