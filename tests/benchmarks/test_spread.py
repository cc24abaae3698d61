"""
The statistics of the benchmarks.
"""

from statistics import median

import pytest

from benchmarks.spread import CLOSE, ENOUGH, Bar, interval, judge, ratios


def test_anIntervalHoldsTheMedianAndIsTheSameEachTime():
    values = [1.0, 1.1, 0.9, 1.3, 0.8, 1.05, 0.95]
    low, high = interval(values)
    assert min(values) <= low <= median(values) <= high <= max(values)
    assert interval(values) == (low, high)


def test_moreValuesNarrowAnInterval():
    few = [0.9, 1.0, 1.1]
    low, high = interval(few)
    lowOfMany, highOfMany = interval(few * 20)
    assert highOfMany - lowOfMany < high - low


def test_ratiosAreOfPairs():
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((), "not measured"),
        ((2.0,) * 3, "met"),
        ((0.5,) * 3, "missed"),
        # within a tenth few pairs decide nothing, many do
        ((1.05,) * (ENOUGH - 1), "not resolved"),
        ((1.05,) * ENOUGH, "met"),
        ((0.95,) * ENOUGH, "missed"),
        # an interval that holds the limit decides nothing, however many there are
        ((0.5, 2.0) * ENOUGH, "not resolved"),
    ],
)
def test_aVerdict(values, verdict):
    assert judge(Bar("", values, 1.0)).verdict == verdict


def test_aLimitFromAbove():
    assert judge(Bar("", (1.5,) * 3, 2.0, atMost=True)).verdict == "met"
    assert judge(Bar("", (2.5,) * 3, 2.0, atMost=True)).verdict == "missed"


def test_aStretchIsJudgedAlone():
    assert judge(Bar("", (1.5,) * 3, 1.0, stretch=2.0)).verdict == "met"
    assert judge(Bar("", (2.5,) * 3, 1.0, stretch=2.0)).verdict == "met, stretch too"
    near = 2.0 * (1 + CLOSE / 2)
    assert judge(Bar("", (near,) * 3, 1.0, stretch=2.0)).verdict == "met"


def test_aCountNeedsOneValue():
    assert judge(Bar("", (0,), 0, atMost=True, exact=True)).verdict == "met"
    assert judge(Bar("", (1,), 0, atMost=True, exact=True)).verdict == "missed"
    assert judge(Bar("", (25.1,), 25, atMost=True, exact=True)).verdict == "missed"
