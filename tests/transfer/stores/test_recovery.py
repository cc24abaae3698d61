"""
What is done about what earlier processes left behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

import pytest
from twisted.logger import LogLevel, capturedLogs, formatEvent

from connpool.errors import Busy, NoSpace
from connpool.transfer import LocalStore, Receipt
from connpool.transfer.stores.recovery import OVERDUE_SECONDS, TEMPORARY_SECONDS
from tests.helpers.waiting import failureResultOf
from tests.transfer.stores.kit import BLOCK, InlineReactor, offer, visible
from tests.transfer.stores.onpartials import (
    KEY,
    SECRET,
    filled,
    inline,
    journals,
    killed,
    ofReceipts,
    parts,
    target,
)

DATA = b"x" * BLOCK
DAY = 86400.0


class Die(BaseException):
    """
    The process is killed.
    """


def dying(root, at, **values):
    """
    Die while a file is published, at the call that C{at} chooses.

    @return: its offer.
    """
    dead = []

    def before(name, arguments, keywords):
        if dead or at(name, arguments):
            dead.append(name)
            raise Die

    store, clock, syscalls = inline(root)
    asked = offer("a", **{"size": BLOCK, "resumeKey": SECRET, "key": KEY, **values})
    partial = clock.wait(store.open(asked))
    filled(clock, partial, DATA)
    clock.wait(partial.checkpoint())
    syscalls.before = before
    with pytest.raises(Die):
        clock.wait(partial.commit(b"\1" * 32))
    assert dead
    killed(partial)
    return asked


def doneRecord(name, arguments):
    return name == "write" and ofReceipts(arguments)


# -- evidence -----------------------------------------------------------------


@pytest.mark.parametrize("rule", ["rename", "replace"])
@pytest.mark.parametrize("finder", ["sender", "reaper"])
def test_theEvidenceStaysUntilTheStepsAreTaken(root, rule, finder):
    asked = dying(root, doneRecord, ifExists=rule)
    full = [True]

    def before(name, arguments, keywords):
        if full[0] and doneRecord(name, arguments):
            raise OSError(errno.ENOSPC, "")

    store, clock, _ = inline(root, before)
    if finder == "sender":
        with pytest.raises(NoSpace):
            clock.wait(store.open(asked))
    else:
        found = store.parts.recovery.look(0.0)
        assert [type(why) for why in found] == [NoSpace]
    full[0] = False
    if rule == "rename":
        (root / "a").rename(root / "consumed")  # it was there: so it was published
    receipt = clock.wait(store.open(asked))
    assert (receipt.status, receipt.name) == ("stored", "a")
    assert clock.wait(store.open(asked)) == receipt
    assert parts(root) == journals(root) == []
    assert list(visible(root).values()) == [DATA]
    clock.wait(store.close())


@pytest.mark.parametrize("level", ["none", "full"])
def test_aFileOfTheSameSizeIsNoEvidence(root, level):
    # killed before rename(), and the partial is empty after a power cut
    (root / "a").write_bytes(b"y" * BLOCK)
    asked = dying(root, lambda name, _: name == "rename", ifExists="replace", durability=level)
    os.truncate(parts(root)[0], 0)
    store, clock, _ = inline(root)
    clock.wait(store.reap())
    partial = clock.wait(store.open(asked))
    assert not isinstance(partial, Receipt)
    filled(clock, partial, DATA)
    clock.wait(partial.commit(b"\1" * 32))
    assert visible(root) == {"a": DATA}
    clock.wait(store.close())


@pytest.mark.parametrize("key", [KEY, None])
def test_aJournalAloneIsFound(root, key):
    # killed after the rename() of --if-exists replace, and nobody comes back
    asked = dying(root, lambda name, _: name == "unlink", ifExists="replace", key=key)
    assert parts(root) == []
    assert len(journals(root)) == 1
    store, clock, _ = inline(root)
    clock.wait(store.reap())
    assert parts(root) == journals(root) == []
    if key is not None:
        assert clock.wait(store.open(asked)).status == "stored"
    clock.wait(store.close())


def test_aJournalOfNothingIsRemovedInTime(root):
    asked = dying(root, lambda name, _: name == "link")
    parts(root)[0].unlink()
    now = [time.time()]
    store, clock, _ = inline(root, now=lambda: now[0], ttl=10 * DAY)
    for days in (0, 9, 11):
        now[0] = time.time() + days * DAY
        clock.wait(store.reap())
        assert len(journals(root)) == 1
    clock.now += OVERDUE_SECONDS
    clock.wait(store.reap())
    assert parts(root) == journals(root) == []
    partial = clock.wait(store.open(asked))
    assert list(partial.held) == []
    clock.wait(store.close())


def test_bytesWhoseJournalWasLostAreRemovedInTime(root):
    dying(root, lambda name, _: name == "link")
    journals(root)[0].unlink()
    now = [time.time()]
    store, clock, _ = inline(root, now=lambda: now[0], ttl=10 * DAY)
    assert [info.name for info in clock.wait(store.partials())] == ["?"]
    now[0] += 11 * DAY
    for _ in range(2):
        clock.wait(store.reap())
        clock.now += OVERDUE_SECONDS
    assert parts(root) == journals(root) == []
    clock.wait(store.close())


@pytest.mark.parametrize("key", [KEY, b"n" * 32])
def test_anotherProcessWaitsUntilReplacingHasEnded(root, key):
    # rename() has freed the private name, and the first syncs the directory still
    hook = []

    def before(name, arguments, keywords):
        if hook and name == "fsync" and target(arguments[0]) == str(root):
            hook.pop()()

    mine, first, _ = inline(root, before)
    theirs, second, _ = inline(root)
    values = {"size": BLOCK, "resumeKey": SECRET, "ifExists": "replace"}
    partial = first.wait(mine.open(offer("a", key=KEY, **values)))
    filled(first, partial, DATA)
    newer = offer("a", key=key, **values)

    def comeBack():
        opening = theirs.open(newer)
        while second._later:
            second._later.pop(0).run()
        failureResultOf(opening, Busy)

    hook.append(comeBack)
    receipt = first.wait(partial.commit(b"\1" * 32))
    time.sleep(0.05)  # what others finished is looked for now and then
    again = second.wait(theirs.open(newer))
    if key == KEY:
        assert again == receipt
    else:
        filled(second, again, b"y" * BLOCK)
        second.wait(again.commit(b"\2" * 32))
        assert visible(root) == {"a": b"y" * BLOCK}
    assert parts(root) == journals(root) == []
    first.wait(mine.close())
    second.wait(theirs.close())


# -- age ----------------------------------------------------------------------


def test_theTimeOfTheSourceIsNoAge(root):
    # a commit that failed had set it
    now = [time.time()]
    full = [True]

    def before(name, arguments, keywords):
        if name == "link" and full[0] and arguments[1] == "a":
            raise OSError(errno.ENOSPC, "")

    store, clock, _ = inline(root, before, now=lambda: now[0])
    asked = offer("a", size=BLOCK, resumeKey=SECRET, key=KEY, modified=10**18)
    partial = clock.wait(store.open(asked))
    filled(clock, partial, DATA)
    with pytest.raises(NoSpace):
        clock.wait(partial.commit(b"\1" * 32))
    clock.wait(partial.suspend())
    assert parts(root)[0].stat().st_mtime_ns == 10**18
    [info] = clock.wait(store.partials())
    assert abs(info.changed - now[0]) < 60
    for _ in range(3):
        clock.wait(store.reap())
        clock.now += 1.5 * OVERDUE_SECONDS
        now[0] += 1.5 * OVERDUE_SECONDS
    full[0] = False
    partial = clock.wait(store.open(asked))
    assert list(partial.held) == [(0, BLOCK)]
    clock.wait(partial.commit(b"\1" * 32))
    assert visible(root) == {"a": DATA}
    clock.wait(store.close())


def test_theReactorsClockIsNotAsked(root):
    # on POSIX it is the wall clock
    class Reactor(InlineReactor):
        def seconds(self):
            raise AssertionError

    clock = Reactor()
    store = LocalStore(clock, root, threads=clock)
    partial = clock.wait(store.open(offer("a", size=BLOCK, resumeKey=SECRET)))
    filled(clock, partial, DATA)
    clock.wait(partial.commit(b"\1" * 32))
    assert store.trouble() is None
    clock.wait(store.reap())
    clock.wait(store.close())


@pytest.mark.parametrize("writer", ["resumed", "deleted"])
def test_whatChangedMeanwhileIsNotTooOld(root, writer):
    # between the look and the lock
    hook = []

    def before(name, arguments, keywords):
        if hook and name == "flock" and arguments[1] & fcntl.LOCK_EX:
            hook.pop()()

    now = [time.time()]
    mine, first, _ = inline(root, before, now=lambda: now[0], ttl=DAY)
    theirs, second, _ = inline(root)
    asked = offer("a", size=2 * BLOCK, resumeKey=SECRET)
    partial = second.wait(theirs.open(asked))
    filled(second, partial, DATA)
    second.wait(partial.suspend())
    for path in journals(root):
        os.utime(path, (now[0] - 2 * DAY,) * 2)
    first.wait(mine.reap())
    first.now += OVERDUE_SECONDS

    def meanwhile():
        if writer == "deleted":
            [info] = second.wait(theirs.partials())
            second.wait(theirs.delete(info))
            return
        again = second.wait(theirs.open(asked))
        filled(second, again, 2 * DATA)
        second.wait(again.suspend())

    hook.append(meanwhile)
    first.wait(mine.reap())
    assert not hook
    if writer == "resumed":
        assert list(second.wait(theirs.open(asked)).held) == [(0, 2 * BLOCK)]
    first.wait(mine.close())
    second.wait(theirs.close())


def temporaries(root):
    return sorted(path.name for path in (root / ".connpool/temporary").iterdir())


def test_temporaryFilesInUseAreLeftAlone(root):
    now = [time.time()]
    mine, first, _ = inline(root, now=lambda: now[0])
    theirs, second, _ = inline(root)
    live = [
        (clock, clock.wait(store.open(offer(name, size=BLOCK))))
        for name, store, clock in (("mine", mine, first), ("theirs", theirs, second))
    ]
    (root / ".connpool/temporary/left").write_text("by a process that died")
    now[0] += 2 * TEMPORARY_SECONDS
    for seconds in (0, 0, OVERDUE_SECONDS - 1):
        first.now += seconds
        first.wait(mine.reap())
        assert len(temporaries(root)) == 3  # a clock that jumped is not enough
    first.now += 1
    first.wait(mine.reap())
    assert len(temporaries(root)) == 2
    for clock, partial in live:
        filled(clock, partial, DATA)
        clock.wait(partial.commit(None))
    assert visible(root) == {"mine": DATA, "theirs": DATA}
    first.wait(mine.close())
    second.wait(theirs.close())


def test_temporaryFilesThatChangeAreNotOld(root):
    now = [time.time()]
    store, clock, _ = inline(root, now=lambda: now[0])
    path = root / ".connpool/temporary/x"
    path.write_text("")
    now[0] += 2 * TEMPORARY_SECONDS
    for _ in range(3):
        clock.wait(store.reap())
        clock.now += OVERDUE_SECONDS
        path.chmod(0o600)
        time.sleep(0.01)
        path.write_text("more")
    clock.wait(store.reap())
    assert path.exists()
    clock.wait(store.close())


def test_halfAFileOfAKilledProcessGoesAfterAnHour(root):
    """
    It cannot be resumed and may be large; evidence of what was published is kept a day.
    """
    theirs, second, _ = inline(root)
    partial = second.wait(theirs.open(offer("half", size=2 * BLOCK)))
    partial.write(0, DATA)
    os.close(partial.slot.fd)  # as the kernel does
    directory = root / ".connpool/temporary"
    assert len(temporaries(root)) == 1
    (directory / "copy-0123456789abcdef").write_text("a copy under way")
    (directory / "published").write_text("of a process that died")
    os.link(directory / "published", root / "published")
    store, clock, _ = inline(root)
    for seconds in (0, OVERDUE_SECONDS - 1):
        clock.now += seconds
        clock.wait(store.reap())
        assert len(temporaries(root)) == 3
    clock.now += 1
    clock.wait(store.reap())
    assert temporaries(root) == ["copy-0123456789abcdef", "published"]
    clock.wait(store.close())


# -- faults -------------------------------------------------------------------


def warnings(logs):
    return [formatEvent(event) for event in logs if event["log_level"] is LogLevel.warn]


def test_oneBadThingKeepsNobodyFromTheRest(root):
    now = [time.time()]
    store, clock, _ = inline(root, now=lambda: now[0], ttl=DAY)
    for number in range(3):
        asked = offer("a", size=2 * BLOCK, resumeKey=bytes([number]) * 32)
        partial = clock.wait(store.open(asked))
        filled(clock, partial, DATA)
        clock.wait(partial.suspend())
    bad = parts(root)[1]
    bad.unlink()
    bad.mkdir()
    stray = root / ".connpool/temporary/stray"
    stray.mkdir()
    (stray / "x").write_text("")
    for name in ("link", "zzz"):
        (stray.parent / name).symlink_to("nowhere")
    now[0] += 30 * DAY
    expired = []
    expire = store.parts.recovery._receiptLog.expire
    store.parts.recovery._receiptLog.expire = lambda: expired.append(expire())
    with capturedLogs() as logs:
        for _ in range(2):
            clock.wait(store.reap())
            clock.now += OVERDUE_SECONDS
    assert warnings(logs) == [
        "cannot finish or remove 1 of the remains of earlier processes: stray: Is a directory"
    ]
    assert parts(root) == [bad]
    assert temporaries(root) == ["stray"]
    assert len(expired) == 2
    clock.wait(store.close())


def test_aReaperThatFailsIsLoggedAndComesAgain(root):
    broken = [True]

    def before(name, arguments, keywords):
        if broken[0] and name == "listdir" and target(arguments[0]).endswith("temporary"):
            raise OSError(errno.EMFILE, "Too many open files")

    store, clock, _ = inline(root)
    store.parts.syscalls.before = before
    for logged in (1, 0):
        with capturedLogs() as logs:
            clock.wait(store.reap())
        assert len(warnings(logs)) == logged
        assert not any("log_failure" in event for event in logs)
        broken[0] = False
    clock.wait(store.close())
