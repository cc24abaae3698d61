"""
The threads of a store, for work that may block.

Theory of operation
===================
Two lanes.  What somebody waits for (syncs, slow writes, publishing, removing)
shares the threads of one; reading again what an earlier process wrote has the
other, because it takes minutes and would keep everybody else waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from connpool.waiting import Waiters

__all__ = ["Lanes"]

#: Threads of each lane.
THREADS = 4
REREADING = 2

T = TypeVar("T")


class Lanes:
    """
    @param reactor: whose thread results come back to.
    @param threads: for tests: a thread pool that is both lanes.
    """

    def __init__(self, reactor: Any, threads: Any = None) -> None:
        self._reactor = reactor
        self._given = threads
        #: name to pool and the trigger that stops it
        self._own: dict[str, tuple[ThreadPool, Any]] = {}
        self._working = 0
        self._idle = Waiters()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """
        Run C{function} in a thread.
        """
        return self._run("store", THREADS, function, *arguments)

    def reread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """
        Run a C{function} that reads for long.
        """
        return self._run("store-rereading", REREADING, function, *arguments)

    def during(self, d: Deferred[T]) -> Deferred[T]:
        """
        Count C{d} as work until it fires.
        """
        self._working += 1
        return d.addBoth(self._worked)

    def quiet(self) -> Deferred[None]:
        """
        @return: fires when no work is left.
        """
        if not self._working:
            return succeed(None)
        return self._idle.wait()

    def stop(self) -> None:
        """
        End the threads; they are quiet.
        """
        while self._own:
            _, (pool, trigger) = self._own.popitem()
            self._reactor.removeSystemEventTrigger(trigger)
            pool.stop()

    def _run(self, name: str, most: int, *call: Any) -> Deferred[Any]:
        pool = self._given
        if pool is None:
            if name not in self._own:
                made = ThreadPool(0, most, name)
                made.start()
                trigger = self._reactor.addSystemEventTrigger("after", "shutdown", made.stop)
                self._own[name] = made, trigger
            pool = self._own[name][0]
        return self.during(deferToThreadPool(self._reactor, pool, *call))

    def _worked(self, result: T) -> T:
        self._working -= 1
        if not self._working:
            self._idle.wake()
        return result
