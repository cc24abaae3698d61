"""
The native protocol within TLS: our own lends the socket below it, that of others does not.
"""

import random

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
    wrapClientTLS,
)
from twisted.internet.protocol import Factory, Protocol

from connpool.proxyprotocol import SecuredEndpoint, ServerCertificate
from connpool.services.access import Access, Gate
from connpool.tlstransport import BulkTLSTransport, TLSClientEndpoint
from connpool.transfer import Credentials, MemoryStore, NativeReceiver, sendFiles
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.sniffer import Choice, SnifferFactory
from connpool.transfer.send.client import Retry
from connpool.transfer.send.keys import SenderKeys
from tests.helpers.waiting import bounded, pause, until
from tests.transfer.world import Passwords


@pytest.fixture
def authority():
    return trustme.CA()


def theirs(own, top):
    return SSL4ServerEndpoint(
        reactor, 0, ssl.PrivateCertificate.loadPEM(own).options(), interface="127.0.0.1"
    )


def ours(own, top):
    (top / "own.pem").write_bytes(own)
    certificate = ServerCertificate(str(top / "own.pem"), str(top / "own.pem"))
    plain = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    return SecuredEndpoint(reactor, plain, certificate)


class Server:
    def __init__(self, authority, secure, top, **receiver):
        self.store = MemoryStore()
        certificate = authority.issue_cert("localhost")
        pem = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        own = pem + certificate.private_key_pem.bytes()
        self.reception = Reception(self.store, reactor)
        native = NativeReceiver(reactor, self.reception, **receiver)
        sniffers = SnifferFactory(reactor, [Choice(native.signature, native.build)])
        self.gate = Gate(sniffers, Access(), "test")
        self.listening = secure(own, top).listen(self.gate)

    async def start(self):
        self.port = await self.listening
        return self.port.getHost().port

    async def stop(self):
        self.gate.abort()
        await bounded(Deferred.fromCoroutine(self._stop()))

    async def _stop(self):
        await self.port.stopListening()
        await self.gate.drain()
        self.reception.hurry()
        await pause(0.02)  # what TLS still has to say, on a later turn


def client(authority, port, secure):
    pem = authority.cert_pem.bytes()
    options = ssl.optionsForClientTLS(
        "localhost", trustRoot=ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(pem)])
    )
    plain = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    if secure is ours:
        return TLSClientEndpoint(reactor, options, plain)
    return wrapClientTLS(options, plain)


def around(monkeypatch, name, called):
    method = getattr(BulkTLSTransport, name)

    def lend(*arguments):
        called()
        return method(*arguments)

    monkeypatch.setattr(BulkTLSTransport, name, lend)


@pytest.mark.parametrize(
    ("sender", "receiver"), [(ours, ours), (ours, theirs), (theirs, ours)], ids=lambda f: f.__name__
)
@pytest_twisted.ensureDeferred
async def test_withinTLS(authority, tmp_path, monkeypatch, sender, receiver):
    lent = set()
    for end, owner in ((sender, "lendWriter"), (receiver, "lendReader")):
        around(monkeypatch, owner, lambda end=end: lent.add(end))
    server = Server(authority, receiver, tmp_path, authenticator=Passwords(b"right"))
    port = await server.start()
    data = random.Random(5).randbytes((9 << 20) + 77)
    (tmp_path / "large").write_bytes(data)
    (tmp_path / "small").write_bytes(data[:5000])
    try:
        for secret, code in ((b"right", 0), (b"wrong", 6)):
            report = await bounded(
                sendFiles(
                    reactor,
                    client(authority, port, sender),
                    [str(tmp_path / "large"), str(tmp_path / "small")],
                    durability="none",
                    credentials=Credentials("me", secret),
                    keys=SenderKeys(tmp_path / "state"),
                )
            )
            assert report.exitCode == code
        assert server.store.files == {"large": data, "small": data[:5000]}
        assert lent == {sender, receiver} - {theirs}
    finally:
        await server.stop()


class Passing(Protocol):
    """
    One end of a relay that passes a number of bytes on to the receiver, and then ends both
    connections.
    """

    other = None

    def __init__(self, relay):
        self.relay = relay

    def connectionMade(self):
        self.relay.ends.append(self)

    def dataReceived(self, data):
        self.other.transport.write(data)

    def connectionLost(self, reason):
        self.relay.ends.remove(self)
        if self.other is not None:
            self.other.transport.loseConnection()


class FromSender(Passing):
    def connectionMade(self):
        super().connectionMade()
        self.transport.pauseProducing()
        self.relay.connect().addCallback(self.go)

    def go(self, other):
        self.other, other.other = other, self
        self.transport.resumeProducing()

    def dataReceived(self, data):
        relay = self.relay
        room, relay.room = relay.room, relay.room - len(data)
        if relay.room >= 0:
            super().dataReceived(data)
            return
        relay.room = float("inf")
        self.other.transport.write(data[:room])
        for end in (self.other.transport, self.transport):
            (end.loseConnection if relay.how == "fin" else end.abortConnection)()


class Relay(Factory):
    noisy = False
    room, how = float("inf"), "fin"

    def __init__(self, port):
        self._to = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        self.ends = []

    def connect(self):
        return connectProtocol(self._to, Passing(self))

    def buildProtocol(self, addr):
        return FromSender(self)


async def cutWithinTLS(authority, top, count):
    """
    Whatever of the encrypted bytes comes, nothing but the whole file is published; what was
    cut goes on with the next connection.
    """
    size, chance = 1_400_000, random.Random(11)
    server = Server(authority, ours, top)
    relay = Relay(await server.start())
    port = reactor.listenTCP(0, relay, interface="127.0.0.1")
    keys = SenderKeys(top / "state")
    try:
        for number in range(count):
            data = chance.randbytes(size)
            (top / f"{number}").write_bytes(data)
            # within the handshake too
            most = size if number % 4 else 3000
            relay.room, relay.how = chance.randrange(1, most), chance.choice(["fin", "rst"])
            whole = (0, {f"{number}": data})
            # a sender that got forward connects again by itself
            for expected in ([(7, {}), whole], [whole]):
                report = await bounded(
                    sendFiles(
                        reactor,
                        client(authority, port.getHost().port, ours),
                        [str(top / f"{number}")],
                        durability="none",
                        retry=Retry(attempts=1),
                        keys=keys,
                    )
                )
                assert (report.exitCode, server.store.files) in expected
                relay.room = float("inf")
            server.store.files.clear()
    finally:
        await port.stopListening()
        await server.stop()
        await until(lambda: not relay.ends)


@pytest_twisted.ensureDeferred
async def test_cutsWithinTLS(authority, tmp_path):
    await cutWithinTLS(authority, tmp_path, 12)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest_twisted.ensureDeferred
async def test_manyCutsWithinTLS(authority, tmp_path):
    await cutWithinTLS(authority, tmp_path, 500)
