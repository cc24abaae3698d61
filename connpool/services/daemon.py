"""
The life of a process that runs one of our plugins.

A program that makes a service with our C{makeService} functions keeps its process
to itself.  Under C{twistd} and C{twist}, L{asDaemon} adds what a daemon owes its
operator: descriptors up to the hard limit, no running as root by accident,
a collector of garbage that looks less often, word to systemd, SIGHUP reloads,
SIGHUP and SIGUSR1 reopen the log files, and a second SIGTERM or Ctrl-C ends a drain.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from twisted.application.service import IServiceCollection, MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from connpool.interfaces import IReloadable
from connpool.services import earlysignals
from connpool.services.limits import raiseDescriptors
from connpool.services.listening import ListeningService
from connpool.services.logs import reopenFiles
from connpool.services.notify import Notifier
from connpool.services.options import ServiceOptions
from connpool.services.startfailure import failStart

__all__ = [
    "ALLOW_ROOT",
    "COLLECT_OBJECTS",
    "HURRY_SECONDS",
    "Daemon",
    "asDaemon",
    "parts",
    "reload",
]

#: The environment variable that does what C{--allow-root} does.
ALLOW_ROOT = "CONNPOOL_ALLOW_ROOT"

#: New objects before Python's collector looks for garbage, where it has 700 or 2,000: a batch
#: of small files makes thousands that go with it, and walking them took a tenth of its time.
COLLECT_OBJECTS = 10_000

#: Seconds that services get to end after a second signal.
HURRY_SECONDS = 5.0


def asDaemon(make: Callable[[Any, Any], Any], options: ServiceOptions, reactor: Any = None) -> Any:
    """
    @param make: a plugin's C{makeService}.
    @param options: with C{twistd}'s or C{twist}'s as their parent, or none:
        then the process is another's.
    """
    service = make(options, reactor)
    if options.parent is None:
        return service
    if reactor is None:
        from twisted.internet import reactor
    raiseDescriptors()
    if 0 < gc.get_threshold()[0] < COLLECT_OBJECTS:  # 0: somebody turned it off
        gc.set_threshold(COLLECT_OBJECTS)
    if not options.parent.get("logger"):
        # twistd's own log file brings a handler if there is none
        earlysignals.handOver(signal.SIGUSR1)
    allowRoot = bool(options["allow-root"]) or os.environ.get(ALLOW_ROOT) == "1"
    return Daemon(reactor, service, options.pluginName, allowRoot=allowRoot)


def parts(service: Any) -> Iterator[Any]:
    """
    C{service} and everything in it.
    """
    yield service
    if IServiceCollection.providedBy(service):
        for child in service:
            yield from parts(child)


def reload(service: Any) -> Iterator[str]:
    """
    Reload C{service} and everything in it.

    @return: one line for each part that keeps what it had.
    """
    for part in parts(service):
        if IReloadable.providedBy(part):
            try:
                part.reload()
            except Exception as e:
                yield f"{getattr(part, 'name', None) or type(part).__name__}: {e}"


class Daemon(MultiService):
    """
    The root of a process.

    @param allowRoot: whether it may run as root.
    """

    _log = Logger()

    def __init__(self, reactor: Any, service: Any, name: str, *, allowRoot: bool) -> None:
        super().__init__()
        self._reactor = reactor
        self._label = name
        self._allowRoot = allowRoot
        self._notifier = Notifier()
        self._alive: LoopingCall | None = None
        self._signals: dict[int, Any] = {}
        self._end: Deferred[None] | None = None
        self._late: Any = None
        service.setServiceParent(self)

    def startService(self) -> None:
        # twistd has changed the user by now, if it was told to
        if os.geteuid() == 0 and not self._allowRoot:
            failStart(
                f"{self._label}: runs as root; give it a user with twistd --uid USER or with "
                "User= in its unit, or say --allow-root (CONNPOOL_ALLOW_ROOT=1)"
            )
        # first: logrotate's signal may come while a store is being read
        self._on(signal.SIGHUP, self._reload)
        self._on(signal.SIGUSR1, self._rotated)
        try:
            super().startService()
        except BaseException:
            self._restoreSignals()
            raise
        self._notifier = Notifier.take(os.environ)
        # connections can only be served from then on
        self._reactor.callWhenRunning(self._ready)
        for number, call in ((signal.SIGHUP, self._reload), (signal.SIGUSR1, self._rotated)):
            if earlysignals.noted(number):
                self._reactor.callWhenRunning(call)

    def _ready(self) -> None:
        if not self.running:
            return
        self._notifier.tell("READY=1", f"STATUS={self._label} serves")
        if self._notifier.watchdogInterval:
            self._alive = LoopingCall(self._notifier.tell, "WATCHDOG=1")
            self._alive.clock = self._reactor
            self._alive.start(self._notifier.watchdogInterval)

    def _on(self, number: int, call: Callable[[], None]) -> None:
        self._signals[number] = signal.signal(number, lambda *_: self._reactor.callFromThread(call))

    def _rotated(self) -> None:
        # twistd rotates its own file, unless somebody has renamed it
        twistds = self._signals.get(signal.SIGUSR1)
        if callable(twistds) and twistds is not earlysignals.noteOne:
            twistds(signal.SIGUSR1, None)
        # after the rotation, which twistd leaves to the reactor's next turn
        self._reactor.callFromThread(reopenFiles)

    def _reload(self) -> None:
        reopenFiles()
        if not self.running:
            return
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notifier.tell("RELOADING=1", f"MONOTONIC_USEC={microseconds}")
        mistakes = list(reload(self))
        for line in mistakes:
            self._log.error("not reloaded, what was there stays in use: {line}", line=line)
        if not mistakes:
            self._log.info("reloaded")
        status = f"not reloaded: {mistakes[0]}" if mistakes else f"{self._label} serves"
        self._notifier.tell("READY=1", f"STATUS={status}")

    def stopService(self) -> Deferred[None]:
        self._notifier.tell("STOPPING=1", f"STATUS={self._label} lets what runs end")
        if self._alive is not None:
            self._alive.stop()
            self._alive = None
        # Twisted's own can stop a reactor only once (it logs a traceback)
        self._on(signal.SIGINT, self._hurry)
        self._on(signal.SIGTERM, self._hurry)
        self._end = Deferred()
        maybeDeferred(super().stopService).addBoth(self._ended)
        return self._end

    def _hurry(self) -> None:
        if self._late is not None:
            return
        self._log.warn("told to stop once more: what still runs ends now")
        # another's service may not end at all
        self._late = self._reactor.callLater(HURRY_SECONDS, self._ended, None)
        for part in parts(self):
            if isinstance(part, ListeningService):
                part.gate.abort()

    def _ended(self, result: Any) -> None:
        end, self._end = self._end, None
        if end is None:
            return
        if self._late is not None and self._late.active():
            self._late.cancel()
        self._late = None
        self._restoreSignals()
        end.callback(None)

    def _restoreSignals(self) -> None:
        while self._signals:
            signal.signal(*self._signals.popitem())
