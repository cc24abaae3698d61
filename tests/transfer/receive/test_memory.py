"""
Bytes that a receiver and a sender keep of a peer in each state: never more than that state
can use.
"""

import pytest

from connpool.transfer.receive import greeting, smallfiles
from connpool.transfer.receive.policy import Policy
from connpool.transfer.wire.frames import BOUNDS, HEADER, HEADER_BYTES, PREAMBLE, Type
from connpool.transfer.wire.frames import frame as pack
from connpool.transfer.wire.messages import (
    Cancel,
    Data,
    Digests,
    Hello,
    Join,
    OfferMessage,
    Put,
    Revoke,
    encode,
)
from tests.transfer.raw import connect
from tests.transfer.scripted import scripted
from tests.transfer.world import World

BLOCK = 4096
MIB = 1 << 20


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "state", Policy(minimumRate=0))
    yield made
    made.settle(200)
    made.close()


def linkOf(world, number=-1):
    return world.wires[number].ends[1].protocol


def header(kind, control, stream, length):
    """
    A header with lengths of its own, and a CRC that is never looked at.
    """
    return HEADER.pack(kind, 0, control, stream, length) + bytes(4)


def largest(kind):
    bounds = BOUNDS[kind]
    return header(kind, bounds.control, 0 if bounds.session else 1, bounds.data)


def flood(client, wire, chunk=1024, most=64):
    """
    Say C{wire}, and then junk, as long as the receiver listens.

    @return: the most bytes that it kept.
    """
    link, kept = linkOf(client.world), 0
    client.transport.write(wire)
    client.world.pump()
    for _ in range(most):
        kept = max(kept, link.kept)
        if client.lost or link.ended is not None:
            break
        client.transport.write(bytes(chunk))
        client.world.pump()
    return kept


OTHERS = sorted(set(Type) - {Type.ERROR})


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind is not Type.HELLO])
def test_beforeHello(world, kind):
    client = connect(world)
    client.transport.write(PREAMBLE)
    assert flood(client, largest(kind)) == 0
    assert linkOf(world).ended is not None


def test_aHelloIsBounded(world):
    client = connect(world)
    client.transport.write(PREAMBLE)
    assert flood(client, header(Type.HELLO, 4097, 0, 0)) == 0
    assert linkOf(world).ended is not None
    client = connect(world)
    client.transport.write(PREAMBLE)
    assert flood(client, header(Type.HELLO, 4096, 0, 0)) <= HEADER_BYTES + 4096


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind is not Type.AUTH])
def test_betweenHelloAndAuth(world, kind):
    client = connect(world)
    hello = Hello((1,), "raw", ("join",), ("sha256",), bytes(32))
    client.transport.write(PREAMBLE + encode(Type.HELLO, 0, hello))
    world.pump()
    assert flood(client, largest(kind)) == 0
    assert linkOf(world).ended is not None


def test_anAuthIsBounded(world):
    client = connect(world)
    hello = Hello((1,), "raw", ("join",), ("sha256",), bytes(32))
    client.transport.write(PREAMBLE + encode(Type.HELLO, 0, hello))
    world.pump()
    assert flood(client, header(Type.AUTH, 8192, 0, 0)) <= HEADER_BYTES + 8192


def test_aStrangerIsReadInSmallPieces(world):
    client = connect(world)
    transport = linkOf(world).transport
    assert transport.bufferSize <= 16 * 1024
    client.greet()
    assert transport.bufferSize == MIB


@pytest.mark.parametrize(
    "kind", [Type.HELLO, Type.AUTH, Type.READY, Type.ACCEPT, Type.REPAIR, Type.ACK, Type.RECEIPT]
)
def test_whatIsNotForAReceiver(world, kind):
    client = connect(world).greet()
    assert flood(client, largest(kind)) == 0
    assert client.last(Type.ERROR).code == "protocol"


def test_directoriesWithoutTheCapability(world):
    client = connect(world).greet()
    assert flood(client, largest(Type.DIRECTORY)) == 0
    assert client.last(Type.ERROR).code == "protocol"


@pytest.mark.parametrize("kind", [Type.PUT, Type.OFFER, Type.JOIN, Type.COMMIT, Type.REVOKE])
def test_onAJoinedConnection(world, kind):
    first = connect(world).greet()
    second = connect(world).greet()
    second.say(Type.JOIN, 0, Join(first.last(Type.READY).ticket))
    assert flood(second, largest(kind)) == 0
    assert second.last(Type.ERROR).code == "protocol"


@pytest.mark.parametrize(
    ("kind", "joined"), [(Type.DIGESTS, False), (Type.REVOKE, False), (Type.DIGESTS, True)]
)
def test_streamsThatWereNeverOffered(world, kind, joined):
    client = connect(world).greet()
    if joined:
        client, first = connect(world).greet(), client
        client.say(Type.JOIN, 0, Join(first.last(Type.READY).ticket))
    control = encode(kind, 7, Digests(0) if kind is Type.DIGESTS else Revoke(), BOUNDS[kind].data)
    assert flood(client, control) == 0
    assert client.last(Type.ERROR).code == "protocol"


def test_dataOfAnEndedStreamIsDropped(world):
    """
    It was on its way: no error, and no memory.
    """
    client = connect(world).greet()
    client.offer(1).say(Type.CANCEL, 1, Cancel("x", False))
    for kind, message in ((Type.DIGESTS, Digests(0)), (Type.REVOKE, Revoke())):
        length = BOUNDS[kind].data
        client.transport.write(encode(kind, 1, message, length))
        for _ in range(0, length, 64 * 1024):
            client.transport.write(bytes(64 * 1024))
            world.pump()
            assert linkOf(world).kept == 0
    client.transport.write(encode(Type.DATA, 1, Data(0), 4 * MIB) + bytes(MIB))
    world.pump()
    assert linkOf(world).kept == 0
    assert Type.ERROR not in client.kinds()


def test_digestsBeyondTheFile(world):
    client = connect(world).greet().offer(1, size=2 * BLOCK)
    wire = encode(Type.DIGESTS, 1, Digests(0), 4 * MIB)
    assert flood(client, wire) == 0
    assert client.last(Type.ERROR).code == "protocol"


def test_revokedBlocksBeyondTheFile(world):
    client = connect(world).greet().offer(1, size=2 * BLOCK)
    assert flood(client, encode(Type.REVOKE, 1, Revoke(), 64 * 1024)) == 0
    assert client.last(Type.ERROR).code == "protocol"


def test_digestsBeforeAnswers(world):
    """
    An offer that waits for its turn has no use for them.
    """
    world.policy = Policy(minimumRate=0, maxTransfers=1)
    world.restart()
    client = connect(world).greet().offer(1, name=b"a").offer(2, name=b"b")
    assert flood(client, encode(Type.DIGESTS, 2, Digests(0), 64)) == 0
    assert client.last(Type.ERROR).code == "protocol"


def test_aPutIsBoundedByWhatWasSaid(world):
    client = connect(world).greet()
    put = Put(bytes(16), b"f", bytes(32), bytes(32))
    assert flood(client, encode(Type.PUT, 1, put, MIB), chunk=64 * 1024) == 0
    assert client.last(Type.ERROR).code == "protocol"
    client = connect(world).greet()
    wire = encode(Type.PUT, 1, put, smallfiles.SMALL_FILE_BYTES)
    assert 0 < flood(client, wire, 1024, 8) <= len(wire) + smallfiles.SMALL_FILE_BYTES


def test_controlPartsOfTheLargestSize(world):
    client = connect(world).greet()
    kept = flood(client, header(Type.OFFER, 65_535, 1, 0))
    assert HEADER_BYTES <= kept <= HEADER_BYTES + 65_535
    assert client.last(Type.ERROR).code == "damaged"


def test_manyOpenStreamsKeepNoFrames(world):
    client = connect(world).greet()
    for number in range(1, 1 + greeting.STREAMS):
        offering = OfferMessage(bytes(16), b"n%d" % number, bytes(32), BLOCK, BLOCK)
        client.say(Type.OFFER, number, offering)
    assert client.kinds().count(Type.ACCEPT) == greeting.STREAMS
    # incomplete runs of two streams: of the first one nothing is left
    client.transport.write(encode(Type.DIGESTS, 1, Digests(0), 32) + bytes(31))
    world.pump()
    assert linkOf(world).kept == HEADER_BYTES + 3 + 31
    for number in range(1, 1 + greeting.STREAMS):
        client.say(Type.CANCEL, number, Cancel("x", False)) if number > 1 else None


# -- a sender, of a receiver that means no good ------------------------------------------


def toSender(world, tmp_path, wire, when):
    """
    @return: the sender's link, after the receiver said C{wire} at a frame of type C{when}.
    """
    path = tmp_path / "large"
    path.write_bytes(bytes(20 * BLOCK))

    def answer(receiver, frame, message):
        if frame.type is when:
            receiver.transport.write(wire)

    scripted(world, answer)
    results = world.start(world.sending(path))
    world.pump()
    kept = 0
    link = world.wires[0].ends[0].protocol
    for _ in range(64):
        if link.ended is not None:
            break
        kept = max(kept, link.kept)
        world.wires[0].ends[1].write(bytes(4096))
        world.pump()
    for wire_ in world.wires:
        for end in wire_.ends:
            end.protocol.transport.abortConnection()
    world.finish(results)
    return kept


RUNS = [Type.ACCEPT, Type.REPAIR]


@pytest.mark.parametrize("stream", [1, 9], ids=["its", "unknown"])
@pytest.mark.parametrize("kind", RUNS)
def test_aSenderKeepsNoListsBeyondTheFile(world, smallFiles, tmp_path, kind, stream):
    control = bytes((0x94, 0xA3)) + b"new" + bytes((0, 0, 0x90))
    if kind is Type.REPAIR:
        control = bytes((0x91, 0x90))
    wire = pack(kind, stream, control, BOUNDS[kind].data)
    assert toSender(world, tmp_path, wire, Type.OFFER) == 0


@pytest.mark.parametrize("kind", [Type.ACCEPT, Type.RECEIPT, Type.ACK, Type.REJECT])
def test_aSenderBeforeReady(world, smallFiles, tmp_path, kind):
    path = tmp_path / "large"
    path.write_bytes(bytes(20 * BLOCK))
    receivers = scripted(world, lambda *_: None)
    results = world.start(world.sending(path))
    link = world.wires[0].ends[0].protocol
    world.wires[0].ends[1].write(PREAMBLE + largest(kind))
    before = link.reader.expected
    world.pump()
    assert link.reader.kept == 0
    assert before == {Type.HELLO, Type.ERROR}
    assert receivers
    world.refuse = True
    assert world.finish(results).exitCode != 0


def test_afterTheEndOfASession(world):
    """
    A peer that does not read what ended it may say what it likes, and none of it is kept.
    """
    client = connect(world)
    client.transport.pauseProducing()
    client.transport.write(b"\0CPT1\r\n\x1a" + largest(Type.COMMIT))
    world.pump()
    link = linkOf(world)
    assert link.ended is not None
    assert not client.transport.closed
    for _ in range(64):
        client.transport.write(bytes(MIB))
        world.pump()
    assert link.kept == 0
