"""
Everything under some services as JSON texts, for the status page.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Sequence
from typing import Any

import attrs
import msgspec

from connpool import __version__
from connpool.observe.history import History
from connpool.observe.sources import (
    Reading,
    findEnded,
    findTransfers,
    findTroubles,
    readSources,
)

__all__ = ["MOST_TRANSFERS", "Overview"]

#: Transfers shown one by one.  A page with thousands of bars helps nobody.
MOST_TRANSFERS = 100

#: Files that are over, and refusals, of all services together.
MOST_ENDED = 50


def _quantile(histogram: Any, share: float) -> float | None:
    """
    The upper bound of the bucket in which C{share} of the durations end; the
    last finite one for those beyond it.
    """
    left = share * sum(histogram.counts)
    if not left:
        return None
    largest = 0.0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        if math.isfinite(bound):
            largest = bound
        left -= count
        if left <= 0:
            break
    return float(largest)


def _value(shape: str, value: Any) -> Any:
    if shape == "histogram" and value is not None:
        return {
            "count": sum(value.counts),
            "median": _quantile(value, 0.5),
            "p99": _quantile(value, 0.99),
        }
    return value


def _values(reading: Reading) -> dict[str, Any]:
    return {
        field.attribute: _value(field.shape, field.read(reading.snapshot))
        for field in reading.fields
    }


class Overview:
    """
    Looks at services, again and again.

    @param roots: the services; they and all below them are read.
    @param clock: L{twisted.internet.interfaces.IReactorTime}; its start is
        when this object was made.
    @param history: of these services, if somebody keeps it.
    """

    def __init__(self, roots: Sequence[Any], clock: Any, history: History | None = None) -> None:
        self._history = history
        self._roots = roots
        self._clock = clock
        self._began = clock.seconds()
        self._host = socket.gethostname()

    def schema(self) -> bytes:
        """
        @return: JSON: kind to its fields, each with C{field}, C{metric},
            C{shape}, C{type} and C{help}.
        """
        kinds = {
            reading.kind: [
                {
                    "field": field.attribute,
                    "metric": field.metric,
                    "shape": field.shape,
                    "type": field.type,
                    "help": field.help,
                }
                for field in reading.fields
            ]
            for reading in readSources(self._roots)
        }
        return msgspec.json.encode(kinds)

    def recent(self) -> bytes:
        """
        @return: JSON: the last C{files} and C{refusals}, the newest first.
        """
        return msgspec.json.encode(self._recent())

    def _recent(self) -> dict[str, list[dict[str, Any]]]:
        ended = [
            {"service": label, **attrs.asdict(each, recurse=False)}
            for label, each in findEnded(self._roots)
        ]
        ended.sort(key=lambda each: each["when"], reverse=True)
        files = [each for each in ended if each["result"] != "refused"]
        refusals = [each for each in ended if each["result"] == "refused"]
        return {"files": files[:MOST_ENDED], "refusals": refusals[:MOST_ENDED]}

    def history(self) -> bytes:
        """
        @return: JSON: the last ten minutes; no series if nobody keeps them.
        """
        return b'{"series":{}}' if self._history is None else self._history.json()

    def everything(self) -> bytes:
        """
        @return: JSON: L{current}, with C{recent} and C{history} in it.
        """
        return b'%s,"recent":%s,"history":%s}' % (
            self.current().removesuffix(b"}"),
            self.recent(),
            self.history(),
        )

    def current(self) -> bytes:
        """
        @return: JSON: the present state of everything.  C{now} and C{uptime} are
            seconds; two of these make a rate.
        """
        readings = readSources(self._roots)
        # a service behind a listener is where its listener is
        places = {each.name: each.places for each in readings if each.kind == "listener"}
        # an outbox sends through the pool of its name
        unreachable = {each.name: each.trouble for each in readings if each.kind == "pool"}
        troubles = findTroubles(self._roots)
        now = self._clock.seconds()
        return msgspec.json.encode(
            {
                "host": self._host,
                "pid": os.getpid(),
                "version": __version__,
                "now": now,
                "uptime": now - self._began,
                "ready": not troubles,
                "troubles": troubles,
                "transfers": [
                    {"service": label, **attrs.asdict(transfer, recurse=False)}
                    for label, transfer in findTransfers(self._roots, MOST_TRANSFERS)
                ],
                "sources": [
                    {
                        "kind": reading.kind,
                        "name": reading.name,
                        "places": reading.places or places.get(reading.name, ()),
                        "destinations": reading.destinations,
                        "trouble": reading.trouble
                        or (unreachable.get(reading.name) if reading.kind == "outbox" else None),
                        "values": _values(reading),
                    }
                    for reading in readings
                ],
            }
        )
