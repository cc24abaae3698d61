"""
Receipts: none is lost, forgotten too early or told before it is on disk.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from itertools import pairwise

import attrs
import pytest

from connpool.transfer.stores import receiptlog
from connpool.transfer.stores.receiptcursor import ReceiptCursor
from connpool.transfer.stores.receiptlog import (
    KEPT_SECONDS,
    OVERDUE_SECONDS,
    ReceiptLog,
    ReceiptOffsets,
)
from connpool.transfer.stores.recordlines import encodeLine
from tests.transfer.stores.kit import Recorded, followed, offer, receipt
from tests.transfer.stores.powerloss import Disk, materialise

#: Seconds after which a thread that should not wait counts as waiting.
STUCK = 5.0


class Clock:
    def __init__(self):
        self.wall = time.time()
        self.own = 0.0

    def run(self, seconds):
        self.wall += seconds
        self.own += seconds


@pytest.fixture
def clock():
    return Clock()


class Place:
    """
    A directory of receipts and those who use it.
    """

    def __init__(self, path, clock):
        self.path = path
        self.clock = clock
        self._close = []

    def open(self, before=None, *, lazy=True, **values):
        """
        A log as a process of its own has it.
        """
        fd = os.open(self.path, os.O_RDONLY)
        calls = Recorded(before, lazy=lazy)
        log = ReceiptLog(
            calls,
            followed(calls, fd),
            lambda: self.clock.wall,
            lambda: self.clock.own,
            **values,
        )
        self._close += [lambda: os.close(fd), log.close]
        return log

    def outbox(self):
        fd = os.open(self.path, os.O_RDONLY)
        calls = Recorded(lazy=True)
        outbox = ReceiptCursor(calls, followed(calls, fd))
        self._close += [lambda: os.close(fd), outbox.close]
        return outbox

    def files(self, name="done"):
        return sorted(
            (path for path in self.path.iterdir() if path.name.startswith(name)),
            key=lambda path: int(path.name.rpartition("-")[2]),
        )

    def close(self):
        while self._close:
            self._close.pop()()


@pytest.fixture
def place(tmp_path, clock):
    (tmp_path / "done").mkdir()
    place = Place(tmp_path / "done", clock)
    yield place
    place.close()


def asked(number, **values):
    values.setdefault("size", 1)
    return offer(f"x{number}", key=number.to_bytes(32, "big"), transferId="0" * 32, **values)


def receiptFor(asked):
    path = asked.name.path
    return receipt(
        transferId=asked.transferId, name=path, wanted=path, principal=asked.principal, finished=1.0
    )


def append(log, *numbers, sync=False):
    log.append([(asked(number), receiptFor(asked(number))) for number in numbers], sync=sync)


def found(log, numbers, **values):
    """
    Which of C{numbers} are there, each with its own receipt.
    """
    log._looked = 0.0
    there = []
    for number in numbers:
        result = log.find(asked(number), 1, **values)
        if result is not None:
            assert result == receiptFor(asked(number))
            there.append(number)
    return there


#: One receipt.
LENGTH = len(encodeLine({"key": "0" * 64, "receipt": attrs.asdict(receiptFor(asked(1)))}))


# -- finding ------------------------------------------------------------------


def test_receiptsAreFoundAgain(place):
    log = place.open()
    append(log, *range(5))
    assert found(log, range(6)) == [0, 1, 2, 3, 4]
    assert log.find(asked(4, principal="mallory"), 1) is None
    assert log.find(offer(), 1) is None
    assert found(place.open(), range(6)) == [0, 1, 2, 3, 4]


def test_offersWithoutAKeyLeaveNoTrace(place):
    log = place.open()
    log.append([(offer(), receiptFor(offer()))], sync=True)
    assert [path.stat().st_size for path in place.files()] == [0]


def test_aTornReceiptIsSkipped(place):
    log = place.open()
    append(log, 1)
    with place.files()[-1].open("ab") as file:
        file.write(b'\n0123abcd {"key":"half')
    append(log, 2)
    for each in (log, place.open()):
        assert found(each, range(4)) == [1, 2]


@pytest.mark.parametrize("body", [b"[]", b'{"key":"zz","receipt":{"principal":"a"}}', b"{", b"1"])
def test_strangeRecordsAreSkipped(place, body):
    from zlib import crc32

    log = place.open()
    append(log, 1)
    with place.files()[-1].open("ab") as file:
        file.write(b"\n%08x %b\n" % (crc32(body), body))
    append(log, 2)
    for each in (log, place.open()):
        assert found(each, range(4)) == [1, 2]


def test_aDiskThatIsNearlyFull(place):
    log = place.open()
    append(log, 1)
    write = log._sys.write
    log._sys.write = lambda fd, data: write(fd, data[:100])
    with pytest.raises(OSError, match="No space"):
        append(log, 2)
    log._sys.write = write
    append(log, 3)
    for each in (log, place.open()):
        assert found(each, range(4)) == [1, 3]


def test_whatOthersAppendIsFound(place):
    mine, theirs = place.open(), place.open()
    for number in range(0, 40, 2):
        append(mine, number)
        append(theirs, number + 1)
    assert found(mine, range(41)) == found(theirs, range(41)) == list(range(40))
    time.sleep(2 * receiptlog.LOOK_SECONDS)  # without being told to look
    append(theirs, 40)
    assert mine.find(asked(40), 1) is not None


# -- the row of files ---------------------------------------------------------


def test_aFullFileIsFollowedByTheNext(place):
    log = place.open(size=10 * LENGTH, files=3)
    for number in range(35):
        append(log, number)
    assert [path.name for path in place.files()] == ["done-1", "done-2", "done-3", "done-4"]
    # only so many are remembered
    assert found(log, range(35)) == list(range(10, 35))
    again = place.open(size=10 * LENGTH, files=3)
    assert found(again, range(35)) == list(range(10, 35))
    assert found(place.open(), range(35)) == list(range(35))


def test_everybodyFollows(place):
    mine, theirs = [place.open(size=5 * LENGTH) for _ in range(2)]
    append(theirs, 0)
    append(mine, *range(1, 13))  # a batch goes into one file
    append(mine, 13)
    append(theirs, 14)
    assert [path.name for path in place.files()] == ["done-1", "done-2"]
    assert found(mine, range(15)) == found(theirs, range(15)) == list(range(15))


def test_whatWasLateIsFoundToo(place):
    # it was about to write when another one filled the file and began the next
    mine, theirs = [place.open(size=5 * LENGTH) for _ in range(2)]
    late = theirs._files[-1].fd
    append(mine, *range(5))
    append(mine, 5)
    line = encodeLine({"key": asked(6).key.hex(), "receipt": attrs.asdict(receiptFor(asked(6)))})
    os.write(late, line)
    assert found(mine, range(7)) == list(range(7))
    assert found(place.open(size=5 * LENGTH), range(7)) == list(range(7))


@pytest.mark.parametrize("jump", [3 * 86400.0, -3 * 86400.0, 20 * 365 * 86400.0])
def test_noClockDecidesWhatIsFoundOrTold(place, clock, jump):
    log, outbox = place.open(), place.outbox()
    append(log, 1)
    clock.wall += jump
    append(log, 2)
    clock.wall -= jump
    append(log, 3)
    told = [taken[1].name for taken in iter(outbox.take, None)]
    assert told == ["x1", "x2", "x3"]
    assert found(log, range(4)) == found(place.open(), range(4)) == [1, 2, 3]


# -- forgetting ---------------------------------------------------------------


def test_receiptsAreForgottenAfterAWeek(place, clock):
    log = place.open(size=3 * LENGTH)
    for number in range(8):
        append(log, number)
    clock.run(KEPT_SECONDS - 60)
    log.expire()
    clock.run(OVERDUE_SECONDS)
    log.expire()
    assert found(log, range(8)) == list(range(8))
    clock.run(OVERDUE_SECONDS)
    log.expire()
    # not the last one: somebody may be about to write to it
    assert found(log, range(8)) == found(place.open(), range(8)) == [6, 7]
    assert [path.name for path in place.files()] == ["done-3"]
    assert place.files("index") == []
    append(log, 8)
    assert found(log, range(9)) == [6, 7, 8]


def test_aClockThatJumpedForgetsNothing(place, clock):
    log = place.open(size=3 * LENGTH)
    outbox = place.outbox()
    for number in range(8):
        append(log, number)
    for _ in range(5):
        clock.wall += 9 * 86400
        log.expire()
        clock.own += OVERDUE_SECONDS - 1
        log.expire()
        clock.wall -= 9 * 86400
        log.expire()
    assert found(log, range(8)) == found(place.open(), range(8)) == list(range(8))
    assert [taken[1].name for taken in iter(outbox.take, None)] == [f"x{n}" for n in range(8)]


def test_descriptorsOfForgottenFilesAreClosed(place, clock):
    log = place.open(size=LENGTH, files=4)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(30):
        append(log, number)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    clock.run(KEPT_SECONDS + 60)
    log.expire()
    clock.run(OVERDUE_SECONDS)
    log.expire()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("rest", ["nothing", "more"])
def test_aProcessThatSleptForAWeekWritesWhereOthersRead(place, clock, rest):
    asleep, awake = [place.open(size=3 * LENGTH) for _ in range(2)]
    append(asleep, 0)
    for number in range(1, 8):
        append(awake, number)
    clock.run(KEPT_SECONDS + 60)
    awake.expire()
    clock.run(OVERDUE_SECONDS)
    awake.expire()
    if rest == "more":
        for number in range(8, 11):
            append(awake, number)
    append(asleep, 20)
    assert {path.name[6:] for path in place.files("index")} <= {p.name[5:] for p in place.files()}
    assert found(awake, [20]) == found(place.open(), [20]) == [20]
    assert found(asleep, range(6, 8)) == [6, 7]


# -- the disk -----------------------------------------------------------------


class Gate:
    """
    Lets a call of another thread wait.
    """

    def __init__(self, name):
        self._name = name
        self.reached = threading.Event()
        self.open = threading.Event()

    def before(self, name, arguments, keywords):
        if name == self._name and not self.open.is_set():
            self.reached.set()
            assert self.open.wait(STUCK)


def inThread(function, *arguments, **values):
    thread = threading.Thread(target=function, args=arguments, kwargs=values)
    thread.start()
    return thread


def test_nobodyWaitsForTheSyncOfAnother(place):
    gate = Gate("fdatasync")
    log = place.open(gate.before)
    syncing = inThread(append, log, 1, sync=True)
    assert gate.reached.wait(STUCK)
    began = time.monotonic()
    append(log, 2)
    assert found(log, range(4)) == [1, 2]
    log.expire()
    assert time.monotonic() - began < STUCK / 2
    gate.open.set()
    syncing.join()


def test_whoCameDuringASyncNeedsAnother(place):
    gate = Gate("fdatasync")
    log = place.open(gate.before)
    first = inThread(append, log, 1, sync=True)
    assert gate.reached.wait(STUCK)
    others = [inThread(append, log, number, sync=True) for number in range(2, 10)]
    while found(log, range(10)) != list(range(1, 10)):
        time.sleep(0.001)
    assert all(other.is_alive() for other in others)
    gate.open.set()
    for each in (first, *others):
        each.join(STUCK)
    # one for them all
    assert log._sys.names().count("fdatasync") == 2


def test_everySyncBeginsAfterTheWrite(place):
    """
    Many threads: none returns before a sync that began after its own write.
    """
    events = []
    log = place.open(lambda name, arguments, keywords: events.append((name, threading.get_ident())))

    def work(own):
        for number in range(20):
            append(log, own * 100 + number, sync=True)
            events.append(("acknowledged", threading.get_ident()))

    threads = [inThread(work, own) for own in range(6)]
    for thread in threads:
        thread.join()
    written = {}
    synced = 0
    for at, (name, thread) in enumerate(events):
        if name == "write":
            written[thread] = at
        elif name == "fdatasync":
            synced = at
        elif name == "acknowledged":
            assert synced > written[thread]
    assert found(place.open(), range(600)) == [n for n in range(600) if n % 100 < 20]


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_aFailedSyncIsNotTriedAgain(place, call):
    gate = Gate(call)
    broken = [True]

    def before(name, arguments, keywords):
        gate.before(name, arguments, keywords)
        if name == call and broken[0]:
            broken[0] = False
            raise OSError(errno.EIO, "Input/output error")

    log = place.open(before)
    failed = []

    def noted(number):
        try:
            append(log, number, sync=True)
        except OSError:
            failed.append(number)

    first = inThread(noted, 1)
    assert gate.reached.wait(STUCK)
    second = inThread(noted, 2)
    while found(log, [1, 2]) != [1, 2]:
        time.sleep(0.001)
    gate.open.set()
    first.join()
    second.join()
    # the kernel may call its pages clean although it never wrote them
    assert sorted(failed) == [1, 2]
    assert found(log, [1, 2], sync=True) == []
    append(log, 3, sync=True)
    assert found(log, [1, 2, 3], sync=True) == [3]
    append(log, 1, sync=True)
    for each in (log, place.open()):
        assert found(each, [1, 3], sync=True) == [1, 3]
    assert [path.name for path in place.files()] == ["done-1", "done-2"]


def test_whatSomebodyElseDidNotSyncIsSyncedBeforeItIsTold(place):
    mine, theirs = place.open(), place.open()
    append(mine, 1)
    assert found(theirs, [1]) == [1]
    assert "fdatasync" not in theirs._sys.names()
    for _ in range(2):
        assert found(theirs, [1, 2], sync=True) == [1]
        assert theirs._sys.names().count("fdatasync") == 1
        assert theirs._sys.names().count("fsync") == 1  # the directory


class Died(BaseException):
    pass


def killer(at):
    calls = iter(range(1 << 30))
    dead = []

    def before(name, arguments, keywords):
        if dead or next(calls) == at:
            dead.append(name)
            raise Died

    return before


def life(place, before=None, **values):
    """
    A process that fills files and forgets some.

    @return: its log, and what it got acknowledged.
    """
    told = []
    log = None
    try:
        log = place.open(before, size=4 * LENGTH, files=4, **values)
        for number in range(11):
            append(log, 2 * number, 2 * number + 1, sync=True)
            told += [2 * number, 2 * number + 1]
            if log.find(asked(2 * number), 1, sync=True) is None:
                raise AssertionError(number)
    except Died:
        pass
    return log, told


@pytest.fixture
def fewPlaces(monkeypatch):
    monkeypatch.setattr(receiptlog, "RECENT_OFFSETS", 3)
    monkeypatch.setattr(receiptlog, "INDEXED_RECEIPTS", 1)


@pytest.mark.usefixtures("fewPlaces")
def test_aDeathAtAnyCallLosesNothing(place):
    log, told = life(place)
    calls = len(log._sys.log)
    for at in range(calls):
        place.close()
        shutil.rmtree(place.path)
        place.path.mkdir()
        _, told = life(place, killer(at))
        place._close.clear()  # the dead close nothing
        for _ in range(2):
            log = place.open()
            assert found(log, told) == told
            append(log, 100)
            assert found(log, [*told, 100]) == [*told, 100]
            log.close()
            place._close.pop()


@pytest.mark.usefixtures("fewPlaces")
@pytest.mark.parametrize("strict", [True, False])
def test_aPowerCutAfterAnyCallLosesNothing(place, tmp_path, strict):
    told = []
    place.path.joinpath("done-1").touch()
    disk = Disk(strict=strict)
    disk.load(place.path)
    log, _ = life(place)
    fd = log._directory.fd
    disk._fds[fd] = disk.root
    chance = random.Random(1)
    numbers = iter(range(0, 1000, 2))
    for call, following in pairwise([*log._sys.log, ("end", (), {}, None)]):
        disk.apply(*call)
        # an append ends with its last sync, and then it is looked up
        if call[0] in {"fdatasync", "fsync"} and following[0] not in {"fdatasync", "fsync"}:
            number = next(numbers)
            told += [number, number + 1]
        for tree in disk.after(chance):
            where = tmp_path / "after"
            shutil.rmtree(where, ignore_errors=True)
            materialise(tree, where)
            after = Place(where, place.clock)
            again = after.open(size=4 * LENGTH)
            assert found(again, told) == told, call
            append(again, 500)
            again.close()
            assert found(after.open(), [*told, 500]) == [*told, 500]
            after._close.pop(1)
            after.close()
    assert len(told) == 22


# -- starting -----------------------------------------------------------------


def read(log):
    """
    Bytes of receipts that were read.
    """
    size = 0
    names = {}
    for name, arguments, _, result in log._sys.log:
        if name == "open":
            names[result] = arguments[0]
        elif name == "pread" and names[arguments[0]].startswith("done"):
            size += len(result)
    return size


def test_aStartReadsLittle(place, monkeypatch):
    monkeypatch.setattr(receiptlog, "RECENT_OFFSETS", 256)
    monkeypatch.setattr(receiptlog, "INDEXED_RECEIPTS", 100)
    log = place.open(size=1000 * LENGTH)
    for number in range(0, 5000, 60):
        append(log, *range(number, min(number + 60, 5000)))
    killed = place.open(size=1000 * LENGTH)
    assert read(killed) <= 300 * LENGTH
    assert found(killed, range(5001)) == list(range(5000))
    log.close()
    again = place.open(size=1000 * LENGTH)
    assert read(again) < 100 * LENGTH
    assert found(again, range(5001)) == list(range(5000))


@pytest.mark.usefixtures("fewPlaces")
@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-8],
        lambda data: data[:20],
        lambda data: data + bytes(8),
        lambda data: os.urandom(len(data)),
        lambda data: bytes(8) + data[8:],
    ],
)
def test_aDamagedIndexIsNotBelieved(place, change):
    log = place.open()
    append(log, *range(10))
    log.close()
    (index,) = place.files("index")
    index.write_bytes(change(index.read_bytes()))
    again = place.open()
    assert found(again, range(11)) == list(range(10))


@pytest.mark.usefixtures("fewPlaces")
def test_anIndexOfMoreThanThereIs(place):
    # the power took the end of the file, which was not synced, and not the index
    log = place.open()
    append(log, *range(10))
    log.close()
    os.truncate(place.files()[0], 4 * LENGTH)
    log = place.open()
    assert found(log, range(10)) == [0, 1, 2, 3]
    append(log, *range(20, 40))
    place.files("index")[0].unlink(missing_ok=True)
    for each in (log, place.open()):
        assert found(each, range(40)) == [0, 1, 2, 3, *range(20, 40)]


@pytest.mark.usefixtures("fewPlaces")
def test_anIndexThatCannotBeWrittenIsMissedByNobody(place):
    def before(name, arguments, keywords):
        if name == "open" and arguments[0].startswith("index"):
            raise OSError(errno.ENOSPC, "No space left on device")

    log = place.open(before)
    append(log, *range(10))
    append(log, 10)
    log.close()
    assert found(place.open(), range(12)) == list(range(11))


def test_twoKeysWithOnePlace():
    one, two, three = b"same0", b"same1", b"else0"
    places = ReceiptOffsets()
    places.note(one, 1)
    places.note(two, 2)
    places.note(three, 3)
    assert [list(places.of(each)) for each in (one, two, three)] == [[1], [2], [3]]
    places.known = 10
    kept = places.sort()
    for each in (places, ReceiptOffsets()):
        assert each.restore(kept, 10)
        assert [sorted(each.of(key)) for key in (one, two, three)] == [[1, 2], [1, 2], [3]]
        assert list(each.of(b"nine")) == []
        each.note(one, 7)
        assert sorted(each.of(one)) == [1, 2, 7]
    assert not ReceiptOffsets().restore(kept, 9)


@pytest.mark.usefixtures("fewPlaces")
@pytest.mark.parametrize("seed", range(10))
def test_manyProcessesManyRestarts(place, seed):
    chance = random.Random(seed)
    logs = [place.open(size=12 * LENGTH, files=100) for _ in range(3)]
    told = []
    for number in range(120):
        log = chance.choice(logs)
        match chance.randrange(12):
            case 0:
                if chance.random() < 0.5:
                    log.close()
                logs[logs.index(log)] = place.open(size=12 * LENGTH, files=100)
            case 1:
                for index in place.files("index")[-2:]:
                    index.write_bytes(index.read_bytes()[: chance.randrange(64)])
            case 2 | 3:
                assert found(log, told) == told
            case _:
                append(log, number, sync=chance.random() < 0.3)
                told.append(number)
    for log in logs:
        assert found(log, told) == told
    assert found(log, range(200, 210)) == []
