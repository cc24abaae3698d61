"""
Server-sent events: the same look, once a second, to everybody who watches.

Nothing runs while nobody watches.  A viewer that does not read misses looks,
it never queues them; one that reads nothing for long is let go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

__all__ = ["INTERVAL", "MOST_VIEWERS", "STALLED", "Feed"]

#: Seconds from look to look.
INTERVAL = 1.0
#: At once.
MOST_VIEWERS = 20
#: Looks in a row that a viewer may miss before it is let go.
STALLED = 60


@implementer(IPushProducer)
class _Viewer:
    """
    One open C{/events}.
    """

    def __init__(self, request: Any) -> None:
        self.request = request
        self.paused = False
        self.missed = 0
        self.schema = b""

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self.missed = 0

    def stopProducing(self) -> None:
        self.paused = True

    def send(self, event: bytes, data: bytes) -> None:
        # JSON has no line break outside of its escapes, so this is one line
        self.request.write(b"event: %s\ndata: %s\n\n" % (event, data))


class Feed:
    """
    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param schema: gives the JSON of event C{schema}; sent first, and again when
        it has changed.
    @param current: gives the JSON of event C{look}.
    """

    _log = Logger()

    def __init__(
        self, clock: Any, schema: Callable[[], bytes], current: Callable[[], bytes]
    ) -> None:
        self._schema = schema
        self._current = current
        self._viewers: set[_Viewer] = set()
        self._looping = LoopingCall(self._look)
        self._looping.clock = clock

    @property
    def full(self) -> bool:
        """
        Whether another viewer is one too many.
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
            self._looping.start(INTERVAL, now=True).addErrback(self._failed)

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
            if viewer.missed > STALLED:
                viewer.request.transport.abortConnection()
        self._show([viewer for viewer in self._viewers if not viewer.paused])

    def _show(self, viewers: list[_Viewer]) -> None:
        if not viewers:
            return
        schema, current = self._schema(), self._current()
        for viewer in viewers:
            if viewer.schema != schema:
                viewer.schema = schema
                viewer.send(b"schema", schema)
            viewer.send(b"look", current)
