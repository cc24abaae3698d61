"""
Frames: cut anywhere, bounded before anything is kept, one kind of error.
"""

import contextlib
import json
import os
import random
import struct
import tracemalloc
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connpool.errors import ProtocolError
from connpool.transfer.wire.frames import (
    BOUNDS,
    HEADER,
    HEADER_BYTES,
    MAX_DATA_BYTES,
    Frame,
    FrameReader,
    Piece,
    Type,
)
from connpool.transfer.wire.messages import MESSAGES, Data, Entry, Ping, Put, Puts, decode, encode

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "frames.json").read_text())


def flat(found):
    """
    Events with the pieces of one run joined, so that cuts do not show.
    """
    out = []
    for event in found:
        if isinstance(event, Piece):
            if isinstance(out[-1], bytes):
                out[-1] += bytes(event.data)
            else:
                out.append(bytes(event.data))
        else:
            out.append(event)
    return out


def read(*chunks):
    reader = FrameReader()
    found = [event for chunk in chunks for event in reader.feed(chunk)]
    return flat(found), reader


def plain(value):
    """
    A message as the vectors spell it: bytes in hexadecimal.
    """
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return [plain(item) for item in msgspec.structs.astuple(value)]
    return value


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda v: v["name"])
def test_vector(vector):
    wire = bytes.fromhex(vector["frame"])
    (received, *run), reader = read(wire)
    assert not reader.inside
    assert (received.type.name, received.stream) == (vector["type"], vector["stream"])
    assert bytes.fromhex(vector["data"]) == (run[0] if run else received.data + received.files)
    message = decode(received)
    assert plain(message) == vector["fields"]
    again = encode(received.type, received.stream, message, received.length)
    assert again + bytes.fromhex(vector["data"]) == wire


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda v: v["name"])
def test_invalidVector(vector):
    with pytest.raises(ProtocolError) as e:
        for event in FrameReader().feed(bytes.fromhex(vector["frame"])):
            decode(event)
    assert "\n" not in str(e.value)


def test_aFewFilesDoNotKeepAllThatCame():
    """
    What is not copied is kept whole for as long as any of its files waits.
    """
    entries = (Entry(bytes(16), b"a", bytes(32), bytes(32), 1000),)
    wire = encode(Type.PUTS, 1, Puts("", "none", entries), 1000) + b"x" * 1000
    (few, *_), _ = read(wire + encode(Type.PING, 0, Ping(1)) * 10_000)
    assert few.files == b"x" * 1000
    assert len(few.files.obj) == 1000
    for cut in (20, len(wire)):
        (alone,), _ = read(wire[:cut], wire[cut:])
        assert alone.files == b"x" * 1000
        assert len(alone.files.obj) == len(wire)


def test_everyTypeHasAVector():
    assert {vector["type"] for vector in VECTORS["valid"]} == {kind.name for kind in Type}
    assert set(MESSAGES) == set(BOUNDS) == set(Type)


def test_everyFrameSplitAtEveryByte():
    wire = b"".join(bytes.fromhex(vector["frame"]) for vector in VECTORS["valid"])
    whole, _ = read(wire)
    for cut in range(len(wire) + 1):
        assert read(wire[:cut], wire[cut:])[0] == whole
    assert read(*(wire[at : at + 1] for at in range(len(wire))))[0] == whole


@given(st.lists(st.integers(1, 40), min_size=1))
def test_anyCuts(sizes):
    wire = b"".join(bytes.fromhex(vector["frame"]) for vector in VECTORS["valid"])
    whole, _ = read(wire)
    chunks, at = [], 0
    while at < len(wire):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(wire[at : at + size])
        at += size
    assert read(*chunks)[0] == whole


@pytest.mark.parametrize("kind", Type)
def test_boundsHoldBeforeAllocation(kind):
    bounds = BOUNDS[kind]
    stream = 0 if bounds.session else 1
    # at the bound the reader waits for the rest; it has not made room for it
    tracemalloc.start()
    assert read(HEADER.pack(kind, 0, bounds.control, stream, bounds.data) + bytes(4))[0] == []
    assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    tracemalloc.stop()
    wrong = [(0, 0, stream, bounds.data + 1), (0, 0, stream, 2**32 - 1), (0, 0, 1 - stream, 0)]
    wrong += [(1 << bit, 0, stream, 0) for bit in range(8)]
    if bounds.control < 65_535:
        wrong.append((0, bounds.control + 1, stream, 0))
    for flags, control, number, length in wrong:
        with pytest.raises(ProtocolError):
            read(HEADER.pack(kind, flags, control, number, length) + bytes(4))


def test_unknownType():
    for number in set(range(256)) - set(Type):
        with pytest.raises(ProtocolError):
            read(HEADER.pack(number, 0, 0, 0, 0) + bytes(4))


def test_runIsPassedOnInPiecesAndMayBeSkipped():
    start = encode(Type.DATA, 1, Data(0), 10)
    reader = FrameReader()
    events = list(reader.feed(start + b"abc"))
    assert bytes(events[1].data) == b"abc"
    assert reader.left == 7
    assert reader.inside
    reader.skip(5)
    rest = list(reader.feed(b"xy" + encode(Type.PING, 0, Ping(1))))
    assert bytes(rest[0].data) == b"xy"
    assert rest[1].type is Type.PING
    assert not reader.inside


def test_feedingIsLinear():
    """
    A byte at a time costs no more than the frame once more.
    """
    data = bytes(200_000)
    put = Put(bytes(16), b"n", bytes(32), bytes(32))
    wire = encode(Type.PUT, 1, put, len(data)) + data
    reader = FrameReader()
    events = [e for at in range(0, len(wire), 7) for e in reader.feed(wire[at : at + 7])]
    assert [e.data for e in events] == [data]


# -- hostile control parts ----------------------------------------------------

NUMBERS = [-1, 2**63, 2**64 - 1, 1.0, float("nan"), "1", True, None, b"", []]


def test_hostileNumbers():
    for value in NUMBERS:
        with pytest.raises(ProtocolError):
            decode(Frame(Type.DATA, 1, msgspec.msgpack.encode([value])))


MALFORMED = [
    b"",
    b"\xc1",
    b"\x91" * 60_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\x91\xc6\xff\xff\xff\xff",
    b"\x81\x01\x02",
    b"\xd4\x01\x02",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\x91\x01\x00",
    b"\x91\xa1\xff",
]


@pytest.mark.parametrize("kind", Type)
def test_malformedControl(kind):
    tracemalloc.start()
    try:
        for control in MALFORMED:
            with pytest.raises(ProtocolError):
                decode(Frame(kind, 0, control[: BOUNDS[kind].control]))
        assert tracemalloc.get_traced_memory()[1] < 512 * 1024
    finally:
        tracemalloc.stop()


def test_criticalExtension():
    known = msgspec.msgpack.encode([1, [["new", False, b""]]])
    assert decode(Frame(Type.PING, 0, known)).token == 1
    critical = msgspec.msgpack.encode([1, [["new", True, b""]]])
    with pytest.raises(ProtocolError, match="'new'"):
        decode(Frame(Type.PING, 0, critical))


def test_secretsAreNotShown():
    from connpool.transfer.wire.messages import Auth

    assert "hunter2" not in repr(Auth(bytes(32), "password", "me", b"hunter2"))


# -- fuzzing --------------------------------------------------------------------

#: "FUZZ=1000000 pytest -k fuzz" is the long run.
ROUNDS = int(os.environ.get("FUZZ", "4000"))


def swallow(wire):
    """
    What a session does with bytes, in two chunks; only ProtocolError comes out.
    """
    reader = FrameReader()
    middle = len(wire) // 2
    with contextlib.suppress(ProtocolError):
        for chunk in (wire[:middle], wire[middle:]):
            for event in reader.feed(chunk):
                if isinstance(event, Frame):
                    decode(event)
                else:
                    assert len(event.data) <= MAX_DATA_BYTES
    assert len(reader._held) <= len(wire)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_fuzzAnything(wire):
    swallow(wire)


def test_fuzzMutatedFrames():
    """
    Valid frames with bytes flipped, cut, doubled and spliced.
    """
    chance = random.Random(20)
    seeds = [bytes.fromhex(vector["frame"]) for vector in VECTORS["valid"] + VECTORS["invalid"]]
    for _ in range(ROUNDS):
        wire = bytearray(chance.choice(seeds) + chance.choice(seeds))
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(wire))
            what = chance.randrange(5)
            if what == 0:
                wire[at] ^= 1 << chance.randrange(8)
            elif what == 1:
                wire[at] = chance.choice(b"\x00\x7f\x80\x90\xc0\xc1\xc4\xd9\xdc\xdd\xff")
            elif what == 2 and len(wire) > HEADER_BYTES:
                del wire[at:]
                break
            elif what == 3:
                wire[at:at] = wire[at : at + chance.randrange(1, 40)]
            else:
                wire[at : at + 4] = struct.pack(">I", chance.getrandbits(32))
        swallow(repaired(wire) if chance.random() < 0.7 else bytes(wire))


def repaired(wire):
    """
    With a CRC that fits, so that what lies behind it is reached.
    """
    end = HEADER_BYTES + int.from_bytes(wire[2:4], "big")
    checked = crc32(wire[HEADER_BYTES:end], crc32(wire[:12]))
    return bytes(wire[:12] + struct.pack(">I", checked) + wire[HEADER_BYTES:])


def test_everyDamagedBitIsNoticed():
    """
    Of header and control part: a damaged name is as bad as a damaged byte.
    """
    for vector in VECTORS["valid"]:
        wire = bytes.fromhex(vector["frame"])
        (received, *_), _ = read(wire)
        for bit in range(8 * (HEADER_BYTES + len(received.control))):
            damaged = bytearray(wire)
            damaged[bit // 8] ^= 1 << bit % 8
            # or the reader waits for a length that never comes
            try:
                assert read(bytes(damaged))[0] == []
            except ProtocolError:
                continue


def test_fuzzControlParts():
    """
    Well-formed MessagePack of the wrong shape, for every type.
    """
    chance = random.Random(21)

    def anything(depth=0):
        choice = chance.randrange(9 if depth < 2 else 7)
        return [
            None,
            chance.random() < 0.5,
            chance.choice([0, 1, -1, 2**31, 2**63, 2**64 - 1, chance.getrandbits(16)]),
            chance.choice([0.0, float("inf"), float("nan")]),
            "x" * chance.choice([0, 1, 64, 2000]),
            bytes(chance.choice([0, 16, 32, 64, 5000])),
            chance.choice(["rename", "none", "full", "new", "stored", "receive"]),
            [anything(depth + 1) for _ in range(chance.randrange(5))] if depth < 2 else None,
            {str(i): anything(depth + 1) for i in range(chance.randrange(3))} if depth < 2 else 0,
        ][choice]

    kinds = list(Type)
    for _ in range(ROUNDS):
        control = msgspec.msgpack.encode([anything() for _ in range(chance.randrange(12))])
        with contextlib.suppress(ProtocolError):
            decode(Frame(chance.choice(kinds), 0, control))
