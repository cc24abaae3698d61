"""
Datagrams in envelopes.
"""

import socket

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import IServiceCollection
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.python.usage import UsageError

from connpool.addresses import parseListen
from connpool.errors import AddressError
from connpool.interfaces import IStatsSource
from connpool.proxyprotocol import DatagramHeaders, Policy, Trusted, encodeV1, encodeV2
from connpool.proxyprotocol.datagram import Unwrapped
from connpool.services import udpecho
from tests.helpers.waiting import bounded, until

CLIENT = IPv4Address("UDP", "192.0.2.7", 4000)
SERVER = IPv4Address("UDP", "198.51.100.1", 7)
ENVELOPE = encodeV2(CLIENT, SERVER)
PROXY = "10.0.0.5"
STRANGER = "203.0.113.9"


def headers(policy=Policy.REQUIRE):
    return DatagramHeaders(Trusted.parse(["10.0.0.0/8", "fd00::/8"]), policy)


def counted(each):
    from attrs import asdict

    if IServiceCollection.providedBy(each):
        (each,) = [
            source for part in each for source in part if getattr(source, "kind", "") == "proxy"
        ]
        assert IStatsSource.providedBy(each)

    return {name: n for name, n in asdict(each.stats()).items() if n}


PLAIN = Unwrapped(b"ping", None)
OPENED = Unwrapped(b"ping", CLIENT)


@pytest.mark.parametrize(
    ("policy", "sender", "datagram", "result", "counter"),
    [
        (Policy.REQUIRE, PROXY, ENVELOPE + b"ping", OPENED, "headers"),
        (Policy.REQUIRE, "fd00::1", ENVELOPE + b"ping", OPENED, "headers"),
        (Policy.REQUIRE, PROXY, b"ping", None, "missing"),
        (Policy.REQUIRE, PROXY, encodeV1(CLIENT, SERVER) + b"ping", None, "missing"),
        (Policy.REQUIRE, PROXY, ENVELOPE[:-1], None, "malformed"),
        (Policy.REQUIRE, STRANGER, ENVELOPE + b"ping", None, "untrusted"),
        (Policy.REQUIRE, STRANGER, b"ping", None, "untrusted"),
        (Policy.USE, PROXY, ENVELOPE + b"ping", OPENED, "headers"),
        (Policy.USE, PROXY, b"ping", PLAIN, "bare"),
        (Policy.USE, STRANGER, b"ping", PLAIN, None),
        (Policy.USE, STRANGER, ENVELOPE + b"ping", None, "rejected"),
        (Policy.IGNORE, PROXY, ENVELOPE + b"ping", PLAIN, "headers"),
        (Policy.IGNORE, STRANGER, ENVELOPE + b"ping", None, "rejected"),
        (Policy.REJECT, PROXY, ENVELOPE + b"ping", None, "rejected"),
        (Policy.REJECT, PROXY, b"ping", PLAIN, None),
    ],
)
def test_policies(policy, sender, datagram, result, counter):
    each = headers(policy)
    assert each.unwrap(datagram, sender) == result
    assert counted(each) == ({counter: 1} if counter else {})


def test_nobodyIsNotAnswered():
    each = headers()
    for envelope in (
        encodeV2(),
        encodeV2(UNIXAddress(b"/a"), UNIXAddress(b"/b")),
        b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0",
    ):
        assert each.unwrap(envelope + b"ping", PROXY) is None
    assert counted(each) == {"headers": 3, "local": 1, "unknown": 2}


def test_eachDatagramStandsForItself():
    each = headers()
    six = encodeV2(IPv6Address("UDP", "2001:db8::7", 1), IPv6Address("UDP", "::1", 7))
    assert each.unwrap(ENVELOPE + b"1", PROXY).client == CLIENT
    assert each.unwrap(six + b"2", PROXY).client.host == "2001:db8::7"
    assert each.unwrap(b"3", PROXY) is None


@given(st.binary(max_size=100), st.booleans(), st.sampled_from(Policy))
def test_anyDatagram(data, begun, policy):
    each = headers(policy)
    result = each.unwrap(ENVELOPE[:14] + data if begun else data, PROXY)
    assert result is None or isinstance(result, Unwrapped)


@pytest.mark.parametrize(
    "text",
    [
        "proxied:udp:0:interface=127.0.0.1",
        "proxied:udp:0:interface=127.0.0.1:trusted=127.0.0.1:timeout=5",
        "proxied:udp:0:interface=127.0.0.1:trusted=127.0.0.1:policy=maybe",
        "proxied:udp:0:interface=127.0.0.1:trusted=unix",
    ],
)
def test_mistakesAreOneLine(text):
    options = udpecho.Options()
    with pytest.raises(UsageError) as caught:
        options.parseOptions(["--listen", text])
    assert "\n" not in str(caught.value)


def test_aTimeoutMeansNothingToDatagrams():
    with pytest.raises(AddressError, match="timeout"):
        parseListen("proxied:udp:1:trusted=10.0.0.0/8:timeout=5")


@pytest_twisted.ensureDeferred
async def test_udpechoBehindAProxy():
    """
    Allow-lists act on the client, answers go to the proxy.
    """
    options = udpecho.Options()
    options.parseOptions(
        [
            *("--listen", "proxied:udp:0:interface=127.0.0.1:trusted=127.0.0.1"),
            *("--allow", "192.0.2.0/24"),
        ]
    )
    service = udpecho.makeService(options, reactor)
    service.privilegedStartService()
    service.startService()
    try:
        (host,) = service.getHosts()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as proxy:
            proxy.bind(("127.0.0.1", 0))
            proxy.setblocking(False)

            def sends(*datagrams):
                for datagram in datagrams:
                    proxy.sendto(datagram, (host.host, host.port))

            def answer():
                try:
                    return proxy.recv(1000)
                except BlockingIOError:
                    return None

            other = encodeV2(IPv4Address("UDP", STRANGER, 4000), SERVER)
            sends(b"no header", encodeV2() + b"nobody", other + b"not allowed")
            sends(encodeV2(CLIENT, SERVER, checksum=True) + b"ping")
            assert await until(answer) == b"ping"
            assert answer() is None
            assert counted(service) == {"headers": 3, "missing": 1, "local": 1}
    finally:
        await bounded(service.stopService())
