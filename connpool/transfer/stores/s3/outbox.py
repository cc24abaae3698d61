"""
The receipts that a program is still to be told about.

Before a file can be seen under its name a note of it is put into the outbox, so no file is stored
without one; it is removed when the program was told.  A receiver tells the program of its own
files at once.  What lies there for longer is somebody's who died: whoever finds it takes it
over (by C{If-Match}, so it is young again for everybody else), if the file is there.

Known limit: of a file that a consumer took away before its receiver, which died then, had told
the program, nobody tells it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import StoreError, TransferError
from connpool.logonce import LogOnce
from connpool.transfer.records import Receipt
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.calls import Call, Done, Get, Head, Match, Put
from connpool.transfer.stores.s3.claims import Claim, tokenOf
from connpool.transfer.stores.s3.layout import Layout, decoded

__all__ = ["Outbox"]

#: Seconds after which a note is taken over, by the engine's clock.
TAKEN_OVER_SECONDS = 120.0
#: Seconds after which a note is removed whose file is not there.
FORGOTTEN_SECONDS = 86_400.0


class Outbox:
    """
    The receipts of one store that a program is still to be told about.

    @param run: runs a core.
    @param more: called when there is something to take.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        layout: Layout,
        run: Callable[[Coroutine[Call[Any], Any, None]], Deferred[None]],
        more: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._layout = layout
        self._notes = f"{layout.private}outbox/"
        self._run = run
        self._more = more
        self._ready: deque[tuple[str, Receipt]] = deque()
        #: tokens that were put into this process' queue and not told yet
        self._own: set[str] = set()
        self._next: Any = None
        self._closed = False
        self._unread = LogOnce(lambda why: self._log.warn("{why}", why=why))
        self._look()

    async def note(self, claim: Claim) -> None:
        """
        Put the note of a file that is about to be stored; a core.
        """
        await Put(self._notes + claim.token, msgspec.json.encode(claim))

    def stored(self, claim: Claim) -> None:
        if claim.receipt is not None and not self._closed:
            self._own.add(claim.token)
            self._ready.append((claim.token, claim.receipt))
            self._more()

    def take(self) -> tuple[str, Receipt] | None:
        return self._ready.popleft() if self._ready else None

    def told(self, position: str) -> None:
        self._own.discard(position)
        self._run(self._remove(position)).addErrback(lambda _: None)  # it comes again

    def close(self) -> None:
        self._closed = True
        if self._next is not None:
            self._next.cancel()
            self._next = None

    async def _remove(self, token: str) -> None:
        await calls.Delete(self._notes + token)

    def _look(self) -> None:
        self._next = None
        self._run(self.takeOver()).addBoth(self._looked)

    def _looked(self, result: Failure | None) -> None:
        if not self._closed:
            wait = TAKEN_OVER_SECONDS * (0.25 + random.random() / 2)  # noqa: S311 - takes turns
            self._next = self._reactor.callLater(wait, self._look)
        if isinstance(result, Failure):
            result.trap(TransferError)

    async def takeOver(self) -> None:
        """
        Take the notes of receivers that died; a core.
        """
        async for page in calls.pages(self._notes):
            for entry in page.entries:
                token = entry.key.removeprefix(self._notes)
                age = page.date - entry.modified
                if age >= TAKEN_OVER_SECONDS and token not in self._own:
                    try:
                        await self._takeNote(entry.key, token, age)
                    except StoreError as why:  # one that cannot be read
                        self._unread.met(str(why))

    async def _takeNote(self, key: str, token: str, age: float) -> None:
        found = await Get(key)
        if not found:
            return
        claim = decoded(found, Claim)
        there = await Head(self._layout.file(claim.path))
        if tokenOf(there) != token:
            if age >= FORGOTTEN_SECONDS:
                await calls.Delete(key)
            return
        # the same for whoever reads it, and young again; of two that do so one succeeds
        mark = "".join(random.choices(" \n", k=64)).encode()  # noqa: S311 - no secret
        if isinstance(await Put(key, msgspec.json.encode(claim) + mark, Match(found.etag)), Done):
            self.stored(claim)
