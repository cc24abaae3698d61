"""
Server-sent events: the same look, once a second, to everybody who watches.

Nothing runs while nobody watches.  A viewer that does not read misses looks,
it never queues them; one that reads nothing for long is let go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

__all__ = ["LOOK_INTERVAL_SECONDS", "MOST_MISSED_LOOKS", "MOST_VIEWERS", "Feed"]

LOOK_INTERVAL_SECONDS = 1.0
#: At once.
MOST_VIEWERS = 20
#: Looks in a row that a viewer may miss before it is let go.
MOST_MISSED_LOOKS = 60


@implementer(IPushProducer)
class _Viewer:
    """
    One open C{/events}.
    """

    def __init__(self, request: Any) -> None:
        self.request = request
        self.paused = False
        self.missed = 0
        self.has: dict[str, bytes] = {}

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self.missed = 0

    def stopProducing(self) -> None:
        self.paused = True

    def send(self, event: str, data: bytes) -> None:
        # JSON has no line break outside of its escapes, so this is one line
        self.request.write(b"event: %s\ndata: %s\n\n" % (event.encode(), data))


class Feed:
    """
    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param lasting: event to the JSON of what rarely changes; sent first, and again
        when it has changed.
    @param current: gives the JSON of event C{look}.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        lasting: Mapping[str, Callable[[], bytes]],
        current: Callable[[], bytes],
    ) -> None:
        self._lasting = lasting
        self._current = current
        self._viewers: set[_Viewer] = set()
        self._looping = LoopingCall(self._look)
        self._looping.clock = clock

    @property
    def full(self) -> bool:
        """
        Tell whether another viewer is one too many.
        """
        return len(self._viewers) >= MOST_VIEWERS

    def join(self, request: Any) -> None:
        """
        Answer C{request} with events until its connection ends.
        """
        viewer = _Viewer(request)
        self._viewers.add(viewer)
        request.notifyFinish().addBoth(lambda _: self._leave(viewer))
        request.registerProducer(viewer, True)
        # a reader that lost us comes back after so many milliseconds
        request.write(b"retry: 2000\n\n")
        if self._looping.running:
            self._show([viewer])
        else:
            self._looping.start(LOOK_INTERVAL_SECONDS, now=True).addErrback(self._failed)

    def _failed(self, failure: Any) -> None:
        self._log.failure("the status page's feed failed", failure)
        for viewer in list(self._viewers):
            viewer.request.transport.abortConnection()

    def _leave(self, viewer: _Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers and self._looping.running:
            self._looping.stop()

    def _look(self) -> None:
        for viewer in list(self._viewers):
            viewer.missed += viewer.paused
            if viewer.missed > MOST_MISSED_LOOKS:
                viewer.request.transport.abortConnection()
        self._show([viewer for viewer in self._viewers if not viewer.paused])

    def _show(self, viewers: list[_Viewer]) -> None:
        if not viewers:
            return
        lasting = {event: ask() for event, ask in self._lasting.items()}
        current = self._current()
        for viewer in viewers:
            for event, data in lasting.items():
                if viewer.has.get(event) != data:
                    viewer.has[event] = data
                    viewer.send(event, data)
            viewer.send("look", current)
