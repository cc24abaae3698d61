"""
Sessions of irtt and STAMP: begun anew, and not crowded out.
"""

from __future__ import annotations

import struct

import pytest

from connpool.datagram import DatagramInfo, Irtt, Stamp
from connpool.datagram.irtt import MAGIC, formatParameters
from connpool.datagram.sessions import SessionTable
from connpool.datagram.stamp import toNTP

ALL = {1: 1, 2: 10**9, 3: 10**7, 4: 172, 5: 3, 6: 3, 7: 3}


def info(address=b"\xc0\x00\x02\x07", port=40_000, zone=0):
    about = DatagramInfo()
    about.asker(address, port, zone)
    return about


def opened(irtt, about):
    reply = irtt.respond(MAGIC + b"\1" + formatParameters(ALL), about)
    return reply[4:12]


def counted(irtt, token, number, about):
    """
    The count that comes back, or None.
    """
    request = MAGIC + b"\0" + token + struct.pack("<I", number)
    answer = irtt.respond(request + bytes(172 - len(request)), about)
    return None if answer is None else struct.unpack_from("<I", answer, 16)[0]


def test_aSessionOfAReusedPortBeginsAtOne():
    irtt = Irtt()
    about = info()
    first = opened(irtt, about)
    assert [counted(irtt, first, n, about) for n in range(3)] == [1, 2, 3]
    second = opened(irtt, about)
    assert second != first
    # until it is used, the first one goes on: anybody can send an opening
    assert counted(irtt, first, 3, about) == 4
    assert counted(irtt, second, 0, about) == 1
    # the last of the first one may have been under way
    assert counted(irtt, first, 4, about) is None
    assert irtt.refused == {"irtt-closed": 1}
    assert counted(irtt, second, 1, about) == 2


def test_closingAnEarlierSessionLeavesTheOneThatRuns():
    irtt = Irtt()
    about = info()
    first, second = opened(irtt, about), opened(irtt, about)
    assert counted(irtt, second, 0, about) == 1
    irtt.respond(MAGIC + b"\4" + first, about)
    assert counted(irtt, second, 1, about) == 2
    irtt.respond(MAGIC + b"\4" + second, about)
    assert counted(irtt, second, 2, about) == 1


def test_aThousandSessionsFromFiftyPorts():
    irtt = Irtt()
    for _ in range(20):
        for port in range(50):
            about = info(port=5000 + port)
            token = opened(irtt, about)
            assert [counted(irtt, token, n, about) for n in range(3)] == [1, 2, 3]
    assert len(irtt._sessions) == 50


@pytest.mark.parametrize(
    ("victim", "crowd"),
    [
        (b"\xc0\x00\x02\x07", [b"\xc6\x33\x64" + bytes([i]) for i in range(5)]),
        (
            bytes.fromhex("20010db8000100000000000000000001"),
            # all of a /48
            [bytes.fromhex("20010db80002") + bytes([i]) + bytes(9) for i in range(5)],
        ),
        (
            bytes.fromhex("fe80000000000000") + bytes(7) + b"\1",
            [bytes.fromhex("fe80000000000000") + bytes(7) + b"\2"],
        ),
    ],
    ids=["/24", "/48", "link-local"],
)
def test_oneNetworkDoesNotCrowdOutOthers(victim, crowd):
    irtt = Irtt()
    about = info(victim, zone=2 if victim[0] == 0xFE else 0)
    token = opened(irtt, about)
    assert counted(irtt, token, 0, about) == 1
    for i in range(3 * Irtt.SESSIONS):
        other = info(crowd[i % len(crowd)], 1024 + i, zone=2 if victim[0] == 0xFE else 0)
        assert counted(irtt, opened(irtt, other), 0, other) == 1
    assert len(irtt._sessions) == Irtt.SESSIONS
    assert counted(irtt, token, 1, about) == 2


def test_linkLocalHostsOfTwoLinksAreTwo():
    irtt = Irtt()
    address = bytes.fromhex("fe80000000000000") + bytes(7) + b"\1"
    one, other = info(address, zone=2), info(address, zone=3)
    token = opened(irtt, one)
    assert counted(irtt, token, 0, one) == 1
    assert counted(irtt, token, 1, other) is None
    assert irtt.refused == {"irtt-token": 1}


def test_theLeastRecentlyUsedOfTheLargestNetworkGoes():
    table = SessionTable(4)
    for i in range(3):
        table.put(info(b"\1\1\1" + bytes([i])), bytes([i]), i)
    table.put(info(b"\2\2\2\2"), b"other", "other")
    assert table.get(info(b"\1\1\1\0"), b"\0") == 0  # used now
    table.put(info(b"\3\3\3\3"), b"third", "third")
    assert table.get(info(b"\1\1\1\1"), b"\1") is None
    assert table.get(info(b"\1\1\1\0"), b"\0") == 0
    assert table.get(info(b"\2\2\2\2"), b"other") == "other"
    table.pop(info(b"\2\2\2\2"), b"other")
    table.pop(info(b"\2\2\2\2"), b"other")
    assert len(table) == 3


# -- STAMP ----------------------------------------------------------------------


def stamped(stamp, number, at, about, ssid=7):
    """
    The number of the reflector's answer.
    """
    packet = struct.pack("!IQHH", number, toNTP(at * 10**9), 0x8001, ssid) + bytes(28)
    return int.from_bytes(stamp.respond(packet, about)[:4], "big")


def test_aStatefulReflectorBeginsAnewWithItsSender():
    stamp = Stamp(stateful=True)
    about = info()
    assert [stamped(stamp, n, 1000 + n, about) for n in (0, 1, 3)] == [0, 1, 2]
    # one that was overtaken, and one that came twice, are of the same run
    assert stamped(stamp, 2, 1002, about) == 3
    assert stamped(stamp, 3, 1003, about) == 4
    # the same port and SSID, from 0 or with its first datagrams lost
    assert stamped(stamp, 0, 2000, about) == 0
    assert stamped(stamp, 1, 2001, about) == 1
    assert stamped(stamp, 1, 3001, about) == 0


def test_oneNetworkDoesNotCrowdOutStampSessions():
    stamp = Stamp(stateful=True)
    assert stamped(stamp, 0, 1000, info()) == 0
    for i in range(3 * Stamp.SESSIONS):
        stamped(stamp, 0, 1000, info(b"\xc6\x33\x64\1"), ssid=i)
    assert stamped(stamp, 1, 1001, info()) == 1
