"""
Files with holes: how they are found, sent, received, resumed, and lied about.
"""

import os

import pytest

from connpool.transfer import holes
from connpool.transfer.digests import DIGESTS, rootOf
from connpool.transfer.receive.policy import Policy
from connpool.transfer.send.readahead import blockDigests
from connpool.transfer.send.removal import contentRoot
from connpool.transfer.send.request import SendRequest
from connpool.transfer.send.source import readRoot
from connpool.transfer.stores import MemoryStore
from connpool.transfer.wire import handshake
from connpool.transfer.wire.content import Hole
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import (
    Extension,
    OfferMessage,
    ReceiptMessage,
    dataBytesIn,
)
from tests.transfer.raw import connect
from tests.transfer.test_sessions import content, frames
from tests.transfer.world import SMALL_BLOCKS, World

BLOCK = 4096
KIB, MIB = 1 << 10, 1 << 20
LARGE_BLOCKS = SendRequest(durability="none", blockSize=MIB, extentBytes=4 * MIB)


def sparse(path, size, **data):
    """
    Make a file of C{size} bytes with C{data}: C{at12} for what begins at 12.

    @return: its content.
    """
    whole = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for at, some in data.items():
            start = int(at.removeprefix("at"))
            os.pwrite(file.fileno(), some, start)
            whole[start : start + len(some)] = some
    with path.open("rb") as file:
        if not holes.isHole(file.fileno(), size - BLOCK, size):
            pytest.skip("the file system of the tests makes no holes")
    return bytes(whole)


@pytest.fixture
def opened(tmp_path):
    files = []

    def make(size, **data):
        sparse(tmp_path / "sparse", size, **data)
        files.append((tmp_path / "sparse").open("rb"))
        return files[-1].fileno()

    yield make
    for file in files:
        file.close()


# -- finding


def test_runsOfWholeBlocks(opened):
    fd = opened(40 * BLOCK + 7, at8192=b"x", at100000=b"y" * BLOCK)
    assert holes.holeRuns(fd, 40 * BLOCK + 7, BLOCK) == [(0, 2), (3, 24), (26, 40)]
    assert holes.holeRuns(fd, 40 * BLOCK + 7, 2 * BLOCK) == [(0, 1), (2, 12), (13, 20)]


def test_aFileWithoutHolesHasNone(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 5 * BLOCK)
    with (tmp_path / "f").open("rb") as file:
        assert holes.holeRuns(file.fileno(), 5 * BLOCK, BLOCK) == []
        assert list(holes.dataRanges(file.fileno(), 10, 300)) == [(10, 300)]


@pytest.mark.parametrize("seek", ["none", "unsupported"])
def test_aKernelThatCannotTell(opened, monkeypatch, seek):
    fd = opened(40 * BLOCK)
    if seek == "none":
        monkeypatch.delattr(os, "SEEK_DATA")
        ask = os.lseek
    else:

        def ask(*_):
            raise OSError(22, "Invalid argument")

    assert list(holes.dataRanges(fd, 0, 40 * BLOCK, ask)) == [(0, 40 * BLOCK)]
    assert not holes.isHole(fd, 0, BLOCK, ask)


def test_piecesStayWithinTheirBlocks(opened):
    fd = opened(4 * MIB, at0=b"a" * BLOCK, at1500000=b"b")
    pieces = holes.piecesOf(fd, 0, 4 * MIB, MIB)
    assert [start for start, _, _ in pieces] == [0, *(end for _, end, _ in pieces[:-1])]
    assert pieces[0] == (0, BLOCK, False)
    assert [piece for piece in pieces if piece[2]] == [
        (BLOCK, MIB, True),
        (MIB, 1_499_136, True),
        (1_499_136 + BLOCK, 2 * MIB, True),
        (2 * MIB, 3 * MIB, True),
        (3 * MIB, 4 * MIB, True),
    ]
    # not worth a frame
    assert holes.piecesOf(fd, 0, 8 * BLOCK, MIB) == [(0, 8 * BLOCK, False)]


def test_partsOfLargeBlocksAreBounded(opened):
    fd = opened(64 * MIB, at5=b"x")
    pieces = holes.piecesOf(fd, 0, 64 * MIB, 64 * MIB)
    assert max(end - start for start, end, hole in pieces if hole) == holes.MAX_ZERO_BYTES
    # the digest of a block of zeros is computed once, if it is not too large for that
    assert holes.holeRuns(fd, 1 << 40, 2 * holes.MAX_HOLE_BLOCK_BYTES) == []


@pytest.mark.parametrize("name", DIGESTS)
def test_digestsAreThoseOfZeros(opened, name):
    digest, size = DIGESTS[name], 40 * BLOCK + 9
    fd = opened(size, at8192=b"x")
    whole = os.pread(fd, size, 0)
    blocks = [digest.of(whole[at : at + BLOCK]) for at in range(0, size, BLOCK)]
    assert holes.zeroDigest(digest, BLOCK) == blocks[0]
    assert blockDigests(fd, digest, size, BLOCK, range(41)) == blocks
    assert readRoot(fd, size, digest, BLOCK) == rootOf(digest, size, BLOCK, blocks)
    plain = [digest.of(whole)]
    assert contentRoot(fd, size, digest) == rootOf(digest, size, MIB, plain)


# -- sending


def sent(world, number=0):
    return sum(len(data) for data in world.wires[number].log[0])


@pytest.mark.parametrize("request_", [SMALL_BLOCKS, LARGE_BLOCKS], ids=["blocks", "parts"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_holesAreToldAndNotSent(world, source, request_, jobs):
    size = 12 * MIB + 5
    whole = sparse(source / "f", size, at1048577=content(3 * BLOCK), at9000000=b"end")
    report = world.send(source / "f", request=request_, jobs=jobs)
    assert report.exitCode == 0
    assert world.store.files == {"f": whole}
    assert sum(map(len, (data for wire in world.wires for data in wire.log[0]))) < 500 * KIB
    assert sum(frames(wire, 0).count(Type.HOLE) for wire in world.wires) < 50
    (outcome,) = report.outcomes
    assert size - 500 * KIB < outcome.receipt.holeBytes < size
    assert report.holeBytes == outcome.receipt.holeBytes
    assert world.reception.stats().holeBytes == report.holeBytes
    (receipts,) = world.store._receipts.values()
    assert receipts[0].holeBytes == report.holeBytes
    assert report.sentBytes + report.holeBytes == size == report.doneBytes


#: Where each side has its capabilities.
SIDES = {"receiver": "receive.greeting", "sender": "send.session"}


@pytest.mark.parametrize("old", SIDES)
def test_anOlderPeerHearsOfNoHoles(world, source, monkeypatch, old):
    whole = sparse(source / "f", MIB, at70000=b"x")
    older = tuple(c for c in handshake.CAPABILITIES if c != "holes")
    monkeypatch.setattr(f"connpool.transfer.{SIDES[old]}.CAPABILITIES", older)
    assert world.send(source / "f").exitCode == 0
    assert world.store.files == {"f": whole}
    assert Type.HOLE not in frames(world.wires[0], 0)
    assert sent(world) > MIB
    assert b"\xa4data" not in b"".join(world.wires[0].log[0])


def test_aStoreWithoutHolesGetsZeros(tmp_path, source):
    class Plain:
        """
        A store that provides the least.
        """

    from zope.interface import directlyProvides

    from connpool.interfaces import IFileStore

    store = MemoryStore()
    plain = Plain()
    plain.__dict__.update(
        {name: getattr(store, name) for name in ("open", "put", "stat", "foresee", "trouble")}
    )
    directlyProvides(plain, IFileStore)
    world = World(tmp_path / "state", store=plain)
    whole = sparse(source / "f", MIB, at70000=b"x")
    assert world.send(source / "f").exitCode == 0
    assert store.files == {"f": whole}
    assert Type.HOLE not in frames(world.wires[0], 0)
    world.close()


def test_anInterruptedRunGoesOnWithWhatIsMissing(world, source):
    whole = sparse(source / "f", 8 * MIB, at4000000=content(300 * KIB), at8000000=content(9))
    world.plan = [{"cut": (0, 100_000, "rst")}]
    report = world.send(source / "f")
    assert report.exitCode == 0
    assert report.connections == 2
    assert world.store.files == {"f": whole}
    assert sent(world, 1) < 400 * KIB


@pytest.mark.parametrize("before", ["hole", "data"])
def test_aHoleThatWasDataAndTheReverse(world, source, before):
    """
    The partial of an older version of the file has it the other way round.
    """
    path = source / "f"
    data = {"at40960": content(64 * KIB), "at900000": content(64 * KIB, 2)}
    first, second = ({}, data) if before == "hole" else (data, {})
    for number, each in enumerate((first, second)):
        os.truncate(path, 0) if number else None
        with path.open("r+b" if number else "wb") as file:
            file.truncate(MIB)
            for at, some in each.items():
                os.pwrite(file.fileno(), some, int(at[2:]))
            os.pwrite(file.fileno(), content(40 * KIB, 3), MIB - 40 * KIB)
        if number == 0:
            world.plan = [{"cut": (0, 30_000 if before == "hole" else 80_000, "rst")}]
            results = world.start(world.sending(path))
            world.pump()
            assert not results
            world.settle(0)
    report = world.finish(results)
    assert report.exitCode == 0, report.outcomes
    assert world.store.files["f"] == path.read_bytes()


# -- hostile senders


def raw(world, *capabilities):
    made = connect(world)
    made.capabilities = capabilities or ("join", "holes")
    return made.greet()


def hole(peer, stream, offset, length):
    return peer.say(Type.HOLE, stream, Hole(offset, length))


def test_aRangeOfBlocks(strict):
    whole = bytes(8 * BLOCK) + b"x" * BLOCK + bytes(3)
    peer = raw(strict).offer(1, size=len(whole))
    hole(peer, 1, 0, 8 * BLOCK)
    peer.data(1, 8 * BLOCK, b"x" * BLOCK).digests(1, 8, b"x" * BLOCK)
    hole(peer, 1, 9 * BLOCK, 3)
    peer.digests(1, 9, bytes(3)).commit(1, whole)
    assert isinstance(peer.last(), ReceiptMessage)
    assert strict.store.files == {"f": whole}


def test_partsOfABlockComeInOrder(strict):
    whole = b"a" * 100 + bytes(200) + b"b" * (BLOCK - 300) + bytes(BLOCK)
    peer = raw(strict).offer(1, size=len(whole))
    peer.data(1, 0, whole[:100])
    hole(peer, 1, 200, 50)  # not where it stands: ignored
    hole(peer, 1, 100, 200)
    peer.data(1, 300, whole[300:BLOCK]).digests(1, 0, whole[:BLOCK])
    hole(peer, 1, BLOCK, BLOCK)
    hole(peer, 1, 0, BLOCK)  # verified, and stays as it is
    peer.commit(1, whole)
    assert isinstance(peer.last(), ReceiptMessage)
    assert strict.store.files == {"f": whole}


def test_aWrongHoleIsAskedForAgain(strict):
    whole = b"x" * BLOCK + bytes(BLOCK)
    peer = raw(strict).offer(1, size=len(whole))
    hole(peer, 1, 0, BLOCK - 1)
    peer.data(1, BLOCK - 1, b"x").digests(1, 0, whole[:BLOCK])
    assert peer.kinds()[-1] == Type.REPAIR
    peer.data(1, 0, whole[:BLOCK])
    hole(peer, 1, BLOCK, BLOCK)
    peer.digests(1, 0, whole[:BLOCK]).commit(1, whole)
    assert isinstance(peer.last(), ReceiptMessage)


def test_aBlockThatIsNoHoleFailsAsAWhole(strict):
    peer = raw(strict).offer(1, size=2 * BLOCK)
    hole(peer, 1, 0, 2 * BLOCK)
    peer.commit(1, b"x" * 2 * BLOCK)
    assert peer.last(Type.REJECT).code == "digest-mismatch"
    assert not strict.store.files


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 10 * BLOCK),  # past the end
        (8 * BLOCK, BLOCK),
        (1 << 62, 1 << 62),
        (1, BLOCK),  # not whole blocks
        (0, BLOCK + 1),
        (BLOCK - 1, 2),  # over the end of a block
        (0, 2**63 - 1),
    ],
)
def test_rangesThatAreNone(strict, offset, length):
    peer = raw(strict).offer(1, size=8 * BLOCK)
    hole(peer, 1, offset, length)
    assert peer.last(Type.ERROR).code == "protocol"
    strict.settle(15)
    assert peer.lost


def test_moreWorkThanAFrameMayAskFor(strict):
    most = holes.MAX_HOLE_BLOCKS
    peer = raw(strict).offer(1, size=2 * most * BLOCK)
    hole(peer, 1, 0, (most + 1) * BLOCK)
    assert peer.last(Type.ERROR).code == "protocol"
    huge = 1 << 40
    for offset, length in [(0, huge), (0, holes.MAX_ZERO_BYTES + 1)]:
        peer = raw(strict).offer(1, size=2 * huge, blockSize=huge)
        hole(peer, 1, offset, length)
        assert peer.last(Type.ERROR).code == "protocol"


def test_withoutTheCapability(strict):
    peer = raw(strict, "join").offer(1)
    hole(peer, 1, 0, BLOCK)
    assert "HOLE is not expected" in peer.last(Type.ERROR).detail


def test_beforeTheirTimeAndAfter(strict):
    peer = hole(raw(strict), 1, 0, BLOCK)
    assert "never offered" in peer.last(Type.ERROR).detail
    unknown = raw(strict).offer(1, size=None)
    hole(unknown, 1, 0, BLOCK)
    assert unknown.last(Type.ERROR).code == "protocol"
    late = raw(strict).offer(1, size=BLOCK)
    hole(late, 1, 0, BLOCK).commit(1, bytes(BLOCK))
    hole(late, 1, 0, BLOCK).put(2, b"g", b"x")
    assert {*late.kinds()} & {Type.RECEIPT, Type.ACK} == {Type.RECEIPT, Type.ACK}


def test_aHoleCountsForQuotaButNotForTheRate(tmp_path):
    policy = Policy(minimumRate=0, maxBytes=20 * BLOCK, maxRate=1000)
    world = World(tmp_path / "state", policy)
    peer = raw(world).offer(1, size=16 * BLOCK)
    hole(peer, 1, 0, 16 * BLOCK).commit(1, bytes(16 * BLOCK))
    # it would have taken a minute
    assert isinstance(peer.last(), ReceiptMessage)
    peer.offer(2, size=8 * BLOCK)
    assert peer.last(Type.REJECT).code == "quota"
    world.settle()
    world.close()


def test_theBytesOfDataAreOptional():
    offer = OfferMessage(bytes(16), b"f", bytes(32), 9, 4096)
    assert dataBytesIn(offer) is None
    short = OfferMessage(
        bytes(16), b"f", bytes(32), 9, 4096, extensions=(Extension("data", False, b"\1"),)
    )
    assert dataBytesIn(short) is None
