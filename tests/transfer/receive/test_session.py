"""
The receiver's turn and the sender's: what is kept for whom, and for how long.
"""

import attrs
import pytest
from twisted.internet.defer import Deferred, fail, succeed

from connpool.errors import NoSpace, StoreError
from connpool.transfer.digests import DIGESTS
from connpool.transfer.identities import Identity
from connpool.transfer.names import RelativeName
from connpool.transfer.receive import reception, upload
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.stream import COMPARE_BYTES_PER_SECOND, Phase
from connpool.transfer.wire.frames import HEADER, PREAMBLE, Type, unpackBlocks
from connpool.transfer.wire.messages import Cancel, Commit, Data, Digests, Ping, Repair, encode
from tests.transfer.raw import connect
from tests.transfer.world import World

BLOCK = 4096
KEY = b"k" * 32


@pytest.fixture
def worlds(tmp_path):
    made = []

    def build(store=None, **policy):
        made.append(World(tmp_path / "state", Policy(**policy), store))
        return made[-1]

    yield build
    for world in made:
        world.settle(200)
        world.close()


@pytest.mark.parametrize("greeted", [False, True])
@pytest.mark.parametrize("kind", [Type.ACCEPT, Type.RECEIPT, Type.REPAIR, Type.PUT])
def test_nothingIsKeptOfWhatIsNotExpected(worlds, kind, greeted):
    """
    The header of a large frame is enough to hang up, before any of it is kept.
    """
    world = worlds()
    client = connect(world)
    if greeted:
        client.greet()
    else:
        client.transport.write(PREAMBLE)
    client.transport.write(HEADER.pack(kind, 0, 60, 1, 200_000) + bytes(100))
    world.pump()
    if greeted and kind is Type.PUT:
        assert client.kinds()[-1] is Type.READY
        client.transport.abortConnection()
        return
    assert client.last(Type.ERROR).code == "protocol"
    assert kind.name in client.last(Type.ERROR).detail
    world.settle(15)
    assert client.lost


def test_oneIncompleteBlockALane(worlds):
    """
    A byte of each block makes no hasher for each block.
    """
    world = worlds(minimumRate=0)
    client = connect(world).greet().offer(1, size=2000 * BLOCK)
    for block in range(2000):
        client.transport.write(encode(Type.DATA, 1, Data(block * BLOCK), 1) + b"x")
    world.pump()
    (stream,) = world.wires[-1].ends[1].protocol.session._streams.values()
    assert len(stream._upload.blockmap.arriving) == 1
    # nothing is lost: a proper sender after it gets through
    content = b"y" * 2000 * BLOCK
    client.data(1, 0, content[: 1000 * BLOCK]).data(1, 1000 * BLOCK, content[1000 * BLOCK :])
    for first in range(0, 2000, 500):
        client.digests(1, first, *([b"y" * BLOCK] * 500))
    client.commit(1, content)
    assert client.last().status == "stored"


def test_blocksOfSeveralLanesArriveAtOnce(worlds):
    world = worlds()
    owner = connect(world).greet().offer(1, size=3 * BLOCK)
    from connpool.transfer.wire.messages import Join

    lanes = [owner]
    for _ in range(2):
        lanes.append(connect(world).greet())
        lanes[-1].say(Type.JOIN, 0, Join(owner.last(Type.READY).ticket))
    content = b"a" * BLOCK + b"b" * BLOCK + b"c" * BLOCK
    for at in range(0, BLOCK, 1024):
        for number, lane in enumerate(lanes):
            start = number * BLOCK + at
            lane.data(1, start, content[start : start + 1024])
    owner.digests(1, 0, *(content[at : at + BLOCK] for at in range(0, len(content), BLOCK)))
    owner.commit(1, content)
    assert owner.last(Type.RECEIPT).status == "stored"
    assert Type.REPAIR not in owner.kinds()


def test_aLaneThatIsHalfClosedIsLetGo(worlds):
    world = worlds()
    owner = connect(world).greet().offer(1, size=BLOCK)
    from connpool.transfer.wire.messages import Join

    lane = connect(world).greet()
    lane.say(Type.JOIN, 0, Join(owner.last(Type.READY).ticket))
    link = world.wires[-1].ends[1].protocol
    link.readConnectionLost()
    world.pump()
    assert lane.lost
    content = b"x" * BLOCK
    owner.data(1, 0, content).digests(1, 0, content).commit(1, content)
    assert owner.last(Type.RECEIPT).status == "stored"


def test_digestsWithoutBytesAreKeptInBounds(worlds):
    world = worlds(minimumRate=0)
    size = 60_000 * BLOCK
    client = connect(world).greet().offer(1, size=size)
    wire = DIGESTS["sha256"].of(b"y" * BLOCK) * 10_000
    for first in range(0, 60_000, 10_000):
        client.say(Type.DIGESTS, 1, Digests(first), wire)
    (stream,) = world.wires[-1].ends[1].protocol.session._streams.values()
    assert len(stream._upload.blockmap.expected) == upload.DIGESTS_AHEAD
    # some digests may come first, as the document says
    client.data(1, 0, b"y" * 2 * BLOCK)
    assert sorted(stream._upload.blockmap.verified) == [0, 1]
    client.transport.abortConnection()


def test_commitIsNoContent(worlds):
    """
    Who only commits holds no place for longer than who is silent.
    """
    world = worlds(idleTimeout=10.0)
    client = connect(world).greet().offer(1, size=8 * BLOCK)
    for _ in range(25):
        client.commit(1, bytes(8 * BLOCK))
        world.clock.advance(1.0)
        world.pump()
        if Type.ERROR in client.kinds():
            break
    assert client.last(Type.ERROR).code in {"timeout", "too-slow"}
    assert world.clock.seconds() <= 12


def test_publishingIsASignOfLife(worlds):
    world = worlds(idleTimeout=10.0, minimumRate=0)
    client = connect(world).greet()
    content = b"x" * BLOCK
    for stream in (1, 2, 3):
        client.offer(stream, b"f%d" % stream, size=BLOCK)
        client.data(stream, 0, content).digests(stream, 0, content)
        world.clock.advance(9.0)
        client.commit(stream, content)
        assert client.last(Type.RECEIPT).status == "stored"
        client.say(Type.PING, 0, Ping(1))
    assert not client.lost


def held(world, count):
    """
    A partial of C{count} verified blocks, whose sender went away.
    """
    client = connect(world).greet()
    client.offer(1, resumeKey=KEY, size=(count + 1) * BLOCK)
    for block in range(count):
        client.data(1, block * BLOCK, bytes(BLOCK)).digests(1, block, bytes(BLOCK))
    client.transport.abortConnection()
    world.pump()


def whilePinging(world, client):
    """
    How long a sender is kept that only says PING.
    """
    began = world.clock.seconds()
    while not client.lost:
        world.clock.advance(1.0)
        if Type.ERROR not in client.kinds():
            client.say(Type.PING, 0, Ping(0))
        world.pump()
        assert world.clock.seconds() - began < 200
    return world.clock.seconds() - began


def test_whoComparesIsNotSilent(worlds, monkeypatch):
    """
    A sender that reads what is held again sends nothing but PINGs; it has the
    time that this takes, and no more.
    """
    monkeypatch.setattr("connpool.transfer.receive.stream.COMPARE_BYTES_PER_SECOND", 2 * BLOCK / 10)
    world = worlds(idleTimeout=5.0)
    held(world, 6)
    client = connect(world).greet()
    client.offer(1, resumeKey=KEY, size=7 * BLOCK)
    assert client.last().state == "resume"
    # another file that is offered meanwhile makes no difference
    client.offer(2, b"other")
    # 6 blocks in 30 seconds, and then the usual patience
    assert 34 <= whilePinging(world, client) <= 50
    assert client.last(Type.ERROR).code == "timeout"


def test_inputThatIsWaitedForMayBeSilentForLong(worlds):
    world = worlds(idleTimeout=5.0)
    client = connect(world).greet().offer(1, size=None)
    assert 49 <= whilePinging(world, client) <= 65
    # beside a file whose size is known it is that file's turn
    client = connect(world).greet().offer(1, size=None).offer(2, size=BLOCK)
    assert 4 <= whilePinging(world, client) <= 20


def test_comparingIsDoneWellWithinItsTime():
    assert COMPARE_BYTES_PER_SECOND <= 50 << 20


class Late:
    """
    Writes the bytes of stream 1 when it is told to.
    """

    def __init__(self, world):
        session = world.wires[-1].ends[1].protocol.session
        self._partial = session._streams[1]._upload.incoming.partial
        self._writeNow, self._partial.write = self._partial.write, self._write
        self._waiting = []

    def _write(self, offset, data):
        self._waiting.append((Deferred(), offset, data))
        return self._waiting[-1][0]

    def go(self):
        while self._waiting:
            d, offset, data = self._waiting.pop(0)
            self._writeNow(offset, data)
            d.callback(None)


@pytest.mark.parametrize("what", ["damaged", "reset"])
def test_whatComesAfterCommitDoesNotRemoveThePartial(worlds, what):
    """
    A frame that is damaged while COMMIT waits for the last block to be written.
    """
    world = worlds()
    client = connect(world).greet()
    client.offer(1, resumeKey=KEY, size=4 * BLOCK)
    client.data(1, 0, bytes(3 * BLOCK)).digests(1, 0, *[bytes(BLOCK)] * 3)
    late = Late(world)
    client.data(1, 3 * BLOCK, bytes(BLOCK)).digests(1, 3, bytes(BLOCK))
    client.commit(1, bytes(4 * BLOCK))
    if what == "damaged":
        wire = bytearray(encode(Type.PING, 0, Ping(5)))
        wire[-1] ^= 1
        client.transport.write(bytes(wire))
    else:
        client.transport.abortConnection()
    world.pump()
    late.go()
    world.settle(15)
    assert client.lost
    again = connect(world).greet()
    again.offer(1, resumeKey=KEY, size=4 * BLOCK)
    assert again.last(Type.ACCEPT).state == "resume"
    again.transport.abortConnection()


def test_oneRepairForACommit(worlds):
    """
    Blocks that turn out wrong while COMMIT is looked at are in its answer, not
    in one of their own that the sender may not act upon yet.
    """
    world = worlds()
    client = connect(world).greet().offer(1, size=3 * BLOCK)
    late = Late(world)
    content = b"x" * 3 * BLOCK
    client.digests(1, 0, *[b"x" * BLOCK] * 3)
    client.data(1, 0, b"x" * BLOCK + b"!" * BLOCK)
    client.commit(1, content)
    late.go()
    world.pump()
    repairs = [frame.data for frame, message in client.frames if isinstance(message, Repair)]
    assert [unpackBlocks(wire) for wire in repairs] == [[1, 2]]
    client.data(1, BLOCK, content[BLOCK:]).digests(1, 1, b"x" * BLOCK, b"x" * BLOCK)
    late.go()
    client.commit(1, content)
    assert client.last(Type.RECEIPT).status == "stored"


@pytest.mark.parametrize("error", [NoSpace("full"), StoreError("broken")])
def test_aBufferIsNeededUntilItsLastPieceIsWritten(worlds, error):
    """
    A store that takes the first block of a view later and refuses the second.
    """
    world = worlds()
    client = connect(world).greet().offer(1, size=2 * BLOCK)
    session = world.wires[-1].ends[1].protocol.session
    (stream,) = session._streams.values()
    partial = stream._upload.incoming.partial
    writing = Deferred()

    def write(offset, data):
        if offset:
            raise error
        return writing

    partial.write = write
    needed = stream.write(session, 0, memoryview(bytes(2 * BLOCK)))
    done = []
    needed.addCallback(done.append)
    assert done == []
    partial.suspend = partial.abort = lambda: succeed(None)
    writing.callback(None)
    assert done == [None]
    world.pump()
    assert client.last(Type.REJECT).code == error.code


def test_aSenderSeesNamesBelowItsOwnDirectory():
    from connpool.transfer.records import Receipt
    from connpool.transfer.wire.frames import FrameReader
    from connpool.transfer.wire.messages import decode, receiptFrame

    receipt = Receipt(
        *("0" * 32, "alice/a/b", "alice/a/b", 1, "stored", "none", "memory"),
        *("verified", "sha256", "00" * 32, "native", "alice", 1.0),
    )
    alice = Identity("alice", RelativeName.parse("alice"))
    for identity, name in ((alice, b"a/b"), (Identity("bob"), b"alice/a/b"), (None, b"alice/a/b")):
        (frame,) = FrameReader().feed(receiptFrame(1, receipt, identity))
        assert decode(frame).name == name
    odd = attrs.evolve(receipt, name="alicea")
    (frame,) = FrameReader().feed(receiptFrame(1, odd, alice))
    assert decode(frame).name == b"alicea"


def test_aDryRunIsAnsweredByWhatIsThere(worlds):
    world = worlds(ifExists="refuse")
    client = connect(world).greet()
    content = b"x" * BLOCK
    client.offer(1, b"f", size=BLOCK)
    client.data(1, 0, content).digests(1, 0, content).commit(1, content)
    assert client.last().status == "stored"
    # it may be the same content, which is no conflict
    client.offer(2, b"f", size=BLOCK, dry=True)
    assert client.last(Type.ACCEPT).state == "dry"
    client.offer(3, b"f", size=BLOCK + 1, dry=True)
    assert client.last(Type.REJECT).code == "exists"
    world.store.foresee = lambda *_: fail(StoreError("no"))
    client.offer(4, b"g", size=1, dry=True)
    assert client.last(Type.REJECT).code == "store-error"


def test_aSecondCommitIsAnError(worlds):
    world = worlds()
    client = connect(world).greet().offer(1, size=BLOCK)
    late = Late(world)
    client.data(1, 0, bytes(BLOCK)).digests(1, 0, bytes(BLOCK)).commit(1, bytes(BLOCK))
    client.say(Type.COMMIT, 1, Commit(BLOCK, bytes(32)))
    assert client.last(Type.ERROR).code == "protocol"
    late.go()


def test_aCheckpointThatFailsEndsItsFileAlone(worlds):
    """
    Also while all files of the session are told how they go.
    """
    world = worlds()
    client = connect(world).greet().offer(1, size=2 * BLOCK).offer(2, b"g", size=2 * BLOCK)
    session = world.wires[-1].ends[1].protocol.session
    session._streams[1]._upload.incoming.partial.checkpoint = lambda: fail(StoreError("broken"))
    world.clock.advance(reception.CHECKPOINT_SECONDS - 0.5)
    client.data(1, 0, bytes(BLOCK))
    world.clock.advance(1)
    world.pump()
    assert client.last(Type.REJECT).code == "store-error"
    told = [frame.stream for frame, _ in client.frames if frame.type is Type.PROGRESS]
    assert told[-1] == 2
    assert list(session._streams) == [2]
    content = bytes(2 * BLOCK)
    client.data(2, 0, content).digests(2, 0, bytes(BLOCK), bytes(BLOCK)).commit(2, content)
    assert client.last(Type.RECEIPT).status == "stored"


def test_cancelIsTooLateWhileItIsPublished(worlds):
    world = worlds()
    client = connect(world).greet().offer(1, size=BLOCK)
    session = world.wires[-1].ends[1].protocol.session
    partial = session._streams[1]._upload.incoming.partial
    commit, gate = partial.commit, Deferred()
    partial.commit = lambda root: gate.addCallback(lambda _: commit(root))
    client.data(1, 0, bytes(BLOCK)).digests(1, 0, bytes(BLOCK)).commit(1, bytes(BLOCK))
    assert session._streams[1].phase is Phase.PUBLISHING
    client.say(Type.CANCEL, 1, Cancel("no", keep=False))
    session._streams[1].fail(StoreError("too late"))
    assert Type.REJECT not in client.kinds()
    gate.callback(None)
    world.pump()
    assert client.last(Type.RECEIPT).status == "stored"
    assert session._streams == {}
