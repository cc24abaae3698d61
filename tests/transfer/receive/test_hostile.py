"""
What a receiver does about senders that mean no good: one ERROR or REJECT, no
second of waiting for them more than the deadlines say, nothing left behind.
"""

import pytest
from twisted.internet.defer import Deferred, fail

from connpool.errors import StoreError
from connpool.transfer.receive import greeting, smallfiles
from connpool.transfer.receive.policy import Policy
from connpool.transfer.records import DirectoryMade
from connpool.transfer.stores import MemoryStore
from connpool.transfer.stores.memory import MEMORY_CAPACITY_BYTES
from connpool.transfer.wire.frames import HEADER, MAX_DATA_BYTES, PREAMBLE, Type
from connpool.transfer.wire.handshake import transcriptOf
from connpool.transfer.wire.link import TURN_SECONDS
from connpool.transfer.wire.messages import (
    Accept,
    Auth,
    Cancel,
    Commit,
    Data,
    Directory,
    Goaway,
    Hello,
    Join,
    OfferMessage,
    Ping,
    Repair,
    Revoke,
    encode,
)
from tests.transfer.hostile import CORPUS
from tests.transfer.raw import connect
from tests.transfer.world import World

BLOCK = 4096


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "state", Policy())
    yield made
    made.settle(200)
    assert not made.store._partials
    made.close()


def raw(world):
    return connect(world).greet()


def refused(raw, code="protocol"):
    assert raw.last(Type.ERROR).code == code
    raw.world.settle(15)
    assert raw.lost


# -- greeting ------------------------------------------------------------------------


def test_framesBeforeTheirTime(world):
    for kind, stream, message in [
        (Type.AUTH, 0, Auth(bytes(32), "none")),
        (Type.PING, 0, Ping(1)),
        (Type.COMMIT, 1, Commit(0, bytes(32))),
    ]:
        early = connect(world)
        early.transport.write(PREAMBLE)
        early.say(kind, stream, message)
        refused(early)


def test_helloTwice(world):
    twice = raw(world)
    twice.say(Type.HELLO, 0, Hello((1,), "x", (), ("sha256",), bytes(32)))
    refused(twice)


def test_wrongTranscript(world):
    wrong = connect(world)
    wrong.transport.write(PREAMBLE)
    wrong.say(Type.HELLO, 0, Hello((1,), "x", (), ("sha256",), bytes(32)))
    wrong.say(Type.AUTH, 0, Auth(bytes(32), "none"))
    refused(wrong)


def test_noCommonVersion(world):
    future = connect(world)
    future.transport.write(PREAMBLE)
    future.say(Type.HELLO, 0, Hello((2, 3), "x", (), ("sha256",), bytes(32)))
    assert "2, 3" in future.last(Type.ERROR).detail
    refused(future, "unsupported")


def test_passwordNobodyAskedFor(world):
    refused(connect(world).greet("password", "root", b"toor"), "auth-failed")


def test_framesOfTheOtherDirection(world):
    for kind, stream, message in [
        (Type.ACCEPT, 1, Accept("new", 0)),
        (Type.REPAIR, 1, Repair()),
        (Type.GOAWAY, 0, Goaway("")),
        (Type.AUTH, 0, Auth(bytes(32), "none")),
    ]:
        refused(raw(world).say(kind, stream, message))


# -- streams ----------------------------------------------------------------------------


def test_streamsThatDoNotRise(world):
    one = raw(world).put(5, b"a", b"x")
    refused(one.put(5, b"b", b"x"))
    two = raw(world).offer(7)
    refused(two.offer(3, name=b"g"))


def test_streamsThatWereNeverOffered(world):
    for say in (
        lambda r: r.data(9, 0, b"x"),
        lambda r: r.digests(9, 0, b"x"),
        lambda r: r.commit(9, b""),
        lambda r: r.say(Type.CANCEL, 9, Cancel("x", False)),
        lambda r: r.say(Type.REVOKE, 9, Revoke(), bytes(4)),
    ):
        client = raw(world)
        say(client)
        refused(client)


def test_offersThatCannotBe(world):
    for more in (
        {"blockSize": 4097},
        {"blockSize": 4096, "size": 4096 * 65_536 + 1},
        {"blockSize": 1 << 20, "size": 2**63 - 1},
    ):
        client = raw(world).offer(1, **more)
        assert client.last(Type.REJECT).code in {"protocol", "no-space", "too-large"}
        # the session goes on
        assert client.put(2, b"a", b"x").last(Type.ACK)
        world.store.files.clear()
        client.transport.loseConnection()
        world.pump()


def test_offerFlood(world):
    client = raw(world)
    for number in range(1, 300):
        client.offer(number, name=b"%d" % number)
    assert client.kinds().count(Type.ACCEPT) == greeting.STREAMS
    assert client.last(Type.REJECT).code == "busy"
    for number in range(1, 300):
        client.say(Type.CANCEL, number, Cancel("x", False))
    client.offer(300, name=b"again")
    assert isinstance(client.frames[-1][1], Accept)


def test_offerAndCancelChurn(world):
    client = raw(world)
    for number in range(1, 1000):
        client.offer(number).say(Type.CANCEL, number, Cancel("x", False))
    assert not world.reception.active


def test_pingFlood(world):
    client = raw(world)
    client.transport.write(encode(Type.PING, 0, Ping(7)) * 5000)
    world.pump()
    assert client.kinds().count(Type.PONG) == 5000


def test_aSenderThatDoesNotReadIsNotReadFrom(world):
    """
    Its answers do not pile up in our memory.
    """
    client = raw(world)
    (mine, theirs) = world.wires[-1].ends
    mine.paused = True
    for _ in range(100):
        client.say(Type.PING, 0, Ping(7))
        mine.write(encode(Type.PING, 0, Ping(7)) * 1000)
        world.pump()
    assert theirs.paused
    assert theirs.unsent < 400_000
    mine.paused = False
    world.pump()
    assert not theirs.paused


def test_aSenderThatNeverReadsIsNotKept(world):
    """
    It has files open, and we tell it every second how they do.
    """
    client = raw(world)
    for stream in range(1, 200):
        client.offer(stream, b"f%d" % stream)
    (mine, theirs) = world.wires[-1].ends
    mine.paused = True
    world.settle(300)
    assert theirs.closed
    assert theirs.unsent < 200_000
    assert not world.reception.active


def test_cheapFramesThatCostMuchLetOthersHaveTheirTurn(world):
    opening = world.store.open

    def slow(*arguments):
        world.clock.rightNow += TURN_SECONDS / 2
        return opening(*arguments)

    world.store.open = slow
    client = raw(world)
    offer = OfferMessage(bytes(16), b"f", bytes(32), 8192, 4096, durability="none")
    for stream in range(1, 11):
        client.transport.write(encode(Type.OFFER, stream, offer))
    world.wires[-1].step()
    assert 0 < len(world.reception.active) < 5
    world.pump()
    assert len(world.reception.active) == 10


# -- data --------------------------------------------------------------------------------


def test_dataOutsideTheFile(world):
    for offset in (8192, 8191 + 2, 2**40, 2**63 - 1):
        refused(raw(world).offer(1).data(1, offset, b"x"))


def test_dataPastTheEndOfTheFile(world):
    refused(raw(world).offer(1, size=5000).data(1, 4096, bytes(1000)))


def test_dataBeforeAccept(tmp_path):

    world = World(tmp_path / "state", Policy())
    opening = Deferred()
    world.store.open = lambda *_: opening
    client = raw(world).offer(1).data(1, 0, b"x")
    refused(client)
    opening.errback(StoreError("late"))
    world.settle(5)
    world.close()


def test_emptyRun(world):
    refused(raw(world).offer(1).data(1, 0, b""))


def test_whatContinuesNothingIsDroppedAndAskedFor(world):
    """
    Overlapping, repeated and unaligned runs: nothing wrong gets in.
    """
    content = bytes(BLOCK) + b"x" * BLOCK
    client = raw(world).offer(1)
    client.data(1, 100, b"evil" * 10)  # in the middle of nothing
    client.data(1, 0, content[:1000]).data(1, 0, b"evil" * 1024)  # begun twice
    client.data(1, 2000, b"evil")  # leaves a hole
    client.data(1, 1000, content[1000:BLOCK])
    client.data(1, 0, b"evil" * 1024)  # complete already
    client.digests(1, 0, content[:BLOCK], content[BLOCK:])
    client.data(1, 0, b"evil" * 1024)  # verified
    client.commit(1, content)
    assert client.frames[-1][0].type is Type.REPAIR
    assert client.frames[-1][0].data == (1).to_bytes(4, "big")
    client.data(1, BLOCK, content[BLOCK:]).digests(1, 1, content[BLOCK:]).commit(1, content)
    assert client.last(Type.RECEIPT)
    assert world.store.files == {"f": content}


def test_wrongDigests(world):
    content = bytes(2 * BLOCK)
    client = raw(world).offer(1).data(1, 0, content).digests(1, 0, b"other", content[BLOCK:])
    assert client.frames[-1][0].type is Type.REPAIR
    client.commit(1, content)
    assert client.frames[-1][0].type is Type.REPAIR
    assert not world.store.files
    client.data(1, 0, content[:BLOCK]).digests(1, 0, content[:BLOCK]).commit(1, content)
    assert client.last(Type.RECEIPT)


def test_digestsThatAreNone(world):
    for data in (b"", bytes(31), bytes(33)):
        client = raw(world).offer(1)
        refused(client.say(Type.DIGESTS, 1, receiver_digests(0), data))
    refused(raw(world).offer(1).say(Type.DIGESTS, 1, receiver_digests(2), bytes(32)))


def receiver_digests(first):
    from connpool.transfer.wire.messages import Digests

    return Digests(first)


def test_rightBlocksAndAWrongRoot(world):
    content = bytes(2 * BLOCK)
    client = raw(world).offer(1).data(1, 0, content)
    client.digests(1, 0, content[:BLOCK], content[BLOCK:])
    client.say(Type.COMMIT, 1, Commit(len(content), bytes(32)))
    assert client.last(Type.REJECT).code == "digest-mismatch"
    assert not world.store.files


def test_commitsThatAreNone(world):
    content = bytes(2 * BLOCK)
    early = raw(world).offer(1).commit(1, content)
    assert early.frames[-1][0].type is Type.REPAIR
    other = raw(world).offer(1, name=b"g").commit(1, content, size=4)
    assert other.last(Type.REJECT).code == "protocol"
    done = raw(world).offer(1, name=b"h").data(1, 0, content)
    done.digests(1, 0, content[:BLOCK], content[BLOCK:]).commit(1, content)
    assert done.last(Type.RECEIPT)
    # what follows it was on its way
    done.commit(1, content).data(1, 0, b"evil").say(Type.CANCEL, 1, Cancel("x", False))
    assert world.store.files == {"h": content}
    assert done.put(2, b"i", b"x").last(Type.ACK)


def test_unknownSizeThatEndsTooEarly(world):
    content = bytes(2 * BLOCK)
    client = raw(world).offer(1, size=None).data(1, 0, content)
    client.digests(1, 0, content[:BLOCK], content[BLOCK:]).commit(1, content[:BLOCK])
    assert client.last(Type.REJECT).code == "protocol"
    assert not world.store.files


def test_unknownSizeIsBounded(tmp_path):
    world = World(tmp_path / "state", Policy(maxFileSize=10_000))
    client = connect(world).greet().offer(1, size=None).data(1, 0, bytes(10_001))
    assert client.last(Type.REJECT).code == "too-large"
    assert client.put(2, b"a", b"x").last(Type.ACK)
    client.transport.loseConnection()
    world.pump()
    world.close()


def test_revokes(world):
    content = bytes(2 * BLOCK)
    client = raw(world).offer(1).data(1, 0, content)
    client.digests(1, 0, content[:BLOCK], content[BLOCK:])
    client.say(Type.REVOKE, 1, Revoke(), (1).to_bytes(4, "big"))
    new = content[:BLOCK] + b"n" * BLOCK
    client.data(1, BLOCK, new[BLOCK:]).digests(1, 1, new[BLOCK:]).commit(1, new)
    assert client.last(Type.RECEIPT)
    assert world.store.files == {"f": new}
    for data in (b"", b"123", (65_536).to_bytes(4, "big")):
        refused(raw(world).offer(1, name=b"g").say(Type.REVOKE, 1, Revoke(), data))


def test_putThatIsNotWhatItSays(world):
    client = raw(world)
    from connpool.transfer.wire.messages import Put

    client.say(Type.PUT, 1, Put(bytes(16), b"a", bytes(32), bytes(32)), b"content")
    assert client.last(Type.REJECT).code == "digest-mismatch"
    refused(client.put(2, b"b", bytes(smallfiles.SMALL_FILE_BYTES + 1)))
    assert not world.store.files


# -- names ---------------------------------------------------------------------------------


def test_everyHostileName(world):
    client = raw(world)
    stream = 0
    taken, stored = set(), set()
    for hostile in CORPUS:
        stream += 2
        if len(hostile.raw) > 49_152:
            continue
        # names that are fine one by one may not go together
        world.store.files.clear()
        world.store.directories.clear()
        client.put(stream, hostile.raw, b"x")
        kind = client.frames[-1][0].type
        assert (kind is not Type.REJECT) == hostile.portable, (hostile, client.last())
        stored |= {name.encode() for name in world.store.files}
        client.offer(stream + 1, name=hostile.raw)
        kind = client.frames[-1][0].type
        assert (kind is Type.ACCEPT) == hostile.portable, hostile
        client.say(Type.CANCEL, stream + 1, Cancel("x", False))
        if hostile.portable:
            taken.add(hostile.raw)
        else:
            assert client.last(Type.REJECT).code == "name-refused"
    assert stored == taken
    assert client.put(stream + 9, b"fine", b"x").last(Type.ACK)


# -- time ------------------------------------------------------------------------------------


def seconds(world, client, most=300):
    """
    How long it takes until the receiver hangs up.
    """
    began = world.clock.seconds()
    while not client.lost:
        assert world.clock.seconds() - began < most, "it waits for ever"
        world.clock.advance(1)
        world.pump()
    return world.clock.seconds() - began


def test_silenceAfterThePreamble(world):
    client = connect(world)
    client.transport.write(PREAMBLE)
    world.pump()
    assert seconds(world, client) <= 11


def test_silenceInThePreamble(world):
    client = connect(world)
    client.transport.write(PREAMBLE[:3])
    world.pump()
    assert seconds(world, client) <= 11


def test_silenceAfterHello(world):
    client = connect(world)
    client.transport.write(PREAMBLE)
    client.say(Type.HELLO, 0, Hello((1,), "x", (), ("sha256",), bytes(32)))
    assert seconds(world, client) <= 31


@pytest.mark.parametrize("what", ["idle", "frame", "offer", "run", "joined"])
def test_silenceLater(world, what):
    client = raw(world)
    if what == "frame":
        client.transport.write(b"\x10")
    elif what == "offer":
        client.offer(1)
    elif what == "run":
        client.offer(1)
        client.transport.write(encode(Type.DATA, 1, Data(0), 4096) + b"x")
    elif what == "joined":
        other = raw(world)
        client.say(Type.JOIN, 0, Join(other.last(Type.READY).ticket))
    world.pump()
    assert 55 <= seconds(world, client) <= 62


def test_oneByteJustInTime(world):
    """
    A slow-loris in the greeting, inside a frame, inside a run, and with whole
    but tiny frames.
    """
    greeting = connect(world)
    greeting.transport.write(PREAMBLE)
    loris(world, greeting, bytes(100), 9, 11)

    inside = raw(world)
    inside.transport.write(HEADER.pack(Type.PUT, 0, 100, 1, 1000) + bytes(4))
    loris(world, inside, b"\x99" * 100, 9, 130)

    run = raw(world).offer(1, size=1 << 20)
    run.transport.write(encode(Type.DATA, 1, Data(0), 1 << 20))
    loris(world, run, bytes(100), 9, 130)

    tiny = raw(world).offer(1, size=1 << 20)
    began = world.clock.seconds()
    offset = 0
    while not tiny.lost:
        tiny.data(1, offset, b"x")
        offset += 1
        world.clock.advance(9)
        world.pump()
        assert world.clock.seconds() - began < 200


def loris(world, client, data, every, most):
    began = world.clock.seconds()
    for byte in data:
        if client.lost:
            break
        client.transport.write(bytes([byte]))
        world.pump()
        for _ in range(every):
            world.clock.advance(1)
            world.pump()
    assert client.lost
    assert world.clock.seconds() - began <= most + every


def test_timeInWhichWeDoNotReadDoesNotCount(tmp_path):
    """
    A store that takes minutes is not the sender's fault.
    """

    world = World(tmp_path / "state", Policy())
    storing = []

    def put(offer, data, root):
        storing.append(Deferred())
        return storing[-1]

    world.store.put = put
    client = connect(world).greet().put(1, b"a", b"x")
    for _ in range(300):
        world.clock.advance(1)
        world.pump()
    assert not client.lost
    # and the sender hears of us meanwhile
    assert client.kinds().count(Type.PING) > 100
    storing[0].errback(StoreError("gone"))
    world.pump()
    assert client.last(Type.REJECT).code == "store-error"
    client.transport.loseConnection()
    world.pump()
    world.close()


def test_runsAreBounded(world):
    client = raw(world).offer(1, size=1 << 30, blockSize=1 << 20)
    client.transport.write(HEADER.pack(Type.DATA, 0, 2, 1, MAX_DATA_BYTES + 1) + bytes(6))
    world.pump()
    refused(client)


# -- stores in trouble -----------------------------------------------------------------------


def test_aFullStore(tmp_path):
    """
    One file is refused, the session goes on, what is there is kept.
    """
    store = MemoryStore(capacity=10_000)
    world = World(tmp_path / "state", Policy(), store=store)
    client = connect(world).greet().offer(1, size=20_000, resumeKey=b"k" * 32)
    client.data(1, 0, bytes(3 * BLOCK)).data(1, 3 * BLOCK, bytes(4))
    assert client.last(Type.REJECT).code == "no-space"
    assert client.last(Type.REJECT).retryable
    assert client.put(2, b"a", b"x").last()
    client.transport.loseConnection()
    world.pump()
    assert not store.files.get("f")
    world.close()


def test_anOffsetTakesNoMemory(tmp_path):
    """
    A store in memory has a limit also where nobody set one.
    """
    store = MemoryStore()
    world = World(tmp_path / "state", Policy(), store=store)
    client = connect(world).greet().offer(1, size=1 << 50)
    assert client.last(Type.REJECT).code == "no-space"
    # of a size that nobody knows yet
    client.offer(2, size=None, blockSize=1 << 20).data(2, MEMORY_CAPACITY_BYTES, b"x")
    assert client.last(Type.REJECT).code == "no-space"
    assert client.put(3, b"a", b"x").last()
    world.close()


class Failing:
    """
    A partial whose disk breaks after some writes, at once or later.
    """

    def __init__(self, partial, writes, later):
        self._partial = partial
        self._writes = writes
        self._later = later
        self._broken = False

    def __getattr__(self, name):
        if self._broken and name in {"record", "discard"}:
            raise StoreError("it broke before")
        return getattr(self._partial, name)

    def write(self, offset, data):
        self._writes -= 1
        if self._writes < 0:
            self._broken = True
            if self._later:
                return fail(StoreError("the disk broke"))
            raise StoreError("the disk broke")
        return self._partial.write(offset, data)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_aBrokenStore(tmp_path, later, writes):
    world = World(tmp_path / "state", Policy())
    original = world.store.open
    world.store.open = lambda *a: original(*a).addCallback(Failing, writes, later)
    content = bytes(2 * BLOCK)
    client = connect(world).greet().offer(1, resumeKey=b"k" * 32)
    client.digests(1, 0, content[:BLOCK], content[BLOCK:])
    for at in range(0, len(content), 2048):
        client.data(1, at, content[at : at + 2048])
    client.commit(1, content)
    assert client.last(Type.REJECT).code == "store-error"
    assert client.put(2, b"a", b"x").last(Type.ACK)
    assert list(world.store.files) == ["a"]
    client.transport.loseConnection()
    world.pump()
    # an I/O error poisons the partial
    assert not world.store._partials
    world.close()


def test_aSlowStoreIsNotASlowSender(tmp_path):
    """
    While writes wait for the disk, inside a run, the pace does not count.
    """
    world = World(tmp_path / "state", Policy())
    writing = []
    original = world.store.open

    class Slow:
        def __init__(self, partial):
            self._partial = partial

        def __getattr__(self, name):
            return getattr(self._partial, name)

        def write(self, offset, data):
            writing.append((Deferred(), offset, bytes(data)))
            return writing[-1][0]

    world.store.open = lambda *a: original(*a).addCallback(Slow)
    client = connect(world).greet().offer(1, size=16 << 20, blockSize=1 << 20)
    client.transport.write(encode(Type.DATA, 1, Data(0), 4 << 20) + bytes((4 << 20) - 1))
    client.transport.write(b"\0" + encode(Type.DATA, 1, Data(4 << 20), 4 << 20) + bytes(2 << 20))
    world.pump()
    for _ in range(200):
        world.clock.advance(1)
        world.pump()
    assert not client.lost
    assert client.kinds().count(Type.PROGRESS) > 100
    assert client.last(Type.PROGRESS).slow == "disk"
    while writing:
        d, _, _ = writing.pop(0)
        d.callback(None)
        world.pump()
    assert 55 <= seconds(world, client) <= 130
    world.close()


# -- directories -------------------------------------------------------------------------


def asking(world):
    """
    A sender that has the capability.
    """
    client = connect(world)
    capabilities = ("join", "directories")
    hello = encode(Type.HELLO, 0, Hello((1,), "raw", capabilities, ("sha256",), bytes(32)))
    client.transport.write(PREAMBLE + hello)
    world.pump()
    theirs = encode(Type.HELLO, 0, client.last(Type.HELLO))
    return client.say(Type.AUTH, 0, Auth(transcriptOf(hello, theirs), "none"))


def test_everyHostileNameOfADirectory(world):
    client = asking(world)
    for number, hostile in enumerate(CORPUS, 1):
        if len(hostile.raw) > 49_152:
            continue
        world.store.directories.clear()
        world.store._forms.clear()
        client.say(Type.DIRECTORY, number, Directory(hostile.raw, 5, "none"))
        world.settle(1)
        if hostile.portable:
            assert world.store.directories[hostile.raw.decode()] == 5
        else:
            assert client.last(Type.REJECT).code == "name-refused"
            assert world.store.directories == {}
    assert Type.ERROR not in client.kinds()


def test_directoriesCountAsFiles(tmp_path):
    world = World(tmp_path / "state", Policy(maxFiles=3))
    client = asking(world)
    for number in range(1, 6):
        client.say(Type.DIRECTORY, number, Directory(b"d%d" % number, None, "none"))
        world.settle(1)
    assert sorted(world.store.directories) == ["d1", "d2", "d3"]
    assert client.last(Type.REJECT).code == "quota"
    # those that are there take nothing
    client.say(Type.DIRECTORY, 6, Directory(b"d1", 7, "none"))
    world.settle(1)
    assert world.store.directories["d1"] == 7
    world.close()


def test_noDotDirectories(tmp_path):
    world = World(tmp_path / "state", Policy(dotfiles=False))
    client = asking(world)
    client.say(Type.DIRECTORY, 1, Directory(b"a/.hidden", 5, "none"))
    assert client.last(Type.REJECT).code == "name-refused"
    assert world.store.directories == {}
    world.close()


def test_directoriesOnTheirWayAreBounded(world):
    """
    A store that takes its time: reading stops, and nothing piles up.
    """
    client = asking(world)
    waiting = []

    def makeDirectory(*_):
        waiting.append(Deferred())
        return waiting[-1]

    world.store.makeDirectory = makeDirectory
    name = b"/".join([b"x" * 200] * 15)
    link = world.wires[-1].ends[1].protocol
    number = 0
    while not link.holds and number < 100_000:
        batch = b""
        for _ in range(100):
            number += 1
            batch += encode(Type.DIRECTORY, number, Directory(name, 5, "none"))
        client.transport.write(batch)
        world.pump()
    assert link.holds
    assert len(waiting) <= smallfiles.PENDING_BYTES // len(name) + 1000
    for d in waiting:
        d.callback(DirectoryMade(False, "none", "memory", 0.0))
    world.settle(1)
    assert not link.holds


def test_aStoreThatFailsToMakeOne(world):
    client = asking(world)
    world.store.makeDirectory = lambda *_: fail(StoreError("no"))
    client.say(Type.DIRECTORY, 1, Directory(b"d", 5, "none"))
    assert client.last(Type.REJECT).code == "store-error"
