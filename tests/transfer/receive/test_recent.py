import attrs
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from connpool.errors import (
    DigestMismatch,
    Exists,
    NameRefused,
    NoSpace,
    Skipped,
    StoreError,
)
from connpool.transfer.names import RelativeName
from connpool.transfer.receive.recent import KEPT_TRANSFERS, RecentTransfers
from connpool.transfer.records import Offer, Receipt

RECEIPT = Receipt(
    *("0" * 32, "a\x1b[31m", "a", 3, "stored", "full", "ext4"),
    *("verified", None, None, "native", "me", 7.5),
)


MORE = "; {} more with this code since the last such line"


def test_theLastFilesAndRefusals():
    clock = Clock()
    recent = RecentTransfers(clock)
    recent.files.append((RECEIPT, "192.0.2.7"))
    clock.advance(9)
    offer = Offer(RelativeName.parse("b"), "1" * 32, 100)
    recent.failed(offer, "192.0.2.8", 60, NoSpace("the disk is full"))
    recent.refused("c", "192.0.2.9", Exists("c is there"), "2" * 32)
    recent.deniedEntry("192.0.2.10")
    failed, stored, denied, refused = recent.latest()
    assert "\x1b" not in stored.name
    assert attrs.astuple(stored)[2:] == (3, "192.0.2.7", "stored", "full", "0" * 32, "")
    assert attrs.astuple(failed) == (
        *(9.0, "b", 60, "192.0.2.8", "failed", None, "1" * 32),
        "no-space: the disk is full",
    )
    assert (refused.name, refused.why, refused.size) == ("c", "exists: c is there", None)
    assert denied.why == "auth-failed: user or password is wrong"


def test_noMoreThanFifty():
    recent = RecentTransfers(Clock())
    for number in range(3 * KEPT_TRANSFERS):
        recent.files.append((attrs.evolve(RECEIPT, size=number), "x"))
        recent.refused(f"{number}", "x", Exists("there"))
    latest = recent.latest()
    assert len(latest) == 2 * KEPT_TRANSFERS
    assert latest[0].size == 3 * KEPT_TRANSFERS - 1
    assert latest[KEPT_TRANSFERS].name == f"{3 * KEPT_TRANSFERS - 1}"


def test_filesThatNeverBroughtAByteAreNotALineEach():
    recent = RecentTransfers(Clock())
    offer = Offer(RelativeName.parse("b"), "1" * 32, 100)
    with capturedLogs() as logs:
        for _ in range(100):
            recent.failed(offer, "x", 0, NoSpace("full"))
        for _ in range(3):
            recent.failed(offer, "x", 60, NoSpace("full"))
            recent.failed(offer, "x", 0, Skipped("there"))
    lines = [formatEvent(each) for each in logs]
    assert lines[0] == f"did not receive b from x after 0 bytes: no-space: full, id {'1' * 32}"
    assert [line.split(" from")[0] for line in lines[1:]] == ["did not receive b", "skipped b"] * 3


def test_aFullDiskIsNotALineForEachFile():
    recent = RecentTransfers(Clock())
    offer = Offer(RelativeName.parse("b"), "1" * 32, 100)
    with capturedLogs() as logs:
        for why in (NoSpace("full"), StoreError("read-only"), DigestMismatch("damaged")):
            for _ in range(3):
                recent.failed(offer, "x", 100, why)
        recent.flush()
    lines = [formatEvent(each).partition(": ")[2].partition(", id")[0] for each in logs]
    # a file that is damaged is one by itself
    damaged = ["digest-mismatch: damaged"] * 3
    assert lines == ["no-space: full", "store-error: read-only", *damaged, *lines[:2]]
    assert formatEvent(logs[-1]).endswith(MORE.format(1))


def test_tenThousandRefusalsAreAFewLines():
    clock = Clock()
    recent = RecentTransfers(clock)
    with capturedLogs() as logs:
        for number in range(10_000):
            clock.advance(60 / 10_001)
            recent.refused(f"n{number}", "192.0.2.7", NameRefused("no"))
            recent.deniedEntry("192.0.2.7")
        assert [formatEvent(each) for each in logs] == [
            "refused n0 from 192.0.2.7: name-refused: no",
            "refused the credentials of 192.0.2.7",
        ]
        clock.advance(60)
        recent.refused("later", "192.0.2.7", NameRefused("no"), "3" * 32)
        recent.flush()
    last = [formatEvent(each) for each in logs[2:]]
    assert last == [
        f"refused later from 192.0.2.7: name-refused: no, id {'3' * 32}{MORE.format(9999)}",
        "refused the credentials of 192.0.2.7" + MORE.format(9998),
    ]
    assert logs[2]["peer"] == "192.0.2.7"
    assert logs[2]["code"] == "name-refused"
    recent.flush()
    assert len(logs) == 4
