"""
The parts of a store that its partials need, and what they do with them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock

from connpool.errors import StoreError, TransferError
from connpool.transfer.digests import digestNamed
from connpool.transfer.iothreads import IOThreads
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.s3.calls import Call, Piece
from connpool.transfer.stores.s3.layout import Layout
from connpool.transfer.stores.s3.lifecycle import Lifecycle
from connpool.transfer.stores.s3.naming import Names
from connpool.transfer.stores.s3.spool import Spool
from connpool.transfer.stores.s3.uploadlog import Tail
from connpool.waiting import Waiters

__all__ = [
    "Locked",
    "Parts",
    "Tasks",
    "contentOf",
    "failing",
    "hashed",
    "intact",
    "one",
    "storeError",
]

_CHUNK_BYTES = 1 << 20
_A = TypeVar("_A")
_R = TypeVar("_R")


class Parts(Protocol):
    """
    The part of a store that its partials need.
    """

    layout: Layout
    names: Names
    lifecycle: Lifecycle
    spool: Spool
    threads: IOThreads
    tailSeconds: float

    def run(self, core: Coroutine[Call[Any], Any, _R]) -> Deferred[_R]:
        """
        Run a core.
        """

    def now(self) -> float:
        """
        Return the wall-clock time.
        """

    def receipt(self, offer: Offer, size: int, root: bytes | None) -> Receipt:
        """
        Make the receipt of a file.
        """

    def left(self, partial: Any) -> None:
        """
        Forget a partial that has ended.
        """

    def afterwards(self, core: Coroutine[Call[Any], Any, Any]) -> None:
        """
        Run a core for which nobody waits.
        """


def contentOf(offer: Offer, root: bytes | None) -> str | None:
    """
    Return the text that is the same for the same content; L{None} where there is no root.
    """
    return None if root is None else f"{offer.digest}:{root.hex()}"


def hashed(body: bytes | Piece) -> str:
    hasher, at = hashlib.sha256(), 0
    if isinstance(body, bytes):
        hasher.update(body)
    else:
        while at < body.length:
            data = os.pread(body.fd, min(_CHUNK_BYTES, body.length - at), body.start + at)
            hasher.update(data)
            at += len(data) or body.length
    return f"bytes:{hasher.hexdigest()}"


def intact(tail: Tail, body: bytes, algorithm: str) -> Iterator[tuple[int, bytes, bytes]]:
    """
    Yield the pieces of a tail that are what they were: the beginning, the bytes and the digest
    of each.
    """
    digest = digestNamed(algorithm)
    for start, end, expected in tail.spans:
        data, body = body[: end - start], body[end - start :]
        if len(data) == end - start and digest.of(data) == expected:
            yield start, data, expected


def storeError(why: BaseException, offer: Offer) -> TransferError:
    """
    Return what the sender is told.
    """
    if isinstance(why, TransferError):
        return why
    return StoreError(f'"{offer.name}": the store failed: {type(why).__name__}: {why}')


async def one(call: Call[_A]) -> _A:
    return await call


async def failing(why: TransferError) -> Any:
    raise why


class Tasks:
    """
    The number of things under way.
    """

    def __init__(self) -> None:
        self._count = 0
        self._idle = Waiters()

    def __bool__(self) -> bool:
        return self._count > 0

    def begin(self) -> None:
        """
        Count one more.
        """
        self._count += 1

    def end(self) -> None:
        """
        Count one less.
        """
        self._count -= 1
        if not self._count:
            self._idle.wake()

    async def idle(self) -> None:
        """
        Wait until there are none.
        """
        while self._count:
            await self._idle.wait()


class Locked:
    """
    C{async with} for a lock.
    """

    def __init__(self, lock: DeferredLock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *error: object) -> None:
        self._lock.release()
