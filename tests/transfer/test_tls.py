"""
The native protocol within TLS: no descriptor is borrowed, nothing is plain.
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
    wrapClientTLS,
)

from connpool.proxyprotocol import SecuredEndpoint, ServerCertificate
from connpool.services.access import Access, Gate
from connpool.tlstransport import TLSClientEndpoint
from connpool.transfer import Credentials, MemoryStore, NativeReceiver, sendFiles
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.sniffer import Choice, SnifferFactory
from connpool.transfer.send.keys import SenderKeys
from connpool.transfer.wire import link
from tests.helpers.waiting import bounded, pause
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
        native = NativeReceiver(reactor, Reception(self.store, reactor), **receiver)
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


@pytest.mark.parametrize(
    ("sender", "receiver"), [(ours, ours), (ours, theirs), (theirs, ours)], ids=lambda f: f.__name__
)
@pytest_twisted.ensureDeferred
async def test_withinTLS(authority, tmp_path, monkeypatch, sender, receiver):
    def never(*_):
        raise AssertionError("a TLS socket was borrowed")

    monkeypatch.setattr(link, "BorrowedReader", never)
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
    finally:
        await server.stop()
