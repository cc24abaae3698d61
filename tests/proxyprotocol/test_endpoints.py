"""
The endpoint strings, over real sockets on loopback.
"""

import os
import re
import socket
import ssl as pyssl

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor, ssl
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.endpoints import (
    clientFromString,
    connectProtocol,
    serverFromString,
    wrapClientTLS,
)
from twisted.internet.interfaces import ISSLTransport, IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from zope.interface.verify import verifyObject

from connpool.addresses import Networks, UnknownAddress, clientOf, parseListen
from connpool.datagram import TCPEchoFactory
from connpool.errors import AddressError
from connpool.interfaces import ISingleUseEndpoint, IStatsSource
from connpool.proxyprotocol import ProxyHeaderEndpoint, ProxyStats, encodeV1, secured
from connpool.services.access import Access
from connpool.services.listening import ListeningService
from tests.helpers.protocols import Reader
from tests.helpers.waiting import bounded, pause, until

CLIENT = IPv4Address("TCP", "192.0.2.7", 40000)
SERVER = IPv4Address("TCP", "198.51.100.1", 443)


class Banner(Protocol):
    """
    Speaks first: says who it thinks the client is.
    """

    def connectionMade(self):
        self.factory.seen.append(self.transport)
        client = clientOf(self.transport)
        self.transport.write(f"hello {client.host} {client.local}\n".encode())

    def dataReceived(self, data):
        self.transport.write(data)


class Banners(Factory):
    protocol = Banner

    def __init__(self):
        self.addresses = []
        self.seen = []

    def buildProtocol(self, addr):
        self.addresses.append(addr)
        return super().buildProtocol(addr)


@pytest.fixture
def listen():
    """
    Open a server endpoint string; everything is closed at the end.
    """
    ports, factories = [], []

    async def open_(text, factory=None):
        endpoint = serverFromString(reactor, text)
        factories.append(factory or Banners())
        port = await bounded(endpoint.listen(factories[-1]))
        ports.append(port)
        return endpoint, port, factories[-1]

    yield open_
    for port in ports:
        pytest_twisted.blockon(bounded(port.stopListening()))


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    """
    A server certificate in files.
    """
    top = tmp_path_factory.mktemp("certificates")
    issued = authority.issue_cert("localhost")
    (top / "cert.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(top / "key.pem")
    authority.cert_pem.write_to_path(top / "ca.pem")
    return top


def keys(files):
    return f"certificate={files}/cert.pem:privateKey={files}/key.pem"


def tlsOptions(files, clientCertificate=None):
    root = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM((files / "ca.pem").read_bytes())])
    return ssl.optionsForClientTLS("localhost", root, clientCertificate)


async def end(*readers):
    for reader in readers:
        reader.transport.abortConnection()
        await until(lambda reader=reader: reader.lost)


def plain(port):
    return clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}")


@pytest_twisted.ensureDeferred
async def test_proxiedAndProxyHeader(listen):
    endpoint, port, factory = await listen(
        "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.0/8:timeout=10"
    )
    for version in (1, 2):
        caller = ProxyHeaderEndpoint(plain(port), CLIENT, SERVER, version)
        reader = await bounded(connectProtocol(caller, Reader()))
        reader.transport.write(b"x")
        await until(lambda reader=reader: reader.data == b"hello 192.0.2.7 False\nx")
        await end(reader)
    reader = await bounded(connectProtocol(ProxyHeaderEndpoint(plain(port)), Reader()))
    await until(lambda: reader.data == b"hello None False\n")
    await end(reader)
    assert factory.addresses == [CLIENT, CLIENT, UnknownAddress()]
    assert endpoint.stats() == ProxyStats(headers=3, local=1)
    assert factory.seen[0].proxyInfo.host.port == port.getHost().port


@pytest_twisted.ensureDeferred
async def test_theStringSaysWhoWeAre():
    """
    So that the lists of a server know us; a privilege of local clients it is not.
    """
    factory = Banners()
    service = ListeningService(
        reactor,
        [parseListen("proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1")],
        factory,
        access=Access(allow=Networks.parse(["127.0.0.1"])),
    )
    service.startService()
    port = service.getHost().port
    caller = clientFromString(reactor, f"proxyheader:tcp:127.0.0.1:{port}")
    reader = await bounded(connectProtocol(caller, Reader()))
    await until(lambda: reader.data)
    assert reader.data == b"hello 127.0.0.1 False\n"
    assert factory.addresses == [reader.transport.getHost()]
    assert factory.seen[0].getHost().port == port
    await end(reader)
    # LOCAL is nobody, whom no list knows
    local = ProxyHeaderEndpoint(clientFromString(reactor, f"tcp:127.0.0.1:{port}"))
    reader = await bounded(connectProtocol(local, Reader()))
    await until(lambda: reader.lost)
    assert reader.data == b""
    await bounded(service.stopService())


HOSTILE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PROXY TCP4 192.0.2.7\nFAKE 192.0.2.1 1 2\r\n",
    b"PROXY TCP4 \x1b[31mred 192.0.2.1 1 2\r\n",
    b"PROXY TCP4 \xff\xfe 192.0.2.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 x 2\r\n",
    b"PROXY TCP4  192.0.2.7 192.0.2.1 1 2\r\n",
    b"PROXY TCP4 ::1 ::1 1 2\r\n",
    b"PROXY UNKNOWN " + b"x" * 60_000 + b"\r\n",
    b"PROXY UNKNOWN " + b"x" * 60_000,
    b"garbagePROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff" + bytes(65535),
    b"\r\n\r\n\0\r\nQUIT\n\x21\x13\0\0",
    b"\r\n\r\n\0\r\nQUIT\n\x2f\x11\0\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x01x",
    b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\x03\x04\0\x09",
]


@pytest.mark.parametrize("dribbled", [False, True])
@pytest_twisted.ensureDeferred
async def test_hostilePeers(listen, dribbled):
    """
    Each is disconnected and counted, nothing is built, nothing is logged as
    an error (which would fail the test), also where a good header follows.
    """
    endpoint, port, factory = await listen(
        "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1:timeout=10"
    )
    for data in HOSTILE:
        reader = await bounded(connectProtocol(plain(port), Reader()))
        reader.transport.setTcpNoDelay(1)
        if dribbled:
            reader.transport.write(data[:14])
            await pause(0.01)
            reader.transport.write(data[14:])
        else:
            reader.transport.write(data)
        reader.transport.write(encodeV1(CLIENT, SERVER))
        await until(lambda reader=reader: reader.lost)
        assert reader.data == b""
    stats = endpoint.stats()
    assert stats.missing + stats.malformed == len(HOSTILE)
    assert factory.addresses == []


def test_interfaces():
    endpoint = serverFromString(reactor, "proxied:tcp:0:trusted=any")
    assert verifyObject(IStreamServerEndpoint, endpoint)
    assert verifyObject(IStatsSource, endpoint)
    assert endpoint.stats() == ProxyStats()
    caller = clientFromString(reactor, "proxyheader:tcp:localhost:1")
    assert verifyObject(IStreamClientEndpoint, caller)
    assert ISingleUseEndpoint.providedBy(caller)


@pytest_twisted.ensureDeferred
async def test_unixSockets(listen, tmp_path):
    path = tmp_path / "s"
    _, _, factory = await listen(f"proxied:unix:{path}:trusted=unix")
    caller = ProxyHeaderEndpoint(clientFromString(reactor, f"unix:{path}"), CLIENT, SERVER)
    reader = await bounded(connectProtocol(caller, Reader()))
    await until(lambda: reader.data)
    assert factory.addresses == [CLIENT]
    assert isinstance(factory.seen[0].proxyInfo.peer, UNIXAddress)
    await end(reader)


@pytest_twisted.ensureDeferred
async def test_strangersAreClosed(listen):
    endpoint, port, factory = await listen("proxied:tcp:0:interface=127.0.0.1:trusted=192.0.2.1")
    reader = await bounded(connectProtocol(plain(port), Reader()))
    reader.transport.write(encodeV1(CLIENT, SERVER))
    await until(lambda: reader.lost)
    assert reader.data == b""
    assert factory.addresses == []
    assert endpoint.stats().untrusted == 1


@pytest_twisted.ensureDeferred
async def test_headerBeforeTLS(listen, files):
    _, port, factory = await listen(
        f"secured:proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1:{keys(files)}"
    )
    caller = wrapClientTLS(
        tlsOptions(files), ProxyHeaderEndpoint(plain(port), CLIENT, SERVER), reactor
    )
    reader = await bounded(connectProtocol(caller, Reader()))
    reader.transport.write(b"x")
    await until(lambda: reader.data == b"hello 192.0.2.7 False\nx")
    assert factory.addresses == [CLIENT]
    assert factory.seen[0].proxyInfo.peer.host == "127.0.0.1"
    await end(reader)


class Farewell(Protocol):
    """
    Says much, and closes.
    """

    def connectionMade(self):
        self.factory.transport = self.transport
        self.transport.write(bytes(20_000_000) + b"end")
        self.transport.loseConnection()


@pytest.mark.parametrize("header", ["", "proxied:"])
@pytest_twisted.ensureDeferred
async def test_whoDoesNotCloseItsTLSHoldsNoConnection(files, monkeypatch, header):
    """
    And what was to be written to it is, however slowly it reads.
    """
    monkeypatch.setattr(secured, "LAST_WORD_SECONDS", 0.2)
    trusted = ":trusted=127.0.0.1:policy=use" if header else ""
    service = ListeningService(
        reactor,
        [parseListen(f"secured:{header}tcp:0:interface=127.0.0.1:{keys(files)}{trusted}")],
        Factory.forProtocol(Farewell),
    )
    service.startService()
    context = pyssl.create_default_context(cafile=files / "ca.pem")

    def connect():
        plain = socket.create_connection(("127.0.0.1", service.getHost().port), 20)
        return context.wrap_socket(plain, server_hostname="localhost")

    with await bounded(deferToThread(connect)) as client:
        await until(lambda: service.stats().connections)
        await pause(0.5)
        assert service.stats().connections == 1

        def read():
            data = b""
            while not data.endswith(b"end"):
                data += client.recv(1 << 20)
            return len(data)

        assert await bounded(deferToThread(read)) == 20_000_003
        # it knows that the server closed, and says nothing
        await until(lambda: not service.stats().connections)
    await bounded(service.stopService())


@pytest_twisted.ensureDeferred
async def test_headerInsideTLS(listen, files):
    _, port, factory = await listen(
        f"proxied:secured:tcp:0:interface=127.0.0.1:trusted=127.0.0.1:{keys(files)}"
    )
    caller = ProxyHeaderEndpoint(
        wrapClientTLS(tlsOptions(files), plain(port), reactor), CLIENT, SERVER
    )
    reader = await bounded(connectProtocol(caller, Reader()))
    reader.transport.write(b"x")
    await until(lambda: reader.data == b"hello 192.0.2.7 False\nx")
    assert factory.addresses == [CLIENT]
    await end(reader)


@pytest.mark.parametrize("order", ["secured:proxied", "proxied:secured"])
@pytest_twisted.ensureDeferred
async def test_aBadHeaderEndsATLSConnectionToo(listen, files, order):
    """
    Also where the peer never does TLS, or never answers the close.
    """
    endpoint, port, factory = await listen(
        f"{order}:tcp:0:interface=127.0.0.1:trusted=127.0.0.1:timeout=0.3:{keys(files)}"
    )
    reader = await bounded(connectProtocol(plain(port), Reader()))
    reader.transport.write(b"GET / HTTP/1.0\r\n\r\n")
    await until(lambda: reader.lost)
    silent = await bounded(connectProtocol(plain(port), Reader()))
    await until(lambda: silent.lost)
    if order == "proxied:secured":
        talker = await bounded(
            connectProtocol(wrapClientTLS(tlsOptions(files), plain(port), reactor), Reader())
        )
        talker.transport.write(b"EHLO\r\n")
        await until(lambda: talker.lost)
        assert endpoint.stats().missing == 1
    assert factory.addresses == []


@pytest_twisted.ensureDeferred
async def test_strangersOfATLSListener(listen, files):
    endpoint, port, _ = await listen(
        f"proxied:secured:tcp:0:interface=127.0.0.1:trusted=192.0.2.1:timeout=0.3:{keys(files)}"
    )
    reader = await bounded(connectProtocol(plain(port), Reader()))
    await until(lambda: reader.lost)
    assert endpoint.stats().untrusted == 1


@pytest_twisted.ensureDeferred
async def test_startTLS(listen, files):
    """
    A protocol may turn TLS on in the middle of a connection behind a proxy.
    """
    pem = (files / "cert.pem").read_bytes() + (files / "key.pem").read_bytes()
    options = ssl.PrivateCertificate.loadPEM(pem).options()

    class Upgrading(Protocol):
        def dataReceived(self, data):
            if data == b"STARTTLS":
                self.transport.write(b"go")
                self.transport.startTLS(options)
            else:
                secure = ISSLTransport.providedBy(self.transport.transport)
                self.transport.write(f"{self.transport.getPeer().host} {secure}".encode())

    factory = Factory.forProtocol(Upgrading)
    _, port, _ = await listen("proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1", factory)
    caller = ProxyHeaderEndpoint(plain(port), CLIENT, SERVER)
    reader = await bounded(connectProtocol(caller, Reader()))
    reader.transport.write(b"STARTTLS")
    await until(lambda: reader.data == b"go")
    reader.transport.startTLS(tlsOptions(files))
    reader.transport.write(b"hello")
    await until(lambda: reader.data == b"go192.0.2.7 True")
    assert reader.transport.getPeerCertificate() is not None
    await end(reader)


@pytest_twisted.ensureDeferred
async def test_halfClose(listen):
    """
    Who has no more to send still gets everything back.
    """
    _, port, _ = await listen(
        "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1", TCPEchoFactory()
    )
    data = bytes(range(256)) * 2000
    caller = ProxyHeaderEndpoint(plain(port), CLIENT, SERVER)
    reader = await bounded(connectProtocol(caller, Reader()))
    reader.transport.write(data)
    reader.transport.loseWriteConnection()
    await until(lambda: reader.lost)
    assert reader.data == data


class Refusing(Banners):
    def buildProtocol(self, addr):
        self.addresses.append(addr)


@pytest_twisted.ensureDeferred
async def test_aFactoryMayRefuseUnderTLS(listen, files):
    """
    Twisted's own TLS wrapper answers with a traceback.
    """
    _, port, factory = await listen(f"secured:tcp:0:interface=127.0.0.1:{keys(files)}", Refusing())
    reader = await bounded(connectProtocol(plain(port), Reader()))
    await until(lambda: reader.lost)
    assert len(factory.addresses) == 1


@pytest.mark.parametrize("kind", ["ssl:0:certKey", "secured:tcp:0:certificate"])
@pytest_twisted.ensureDeferred
async def test_aServiceMayRefuseUnderTLS(files, kind):
    """
    Quietly: a logged error fails the test.
    """
    listens = [
        parseListen(f"{kind}={files}/cert.pem:privateKey={files}/key.pem:interface=127.0.0.1")
    ]
    access = Access(allow=Networks.parse(["192.0.2.1"]))
    service = ListeningService(reactor, listens, Banners(), access=access, drainTimeout=5)
    service.startService()
    for caller in (
        plain(service),
        wrapClientTLS(tlsOptions(files), plain(service), reactor),
    ):
        reader = await bounded(connectProtocol(caller, Reader()))
        await until(lambda reader=reader: reader.lost)
        assert reader.data == b""
    assert service.stats().refusedAddress == 2
    await bounded(service.stopService())


@pytest_twisted.ensureDeferred
async def test_trustRootsDemandACertificate(listen, files, authority, tmp_path):
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots/ca.pem").write_bytes((files / "ca.pem").read_bytes())
    issued = authority.issue_cert("client@example.com")
    mine = ssl.PrivateCertificate.loadPEM(
        issued.cert_chain_pems[0].bytes() + issued.private_key_pem.bytes()
    )
    foreign = trustme.CA().issue_cert("client@example.com")
    other = ssl.PrivateCertificate.loadPEM(
        foreign.cert_chain_pems[0].bytes() + foreign.private_key_pem.bytes()
    )
    for roots in (files / "ca.pem", tmp_path / "roots"):
        _, port, factory = await listen(
            f"secured:tcp:0:interface=127.0.0.1:{keys(files)}:trustRoots={roots}"
        )
        good = wrapClientTLS(tlsOptions(files, mine), plain(port), reactor)
        reader = await bounded(connectProtocol(good, Reader()))
        await until(lambda reader=reader: reader.data)
        assert factory.seen[0].getPeerCertificate() is not None
        await end(reader)
        for certificate in (None, other):
            bad = wrapClientTLS(tlsOptions(files, certificate), plain(port), reactor)
            reader = await bounded(connectProtocol(bad, Reader()))
            await until(lambda reader=reader: reader.lost)
            assert reader.data == b""


@pytest_twisted.ensureDeferred
async def test_aRenewedCertificate(listen, files, tmp_path):
    """
    New files are shown after C{reload}; broken ones leave the old in use.
    """
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    endpoint, port, _ = await listen(f"secured:tcp:0:interface=127.0.0.1:{keys(tmp_path)}")

    async def shown():
        caller = wrapClientTLS(ssl.CertificateOptions(), plain(port), reactor)
        reader = await bounded(connectProtocol(caller, Reader()))
        await until(lambda: reader.data)
        serial = reader.transport.getPeerCertificate().get_serial_number()
        await end(reader)
        return serial

    first = await shown()
    (tmp_path / "cert.pem").write_bytes(b"garbage")
    with pytest.raises(AddressError):
        endpoint.certificate.reload()
    assert await shown() == first
    new = trustme.CA().issue_cert("localhost")
    new.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    new.private_key_pem.write_to_path(tmp_path / "key.pem")
    endpoint.certificate.reload()
    assert await shown() != first


@pytest.mark.parametrize("name", ["cert.pem", "key.pem", "roots.pem"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "unreadable"])
def test_aReloadNeverStalls(files, tmp_path, name, kind):
    """
    Whatever has the name of a certificate meanwhile: it is said, and the old stays.
    """
    for each in ("cert.pem", "key.pem"):
        (tmp_path / each).write_bytes((files / each).read_bytes())
    (tmp_path / "roots.pem").write_bytes((files / "cert.pem").read_bytes())
    text = f"secured:tcp:0:{keys(tmp_path)}:trustRoots={tmp_path}/roots.pem"
    certificate = serverFromString(reactor, text).certificate
    path = tmp_path / name
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "socket":
            listening.bind(str(path))
        else:
            path.symlink_to(path)
        with pytest.raises(AddressError, match=re.escape(name)) as caught:
            certificate.reload()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("proxied:tcp:443", "trusted="),
        ("proxied:tcp:443:trusted=10.0.0.0/8:maxHeader=10", "256 to 65551"),
        ("proxied:tcp:443:trusted=10.0.0.0/8:maxHeader=-1", "256 to 65551"),
        ("proxied:tcp:443:trusted=10.0.0.0/8:maxHeader=1M", "256 to 65551"),
        ("proxied:tcp:443:trusted=", "trusted="),
        ("proxied:tcp:443:trusted=proxy.example.com", "not a network"),
        ("proxied:tcp:443:trusted=10.0.0.1/8", "host bits"),
        ("proxied:tcp:443:trusted=10.0.0.0/8:policy=maybe", "require, use, ignore, reject"),
        ("proxied:tcp:443:trusted=10.0.0.0/8:timeout=soon", "seconds"),
        ("proxied:tcp:443:trusted=10.0.0.0/8:timeout=0", "seconds"),
        ("proxied:tcp:443:trusted=10.0.0.0/8:timeout=inf", "seconds"),
        ("proxied:tcp:443:trusted=10.0.0.0/8:timeout=nan", "seconds"),
        ("proxied:trusted=10.0.0.0/8", "wraps another endpoint"),
        ("secured:tcp:443", "certificate=FILE"),
        ("secured:tcp:443:certificate={top}/none.pem", "No such file"),
        ("secured:tcp:443:certificate={top}", "Is a directory"),
        ("secured:tcp:443:certificate={top}/garbage.pem", "no valid certificate"),
        ("secured:tcp:443:certificate={top}/damaged.pem", "no valid certificate"),
        ("secured:tcp:443:certificate={top}/cert.pem", "no private key"),
        ("secured:tcp:443:certificate={top}/cert.pem:privateKey={top}/none.pem", "No such file"),
        ("secured:tcp:443:certificate={top}/cert.pem:privateKey={top}/other.pem", "does not fit"),
        ("secured:tcp:443:certificate={top}/cert.pem:privateKey={top}/locked.pem", "passphrase"),
        ("secured:tcp:443:certificate={top}/cert.pem:privateKey={top}/agree.pem", "key type"),
        ("secured:tcp:443:{keys}:trustRoots={top}/none.pem", "No such file"),
        ("secured:tcp:443:{keys}:trustRoots=", "leave it out"),
        ("secured:tcp:443:{keys}:trustRoots={top}/empty", "no *.pem"),
    ],
)
def test_mistakesAreOneLine(text, remedy, files, tmp_path):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage.pem").write_bytes(b"\0garbage")
    (tmp_path / "damaged.pem").write_bytes(
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    )
    other = trustme.CA().issue_cert("localhost").private_key_pem
    other.write_to_path(tmp_path / "other.pem")
    agree = X25519PrivateKey.generate()
    (tmp_path / "agree.pem").write_bytes(
        agree.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    )
    key = s.load_pem_private_key(other.bytes(), None)
    (tmp_path / "locked.pem").write_bytes(
        key.private_bytes(
            s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret")
        )
    )
    with pytest.raises(AddressError) as caught:
        serverFromString(reactor, text.format(top=tmp_path, keys=keys(tmp_path)))
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_listsAndEscapes():
    endpoint = serverFromString(
        None, r"proxied:tcp:0:interface=\:\:1:trusted=10.0.0.0/8,fd00\:\:/8,unix:policy=use"
    )
    assert UNIXAddress(None) in endpoint.trusted
    assert IPv4Address("TCP", "10.1.1.1", 1) in endpoint.trusted
    assert endpoint.endpoint._interface == "::1"
    with pytest.raises(AddressError, match="wraps another"):
        clientFromString(reactor, "proxyheader:timeout=3")
