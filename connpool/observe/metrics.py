"""
Prometheus metrics of everything under a service.

C{prometheus_client.twisted} is not used: it imports the reactor and answers
from a WSGI thread, away from the objects it reads.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from connpool import __version__
from connpool.observe.fields import Field
from connpool.observe.sources import findTroubles, readSources

__all__ = ["StatsCollector", "makeRegistry"]


def _family(field: Field) -> Metric:
    labels = ["name"] if field.label is None else ["name", field.label]
    if field.type == "histogram":
        return HistogramMetricFamily(field.metric, field.help, labels=labels)
    if field.type == "counter":
        return CounterMetricFamily(field.metric.removesuffix("_total"), field.help, labels=labels)
    return GaugeMetricFamily(field.metric, field.help, labels=labels)


def _buckets(histogram: Any) -> list[tuple[str, float]]:
    """
    Cumulative, as Prometheus wants them.
    """
    buckets = []
    below = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        below += count
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), below))
    return buckets


def _add(family: Any, field: Field, name: str, value: Any) -> None:
    if value is None:
        return
    if field.shape == "histogram":
        family.add_metric([name], _buckets(value), value.total)
    elif field.shape == "state":
        family.add_metric([name, value], 1)
    elif field.shape == "mapping":
        for key, count in value.items():
            family.add_metric([name, key], count)
    else:
        family.add_metric([name], value)


class StatsCollector(Collector):
    """
    For an embedder's own registry: C{registry.register(StatsCollector([service]))}.

    Collect in the reactor's thread, where the sources live.

    @param roots: services; they and all below them are read.
    """

    def __init__(self, roots: Sequence[Any]) -> None:
        self._roots = roots

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for reading in readSources(self._roots):
            for field in reading.fields:
                family = families.setdefault(field.metric, _family(field))
                if family.type == field.type:
                    # else two classes of one kind disagree; the first one has the name
                    _add(family, field, reading.name, field.read(reading.snapshot))
        yield from families.values()
        build = GaugeMetricFamily(
            "connpool_build_info",
            "1; the labels tell the versions that run",
            labels=["version", "python", "twisted"],
        )
        build.add_metric([__version__, platform.python_version(), metadata.version("twisted")], 1)
        yield build
        yield GaugeMetricFamily(
            "connpool_ready", "1 if all services can do their work", not findTroubles(self._roots)
        )


def makeRegistry(roots: Sequence[Any]) -> CollectorRegistry:
    """
    @return: a registry with everything under C{roots} and this process's own
        numbers (CPU time, memory, descriptors).
    """
    registry = CollectorRegistry()
    registry.register(StatsCollector(roots))
    ProcessCollector(registry=registry)
    return registry
