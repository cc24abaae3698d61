"""
Everything under some services as one JSON text: what the status page shows.
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
from connpool.observe.sources import Reading, findTransfers, findTroubles, readSources

__all__ = ["MOST_TRANSFERS", "Overview"]

#: Transfers shown one by one.  A page with thousands of bars helps nobody.
MOST_TRANSFERS = 100


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
    """

    def __init__(self, roots: Sequence[Any], clock: Any) -> None:
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

    def current(self) -> bytes:
        """
        @return: JSON: how everything is now.  C{now} and C{uptime} are
            seconds; two of these make a rate.
        """
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
                    {"kind": reading.kind, "name": reading.name, "values": _values(reading)}
                    for reading in readSources(self._roots)
                ],
            }
        )
