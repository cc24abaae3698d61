"""
Limits on how often something may happen.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connpool.tokenbucket import TokenBucket, TokenBuckets


def test_bucketHoldsItsBurstAndFillsAtTheRate():
    buckets = TokenBuckets(2, rate=10.0, burst=5)
    assert buckets.free(0, 100.0) == 5
    buckets.take(0, 5, 100.0)
    assert (buckets.free(0, 100.0), buckets.free(1, 100.0)) == (0, 5)
    assert buckets.free(0, 100.21) == 2
    assert buckets.free(0, 200.0) == 5


def test_debtIsWaitedFor():
    buckets = TokenBuckets(1, rate=10.0, burst=5)
    buckets.take(0, 15, 100.0)
    assert 0.99 < buckets.wait(0, 100.0) <= 1.0
    assert buckets.wait(0, 101.1) == 0.0


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 500)), min_size=1, max_size=50))
def test_averageHoldsForPortionsOfAnySize(portions):
    bucket, now, taken = TokenBucket(100.0, 0.1), 1000.0, 0
    for pause, count in portions:
        now += pause
        now += bucket.take(count, now)
        taken += count
    assert taken <= 100.0 * (now - 1000.0) + 10.0 + 1e-3


def test_idleTimeIsNotSavedUp():
    bucket = TokenBucket(100.0, 0.1)
    bucket.take(1, 0.0)
    assert bucket.take(100, 1000.0) == pytest.approx(0.9)


def test_clockThatIsSetBackMakesNoDebt():
    bucket = TokenBucket(100.0, 0.1)
    assert bucket.take(110, 10_000.0) == pytest.approx(1.0)
    assert bucket.take(1, 6_400.0) == pytest.approx(1.01)
