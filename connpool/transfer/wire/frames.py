"""
Frames of C{cpt/1}: a header, a control part, a data part of raw bytes.

Theory of operation
===================
L{FrameReader} is fed what the connection brings, cut anywhere, and gives back
L{Frame}s and the pieces of data parts.  A header says both lengths, and each
type has bounds for both (L{BOUNDS}), which are checked before a byte is kept:
what a peer declares never decides what we allocate.

Data parts are of two kinds.  Those that are needed whole (block digests, small
files) come with their frame, if they are wanted in the state that the session is in
(L{FrameReader.expected}, L{FrameReader.wants}): nothing is kept ahead of that.
That of C{DATA} is passed on piece by piece as it arrives; its reader may take the
rest of it from the socket itself and report with L{FrameReader.skip} (section
"Moving bytes" of the shell).

A damaged name or offset would do as much harm as a damaged byte of a file, and
has no digest: header and control part carry a CRC.  It finds accidents; against
people there is TLS.

A byte of C{DATA} is not copied here.

Other data parts are lists of blocks: those behind C{ACCEPT} and C{REPAIR}, and C{REVOKE}, by
which a sender takes blocks back.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from zlib import crc32

import attrs

from connpool.errors import FrameDamaged, ProtocolError
from connpool.transfer.digests import MAX_BLOCKS

__all__ = [
    "BOUNDS",
    "HEADER",
    "HEADER_BYTES",
    "MAX_BATCH_BYTES",
    "MAX_CONTENT_BYTES",
    "MAX_CONTROL_BYTES",
    "MAX_DATA_BYTES",
    "MAX_SMALL_BYTES",
    "MAX_STREAM",
    "NUMBER_BYTES",
    "PREAMBLE",
    "RANGE_BYTES",
    "Frame",
    "FrameReader",
    "Piece",
    "Type",
    "frame",
    "heldRanges",
    "packBlocks",
    "readHeld",
    "unpackBlocks",
]

#: The first bytes of both sides: NUL, which no file name begins with; CR LF
#: and SUB, which a connection that mangles text does not let through.
PREAMBLE = b"\x00CPT1\r\n\x1a"

#: type u8, flags u8 (zero), control length u16, stream u32, data length u32;
#: then the CRC-32 of these twelve bytes and the control part.
HEADER = struct.Struct(">BBHII")
_CRC = struct.Struct(">I")
HEADER_BYTES = HEADER.size + _CRC.size

#: The largest number of a stream.
MAX_STREAM = (1 << 32) - 1
#: Bytes of one C{DATA}: a cancelled file holds a connection this long.
MAX_DATA_BYTES = 4 << 20
#: Bytes of a file that C{PUT} carries, however high the receiver's limit.
MAX_SMALL_BYTES = 1 << 20
#: Bytes of the files that one C{PUTS} carries.
MAX_BATCH_BYTES = 4 << 20

#: Bytes of a file that one C{CONTENT} carries.
MAX_CONTENT_BYTES = 1 << 20

#: Bytes of a range of blocks in C{ACCEPT}, and of a block number in C{REPAIR} and C{REVOKE}.
RANGE_BYTES, NUMBER_BYTES = 8, 4
_MAX_LISTS_BYTES = 4 << 20
_MAX_NUMBERS_BYTES = NUMBER_BYTES * MAX_BLOCKS
#: Bytes of a control part: its length has 16 bits.
MAX_CONTROL_BYTES = (1 << 16) - 1


class Type(enum.IntEnum):
    """
    The types of frames; docs/protocol.rst has a section for each.
    """

    HELLO = 0x01
    AUTH = 0x02
    READY = 0x03
    JOIN = 0x04
    JOINED = 0x05
    PING = 0x06
    PONG = 0x07
    GOAWAY = 0x08
    ERROR = 0x09
    PUT = 0x10
    OFFER = 0x11
    ACCEPT = 0x12
    REJECT = 0x13
    DATA = 0x14
    DIGESTS = 0x15
    REPAIR = 0x16
    REVOKE = 0x17
    COMMIT = 0x18
    PROGRESS = 0x19
    ACK = 0x1A
    RECEIPT = 0x1B
    CANCEL = 0x1C
    DIRECTORY = 0x1D
    PUTS = 0x1E
    HOLE = 0x1F
    LIST = 0x28
    LISTING = 0x29
    READ = 0x2A
    CONTENT = 0x2B
    ASK = 0x20
    HAVE = 0x21
    PACKED = 0x22


@attrs.frozen
class Bounds:
    """
    The limits of one type of frame.

    @ivar control: bytes of the control part, at most.
    @ivar data: bytes of the data part, at most.
    @ivar session: whether it speaks of the session (stream 0) and not of a file.
    """

    control: int
    data: int = 0
    session: bool = False


#: Checked before anything is kept.
BOUNDS: dict[int, Bounds] = {
    Type.HELLO: Bounds(4096, session=True),
    Type.AUTH: Bounds(8192, session=True),
    Type.READY: Bounds(4096, session=True),
    Type.JOIN: Bounds(1024, session=True),
    Type.JOINED: Bounds(1024, session=True),
    Type.PING: Bounds(64, session=True),
    Type.PONG: Bounds(64, session=True),
    Type.GOAWAY: Bounds(4096, session=True),
    Type.ERROR: Bounds(8192, session=True),
    Type.PUT: Bounds(MAX_CONTROL_BYTES, MAX_SMALL_BYTES),
    Type.OFFER: Bounds(MAX_CONTROL_BYTES),
    Type.ACCEPT: Bounds(MAX_CONTROL_BYTES, _MAX_LISTS_BYTES),
    Type.REJECT: Bounds(8192),
    Type.DATA: Bounds(64, MAX_DATA_BYTES),
    Type.DIGESTS: Bounds(64, _MAX_LISTS_BYTES),
    Type.REPAIR: Bounds(64, _MAX_NUMBERS_BYTES),
    Type.REVOKE: Bounds(64, _MAX_NUMBERS_BYTES),
    Type.COMMIT: Bounds(1024),
    Type.PROGRESS: Bounds(1024),
    Type.ACK: Bounds(MAX_CONTROL_BYTES, session=True),
    Type.RECEIPT: Bounds(MAX_CONTROL_BYTES),
    Type.CANCEL: Bounds(1024),
    Type.DIRECTORY: Bounds(MAX_CONTROL_BYTES),
    Type.PUTS: Bounds(MAX_CONTROL_BYTES, MAX_BATCH_BYTES),
    Type.HOLE: Bounds(64),
    Type.LIST: Bounds(MAX_CONTROL_BYTES),
    Type.LISTING: Bounds(MAX_CONTROL_BYTES),
    Type.READ: Bounds(MAX_CONTROL_BYTES),
    Type.CONTENT: Bounds(1024, MAX_CONTENT_BYTES),
    Type.ASK: Bounds(MAX_CONTROL_BYTES),
    Type.HAVE: Bounds(64, 512),
    Type.PACKED: Bounds(64, MAX_SMALL_BYTES),
}

#: Types whose run is passed on as it comes.
_IN_PIECES = frozenset({Type.DATA, Type.PACKED})
_NAMES = {kind.value: kind for kind in Type}


_NO_FILES = memoryview(b"")


@attrs.frozen
class Frame:
    """
    A frame that came.

    @ivar type: its type.
    @ivar stream: the file it speaks of; 0 for the session.
    @ivar control: MessagePack.
    @ivar data: the data part; empty if it comes in pieces, that of C{DATA} or one that is
        not wanted.
    @ivar length: bytes of the data part.
    @ivar files: in the place of C{data}, that of C{PUTS}.
    """

    type: Type
    stream: int
    control: bytes
    data: bytes = b""
    length: int = 0
    files: memoryview = _NO_FILES


@attrs.frozen
class Piece:
    """
    A piece of the data part of the last frame.

    @ivar data: a view, valid until the reader is fed again.
    """

    data: memoryview


def frame(kind: Type, stream: int, control: bytes, length: int = 0) -> bytes:
    """
    Header and control part; C{length} bytes of data follow.
    """
    head = HEADER.pack(kind, 0, len(control), stream, length)
    return head + _CRC.pack(crc32(control, crc32(head))) + control


def _all(*_: int) -> bool:
    return True


class FrameReader:
    """
    Cuts what arrives into frames.

    @ivar left: bytes of the data part that have not been passed on.
    @ivar expected: types that are taken now; of others nothing is kept.
    @ivar wants: decides from type, stream and length, when only the header is there,
        about a data part that would come with its frame.  One that is not wanted is passed on
        piece by piece, as that of C{DATA} is, and its frame has C{length} and no data.
    """

    def __init__(self) -> None:
        self.expected: AbstractSet[int] = BOUNDS.keys()
        self.wants: Callable[[Type, int, int], bool] = _all
        self._held = bytearray()
        self._need = HEADER_BYTES
        self._fixed: tuple[Type, int, int, int, int] | None = None
        self.left = 0

    @property
    def kept(self) -> int:
        """
        Bytes of an incomplete frame that are in memory.
        """
        return len(self._held)

    @property
    def inside(self) -> bool:
        """
        Tell whether an end of the connection now would cut a frame.
        """
        return bool(self._held) or self._fixed is not None or self.left > 0

    def skip(self, count: int) -> None:
        """
        C{count} bytes of the data part were read by somebody else.
        """
        assert count <= self.left
        self.left -= count

    def feed(self, data: bytes) -> Iterator[Frame | Piece]:
        """
        The frames and pieces that C{data} completes, as it goes.

        @raise ProtocolError: when a header breaks a bound, or L{FrameDamaged};
            nothing after it is read.
        """
        held, view, at = self._held, memoryview(data), 0
        while held:
            # the rest of one frame only, so that a long buffer is not copied twice
            take = self._need - len(held)
            held += view[at : at + take]
            at += take
            if len(held) < self._need:
                return
            if self._fixed is None:
                self._open(held, 0)
                continue
            whole = memoryview(held)
            held = self._held = bytearray()
            yield self._close(whole, HEADER_BYTES)[0]
        yield from self._cut(view[at:])

    def _cut(self, view: memoryview) -> Iterator[Frame | Piece]:
        at, end = 0, len(view)
        while at < end:
            if self.left:
                piece = view[at : at + self.left]
                self.left -= len(piece)
                at += len(piece)
                yield Piece(piece)
                continue
            if end - at >= HEADER_BYTES:
                self._open(view, at)
            if end - at < self._need:
                self._held += view[at:]
                return
            found, at = self._close(view, at + HEADER_BYTES)
            yield found

    def _open(self, view: memoryview | bytearray, at: int) -> None:
        number, flags, control, stream, length = HEADER.unpack_from(view, at)
        kind = _NAMES.get(number)
        if kind is None:
            raise ProtocolError(f"there is no frame type 0x{number:02x}")
        if kind not in self.expected:
            raise ProtocolError(f"{kind.name} is not expected now")
        bounds = BOUNDS[kind]
        if flags:
            raise ProtocolError(f"{kind.name} has flags 0x{flags:02x}; none are defined")
        if control > bounds.control:
            raise ProtocolError(
                f"the control part of {kind.name} has {control} bytes; at most {bounds.control}"
            )
        if length > bounds.data:
            raise ProtocolError(f"{kind.name} carries {length} bytes; at most {bounds.data}")
        if bounds.session != (stream == 0):
            raise ProtocolError(f"{kind.name} does not go with stream {stream}")
        whole = length
        if length and (kind in _IN_PIECES or not self.wants(kind, stream, length)):
            whole = 0
        self._fixed = (kind, control, stream, length, whole)
        self._need = HEADER_BYTES + control + whole

    def _close(self, view: memoryview, at: int) -> tuple[Frame, int]:
        """
        The frame whose control part begins at C{at}, and where it ends.
        """
        assert self._fixed is not None
        kind, control, stream, length, whole = self._fixed
        head = at - HEADER_BYTES
        checked = crc32(view[at : at + control], crc32(view[head : at - _CRC.size]))
        if _CRC.unpack_from(view, at - _CRC.size) != (checked,):
            raise FrameDamaged(f"{kind.name} arrived damaged")
        self._fixed = None
        self._need = HEADER_BYTES
        middle = at + control
        self.left = length - whole
        end = middle + whole
        data, said = view[middle:end], bytes(view[at:middle])
        if kind is Type.PUTS:  # each file is taken from there, without a copy
            if 2 * len(data) < len(view):
                data = memoryview(bytes(data))  # a small one must not keep all that came with it
            return Frame(kind, stream, said, b"", length, data), end
        return Frame(kind, stream, said, bytes(data), length), end


def heldRanges(digests: Mapping[int, bytes]) -> tuple[int, bytes]:
    """
    The data part of C{ACCEPT}.

    @return: the number of ranges, and ranges and digests as they go on the wire.
    """
    ranges: list[list[int]] = []
    for block in sorted(digests):
        if ranges and block == sum(ranges[-1]):
            ranges[-1][1] += 1
        else:
            ranges.append([block, 1])
    wire = [struct.pack(">II", *each) for each in ranges]
    wire += [digests[block] for block in sorted(digests)]
    return len(ranges), b"".join(wire)


def readHeld(ranges: int, wire: bytes, length: int) -> dict[int, bytes]:
    """
    Inverse of L{heldRanges}.

    @param length: bytes of a digest.
    @raise ProtocolError: if the lengths or the order are wrong.
    """
    at = ranges * RANGE_BYTES
    if at > len(wire):
        raise ProtocolError("the list of held blocks is cut off")
    held: dict[int, bytes] = {}
    least = 0
    for first, count in struct.iter_unpack(">II", wire[:at]):
        if first < least or not 0 < count <= MAX_BLOCKS - first:
            raise ProtocolError("the list of held blocks is out of order")
        if at + count * length > len(wire):
            raise ProtocolError("the digests of held blocks are cut off")
        least = first + count
        for block in range(first, least):
            held[block] = wire[at : at + length]
            at += length
    if at != len(wire):
        raise ProtocolError("bytes follow the digests of held blocks")
    return held


def packBlocks(blocks: Iterable[int]) -> bytes:
    """
    Block numbers as C{REPAIR} and C{REVOKE} carry them.
    """
    numbers = list(blocks)
    return struct.pack(f">{len(numbers)}I", *numbers)


def unpackBlocks(wire: bytes) -> list[int]:
    """
    Inverse of L{packBlocks}.

    @raise ProtocolError: if it is not a list of block numbers.
    """
    if len(wire) % NUMBER_BYTES or not wire or len(wire) > NUMBER_BYTES * MAX_BLOCKS:
        raise ProtocolError("that is not a list of blocks")
    blocks = [number for (number,) in struct.iter_unpack(">I", wire)]
    if max(blocks) >= MAX_BLOCKS:
        raise ProtocolError(f"there is no block {max(blocks)}")
    return blocks
