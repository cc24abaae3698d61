"""
Sender and receiver against each other, in memory.
"""

import os
import random

import pytest

from connpool.errors import (
    AuthenticationFailed,
    Busy,
    DigestMismatch,
    Forbidden,
    NameRefused,
    NetworkFailed,
    SourceError,
    TooLarge,
    Unsupported,
)
from connpool.transfer.receive.policy import Policy
from connpool.transfer.send.credentials import Credentials
from connpool.transfer.send.request import SendRequest
from connpool.transfer.stores import MemoryStore
from connpool.transfer.wire.frames import Type
from tests.transfer.world import SMALL_BLOCKS, MemoryTransport, Passwords, Wire, World

SMALL = 256 * 1024


def content(count, seed=1):
    return random.Random(seed).randbytes(count)


def frames(wire, side):
    """
    The types of the frames one side sent.
    """
    from connpool.transfer.wire.frames import Frame, FrameReader

    reader = FrameReader()
    raw = b"".join(wire.log[side])[8:]
    return [event.type for event in reader.feed(raw) if isinstance(event, Frame)]


SIZES = [0, 1, 4096, SMALL, SMALL + 1, SMALL + 4096, 600_001]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("digest", ["sha256", "blake3", "xxh3"])
def test_oneFile(tmp_path, source, size, digest):
    world = World(tmp_path / "state", digests=(digest,))
    path = source / "file"
    path.write_bytes(content(size))
    path.chmod(0o755)
    report = world.send(path, digests=(digest,))
    assert report.exitCode == 0
    assert world.store.files == {"file": content(size)}
    (outcome,) = report.outcomes
    receipt = outcome.receipt
    assert (receipt.name, receipt.size, receipt.status) == ("file", size, "stored")
    assert (receipt.integrity, receipt.digest) == ("verified", digest)
    (live,) = world.wires
    assert (Type.PUT in frames(live, 0)) == (size <= SMALL)
    world.close()


@pytest.mark.parametrize("chunk", [1, 3, 16, 17, 4096])
def test_anyCuts(world, source, chunk):
    (source / "a").write_bytes(content(50))
    (source / "b").write_bytes(content(SMALL + 5 if chunk > 100 else 20_000))
    world.plan = [{"chunk": chunk}]
    report = world.send(source)
    assert report.exitCode == 0
    assert {len(data) for data in world.store.files.values()} == {
        50,
        SMALL + 5 if chunk > 100 else 20_000,
    }


def test_directoriesAndManyFiles(world, source):
    for number in range(500):
        path = source / f"d{number % 7}" / f"e{number % 3}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(number, number))
    (source / "large").write_bytes(content(SMALL * 3))
    report = world.send(source)
    assert report.exitCode == 0
    assert len(world.store.files) == 501
    for number in range(500):
        name = f"source/d{number % 7}/e{number % 3}/{number}"
        assert world.store.files[name] == content(number, number)
    assert world.store.files["source/large"] == content(SMALL * 3)


def test_smallFilesNeedNoRoundTripEach(tmp_path, source, monkeypatch):
    """
    The number of times the sender has to wait does not grow with the files.
    """
    monkeypatch.setattr(MemoryTransport, "limit", 1 << 30)

    def waits(count):
        for number in range(count):
            (source / f"{number}").write_bytes(b"x")
        world = World(tmp_path / f"state{count}")
        results = world.start(world.sending(source))
        rounds = 0
        while not results:
            # one direction at a time: a round trip is two of these
            wire = world.wires[-1]
            moved = False
            for end in wire.ends:
                if end.outbox:
                    moved = True
                    other = wire.ends[1 - end.side]
                    data = end.take(end.unsent)
                    other.protocol.dataReceived(data)
                    end.drained()
            world.clock.advance(0)
            rounds += moved
            assert rounds < 100
        assert len(world.store.files) == count
        world.pump()
        world.close()
        return rounds

    few = waits(30)
    assert waits(3000) <= few + 2


def test_acksAreCumulative(world, source):
    for number in range(1000):
        (source / f"{number}").write_bytes(b"x")
    world.send(source)
    sent = frames(world.wires[0], 0)
    answers = frames(world.wires[0], 1)
    # no more than 512 files or about 64 KiB of names and keys go in one frame
    assert sent.count(Type.PUT) <= 1
    assert 2 <= sent.count(Type.PUTS) <= 6
    assert answers.count(Type.ACK) < 30
    assert answers.count(Type.RECEIPT) == 0


def test_dryRun(world, source):
    (source / "empty").write_bytes(b"")
    (source / "large").write_bytes(content(SMALL * 2))
    (source / "bad:name").write_bytes(b"")
    report = world.send(source, request=SendRequest(dry=True))
    assert not world.store.files
    assert {outcome.name: outcome.good for outcome in report.outcomes} == {
        "source/empty": True,
        "source/large": True,
        "source/bad:name": False,
    }
    assert report.exitCode == 4


def test_aRefusedNameDoesNotHarmTheRest(world, source):
    for name in ("a", "b:c", "d"):
        (source / name).write_bytes(b"x")
    (source / "large:x").write_bytes(content(SMALL * 2))
    report = world.send(source)
    assert sorted(world.store.files) == ["source/a", "source/d"]
    assert {type(outcome.error) for outcome in report.failed} == {NameRefused}
    assert len(world.wires) == 1


def test_tooLarge(tmp_path, source):
    world = World(tmp_path / "state", Policy(maxFileSize=1000, minimumRate=0))
    (source / "a").write_bytes(content(1001))
    (source / "b").write_bytes(content(1000))
    (source / "c").write_bytes(content(SMALL * 2))
    report = world.send(source)
    assert sorted(world.store.files) == ["source/b"]
    assert {type(outcome.error) for outcome in report.failed} == {TooLarge}
    assert report.exitCode == 4
    world.close()


def test_aSenderMayNotLoosenTheRule(world, source):
    (source / "a").write_bytes(b"new")
    world.store.files["a"] = b"old"
    report = world.send(source / "a", request=SendRequest(ifExists="replace", durability="none"))
    assert isinstance(report.failed[0].error, Forbidden)
    assert world.store.files == {"a": b"old"}


@pytest.mark.parametrize("size", [10, SMALL + 10])
def test_renamedAndDuplicate(world, source, size):
    (source / "a").write_bytes(content(size))
    assert world.send(source / "a").outcomes[0].receipt.status == "stored"
    # a run that ended begins anew: the same content is no second copy
    receipt = world.send(source / "a").outcomes[0].receipt
    assert (receipt.status, receipt.name) == ("duplicate", "a")
    (source / "a").write_bytes(content(size, 2))
    receipt = world.send(source / "a").outcomes[0].receipt
    assert receipt.status == "stored"
    assert receipt.name != "a"
    assert world.store.files[receipt.name] == content(size, 2)
    assert len(world.store.files) == 2


def test_durabilityThatIsNotReachedIsNotSuccess(world, source):
    (source / "a").write_bytes(b"x")
    report = world.send(source / "a", request=SendRequest(durability="full"))
    assert report.outcomes[0].receipt.durability == "none"
    assert report.exitCode == 3


def test_sourcesThatCannotBeSent(world, source):
    (source / "good").write_bytes(b"x")
    os.mkfifo(source / "fifo")
    (source / "link").symlink_to("/etc/passwd")
    with open(os.fsencode(source) + b"/\xff", "wb"):
        pass
    report = world.send(source, source / "missing")
    assert list(world.store.files) == ["source/good"]
    assert {type(outcome.error) for outcome in report.failed} == {SourceError}
    assert len(report.failed) == 3
    assert report.exitCode == 3


def test_noCommonDigest(tmp_path, source):
    world = World(tmp_path / "state", digests=("sha256",))
    (source / "a").write_bytes(b"x")
    report = world.send(source / "a", digests=("blake3",))
    error = report.failed[0].error
    assert isinstance(error, Unsupported)
    assert "sha256" in str(error)
    assert "blake3" in str(error)
    assert report.exitCode == 4
    assert report.connections == 0
    world.close()


def test_refusedConnection(world, source):
    (source / "a").write_bytes(b"x")
    world.refuse = True
    report = world.send(source / "a")
    assert isinstance(report.failed[0].error, NetworkFailed)
    assert report.exitCode == 7


# -- damage -------------------------------------------------------------------


def test_flippedBitsAreRepairedBlockByBlock(world, source):
    data = content(SMALL + 40_000)
    (source / "a").write_bytes(data)
    world.plan = [{"flips": [(0, 20_000), (0, 100_000), (0, 100_001), (0, 290_000)]}]
    report = world.send(source / "a")
    assert report.exitCode == 0
    assert world.store.files == {"a": data}
    # the damaged blocks, each at most twice more: COMMIT may have been on its way
    assert 3 * 4096 <= report.sentBytes - len(data) <= 2 * 5 * 4096
    assert len(world.wires) == 1


def test_flippedBitInASmallFile(world, source):
    (source / "a").write_bytes(content(10_000))
    world.plan = [{"flips": [(0, 5_000)]}]
    assert world.send(source / "a").exitCode == 0
    assert world.store.files == {"a": content(10_000)}


@pytest.mark.parametrize("size", [SMALL + 10_000, 10_000])
def test_aPathThatAlwaysDamagesIsGivenUp(world, source, size):
    data = bytearray(content(size))
    data[5000:5006] = b"virus!"
    (source / "a").write_bytes(data)
    original = Wire._pass

    class Filter(Wire):
        def _pass(self, end, other, data):
            original(self, end, other, data.replace(b"virus!", b"clean!"))

    world.wire = Filter
    report = world.send(source / "a")
    assert isinstance(report.failed[0].error, DigestMismatch)
    assert report.exitCode == 5
    assert len(world.wires) == 1
    assert not world.store.files


# -- who may -------------------------------------------------------------------


def test_credentials(tmp_path, source, monkeypatch):
    from connpool.transfer.receive import greeting
    from connpool.transfer.send import session

    (source / "a").write_bytes(b"x")
    world = World(tmp_path / "state", authenticator=Passwords(b"right"))
    # a connection that is not known to be safe: neither side goes on
    report = world.send(source / "a", credentials=Credentials("me", b"right"))
    assert isinstance(report.failed[0].error, AuthenticationFailed | Forbidden)
    assert b"right" not in b"".join(world.wires[-1].log[0])
    monkeypatch.setattr(greeting, "credentialsAreSafe", lambda transport: True)
    report = world.send(source / "a", credentials=Credentials("me", b"right"))
    assert isinstance(report.failed[0].error, AuthenticationFailed)
    assert b"right" not in b"".join(world.wires[-1].log[0])
    monkeypatch.setattr(session, "credentialsAreSafe", lambda transport: True)
    report = world.send(source / "a", credentials=Credentials("me", b"wrong"))
    assert isinstance(report.failed[0].error, AuthenticationFailed)
    assert report.exitCode == 6
    report = world.send(source / "a")
    assert report.exitCode == 6
    assert not world.store.files
    report = world.send(source / "a", credentials=Credentials("me", b"right"))
    assert report.outcomes[0].receipt.principal == "me"
    world.close()


class Occupied(MemoryStore):
    """
    Another process has every partial, for some time.
    """

    def __init__(self, times):
        super().__init__()
        self.times = times

    def open(self, offer, holder=None):
        if self.times:
            self.times -= 1
            raise Busy("another process receives it")
        return super().open(offer, holder)


def test_busyIsTriedAgain(tmp_path, source):
    (source / "a").write_bytes(content(SMALL * 2))
    world = World(tmp_path / "state", store=Occupied(2))
    assert world.send(source / "a").exitCode == 0
    world.close()
    world = World(tmp_path / "state", store=Occupied(100))
    report = world.send(source / "a")
    assert isinstance(report.failed[0].error, Busy)
    world.close()


def test_changedSourceIsNoticed(world, source, monkeypatch):
    """
    Written to between the first and the last read: never committed as it was.
    """
    path = source / "a"
    path.write_bytes(content(SMALL * 2))
    world.plan = [{"chunk": 4096}]
    results = world.start(
        world.sending(path, request=SendRequest(durability="none", blockSize=4096))
    )
    while world.wires[-1].sent[0] < SMALL:
        world.wires[-1].step()
    path.write_bytes(content(SMALL * 2, 2))
    report = world.finish(results)
    assert report.exitCode == 0
    assert world.store.files == {"a": content(SMALL * 2, 2)}


def test_sourceThatKeepsChanging(world, source, monkeypatch):
    from connpool.transfer.send import transmission

    monkeypatch.setattr(transmission, "unchanged", lambda fd, status: False)
    (source / "a").write_bytes(content(SMALL * 2))
    report = world.send(source / "a")
    assert report.exitCode == 8
    assert not world.store.files


def test_shrunkSource(world, source):
    path = source / "a"
    path.write_bytes(content(SMALL * 2))
    world.plan = [{"chunk": 4096}]
    results = world.start(world.sending(path, request=SMALL_BLOCKS))
    while world.wires[-1].sent[0] < 50_000:
        world.wires[-1].step()
    os.truncate(path, 300_000)
    report = world.finish(results)
    assert report.exitCode == 0
    assert world.store.files == {"a": content(SMALL * 2)[:300_000]}


@pytest.mark.parametrize("old", [False, True], ids=["today", "without the extension"])
@pytest.mark.parametrize("way", ["put", "offer"])
@pytest.mark.parametrize("year", [1960, 1678, 2200, 2400, 9999])
def test_anyTimeArrives(root, source, monkeypatch, year, way, old):
    when = int((year - 1970) * 31_556_952) * 10**9 + 123_456_789
    if old:  # it takes 64 bits, and ignores what it does not know
        for module in ("session", "smallfiles"):
            name = f"connpool.transfer.receive.{module}.timeOf"
            monkeypatch.setattr(name, lambda m: m.modified)
    path = source / "dated"
    path.write_bytes(content(SMALL * 2) if way == "offer" else b"x")
    really = os.fstat

    def fstat(fd):
        # whatever this machine's file systems can hold
        status = really(fd)
        if status.st_ino != path.stat().st_ino:
            return status
        return StatusAt(status, when)

    monkeypatch.setattr("connpool.transfer.send.source.os.fstat", fstat)
    world = World()
    report = world.send(path)
    assert report.exitCode == 0
    monkeypatch.undo()
    held = min(max(when, -(2**63)), 2**63 - 1) if old else when
    assert world.store._modified["dated"] == held
    world.close()


class StatusAt:
    """
    A file's status with another modification time.
    """

    def __init__(self, status, when):
        self._status = status
        self.st_mtime_ns = when

    def __getattr__(self, name):
        return getattr(self._status, name)
