"""
What an operator's limits do to sessions: who waits, who is refused, and that
waiting ends however its connection does.
"""

import os
import random

import attrs
import pytest
from twisted.internet import defer
from twisted.internet.defer import Deferred
from zope.interface import implementer

from connpool.interfaces import IAuthenticator
from connpool.transfer.identities import Identity
from connpool.transfer.receive import greeting, smallfiles
from connpool.transfer.receive.policy import Policy
from connpool.transfer.send import session
from connpool.transfer.send.credentials import Credentials
from connpool.transfer.stores import MemoryStore
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Cancel, Ping
from tests.transfer.raw import connect
from tests.transfer.world import SMALL_BLOCKS, World

BLOCK = 4096
ME = Credentials("me", b"secret")
KEY = bytes(32)


@implementer(IAuthenticator)
class OneIdentity:
    """
    Everybody is C{me}, with limits.
    """

    takesPasswords = True

    def __init__(self, **limits):
        self.identity = Identity("me", **limits)

    def certified(self, transport):
        return None

    def password(self, transport, user, secret):
        return defer.succeed(self.identity)


@pytest.fixture
def worlds(tmp_path, monkeypatch):
    for module in (greeting, session):
        monkeypatch.setattr(module, "credentialsAreSafe", lambda transport: True)
    monkeypatch.setattr(smallfiles, "SMALL_FILE_BYTES", 2048)
    made = []

    def build(policy=None, store=None, **limits):
        authenticator = OneIdentity(**limits) if limits else None
        policy = Policy(minimumRate=0, **(policy or {}))
        made.append(World(tmp_path / "state", policy, store, authenticator=authenticator))
        return made[-1]

    yield build
    for world in made:
        world.settle(100)
        world.close()


def fill(source, count, size=5 * BLOCK):
    for number in range(count):
        (source / f"{number:02}").write_bytes(random.Random(number).randbytes(size))


def me(world):
    return connect(world).greet("password", "me", b"secret")


@pytest.mark.parametrize(
    ("policy", "limits"), [({"maxTransfers": 1}, {}), ({}, {"maxTransfers": 1})]
)
def test_whatHasNoPlaceWaits(worlds, source, policy, limits):
    """
    The sender offers 16 ahead and one is taken at a time: none is refused,
    however long each takes.
    """
    world = worlds(policy, **limits)
    fill(source, 20)
    world.plan = [{"chunk": 512}]
    results = world.start(world.sending(source, credentials=ME))
    most = 0
    while not results:
        for _ in range(100):
            world.wires[0].step()
            most = max(most, world.reception.stats().active)
        world.clock.advance(1.0)
    assert world.finish(results).exitCode == 0
    assert (most, len(world.store.files)) == (1, 20)
    stats = world.reception.stats()
    assert (stats.refused, stats.waiting, stats.active) == (0, 0, 0)


def offering(world, names):
    one = me(world)
    for stream, name in enumerate(names, 1):
        one.offer(stream, name, resumeKey=name * 32)
    return one


def test_whoWaitsIsToldSo(worlds):
    world = worlds(maxTransfers=1)
    one = offering(world, [b"a", b"b"])
    assert world.reception.stats().waiting == 1
    world.clock.advance(1)
    world.pump()
    told = [m.slow for f, m in one.frames if f.type is Type.PROGRESS and f.stream == 2]
    assert told == ["place"]
    one.data(1, 0, bytes(8192))
    one.digests(1, 0, bytes(BLOCK), bytes(BLOCK))
    one.commit(1, bytes(8192))
    assert one.kinds().count(Type.ACCEPT) == 2
    assert world.reception.stats().waiting == 0


def test_aStopDoesNotWaitForWhoWaits(worlds):
    world = worlds(maxTransfers=1)
    one = offering(world, [b"a", b"b"])
    two = offering(world, [b"c"])
    for wire in world.wires:
        wire.ends[1].protocol.drain()
    world.pump()
    assert two.last(Type.REJECT).retryable
    assert two.lost
    assert [f.stream for f, _ in one.frames if f.type is Type.REJECT] == [2]
    one.data(1, 0, bytes(8192)).digests(1, 0, bytes(BLOCK), bytes(BLOCK)).commit(1, bytes(8192))
    assert one.last(Type.RECEIPT).status == "stored"
    assert one.lost


@pytest.mark.parametrize("how", ["cancel", "lost", "takeover"])
def test_waitingEndsWithItsStream(worlds, how):
    """
    Also a newer connection for a file that waits is not kept waiting by it.
    """
    world = worlds(maxTransfers=1)
    holder = offering(world, [b"a"])
    waiting = offering(world, [b"b"])
    assert world.reception.stats().waiting == 1
    if how == "cancel":
        waiting.say(Type.CANCEL, 1, Cancel("no", keep=False))
    elif how == "lost":
        waiting.transport.abortConnection()
    else:
        newer = offering(world, [b"b"])
        assert waiting.last(Type.REJECT).code == "conflict-takeover"
    world.pump()
    assert world.reception.stats().waiting == (1 if how == "takeover" else 0)
    holder.say(Type.CANCEL, 1, Cancel("no", keep=False))
    if how == "takeover":
        assert Type.ACCEPT in newer.kinds()
        newer.say(Type.CANCEL, 1, Cancel("no", keep=False))
    assert Type.ACCEPT not in waiting.kinds()
    stats = world.reception.stats()
    assert (stats.active, stats.waiting) == (0, 0)
    # the place is there for the next one
    last = offering(world, [b"c"])
    assert Type.ACCEPT in last.kinds()
    last.say(Type.CANCEL, 1, Cancel("no", keep=False))


def test_aPlaceIsGivenBackHoweverItEnds(worlds, expectFailure):
    expectFailure(RuntimeError)

    class Broken(MemoryStore):
        def open(self, offer, holder=None):
            raise RuntimeError("boom")

    world = worlds({"maxTransfers": 1, "maxFileSize": 10_000}, maxTransfers=1)
    one = me(world)
    one.offer(1, b"large", size=10_001)
    world.reception.store, store = Broken(), world.reception.store
    one.offer(2, b"broken", size=8192)
    world.reception.store = store
    one.offer(3, b"good", size=8192)
    assert [kind for kind in one.kinds() if kind in {Type.REJECT, Type.ACCEPT}] == [
        Type.REJECT,
        Type.REJECT,
        Type.ACCEPT,
    ]
    one.say(Type.CANCEL, 3, Cancel("no", keep=False))


def test_connectionsOfAnIdentity(worlds, source):
    """
    Further connections for one file are refused, the file arrives all the same.
    """
    world = worlds(maxConnections=2)
    first, second = me(world), me(world)
    third = me(world)
    assert third.last(Type.ERROR).code == "busy"
    world.settle(15)
    assert third.lost
    assert second.last().__class__.__name__ == "Ready"
    first.transport.abortConnection()
    second.transport.abortConnection()
    world.pump()
    fill(source, 1, 40 * BLOCK)
    report = world.send(source, credentials=ME, jobs=4)
    assert report.exitCode == 0
    assert sum(account.connections for account in world.reception.quotas.accounts(None)) == 0


def test_bytesOfADayAreRefusedBeforeTheFirst(worlds, source):
    world = worlds(maxBytes=30 * BLOCK)
    fill(source, 1, 20 * BLOCK)
    assert world.send(source, credentials=ME).exitCode == 0
    fill(source, 2, 20 * BLOCK)
    report = world.send(source / "01", credentials=ME)
    assert report.exitCode == 4
    assert report.sentBytes == 0
    assert "24 hours" in str(report.failed[0].error)
    # nothing of it is left behind
    assert not world.store._partials
    world.clock.advance(25 * 3600)
    assert world.send(source / "01", credentials=ME).exitCode == 0


def test_aResumedFileNeedsRoomForTheRestOnly(worlds, source):
    world = worlds({"maxBytes": 64 * BLOCK})
    fill(source, 1, 60 * BLOCK)
    world.plan = [{"cut": (0, 50 * BLOCK, "rst"), "chunk": 1024}]
    report = world.send(source)
    assert report.exitCode == 0
    assert report.connections == 2
    assert report.sentBytes < 80 * BLOCK
    # what was promised and did not come is no longer promised
    (everybody,) = world.reception.quotas.accounts(None)
    assert everybody._promised == 0


def test_standardInputEndsWhereTheDayDoes(worlds):
    world = worlds({"maxBytes": 3 * BLOCK})
    one = connect(world).greet()
    one.offer(1, size=None)
    one.data(1, 0, bytes(2 * BLOCK))
    assert Type.REJECT not in one.kinds()
    one.data(1, 2 * BLOCK, bytes(2 * BLOCK))
    assert one.last(Type.REJECT).code == "quota"
    assert not world.store._partials


def test_filesOfADay(worlds, source):
    world = worlds(maxFiles=7)
    fill(source, 5, 100)
    assert world.send(source, credentials=ME).exitCode == 0
    # the same again is nothing new
    assert world.send(source, credentials=ME).exitCode == 0
    fill(source, 10, 100)
    report = world.send(source, credentials=ME)
    assert report.exitCode == 4
    # five are there, two are new, three are too many
    assert len(world.store.files) == 7
    assert len(report.failed) == 3
    report = world.send(source, credentials=ME, request=attrs.evolve(SMALL_BLOCKS, dry=True))
    assert {outcome.error.code for outcome in report.failed} == {"quota"}


def test_timeOfATransfer(worlds):
    """
    However steadily it comes: at the end of its time it is over, and what was
    verified can be resumed.
    """
    world = worlds({"maxTime": 60.0}, maxTime=30.0)
    one = me(world)
    one.offer(1, resumeKey=KEY, key=KEY, size=100 * BLOCK)
    for block in range(29):
        one.data(1, block * BLOCK, bytes(BLOCK)).digests(1, block, bytes(BLOCK))
        world.clock.advance(1.0)
    assert Type.REJECT not in one.kinds()
    world.clock.advance(1.0)
    world.pump()
    reject = one.last(Type.REJECT)
    assert (reject.code, reject.retryable) == ("timeout", True)
    assert "30 s" in reject.detail
    one.offer(2, resumeKey=KEY, key=os.urandom(32), size=100 * BLOCK)
    assert one.last(Type.ACCEPT).state == "resume"
    one.say(Type.CANCEL, 2, Cancel("no", keep=False))


def test_paceOfAnIdentity(worlds):
    """
    Slower than others may be, and cut off sooner: whatever the table says.
    """
    world = worlds({"idleTimeout": 60.0}, minimumRate=100, idleTimeout=10.0)
    one = me(world)
    one.offer(1, size=100 * BLOCK)
    for at in range(25):
        one.data(1, at * 150, bytes(150))
        world.clock.advance(1.0)
    assert not one.lost
    for at in range(25, 50):
        one.data(1, at * 150, bytes(50))
        world.clock.advance(1.0)
        if Type.ERROR in one.kinds():
            break
    assert one.last(Type.ERROR).code == "too-slow"


def test_anIdleIdentityMayStillPing(worlds):
    world = worlds({"idleTimeout": 60.0}, idleTimeout=5.0)
    one = me(world)
    for number in range(10):
        world.clock.advance(15.0)
        one.say(Type.PING, 0, Ping(number))
    assert one.last(Type.PONG).token == 9


class Slow(MemoryStore):
    """
    Stores small files when told to.
    """

    def __init__(self):
        super().__init__()
        self.puts = []

    def put(self, offer, data, root):
        stored = Deferred()
        self.puts.append((stored, lambda: MemoryStore.put(self, offer, data, root)))
        return stored

    def go(self):
        stored, store = self.puts.pop(0)
        stored.callback(store())


def test_smallFilesAreNotReadFasterThanStored(worlds):
    """
    As many as transfers may be on their way to the disk; none is refused, and
    two sessions of one identity share it.
    """
    store = Slow()
    world = worlds(store=store, maxTransfers=2)
    one, two = me(world), me(world)
    for number in range(1, 6):
        one.put(number, b"a%d" % number, b"x")
        two.put(number, b"b%d" % number, b"x")
    seen = []
    while store.puts:
        seen.append(len(store.puts))
        store.go()
        world.pump()
        world.clock.advance(0)
        world.pump()
    # each session finds out only after its own
    assert max(seen) <= 3
    assert len(store.files) == 10
    assert Type.REJECT not in one.kinds() + two.kinds()


def test_aSessionThatWaitsForRoomMayGo(worlds):
    store = Slow()
    world = worlds(store=store, maxTransfers=1)
    one, two = me(world), me(world)
    one.put(1, b"a", b"x")
    two.put(1, b"b", b"x")
    two.put(2, b"c", b"x")
    two.transport.abortConnection()
    world.pump()
    while store.puts:
        store.go()
        world.pump()
    one.put(2, b"d", b"x")
    store.go()
    world.clock.advance(0)
    world.pump()
    assert "d" in store.files
