"""
Round trips by bucket, for metrics.
"""

from __future__ import annotations

from bisect import bisect_left

import attrs

__all__ = ["BOUNDS_SECONDS", "Histogram"]

#: Upper bounds of the buckets, from a neighbour on the same switch to a satellite.
BOUNDS_SECONDS = (
    0.0001,
    0.0003,
    0.001,
    0.003,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    float("inf"),
)


@attrs.define
class Histogram:
    """
    Durations by bucket.

    @ivar bounds: the upper bound of each bucket, seconds; the last is infinite.
    @ivar counts: how many durations fell into each bucket (not cumulative).
    @ivar total: their sum, seconds.
    """

    bounds: tuple[float, ...] = BOUNDS_SECONDS
    counts: list[int] = attrs.Factory(lambda: [0] * len(BOUNDS_SECONDS))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """
        Count one duration.
        """
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def copy(self) -> Histogram:
        """
        @return: one that does not grow with this.
        """
        return Histogram(self.bounds, list(self.counts), self.total)
