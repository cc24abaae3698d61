"""
The socket below TLS, lent for a run: what is read and written past the transport, and what is
left for it.
"""

import random
import shutil
import socket
import struct

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost, ProcessDone
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.ssl import TLSVersion

from connpool.proxyprotocol import SecuredEndpoint, ServerCertificate
from connpool.tlslending import RECORD_BYTES, LentReader
from connpool.tlstransport import BulkTLSTransport
from connpool.transfer.wire.borrowed import BorrowedReader
from tests.helpers.waiting import pause, until
from tests.test_tlstransport import Counting, World, authority

__all__ = ["authority"]

TLS13 = TLSVersion.TLSv1_3


class Lent(World):
    """
    A server on one end of a socket pair; the test holds the other end.
    """

    def __init__(self, authority, version=TLS13, **keywords):
        super().__init__(authority, BulkTLSTransport, version, **keywords)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.line = socket.create_connection(listening.getsockname(), 20)
            self.handle, _ = listening.accept()
        self.handle.setblocking(False)
        self.below.getHandle = lambda: self.handle
        self.ends = []

    def read(self, size):
        """
        All that can be read now, C{size} bytes at most.
        """
        view, at = memoryview(bytearray(size)), 0
        while at < size:
            try:
                count = self.reader.recv_into(view[at:])
            except BlockingIOError:
                break
            if not count:
                break
            at += count
        return bytes(view[:at])

    def lend(self):
        self.reader = self.tls.lendReader(self.clock)
        self.ends.append(self.reader)

    def lendWriter(self):
        writer = self.tls.lendWriter()
        self.ends.append(writer)
        return writer

    def giveBack(self):
        self.reader.close()
        self.clock.advance(0)

    def close(self):
        for end in self.ends:
            end.close()
        self.line.close()
        self.handle.close()


@pytest.fixture
def lent(authority):
    world = Lent(authority)
    yield world
    world.close()


def test_aRunIsReadHoweverTheWireIsCut(lent):
    data = random.Random(3).randbytes(3 * RECORD_BYTES + 100)
    lent.say(data)
    wire, at, pieces = lent.wire(), 0, random.Random(4)
    lent.lend()
    came = b""
    while at < len(wire):
        size = pieces.choice((1, 4, 900, RECORD_BYTES))
        lent.line.sendall(wire[at : at + size])
        at += size
        came += lent.read(len(data) - len(came))
    assert came == data
    assert lent.app.data == b""


def test_whatComesBehindTheRunIsTheTransports(lent):
    """
    In one record with the end of the run, and in whole and partial records after it.
    """
    lent.say(b"run" + b"behind")
    lent.say(b" it")
    lent.say(b", and later")
    wire = lent.wire()
    lent.lend()
    lent.line.sendall(wire[:-3])
    assert lent.read(3) == b"run"
    assert lent.app.data == b""
    lent.giveBack()
    assert lent.app.data == b"behind it"
    lent.tls.dataReceived(wire[-3:])
    assert lent.app.data == b"behind it, and later"


def test_whatWasReadBeforeTheRunWasLent(lent):
    """
    The protocol borrows while it is told of the bytes before the run: the transport delivers
    no more of what it has got.
    """
    lent.app.onData = lent.lend
    data = random.Random(5).randbytes(2 << 20)
    lent.say(data)
    lent.tls.dataReceived(lent.wire())
    first = len(lent.app.data)
    assert 0 < first < len(data)
    assert lent.reader.ahead
    assert lent.app.data + lent.read(len(data) - first) == data
    lent.app.onData = lambda: None
    lent.giveBack()
    assert len(lent.app.data) == first


def test_lessIsWaitedForThanMayBeHereAlready(lent):
    lent.lend()
    for asked in (1, RECORD_BYTES, 256 * 1024):
        lent.reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, asked)
        got = lent.handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        assert got == max(1, asked - RECORD_BYTES - 261)


def test_aProperEndWithinTheRun(lent):
    lent.say(b"a part")
    lent.peer.shutdown()
    lent.lend()
    lent.line.sendall(lent.wire())
    assert lent.read(100) == b"a part"
    assert lent.reader.recv_into(memoryview(bytearray(100))) == 0
    lent.reader.close()
    assert not lent.tls.lendable
    lent.giveBack()
    lent.end()
    assert isinstance(lent.app.lost, ConnectionDone)


def test_anEndWithoutWarningIsNone(lent):
    lent.say(b"a part")
    lent.lend()
    lent.line.sendall(lent.wire())
    lent.line.close()
    assert lent.read(100) == b"a part"
    assert lent.reader.recv_into(memoryview(bytearray(100))) == 0
    lent.giveBack()
    # the transport below reads the end itself
    assert lent.handle.recv(1) == b""
    lent.below.loseConnection()
    lent.end()
    assert type(lent.app.lost) is ConnectionLost


def test_aResetIsAnError(lent):
    lent.lend()
    lent.line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    lent.line.close()
    with pytest.raises(ConnectionResetError):
        lent.read(100)


@pytest.mark.parametrize(
    ("damage", "alert"),
    [
        (lambda wire: wire[:-1] + bytes([wire[-1] ^ 1]), "bad record mac"),
        # longer than a record may be (RFC 8446, section 5.2)
        (lambda wire: b"\x17\x03\x03\xff\xff" + wire, "record overflow"),
        (lambda wire: b"GET / HTTP/1.1\r\n\r\n", "unexpected message|protocol version|decode"),
        # a record with nothing in it
        (lambda wire: b"\x17\x03\x03\x00\x00" + wire, "alert"),
    ],
    ids=["damaged", "too long", "plain", "empty"],
)
def test_aRecordThatIsWrong(lent, damage, alert):
    """
    What came before it is read, the peer is told, and the reason is the one OpenSSL gave.
    """
    lent.say(b"good")
    lent.lend()
    lent.line.sendall(lent.wire())
    assert lent.read(100) == b"good"
    lent.say(b"bad")
    lent.line.sendall(damage(lent.wire()))
    assert lent.reader.recv_into(memoryview(bytearray(100))) == 0
    lent.giveBack()
    assert lent.app.data == b""
    lent.end()
    assert isinstance(lent.app.lost, SSL.Error)
    assert lent.app.lost.args[0]
    with pytest.raises(SSL.Error, match=alert):
        lent.hear()


def test_recordsWithoutContentDoNotKeepTheReader(lent):
    """
    One read of the socket for each call, however little it brings.
    """
    lent.lend()
    lent.line.sendall(b"\x17\x03\x03\x40")
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            lent.reader.recv_into(memoryview(bytearray(100)))
    assert not lent.reader.ahead


def test_theConnectionEndsWhileItIsLent(lent):
    lent.say(b"here already")
    lent.lend()
    lent.line.sendall(lent.wire())
    assert lent.read(4) == b"here"
    lent.below.abortConnection()
    lent.end()
    assert lent.app.data == b" already"
    lent.giveBack()
    assert lent.app.data == b" already"
    assert lent.clock.getDelayedCalls() == []


def heard(world):
    """
    What the peer reads from the line.
    """
    world.line.setblocking(False)
    while True:
        try:
            wire = world.line.recv(1 << 20)
        except BlockingIOError:
            break
        world.peer.bio_write(wire)
    world.hear()
    return world.heard


def sendAll(world, writer, data):
    at, blocked = 0, 0
    while at < len(data):
        try:
            at += writer.send(memoryview(data)[at:])
        except BlockingIOError:
            blocked += 1
            heard(world)
    return blocked


def test_aRunIsWritten(lent):
    writer = lent.lendWriter()
    data = random.Random(6).randbytes((9 << 20) + 5)
    assert sendAll(lent, writer, data), "the peer read as fast as we wrote"
    writer.close()
    assert heard(lent) == data
    assert lent.below.value() == b""
    lent.tls.write(b"after it")
    lent.clock.advance(0)
    lent.hear()
    assert lent.heard == data + b"after it"


def test_theRestOfARecordGoesThroughTheTransport(lent):
    """
    A run that is given up in its middle leaves a stream that can be read.
    """
    writer = lent.lendWriter()
    data = bytes(32 << 20)
    at = 0
    with pytest.raises(BlockingIOError):
        while True:
            at += writer.send(memoryview(data)[at:])
    writer.close()
    lent.tls.write(b"the end")
    lent.clock.advance(0)
    heard(lent)
    lent.hear()
    assert lent.heard.endswith(b"\0the end")


def test_whatOpenSSLSaysWaitsForTheRecordUnderWay(lent):
    """
    The other direction goes on, and its alerts do not come between the bytes of a record.
    """
    writer = lent.lendWriter()
    with pytest.raises(BlockingIOError):
        while True:
            writer.send(memoryview(bytes(1 << 20)))
    lent.say(b"this is read")
    lent.tls.dataReceived(lent.wire())
    assert lent.app.data == b"this is read"
    lent.tls.dataReceived(b"\x17\x03\x03\xff\xff")
    assert lent.below.value() == b""
    writer.close()
    with pytest.raises(SSL.Error, match="record overflow"):
        heard(lent)
    assert set(lent.heard) == {0}


def test_aWriterWhoseTLSHasEnded(lent):
    writer = lent.lendWriter()
    lent.tls.getHandle().shutdown()
    with pytest.raises(ConnectionAbortedError):
        writer.send(memoryview(b"too late"))


def test_writeOutWaitsForAllThatWasWritten(lent):
    """
    What the transport below asks for when all is written; the producer is told as before then.
    """
    told = []
    producer = Counting()
    lent.tls.registerProducer(producer, True)
    lent.tls.write(b"small, gathered ")
    lent.tls.writeOut(b"header", lambda: told.append(True))
    assert lent.below.value()
    assert not told
    assert not lent.below.streaming
    lent.below.producer.resumeProducing()
    assert told
    assert lent.below.streaming
    lent.below.producer.pauseProducing()
    assert producer.told == ["pause"]
    lent.pump()
    assert lent.heard == b"small, gathered header"


def test_aProducerHearsOfTheEndDuringWriteOut(lent):
    producer = Counting()
    lent.tls.registerProducer(producer, True)
    lent.tls.writeOut(b"header", lambda: None)
    lent.below.producer.stopProducing()
    assert producer.told == ["stop"]


def test_whatIsLent(authority):
    """
    TLS 1.3 alone, when its handshake is over, on a socket alone, until its end.
    """
    early = Lent(authority, handshake=False)
    assert not early.tls.lendable
    early.pump()
    assert early.tls.lendable
    early.tls.loseConnection()
    assert not early.tls.lendable
    old = Lent(authority, TLSVersion.TLSv1_2)
    assert not old.tls.lendable
    inMemory = World(authority, BulkTLSTransport, TLS13)
    assert not inMemory.tls.lendable
    within = Lent(authority)
    within.below.getHandle = within.tls.getHandle
    assert not within.tls.lendable
    for world in (early, old, within):
        world.close()


class Reading(Protocol):
    """
    Borrows its first bytes, up to a number of them; echoes what comes after.
    """

    content = after = b""
    wanted = 600_000
    reader = None
    lost = None

    def connectionMade(self):
        self.transport.bufferSize = 1

    def dataReceived(self, data):
        if not self.content:
            self.content = data
            self.wanted -= len(data)
            self.transport.pauseProducing()
            self.reader = BorrowedReader(reactor, self.transport, self)
            self.reader.steer(True)
        else:
            self.after += data
            self.transport.write(b"heard " + data)

    def borrowed(self, view, done):
        self.content += view
        self.wanted -= len(view)
        done()
        if not self.wanted:
            self.reader.close()
            self.transport.resumeProducing()

    def connectionLost(self, reason):
        self.lost = reason


class Client(ProcessProtocol):
    """
    C{openssl s_client}, whose line "K" changes its keys and asks the server to change its own.
    """

    output = b""
    ended = None

    def outReceived(self, data):
        self.output += data

    errReceived = outReceived

    def processEnded(self, reason):
        self.ended = reason


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest_twisted.ensureDeferred
async def test_newKeysWithinTheRun(authority, tmp_path):
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    certificate = ServerCertificate(str(tmp_path / "own.pem"), str(tmp_path / "own.pem"))
    server = Reading()
    plain = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    listening = SecuredEndpoint(reactor, plain, certificate)
    port = await listening.listen(Factory.forProtocol(lambda: server))
    client = Client()
    place = f"127.0.0.1:{port.getHost().port}"
    command = ["openssl", "s_client", "-connect", place, "-tls1_3"]
    process = reactor.spawnProcess(client, shutil.which("openssl"), command, env={})
    try:
        process.write(b"first\n")
        await until(lambda: server.content)
        data = b"x" * 400_000 + b"\n"
        process.write(data)
        await until(lambda: len(server.content) == 6 + len(data))
        for _ in range(3):
            before = client.output.count(b"KEYUPDATE")
            process.write(b"K\n")
            await until(lambda before=before: client.output.count(b"KEYUPDATE") > before)
        await pause(0.05)
        data += b"y" * (server.wanted - 1) + b"\n"
        process.write(data[400_001:])
        await until(lambda: not server.wanted)
        assert server.content == b"first\n" + data
        process.write(b"after\n")
        await until(lambda: b"heard after" in client.output)
        assert server.after == b"after\n"
    finally:
        process.loseConnection()
        process.signalProcess("KILL")
        await until(lambda: client.ended and server.lost)
        await port.stopListening()
    assert not client.ended.check(ProcessDone)


class Line:
    """
    A socket.

    @ivar coming: how many bytes its reads give, or the errors.
    """

    def __init__(self, *coming):
        self.coming = list(coming)

    def dup(self):
        return self

    def recv_into(self, view):
        found = self.coming.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


class Decrypting:
    """
    A connection of OpenSSL, to which bytes are what they decrypt to, and its lender.
    """

    held = answers = 0

    def bio_write(self, data):
        self.held += len(data)

    def recv_into(self, view):
        if not self.held:
            raise SSL.WantReadError
        count = min(self.held, len(view))
        self.held -= count
        return count

    def answer(self):
        self.answers += 1


def test_aReadGoesOnUntilThereIsNoMore():
    piece, buffer = 16 * RECORD_BYTES, memoryview(bytearray(1 << 20))
    # a full buffer; a socket that has no more; one that had less than it could; its end
    for coming, count in (
        ([piece] * 5, 4 * piece),
        ([piece, BlockingIOError()], piece),
        ([piece, 1000, piece], piece + 1000),
        ([piece, 0], piece),
    ):
        decrypting = Decrypting()
        reader = LentReader(None, decrypting, decrypting, Line(*coming))
        assert reader.recv_into(buffer) == count
        assert decrypting.answers


def test_anErrorIsNotHeldBack():
    decrypting = Decrypting()
    line = Line(16 * RECORD_BYTES, ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        LentReader(None, decrypting, decrypting, line).recv_into(memoryview(bytearray(1 << 20)))
