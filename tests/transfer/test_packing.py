"""
Compressed content: what is compressed, how it arrives, and bombs.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connpool.errors import ProtocolError
from connpool.transfer.receive.policy import Policy
from connpool.transfer.send.packing import Packer
from connpool.transfer.send.request import SendRequest
from connpool.transfer.wire.content import Packed
from connpool.transfer.wire.fields import MAX_PACKED_BYTES
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import ReceiptMessage
from connpool.transfer.wire.packed import Unpacker, pack
from tests.transfer.raw import connect
from tests.transfer.test_holes import SIDES
from tests.transfer.test_sessions import content, frames
from tests.transfer.world import World

BLOCK = 4096
MIB = 1 << 20
ALWAYS = SendRequest(durability="none", blockSize=BLOCK, extentBytes=8 * BLOCK, compress="always")
LARGE = SendRequest(durability="none", compress="always")
NEVER = SendRequest(durability="none", blockSize=BLOCK, compress="never")


def text(count, seed=1):
    """
    Text that shrinks to less than half.
    """
    words = [bytes(random.Random(n).choices(b"abcdefgh", k=5)) for n in range(300)]
    return b" ".join(random.Random(seed).choices(words, k=count // 6 + 1))[:count]


def sent(world, number=0):
    return sum(len(data) for data in world.wires[number].log[0])


# -- sending


@pytest.mark.parametrize("request_", [ALWAYS, LARGE], ids=["small blocks", "large blocks"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_textShrinks(world, source, request_, jobs):
    data = text(3 * MIB + 17)
    (source / "f").write_bytes(data)
    report = world.send(source / "f", request=request_, jobs=jobs)
    assert report.exitCode == 0
    assert world.store.files == {"f": data}
    wire = sum(len(piece) for each in world.wires for piece in each.log[0])
    assert wire < len(data) * 0.6
    (outcome,) = report.outcomes
    saved = outcome.receipt.savedBytes
    assert len(data) / 2 < saved < len(data)
    assert report.savedBytes == saved == world.reception.stats().savedBytes
    assert (report.sentBytes, report.doneBytes) == (len(data), len(data))
    assert world.reception.stats().receivedBytes == len(data)
    (receipts,) = world.store._receipts.values()
    assert receipts[0].savedBytes == saved
    assert outcome.receipt.root == receipts[0].root


def test_onlyWhatShrinksIsCompressed(world, source):
    data = content(8 * BLOCK) + text(600_000) + content(300_000, 2) + b"end"
    (source / "f").write_bytes(data)
    assert world.send(source / "f", request=ALWAYS).exitCode == 0
    assert world.store.files == {"f": data}
    kinds = frames(world.wires[0], 0)
    assert Type.DATA in kinds


def test_bytesThatDoNotShrinkGoAsTheyAre(world, source):
    data = content(9 * MIB)
    (source / "f").write_bytes(data)
    report = world.send(source / "f", request=LARGE)
    assert world.store.files == {"f": data}
    kinds = frames(world.wires[0], 0)
    assert Type.PACKED not in kinds
    assert report.savedBytes == 0
    # a try, and then frames as long as ever
    assert kinds.count(Type.DATA) <= 4


@pytest.mark.parametrize("old", [*SIDES, "switched off", "never"])
def test_thoseThatTakeNoneGetNone(tmp_path, source, monkeypatch, old):
    policy = Policy(minimumRate=0, compression=old != "switched off")
    world = World(tmp_path / "state", policy)
    if old in SIDES:
        monkeypatch.setattr(
            f"connpool.transfer.{SIDES[old]}.CAPABILITIES", ("join", "puts", "holes", "update")
        )
    data = text(400_000)
    (source / "f").write_bytes(data)
    assert world.send(source / "f", request=NEVER if old == "never" else ALWAYS).exitCode == 0
    assert world.store.files == {"f": data}
    assert Type.PACKED not in frames(world.wires[0], 0)
    world.close()


def test_theDigestsAreOfThePlainBytes(tmp_path, source):
    """
    A run that broke goes on, compressed or not, with what was sent before.
    """
    world = World(tmp_path / "state")
    data = text(900_000)
    (source / "f").write_bytes(data)
    world.plan = [{"cut": (0, 100_000, "rst")}]
    results = world.start(world.sending(source / "f", request=ALWAYS))
    world.pump()
    world.settle(0)
    report = world.finish(results)
    assert report.exitCode == 0
    assert world.store.files == {"f": data}
    assert sent(world, 1) < sent(world, 0) * 4
    world.close()


def test_damageIsRepaired(world, source):
    data = text(400_000)
    (source / "f").write_bytes(data)
    # within the runs: a flipped byte is no frame of zstd any more, and ends the connection
    world.plan = [{"flips": [(0, 20_000)]}]
    assert world.send(source / "f", request=ALWAYS).exitCode == 0
    assert world.store.files == {"f": data}


# -- the choice


class Clock:
    now = 0.0

    def __call__(self):
        self.now += self.cost
        return self.now

    cost = 0.0


def test_autoCompressesUnlessThePathIsFaster():
    clock = Clock()
    packer, view = Packer("auto", clock), memoryview(text(MIB))
    clock.cost = 0.005  # to compress a MiB
    for _ in range(20):
        assert packer.tries()
        assert packer.pack(view) is not None
        packer.wrote(0.0001, 400_000)
    packer.wrote(0.0001, 400_000)
    assert not packer.tries()
    for _ in range(64):
        packer.wrote(0.0005, MIB)
    assert not packer.tries()
    # it has become slow
    for _ in range(80):
        packer.wrote(0.1, MIB)
    assert packer.tries()


def test_alwaysDoesNotLookAtThePath():
    packer = Packer("always")
    for _ in range(20):
        assert packer.tries()
        assert packer.pack(memoryview(text(MIB))) is not None
        packer.wrote(0.0, MIB)


def test_whatDoesNotShrinkIsTriedLessOften():
    packer, view = Packer("always"), memoryview(content(MIB))
    tries = 0
    for _ in range(1000):
        if packer.tries():
            tries += 1
            assert packer.pack(view) is None
        packer.wrote(0.0, MIB)
    assert tries < 25
    assert packer.pack(view[:100]) is None


# -- unpacking


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 400))
def test_unpackedAsItComes(data, step):
    packed = pack(data, 3)
    unpacker = Unpacker(len(data))
    pieces = [packed[at : at + step] for at in range(0, len(packed), step)]
    assert b"".join(unpacker.feed(memoryview(piece)) for piece in pieces) == data
    unpacker.finish()


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(1, 5000))
def test_garbageIsOneError(data, size):
    unpacker = Unpacker(size)
    with pytest.raises(ProtocolError):
        assert len(unpacker.feed(memoryview(data))) <= size
        unpacker.finish()


@given(st.data())
def test_damagedFramesAreOneError(data):
    plain = text(5000)
    packed = bytearray(pack(plain, 3))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    unpacker = Unpacker(len(plain))
    try:
        found = unpacker.feed(memoryview(bytes(packed)))
        unpacker.finish()
    except ProtocolError:
        return
    assert len(found) == len(plain)


def test_bombs():
    bomb = pack(bytes(64 * MIB), 19)
    for size in (1, 1000, MAX_PACKED_BYTES):
        with pytest.raises(ProtocolError):
            Unpacker(size).feed(memoryview(bomb))
    whole = pack(bytes(1000), 3)
    for wrong in (whole[:-1], whole[:4]):
        unpacker = Unpacker(1000)
        unpacker.feed(memoryview(wrong))
        with pytest.raises(ProtocolError):
            unpacker.finish()
    for wrong, size in ((whole + b"x", 1000), (whole * 2, 1000), (whole, 999), (whole, 1001)):
        unpacker = Unpacker(size)
        with pytest.raises(ProtocolError):
            unpacker.feed(memoryview(wrong))
            unpacker.finish()
    ended = Unpacker(1000)
    ended.feed(memoryview(whole))
    with pytest.raises(ProtocolError):
        ended.feed(memoryview(b"more"))


# -- hostile senders


def raw(world, *capabilities):
    made = connect(world)
    made.capabilities = capabilities or ("join", "zstd")
    return made.greet()


def packed(peer, stream, offset, data, size=None, wire=None):
    wire = pack(data, 3) if wire is None else wire
    return peer.say(Type.PACKED, stream, Packed(offset, size or len(data)), wire)


def test_partsOfABlock(strict):
    whole = text(3 * BLOCK)
    peer = raw(strict).offer(1, size=len(whole))
    packed(peer, 1, 0, whole[:1000])
    packed(peer, 1, 2000, whole[2000:3000])  # not where it stands: ignored
    peer.data(1, 1000, whole[1000:2000])
    packed(peer, 1, 2000, whole[2000:BLOCK])
    packed(peer, 1, BLOCK, whole[BLOCK : 2 * BLOCK])
    packed(peer, 1, 2 * BLOCK, whole[2 * BLOCK :])
    packed(peer, 1, 0, whole[:BLOCK])  # there already
    for block in range(3):
        peer.digests(1, block, whole[block * BLOCK : (block + 1) * BLOCK])
    peer.commit(1, whole)
    assert isinstance(peer.last(), ReceiptMessage)
    assert strict.store.files == {"f": whole}


def refused(peer):
    assert peer.last(Type.ERROR).code == "protocol"
    peer.world.settle(15)
    assert peer.lost


@pytest.mark.parametrize(
    ("size", "wire"),
    [
        (2000, b"garbage" * 10),
        (2000, pack(bytes(2000), 3)[:-1]),
        (2000, pack(bytes(2000), 3) + b"x"),
        (2000, pack(bytes(2001), 3)),
        (2000, pack(bytes(1999), 3)),
        (2000, pack(bytes(50 * MIB), 3)[:1999]),
        (BLOCK, pack(b"", 3)),
        (20, pack(content(20), 3)),  # longer than what it is of
        (MAX_PACKED_BYTES, b"\0" * 1000),
        (9000, pack(text(9000), 3)),  # past the end of the file
        (BLOCK + 1, pack(text(BLOCK + 1), 3)),  # more than the block
    ],
)
def test_hostileFrames(strict, size, wire):
    peer = raw(strict).offer(1, size=8192)
    refused(packed(peer, 1, 0, b"", size, wire))


def test_overTheEndOfABlock(strict):
    peer = raw(strict).offer(1, size=8192).data(1, 0, bytes(10))
    refused(packed(peer, 1, 10, text(BLOCK)))
    past = raw(strict).offer(1, size=8192)
    refused(packed(past, 1, 8192, text(BLOCK)))


def test_noBytes(strict):
    peer = raw(strict).offer(1)
    refused(peer.say(Type.PACKED, 1, Packed(0, 100), b""))
    over = raw(strict).offer(1, size=4 * MIB, blockSize=1 << 21)
    refused(packed(over, 1, 0, b"", MAX_PACKED_BYTES + 1, b"x" * 100))


def test_withoutTheCapabilityOrAnOffer(strict):
    refused(packed(raw(strict, "join").offer(1), 1, 0, bytes(1000)))
    refused(packed(raw(strict), 1, 0, bytes(1000)))


def test_ofStreamsThatHaveEnded(strict):
    peer = raw(strict).offer(1, size=0).commit(1, b"")
    packed(peer, 1, 0, bytes(1000))
    peer.put(2, b"g", b"x")
    assert strict.store.files == {"f": b"", "g": b"x"}


def test_aFrameThatIsCutOff(strict):
    peer = raw(strict).offer(1, size=BLOCK)
    wire = pack(text(BLOCK), 3)
    from connpool.transfer.wire.messages import encode

    peer.transport.write(encode(Type.PACKED, 1, Packed(0, BLOCK), len(wire)) + wire[:20])
    strict.pump()
    peer.transport.loseConnection()
    strict.pump()
    assert strict.store.files == {}


def test_quotasAndRatesCountWhatComesOut(tmp_path):
    world = World(tmp_path / "state", Policy(minimumRate=0, maxRate=BLOCK, maxBytes=10 * BLOCK))
    peer = raw(world).offer(1, size=6 * BLOCK)
    for block in range(6):
        packed(peer, 1, block * BLOCK, bytes(BLOCK)).digests(1, block, bytes(BLOCK))
    peer.commit(1, bytes(6 * BLOCK))
    # a second for each block, although next to nothing came
    assert not isinstance(peer.last(), ReceiptMessage)
    for _ in range(80):
        world.clock.advance(0.1)
        world.pump()
    assert isinstance(peer.last(), ReceiptMessage)
    peer.offer(2, size=6 * BLOCK)
    assert peer.last(Type.REJECT).code == "quota"
    world.settle()
    world.close()
