"""
The irtt responder: on the wire, and measured by Debian's own client.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import subprocess

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from zope.interface.verify import verifyObject

from connpool.datagram import Auto, DatagramInfo, Irtt
from connpool.datagram.irtt import formatParameters, parseParameters, readUvarint, uvarint
from connpool.interfaces import IDatagramResponder, IReflector
from tests.datagram.peers import answering, where
from tests.helpers.ports import freePort
from tests.helpers.waiting import bounded

MAGIC = b"\x14\xa7\x5b"
ALL = {1: 1, 2: 10**9, 3: 10**7, 4: 172, 5: 3, 6: 3, 7: 3}


def info(port=40_000, address=b"\xc0\x00\x02\x07"):
    about = DatagramInfo()
    about.asker(address, port)
    return about


def opened(irtt, parameters=ALL, about=None, flags=1):
    request = MAGIC + bytes([flags]) + formatParameters(parameters)
    return request, irtt.respond(request, about or info())


def echo(token, number=0, size=172):
    request = MAGIC + b"\0" + token + struct.pack("<I", number)
    return request + bytes(i & 0xFF for i in range(size - len(request)))


def test_interfaces():
    verifyObject(IDatagramResponder, Irtt())
    verifyObject(IReflector, Auto())


@given(st.integers(0, (1 << 64) - 1))
def test_varints(value):
    data = uvarint(value)
    assert readUvarint(b"xx" + data + b"yy", 2) == (value, 2 + len(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9, b"\xff" * 11, b"\x80" * 9 + b"\x02"])
def test_varintsThatAreNone(data):
    with pytest.raises(ValueError):
        readUvarint(data, 0)


def test_parametersOfARealClient():
    # the open request of irtt 0.9.0, defaults, after its header
    data = bytes.fromhex("0102028090dfc04a03 80a8d6b907 0460 0506 0606 0706".replace(" ", ""))
    assert parseParameters(data) == {1: 1, 2: 10**10, 3: 10**9, 4: 48, 5: 3, 6: 3, 7: 3}
    assert formatParameters(parseParameters(data)) == data


def test_openingKeepsNothing():
    irtt = Irtt()
    for port in range(1024, 3000):
        request, reply = opened(irtt, about=info(port=port))
        assert len(reply) == len(request) + 8
    assert not irtt._sessions
    assert reply[3] == 1 | 2
    assert reply[12:] == request[4:]


def test_anEchoWithEverything():
    irtt = Irtt()
    token = opened(irtt)[1][4:12]
    request = echo(token, 0)
    reply = irtt.respond(request, info())
    assert len(reply) == len(request)
    flags, back, number, count, window, *times = struct.unpack_from("<3xBQIIQqqqq", reply)
    assert (flags, back, number) == (2, int.from_bytes(token, "little"), 0)
    assert (count, window) == (1, 1)
    received, receivedMono, sent, sentMono = times
    assert 0 <= sent - received == pytest.approx(sentMono - receivedMono, abs=1e6)
    assert reply[60:] == request[60:]
    for expected, number in ((0b11, 1), (0b1101, 3), (0, 2), (0b111, 4)):
        reply = irtt.respond(echo(token, number), info())
        # after a late one the window is not valid; the next slides on from it
        assert struct.unpack_from("<Q", reply, 20)[0] & 0xF == expected or number == 4
    assert struct.unpack_from("<I", reply, 16)[0] == 5


def test_timesThatWereAskedFor():
    irtt = Irtt()
    for stamp, stamps in enumerate((0, 1, 1, 2, 1)):
        for clock in range(4):
            token = opened(irtt, {**ALL, 5: 0, 6: stamp, 7: clock})[1][4:12]
            request = echo(token)
            reply = irtt.respond(request, info())
            fields = 16 + 8 * clock.bit_count() * stamps
            assert reply[fields:] == request[fields:]
            assert len(reply) == len(request)


def test_aTokenIsForItsSource():
    irtt = Irtt()
    token = opened(irtt)[1][4:12]
    assert irtt.respond(echo(token), info(port=40_001)) is None
    assert irtt.respond(echo(token), info(address=b"\xc0\x00\x02\x08")) is None
    for i in range(64):
        forged = bytearray(token)
        forged[i // 8] ^= 1 << i % 8
        assert irtt.respond(echo(bytes(forged)), info()) is None
    assert irtt.refused == {"irtt-token": 66}
    assert Irtt().respond(echo(token), info()) is None  # another server's
    assert not irtt._sessions


def test_sessionsAreBounded():
    irtt = Irtt()
    for port in range(1024, 4000):
        about = info(port=port)
        irtt.respond(echo(opened(irtt, about=about)[1][4:12]), about)
    assert len(irtt._sessions) == Irtt.SESSIONS


def test_closing():
    irtt = Irtt()
    token = opened(irtt)[1][4:12]
    assert irtt.respond(echo(token), info())
    assert irtt.respond(MAGIC + b"\4" + token, info()) is None
    assert irtt.refused == {"irtt-closed": 1}
    assert not irtt._sessions


def test_anotherVersionIsToldOursAndClosed():
    reply = opened(Irtt(), {**ALL, 1: 9})[1]
    assert reply[3] == 1 | 2 | 4
    assert parseParameters(reply[12:]) == {**ALL, 1: 1}


def test_hmac():
    import hmac

    def sign(data, key=b"secret"):
        blank = data[:3] + bytes([data[3] | 8]) + bytes(16) + data[4:]
        return blank[:4] + hmac.digest(key, blank, "md5") + blank[20:]

    irtt = Irtt(b"secret")
    request = sign(MAGIC + b"\1" + formatParameters(ALL))
    reply = irtt.respond(request, info())
    assert reply[4:20] == hmac.digest(b"secret", reply[:4] + bytes(16) + reply[20:], "md5")
    token = reply[20:28]
    assert irtt.respond(sign(echo(token)), info())[3] == 2 | 8
    for bad in (
        sign(echo(token), b"another"),
        echo(token),
        MAGIC + b"\1" + formatParameters(ALL),
        (MAGIC + b"\x09" + bytes(16)),
        MAGIC + b"\x09",
    ):
        assert irtt.respond(bad, info()) is None
    assert irtt.refused == {"irtt-hmac": 5}
    # and whoever has no key takes none
    assert Irtt().respond(request, info()) is None


MALFORMED = [
    b"",
    b"\x14",
    MAGIC,
    b"\0\0\0\1",
    MAGIC + b"\x10",
    MAGIC + b"\x80",
    MAGIC + b"\0",
    MAGIC + b"\0" + bytes(7),
    MAGIC + b"\1\x80",
    MAGIC + b"\1" + formatParameters({1: 1, 2: -1}),
    MAGIC + b"\1" + formatParameters({1: 1, 5: 4}),
    MAGIC + b"\1" + formatParameters({1: 1, 6: 5}),
    MAGIC + b"\1" + formatParameters({1: 1, 7: 4}),
    MAGIC + b"\1" + formatParameters({1: 1, 4: 65_536}),
    MAGIC + b"\1\x09\x21" + bytes(33),
    MAGIC + b"\1\x09\x05abc",
]


def test_malformedIsDroppedAndCounted():
    irtt = Irtt()
    for data in MALFORMED:
        assert irtt.respond(data, info()) is None
    assert irtt.refused == {"irtt-malformed": len(MALFORMED)}


def test_withoutAVersionIsMalformed():
    irtt = Irtt()
    assert opened(irtt, {**ALL, 1: 0})[1] is None
    assert irtt.refused == {"irtt-malformed": 1}


def test_anOpeningIsAsLongAsARealOne():
    """
    The answer is 8 bytes longer: to 6 bytes that would be more than twice.
    """
    irtt = Irtt()
    for parameters in ({1: 1}, {1: 1, 2: 100, 3: 10}):
        assert opened(irtt, parameters)[1] is None
    assert irtt.refused == {"irtt-malformed": 2}
    # irtt client --stats=none --tstamp=none -i 1ms -d 5ms
    real = bytes.fromhex("14a75b0101020280ade2040380897a0706")
    assert len(irtt.respond(real, info())) == len(real) + 8


def test_anAnswerIsNeverAnswered():
    irtt = Irtt()
    reply = opened(irtt)[1]
    assert irtt.respond(reply, info()) is None
    assert irtt.respond(irtt.respond(echo(reply[4:12]), info()), info()) is None
    assert irtt.refused == {"irtt-reply": 2}


def test_noRoomForWhatWasAsked():
    irtt = Irtt()
    token = opened(irtt)[1][4:12]
    assert irtt.respond(echo(token, size=59), info()) is None
    assert irtt.respond(MAGIC + b"\0" + token + b"\0", info()) is None
    assert irtt.refused == {"irtt-malformed": 2}
    assert len(irtt.respond(echo(token, size=60), info())) == 60


def test_anyFieldFuzzed():
    rng = random.Random(6)
    irtt = Irtt()
    request, reply = opened(irtt)
    bases = [request, echo(reply[4:12]), MAGIC + b"\4" + reply[4:12], reply]
    for _ in range(5000):
        data = bytearray(rng.choice(bases))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data) + 1)]
        answer = irtt.respond(bytes(data), info())
        assert answer is None or len(answer) <= len(data) + 8


# -- Debian's client -----------------------------------------------------------


async def measure(port, *options):
    """
    What C{irtt client} says of a port.
    """
    command = ["irtt", "client", "-i", "5ms", "-d", "400ms", "-Q", "-o", "-", *options]
    command.append(f"127.0.0.1:{where(port)[1]}")
    result = await bounded(
        deferToThread(
            subprocess.run, command, capture_output=True, text=True, timeout=30, check=False
        ),
        40,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.peer("irtt")
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-l", "1472"],
        ["--stats=none", "--tstamp=none"],
        ["--tstamp=midpoint", "--clock=wall"],
        ["--tstamp=receive", "--clock=monotonic", "--stats=window"],
    ],
    ids=lambda options: " ".join(options) or "defaults",
)
@pytest_twisted.ensureDeferred
async def test_debiansClientLosesNothing(options):
    with answering(Auto()) as port:
        found = await measure(port, *options)
        stats = found["stats"]
        assert stats["packets_sent"] == stats["packets_received"] > 10
        assert stats["packet_loss_percent"] == 0
        assert stats["duplicates"] == stats["late_packets"] == 0
        assert all(trip["lost"] in {"false", "unknown"} for trip in found["round_trips"])
        if not options:
            assert stats["server_packets_received"] == stats["packets_sent"]
            assert stats["upstream_loss_percent"] == stats["downstream_loss_percent"] == 0
            trip = found["round_trips"][0]
            sent = trip["timestamps"]["client"]["send"]["wall"]
            received = trip["timestamps"]["server"]["receive"]["wall"]
            assert 0 < received - sent < 10**9
        numbers = port.stats()
        # one to open, the echoes, one to close
        assert numbers.received == stats["packets_sent"] + 2
        assert numbers.refused == {"irtt-closed": 1}


@pytest.mark.peer("irtt")
@pytest_twisted.ensureDeferred
async def test_debiansClientWithAKey():
    with answering(Irtt(b"sesame")) as port:
        stats = (await measure(port, "--hmac=sesame"))["stats"]
        assert stats["packets_sent"] == stats["packets_received"] > 10


@pytest.mark.peer("irtt")
@pytest_twisted.ensureDeferred
async def test_debiansClientWithAWrongKeyGetsNothing():
    with answering(Irtt(b"sesame")) as port:
        command = ["irtt", "client", "--timeouts=200ms,200ms", "-d", "100ms", "--hmac=other"]
        command.append(f"127.0.0.1:{where(port)[1]}")
        result = await bounded(
            deferToThread(
                subprocess.run, command, capture_output=True, text=True, timeout=30, check=False
            )
        )
        assert result.returncode != 0
        assert port.stats().answered == 0
        assert port.stats().refused == {"irtt-hmac": 2}


async def session(port, source):
    """
    A short run of C{irtt client} from one port of ours.
    """
    command = ["irtt", "client", "-i", "2ms", "-d", "8ms", "-Q", "-o", "-", "--wait=1s"]
    command += [f"--local=127.0.0.1:{source}", f"127.0.0.1:{where(port)[1]}"]
    result = await bounded(
        deferToThread(
            subprocess.run, command, capture_output=True, text=True, timeout=30, check=False
        ),
        60,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["stats"]


@pytest.mark.peer("irtt")
@pytest.mark.parametrize(
    ("ports", "rounds"),
    [(5, 4), pytest.param(50, 20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
@pytest_twisted.ensureDeferred
async def test_sessionsFromTheSamePortsAgainAndAgain(ports, rounds):
    """
    Debian's client believes the counts that come back: those of an earlier session
    would make loss, or answers to nothing.
    """
    sources = [freePort(socket.SOCK_DGRAM) for _ in range(ports)]
    with answering(Auto()) as port:

        async def oneAfterAnother(mine):
            for source in mine * rounds:
                stats = await session(port, source)
                assert stats["packets_sent"] > 0
                assert stats["packets_received"] == stats["packets_sent"]
                assert stats["server_packets_received"] == stats["packets_sent"]
                assert stats["duplicates"] == stats["late_packets"] == 0
                assert stats["packet_loss_percent"] == 0

        # as many at once as there are threads for
        lanes = [Deferred.fromCoroutine(oneAfterAnother(sources[i::5])) for i in range(5)]
        await bounded(gatherResults(lanes, consumeErrors=True), 600)
        stats = port.stats()
        assert set(stats.refused) == {"irtt-closed"}
        assert stats.sendErrors == {}
