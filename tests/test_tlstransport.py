"""
TLS in pieces keeps the contract of Twisted's: each test is run on both.

The other side is OpenSSL itself, in memory, so every byte that it sends is in the hand of the
test.
"""

import random

import pytest
import trustme
from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHandshakeListener, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    PrivateCertificate,
    TLSVersion,
    trustRootFromCertificates,
)
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from connpool.tlstransport import PIECE_BYTES, READ_BYTES, BulkTLSTransport, TLSClientEndpoint

RECORD = 1 << 14
KINDS = pytest.mark.parametrize("kind", [BufferingTLSTransport, BulkTLSTransport])
VERSIONS = pytest.mark.parametrize("version", [TLSVersion.TLSv1_2, TLSVersion.TLSv1_3])


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def issued(authority, name):
    certificate = authority.issue_cert(name)
    pem = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    return PrivateCertificate.loadPEM(pem + certificate.private_key_pem.bytes())


@implementer(IHandshakeListener)
class Told(Protocol):
    """
    Keeps what it is told.
    """

    def __init__(self):
        self.pieces = []
        self.shaken = False
        self.lost = None
        self.onData = lambda: None

    @property
    def data(self):
        return b"".join(self.pieces)

    def handshakeCompleted(self):
        self.shaken = True

    def dataReceived(self, data):
        self.pieces.append(data)
        self.onData()

    def connectionLost(self, reason):
        self.lost = reason.value


class Below(StringTransport):
    """
    The transport below; as real ones do, it tells of its end on a later turn.
    """

    bufferSize = 1 << 16
    writes = 0
    over = None

    def write(self, data):
        self.writes += 1
        super().write(data)

    def loseConnection(self):
        self.over = self.over or ConnectionDone()

    def abortConnection(self):
        self.over = ConnectionAborted()


class World:
    """
    A server of C{kind}, and OpenSSL as its client.
    """

    def __init__(self, authority, kind, version, *, handshake=True, wants=False):
        own = issued(authority, "localhost")
        root = trustRootFromCertificates([Certificate.loadPEM(authority.cert_pem.bytes())])
        options = CertificateOptions(
            privateKey=own.privateKey.original,
            certificate=own.original,
            trustRoot=root if wants else None,
            lowerMaximumSecurityTo=version,
            insecurelyLowerMinimumTo=TLSVersion.TLSv1_2,
        )
        self.clock = Clock()
        self.app = Told()
        factory = TLSMemoryBIOFactory(
            options, False, Factory.forProtocol(lambda: self.app), self.clock
        )
        factory.protocol = kind
        self.tls = factory.buildProtocol(None)
        self.below = Below()
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if wants:
            mine = issued(authority, "me@example.org")
            context.use_certificate(mine.original)
            context.use_privatekey(mine.privateKey.original)
        self.peer = SSL.Connection(context, None)
        self.peer.set_connect_state()
        self.heard = b""
        self.tls.makeConnection(self.below)
        if handshake:
            self.pump()
            assert self.app.shaken

    def wire(self):
        """
        What the peer sends now.
        """
        data = b""
        try:
            while True:
                data += self.peer.bio_read(1 << 20)
        except SSL.WantReadError:
            return data

    def hear(self):
        """
        The peer reads what was sent to it.
        """
        if self.below.value():
            self.peer.bio_write(self.below.value())
            self.below.clear()
        try:
            self.peer.do_handshake()
            while True:
                self.heard += self.peer.recv(RECORD)
        except SSL.WantReadError:
            pass

    def pump(self, most=1 << 16):
        """
        Bytes go to and fro until there are none.
        """
        while True:
            self.hear()
            wire = self.wire()
            if not (wire or self.below.value()):
                return
            for at in range(0, len(wire), most):
                self.tls.dataReceived(wire[at : at + most])
            self.clock.advance(0)

    def end(self):
        """
        The transport below has ended; C{self.app.lost} says why.
        """
        self.tls.connectionLost(Failure(self.below.over))

    def say(self, data):
        self.peer.sendall(data)


@VERSIONS
@KINDS
def test_bytesGoBothWays(authority, kind, version):
    world = World(authority, kind, version)
    sizes = [1, RECORD, RECORD + 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 700_001]
    for size in sizes:
        data = random.Random(size).randbytes(size)
        world.app.pieces.clear()
        world.heard = b""
        world.say(data)
        world.tls.write(data)
        world.pump()
        assert world.app.data == data
        assert world.heard == data


@VERSIONS
@KINDS
def test_theWireIsCutAnywhere(authority, kind, version):
    world = World(authority, kind, version)
    data = random.Random(7).randbytes(3 * RECORD + 5)
    world.say(data)
    wire, at, pieces = world.wire(), 0, random.Random(8)
    while at < len(wire):
        # within a header, a record, and over several
        size = pieces.choice((1, 2, 7, 1000, RECORD))
        world.tls.dataReceived(wire[at : at + size])
        at += size
    assert world.app.data == data


@KINDS
def test_manySmallWritesKeepTheirOrder(authority, kind):
    world = World(authority, kind, TLSVersion.TLSv1_3)
    for number in range(3000):
        world.tls.write(b"%d\n" % number)
    world.tls.writeSequence([b"last", b"\n"])
    world.tls.loseConnection()
    with pytest.raises(SSL.ZeroReturnError):
        world.pump()
    assert world.heard == b"".join(b"%d\n" % number for number in range(3000)) + b"last\n"


@KINDS
def test_aProperEndComesAfterWhatWasSaid(authority, kind):
    world = World(authority, kind, TLSVersion.TLSv1_3)
    world.say(b"all of it")
    world.peer.shutdown()
    world.tls.dataReceived(world.wire())
    assert world.app.data == b"all of it"
    world.end()
    assert isinstance(world.app.lost, ConnectionDone)


@KINDS
def test_aFINWithoutCloseNotifyIsNoProperEnd(authority, kind):
    world = World(authority, kind, TLSVersion.TLSv1_3)
    world.say(bytes(3 * RECORD))
    # the last record is not whole
    world.tls.dataReceived(world.wire()[:-1])
    world.below.loseConnection()
    world.end()
    assert world.app.data == bytes(2 * RECORD)
    assert type(world.app.lost) is ConnectionLost


@KINDS
def test_aDamagedRecordEndsTheConnectionAfterTheOnesBefore(authority, kind):
    world = World(authority, kind, TLSVersion.TLSv1_3)
    world.say(bytes(2 * RECORD))
    wire = bytearray(world.wire())
    wire[-1] ^= 1
    world.tls.dataReceived(bytes(wire))
    assert world.app.data == bytes(RECORD)
    world.end()
    assert isinstance(world.app.lost, SSL.Error)
    # and the peer is told
    with pytest.raises(SSL.Error, match="bad record mac"):
        world.hear()


@pytest.mark.parametrize("wire", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", bytes(9)])
@KINDS
def test_garbageInPlaceOfAHandshake(authority, kind, wire):
    world = World(authority, kind, TLSVersion.TLSv1_3, handshake=False)
    world.tls.dataReceived(wire)
    assert not world.app.shaken
    world.end()
    assert isinstance(world.app.lost, SSL.Error)


@KINDS
def test_halfAHandshake(authority, kind):
    world = World(authority, kind, TLSVersion.TLSv1_3, handshake=False)
    world.hear()
    world.tls.dataReceived(world.wire()[:-1])
    world.below.loseConnection()
    world.end()
    assert not world.app.shaken
    assert type(world.app.lost) is ConnectionLost


@KINDS
def test_writesBeforeTheHandshakeWaitForIt(authority, kind):
    world = World(authority, kind, TLSVersion.TLSv1_3, handshake=False)
    data = random.Random(1).randbytes(300_000)
    world.tls.write(data)
    # byte by byte, as a slow client does
    world.pump(most=1)
    assert world.heard == data


@KINDS
def test_nothingIsDeliveredAfterAnAbort(authority, kind):
    world = World(authority, kind, TLSVersion.TLSv1_3)
    world.app.onData = world.tls.abortConnection
    world.say(bytes(1 << 20))
    wire = world.wire()
    world.tls.dataReceived(wire[:600_000])
    assert len(world.app.pieces) == 1
    world.end()
    assert isinstance(world.app.lost, ConnectionLost)


@KINDS
def test_aPeerThatClosesIsAnsweredWhereTheProtocolClosesToo(authority, kind):
    world = World(authority, kind, TLSVersion.TLSv1_3)
    world.app.onData = world.tls.loseConnection
    world.say(b"bye")
    world.peer.shutdown()
    world.tls.dataReceived(world.wire())
    world.end()
    assert isinstance(world.app.lost, ConnectionDone)
    with pytest.raises(SSL.ZeroReturnError):
        world.hear()


class Counting:
    """
    A producer that notes what it is told.
    """

    def __init__(self):
        self.told = []

    def pauseProducing(self):
        self.told.append("pause")

    def resumeProducing(self):
        self.told.append("resume")

    def stopProducing(self):
        self.told.append("stop")


@KINDS
def test_producers(authority, kind):
    world = World(authority, kind, TLSVersion.TLSv1_3)
    producer = Counting()
    world.tls.registerProducer(producer, True)
    world.below.producer.pauseProducing()
    world.below.producer.resumeProducing()
    assert producer.told == ["pause", "resume"]
    # the close waits for the producer
    world.tls.loseConnection()
    world.pump()
    world.tls.write(bytes(100_000))
    world.tls.unregisterProducer()
    with pytest.raises(SSL.ZeroReturnError):
        world.pump()
    assert world.heard == bytes(100_000)


def test_aProducersLastSmallWriteIsNotLost(authority):
    """
    Twisted's loses it: it is still being gathered when the close begins.
    """
    world = World(authority, BulkTLSTransport, TLSVersion.TLSv1_3)
    world.tls.registerProducer(Counting(), True)
    world.tls.loseConnection()
    world.tls.write(b"the rest")
    world.tls.unregisterProducer()
    with pytest.raises(SSL.ZeroReturnError):
        world.pump()
    assert world.heard == b"the rest"


@KINDS
def test_theClientsCertificate(authority, kind):
    world = World(authority, kind, TLSVersion.TLSv1_3, wants=True)
    # a client of TLS 1.3 is done before the server has looked at its certificate
    subject = world.tls.getPeerCertificate().to_cryptography()
    assert "me@example.org" in str(subject.extensions)


def test_manyRecordsAreOneCall(authority):
    """
    The guard of the path that files take: calls, and no times.
    """
    world = World(authority, BulkTLSTransport, TLSVersion.TLSv1_3)
    size = 8 * PIECE_BYTES
    world.below.writes = 0
    world.tls.write(bytes(size))
    # a write below for each piece, not for each record
    assert world.below.writes == 8
    world.hear()
    assert world.heard == bytes(size)
    world.say(bytes(size))
    wire = world.wire()
    world.app.pieces.clear()
    for at in range(0, len(wire), READ_BYTES):
        world.tls.dataReceived(wire[at : at + READ_BYTES])
    assert world.app.data == bytes(size)
    # nor does each have a call of the protocol
    assert len(world.app.pieces) == -(-len(wire) // READ_BYTES)


def test_recordsOfOneByteAreOneCall(authority):
    world = World(authority, BulkTLSTransport, TLSVersion.TLSv1_3)
    for _ in range(2000):
        world.say(b"x")
    world.tls.dataReceived(world.wire())
    assert world.app.pieces == [b"x" * 2000]


def test_theReadsBelowAreBounded(authority):
    world = World(authority, BulkTLSTransport, TLSVersion.TLSv1_3)
    assert world.tls.bufferSize == 1 << 16
    world.tls.bufferSize = 1 << 20
    assert world.below.bufferSize == world.tls.bufferSize == READ_BYTES
    world.tls.bufferSize = 1 << 10
    assert world.below.bufferSize == 1 << 10


def test_theEndpoint():
    endpoint = TLSClientEndpoint(Clock(), None, "here")
    verifyObject(IStreamClientEndpoint, endpoint)
    assert endpoint.over("there").endpoint == "there"
