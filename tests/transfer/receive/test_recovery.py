"""
Broken connections, restarts, lost answers, and who may go on with what.
"""

import os
import random

import pytest
from twisted.internet.defer import CancelledError

from connpool.errors import Cancelled, ConflictTakeover
from connpool.transfer.receive import greeting, smallfiles
from connpool.transfer.receive.policy import Policy
from connpool.transfer.send.client import Retry
from connpool.transfer.stores.ranges import Ranges
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.handshake import CAPABILITIES
from connpool.transfer.wire.messages import Hello, Join
from tests.transfer.raw import connect
from tests.transfer.world import SMALL_BLOCKS, Passwords, Wire, World


def content(count, seed=1):
    return random.Random(seed).randbytes(count)


pytestmark = pytest.mark.usefixtures("smallFiles")


# -- a cut at every byte ----------------------------------------------------------


def reference(source):
    """
    Two small files and a large one of four blocks: under 20 KiB on the wire.
    """
    files = {"a": content(100), "b": content(1500, 2), "c": content(3 * 4096 + 100, 3)}
    for name, data in files.items():
        (source / name).write_bytes(data)
    return {f"source/{name}": data for name, data in files.items()}


def places(wire, side, step):
    """
    Every byte of what is not content, and some of the content.
    """
    total = wire.sent[side]
    raw = b"".join(wire.log[side])
    inside = set()
    for name in (content(100), content(1500, 2), content(3 * 4096 + 100, 3)[:4096]):
        at = raw.find(name)
        if at >= 0:
            inside.update(range(at + 1, at + len(name)))
    return [at for at in range(total + 1) if at not in inside or at % step == 0]


def cutEverywhere(tmp_path, source, monkeypatch, step, shard=(0, 1)):
    files = reference(source)
    world = World(tmp_path / "state")
    world.send(source)
    (wire,) = world.wires
    assert sum(wire.sent) < 64 * 1024
    todo = [
        (side, at, how)
        for side in (0, 1)
        for at in places(wire, side, step)
        for how in ("fin", "rst", "silent")
    ]
    world.close()
    for number, cut in enumerate(todo):
        if number % shard[1] != shard[0]:
            continue
        world = World(tmp_path / "state")
        world.plan = [{"cut": cut}]
        report = world.send(source)
        assert report.exitCode == 0, (cut, report)
        # no wrong byte, no second copy, nothing left over
        assert world.store.files == files, cut
        assert not world.store._partials, cut
        # a window at most is sent twice
        assert report.sentBytes <= 2 * sum(map(len, files.values())), cut
        world.settle(3)
        world.close()
    return len(todo)


@pytest.fixture(params=["together", "one by one"])
def ways(request, monkeypatch):
    monkeypatch.setattr(smallfiles, "SMALL_FILE_BYTES", 2048)
    if request.param == "one by one":
        fewer = tuple(name for name in CAPABILITIES if name != "puts")
        monkeypatch.setattr(greeting, "CAPABILITIES", fewer)


def test_aCutAtEveryByteOfTheControlParts(tmp_path, source, monkeypatch, ways):
    # a different tenth each day of the month would hide failures: a fixed one
    assert cutEverywhere(tmp_path, source, monkeypatch, step=509, shard=(3, 58)) > 3000


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_aCutAtEveryByte(tmp_path, source, monkeypatch, ways):
    assert cutEverywhere(tmp_path, source, monkeypatch, step=1) > 40_000


# -- resuming ---------------------------------------------------------------------


def interrupted(world, path, at, how="rst", **more):
    """
    A sender whose only connection breaks after C{at} bytes: it is dead then.
    """
    world.plan = [{"cut": (0, at, how), "chunk": 1024}]
    sending = world.sending(path, retry=Retry(attempts=1), **more)
    report = world.finish(world.start(sending))
    assert report.exitCode == 7
    return report


def test_aPartialFullOfHolesIsResumedInOneGo(world):
    client = connect(world).greet()
    blocks, key = 400, os.urandom(32)
    client.offer(1, size=4096 * blocks, resumeKey=key)
    for block in range(0, blocks, 2):
        client.data(1, 4096 * block, bytes(4096)).digests(1, block, bytes(4096))
    client.transport.abortConnection()
    world.pump()
    looks = 0

    class Counted(Ranges):
        def __iter__(self):
            nonlocal looks
            for pair in super().__iter__():
                looks += 1
                yield pair

    ((_, partial),) = world.store._partials.items()
    partial.held = Counted(list(partial.held))
    again = connect(world).greet().offer(1, size=4096 * blocks, resumeKey=key)
    assert again.last(Type.ACCEPT).ranges == blocks // 2
    assert looks < 5 * blocks


@pytest.mark.parametrize("restart", ["sender", "receiver"])
def test_resumeSendsOnlyWhatIsMissing(world, source, restart):
    data = content(50 * 4096)
    (source / "a").write_bytes(data)
    interrupted(world, source / "a", 150_000)
    if restart == "receiver":
        world.restart()
    report = world.send(source / "a")
    assert report.exitCode == 0
    assert world.store.files == {"a": data}
    assert report.resumedBytes > 130_000
    # what was verified is not sent again: one block at most was half there
    assert report.sentBytes + report.resumedBytes <= len(data) + 4096


def test_theFirstNewByteDoesNotWaitForTheOldOnes(world, source):
    """
    Missing blocks are sent before the held ones were compared.
    """
    data = content(50 * 4096)
    (source / "a").write_bytes(data)
    interrupted(world, source / "a", 150_000)
    held = []

    def run(function):
        from twisted.internet import defer

        if "blockDigests" in repr(function):
            d = defer.Deferred()
            held.append((d, function))
            return d
        return defer.maybeDeferred(function)

    sending = world.sending(source / "a")
    sending._inThread = sending._jobs._inThread = run
    results = world.start(sending)
    world.pump()
    assert held
    assert sending.report.sentBytes >= len(data) - 150_000
    assert Type.COMMIT not in kinds(world.wires[-1])
    while held:
        d, function = held.pop()
        d.callback(function())
        world.pump()
    assert world.finish(results).exitCode == 0


def kinds(wire, side=0):
    from connpool.transfer.wire.frames import Frame, FrameReader

    raw = b"".join(wire.log[side])[8:]
    return [event.type for event in FrameReader().feed(raw) if isinstance(event, Frame)]


def test_aChangedSourceIsRepaired(world, source):
    """
    Edited in the part that was sent already, with size and mtime kept.
    """
    path = source / "a"
    data = bytearray(content(50 * 4096))
    path.write_bytes(data)
    interrupted(world, path, 150_000)
    status = path.stat()
    data[10_000] ^= 1
    data[70_000] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = world.send(path)
    assert report.exitCode == 0
    assert world.store.files == {"a": bytes(data)}
    assert report.resumedBytes > 130_000
    assert Type.REVOKE in kinds(world.wires[-1])


def test_zerosAreNotTakenForMissing(world, source):
    (source / "a").write_bytes(bytes(40 * 4096) + content(4096))
    interrupted(world, source / "a", 100_000)
    report = world.send(source / "a")
    assert report.exitCode == 0
    assert report.sentBytes < 80_000


def test_resendAfterTheReceiverRemovedIt(world, source):
    (source / "a").write_bytes(content(100))
    assert world.send(source / "a").exitCode == 0
    world.store.files.clear()
    assert world.send(source / "a").exitCode == 0
    assert world.store.files == {"a": content(100)}


@pytest.mark.parametrize("size", [100, 3 * 4096])
def test_aLostAnswerMakesNoSecondCopy(world, source, size):
    (source / "a").write_bytes(content(size))
    world.store.files["a"] = b"another file"
    # everything arrives, and the answer does not
    wire = Wire()
    reply = wire._pass

    def lose(end, other, data):
        if end.side == 1 and any(k in kindsOf(data) for k in (Type.ACK, Type.RECEIPT)):
            wire.reset(wire.ends[1])
            return
        reply(end, other, data)

    wire._pass = lose
    world.wire = lambda **_: wire
    sending = world.sending(source / "a", retry=Retry(attempts=1))
    assert world.finish(world.start(sending)).exitCode == 7
    assert len(world.store.files) == 2
    world.wire = Wire
    receipt = world.send(source / "a").outcomes[0].receipt
    assert len(world.store.files) == 2
    assert world.store.files[receipt.name] == content(size)


def kindsOf(data):
    from connpool.transfer.wire.frames import Frame, FrameReader

    if data[:1] == b"\0":
        data = data[8:]
    return [event.type for event in FrameReader().feed(data) if isinstance(event, Frame)]


# -- take-over ----------------------------------------------------------------------


def test_aBlackHoledConnectionIsTakenOver(world, source):
    data = content(50 * 4096)
    (source / "a").write_bytes(data)
    world.plan = [{"cut": (0, 150_000, "silent"), "chunk": 1024}]
    first = world.start(world.sending(source / "a"))
    world.pump()
    before = world.clock.seconds()
    report = world.send(source / "a")
    assert world.clock.seconds() - before < 2
    assert report.exitCode == 0
    assert report.resumedBytes > 100_000
    assert world.store.files == {"a": data}
    # the first one finds its file done: the same receipt, no second copy
    world.finish(first)
    assert list(world.store.files) == ["a"]


def test_theEvictedSenderDoesNotTryAgain(world, source):
    data = content(50 * 4096)
    (source / "a").write_bytes(data)
    world.plan = [{"chunk": 1024}, {"chunk": 1024}]
    first = world.start(world.sending(source / "a"))
    while not world.wires or world.wires[0].sent[0] < 100_000:
        world.wires[0].step()
    second = world.start(world.sending(source / "a"))
    report = world.finish(first)
    assert [type(outcome.error) for outcome in report.failed] == [ConflictTakeover]
    assert world.finish(second).exitCode == 0
    assert len(world.wires) == 2
    assert world.store.files == {"a": data}


def test_epochRises(world):
    one, two = connect(world).greet(), connect(world).greet()
    one.offer(1, resumeKey=b"k" * 32)
    one.data(1, 0, bytes(4096)).digests(1, 0, bytes(4096))
    two.offer(1, resumeKey=b"k" * 32)
    assert one.last(Type.REJECT).code == "conflict-takeover"
    accept = two.last(Type.ACCEPT)
    assert (accept.state, accept.epoch, accept.ranges) == ("resume", 1, 1)
    # what the older one still sends is dropped, its session lives
    one.data(1, 4096, b"x" * 4096).digests(1, 1, b"x" * 4096)
    one.put(2, b"other", b"1")
    assert one.last(Type.ACK)
    two.data(1, 4096, bytes(4096)).digests(1, 1, bytes(4096)).commit(1, bytes(8192))
    assert two.last(Type.RECEIPT).status == "stored"
    assert world.store.files == {"f": bytes(8192), "other": b"1"}


# -- who may --------------------------------------------------------------------------


def test_aWrongResumeKeyLooksLikeANewFile(world, source):
    one = connect(world).greet().offer(1, resumeKey=b"k" * 32)
    one.data(1, 0, bytes(4096)).digests(1, 0, bytes(4096))
    one.transport.loseConnection()
    world.pump()
    new = connect(world).greet().offer(1, name=b"new", resumeKey=b"n" * 32).last(Type.ACCEPT)
    wrong = connect(world).greet().offer(1, resumeKey=b"w" * 32).last(Type.ACCEPT)
    none = connect(world).greet().offer(1, name=b"g").last(Type.ACCEPT)
    assert new == wrong == none
    right = connect(world).greet().offer(1, resumeKey=b"k" * 32).last(Type.ACCEPT)
    assert right.state == "resume"


def test_anotherUsersPartialIsOutOfReach(tmp_path, monkeypatch):
    monkeypatch.setattr(greeting, "credentialsAreSafe", lambda transport: True)
    world = World(tmp_path / "state", authenticator=Passwords(b"x"))
    key = b"k" * 32
    one = connect(world).greet("password", "one", b"x").offer(1, key=key, resumeKey=key)
    one.data(1, 0, bytes(4096)).digests(1, 0, bytes(4096))
    two = connect(world).greet("password", "two", b"x").offer(1, key=key, resumeKey=key)
    # neither found nor evicted
    assert two.last(Type.ACCEPT).state == "new"
    one.data(1, 4096, bytes(4096)).digests(1, 1, bytes(4096)).commit(1, bytes(8192))
    assert one.last(Type.RECEIPT).name == b"f"
    # the idempotence key of another user grants nothing either
    three = connect(world).greet("password", "three", b"x").offer(1, key=key)
    assert three.last(Type.ACCEPT).state == "new"
    # and a ticket is worth nothing to another user
    ticket = one.last(Type.READY).ticket
    thief = connect(world).greet("password", "two", b"x").say(Type.JOIN, 0, Join(ticket))
    assert thief.last(Type.ERROR).code == "expired"
    world.settle(70)
    world.close()


def test_aGuessedTicket(world):
    raw = connect(world).greet().say(Type.JOIN, 0, Join(bytes(32)))
    assert raw.last(Type.ERROR).code == "expired"
    own = connect(world).greet()
    own.say(Type.JOIN, 0, Join(own.last(Type.READY).ticket))
    assert own.last(Type.ERROR).code == "expired"


def test_ticketsDieWithTheirSession(world):
    one = connect(world).greet()
    ticket = one.last(Type.READY).ticket
    one.transport.loseConnection()
    world.pump()
    late = connect(world).greet().say(Type.JOIN, 0, Join(ticket))
    assert late.last(Type.ERROR).code == "expired"


@pytest.mark.parametrize("side", [0, 1])
def test_aDowngradeIsNoticed(world, source, side):
    """
    Somebody takes the better digest out of a HELLO on its way.
    """
    (source / "a").write_bytes(b"x")
    strip = Wire._pass

    class Stripping(Wire):
        def _pass(self, end, other, data):
            if end.side == side and b"blake3" in data:
                from connpool.transfer.wire.frames import FrameReader
                from connpool.transfer.wire.messages import decode, encode

                (frame,) = FrameReader().feed(data[8:] if data[:1] == b"\0" else data)
                hello = decode(frame)
                assert isinstance(hello, Hello)
                import msgspec

                weak = msgspec.structs.replace(hello, digests=("sha256",))
                changed = encode(Type.HELLO, 0, weak)
                data = data[: len(data) - 16 - len(frame.control)] + changed
            strip(self, end, other, data)

    world.wire = Stripping
    report = world.send(source / "a", retry=Retry(attempts=1))
    assert "changed on the way" in str(report.failed[0].error)
    assert not world.store.files


# -- several on one connection ----------------------------------------------------------


def test_cancelOneOfFive(world, source):
    for number in range(5):
        (source / f"{number}").write_bytes(content(10 * 4096, number))
    world.plan = [{"chunk": 1024}]
    sending = world.sending(source)
    results = world.start(sending)
    while not world.wires[0].sent[0] > 45_000:
        world.wires[0].step()
    [stream] = [each for each in sending._session._streams.values() if each.job.name == b"source/2"]
    stream.giveUp(Cancelled("given up"), keep=False)
    report = world.finish(results)
    assert [outcome.name for outcome in report.failed] == ["source/2"]
    assert sorted(world.store.files) == ["source/0", "source/1", "source/3", "source/4"]
    assert len(world.wires) == 1
    assert not world.store._partials


def test_joinedConnectionsCarryAFile(world, source):
    data = content(200 * 4096)
    (source / "a").write_bytes(data)
    world.plan = [{"chunk": 512}] + [{"chunk": 4096}] * 3
    report = world.send(source / "a", jobs=4)
    assert report.exitCode == 0
    assert world.store.files == {"a": data}
    assert len(world.wires) == 4
    assert all(wire.sent[0] > 20_000 for wire in world.wires)


@pytest.mark.parametrize("how", ["fin", "rst", "silent"])
def test_aLostJoinedConnectionIsMadeUpFor(world, source, how):
    data = content(200 * 4096)
    (source / "a").write_bytes(data)
    world.plan = [{"chunk": 512}, {"chunk": 4096, "cut": (0, 100_000, how)}, {"chunk": 4096}]
    report = world.send(source / "a", jobs=3)
    assert report.exitCode == 0
    assert world.store.files == {"a": data}
    world.settle(130)


def test_theSessionOfAJoinedConnectionEnds(world, source):
    """
    The first connection breaks while others carry data: the file is resumed.
    """
    data = content(200 * 4096)
    (source / "a").write_bytes(data)
    world.plan = [{"chunk": 4096, "cut": (0, 100_000, "rst")}, {"chunk": 4096}, {"chunk": 4096}]
    report = world.send(source / "a", jobs=3)
    assert report.exitCode == 0
    assert world.store.files == {"a": data}
    world.settle(130)


def test_stopAndGoOnElsewhere(world, source):
    """
    GOAWAY: what runs ends here, the rest comes over the next connection.
    """
    for number in range(40):
        (source / f"{number:02}").write_bytes(content(3 * 4096, number))
    world.plan = [{"chunk": 1024}]
    results = world.start(world.sending(source))
    while world.wires[0].sent[0] < 50_000:
        world.wires[0].step()
    world.wires[0].ends[1].protocol.drain()
    report = world.finish(results)
    assert report.exitCode == 0
    assert len(world.store.files) == 40
    assert len(world.wires) > 1


def test_busyReceiverDoesNotEndTheRest(tmp_path, source, monkeypatch):
    monkeypatch.setattr(smallfiles, "SMALL_FILE_BYTES", 2048)
    world = World(tmp_path / "state", Policy(maxTransfers=2, minimumRate=0))
    for number in range(6):
        (source / f"{number}").write_bytes(content(5 * 4096, number))
    report = world.send(source, request=SMALL_BLOCKS)
    assert report.exitCode == 0
    assert len(world.store.files) == 6
    world.close()


@pytest.mark.parametrize("when", [0, 60, 5_000, 100_000])
def test_cancelled(world, source, when):
    """
    Cancelling ends at once, whatever is under way, and keeps what is there.
    """
    data = content(50 * 4096)
    (source / "a").write_bytes(data)
    world.plan = [{"chunk": 1024}]
    sending = world.sending(source / "a")
    results = world.start(sending)
    while world.wires[0].sent[0] < when:
        world.wires[0].step()
    sending.cancel()
    world.pump()
    (failure,) = results
    assert failure.check(CancelledError)
    assert not sending.report.outcomes
    world.settle(3)
    report = world.send(source / "a")
    assert report.exitCode == 0
    assert report.resumedBytes >= when - 8192


def test_withoutAStateDirectoryTheRunningCommandResumes(tmp_path, source, monkeypatch):
    monkeypatch.setattr(smallfiles, "SMALL_FILE_BYTES", 2048)
    (tmp_path / "file").write_bytes(b"")
    world = World(tmp_path / "file" / "state")
    data = content(50 * 4096)
    (source / "a").write_bytes(data)
    world.plan = [{"cut": (0, 150_000, "rst"), "chunk": 1024}]
    report = world.send(source / "a")
    assert report.exitCode == 0
    assert report.sentBytes < len(data) + 60_000
    assert world.store.files == {"a": data}
    world.close()
