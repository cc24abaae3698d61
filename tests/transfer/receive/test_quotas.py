"""
Limits, counted without a clock.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connpool.errors import Busy, QuotaExceeded
from connpool.transfer.identities import Limits
from connpool.transfer.receive.quotas import SMALL_BYTES, Account, Window
from tests.helpers.waiting import assertNoResult, successResultOf

HOUR, DAY = 3600.0, 86_400.0


@given(
    st.lists(st.tuples(st.floats(0.0, 2 * HOUR), st.integers(1, 100)), max_size=60),
    st.integers(100, 400),
)
def test_noDaySeesMoreThanTheSum(steps, most):
    """
    What is added only while the sum allows it, is in no 24 hours more.
    """
    window, now, taken = Window(), 0.0, []
    for wait, count in steps:
        now += wait
        if window.sum(now) + count <= most:
            window.add(count, now)
            taken.append((now, count))
    for at, _ in taken:
        assert sum(count for when, count in taken if at - DAY <= when <= at) <= most


def test_whatIsADayOldComesBack():
    window = Window()
    window.add(5, 100.0)
    window.add(7, 2 * HOUR)
    assert window.sum(DAY) == 12
    assert window.relief(DAY) == HOUR
    assert window.sum(DAY + HOUR) == 7
    assert window.sum(DAY + 3 * HOUR) == 0
    assert window.relief(0.0) == DAY


def test_bytesOfADay():
    account = Account(Limits(maxBytes=100), " of 'alice'")
    account.check(1, 100, 0.0)
    with pytest.raises(QuotaExceeded, match="100 of 100 bytes of 'alice' are left"):
        account.check(1, 101, 0.0)
    # two that would pass it together
    account.promise(60)
    with pytest.raises(QuotaExceeded):
        account.check(1, 60, 0.0)
    account.came(60, 0.0)
    account.promise(-60)
    account.check(1, 40, 0.0)
    account.came(40, 0.0)
    with pytest.raises(QuotaExceeded, match=r"0 of 100 .* and 1 are needed; more in 25\.0 hours"):
        account.check(1, 1, 0.0)
    # an empty file, a directory, and what came before the last connection was lost
    account.check(1, 0, 0.0)
    account.promise(1)
    account.check(1, 0, 0.0)
    account.promise(-1)
    account.check(1, 100, DAY + HOUR)


def test_filesOfADay():
    account = Account(Limits(maxFiles=2))
    assert account.take(wait=False) is None
    account.check(0, 0, 0.0)
    account.small(1, 10)
    account.check(0, 0, 0.0)
    with pytest.raises(QuotaExceeded, match="2 files"):
        account.check(1, 0, 0.0)
    account.stored(1, 0.0)
    account.leave()
    account.small(-1, -10)
    account.check(1, 0, 0.0)
    account.stored(1, 0.0)
    with pytest.raises(QuotaExceeded):
        account.check(1, 0, DAY)
    account.check(1, 0, DAY + HOUR)


def test_placesAreGivenInTheOrderOfComing():
    account = Account(Limits(maxTransfers=2))
    assert account.take(wait=True) is None
    assert account.take(wait=False) is None
    with pytest.raises(Busy, match="2 transfers"):
        account.take(wait=False)
    first, second, third = (account.take(wait=True) for _ in range(3))
    assert account.waiting == 3
    account.leave()
    assert successResultOf(first) is None
    assertNoResult(second)
    # nobody overtakes who waits
    second.addErrback(lambda _: None)
    second.cancel()
    assert account.waiting == 1
    account.leave()
    assert successResultOf(third) is None
    assert (account.transfers, account.waiting) == (2, 0)
    account.leave()
    account.leave()
    assert account.transfers == 0


def test_aPlaceIsTakenBeforeAnybodyHearsOfIt():
    account = Account(Limits(maxTransfers=1))
    account.take(wait=False)
    seen = []
    account.take(wait=True).addCallback(lambda _: seen.append(account.full))
    account.leave()
    assert seen == [True]


def test_connections():
    account = Account(Limits(maxConnections=1), " of 'alice'")
    account.connect()
    with pytest.raises(Busy, match="1 connections of 'alice'"):
        account.connect()
    account.disconnect()
    account.connect()


@pytest.mark.parametrize(
    ("limits", "size"), [(Limits(maxTransfers=2), 1), (Limits(), SMALL_BYTES // 2 + 1)]
)
def test_smallFilesWaitForRoom(limits, size):
    account = Account(limits)
    assert account.room() is None
    account.small(1, size)
    assert account.room() is None
    account.small(1, size)
    first, second = account.room(), account.room()
    # the first to hear of it fills it up again
    first.addCallback(lambda _: account.small(1, size))
    account.small(-1, -size)
    assert successResultOf(first) is None
    assertNoResult(second)
    account.small(-1, -size)
    assert successResultOf(second) is None
    assert account.room() is None


def test_withoutLimitsNothingIsRefused():
    account = Account(Limits())
    for _ in range(1000):
        assert account.take(wait=False) is None
        account.connect()
        account.check(1, 10**15, 0.0)
        assert account.came(10**12, 0.0) == 0
    assert not account.timed
