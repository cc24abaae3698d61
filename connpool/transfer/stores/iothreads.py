"""
The threads of a store, for work that may block.

Theory of operation
===================
Two threads.  What somebody waits for (syncs, slow writes, publishing, removing)
shares the threads of one; reading again what an earlier process wrote has the
other, because it takes minutes and would keep everybody else waiting.

Handing a write to a thread and back costs more than writing into the page
cache, so writes run inline while they are quick.  When the recent ones took
long (the kernel throttles writers, a network file system hangs) the store moves
to its own threads, where it delays nobody, until a run of quick ones shows that
the disk is calm again.  A running mean decides, so that one write of 100 ms
moves the store, and one that another program delayed by some milliseconds does
not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from connpool.waiting import Waiters

__all__ = ["IOThreads", "WriteLatency"]

#: Threads of each lane.
THREADS = 4
REREADING_THREADS = 2
#: Seconds that writes may take inline, on average.
INLINE_SECONDS = 0.005
#: Weight of the latest write in that average.
_WEIGHT = 0.125
#: Quick writes in a row that end the time in threads.
CALM_WRITES = 32

T = TypeVar("T")


class WriteLatency:
    """
    The decision whether writes run on the reactor's thread.

    @ivar inline: whether the next write runs inline.
    """

    def __init__(self) -> None:
        self._quick = 0
        self._mean = 0.0
        self.inline = True

    def took(self, seconds: float, writes: int = 1) -> None:
        """
        A write was done, or so many that took as long each.
        """
        self._mean += _WEIGHT * (seconds - self._mean)
        if self.inline:
            if self._mean >= INLINE_SECONDS:
                self.inline = False
                self._quick = 0
        elif seconds >= INLINE_SECONDS:
            self._quick = 0
        else:
            self._quick += writes
            if self._quick >= CALM_WRITES:
                self.inline = True
                self._mean = 0.0


class IOThreads:
    """
    The threads, and the latency of the writes that run in them or inline.

    @param reactor: whose thread results come back to.
    @param threads: for tests: a thread pool that is both threads.
    """

    def __init__(self, reactor: Any, threads: Any = None) -> None:
        self._reactor = reactor
        self._given = threads
        #: name to pool and the trigger that stops it
        self._own: dict[str, tuple[ThreadPool, Any]] = {}
        self._working = 0
        self._idle = Waiters()
        self.latency = WriteLatency()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """
        Run C{function} in a thread.
        """
        return self._run("store", THREADS, function, *arguments)

    def reread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """
        Run a C{function} that reads for long.
        """
        return self._run("store-rereading", REREADING_THREADS, function, *arguments)

    def during(self, d: Deferred[T]) -> Deferred[T]:
        """
        Count C{d} as work until it fires.
        """
        self._working += 1
        return d.addBoth(self._worked)

    def quiet(self) -> Deferred[None]:
        """
        Return a Deferred that fires when no work is left.
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
