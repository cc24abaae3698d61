"""
The type-length-value fields of a PROXY protocol v2 header.

Everything is checked when the header is read, so that an accessor cannot fail
later, inside an application.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

from connpool.errors import HeaderError

__all__ = ["SSLInfo", "TLVs", "crc32c"]

# spec section 2.2; the cloud ones from their makers' documentation
ALPN = 0x01
AUTHORITY = 0x02
CRC32C = 0x03
UNIQUE_ID = 0x05
SSL = 0x20
NETNS = 0x30
GCP = 0xE0
AWS = 0xEA
AZURE = 0xEE

#: The longest unique id, in bytes (spec 2.2.5).
MAX_UNIQUE_ID = 128

_CRC_TABLE: list[int] = []
for _index in range(256):
    _value = _index
    for _ in range(8):
        _value = _value >> 1 ^ 0x82F63B78 if _value & 1 else _value >> 1
    _CRC_TABLE.append(_value)


def crc32c(data: bytes | bytearray) -> int:
    """
    The Castagnoli checksum (RFC 4960 appendix B).
    """
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC_TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def walk(block: bytes, what: str = "TLV") -> Iterator[tuple[int, int, bytes]]:
    """
    @return: type, offset of the value in C{block}, and value of each field.
    @raise HeaderError: for a field that runs over the end.
    """
    offset = 0
    while offset < len(block):
        start = offset + 3
        if start > len(block):
            raise HeaderError(f"PROXY v2: {what} cut off after {len(block) - offset} bytes")
        kind, length = struct.unpack_from("!BH", block, offset)
        offset = start + length
        if offset > len(block):
            raise HeaderError(f"PROXY v2: {what} 0x{kind:02x} of {length} bytes runs over the end")
        yield kind, start, block[start:offset]


def text(value: bytes, what: str) -> str:
    """
    Decode UTF-8.  All of its characters are taken, since a client chooses its name
    and its certificate: whoever displays the text escapes it.
    """
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise HeaderError(f"PROXY v2: {what} is not UTF-8") from None


@attrs.frozen
class SSLInfo:
    """
    The client's TLS session, as the proxy tells it (spec 2.2.6).  The texts are the
    client's own, with any character: escape them before they are displayed.

    @ivar overTLS: the client came over TLS.
    @ivar certificateOnConnection: it showed a certificate on this connection.
    @ivar certificateInSession: it showed one in this TLS session.
    @ivar verified: it showed a certificate and the proxy verified it.
    @ivar version: for example C{TLSv1.3}.
    @ivar commonName: of the certificate's subject.
    @ivar cipher: for example C{ECDHE-RSA-AES128-GCM-SHA256}.
    @ivar certificate: the client's certificate, DER.
    """

    overTLS: bool
    certificateOnConnection: bool
    certificateInSession: bool
    verified: bool
    version: str | None = None
    commonName: str | None = None
    cipher: str | None = None
    certificate: bytes | None = None

    @classmethod
    def parse(cls, value: bytes) -> SSLInfo:
        """
        @raise HeaderError: for a value that breaks the layout.
        """
        if len(value) < 5:
            raise HeaderError("PROXY v2: SSL field shorter than 5 bytes")
        client, verify = struct.unpack_from("!BI", value)
        parts = {kind: part for kind, _, part in walk(value[5:], "SSL sub-field")}

        def name(kind: int, what: str) -> str | None:
            return text(parts[kind], what) if kind in parts else None

        return cls(
            overTLS=bool(client & 1),
            certificateOnConnection=bool(client & 2),
            certificateInSession=bool(client & 4),
            verified=bool(client & 6) and verify == 0,
            version=name(0x21, "TLS version"),
            commonName=name(0x22, "common name"),
            cipher=name(0x23, "cipher name"),
            certificate=parts.get(0x28),
        )


@attrs.frozen
class TLVs:
    """
    The fields of one header.  The texts have any character: escape them before
    they are displayed.

    @ivar fields: type and value of each, in the order they came.
    @ivar ssl: see L{SSLInfo}; L{None} when the proxy said nothing.
    @ivar authority: the host name the client asked for (SNI).
    @ivar alpn: the application protocol the client agreed on, for example C{h2}.
    @ivar uniqueId: at most 128 bytes that name the connection in the proxy's log.
    @ivar netns: the name of the proxy's network namespace.
    """

    fields: tuple[tuple[int, bytes], ...] = ()
    ssl: SSLInfo | None = None
    authority: str | None = None
    alpn: bytes | None = None
    uniqueId: bytes | None = None
    netns: str | None = None

    @classmethod
    def parse(cls, block: bytes) -> TLVs:
        """
        @raise HeaderError: for a block that breaks the layout.
        """
        fields = tuple((kind, value) for kind, _, value in walk(block))
        values = dict(reversed(fields))  # the first of each type, as get() has it
        uniqueId = values.get(UNIQUE_ID)
        if uniqueId is not None and len(uniqueId) > MAX_UNIQUE_ID:
            raise HeaderError(f"PROXY v2: unique id longer than {MAX_UNIQUE_ID} bytes")
        return cls(
            fields=fields,
            ssl=SSLInfo.parse(values[SSL]) if SSL in values else None,
            authority=text(values[AUTHORITY], "authority") if AUTHORITY in values else None,
            alpn=values.get(ALPN),
            uniqueId=uniqueId,
            netns=text(values[NETNS], "network namespace") if NETNS in values else None,
        )

    def get(self, kind: int) -> bytes | None:
        """
        The value of the first field of this type, for types without a name here.
        """
        return next((value for each, value in self.fields if each == kind), None)

    @property
    def awsEndpoint(self) -> str | None:
        """
        The id of the AWS VPC endpoint the client came through.
        """
        value = self.get(AWS)
        return value[1:].decode("ascii", "replace") if value and value[0] == 1 else None

    @property
    def azureLink(self) -> int | None:
        """
        The LinkID of the Azure private endpoint the client came through.
        """
        value = self.get(AZURE)
        if value is None or len(value) != 5 or value[0] != 1:
            return None
        return int.from_bytes(value[1:], "little")

    @property
    def gcpConnection(self) -> int | None:
        """
        The id of the Google Private Service Connect connection.
        """
        value = self.get(GCP)
        return int.from_bytes(value, "big") if value is not None and len(value) == 8 else None
