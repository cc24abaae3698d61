"""
The small parts of the local store, each alone.
"""

from __future__ import annotations

import itertools
import os
import resource
from zlib import crc32

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from connpool.errors import NoSpace
from connpool.transfer import LocalStore
from connpool.transfer.iothreads import CALM_WRITES, INLINE_SECONDS, Latency
from connpool.transfer.records import SmallFile
from connpool.transfer.stores import groupcommit
from connpool.transfer.stores.directories import Directories
from connpool.transfer.stores.groupcommit import GroupCommit
from connpool.transfer.stores.journal import (
    Committing,
    Journal,
    blocksRecord,
    committingRecord,
    header,
)
from connpool.transfer.stores.ranges import Ranges, blockRange
from connpool.transfer.stores.recordlines import decodeLine, encodeLine, linesOf
from connpool.transfer.stores.syncing import SyncChoice
from tests.helpers.waiting import assertNoResult, successResultOf
from tests.transfer.stores.kit import InlineReactor, Recorded, offer

# -- ranges -------------------------------------------------------------------

SPAN = st.tuples(st.integers(0, 60), st.integers(0, 60))


@given(st.lists(st.tuples(st.booleans(), SPAN), max_size=40), SPAN)
def test_rangesAreSets(steps, asked):
    ranges, model = Ranges(), set()
    for adds, (start, end) in steps:
        if adds:
            ranges.add(start, end)
            model |= set(range(start, end))
        else:
            ranges.remove(start, end)
            model -= set(range(start, end))
    assert {byte for start, end in ranges for byte in range(start, end)} == model
    pairs = list(ranges)
    # sorted, disjoint, not even touching
    assert all(start < end for start, end in pairs)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(pairs))
    assert ranges.total == len(model)
    assert ranges.end == max(model, default=-1) + 1
    wanted = set(range(*asked))
    assert ranges.overlaps(*asked) == bool(wanted & model)
    assert ranges.covers(*asked) == (wanted <= model)
    assert ranges == Ranges(pairs)
    assert ranges[:] == pairs
    assert [ranges[index] for index in range(len(ranges))] == pairs


@given(st.sets(st.integers(0, 40), max_size=20), st.integers(1, 9), st.none() | st.integers(1, 400))
def test_rangesOfBlocks(blocks, blockSize, size):
    there = [block for block in sorted(blocks) if size is None or block * blockSize < size]
    expected = Ranges()
    for block in there:
        expected.add(*blockRange(block, blockSize, size))
    ranges = Ranges.ofBlocks(there, blockSize, size)
    assert (ranges, ranges.total) == (expected, expected.total)


# -- latency ------------------------------------------------------------------


def test_slowWritesLeaveTheReactor():
    latency = Latency()
    for _ in range(100):
        latency.took(INLINE_SECONDS * 0.9)
    assert latency.inline
    latency.took(INLINE_SECONDS * 4)
    assert not latency.inline


def test_oneLateWriteIsNothing():
    latency = Latency()
    for turn in range(200):
        latency.took(INLINE_SECONDS * 3 if turn % 40 == 0 else INLINE_SECONDS / 100)
        assert latency.inline


def test_oneVerySlowWriteIsEnough():
    latency = Latency()
    latency.took(0.1)
    assert not latency.inline
    for _ in range(CALM_WRITES - 1):
        latency.took(0.0001)
        assert not latency.inline
    latency.took(0.1)
    for _ in range(CALM_WRITES - 1):
        latency.took(0.0001)
        assert not latency.inline
    latency.took(0.0001)
    assert latency.inline


# -- batches ------------------------------------------------------------------


def test_theQuickerSyncIsChosen():
    for quicker in (True, False):
        choice = SyncChoice()
        ways = []
        for _ in range(4 * choice.RETRY_BATCHES):
            way = choice.together(100)
            ways.append(way)
            choice.took(way, 100, 1.0 if way == quicker else 10.0)
        assert ways.count(not quicker) == 1 + 4  # once to know, then now and then
        assert not choice.together(choice.LEAST_FILES - 1)


def test_aQuickSyncHasNoRival():
    choice = SyncChoice()
    assert choice.quicker(100)
    for _ in range(4 * choice.RETRY_BATCHES):
        assert choice.together(100)
        choice.took(True, 100, 100 * choice.QUICK_SECONDS / 2)
    assert choice.quicker(100)
    assert not choice.quicker(choice.LEAST_FILES - 1)


def test_aSyncThatBecameSlowIsLeft():
    choice = SyncChoice()
    for _ in range(10):
        choice.took(True, 100, 1.0)
        choice.took(False, 100, 2.0)
    assert choice.together(100)
    for _ in range(10):
        choice.took(True, 100, 50.0)  # somebody else writes a lot there
    assert not choice.together(100)
    assert not choice.quicker(100)


def small(size=1):
    return SmallFile(offer(), b"x" * size, None)


def test_batchesCollectWhileOneIsUnderWay():
    clock = Clock()
    running = []

    def run(files):
        running.append((list(files), Deferred()))
        return running[-1][1]

    group = GroupCommit(run, clock.callLater)
    files = [small() for _ in range(5)]
    first, second = group.add(files[:1]), group.add(files[1:2])
    assert running == []  # what comes in this turn comes along
    clock.advance(0)
    assert [each for each, _ in running] == [files[:2]]
    rest = group.add(files[2:])
    drained = group.drained()
    assert len(running) == 1
    running[0][1].callback(["one", "two"])
    assert [successResultOf(each) for each in (first, second)] == [["one"], ["two"]]
    assert [each for each, _ in running[1:]] == [files[2:]]
    assertNoResult(drained)
    full = Failure(NoSpace("full"))
    running[1][1].callback([full, "four", "five"])
    assert successResultOf(rest) == [full, "four", "five"]
    successResultOf(drained)
    successResultOf(group.drained())
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("limit", "files"),
    [(64, 256), (1024, 256), (4096, 512), (1 << 20, 1024), (resource.RLIM_INFINITY, 1024)],
)
def test_aBatchHoldsAShareOfTheDescriptors(monkeypatch, limit, files):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    assert groupcommit.batchFiles() == files


def test_batchesAreBounded():
    clock, most = Clock(), groupcommit.batchFiles()
    sizes = []

    def run(files):
        sizes.append(len(files))
        d = Deferred()
        clock.callLater(1, d.callback, ["done"] * len(files))
        return d

    group = GroupCommit(run, clock.callLater, lambda file: len(file.data))
    many = group.add([small() for _ in range(most + 1)])
    for _ in range(3):
        group.add([small(groupcommit.BATCH_BYTES)])
    clock.pump([0, 1])
    assertNoResult(many)  # those that are asked for together are answered together
    clock.pump([1, 1, 1, 1, 1])
    assert successResultOf(many) == ["done"] * (most + 1)
    assert sizes == [most, 2, 1, 1]


def test_aBatchThatCannotRunFailsItsFilesOnly():
    clock = Clock()
    group = GroupCommit(lambda files: results.pop(0), clock.callLater)
    results = [Deferred(), Deferred()]
    first, second = results
    one = group.add([small(), small()])
    clock.advance(0)
    two = group.add([small()])
    first.errback(NoSpace("full"))
    assert [type(each.value) for each in successResultOf(one)] == [NoSpace, NoSpace]
    second.callback(["done"])
    assert successResultOf(two) == ["done"]


# -- records ------------------------------------------------------------------


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"\n", b"\n\n"])), max_size=9))
def test_linesSurviveWhatIsAroundThem(noise):
    record = {"x": [1, "two", None]}
    data = b"".join(noise) + encodeLine(record) + b"".join(noise)
    assert record in [decodeLine(line) for _, line in linesOf(data)]
    for offset, line in linesOf(data):
        assert data[offset : offset + len(line)] == line


@given(st.binary(max_size=200))
def test_anythingCanBeReadAsAJournal(data):
    assert Journal.read(data).offer is None
    whole = header(offer(size=1))
    assert Journal.read(whole + data).offer is not None


@given(st.integers(0, 400), st.integers(0, 255))
def test_oneWrongByteOfAJournalIsNoticed(position, value):
    asked = offer(size=1 << 20, key=b"k" * 32)
    data = bytearray(
        header(asked)
        + blocksRecord([(0, b"\1" * 32), (3, b"\2" * 32)])
        + committingRecord(Committing(1 << 20, b"\3" * 32, 7))
    )
    journal = Journal.read(bytes(data))
    assert journal.offer == asked
    assert journal.digests == {0: b"\1" * 32, 3: b"\2" * 32}
    assert journal.committing == Committing(1 << 20, b"\3" * 32, 7)
    data[position] = value
    journal = Journal.read(bytes(data))
    assert journal.offer in {None, asked}
    assert journal.digests in ({}, {0: b"\1" * 32, 3: b"\2" * 32})
    assert journal.committing in {None, Committing(1 << 20, b"\3" * 32, 7)}


def test_aNewDescriptionForgetsOrKeeps():
    blocks = blocksRecord([(0, b"\1" * 32)])
    first = offer(size=10)
    again, other = attrs.evolve(first, key=b"n" * 32), attrs.evolve(first, size=20)
    data = header(first) + blocks + header(again)
    assert Journal.read(data).offer == again
    assert Journal.read(data).digests == {0: b"\1" * 32}
    assert Journal.read(data + header(other)).offer == other
    assert Journal.read(data + header(other)).digests == {}


def test_publishingBeganIfThatIsTheLastThingSaid():
    asked = offer(size=10)
    began = Committing(10, b"\3" * 32, 7)
    data = header(asked) + blocksRecord([(0, b"\1" * 32)]) + committingRecord(began)
    assert Journal.read(data).committing == began
    assert Journal.read(data + b"half a rec").committing == began
    assert not Journal.read(data).describes(asked)
    for revoking in (header(asked), blocksRecord([(1, b"\1" * 32)])):
        assert Journal.read(data + revoking).committing is None
        assert Journal.read(data + revoking).describes(asked)
        assert Journal.read(data + revoking + committingRecord(began)).committing == began


def test_anotherVersionIsNotBelieved():
    asked = offer(size=10)
    record = decodeLine(header(asked)[1:-1])
    newer = encodeLine({**record, "version": 2})
    blocks = blocksRecord([(0, b"\1" * 32)])
    assert Journal.read(header(asked) + blocks + newer + blocks).offer is None
    again = Journal.read(newer + blocks + header(asked))
    assert (again.offer, again.digests) == (asked, {})


@pytest.mark.parametrize(
    "record",
    [
        b'{"blocks":[[1e999,"00"]]}',
        b'{"blocks":[[-1,"00"]]}',
        b'{"blocks":[[1.5,"00"]]}',
        b'{"blocks":[[1,"0"]]}',
        b'{"blocks":{"ab":1}}',
        b'{"blocks":5}',
        b'{"committing":[1e400,null,1]}',
        b'{"committing":[5,null]}',
        b'{"committing":5}',
        b'{"offer":5,"version":1}',
        b'{"offer":{},"version":1}',
        b"5",
    ],
)
def test_whatAJournalSaysIsCheckedAlthoughItsSumIsRight(record):
    asked = offer(size=10)
    journal = Journal.read(header(asked) + b"\n%08x %b\n" % (crc32(record), record))
    assert journal == Journal(asked, {}, None)


def test_aLongJournalSaysTheSameInShort():
    asked = offer(size=1 << 40, key=b"k" * 32)
    digests = [(block, block.to_bytes(32, "big")) for block in range(3000)]
    data = b"".join(header(asked) + blocksRecord([each]) for each in digests)
    journal = Journal.read(data)
    assert Journal.read(journal.record()) == journal
    assert len(journal.record()) < len(data) // 5
    # half of it is not lost with the other
    assert len(Journal.read(journal.record()[:-1000]).digests) == 2048


def test_theResumeKeyIsNowhereOnDisk(root):
    clock = InlineReactor()
    store = LocalStore(clock, root, threads=clock)
    secret = b"\xab\xcd" * 16
    partial = clock.wait(store.open(offer(size=70000, resumeKey=secret)))
    partial.write(0, b"x" * 65536)
    partial.record(0, b"\1" * 32)
    clock.wait(partial.suspend())
    for path in root.rglob("*"):
        assert secret.hex() not in path.name
        if path.is_file():
            content = path.read_bytes()
            assert secret not in content
            assert secret.hex().encode() not in content
    clock.wait(store.close())


# -- the tree -----------------------------------------------------------------


def test_descriptorsOfDirectoriesAreBounded(root):
    calls = Recorded()
    fd = os.open(root, os.O_RDONLY)
    tree = Directories(calls, fd, 0o750, keep=4)
    before = len(os.listdir("/proc/self/fd"))
    held = tree.acquire(("held", "below"), create=True)
    for number in range(30):
        tree.release(tree.acquire((f"d{number}", "e", "f"), create=True))
        assert len(os.listdir("/proc/self/fd")) <= before + 4 + 3 + 2
    assert os.fstat(held.fd).st_ino == (root / "held/below").stat().st_ino
    tree.release(held)
    tree.close()
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)


def test_theWayToADirectoryIsSyncedOnce(root):
    calls = Recorded()
    fd = os.open(root, os.O_RDONLY)
    tree = Directories(calls, fd, 0o750)
    directory = tree.acquire(("a", "b", "c"), create=True)
    tree.sync(directory)
    assert calls.names().count("fsync") == 4  # c, and the names of c, b and a
    tree.sync(directory)
    assert calls.names().count("fsync") == 5
    tree.release(directory)
    tree.close()
    os.close(fd)
