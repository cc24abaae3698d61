"""
The codec beside others: Twisted's, the C{proxy-protocol} package, HAProxy.

What is valid all read alike.  Where they differ on what is not, the table
says who takes it; the specification wants a receiver to refuse "any sequence
which does not exactly match".
"""

import socket
from ipaddress import ip_address
from socket import SOCK_STREAM

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, serverFromString
from twisted.protocols.haproxy._exceptions import InvalidProxyHeader
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser

from connpool.errors import HeaderError
from connpool.proxyprotocol import HeaderParser, ProxyHeaderEndpoint, encodeV1, encodeV2
from tests.helpers.haproxy import Banners, Reader, address, hangUp, haproxy, speak
from tests.helpers.waiting import bounded, until

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1, V2 = ProxyProtocolV1(), ProxyProtocolV2()

pairs = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
)
ports = st.integers(0, 65535)


def ours(data):
    """
    Source and destination as plain values; L{None} for a refusal.
    """
    try:
        header, rest = HeaderParser().feed(data + b"rest")
    except HeaderError:
        return None
    assert rest == b"rest"
    return plain(header)


def plain(info):
    return [(ip_address(each.host), each.port) for each in (info.source, info.destination) if each]


def twisteds(data):
    try:
        info, rest = (V1Parser if data.startswith(b"P") else V2Parser)().feed(data + b"rest")
    except InvalidProxyHeader:
        return None
    except (ValueError, UnicodeDecodeError, IndexError) as e:
        return type(e).__name__
    assert rest == b"rest"
    try:
        return plain(info)
    except ValueError:
        return "nonsense"


def packages(data):
    try:
        result = (V1 if data.startswith(b"P") else V2).unpack(data)
    except Exception:
        return None
    return [result.source, result.dest] if result.source else []


def twistedAddress(ip, port):
    if ip.version == 4:
        return IPv4Address("TCP", str(ip), port)
    return IPv6Address("TCP", socket.inet_ntop(socket.AF_INET6, ip.packed), port)


@settings(max_examples=150)
@given(pairs, ports, ports)
def test_whatWeWriteOthersRead(pair, sourcePort, destinationPort):
    expected = [(pair[0], sourcePort), (pair[1], destinationPort)]
    source, destination = (twistedAddress(*each) for each in expected)
    for data in (
        encodeV1(source, destination),
        encodeV2(source, destination),
        encodeV2(source, destination, checksum=True),
    ):
        assert ours(data) == expected
        assert twisteds(data) == expected
        assert packages(data) == expected


@settings(max_examples=100)
@given(pairs, ports, ports)
def test_whatThePackageWritesWeRead(pair, sourcePort, destinationPort):
    make = ProxyResultIPv4 if pair[0].version == 4 else ProxyResultIPv6
    result = make((pair[0], sourcePort), (pair[1], destinationPort), protocol=SOCK_STREAM)
    for codec in (V1, V2):
        assert ours(codec.pack(result)) == [result.source, result.dest]


def line(text):
    return b"PROXY " + text + b"\r\n"


A, B = ip_address("192.0.2.7"), ip_address("192.0.2.1")

#: What only we refuse, or only we take: ours, Twisted's, the package's.
DIFFERENT = [
    (line(b"UNKNOWN"), [], None, []),
    (line(b"TCP4 192.0.2.7 192.0.2.1 01 2"), None, [(A, 1), (B, 2)], [(A, 1), (B, 2)]),
    (line(b"TCP4 192.0.2.7 192.0.2.1 +1 2"), None, [(A, 1), (B, 2)], [(A, 1), (B, 2)]),
    (line(b"TCP4 192.0.2.7 192.0.2.1 1_0 2"), None, [(A, 10), (B, 2)], [(A, 10), (B, 2)]),
    (line(b"TCP4 192.0.2.7 192.0.2.1 99999 2"), None, [(A, 99999), (B, 2)], None),
    (line(b"TCP4 192.0.2.7 192.0.2.1 1 2 3"), None, [(A, 1), (B, 2)], None),
    (line(b"TCP4 a b 1 2"), None, "nonsense", None),
    (line(b"TCP4 192.0.2.7 192.0.2.1 x 2"), None, "ValueError", None),
]


@pytest.mark.parametrize(("data", "us", "twisted", "package"), DIFFERENT)
def test_differences(data, us, twisted, package):
    """
    If one of these fails for Twisted or the package, they have changed:
    correct the table, and the one in docs/proxyprotocol.rst.
    """
    assert ours(data) == us
    assert twisteds(data) == twisted
    assert packages(data) == package


def test_wrongChecksum():
    bad = bytearray(
        encodeV2(IPv4Address("TCP", str(A), 1), IPv4Address("TCP", str(B), 2), checksum=True)
    )
    bad[-1] ^= 1
    assert ours(bytes(bad)) is None
    assert twisteds(bytes(bad)) == [(A, 1), (B, 2)]


# -- HAProxy as a receiver


@pytest.mark.peer("haproxy")
@pytest.mark.parametrize("version", [1, 2])
@pytest_twisted.ensureDeferred
async def test_throughHAProxy(tmp_path, version):
    """
    HAProxy believes what we send and passes it on to us.
    """
    factory = Banners()
    endpoint = serverFromString(reactor, "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1")
    port = await bounded(endpoint.listen(factory))
    with haproxy(tmp_path, f"{address(port)} send-proxy-v2", accept="accept-proxy") as front:
        for source, destination in (
            (IPv4Address("TCP", str(A), 40000), IPv4Address("TCP", str(B), 443)),
            (IPv6Address("TCP", "2001:db8::7", 40000), IPv6Address("TCP", "::1", 443)),
        ):
            plainly = TCP4ClientEndpoint(reactor, "127.0.0.1", front.port)
            caller = ProxyHeaderEndpoint(plainly, source, destination, version)
            reader = await speak(caller)
            header = factory.transports[-1].proxyInfo.header
            assert (header.source, header.destination) == (source, destination)
            await hangUp(reader)
        # where HAProxy is as strict as we are
        for data in (line(b"TCP4 ::1 ::1 1 2"), line(b"TCP4 a b 1 2"), SIGNATURE + b"\x31\x11\0\0"):
            count = len(factory.peers)
            reader = await bounded(
                connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", front.port), Reader())
            )
            reader.transport.write(data)
            await until(lambda reader=reader: reader.lost)
            assert len(factory.peers) == count
            assert ours(data) is None
    await bounded(port.stopListening())
