"""
The removal of sources while others are still being sent.

Theory of operation
===================
A go may have thousands of files, or hours of them.  What the receiver has need not wait for the
last one: once enough of them are answered a thread removes these
(L{connpool.transfer.send.removal}), while the receiver syncs the next ones.  One thread at a
time, and the caller waits for the end of all before it looks at the folder again, since what is
being removed would look like the remains of a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from connpool.transfer.records import Receipt
from connpool.transfer.send.removal import Departure, Sent, doubt
from connpool.transfer.send.source import FileVersion
from connpool.waiting import Waiters

__all__ = ["Departures"]

#: Files, or bytes of them, that are worth a thread.
WORTH_FILES, WORTH_BYTES = 256, 64 << 20


@attrs.define(eq=False)
class Departures:
    """
    The sources of one go that the receiver has.

    @param remove: removes some in a thread; fires with what became of each, by its path.
    """

    _remove: Callable[[Sequence[Sent]], Deferred[dict[str, Departure]]]
    _waiting: list[Sent] = attrs.field(factory=list, init=False)
    _bytes: int = attrs.field(default=0, init=False)
    _running: bool = attrs.field(default=False, init=False)
    _ended: Waiters = attrs.field(factory=Waiters, init=False)
    _failure: Failure | None = attrs.field(default=None, init=False)
    _fates: dict[str, Departure] = attrs.field(factory=dict, init=False)

    def add(self, path: str, version: FileVersion, receipt: Receipt | None) -> None:
        """
        Let a source go, if its receipt is good, now or with the next ones.

        @param version: when it was seen last.
        """
        if receipt is None or doubt(receipt) is not None:
            return
        root = bytes.fromhex(receipt.root or "")
        self._waiting.append(Sent(path, version, receipt.size, receipt.digest or "", root))
        self._bytes += receipt.size
        self._startIfWorth()

    async def all(self) -> dict[str, Departure]:
        """
        Let the rest go, too.

        @return: what became of each whose receipt was good, by its path.
        """
        while self._running or (self._waiting and self._failure is None):
            self._start()
            if self._running:
                await self._ended.wait()
        if self._failure is not None:
            self._failure.raiseException()
        return self._fates

    def _startIfWorth(self) -> None:
        if len(self._waiting) >= WORTH_FILES or self._bytes >= WORTH_BYTES:
            self._start()

    def _start(self) -> None:
        if self._running or self._failure is not None or not self._waiting:
            return
        going, self._waiting, self._bytes = self._waiting, [], 0
        self._running = True
        self._remove(going).addBoth(self._removed)

    def _removed(self, result: Any) -> None:
        self._running = False
        if isinstance(result, Failure):
            self._failure = result
        else:
            self._fates.update(result)
            self._startIfWorth()
        self._ended.wake()
