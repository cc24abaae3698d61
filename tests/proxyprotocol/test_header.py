"""
The codec: good headers, the malformed ones, and whatever hypothesis finds.
"""

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from connpool.errors import HeaderError
from connpool.proxyprotocol import (
    MAX_HEADER,
    Header,
    HeaderParser,
    NotAHeader,
    encodeV1,
    encodeV2,
    parseDatagram,
)
from connpool.proxyprotocol.tlvs import crc32c

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENT4 = IPv4Address("TCP", "192.0.2.7", 40000)
SERVER4 = IPv4Address("TCP", "198.51.100.1", 443)
CLIENT6 = IPv6Address("TCP", "2001:db8::7", 40000)
SERVER6 = IPv6Address("TCP", "::1", 443)


def block(command, family, body):
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


def parse(data):
    return HeaderParser().feed(data)


def byteWise(data):
    """
    The same bytes, one at a time.
    """
    parser = HeaderParser()
    for index in range(len(data)):
        found = parser.feed(data[index : index + 1])
        if found is not None:
            header, rest = found
            return header, rest + data[index + 1 :]
    return None


INET = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 40000, 443)

GOOD = [
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n", Header(1, False, CLIENT4, SERVER4)),
    (b"PROXY TCP6 2001:db8::7 ::1 40000 443\r\n", Header(1, False, CLIENT6, SERVER6)),
    # canonical text, as getpeername() has it
    (
        b"PROXY TCP6 2001:0DB8:0:0:0:0:0:7 0:0:0:0:0:0:0:1 40000 443\r\n",
        Header(1, False, CLIENT6, SERVER6),
    ),
    (
        b"PROXY TCP6 ::ffff:c000:207 ::1 0 65535\r\n",
        Header(
            1,
            False,
            IPv6Address("TCP", "::ffff:192.0.2.7", 0),
            IPv6Address("TCP", "::1", 65535),
        ),
    ),
    # the short form HAProxy sends for a unix client; Twisted refuses it
    (b"PROXY UNKNOWN\r\n", Header(1)),
    (b"PROXY UNKNOWN ffff:f...f:ffff \xff\0 65535 65535\r\n", Header(1)),
    (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", Header(1)),
    (block(0x21, 0x11, INET), Header(2, False, CLIENT4, SERVER4)),
    (
        block(0x21, 0x12, INET),
        Header(
            2,
            False,
            IPv4Address("UDP", "192.0.2.7", 40000),
            IPv4Address("UDP", "198.51.100.1", 443),
        ),
    ),
    (
        block(
            0x21,
            0x21,
            bytes.fromhex("20010db8000000000000000000000007")
            + bytes(15)
            + b"\1"
            + struct.pack("!HH", 40000, 443),
        ),
        Header(2, False, CLIENT6, SERVER6),
    ),
    (
        block(0x21, 0x31, b"/run/a".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")),
        Header(2, False, UNIXAddress(b"/run/a"), UNIXAddress(b"\0abstract")),
    ),
    (
        block(0x21, 0x31, bytes(108) + b"x" * 108),
        Header(2, False, UNIXAddress(None), UNIXAddress(b"x" * 108)),
    ),
    # LOCAL: the block is skipped, whatever it holds
    (block(0x20, 0x00, b""), Header(2, local=True)),
    (block(0x20, 0x99, b"\xff" * 500), Header(2, local=True)),
    (block(0x20, 0x11, INET), Header(2, local=True)),
    (block(0x21, 0x00, b""), Header(2)),
]


@pytest.mark.parametrize(("data", "header"), GOOD)
def test_good(data, header):
    assert parse(data) == (header, b"")
    assert parse(data + b"PROXY hello") == (header, b"PROXY hello")
    assert byteWise(data + b"hello") == (header, b"hello")


V1_BAD = [
    b"PROXY TCP4 foo bar 1 2",
    b"PROXY TCP4 ::1 ::1 1 2",
    b"PROXY TCP6 192.0.2.7 192.0.2.1 1 2",
    b"PROXY TCP6 fe80::1%eth0 ::1 1 2",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 x 2",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 99999 2",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 2",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 -2 2",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 +1 2",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 1_0 2",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 01 2",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 00 2",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2 3",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2 ",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 1",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 1 ",
    b"PROXY TCP4  192.0.2.7 192.0.2.1 1 2",
    b"PROXY TCP4 192.0.2.07 192.0.2.1 1 2",
    b"PROXY TCP4 192.0.2 192.0.2.1 1 2",
    b"PROXY TCP4 192.0.2.7/32 192.0.2.1 1 2",
    b"PROXY TCP4 192.0.2.7\nFAKE 192.0.2.1 1 2",
    b"PROXY TCP4 \x1b[31mred 192.0.2.1 1 2",
    b"PROXY TCP4 \xff\xfe 192.0.2.1 1 2",
    "PROXY TCP4 192.0.2.7 192.0.2.1 \u0661 2".encode(),
    b"PROXY TCP5 192.0.2.7 192.0.2.1 1 2",
    b"PROXY UNIX a b 1 2",
    b"PROXY UNKNOWNX",
    b"PROXY unknown",
    b"PROXY tcp4 192.0.2.7 192.0.2.1 1 2",
    b"PROXY ",
    b"PROXY  UNKNOWN",
    b"PROXY UNKNOWN \n",
    b"PROXY UNKNOWN \r ",
]


@pytest.mark.parametrize("line", V1_BAD)
def test_badLines(line):
    for read in (parse, byteWise):
        with pytest.raises(HeaderError) as caught:
            read(line + b"\r\nhello")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\rx",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\r\n",
        b"PROXY UNKNOWN " + b"x" * 93,
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        b"PROXY UNKNOWN " + b"x" * 60_000 + b"\r\n",
    ],
)
def test_badLineEnds(data):
    for read in (parse, byteWise):
        with pytest.raises(HeaderError, match=r"CR|LF"):
            read(data)


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"x", b"PROXX", b"proxy TCP4", b"\r\n\r\n\0\r\nQUIT\r", b"\r\nP"],
)
def test_notAHeader(data):
    parser = HeaderParser()
    with pytest.raises(NotAHeader):
        parser.feed(data)
    assert parser.unread() == data


def test_noSecondTry():
    parser = HeaderParser()
    with pytest.raises(NotAHeader):
        parser.feed(b"garbage")
    with pytest.raises(NotAHeader):
        parser.feed(b"PROXY UNKNOWN\r\n")


@pytest.mark.parametrize(
    "data",
    [
        block(0x21, 0x13, INET),
        block(0x21, 0x01, INET),
        block(0x21, 0x10, INET),
        block(0x21, 0x41, INET),
        block(0x22, 0x11, INET),
        block(0x2F, 0x11, INET),
        block(0x11, 0x11, INET),
        block(0x31, 0x11, INET),
        block(0x21, 0x11, INET[:-1]),
        block(0x21, 0x11, b""),
        block(0x21, 0x21, INET),
        block(0x21, 0x31, INET),
        block(0x21, 0x11, INET + b"\x04"),
        block(0x21, 0x11, INET + b"\x04\0"),
        block(0x21, 0x11, INET + b"\x04\0\x01"),
        block(0x21, 0x00, b"\x04\xff\xff"),
        block(0x21, 0x00, b"\x03\0\x04abcd"),
        block(0x21, 0x00, b"\x03\0\x03abc"),
        block(0x21, 0x00, b"\x05\0\x81" + b"x" * 129),
        block(0x21, 0x00, b"\x02\0\x02\xff\xff"),
        block(0x21, 0x00, b"\x20\0\x04abcd"),
        block(0x21, 0x00, b"\x20\0\x0a\x01\0\0\0\0\x21\0\x09ab"),
        block(0x21, 0x00, b"\x20\0\x0a\x01\0\0\0\0\x22\0\x02\xff\xff"),
        block(0x21, 0x11, bytes(MAX_HEADER - 15)),
        block(0x20, 0x00, bytes(0xFFFF)),
    ],
)
def test_badBlocks(data):
    for read in (parse, byteWise):
        with pytest.raises(HeaderError) as caught:
            read(data)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "plain",
        "Jean\u00a0Dupont",
        "\u200fdalet",
        "soft\u00adhyphen",
        "zero\u200bwidth",
        "a\nb\0",
    ],
)
def test_anyUTF8IsAName(name):
    """
    A client chooses its certificate; its characters cost nobody the connection.
    """
    raw = name.encode()
    inner = b"\x22" + struct.pack("!H", len(raw)) + raw
    ssl = b"\x20" + struct.pack("!H", 5 + len(inner)) + b"\x01\0\0\0\0" + inner
    authority = b"\x02" + struct.pack("!H", len(raw)) + raw
    for read in (parse, byteWise):
        header, _ = read(block(0x21, 0x11, INET + ssl + authority))
        assert (header.tlvs.ssl.commonName, header.tlvs.authority) == (name, name)


def test_aLongHeaderIsRefusedBeforeItsBodyArrives():
    with pytest.raises(HeaderError, match="at most 4096"):
        parse(SIGNATURE + b"\x21\x11\xff\xff")
    with pytest.raises(HeaderError, match="family"):
        parse(SIGNATURE + b"\x21\x99\x0f\x00")
    assert parse(SIGNATURE + b"\x21\x11\x0f\x00") is None


def test_longestHeader():
    body = INET + b"\x04" + struct.pack("!H", MAX_HEADER - 31) + bytes(MAX_HEADER - 31)
    data = block(0x21, 0x11, body)
    assert len(data) == MAX_HEADER
    header, rest = parse(data + b"x")
    assert (header.source, rest) == (CLIENT4, b"x")


def test_fields():
    ssl = b"\x07\0\0\0\0" + b"\x21\0\x07TLSv1.3" + "\x22\0\x05J\u00fcrg".encode() + b"\x23\0\x03abc"
    ssl += b"\x28\0\x02DE"
    data = encodeV2(
        CLIENT4,
        SERVER4,
        fields=(
            (0x01, b"h2"),
            (0x02, b"example.com"),
            (0x05, b"\x01" * 128),
            (0x20, ssl),
            (0x30, b"blue"),
            (0xE0, (7).to_bytes(8, "big")),
            (0xEA, b"\x01vpce-08d2bf15fac5001c9"),
            (0xEE, b"\x01" + (5).to_bytes(4, "little")),
            (0xE1, b"custom"),
        ),
        checksum=True,
    )
    header, _ = parse(data)
    fields = header.tlvs
    assert fields.alpn == b"h2"
    assert fields.authority == "example.com"
    assert fields.uniqueId == b"\x01" * 128
    assert fields.netns == "blue"
    assert fields.gcpConnection == 7
    assert fields.awsEndpoint == "vpce-08d2bf15fac5001c9"
    assert fields.azureLink == 5
    assert fields.get(0xE1) == b"custom"
    assert fields.get(0xE2) is None
    assert fields.ssl.overTLS
    assert fields.ssl.certificateOnConnection
    assert fields.ssl.certificateInSession
    assert fields.ssl.verified
    assert fields.ssl.version == "TLSv1.3"
    assert fields.ssl.commonName == "J\u00fcrg"
    assert fields.ssl.cipher == "abc"
    assert fields.ssl.certificate == b"DE"


def test_aCertificateThatWasNotVerified():
    header, _ = parse(encodeV2(CLIENT4, SERVER4, fields=((0x20, b"\x03\0\0\0\x01"),)))
    assert header.tlvs.ssl.certificateOnConnection
    assert not header.tlvs.ssl.verified
    # "verified" without a certificate means nothing (spec 2.2.6)
    header, _ = parse(encodeV2(CLIENT4, SERVER4, fields=((0x20, b"\x01\0\0\0\0"),)))
    assert not header.tlvs.ssl.verified


def test_checksum():
    assert crc32c(b"123456789") == 0xE3069283
    good = encodeV2(CLIENT4, SERVER4, checksum=True)
    assert parse(good)[0].source == CLIENT4
    for index in range(16, len(good) - 7):
        bad = bytearray(good)
        bad[index] ^= 1
        with pytest.raises(HeaderError, match="checksum"):
            parse(bytes(bad))


addresses = st.one_of(
    st.tuples(st.just("4"), st.ip_addresses(v=4), st.integers(0, 65535)),
    st.tuples(st.just("6"), st.ip_addresses(v=6), st.integers(0, 65535)),
)


def twistedAddress(family, ip, port):
    import socket

    if family == "4":
        return IPv4Address("TCP", str(ip), port)
    return IPv6Address("TCP", socket.inet_ntop(socket.AF_INET6, ip.packed), port)


@given(addresses, addresses, st.binary(max_size=50), st.booleans())
def test_roundTrip(one, two, rest, checksum):
    source, destination = twistedAddress(*one), twistedAddress(*two)
    same = type(source) is type(destination)
    header, after = parse(encodeV1(source, destination) + rest)
    assert after == rest
    assert header == (Header(1, False, source, destination) if same else Header(1))
    header, after = parse(encodeV2(source, destination, checksum=checksum) + rest)
    assert after == rest
    assert (header.source, header.destination) == ((source, destination) if same else (None, None))
    assert header.local is not same


def outcome(pieces):
    """
    What a stream in these pieces comes to.
    """
    parser = HeaderParser()
    rest = b""
    header = None
    for piece in pieces:
        if header is not None:
            rest += piece
            continue
        try:
            found = parser.feed(piece)
        except HeaderError as e:
            return "refused" if str(e).isprintable() else str(e)
        if found is not None:
            header, rest = found
    return header, rest


def split(data, cuts):
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


cuts = st.lists(st.integers(0, 400), max_size=8)
nearly = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda tail: b"PROXY " + tail),
    st.binary(max_size=200).map(lambda tail: SIGNATURE + tail),
    st.text("0123456789.:abTCPUNKOW46 \r\n%+-_", max_size=120).map(
        lambda tail: b"PROXY " + tail.encode()
    ),
    st.builds(
        block,
        st.sampled_from([0x20, 0x21]),
        st.sampled_from([0, 0x11, 0x12, 0x21, 0x31, 0x13]),
        st.binary(max_size=300),
    ),
)


@settings(max_examples=400)
@given(nearly, cuts)
def test_anyBytesHoweverCut(data, where):
    """
    A header, an incomplete one, or a L{HeaderError}: nothing else, and how
    the bytes were cut changes nothing.
    """
    whole = outcome([data])
    assert outcome(split(data, where)) == whole
    assert whole == "refused" or isinstance(whole, tuple)


@settings(max_examples=300)
@given(
    st.sampled_from([data for data, _ in GOOD]),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=4),
    cuts,
)
def test_damagedHeaders(data, changes, where):
    damaged = bytearray(data)
    for index, byte in changes:
        damaged[index % len(damaged)] = byte
    whole = outcome([bytes(damaged)])
    assert outcome(split(bytes(damaged), where)) == whole


def test_aDribbledHeader():
    parser = HeaderParser()
    assert parser.feed(SIGNATURE + b"\x21\x11" + struct.pack("!H", MAX_HEADER - 16)) is None
    for _ in range(MAX_HEADER - 17):
        assert parser.feed(b"\0") is None
    header, rest = parser.feed(b"\0")
    assert (header.source.host, rest) == ("0.0.0.0", b"")
    assert len(header.tlvs.fields) == (MAX_HEADER - 28) // 3


def test_datagrams():
    client = IPv4Address("UDP", "192.0.2.7", 4000)
    server = IPv4Address("UDP", "192.0.2.1", 7)
    data = encodeV2(client, server, checksum=True)
    header, payload = parseDatagram(data + b"ping")
    assert (header.source, header.destination, payload) == (client, server, b"ping")
    assert parseDatagram(data)[1] == b""
    assert parseDatagram(encodeV2() + b"x") == (Header(2, local=True), b"x")


@pytest.mark.parametrize("data", [b"", b"ping", b"PROXY UNKNOWN\r\nping", SIGNATURE[:11]])
def test_datagramsWithoutOne(data):
    with pytest.raises(NotAHeader):
        parseDatagram(data)


def test_aDatagramHoldsItsWholeHeader():
    data = encodeV2(IPv4Address("UDP", "192.0.2.7", 4000), IPv4Address("UDP", "192.0.2.1", 7))
    for end in range(12, len(data)):
        with pytest.raises(HeaderError, match="cut off"):
            parseDatagram(data[:end])


def test_zonesStayHome():
    line = encodeV1(IPv6Address("TCP", "fe80::1%eth0", 1), IPv6Address("TCP", "fe80::2", 2))
    assert line == b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"


def test_tooLongToEncode():
    with pytest.raises(HeaderError, match="65535"):
        encodeV2(CLIENT4, SERVER4, fields=((0xE1, bytes(0x10000)),))
    with pytest.raises(HeaderError, match="65535"):
        encodeV2(CLIENT4, SERVER4, fields=((0xE1, bytes(0xFFFF)),))
