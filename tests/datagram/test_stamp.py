"""
The STAMP reflector, with scapy's layer as the oracle of its packets.
"""

from __future__ import annotations

import hmac
import os
import random
import struct
import time

import pytest
import pytest_twisted
from zope.interface.verify import verifyObject

from connpool.datagram import DatagramInfo, Echo, Stamp, probe
from connpool.datagram.stamp import StampWire, fromNTP, toNTP
from connpool.interfaces import IDatagramResponder
from tests.datagram.peers import answer, answering, client, where
from tests.helpers.waiting import bounded

KEY = b"0123456789abcdef"
NOW = 1_800_000_000_123_456_789


def info(port=40_000):
    about = DatagramInfo()
    about.asker(b"\xc0\x00\x02\x07", port)
    about.kernelTime = NOW
    about.ttl = 61
    about.tos = 0xB9
    return about


def sender(number=7, ssid=0x1234, rest=b""):
    return struct.pack("!IQHH28x", number, toNTP(NOW - 5_000_000), 0x8101, ssid) + rest


def signedSender(key=KEY, number=7, ssid=0x1234, rest=b""):
    head = struct.pack("!I12xQHH68x", number, toNTP(NOW - 5_000_000), 0x8101, ssid)
    assert len(head) == 96
    return head + hmac.digest(key, head, "sha256")[:16] + rest


def tlv(kind, value, flags=0x80):
    return struct.pack("!BBH", flags, kind, len(value)) + value


def tlvs(data):
    found, at = [], 0
    while at < len(data):
        flags, kind, length = struct.unpack_from("!BBH", data, at)
        found.append((flags, kind, data[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def test_interface():
    verifyObject(IDatagramResponder, Stamp())


@pytest.mark.parametrize("when", [0, 1, 999_999_999, NOW, 4_000_000_000_000_000_001])
def test_times(when):
    assert abs(fromNTP(toNTP(when)) - when) <= 1


def test_scapyBuildsAndReads():
    stamp = pytest.importorskip("scapy.contrib.stamp")
    request = bytes(
        stamp.STAMPSessionSenderTestUnauthenticated(
            seq=99,
            ts=toNTP(NOW) / 2**32,
            ssid=0xBEEF,
            err_estimate=stamp.ErrorEstimate(S=1, scale=3),
        )
    )
    assert len(request) == 44
    reply = Stamp().respond(request, info())
    read = stamp.STAMPSessionReflectorTestUnauthenticated(reply)
    assert bytes(read) == reply
    assert (read.seq, read.seq_sender, read.ssid, read.ttl_sender) == (99, 99, 0xBEEF, 61)
    assert (read.mbz1, read.mbz2) == (0, 0)
    assert bytes(read.err_estimate_sender) == request[12:14]
    assert reply[28:36] == request[4:12]
    assert int.from_bytes(reply[16:24], "big") == toNTP(NOW)
    assert (read.err_estimate.S, read.err_estimate.Z) == (0, 0)
    assert read.err_estimate.multiplier > 0
    assert abs(fromNTP(int.from_bytes(reply[4:12], "big")) - time.time_ns()) < 10**9


def test_scapyReadsOurSender():
    stamp = pytest.importorskip("scapy.contrib.stamp")
    request = StampWire(100).request(5)
    read = stamp.STAMPSessionSenderTestUnauthenticated(request)
    assert bytes(read) == request
    assert (read.seq, read.mbz) == (5, 0)
    (padding,) = read.tlv_objects
    assert (padding.type, padding.len) == (1, 52)


def test_scapysTLVs():
    stamp = pytest.importorskip("scapy.contrib.stamp")
    made = [
        # by number: scapy 2.8 names the flags from the wrong end (RFC 8972 4: U is 0x80)
        stamp.STAMPTestTLV(flags=0x80, type=1, len=6, value=b"abcdef"),
        stamp.STAMPTestTLV(flags=0x80, type=200, len=2, value=b"??"),
    ]
    request = bytes(stamp.STAMPSessionSenderTestUnauthenticated(seq=1, tlv_objects=made))
    reply = Stamp().respond(request, info())
    assert len(reply) == len(request)
    padding, unknown = stamp.STAMPSessionReflectorTestUnauthenticated(reply).tlv_objects
    assert (int(padding.flags), padding.value) == (0, b"abcdef")
    assert (int(unknown.flags), unknown.value) == (0x80, b"??")


def test_statelessRepeatsTheNumberAndStatefulCounts():
    stateless, stateful = Stamp(), Stamp(stateful=True)
    for count, number in enumerate((5, 9, 4)):
        assert int.from_bytes(stateless.respond(sender(number), info())[:4], "big") == number
        assert int.from_bytes(stateful.respond(sender(number), info())[:4], "big") == count
    # another SSID and another port are other sessions
    assert stateful.respond(sender(1, ssid=9), info())[:4] == bytes(4)
    assert stateful.respond(sender(1), info(port=50_000))[:4] == bytes(4)


def test_sessionsAreBounded():
    stamp = Stamp(stateful=True)
    for port in range(1024, 5000):
        stamp.respond(sender(), info(port=port))
    assert len(stamp._sessions) == Stamp.SESSIONS
    assert stamp.respond(sender(), info(port=4999))[:4] == b"\0\0\0\1"
    assert stamp.respond(sender(), info(port=1024))[:4] == bytes(4)


def test_shortPacketsAreDroppedAndCounted():
    stamp, signed = Stamp(), Stamp(KEY)
    for size in range(44):
        assert stamp.respond(bytes(size), info()) is None
    for size in range(112):
        assert signed.respond(bytes(size), info()) is None
    assert stamp.refused == {"stamp-short": 44}
    assert signed.refused == {"stamp-short": 112}


def test_rightHMAC():
    reply = Stamp(KEY).respond(signedSender(), info())
    assert len(reply) == 112
    assert hmac.digest(KEY, reply[:96], "sha256")[:16] == reply[96:]
    number, sent, _, ssid, received, theirs, stamped, error, ttl = struct.unpack(
        "!I12xQHH4xQ8xI12xQH6xB15x", reply[:96]
    )
    assert (number, theirs, ssid, ttl, error) == (7, 7, 0x1234, 61, 0x8101)
    assert received == toNTP(NOW)
    assert stamped == toNTP(NOW - 5_000_000)
    assert sent > received - (1 << 63)


def test_wrongHMAC():
    stamp = Stamp(KEY)
    good = signedSender()
    for i in range(112):
        bad = good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :]
        assert stamp.respond(bad, info()) is None
    assert stamp.respond(signedSender(key=b"another"), info()) is None
    assert stamp.refused == {"stamp-hmac": 113}


def test_extensionsThatWeKnow():
    rest = tlv(3, bytes(4)) + tlv(4, b"\x28\0\0\0") + tlv(1, bytes(5))
    reply = Stamp().respond(sender(rest=rest), info())
    timestamps, class_, padding = tlvs(reply[44:])
    assert timestamps == (0, 3, b"\x05\x02\x05\x02")
    # wished DSCP 10; received DSCP 46, ECN 1; 1: not followed
    bits = 10 << 10 | 46 << 4 | 1 << 2 | 1
    assert class_ == (0, 4, bits.to_bytes(2, "big") + b"\0\0")
    assert padding == (0, 1, bytes(5))


def test_malformedExtensionsAreMarked():
    rest = tlv(3, b"12345") + struct.pack("!BBH", 0x80, 1, 100) + b"abc"
    reply = Stamp().respond(sender(rest=rest), info())
    assert len(reply) == 44 + len(rest)
    assert reply[44] == 0x40
    assert reply[44 + 9] == 0x40
    assert reply[44 + 13 :] == b"abc"


def test_signedExtensions():
    rest = tlv(1, b"abcd") + tlv(3, bytes(4))
    digest = hmac.digest(KEY, signedSender()[:4] + rest, "sha256")[:16]
    reply = Stamp(KEY).respond(signedSender(rest=rest + tlv(8, digest) + tlv(1, b"x")), info())
    first, stamps, signature, last = tlvs(reply[112:])
    assert [each[0] for each in (first, stamps, signature, last)] == [0, 0, 0, 0]
    assert stamps[2] == b"\x05\x02\x05\x02"
    assert signature[2] == hmac.digest(KEY, reply[:4] + reply[112:128], "sha256")[:16]


@pytest.mark.parametrize(
    "rest",
    [
        tlv(3, bytes(4)),  # no signature
        tlv(1, b"abcd") + tlv(1, b"abcd"),
        tlv(1, b"abcd") + tlv(8, bytes(16)),  # a wrong one
        tlv(1, b"abcd") + tlv(8, bytes(15)),
        tlv(8, hmac.digest(KEY, bytes([0, 0, 0, 7]), "sha256")[:16]) + tlv(3, bytes(4)),
    ],
)
def test_unsignedExtensionsAreMarkedAndNotActedOn(rest):
    reply = Stamp(KEY).respond(signedSender(rest=rest), info())
    assert len(reply) == 112 + len(rest)
    assert all(flags & 0x20 for flags, _, _ in tlvs(reply[112:]))
    assert reply[113:116] == rest[1:4]


def test_paddingAloneNeedsNoSignature():
    """
    RFC 8972 4.8: the one exception.
    """
    reply = Stamp(KEY).respond(signedSender(rest=tlv(1, b"abcd")), info())
    assert tlvs(reply[112:]) == [(0, 1, b"abcd")]


def goRound(request, *responders):
    """
    @return: how often C{request} was answered as it went from one to the next.
    """
    answers = 0
    while answers < 100:
        request = responders[answers % len(responders)].respond(request, info())
        if request is None:
            break
        answers += 1
    return answers


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("stateful", [False, True])
def test_anAnswerIsNotAnswered(key, stateful):
    """
    The times in it are new in each round, so the loop rule would see no loop.
    """
    one, other = Stamp(key, stateful=stateful), Stamp(key)
    request = sender() if key is None else signedSender()
    assert goRound(request, one, other) == 2
    assert one.refused == {"stamp-answer": 1}
    assert goRound(request, one, Echo()) <= 4
    # whoever sends that time a minute later has something else in mind
    old = toNTP(time.time_ns() - 61 * 10**9)
    late = struct.pack("!IQHH12xQH6x", 1, old, 0x2001, 1, old, 0x2001)
    assert key or one.respond(late, info()) is not None
    fresh = late[:28] + struct.pack("!QH", toNTP(time.time_ns()), 0x8101) + late[38:]
    assert key or one.respond(fresh, info()) is not None


@pytest.mark.parametrize("key", [None, KEY])
def test_anyFieldFuzzed(key):
    rng = random.Random(5)
    stamp = Stamp(key, stateful=True)
    base = (sender if key is None else signedSender)(rest=tlv(3, bytes(4)) + tlv(8, bytes(16)))
    for _ in range(3000):
        data = bytearray(base)
        for _ in range(rng.randrange(6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data[: rng.randrange(len(data) + 1)]) if rng.random() < 0.3 else bytes(data)
        if key is not None and len(data) >= 112:
            data = data[:96] + hmac.digest(key, data[:96], "sha256")[:16] + data[112:]
        reply = stamp.respond(data, info())
        assert reply is None or len(reply) == len(data)


def test_paddingOfOlderSendersComesBack():
    assert Stamp().respond(sender(rest=bytes(100)), info())[44:] == bytes(100)
    data = os.urandom(3)
    assert Stamp().respond(sender(rest=data), info())[44:] == data


@pytest_twisted.ensureDeferred
async def test_throughASocket():
    with answering(Stamp()) as port, client(to=where(port)) as sock:
        sock.send(sender(rest=bytes(20)))
        reply = await answer(sock)
        assert len(reply) == 64
        assert reply[40] == 64  # the TTL it arrived with
        assert abs(fromNTP(int.from_bytes(reply[16:24], "big")) - time.time_ns()) < 10**9


@pytest.mark.parametrize("size", [44, 46, 48, 200])
@pytest.mark.parametrize("stateful", [False, True])
@pytest_twisted.ensureDeferred
async def test_probing(size, stateful):
    from twisted.internet import reactor

    with answering(Stamp(stateful=stateful)) as port:
        report = await bounded(
            probe(reactor, *where(port), protocol="stamp", size=size, count=20, interval=0.001)
        )
    assert (report.sent, report.received, report.ignored) == (20, 20, 0)
    assert report.up.n == report.down.n == 20
    assert report.clocksPlausible
    assert abs(report.up.mean + report.down.mean + report.remote.mean - report.rtt.mean) < 1e-4
