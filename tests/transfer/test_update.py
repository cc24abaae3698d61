"""
Sending only what is not there: the question, its answers, and what they must not tell.
"""

import os

import pytest

from connpool.transfer.receive.policy import Policy
from connpool.transfer.records import DIFFERS, SAME, UNTOLD
from connpool.transfer.send.credentials import Credentials
from connpool.transfer.send.request import SendRequest
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Error, Have
from connpool.transfer.wire.update import ASKED_FILES, Ask, AskedFile
from tests.transfer.hostile import CORPUS
from tests.transfer.raw import connect
from tests.transfer.test_holes import SIDES
from tests.transfer.test_sessions import content, frames
from tests.transfer.world import Passwords, World

MIB = 1 << 20
BY_TIMES = SendRequest(durability="none", blockSize=4096, update="times")
BY_CONTENT = SendRequest(durability="none", update="checksum")
onBoth = pytest.mark.parametrize("request_", [BY_TIMES, BY_CONTENT], ids=["times", "checksum"])


def statuses(report):
    return {outcome.name: outcome.status for outcome in report.outcomes}


def tree(source, count=600):
    for number in range(count):
        path = source / f"d{number % 7}" / f"{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(number, number))
    (source / "large").write_bytes(content(MIB + 1))


@onBoth
def test_onlyWhatChanged(world, source, request_):
    tree(source)
    first = world.send(source, request=request_)
    assert first.exitCode == 0
    assert (first.unchanged, first.untold) == (0, 601)
    again = world.send(source, request=request_)
    assert again.exitCode == 0
    assert (again.unchanged, again.untold, again.sentBytes) == (601, 0, 0)
    assert set(statuses(again).values()) == {"unchanged"}
    assert again.failed == []
    sent = frames(world.wires[1], 0)
    # two questions of 512 files, and a third when more were found than fit in one trip
    assert 2 <= sent.count(Type.ASK) <= 4
    assert not {Type.PUT, Type.PUTS, Type.OFFER} & set(sent)
    (source / "d3/3").write_bytes(b"new")
    (source / "large").write_bytes(content(MIB + 1, 2))
    del world.store.files["source/d4/4"]
    (source / "more").write_bytes(b"x")
    third = world.send(source, request=request_)
    assert third.exitCode == 0
    assert third.unchanged == 598
    assert third.untold == 1
    changed = {name for name, status in statuses(third).items() if status == "stored"}
    assert changed == {f"source/{name}" for name in ("d3/3", "large", "d4/4", "more")}
    stats = world.reception.stats()
    assert (stats.asked, stats.unchanged) == (601 + 601 + 602, 601 + 598)


def test_timesAndContents(tmp_path, source):
    world = World(tmp_path / "state", Policy(minimumRate=0, ifExists="replace"))
    path = source / "f"
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 10**18))
    world.send(path, request=BY_TIMES)
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 10**18))
    assert statuses(world.send(path, request=BY_TIMES)) == {"f": "unchanged"}
    assert statuses(world.send(path, request=BY_CONTENT)) == {"f": "stored"}
    os.utime(path, ns=(0, 10**18 + 1))
    assert statuses(world.send(path, request=BY_CONTENT)) == {"f": "unchanged"}
    assert statuses(world.send(path, request=BY_TIMES)) == {"f": "stored"}
    # a time that the question cannot carry
    os.utime(path, (0, 2**33))
    report = world.send(path, request=BY_TIMES)
    assert statuses(report)["f"] in {"stored", "duplicate"}
    world.close()


def test_aDryRunAsksToo(world, source):
    (source / "a").write_bytes(b"x")
    world.send(source, request=BY_TIMES)
    (source / "b").write_bytes(b"y")
    dry = SendRequest(dry=True, update="times")
    report = world.send(source, request=dry)
    assert statuses(report) == {"source/a": "unchanged", "source/b": "would-be-taken"}
    assert set(world.store.files) == {"source/a"}


@pytest.mark.parametrize("old", SIDES)
def test_anOlderPeerIsNotAsked(world, source, monkeypatch, old):
    tree(source, 3)
    world.send(source)
    monkeypatch.setattr(f"connpool.transfer.{SIDES[old]}.CAPABILITIES", ("join", "puts"))
    report = world.send(source, request=BY_TIMES)
    assert report.exitCode == 0
    assert report.cannotTell
    assert set(statuses(report).values()) == {"duplicate"}
    assert Type.ASK not in frames(world.wires[1], 0)


def test_aConnectionThatBreaks(world, source):
    tree(source)
    world.send(source)
    for byte in (400, 4000, 20_000):
        world.plan = [{"cut": (0, byte, "rst")}]
        report = world.send(source, request=BY_TIMES)
        assert report.exitCode == 0
        assert report.unchanged == 601
        assert len(report.outcomes) == 601


def test_whatSomebodyElseStoredIsNotTold(tmp_path, source, monkeypatch):
    for side in SIDES.values():
        monkeypatch.setattr(f"connpool.transfer.{side}.credentialsAreSafe", lambda transport: True)
    world = World(tmp_path / "state", authenticator=Passwords(b"right"))
    alice, bob = Credentials("alice", b"right"), Credentials("bob", b"right")
    (source / "f").write_bytes(b"secret")
    os.utime(source / "f", ns=(0, 10**18))
    world.send(source / "f", credentials=alice)
    for request in (BY_TIMES, BY_CONTENT):
        report = world.send(source / "f", request=request, credentials=bob, destination="bob")
        assert (report.unchanged, report.untold) == (0, 1)
        report = world.send(source / "f", request=request, credentials=alice)
        # the last receipt is bob's, who has sent the same content himself
        assert report.untold == 1
        report = world.send(source / "f", request=request, credentials=alice)
        assert report.unchanged == 1
    world.close()


# -- hostile senders


@pytest.fixture
def strict(tmp_path):
    made = World(tmp_path / "state")
    yield made
    made.settle(200)
    made.close()


def raw(world, *capabilities):
    made = connect(world)
    made.capabilities = capabilities or ("join", "update")
    return made.greet()


def ask(peer, stream, *files):
    return peer.say(Type.ASK, stream, Ask(tuple(files)))


def answers(peer):
    frame, message = peer.frames[-1]
    assert isinstance(message, Have)
    return list(frame.data)


def test_answersToEverySortOfName(strict):
    peer = raw(strict).put(1, b"dir/f", b"content")
    root = b"r" * 32
    mine = AskedFile(b"dir/f", 7, strict.store._modified["dir/f"])
    ask(
        peer,
        2,
        mine,
        AskedFile(b"dir/f", 8, mine.modified),
        AskedFile(b"dir/f", 7, 5),
        AskedFile(b"dir/f", 7, None),
        AskedFile(b"dir/f", 7, None, root),
        AskedFile(b"dir/f", 2**63 - 1, None, root),
        AskedFile(b"dir/F", 7, mine.modified),
        AskedFile(b"dir", 7, mine.modified),
        AskedFile(b"../dir/f", 7, mine.modified),
        AskedFile(b"", 0, 0),
    )
    assert answers(peer) == [SAME, *[DIFFERS] * 5, *[UNTOLD] * 4]


def test_hostileNamesAreUntold(strict):
    peer = raw(strict)
    for number, start in enumerate(range(0, len(CORPUS), 100), 1):
        some = CORPUS[start : start + 100]
        ask(peer, number, *(AskedFile(each.raw[:300], 1, 1) for each in some))
        assert answers(peer) == [UNTOLD] * len(some)
    assert not strict.store.files


def test_questionsThatAreNone(strict):
    for stream, message in [
        (1, Ask(())),
        (1, Ask((AskedFile(b"x", -1),))),
        (0, Ask((AskedFile(b"x", 1),))),
    ]:
        peer = raw(strict).say(Type.ASK, stream, message)
        assert peer.last(Type.ERROR).code == "protocol"
    many = Ask((AskedFile(b"x", 1),) * (ASKED_FILES + 1))
    assert raw(strict).say(Type.ASK, 1, many).last(Type.ERROR).code == "protocol"
    twice = ask(raw(strict), 4, AskedFile(b"x", 1))
    assert "comes after" in ask(twice, 4, AskedFile(b"x", 1)).last(Type.ERROR).detail
    without = ask(raw(strict, "join"), 1, AskedFile(b"x", 1))
    assert "ASK is not expected" in without.last(Type.ERROR).detail


def test_aJoinedConnectionDoesNotAsk(strict):
    first, second = raw(strict), raw(strict)
    from connpool.transfer.wire.messages import Join, Ready

    second.say(Type.JOIN, 0, Join(next(m for _, m in first.frames if isinstance(m, Ready)).ticket))
    ask(second, 1, AskedFile(b"x", 1))
    assert isinstance(second.last(), Error)


def test_aReceiverThatStopsTellsNothing(strict):
    peer = raw(strict).put(1, b"f", b"x").offer(2)
    for link in [wire.ends[1].protocol for wire in strict.wires]:
        link.drain()
    ask(peer, 3, AskedFile(b"f", 1, strict.store._modified["f"]))
    assert answers(peer) == [UNTOLD]


def test_aStoreThatFails(strict, monkeypatch):
    from twisted.internet.defer import fail

    from connpool.errors import StoreError

    monkeypatch.setattr(strict.store, "compare", lambda *_: fail(StoreError("it burns")))
    assert answers(ask(raw(strict), 1, AskedFile(b"f", 1))) == [UNTOLD]


@pytest.mark.parametrize("answer", [b"", b"\1", b"\1" * 3], ids=["none", "short", "long"])
def test_answersOfAnotherLength(world, source, answer, monkeypatch):
    from connpool.transfer.receive.updates import Updates
    from connpool.transfer.wire.messages import encode

    def wrong(self, answers, number):
        self.busy = False
        self._send(encode(Type.HAVE, number, Have(), len(answer)), answer)

    monkeypatch.setattr(Updates, "_answer", wrong)
    (source / "a").write_bytes(b"x")
    (source / "b").write_bytes(b"x")
    report = world.send(source, request=BY_TIMES)
    assert {outcome.error.code for outcome in report.failed} == {"protocol"}
    assert len(report.failed) == 2
