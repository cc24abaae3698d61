r"""
PROXY protocol headers, v1 and v2: bytes to L{Header} and back.

After C{doc/proxy-protocol.txt} of HAProxy (revision of 2026-04-27), which the
section numbers below mean.  The specification wants a receiver to abort at
"any sequence which does not exactly match", so the grammar is strict: decimal
ports without leading zeros or signs, addresses of the family that was
announced, no zones, no second space, a line that ends in CRLF and nothing
else.  Addresses become the text that a socket's C{getpeername()} would give
(C{0:0:0:0:0:0:0:1} is C{::1}), so that they compare equal.

Bounds come before buffering: a v1 line has 107 bytes at most (2.1), a v2
header L{MAX_HEADER}, and each byte is looked at a fixed number of times
however it arrives.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Literal

import attrs
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from connpool.errors import HeaderError
from connpool.proxyprotocol import tlvs
from connpool.proxyprotocol.tlvs import TLVs, crc32c

__all__ = [
    "MAX_HEADER",
    "Header",
    "HeaderParser",
    "NotAHeader",
    "encodeV1",
    "encodeV2",
    "parseDatagram",
]

#: The longest v2 header taken, in bytes.  The format allows 65,551; no sender
#: known needs more than a few hundred, unless it passes certificates on.
MAX_HEADER = 4096

#: The longest v1 line, CRLF included (2.1).
MAX_LINE = 107

V1_START = b"PROXY "
V2_START = b"\r\n\r\n\0\r\nQUIT\n"

Address = IPv4Address | IPv6Address | UNIXAddress

_INET = struct.Struct("!4s4sHH")
_INET6 = struct.Struct("!16s16sHH")
_UNIX = struct.Struct("!108s108s")

#: Family and protocol byte to layout and socket type (2.2).
_LAYOUTS: dict[int, tuple[struct.Struct | None, Literal["TCP", "UDP"]]] = {
    0x00: (None, "TCP"),
    0x11: (_INET, "TCP"),
    0x12: (_INET, "UDP"),
    0x21: (_INET6, "TCP"),
    0x22: (_INET6, "UDP"),
    0x31: (_UNIX, "TCP"),
    0x32: (_UNIX, "UDP"),
}


class NotAHeader(HeaderError):
    """
    The bytes do not begin a header at all: the peer speaks something else.
    """

    code = "no-header"


@attrs.frozen
class Header:
    """
    The statement of a proxy about a connection.

    @ivar version: 1 or 2.
    @ivar local: the proxy speaks for itself (LOCAL): a health check.
    @ivar source: the client; L{None} if the proxy does not know one (LOCAL,
        UNKNOWN, UNSPEC).
    @ivar destination: where the client connected to; L{None} with C{source}.
    @ivar tlvs: the other fields of a v2 header.
    """

    version: int
    local: bool = False
    source: Address | None = None
    destination: Address | None = None
    tlvs: TLVs = attrs.field(factory=TLVs)


class HeaderParser:
    """
    Reads the header at the start of one byte stream.

    @param maximum: the longest v2 header taken, in bytes.
    """

    def __init__(self, maximum: int = MAX_HEADER) -> None:
        self._maximum = maximum
        self._buffer = bytearray()
        self._failure: HeaderError | None = None

    def feed(self, data: bytes) -> tuple[Header, bytes] | None:
        """
        @return: the header and what followed it; L{None} while it is not
            complete.  Not to be called again once it returned a header.
        @raise NotAHeader: when what came cannot become a header.
        @raise HeaderError: for a malformed one.  Every later call raises the
            same: a peer cannot have a second try.
        """
        if self._failure is not None:
            raise self._failure
        self._buffer += data
        try:
            found = self._parse()
        except HeaderError as e:
            self._failure = e
            raise
        if found is None:
            return None
        header, length = found
        return header, bytes(memoryview(self._buffer)[length:])

    def unread(self) -> bytes:
        """
        Everything that was fed, for a peer that may do without a header.
        """
        return bytes(self._buffer)

    def _parse(self) -> tuple[Header, int] | None:
        buffer = self._buffer
        if not isStart(buffer):
            raise NotAHeader("not a PROXY header")
        if not buffer:
            return None
        if buffer[0] == V1_START[0]:
            return _parseLine(bytes(buffer[:MAX_LINE]))
        if len(buffer) < 16:
            return None
        length = 16 + int.from_bytes(buffer[14:16], "big")
        if length > self._maximum:
            raise HeaderError(f"PROXY v2: header of {length} bytes; at most {self._maximum}")
        # before the body arrives, so that a bad header does not wait for it
        _layout(buffer[12], buffer[13], length - 16)
        if len(buffer) < length:
            return None
        return _parseBlock(bytes(buffer[:length])), length


def isStart(data: bytes | bytearray) -> bool:
    """
    Say whether C{data} can be the first bytes of a header.
    """
    return any(start.startswith(data[: len(start)]) for start in (V1_START, V2_START))


def hasStart(data: bytes | bytearray) -> bool:
    """
    Say whether C{data} begins with the whole fixed start of a header.
    """
    return data.startswith((V1_START, V2_START))


# -- version 1 ---------------------------------------------------------------


def _parseLine(data: bytes) -> tuple[Header, int] | None:
    """
    @param data: at most L{MAX_LINE} bytes that begin like C{PROXY }.
    @return: the header and its length; L{None} if the line has no end yet.
    """
    line, end, after = data.partition(b"\r")
    if b"\n" in line or (after and not after.startswith(b"\n")):
        raise HeaderError("PROXY v1: a lone CR or LF; the line must end in CRLF")
    if not after:
        if len(data) == MAX_LINE:
            raise HeaderError(f"PROXY v1: no CRLF within {MAX_LINE} bytes")
        return None
    length = len(line) + len(end) + 1
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":
        return Header(1), length
    if len(words) != 6 or words[1] not in {b"TCP4", b"TCP6"}:
        raise HeaderError("PROXY v1: not TCP4, TCP6 or UNKNOWN with two addresses and two ports")
    read = _v4 if words[1] == b"TCP4" else _v6
    source = read(words[2], _port(words[4]))
    return Header(1, source=source, destination=read(words[3], _port(words[5]))), length


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (word[0] == 0x30 and word != b"0"):
        raise HeaderError("PROXY v1: a port is a decimal number without leading zeros")
    port = int(word)
    if port > 65535:
        raise HeaderError("PROXY v1: port above 65535")
    return port


def _v4(word: bytes, port: int) -> IPv4Address:
    try:
        return IPv4Address("TCP", str(ipaddress.IPv4Address(word.decode("ascii"))), port)
    except ValueError:
        raise HeaderError("PROXY v1: not an IPv4 address") from None


def _v6(word: bytes, port: int) -> IPv6Address:
    try:
        address = ipaddress.IPv6Address(word.decode("ascii"))
    except ValueError:
        raise HeaderError("PROXY v1: not an IPv6 address") from None
    if address.scope_id is not None:
        raise HeaderError("PROXY v1: an IPv6 address has no zone here")
    return IPv6Address("TCP", socket.inet_ntop(socket.AF_INET6, address.packed), port)


def encodeV1(source: Address | None = None, destination: Address | None = None) -> bytes:
    """
    The v1 line for a connection from C{source} to C{destination}: UNKNOWN
    unless both are IPv4 or both IPv6.
    """
    family = {
        (IPv4Address, IPv4Address): "TCP4",
        (IPv6Address, IPv6Address): "TCP6",
    }.get((type(source), type(destination)))
    if family is None:
        return b"PROXY UNKNOWN\r\n"
    assert isinstance(source, IPv4Address | IPv6Address)
    assert isinstance(destination, IPv4Address | IPv6Address)
    hosts = f"{_bare(source)} {_bare(destination)}"
    return f"PROXY {family} {hosts} {source.port} {destination.port}\r\n".encode("ascii")


def _bare(address: IPv4Address | IPv6Address) -> str:
    """
    The host without its zone, which means nothing on another machine.
    """
    return str(address.host).partition("%")[0]


# -- version 2 ---------------------------------------------------------------


def _layout(
    command: int, family: int, length: int
) -> tuple[struct.Struct | None, Literal["TCP", "UDP"]] | None:
    """
    @return: how the addresses lie in the block; L{None} for LOCAL, whose
        block is skipped unread, family included (2.2).
    """
    if command == 0x20:
        return None
    if command != 0x21:
        raise HeaderError(f"PROXY v2: unknown version and command 0x{command:02x}")
    try:
        layout = _LAYOUTS[family]
    except KeyError:
        raise HeaderError(f"PROXY v2: unknown family and protocol 0x{family:02x}") from None
    if layout[0] is not None and length < layout[0].size:
        raise HeaderError(f"PROXY v2: {length} bytes are too few for the addresses")
    return layout


def _parseBlock(data: bytes) -> Header:
    """
    @param data: exactly one v2 header.
    """
    layout = _layout(data[12], data[13], len(data) - 16)
    if layout is None:
        return Header(2, local=True)
    addresses, kind = layout
    size = addresses.size if addresses is not None else 0
    block = data[16 + size :]
    _verify(data, 16 + size, block)
    fields = TLVs.parse(block)
    if addresses is None:
        return Header(2, tlvs=fields)
    values = addresses.unpack_from(data, 16)
    source: Address
    destination: Address
    if addresses is _UNIX:
        source, destination = (UNIXAddress(_path(value)) for value in values)
    else:
        family = socket.AF_INET if addresses is _INET else socket.AF_INET6
        make = IPv4Address if addresses is _INET else IPv6Address
        source = make(kind, socket.inet_ntop(family, values[0]), values[2])
        destination = make(kind, socket.inet_ntop(family, values[1]), values[3])
    return Header(2, source=source, destination=destination, tlvs=fields)


def _path(value: bytes) -> bytes | None:
    """
    A C{sun_path}: up to its first NUL, or an abstract name, or nothing.
    """
    if value.startswith(b"\0"):
        return value.rstrip(b"\0") or None
    return value.partition(b"\0")[0]


def _verify(data: bytes, start: int, block: bytes) -> None:
    """
    @raise HeaderError: when there is a checksum and it is wrong (2.2.3).
    """
    found = [(offset, value) for kind, offset, value in tlvs.walk(block) if kind == tlvs.CRC32C]
    if not found:
        return
    (offset, value) = found[0]
    if len(found) > 1 or len(value) != 4:
        raise HeaderError("PROXY v2: not exactly one checksum of 4 bytes")
    zeroed = bytearray(data)
    zeroed[start + offset : start + offset + 4] = bytes(4)
    if crc32c(zeroed) != int.from_bytes(value, "big"):
        raise HeaderError("PROXY v2: wrong checksum")


def encodeV2(
    source: Address | None = None,
    destination: Address | None = None,
    fields: tuple[tuple[int, bytes], ...] = (),
    checksum: bool = False,
) -> bytes:
    """
    The v2 header for a connection from C{source} to C{destination}.

    Without addresses, or with two of different families, it is LOCAL, which
    every receiver must accept.

    @param fields: type and value of each TLV.
    @param checksum: add a CRC32C.
    @raise HeaderError: if a field or the whole is too long for the format.
    """
    family = 0x00
    addresses = b""
    if isinstance(source, UNIXAddress) and isinstance(destination, UNIXAddress):
        family = 0x31
        addresses = _UNIX.pack(source.name or b"", destination.name or b"")
    elif isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
        family = 0x11 if source.type == "TCP" else 0x12
        addresses = _packed(_INET, socket.AF_INET, source, destination)
    elif isinstance(source, IPv6Address) and isinstance(destination, IPv6Address):
        family = 0x21 if source.type == "TCP" else 0x22
        addresses = _packed(_INET6, socket.AF_INET6, source, destination)
    if checksum:
        fields = (*fields, (tlvs.CRC32C, bytes(4)))
    if any(len(value) > 0xFFFF for _, value in fields):
        raise HeaderError("PROXY v2: a field has at most 65535 bytes")
    block = addresses + b"".join(
        struct.pack("!BH", kind, len(value)) + value for kind, value in fields
    )
    if len(block) > 0xFFFF:
        raise HeaderError("PROXY v2: addresses and fields have at most 65535 bytes")
    command = 0x21 if family else 0x20
    header = bytearray(V2_START + struct.pack("!BBH", command, family, len(block)) + block)
    if checksum:
        header[-4:] = crc32c(header).to_bytes(4, "big")
    return bytes(header)


def _packed(
    layout: struct.Struct,
    family: socket.AddressFamily,
    source: IPv4Address | IPv6Address,
    destination: IPv4Address | IPv6Address,
) -> bytes:
    return layout.pack(
        socket.inet_pton(family, _bare(source)),
        socket.inet_pton(family, _bare(destination)),
        source.port,
        destination.port,
    )


# -- datagrams ---------------------------------------------------------------


def parseDatagram(datagram: bytes, maximum: int = MAX_HEADER) -> tuple[Header, bytes]:
    """
    Split a datagram that begins with a v2 header.

    Header and payload are one datagram and each datagram stands for itself
    (revision of 2026-04-27); v1 has no datagrams.

    @return: the header and the payload, which may be empty.
    @raise NotAHeader: for one without a header.
    @raise HeaderError: for a malformed or incomplete one.
    """
    if not datagram.startswith(V2_START):
        raise NotAHeader("a datagram without a PROXY v2 header")
    found = HeaderParser(maximum).feed(datagram)
    if found is None:
        raise HeaderError("PROXY v2: header cut off at the end of the datagram")
    return found
