"""
Batches, and what answers carry.
"""

from __future__ import annotations

import errno
import socket
import struct

import pytest
import pytest_twisted

from connpool.datagram import (
    Auto,
    DatagramInfo,
    Echo,
    Irtt,
    Limits,
    OwnPorts,
    Policy,
    Stamp,
    SturdyPort,
)
from connpool.datagram.answering import _source
from connpool.datagram.mmsg import _CONTROL_BYTES, Batch, available
from tests.datagram.peers import Recorder, answer, answering, client, read, where
from tests.helpers.waiting import pause, until

LINUX = pytest.mark.skipif(not available(), reason="no recvmmsg as we know it")
LOCAL = socket.inet_pton(socket.AF_INET6, "fe80::1")
SO_TIMESTAMP = 29
GLOBAL = socket.inet_pton(socket.AF_INET6, "2001:db8::1")


def asked(address, interface=7):
    info = DatagramInfo()
    info.destination = info.local = address
    info.interface = interface
    return info


@pytest.mark.parametrize(("address", "interface"), [(LOCAL, 7), (GLOBAL, 0)])
def test_25_linkLocalAnswersKeepTheirInterface(address, interface):
    message = _source(asked(address))
    size, level, kind = struct.unpack_from("=QII", message)
    assert (size, level, kind) == (36, socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
    assert message[16:32] == address
    assert struct.unpack_from("=I", message, 32) == (interface,)
    port = SturdyPort(None, Recorder())
    port.info = asked(address)
    assert port._sourceControl() == [
        (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, address + struct.pack("I", interface))
    ]


def test_ipv4AnswersLeaveByWhateverInterface():
    message = _source(asked(b"\x7f\0\0\x09"))
    assert message[16:28] == b"\0\0\0\0\x7f\0\0\x09\0\0\0\0"
    assert _source(DatagramInfo()) == b""


@LINUX
@pytest.mark.parametrize(
    ("first", "plain"),
    [(LOCAL, False), (GLOBAL, True), (b"\xff" + bytes(15), False), (bytes(16), False)],
)
def test_onlyPlainDestinationsGoBackUnseen(first, plain):
    batch = Batch(socket.AF_INET6, 2, control=True)
    for i, address in enumerate((GLOBAL, first)):
        start = i * _CONTROL_BYTES
        batch._controls[start : start + 36] = struct.pack(
            "=QII16sI", 36, socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, address, 7
        )
        batch._headerWords[i * 16 + 10] = 40
    assert batch.plainDestinations(2) is plain
    kept = struct.unpack_from("=I", batch._controls, 32)[0]
    assert kept == (0 if plain else 7)
    # one that says more, as an adopted socket may
    batch._headerWords[10] = 72
    assert not batch.plainDestinations(2)


@pytest.fixture
def pair():
    """
    A socket that a batch reads, and one that sends to it.
    """
    with client() as one, client(to=one.getsockname()) as other:
        yield one, other


@LINUX
def test_aBatchThere(pair):
    one, other = pair
    for size in (0, 5, 65_507):
        other.send(b"z" * size)
    batch = Batch(socket.AF_INET, 4, control=False)
    assert batch.receive(one.fileno(), 4) == 3
    assert batch.lengths(3) == [0, 5, 65_507]
    assert batch.payload(1, 5) == b"zzzzz"
    assert batch.truncated(3) == []
    port = other.getsockname()[1].to_bytes(2, "big")
    assert batch.senders(3)[2:4] == batch.senders(3)[34:36] == port
    assert batch.receive(one.fileno(), 4) == -errno.EAGAIN
    other.send(b"again")
    assert batch.receive(one.fileno(), 4) == 1
    assert batch.lengths(1) == [5]


def four(one, other):
    """
    A batch of four datagrams, ready to go back.
    """
    for i in range(4):
        other.send(b"%d" % i)
    batch = Batch(socket.AF_INET, 4, control=False)
    batch.receive(one.fileno(), 4)
    batch.reflect(4)
    return batch


@LINUX
def test_oneAnswerThatFailsHoldsUpNoOther(pair):
    one, other = pair
    batch = four(one, other)
    # the second has no address any more
    batch._headerWords[16 + 2] = 1
    assert batch.send(one.fileno(), 4) == [(1, errno.EINVAL)]
    assert [read(other) for _ in range(4)] == [b"0", b"2", b"3", None]


@LINUX
def test_aBatchThatIsAllAlikeLeavesAsOne(pair):
    one, other = pair
    batch = four(one, other)
    assert batch.sendJoined(one.fileno(), 4, 1)
    assert [read(other) for _ in range(5)] == [b"0", b"1", b"2", b"3", None]
    # too large for segments, or empty
    assert not batch.sendJoined(one.fileno(), 4, 1400)
    assert not batch.sendJoined(one.fileno(), 4, 0)


@LINUX
def test_whereSegmentsAreNotPossibleTheyAreNotTriedAgain(pair):
    one, other = pair
    other.send(b"x")
    batch = Batch(socket.AF_INET, 4, control=False)
    batch.receive(one.fileno(), 1)
    batch.reflect(1)
    batch._headerWords[2] = 1  # no address: EINVAL, as from a device that cannot
    assert not batch.sendJoined(one.fileno(), 1, 1)
    batch._headerWords[2] = 16
    assert not batch.sendJoined(one.fileno(), 1, 1)
    assert batch.send(one.fileno(), 1) == []


@LINUX
@pytest.mark.parametrize(
    ("host", "size"), [("255.255.255.255", 1000), ("127.0.0.1", 1000), ("127.0.0.1", 65)]
)
def test_oneReceiverDoesNotSpoilSegmentsForOthers(pair, host, size, monkeypatch):
    """
    Neither one that must not be sent to, nor one behind a narrow path.
    """
    one, other = pair
    for _ in range(4):
        other.send(bytes(size))
    batch = Batch(socket.AF_INET, 4, control=False)
    batch.receive(one.fileno(), 4)
    batch.reflect(4)
    if host == "127.0.0.1":
        monkeypatch.setattr("connpool.datagram.mmsg._sendmsg", lambda *_: -1)
        monkeypatch.setattr("ctypes.get_errno", lambda: errno.EINVAL)
    else:
        batch._names[4:8] = socket.inet_aton(host)
    assert not batch.sendJoined(one.fileno(), 4, size)
    monkeypatch.undo()
    for _ in range(4):
        other.send(bytes(64))
    batch.receive(one.fileno(), 4)
    batch.reflect(4)
    assert batch.sendJoined(one.fileno(), 4, 64)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "plain"])
@pytest.mark.parametrize(
    ("interface", "hosts"), [("0.0.0.0", ["127.0.0.8", "127.0.0.9"]), ("::", ["::1"])]
)
@pytest_twisted.ensureDeferred
async def test_eachAnswerLeavesFromTheAddressThatItsRequestAsked(batched, interface, hosts):
    """
    Also those that one socket sends to several of our addresses at once.
    """
    with (
        answering(Auto(), interface=interface, batched=batched) as port,
        client(interface) as sock,
    ):
        asked = {b"%02d" % i: hosts[i % len(hosts)] for i in range(20)}
        for data, host in asked.items():
            sock.sendto(data, (host, where(port)[1]))
        port.doRead()
        answers = [sock.recvfrom(100) for _ in asked]
        assert {data: addr[0] for data, addr in answers} == asked


def adopted(any_, *options):
    """
    A socket as systemd passes it.
    """
    six = ":" in any_
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    if six:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    for option in options:
        sock.setsockopt(*option, 1)
    sock.bind((any_, 0))
    return sock


@pytest.mark.parametrize(
    ("any_", "host"), [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::", "::1")]
)
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "plain"])
@pytest_twisted.ensureDeferred
async def test_anAdoptedSocketMaySayMoreThanWasAsked(any_, host, batched):
    """
    C{Timestamping=us} of a socket unit, with which one batch closed the port.
    """
    sock = adopted(any_, (socket.SOL_SOCKET, SO_TIMESTAMP))
    with (
        answering(Auto(), adopt=sock, batched=batched) as port,
        client(host, to=(host, where(port)[1])) as peer,
    ):
        asked = [b"%02d" % i for i in range(20)]
        for data in asked:
            peer.send(data)
        port.doRead()
        assert [await answer(peer) for _ in asked] == asked
        assert port.stats().sendErrors == {}


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "plain"])
@pytest_twisted.ensureDeferred
async def test_anAdoptedSocketOfBothFamiliesSaysAllOfIPv4Too(batched):
    from tests.datagram.test_stamp import sender

    with (
        answering(Stamp(), adopt=adopted("::"), batched=batched) as port,
        client() as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(sender(), ("127.255.255.255", where(port)[1]))
        await until(lambda: port.received)
        assert port.stats().refused == {"broadcast": 1}
        sock.sendto(sender(), ("127.0.0.9", where(port)[1]))
        data, addr = await until(lambda: receivedFrom(sock))
        assert addr[0] == "127.0.0.9"
        assert data[40] == 64  # the TTL


def receivedFrom(sock):
    try:
        return sock.recvfrom(1000)
    except BlockingIOError:
        return None


@LINUX
@pytest.mark.parametrize("responder", [Echo, Irtt], ids=["reflected", "shown"])
@pytest_twisted.ensureDeferred
async def test_onlyAnswersThatWentOutAreCounted(responder, monkeypatch):
    monkeypatch.setattr(Batch, "_send", staticmethod(lambda *_: [(1, errno.EPERM)]))
    monkeypatch.setattr(Irtt, "respond", lambda self, data, info: data)
    with answering(responder()) as port, client(to=where(port)) as sock:
        for size in (1, 20, 300):
            sock.send(bytes(size))
        port._singles = 0
        port.doRead()
        stats = port.stats()
        assert (stats.answered, stats.answeredBytes) == (2, 301)
        assert stats.sendErrors == {"EPERM": 1}


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "plain"])
@pytest_twisted.ensureDeferred
async def test_anAnswerOfMoreThanADatagramIsOneThatCannotBeSent(batched):
    class Endless(Echo):
        def reflects(self, firstBytes):
            return False

        def respond(self, data, info):
            return bytes(70_000) if data == b"more" else data

    policy = Policy(relax=frozenset({"length"}))
    with answering(Endless(), policy, batched=batched) as port, client(to=where(port)) as sock:
        for i in range(64):
            sock.send(b"more" if i % 2 else b"%02d" % i)
        for _ in range(4):
            port._singles = 0
            port.doRead()
        assert [await answer(sock) for _ in range(32)] == [b"%02d" % i for i in range(0, 64, 2)]
        assert port.stats().sendErrors == {"EMSGSIZE": 32}


@pytest.mark.parametrize("interface", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("size", [1, 64, 1200, 1201, 9000])
@pytest_twisted.ensureDeferred
async def test_manyOfOneSizeComeBackOnceEach(interface, size):
    with (
        answering(Auto(), interface=interface) as port,
        client(to=where(port, "127.0.0.1")) as sock,
    ):
        sent = [bytes([65 + i % 26]) * size for i in range(100)]
        for data in sent[:50]:
            sock.send(data)
        port._singles = 0
        port.doRead()
        for data in sent[50:]:
            sock.send(data)
        got = [await answer(sock) for _ in range(100)]
        assert got == sent
        await pause(0)
        assert read(sock) is None
        assert port.stats().answered == 100


@LINUX
@pytest_twisted.ensureDeferred
async def test_severalAtOnceAreReadInBatchesHoweverTheyBegan():
    with answering(Auto()) as port, client(to=where(port)) as sock:
        for i in range(100):  # one by one
            sock.send(b"%d" % i)
            port.doRead()
            assert await answer(sock) == b"%d" % i
        for _ in range(8):  # and then sixteen in each wake-up
            sent = [b"%d" % i for i in range(16)]
            for data in sent:
                sock.send(data)
            port.doRead()
            assert [await answer(sock) for _ in sent] == sent
        assert port.maxBatch == 16


@pytest_twisted.ensureDeferred
async def test_everyOneOfABatchIsJudged():
    """
    Some sources of a batch are refused, one is over its rate, one is answered.
    """
    own = OwnPorts()
    limits = Limits(Policy(trustLoopback=False, rate=1, burst=30), own)
    with (
        answering(Echo(), limits=limits, ownPorts=own) as port,
        client(to=where(port)) as good,
        client(to=where(port)) as sibling,
    ):
        own.add(sibling.getsockname()[1])
        for i in range(32):
            good.send(b"%d" % i)
            if i < 20:
                sibling.send(b"loop")
        port._singles = 0
        port.doRead()
        await until(lambda: port.received == 52)
        stats = port.stats()
        assert stats.refused == {"own-ports": 20, "rate": 2}
        assert stats.answered == 30
        assert [read(good) for _ in range(31)] == [b"%d" % i for i in range(30)] + [None]
        assert read(sibling) is None


@pytest.mark.parametrize(
    ("destination", "unicast"),
    [
        ("2001:db8::1", True),
        ("ff02::1", False),
        ("::ffff:192.0.2.1", True),
        ("::ffff:224.0.0.1", False),
        ("::ffff:255.255.255.255", False),
    ],
)
def test_destinationsOfManyOverIPv6(destination, unicast):
    info = DatagramInfo()
    data = socket.inet_pton(socket.AF_INET6, destination) + struct.pack("I", 3)
    info.read([(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data)])
    assert info.unicast is unicast
    assert info.interface == 3
