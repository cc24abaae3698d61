"""
The receiver's classic side through real sockets, in this process: what it
takes, what it refuses, and what is left behind when senders misbehave.
"""

import contextlib
import os
import socket
import struct

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.python import usage
from zope.interface import implementer
from zope.interface.verify import verifyObject

from connpool.interfaces import IStatsSource
from connpool.services.filerecv import Options, makeService
from connpool.transfer.receive import sniffer
from connpool.transfer.receive.classic import ClassicReceiver, ClassicRefusal
from connpool.transfer.stores.partial import LocalPartial
from tests.helpers.waiting import bounded, pause, until
from tests.transfer.hostile import CORPUS


@implementer(IHalfCloseableProtocol)
class Sender(Protocol):
    """
    A sender in pieces.
    """

    def __init__(self):
        self.received = b""
        self.answer = Deferred()
        self.closed = Deferred()

    def dataReceived(self, data):
        self.received += data
        if not self.answer.called and (self.received == b"ok" or b"\n" in self.received):
            self.answer.callback(self.received)

    def readConnectionLost(self):
        self.transport.loseConnection()

    def writeConnectionLost(self):
        pass

    def connectionLost(self, reason):
        if not self.answer.called:
            self.answer.callback(self.received)
        self.closed.callback(None)

    def reset(self):
        handle = self.transport.getHandle()
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abortConnection()


def service(root, *argv):
    options = Options()
    options.parseOptions(
        [f"--directory={root}", "--listen=tcp:0:interface=127.0.0.1", "--drain-timeout=5", *argv]
    )
    return makeService(options, reactor)


def connect(receiver):
    port = receiver.listening.getHost().port
    return bounded(connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Sender()))


async def send(receiver, name, *pieces):
    """
    One classic conversation to its end.

    @return: the receiver's answer.
    """
    sender = await connect(receiver)
    sender.transport.write(name)
    answer = await bounded(sender.answer)
    if answer == b"ok":
        for piece in pieces:
            sender.transport.write(piece)
        sender.transport.loseWriteConnection()
    await bounded(sender.closed)
    return answer


def visible(root):
    """
    Every path below C{root} that is not the store's own.
    """
    top = os.fsencode(root)
    paths = {
        os.path.relpath(os.path.join(where, name), top)
        for where, directories, files in os.walk(top)
        for name in [*directories, *files]
    }
    return {path for path in paths if not path.startswith(b".connpool")}


def leftPartials(root):
    """
    Partials in the store's own directory.
    """
    return [
        name
        for where, _, files in os.walk(os.path.join(root, ".connpool"))
        for name in files
        if "part" in os.path.basename(where) or "part" in name
    ]


@pytest.fixture
def receiving(root):
    """
    Start receivers; they are stopped when the test ends.
    """
    started = []

    def start(*argv):
        receiver = service(root, *argv)
        receiver.privilegedStartService()
        receiver.startService()
        started.append(receiver)
        return receiver

    yield start
    for receiver in started:
        pytest_twisted.blockon(bounded(receiver.stopService()))


def test_provides(root):
    verifyObject(IStatsSource, service(root))


def contentOf(root, name):
    with (
        contextlib.suppress(OSError),
        open(os.fsencode(root) + b"/" + name, "rb") as file,
    ):
        return file.read()


@pytest.mark.parametrize("profile", ["portable", "posix"])
@pytest_twisted.ensureDeferred
async def test_hostileNames(tmp_path, root, receiving, profile, monkeypatch):
    # a lone NUL may become native's preamble: the front door waits for more
    monkeypatch.setattr(sniffer, "FIRST_BYTES_TIMEOUT", 0.3)
    planted = os.path.lexists("/tmp/x")
    outside = {path for path in tmp_path.rglob("*") if root not in path.parents}
    receiver = receiving(f"--names={profile}")
    expected = set()
    taken = 0
    # classic has no empty name: nothing would be sent
    corpus = [hostile for hostile in CORPUS if hostile.raw]
    for batch in (corpus[n : n + 16] for n in range(0, len(corpus), 16)):
        answers = await gatherResults(
            [
                Deferred.fromCoroutine(send(receiver, each.raw, b"content of ", each.raw))
                for each in batch
            ]
        )
        for hostile, answer in zip(batch, answers, strict=True):
            if hostile.taken(profile) and b"/" not in hostile.raw:
                assert answer == b"ok", hostile
                taken += 1
                content = b"content of " + hostile.raw
                names = {hostile.raw}
                if profile == "portable":
                    # one that differs in case only may have been quicker
                    names |= {hostile.raw + b" (1)", hostile.raw + b" (2)"}
                expected |= {name for name in names if contentOf(root, name) == content}
                assert expected & names, hostile
            else:
                assert answer.startswith(b"name-refused: "), hostile
                assert answer.endswith(b"\n"), hostile
                assert answer.count(b"\n") == 1, hostile
                assert answer[:-1].decode().isprintable(), hostile
    assert visible(root) == expected
    assert {path for path in tmp_path.rglob("*") if root not in path.parents} == outside
    assert os.path.lexists("/tmp/x") is planted
    assert receiver.stats().published == taken
    assert receiver.stats().active == 0


@pytest_twisted.ensureDeferred
async def test_emptyFilesAndManyPieces(root, receiving):
    receiver = receiving()
    assert await send(receiver, b"empty") == b"ok"
    assert (root / "empty").read_bytes() == b""
    pieces = [os.urandom(n * 1000) for n in range(60)]
    assert await send(receiver, b"pieces", *pieces) == b"ok"
    assert (root / "pieces").read_bytes() == b"".join(pieces)
    assert receiver.stats().receivedBytes == sum(map(len, pieces))


@pytest.mark.parametrize(
    ("policy", "left", "answered"),
    [
        ("rename", {b"a.txt": b"old", b"a (1).txt": b"new"}, 2),
        ("replace", {b"a.txt": b"new"}, 2),
        ("refuse", {b"a.txt": b"old"}, 1),
        ("skip", {b"a.txt": b"old"}, 1),
    ],
)
@pytest_twisted.ensureDeferred
async def test_takenNames(root, receiving, policy, left, answered):
    receiver = receiving(f"--if-exists={policy}")
    for content in (b"old", b"new"):
        await send(receiver, b"a.txt", content)
    assert {name: (root / os.fsdecode(name)).read_bytes() for name in visible(root)} == left
    assert receiver.stats().published == answered


@pytest_twisted.ensureDeferred
async def test_identicalContentIsNotCopied(root, receiving):
    receiver = receiving()
    for _ in range(2):
        await send(receiver, b"a.txt", b"same")
    assert visible(root) == {b"a.txt"}


async def halfWay(receiver):
    """
    A sender whose first bytes have come.
    """
    sender = await connect(receiver)
    sender.transport.write(b"a.bin")
    await bounded(sender.answer)
    sender.transport.write(b"x" * 100_000)
    await until(lambda: receiver.stats().receivedBytes == 100_000)
    return sender


@pytest_twisted.ensureDeferred
async def test_nothingIsVisibleBeforeTheSenderHasFinished(root, receiving):
    receiver = receiving()
    sender = await halfWay(receiver)
    assert visible(root) == set()
    sender.transport.loseConnection()
    await until(lambda: visible(root) == {b"a.bin"})
    await until(lambda: receiver.stats().active == 0)


@pytest_twisted.ensureDeferred
async def test_aResetNeverPublishesAndLeavesNothing(root, receiving):
    receiver = receiving()
    sender = await halfWay(receiver)
    sender.reset()
    await until(lambda: receiver.stats().failed == 1)
    assert visible(root) == set()
    await until(lambda: leftPartials(root) == [])


@pytest_twisted.ensureDeferred
async def test_leavingBeforeTheAnswerCreatesNothing(root, receiving):
    receiver = receiving()
    sender = await connect(receiver)
    sender.transport.write(b"a.bin")
    sender.transport.loseConnection()
    await bounded(sender.closed)
    await until(lambda: receiver.listening.stats().connections == 0)
    assert visible(root) == set()


@pytest_twisted.ensureDeferred
async def test_silentSendersAreSentAway(root, receiving):
    receiver = receiving("--idle-timeout=0.3")
    sender = await connect(receiver)
    sender.transport.write(b"a.bin")
    await bounded(sender.answer)
    sender.transport.write(b"x")
    await bounded(sender.closed)
    await until(lambda: receiver.stats().failed == 1)
    assert visible(root) == set()
    await until(lambda: leftPartials(root) == [])


@pytest_twisted.ensureDeferred
async def test_slowSendersAreSentAwayAndOthersAreServed(root, receiving):
    receiver = receiving("--idle-timeout=0.3", "--min-rate=1000")
    sender = await connect(receiver)
    sender.transport.write(b"slow.bin")
    await bounded(sender.answer)
    written = 0
    while not sender.closed.called:
        assert written < 1000
        sender.transport.write(b"x")
        written += 1
        await pause(0.02)
        if written == 3:
            assert await send(receiver, b"other", b"1") == b"ok"
    await until(lambda: receiver.stats().failed == 1)
    assert visible(root) == {b"other"}


@pytest_twisted.ensureDeferred
async def test_largestFile(root, receiving):
    receiver = receiving("--max-file-size=1K")
    assert await send(receiver, b"fits", b"x" * 1024) == b"ok"
    await send(receiver, b"too large", b"x" * 1025)
    await until(lambda: receiver.stats().failed == 1)
    assert visible(root) == {b"fits"}


@pytest_twisted.ensureDeferred
async def test_underASmallQuota(root, receiving):
    receiver = receiving("--quota=1M")
    assert await send(receiver, b"fits", b"x" * 1024) == b"ok"
    await until(lambda: receiver.stats().published == 1)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("where", ["open", "commit"])
async def test_aBrokenStoreKeepsNobodyWaiting(root, receiving, monkeypatch, where, expectFailure):
    expectFailure(RuntimeError)
    receiver = receiving()

    def broken(*_):
        raise RuntimeError("a plugin's mistake")

    target = receiver._store if where == "open" else LocalPartial
    monkeypatch.setattr(target, where, broken)
    await send(receiver, b"a", b"x")
    await until(lambda: not receiver.listening.stats().connections)
    assert not receiver.stats().active


@pytest_twisted.ensureDeferred
async def test_suffixKeepsUnverifiedFilesApart(root, receiving):
    receiver = receiving("--classic-suffix=.unverified")
    assert await send(receiver, b"a.txt", b"1") == b"ok"
    assert visible(root) == {b"a.txt.unverified"}
    assert (await send(receiver, b"x" * 250)).startswith(b"name-refused: ")


@pytest_twisted.ensureDeferred
async def test_modesDependOnTheOptionsOnly(root, receiving):
    umask = os.umask(0o077)
    try:
        receiver = receiving("--file-mode=0664")
        assert await send(receiver, b"a.txt", b"1") == b"ok"
        await until(lambda: visible(root))
    finally:
        os.umask(umask)
    assert (root / "a.txt").stat().st_mode & 0o7777 == 0o664


@pytest_twisted.ensureDeferred
async def test_theDiskIsNeverFilled(root, receiving):
    receiver = receiving("--min-free=1000T")
    assert (await send(receiver, b"a.txt")).startswith(b"no-space: ")
    assert visible(root) == set()


@pytest_twisted.ensureDeferred
async def test_dotfilesCanBeRefused(root, receiving):
    receiver = receiving("--no-dotfiles")
    assert (await send(receiver, b".bashrc")).startswith(b"name-refused: ")
    assert visible(root) == set()


@pytest_twisted.ensureDeferred
async def test_deniedPeersAreClosed(root, receiving):
    receiver = receiving("--deny=127.0.0.0/8")
    assert b"forbidden" in await send(receiver, b"a.txt")
    assert receiver.listening.stats().refusedAddress == 1


@pytest_twisted.ensureDeferred
async def test_connectionLimit(root, receiving):
    receiver = receiving("--max-connections=2")
    first, second = [await connect(receiver) for _ in range(2)]
    await until(lambda: receiver.listening.stats().connections == 2)
    assert b"busy" in await send(receiver, b"a.txt")
    assert receiver.listening.stats().refusedLimit == 1
    first.transport.loseConnection()
    await until(lambda: receiver.listening.stats().connections == 1)
    assert await send(receiver, b"a.txt", b"1") == b"ok"
    second.transport.loseConnection()
    await bounded(second.closed)


@pytest_twisted.ensureDeferred
async def test_connectionsOfOneAddress(root, receiving):
    receiver = receiving("--max-per-address=1")
    first = await connect(receiver)
    await until(lambda: receiver.listening.stats().connections == 1)
    assert b"busy" in await send(receiver, b"a.txt")
    assert receiver.listening.stats().refusedLimit == 1
    first.transport.loseConnection()
    await bounded(first.closed)


def fromHost(receiver, host):
    transport = StringTransport(peerAddress=IPv4Address("TCP", host, 1))
    return receiver._classic(transport), transport


@pytest_twisted.ensureDeferred
async def test_classicIsForLoopbackUnlessAllowed(root, receiving):
    receiver = receiving("--classic-from=192.0.2.0/24")
    assert isinstance(fromHost(receiver, "127.0.0.1")[0], ClassicReceiver)
    assert isinstance(fromHost(receiver, "192.0.2.7")[0], ClassicReceiver)
    refusal, transport = fromHost(receiver, "198.51.100.1")
    assert isinstance(refusal, ClassicRefusal)
    refusal.makeConnection(transport)
    assert transport.value().startswith(b"forbidden: ")
    assert b"--classic-from" in transport.value()
    assert transport.disconnecting


@pytest_twisted.ensureDeferred
async def test_aStopLetsATransferEndAndSendsTheSilentAway(root):
    receiver = service(root)
    receiver.startService()
    silent, sender = await connect(receiver), await connect(receiver)
    sender.transport.write(b"a.bin")
    await bounded(sender.answer)
    sender.transport.write(b"first ")
    await until(lambda: receiver.stats().receivedBytes == 6)
    stopped = receiver.stopService()
    await bounded(silent.closed)
    assert not stopped.called
    sender.transport.write(b"second")
    sender.transport.loseWriteConnection()
    await bounded(stopped)
    await bounded(sender.closed)
    assert (root / "a.bin").read_bytes() == b"first second"


@pytest_twisted.ensureDeferred
async def test_startsAgain(root):
    receiver = service(root)
    for round_ in range(2):
        receiver.privilegedStartService()
        receiver.startService()
        assert await send(receiver, b"%d" % round_, b"x") == b"ok"
        await bounded(receiver.stopService())
    assert visible(root) == {b"0", b"1"}


async def leaveAtOnce(receiver):
    sender = await connect(receiver)
    sender.transport.loseConnection()
    await bounded(sender.closed)


async def leaveAfterName(receiver):
    sender = await connect(receiver)
    sender.transport.write(b"name")
    sender.transport.loseConnection()
    await bounded(sender.closed)


async def resetAfterAnswer(receiver):
    sender = await connect(receiver)
    sender.transport.write(b"name")
    await bounded(sender.answer)
    sender.reset()
    await bounded(sender.closed)


async def resetInTheMiddle(receiver):
    sender = await connect(receiver)
    sender.transport.write(b"name")
    await bounded(sender.answer)
    sender.transport.write(b"x" * 5000)
    await pause(0.01)
    sender.reset()
    await bounded(sender.closed)


async def refusedName(receiver):
    await send(receiver, b"a/b")


@pytest.mark.parametrize(
    "visit", [leaveAtOnce, leaveAfterName, resetAfterAnswer, resetInTheMiddle, refusedName]
)
@pytest_twisted.ensureDeferred
async def test_manyVisitorsLeakNothing(root, receiving, visit):
    receiver = receiving()
    await visit(receiver)
    await until(lambda: receiver.listening.stats().connections == 0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(6):
        await gatherResults([Deferred.fromCoroutine(visit(receiver)) for _ in range(50)])
    await until(lambda: receiver.listening.stats().connections == 0)
    await until(lambda: receiver.stats().active == 0)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    await until(lambda: receiver.listening.stats().accepted == 301)
    assert visible(root) == set()
    await until(lambda: leftPartials(root) == [])
    assert await send(receiver, b"still here", b"1") == b"ok"


def test_openListenersWantToKnowWhoMaySend(root):
    with pytest.raises(usage.UsageError, match="--allow"):
        service(root, "--listen=tcp:0")
    with pytest.raises(usage.UsageError, match="--quota"):
        service(root, "--listen=tcp:0", "--allow=any")
    assert service(root, "--listen=tcp:0", "--allow=any", "--quota=1G")
    assert service(root, "--listen=tcp:0", "--allow=192.0.2.0/24")
    assert service(root, "--listen=unix:/run/x.sock")
