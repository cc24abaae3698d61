"""
Hashing beside the reactor.

A L{HashQueue} does its jobs in order, in a thread.  While one batch is being
done the next one collects, so a fast connection costs few trips to the thread
and a slow one has no delay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import threads
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

__all__ = ["HashQueue", "inThread", "inline"]

#: Bytes of a job that is done where it is, if nothing is waiting: the trip to a
#: thread takes longer.
_INLINE_BYTES = 16 * 1024

InThread = Callable[[Callable[[], Any]], "Deferred[Any]"]


def inThread(reactor: Any) -> InThread:
    """
    Run functions in the reactor's thread pool.
    """

    def run(function: Callable[[], Any]) -> Deferred[Any]:
        return threads.deferToThreadPool(reactor, reactor.getThreadPool(), function)

    return run


def inline(function: Callable[[], Any]) -> Deferred[Any]:
    """
    Run functions at once: for tests without threads.
    """
    d: Deferred[Any] = Deferred()
    try:
        d.callback(function())
    except Exception:
        d.errback(Failure())
    return d


class HashQueue:
    """
    Hashes for one connection, in the order of coming.

    @param run: runs a function elsewhere.
    """

    _log = Logger()

    def __init__(self, run: InThread) -> None:
        self._run = run
        self._waiting: list[tuple[Any, memoryview, Callable[[], None]]] = []
        self._running = False

    def update(self, hasher: Any, data: memoryview, done: Callable[[], None]) -> None:
        """
        Feed C{data} to C{hasher}, after all data that came before.

        @param done: called in the reactor when C{data} is not needed any more.
        """
        if not self._running and len(data) <= _INLINE_BYTES:
            hasher.update(data)
            done()
            return
        self._waiting.append((hasher, data, done))
        if not self._running:
            self._next()

    def _next(self) -> None:
        batch, self._waiting = self._waiting, []
        self._running = bool(batch)
        if not batch:
            return

        def work() -> None:
            for hasher, data, _ in batch:
                hasher.update(data)

        def finished(result: Any) -> None:
            if isinstance(result, Failure):
                # a digest that was not updated will not match: sent again
                self._log.failure("hashing failed", failure=result)
            for _, _, done in batch:
                done()
            self._next()

        self._run(work).addBoth(finished)
