"""
An operator is told where something is wrong, a sender only what.
"""

from __future__ import annotations

import errno
import os
import shutil
from types import SimpleNamespace

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from connpool.errors import NoInodes
from connpool.transfer import LocalStore
from connpool.transfer.receive.classic import SETTLE_SECONDS, ClassicReceiver
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.smallfiles import SMALL_FILE_BYTES
from connpool.transfer.send.request import SendRequest
from connpool.transfer.stores import directories
from connpool.transfer.syscalls import Syscalls
from tests.transfer.receive.test_classic import Transport
from tests.transfer.stores.kit import InlineReactor, Recorded, offer
from tests.transfer.stores.onpartials import failing
from tests.transfer.world import World


def movedAway(root, disk):
    root.rename(root.with_name("aside"))


def replaced(root, disk):
    movedAway(root, disk)
    root.mkdir()


def removed(root, disk):
    shutil.rmtree(root)


def privateReplacedByAFile(root, disk):
    shutil.rmtree(root / ".connpool")
    (root / ".connpool").write_text("")


def privateOpenToAll(root, disk):
    shutil.rmtree(root / ".connpool")
    (root / ".connpool").mkdir()
    (root / ".connpool").chmod(0o777)


def readOnly(root, disk):
    disk.f_flag = os.ST_RDONLY


TROUBLES = [movedAway, replaced, removed, privateReplacedByAFile, privateOpenToAll, readOnly]


def roomy(**values):
    wide = {"f_frsize": 1, "f_blocks": 1 << 40, "f_bavail": 1 << 40, "f_files": 0}
    return SimpleNamespace(**{**wide, "f_favail": 0, "f_flag": 0, **values})


def opened(root, disk, before=None, reactor=None, **values):
    reactor = reactor or InlineReactor()
    calls = Recorded(before, lazy=True)
    calls.fstatvfs = lambda fd: disk
    values.setdefault("seconds", reactor.seconds)
    return LocalStore(reactor, root, syscalls=calls, threads=reactor, **values), reactor


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("way", ["put", "offer", "dry", "classic"])
def test_noPathIsTold(root, tmp_path, monkeypatch, trouble, way):
    disk = roomy()
    reactor = InlineReactor()
    monkeypatch.setattr(directories, "monotonic", reactor.seconds)
    store, reactor = opened(root, disk, reactor=reactor)
    path = tmp_path / "source"
    path.write_bytes(b"x" if way == "put" else bytes(SMALL_FILE_BYTES + 1))
    trouble(root, disk)
    reactor.now += 2
    assert str(root) in store.trouble()
    assert "\n" not in store.trouble()
    world = World(store=store)
    if way == "classic":
        clock = Clock()
        receiver = ClassicReceiver(clock, Reception(store, clock))
        transport = Transport(peerAddress=IPv4Address("TCP", "127.0.0.1", 1))
        receiver.makeConnection(transport)
        receiver.dataReceived(b"name")
        clock.advance(SETTLE_SECONDS)
        clock.advance(0)
        told = transport.value()
        assert told.startswith(b"store-error: the receiver")
        assert told.count(b"\n") == 1
    else:
        report = world.send(path, request=SendRequest(durability="none", dry=way == "dry"))
        [outcome] = report.outcomes
        assert outcome.error.code == "store-error"
        assert "operator" in str(outcome.error)
        told = b"".join(world.wires[-1].log[1])
    assert os.fsencode(tmp_path) not in told
    world.close()
    reactor.wait(store.close())


def test_theRootThatComesBackIsUsed(root):
    store, reactor = opened(root, roomy())
    for trouble in (movedAway, replaced):
        trouble(root, None)
        reactor.now += 2
        assert "put it back" in store.trouble()
        shutil.rmtree(root, ignore_errors=True)
        root.with_name("aside").rename(root)
        reactor.now += 2
        assert store.trouble() is None
        reactor.wait(store.put(offer(trouble.__name__), b"x", None))
        assert (root / trouble.__name__).read_bytes() == b"x"
    reactor.wait(store.close())


def test_aRemovedRootIsMadeAgainByItsOperatorOnly(root):
    store, reactor = opened(root, roomy())
    shutil.rmtree(root)
    reactor.now += 2
    assert store.trouble() is not None
    assert not root.exists()
    root.mkdir()
    reactor.now += 2
    assert store.trouble() is None
    reactor.wait(store.put(offer("d/x"), b"x", None))
    assert (root / "d/x").read_bytes() == b"x"
    reactor.wait(store.close())


def test_theDirectoryBelowAMissingMountIsNotUsed(root):
    # what was mounted there is gone, and the disk below would fill up
    store, reactor = opened(root, roomy())
    calls = store.parts.syscalls
    shutil.rmtree(root)
    root.mkdir()
    really = calls.fstat
    held = store._root

    def elsewhere(fd):
        status = really(fd)
        if fd == held:
            return status
        return os.stat_result((*status[:2], status.st_dev + 1, *status[3:]))

    calls.fstat = elsewhere
    reactor.now += 2
    assert "moved away, replaced" in store.trouble()
    calls.fstat = really
    reactor.wait(store.close())


# -- inodes -------------------------------------------------------------------


def test_noInodesIsNotAFullDisk(root):
    disk = roomy(f_files=10)
    store, reactor = opened(root, disk)
    assert "inodes" in store.trouble()
    with pytest.raises(NoInodes, match="inodes") as raised:
        store.put(offer(), b"x", None)
    assert raised.value.code == "no-inodes"
    assert raised.value.retryable
    for size in (None, 5):
        with pytest.raises(NoInodes):
            reactor.wait(store.open(offer(size=size)))
        with pytest.raises(NoInodes):
            reactor.wait(store.foresee(offer(size=size), None, 0, False))
    disk.f_favail = 1
    reactor.now += 2
    assert store.trouble() is None
    reactor.wait(store.put(offer(), b"x", None))
    reactor.wait(store.close())


@pytest.mark.parametrize("call", ["open", "mkdir", "link"])
@pytest.mark.parametrize("level", ["none", "full"])
def test_theLastInodeGoesMeanwhile(root, call, level):
    disk = roomy(f_files=10, f_favail=1)
    fails = failing(call, errno.ENOSPC)
    on = []

    def before(*arguments):
        if on:
            disk.f_favail = 0
            fails(*arguments)

    store, reactor = opened(root, disk, before)
    on.append(True)
    with pytest.raises(NoInodes, match="no inodes left"):
        reactor.wait(store.put(offer("d/x", durability=level), b"x", None))
    on.clear()
    reactor.wait(store.close())


@pytest.mark.parametrize(
    "values", [{"f_files": 0}, {"f_files": 10, "f_bavail": 0}, {"f_files": 10, "f_favail": 3}]
)
def test_inodesThatAreMadeAsTheyAreNeeded(root, values):
    calls = Syscalls()
    calls.fstatvfs = lambda fd: roomy(**values)
    assert not calls.outOfInodes(0)
