"""
Other people's TLS against C{secured:}, over real sockets.
"""

import contextlib
import random
import select
import shutil
import socket
import ssl as pyssl

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.threads import deferToThread

from tests.helpers.waiting import bounded, until


class Echo(Protocol):
    """
    Sends back what comes, and reads no more while that is not taken.
    """

    def connectionMade(self):
        self.factory.live.append(self)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data):
        self.transport.write(data)

    def pauseProducing(self):
        self.factory.paused += 1
        self.transport.pauseProducing()

    def resumeProducing(self):
        self.transport.resumeProducing()

    def stopProducing(self):
        pass

    def connectionLost(self, reason):
        self.factory.live.remove(self)


@pytest.fixture
def echo(tmp_path):
    """
    The port of an echo service behind C{secured:}, and its factory.
    """
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "own.pem"
    )
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own = tmp_path / "own.pem"
    endpoint = serverFromString(
        reactor, f"secured:tcp:0:interface=127.0.0.1:certificate={own}:privateKey={own}"
    )
    factory = Factory.forProtocol(Echo)
    factory.live, factory.paused = [], 0
    port = pytest_twisted.blockon(bounded(endpoint.listen(factory)))
    yield port.getHost().port, factory
    pytest_twisted.blockon(bounded(port.stopListening()))


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest_twisted.ensureDeferred
async def test_pythonsOwn(echo, tmp_path, version):
    """
    It sends all before it reads anything: the service waits for it meanwhile.
    """
    port, factory = echo
    context = pyssl.create_default_context(cafile=tmp_path / "ca.pem")
    context.maximum_version = pyssl.TLSVersion[version]
    data = random.Random(3).randbytes(12_000_000)

    def talk():
        plain = socket.create_connection(("127.0.0.1", port), 20)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            client.setblocking(False)
            left, heard, reads = memoryview(data), bytearray(), False
            while len(heard) < len(data):
                try:
                    left = left[client.send(left) :] if left else left
                except pyssl.SSLWantWriteError:
                    # from now on both directions are full, or the service is slow
                    full = not select.select([], [client], [], 0.2)[1]
                    reads = reads or bool(full and factory.paused)
                if not (reads or left):
                    raise AssertionError("the service takes all and waits for nobody")
                if reads:
                    select.select([client], [client] if left else [], [], 1)
                with contextlib.suppress(pyssl.SSLWantReadError):
                    while reads and (some := client.recv(1 << 16)):
                        heard += some
            return heard, client.version()

    heard, spoken = await bounded(deferToThread(talk))
    assert heard == data
    assert spoken == version.replace("_", ".")
    assert factory.paused
    await until(lambda: not factory.live)


class Client(ProcessProtocol):
    """
    C{openssl s_client}.
    """

    def __init__(self):
        self.said = b""
        self.ended = None

    def outReceived(self, data):
        self.said += data

    def errReceived(self, data):
        self.said += data

    def processEnded(self, reason):
        self.ended = reason.value


@pytest.mark.parametrize("command", [b"k\n", b"K\n"])
@pytest_twisted.ensureDeferred
async def test_openssl(echo, tmp_path, command):
    """
    It changes its keys, and asks that we change ours, too.
    """
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    port, factory = echo
    client = Client()
    arguments = [
        *("openssl", "s_client", "-connect", f"127.0.0.1:{port}"),
        *("-CAfile", str(tmp_path / "ca.pem"), "-verify_return_error", "-tls1_3"),
    ]
    process = reactor.spawnProcess(client, program, arguments, env={})
    await until(lambda: b"Verify return code" in client.said or client.ended)
    process.write(b"before\n")
    await until(lambda: b"before\n" in client.said or client.ended)
    process.write(command)
    await until(lambda: b"KEYUPDATE" in client.said or client.ended)
    process.write(b"after\n")
    await until(lambda: b"after\n" in client.said or client.ended)
    assert client.ended is None, client.said.decode()
    process.write(b"Q\n")
    await until(lambda: client.ended)
    assert isinstance(client.ended, ProcessDone)
    await until(lambda: not factory.live)
