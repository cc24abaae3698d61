"""
Medians, their spread, and what may be said of a limit.  Pure.

Two things that were timed in turns make pairs; a figure is the median over the pairs,
its interval that of the medians of samples drawn from them with replacement (the
bootstrap).  Machines drift within a run: where a figure lies within C{CLOSE} of its
limit, fewer than C{ENOUGH} pairs say nothing, and an interval that holds the limit says
nothing at any distance.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

import attrs

__all__ = ["CLOSE", "ENOUGH", "Bar", "Judged", "interval", "judge", "ratios"]

#: The part of a limit within which few pairs decide nothing.
CLOSE = 0.10
#: Pairs that decide also there.
ENOUGH = 15
_SAMPLES = 2000
_OUTSIDE = 0.025  # on either side: 95 % lie within


def interval(values: Sequence[float]) -> tuple[float, float]:
    """
    Return the bootstrap interval (95 %) of the median.  The same values give the same.
    """
    dice = random.Random(1)
    count = len(values)
    medians = sorted(median(dice.choices(values, k=count)) for _ in range(_SAMPLES))
    cut = int(_SAMPLES * _OUTSIDE)
    return medians[cut], medians[-cut - 1]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """
    Return the quotients of the pairs.
    """
    return [a / b for a, b in zip(over, under, strict=True)]


@attrs.frozen
class Bar:
    """
    A limit that was set before it was measured.

    @ivar text: of what, in a table.
    @ivar values: one for each pair, or a single one.
    @ivar limit: to be reached.
    @ivar stretch: hoped for.
    @ivar atMost: the limit is above, not below.
    @ivar exact: a count or a size: one value decides.
    @ivar unit: behind the figure.
    @ivar bound: what limits it, and the figure that this reaches; empty and L{None} if nothing
        shows it.
    """

    text: str
    values: tuple[float, ...] = attrs.field(converter=tuple)
    limit: float
    stretch: float | None = None
    atMost: bool = False
    exact: bool = False
    unit: str = ""
    bound: tuple[str, float | None] = ("", None)


@attrs.frozen
class Judged:
    """
    @ivar middle: the median; L{None} if it could not be measured.
    @ivar low: the lower end of its interval.
    @ivar high: the upper end.
    @ivar verdict: C{"met"}, C{"met, stretch too"}, C{"missed"}, C{"not resolved"} or
        C{"not measured"}.
    """

    bar: Bar
    middle: float | None
    low: float | None
    high: float | None
    verdict: str


def judge(bar: Bar) -> Judged:
    """
    Say what the pairs show.
    """
    if not bar.values:
        return Judged(bar, None, None, None, "not measured")
    middle = median(bar.values)
    low, high = interval(bar.values)
    verdict = _against(bar, bar.limit, middle, low, high)
    if verdict == "met" and bar.stretch is not None:
        far = _against(bar, bar.stretch, middle, low, high)
        verdict = "met, stretch too" if far == "met" else verdict
    return Judged(bar, middle, low, high, verdict)


def _against(bar: Bar, limit: float, middle: float, low: float, high: float) -> str:
    reached = middle <= limit if bar.atMost else middle >= limit
    if not bar.exact:
        close = abs(middle - limit) < CLOSE * abs(limit)
        if (close and len(bar.values) < ENOUGH) or low < limit < high:
            return "not resolved"
    return "met" if reached else "missed"
