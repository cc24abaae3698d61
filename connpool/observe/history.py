"""
The last ten minutes of a process, in a fixed amount of memory.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from connpool.observe.sources import Reading, readSources

__all__ = ["SAMPLES", "SAMPLE_INTERVAL_SECONDS", "History", "HistoryService"]

SAMPLE_INTERVAL_SECONDS = 5.0

#: Ten minutes.
SAMPLES = 120

#: Series to the counters, each a kind and a field, whose growth per second it adds up.
_RATES = {
    "bytes": (
        *(("transfer", "receivedBytes"), ("outbox", "sentBytes")),
        *(("datagram", "receivedBytes"), ("datagram", "answeredBytes")),
    ),
    "files": (("transfer", "published"), ("outbox", "sent")),
}

#: Series to the gauges that it adds up.
_SUMS = {"waiters": (("pool", "waiting"), ("transfer", "waiting"))}

#: Series to the gauges of which it takes the largest, in seconds.
_LARGEST = {"roundTrip": (("probe", "rttMean"),)}


class History:
    """
    A point for each L{SAMPLE_INTERVAL_SECONDS}, the last L{SAMPLES} of them: bytes
    and files per second, waiters, and the round trip of the slowest target.
    """

    def __init__(self) -> None:
        self._series = {
            name: array("d", [math.nan]) * SAMPLES for name in (*_RATES, *_SUMS, *_LARGEST)
        }
        self._position = 0
        self._counters: dict[tuple[str, str, str], int] = {}
        self._latest: float | None = None

    def add(self, now: float, readings: Iterable[Reading]) -> None:
        """
        Add a point.

        @param now: seconds of a clock.
        """
        values: dict[tuple[str, str], list[Any]] = {}
        counters: dict[tuple[str, str, str], int] = {}
        elapsed = 0.0 if self._latest is None else now - self._latest
        for reading in readings:
            for name in _FIELDS.get(reading.kind, ()):
                value = getattr(reading.snapshot, name, None)
                if not isinstance(value, int | float):
                    continue
                if (reading.kind, name) in _COUNTERS:
                    key = (reading.kind, reading.name, name)
                    counters[key] = int(value)
                    # a source that came back counts from the start
                    grown = max(0, counters[key] - self._counters.get(key, counters[key]))
                    value = grown / elapsed if elapsed > 0 else 0.0
                values.setdefault((reading.kind, name), []).append(value)
        self._counters, self._latest = counters, now
        for table, combine in ((_RATES, sum), (_SUMS, sum), (_LARGEST, max)):
            for series, sources in table.items():
                found = [value for source in sources for value in values.get(source, ())]
                if table is _LARGEST:
                    found = [value for value in found if value > 0]  # none from a dead target
                point = combine(found) if found else math.nan
                self._series[series][self._position] = point
        self._position = (self._position + 1) % SAMPLES

    def points(self, series: str) -> list[float | None]:
        """
        @return: the points from the oldest on; L{None} where there is none.
        """
        ring, at = self._series[series], self._position
        return [None if math.isnan(point) else round(point, 6) for point in ring[at:] + ring[:at]]

    def json(self) -> bytes:
        """
        @return: C{interval} in seconds, and the points of each series.
        """
        series = {name: self.points(name) for name in self._series}
        return msgspec.json.encode({"interval": SAMPLE_INTERVAL_SECONDS, "series": series})


_COUNTERS = {source for sources in _RATES.values() for source in sources}
_FIELDS: dict[str, list[str]] = {}
for _table in (_RATES, _SUMS, _LARGEST):
    for _sources in _table.values():
        for _kind, _field in _sources:
            _FIELDS.setdefault(_kind, []).append(_field)


class HistoryService(Service):
    """
    Keeps the L{History} of services while it runs, whether somebody watches or not.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param roots: services; they and all below them are read.
    @ivar history: of the services.
    """

    _log = Logger()

    def __init__(self, clock: Any, roots: Sequence[Any]) -> None:
        self._clock = clock
        self._roots = roots
        self.history = History()
        self._loop = LoopingCall(self._sample)
        self._loop.clock = clock

    def startService(self) -> None:
        super().startService()
        self._loop.start(SAMPLE_INTERVAL_SECONDS).addErrback(
            lambda failure: self._log.failure("the history is not continued", failure)
        )

    def stopService(self) -> None:
        if self._loop.running:
            self._loop.stop()
        super().stopService()

    def _sample(self) -> None:
        self.history.add(self._clock.seconds(), readSources(self._roots))
