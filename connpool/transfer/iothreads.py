"""
Threads for work that may block, and when work is worth one.

Theory of operation
===================
Handing a piece of work to a thread and back costs more than reading from the page
cache or writing into it, and a digest is cheapest while the bytes are in the
processor's cache.  So both are done on the reactor's thread while they are quick.  When
the recent ones took long (a disk that has to be read, a kernel that throttles writers, a
network file system that hangs) they move to threads, where they delay nobody, until a
row of quick ones shows that the medium is calm again.  A running mean decides
(L{Latency}), so that one write of 100 ms moves them, and one that another program
delayed by some milliseconds does not.

A store has two thread pools of its own (L{IOThreads}).  What somebody waits for (syncs,
slow writes, publishing, removing) shares the threads of one; reading again what an
earlier process wrote has the other, because it takes minutes and would keep everybody
else waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import threads
from twisted.internet.defer import Deferred
from twisted.python.threadpool import ThreadPool

from connpool.waiting import Tasks

__all__ = ["IOThreads", "InThread", "Latency", "inThread"]

#: Threads of each pool of a store.
THREADS = 4
REREADING_THREADS = 2
#: Seconds that writes may take inline, on average.
INLINE_SECONDS = 0.005
#: Weight of the latest call in that average.
_WEIGHT = 0.125
#: Quick writes in a row that end the time in threads.
CALM_WRITES = 32

InThread = Callable[[Callable[[], Any]], "Deferred[Any]"]


def inThread(reactor: Any) -> InThread:
    """
    Run functions in the reactor's thread pool.
    """

    def run(function: Callable[[], Any]) -> Deferred[Any]:
        return threads.deferToThreadPool(reactor, reactor.getThreadPool(), function)

    return run


T = TypeVar("T")


class Latency:
    """
    The decision whether calls that may block run on the reactor's thread.

    @param most: seconds that they may take there, on average.
    @param calm: quick ones in a row that end the time in threads.
    @ivar inline: whether the next one runs inline.
    """

    def __init__(
        self, most: float = INLINE_SECONDS, calm: int = CALM_WRITES, inline: bool = True
    ) -> None:
        self._most = most
        self._calm = calm
        self._quick = 0
        self._mean = 0.0
        self.inline = inline

    def took(self, seconds: float, calls: int = 1) -> None:
        """
        A call was done, or so many that took as long each.
        """
        self._mean += _WEIGHT * (seconds - self._mean)
        if self.inline:
            if self._mean >= self._most:
                self.inline = False
                self._quick = 0
        elif seconds >= self._most:
            self._quick = 0
        else:
            self._quick += calls
            if self._quick >= self._calm:
                self.inline = True
                self._mean = 0.0


class IOThreads:
    """
    The threads of a store, and the latency of the writes that run in them or inline.

    @param reactor: whose thread results come back to.
    @param given: for tests: a thread pool that is both pools.
    """

    def __init__(self, reactor: Any, given: Any = None) -> None:
        self._reactor = reactor
        self._given = given
        #: name to pool and the trigger that stops it
        self._own: dict[str, tuple[ThreadPool, Any]] = {}
        self._tasks = Tasks()
        self.latency = Latency()

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
        return self._tasks.during(d)

    def quiet(self) -> Deferred[None]:
        """
        Return a Deferred that fires when no work is left.
        """
        return Deferred.fromCoroutine(self._tasks.idle())

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
        return self.during(threads.deferToThreadPool(self._reactor, pool, *call))
