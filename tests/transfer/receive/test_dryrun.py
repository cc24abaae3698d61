"""
A dry run says what the run itself then says, of each file and in sequence.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from connpool.errors import TransferError
from connpool.transfer import LocalStore
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.smallfiles import SMALL_FILE_BYTES
from connpool.transfer.send.request import SendRequest
from connpool.transfer.stores import MemoryStore
from connpool.transfer.stores.partialdir import MAX_PARTIALS
from connpool.transfer.syscalls import Syscalls
from tests.transfer.raw import connect
from tests.transfer.stores.kit import InlineReactor, offer
from tests.transfer.world import World

OURS = {"put": b"content\n", "offer": os.urandom(SMALL_FILE_BYTES + 1)}


class OnClock(InlineReactor):
    """
    Puts things off in the time of a world, while there is one.
    """

    clock = None

    def callLater(self, delay, f, *args):
        return (super() if self.clock is None else self.clock).callLater(delay, f, *args)


def opened(kind, root, **values):
    if kind == "memory":
        return MemoryStore(names=values.get("names", "portable")), InlineReactor()
    reactor = OnClock()
    return LocalStore(reactor, root, threads=reactor, minFree=0, **values), reactor


def judged(store, reactor, source, *, policy, asked=""):
    """
    @return: name to what a dry run says of it, and to what the run says.
    """
    answers = []
    for dry in (True, False):
        world = World(store=store, policy=policy)
        reactor.clock = world.clock
        report = world.send(source, request=SendRequest(ifExists=asked, durability="none", dry=dry))
        answers.append({each.name: each.error and each.error.code for each in report.outcomes})
        world.close()
    reactor.clock = None
    return answers


def there(store, reactor, name, content):
    reactor.wait(store.put(offer(name, size=len(content)), content, None))


#: what the receiver has: names to content; L{None} is what is sent.
SITUATIONS = {
    "nothing": {},
    "same": {"source/x": None},
    "same-size": {"source/x": "changed"},
    "another-size": {"source/x": b"-"},
    "numbered": {"source/x": b"-", "source/x (1)": None},
    "directory": {"source/x/y": b"-"},
    "file-above": {"source": b"-"},
    "neighbour": {"source/X": b"-"},
    "neighbour-above": {"SOURCE/y": b"-"},
    "composed": {"source/x\u0301": b"-"},
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("rule", ["rename", "replace", "refuse"])
@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("kind", ["memory", "local"])
def test_whatIsThere(root, tmp_path, kind, way, rule, situation):
    ours = OURS[way]
    store, reactor = opened(kind, root)
    for name, content in SITUATIONS[situation].items():
        if content == "changed":
            content = bytes([ours[0] ^ 1]) + ours[1:]
        there(store, reactor, name, ours if content is None else content)
    source = tmp_path / "source"
    source.mkdir()
    (source / "x").write_bytes(ours)
    dry, run = judged(store, reactor, source, policy=Policy(ifExists=rule, minimumRate=0))
    run.pop("source", None)  # a dry run asks about files only
    assert dry == run
    assert (dry["source/x"] is None) == (
        situation in {"nothing", "same", "composed"}
        or (rule == "rename" and situation not in {"file-above", "neighbour-above"})
        or (rule == "replace" and situation in {"same-size", "another-size", "numbered"})
    )
    reactor.wait(store.close())


@pytest.mark.parametrize("names", ["portable", "posix"])
@pytest.mark.parametrize("rule", ["rename", "refuse"])
@pytest.mark.parametrize("kind", ["memory", "local"])
def test_twoThatClashWithEachOther(root, tmp_path, kind, rule, names):
    store, reactor = opened(kind, root, names=names)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("Makefile", "makefile"):
        (source / name).write_text(name)
    policy = Policy(ifExists=rule, names=names, minimumRate=0)
    dry, run = judged(store, reactor, source, policy=policy)
    assert sorted(map(str, dry.values())) == sorted(map(str, run.values()))
    assert ("exists" in dry.values()) == (rule == "refuse" and names == "portable")
    reactor.wait(store.close())


@pytest.mark.parametrize("limit", ["maxFiles", "maxBytes"])
@pytest.mark.parametrize("way", OURS)
def test_twoThatAreTooManyTogether(tmp_path, limit, way):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_bytes(OURS[way])
    most = {"maxFiles": 1, "maxBytes": 2 * len(OURS[way]) - 1}[limit]
    policy = Policy(minimumRate=0, **{limit: most})
    world = World(policy=policy)
    answers = []
    for dry in (True, False):
        report = world.send(source, request=SendRequest(durability="none", dry=dry))
        answers.append(sorted(str(each.error and each.error.code) for each in report.outcomes))
    assert answers == [["None", "quota"]] * 2
    world.close()


@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("kind", ["memory", "local"])
def test_twoThatDoNotFitTogether(root, tmp_path, kind, way):
    source = tmp_path / "source"
    source.mkdir()
    size = 8 * len(OURS[way])
    for name in ("a", "b"):
        (source / name).write_bytes(8 * OURS[way])
    store, reactor = opened(kind, root)
    if kind == "memory":
        store = MemoryStore(capacity=2 * size - 1)
    else:
        reactor.wait(store.close())
        disk = SimpleNamespace(
            f_frsize=1, f_blocks=4 * size, f_bavail=2 * size - 1, f_files=0, f_favail=0, f_flag=0
        )
        calls = Syscalls()
        calls.fstatvfs = lambda fd: disk
        store, reactor = opened(kind, root, syscalls=calls)
    world = World(store=store)
    report = world.send(source, request=SendRequest(durability="none", dry=True))
    codes = sorted(str(each.error and each.error.code) for each in report.outcomes)
    assert codes == ["None", "no-space"]
    [refused] = [each.error for each in report.outcomes if each.error is not None]
    assert world.clock.seconds() < 10  # it does not wait for space
    assert refused.retryable
    world.close()
    reactor.wait(store.close())


def test_aQuotaIsAboutThisFile(root, tmp_path):
    store, reactor = opened("local", root, quota=SMALL_FILE_BYTES)
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(OURS["offer"])
    for number in range(3):
        (source / f"small-{number}").write_bytes(OURS["offer"][1:])  # comes in one piece
    dry, run = judged(store, reactor, source, policy=Policy(minimumRate=0))
    assert dry == run
    assert dry["source/large"] == "quota"
    assert list(dry.values()).count(None) == 3
    reactor.wait(store.close())


def test_whatIsSuspendedIsRoom(root):
    store, reactor = opened("local", root, quota=100_000)
    asked = offer("a", size=90_000, resumeKey=b"1" * 32)
    partial = reactor.wait(store.open(asked))
    partial.write(0, b"x" * 65_536)
    partial.record(0, b"d" * 32)
    other = offer("b", size=90_000, resumeKey=b"2" * 32)
    with pytest.raises(TransferError, match="quota"):
        reactor.wait(store.foresee(other, None, 0, False))
    reactor.wait(partial.suspend())
    assert reactor.wait(store.foresee(other, None, 0, False)) == "stored"
    assert len(reactor.wait(store.partials())) == 1
    reactor.wait(store.close())


def test_tooManyUnfinishedFiles(root):
    store, reactor = opened("local", root)
    for number in range(MAX_PARTIALS):
        asked = offer(f"f{number}", size=1, resumeKey=number.to_bytes(32, "big"))
        partial = reactor.wait(store.open(asked))
    last = offer("last", size=1, resumeKey=b"l" * 32)
    with pytest.raises(TransferError, match="unfinished files"):
        reactor.wait(store.foresee(last, None, 0, False))
    assert reactor.wait(store.foresee(last, None, 0, True)) == "stored"
    partial.record(0, b"d" * 32)
    reactor.wait(partial.suspend())
    assert reactor.wait(store.foresee(last, None, 0, False)) == "stored"
    reactor.wait(store.close())


def test_aDryRunLeavesNothing(root, tmp_path):
    store, reactor = opened("local", root)
    (tmp_path / "source/d").mkdir(parents=True)
    (tmp_path / "source/d/x").write_bytes(OURS["offer"])
    before = sorted(root.rglob("*"))
    world = World(store=store)
    report = world.send(tmp_path / "source", request=SendRequest(dry=True))
    assert report.exitCode == 0
    assert sorted(root.rglob("*")) == before
    world.close()
    reactor.wait(store.close())


def test_namesOfADryRunAreBounded(monkeypatch):
    monkeypatch.setattr("connpool.transfer.receive.dryrun.COMPARED_NAMES", 2)
    world = World()
    client = connect(world).greet()
    for number in range(1, 6):
        client.offer(number, b"f%d" % number, size=1, dry=True)
    world.pump()
    session = next(iter(world.receiver.tickets.values()))
    assert len(session._dryRun._taken.files) == 2
    world.close()
