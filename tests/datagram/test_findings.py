"""
What is wrong with Twisted's own UDP port, and the naive TCP echo: each check
fails on theirs and passes on ours.  When one begins to pass on theirs, a part of
L{connpool.datagram.port} may go.
"""

from __future__ import annotations

import errno
import socket
from contextlib import contextmanager

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from connpool.addresses import parseListen
from connpool.datagram import SturdyPort, TCPEchoFactory, openPorts
from connpool.datagram.port import IP_RECVERR
from tests.datagram.peers import EchoProtocol, Recorder, answer, client, read, where
from tests.helpers.waiting import bounded, pause, until


@contextmanager
def theirs(protocol, interface="127.0.0.1"):
    port = reactor.listenUDP(0, protocol, interface=interface)
    try:
        yield port
    finally:
        if port.connected:
            port.stopReading()
            port.connectionLost()


@contextmanager
def ours(protocol, interface="127.0.0.1"):
    port = SturdyPort(reactor, protocol, 0, interface)
    port.startListening()
    try:
        yield port
    finally:
        port.stopListening()


async def survivesICMP(listen):
    """
    1: a connected port is told that nobody listens, and lives on.
    """
    protocol = Recorder()
    with client() as peer, listen(protocol) as port:
        address = peer.getsockname()
        peer.close()
        port.connect(*address)
        for _ in range(5):
            protocol.transport.write(b"anybody?")
            await pause(0.01)
            assert protocol.stopped == 0, "the port was closed"
        await until(lambda: protocol.refused, 2)
        with client(*address, to=where(port)) as peer:
            peer.send(b"here now")
            await until(lambda: protocol.got, 2)


async def readsSomeThenLetsOthersRun(listen):
    """
    2: no more than 64 datagrams of zero bytes in one go.
    """
    protocol = Recorder()
    with listen(protocol) as port, client(to=where(port)) as peer:
        for _ in range(150):
            peer.send(b"")
        port.doRead()
        assert 0 < len(protocol.got) <= 64


async def countsSendErrors(listen):
    """
    3: what cannot be sent raises nothing.  Port 0 is what an echo meets when
    somebody forges it as a source.
    """
    protocol = Recorder()
    with listen(protocol):
        try:
            protocol.transport.write(b"x", ("127.0.0.1", 0))
            protocol.transport.write(b"x" * 65_508, ("127.0.0.1", 9))
            protocol.transport.write(b"x", ("255.255.255.255", 9))
        except Exception as e:
            raise AssertionError(f"raised {e!r}") from None


async def cutsNothing(listen):
    """
    4: a datagram over 8192 bytes arrives whole.
    """
    protocol = Recorder()
    with listen(protocol) as port, client(to=where(port)) as peer:
        peer.send(b"x" * 20_000)
        await until(lambda: protocol.got, 2)
        assert len(protocol.got[0][0]) == 20_000


async def answersFromTheAddressThatWasAsked(listen):
    """
    5: on the wildcard address.
    """
    with listen(EchoProtocol(), "") as port, client() as peer:
        peer.connect(where(port, "127.0.0.9"))
        peer.send(b"you, 127.0.0.9")
        await pause(0.05)
        assert read(peer) == b"you, 127.0.0.9"


CHECKS = [
    survivesICMP,
    readsSomeThenLetsOthersRun,
    countsSendErrors,
    cutsNothing,
    answersFromTheAddressThatWasAsked,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_ours(check):
    await check(ours)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_theirs(check):
    try:
        await check(theirs)
    except AssertionError:
        return
    raise AssertionError("Twisted's port can do this now")


class NaiveEcho(Protocol):
    def dataReceived(self, data):
        self.transport.write(data)


async def halfClosed(factory):
    """
    7: what a client gets back that sends 2 MiB, shuts down its side and reads.
    """
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    got = []

    def talk(address):
        with socket.create_connection(address, timeout=20) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            sock.setblocking(False)
            view, size = memoryview(b"x" * (2 << 20)), 0
            while view:
                # reads a little, so that both sides' buffers are full but it ends
                try:
                    view = view[sock.send(view[: 1 << 16]) :]
                except BlockingIOError:
                    sock.settimeout(20)
                    size += len(sock.recv(1 << 16))
                    sock.setblocking(False)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(20)
            try:
                while data := sock.recv(1 << 16):
                    size += len(data)
            except ConnectionError:
                pass
            return size

    from twisted.internet.threads import deferToThread

    try:
        got.append(await bounded(deferToThread(talk, (port.getHost().host, port.getHost().port))))
    finally:
        await port.stopListening()
    return got[0]


@pytest_twisted.ensureDeferred
async def test_halfClosedTCP():
    assert await halfClosed(TCPEchoFactory()) == 2 << 20


@pytest_twisted.ensureDeferred
async def test_aSlowReaderCostsOneBufferNotMemory():
    factory = TCPEchoFactory()
    made = []
    build = factory.buildProtocol
    factory.buildProtocol = lambda addr: made.append(build(addr)) or made[-1]
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    with socket.create_connection((port.getHost().host, port.getHost().port)) as sock:
        sock.setblocking(False)
        sent = 0
        for _ in range(50):
            try:
                while True:
                    sent += sock.send(b"x" * 65_536)
            except BlockingIOError:
                await pause(0.005)
        transport = made[0].transport
        waiting = len(transport.dataBuffer) + sum(map(len, transport._tempDataBuffer))
        assert sent > 1 << 20
        assert waiting < 1 << 18
    await until(lambda: not transport.connected)
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_theNaiveEchoLosesWhatItHasNotYetWritten():
    transport = []

    class Full(NaiveEcho):
        def connectionMade(self):
            transport.append(self.transport)

        def connectionLost(self, reason):
            transport.append(len(self.transport.dataBuffer))

    port = reactor.listenTCP(0, Factory.forProtocol(Full), interface="127.0.0.1")
    sock = socket.create_connection((port.getHost().host, port.getHost().port))
    sock.setblocking(False)
    await until(lambda: transport)
    transport[0].write(b"x" * (16 << 20))  # more than the kernel takes
    await pause(0.01)
    sock.shutdown(socket.SHUT_WR)
    await until(lambda: len(transport) == 2)
    assert transport[1] > 0
    sock.close()
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_aPortIsWhatItSays():
    from twisted.internet.interfaces import (
        IHalfCloseableDescriptor,
        IListeningPort,
        IReadDescriptor,
        ISystemHandle,
        IUDPTransport,
    )

    with ours(Recorder()) as port:
        for interface in (
            IHalfCloseableDescriptor,
            IListeningPort,
            IReadDescriptor,
            ISystemHandle,
            IUDPTransport,
        ):
            verifyObject(interface, port)


@pytest_twisted.ensureDeferred
async def test_sendErrorsHaveNames():
    protocol = Recorder()
    with ours(protocol) as port:
        protocol.transport.write(b"x", ("127.0.0.1", 0))
        protocol.transport.write(b"x" * 65_508, ("127.0.0.1", 9))
        protocol.transport.write(b"x", ("255.255.255.255", 9))
        assert port.sendErrors == {"EINVAL": 1, "EMSGSIZE": 1, "EACCES": 1}
    protocol.transport = port
    port.write(b"x", ("127.0.0.1", 9))  # after the end
    assert port.sendErrors["EBADF"] == 1


@pytest_twisted.ensureDeferred
async def test_errorsWithoutDataCloseNothing():
    """
    What the reactor does on any ICMP code: it calls readConnectionLost.
    """
    protocol = Recorder()
    with ours(protocol) as port, client(to=where(port)) as peer:
        for _ in range(16):
            reactor.removeReader(port)
            port.readConnectionLost(Failure(ConnectionError()))
        peer.send(b"still there")
        await until(lambda: protocol.got)
        assert protocol.stopped == 0


@pytest_twisted.ensureDeferred
async def test_aFailingProtocolIsLoggedAndThePortLivesOn(expectFailure):
    expectFailure(ZeroDivisionError)

    class Failing(Recorder):
        def datagramReceived(self, datagram, addr):
            super().datagramReceived(datagram, addr)
            raise ZeroDivisionError

    protocol = Failing()
    with ours(protocol) as port, client(to=where(port)) as peer:
        peer.send(b"1")
        peer.send(b"2")
        await until(lambda: len(protocol.got) == 2)


@pytest_twisted.ensureDeferred
async def test_stoppingInsideDatagramReceived():
    class Stopping(Recorder):
        def datagramReceived(self, datagram, addr):
            super().datagramReceived(datagram, addr)
            self.transport.stopListening()

    protocol = Stopping()
    with ours(protocol) as port, client(to=where(port)) as peer:
        for _ in range(3):
            peer.send(b"x")
        await until(lambda: protocol.stopped)
        await pause(0)
        assert len(protocol.got) == 1
        assert port.fileno() == -1


@pytest_twisted.ensureDeferred
async def test_circumstancesOfADatagram():
    seen = []

    class Asking(Recorder):
        def datagramReceived(self, datagram, addr):
            info = self.transport.info
            seen.append((info.ttl, info.tos, info.kernelTime, info.destination, info.unicast))
            self.transport.write(datagram, addr)

    for interface, host in (("0.0.0.0", "127.0.0.7"), ("::", "::1")):
        seen.clear()
        six = ":" in host
        port = SturdyPort(reactor, Asking(), 0, interface, wants=frozenset({"ttl", "tos", "time"}))
        port.startListening()
        with client("::1" if six else "127.0.0.1", to=where(port, host)) as peer:
            level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
            peer.setsockopt(level, socket.IPV6_UNICAST_HOPS if six else socket.IP_TTL, 33)
            peer.setsockopt(level, socket.IPV6_TCLASS if six else socket.IP_TOS, 0xB8 | 1)
            peer.send(b"x")
            assert await answer(peer) == b"x"
        port.stopListening()
        ((ttl, tos, kernelTime, destination, unicast),) = seen
        assert (ttl, tos) == (33, 0xB9)
        assert kernelTime > 1_700_000_000 * 10**9
        assert destination == socket.inet_pton(port.family, host)
        assert unicast


@pytest_twisted.ensureDeferred
async def test_ICMPToAnUnconnectedPortIsFetchedWhereAsked():
    protocol = Recorder()
    with client() as gone:
        dead = gone.getsockname()
    port = SturdyPort(reactor, protocol, 0, "127.0.0.1", errors=True)
    port.startListening()
    try:
        for _ in range(3):
            port.write(b"x", dead)
            await pause(0.01)
        await until(lambda: port.receiveErrors["ECONNREFUSED"] == 3)
        with client(to=where(port)) as peer:
            peer.send(b"x")
            await until(lambda: protocol.got)
            # together with data it is still one message
            for _ in range(3):
                peer.send(b"x")
                port.write(b"x", dead)
                await pause(0.01)
            assert port.receiveErrors == {"ECONNREFUSED": 6}
            assert port.sendErrors == {}
    finally:
        port.stopListening()


@pytest_twisted.ensureDeferred
async def test_anErrorQueueThatNobodyAskedForIsEmptied():
    """
    While something is in it, epoll wakes the reactor again and again.
    """
    woken = []

    class Woken(SturdyPort):
        def readConnectionLost(self, reason):
            woken.append(reason)
            super().readConnectionLost(reason)

    with client() as gone:
        dead = gone.getsockname()
    port = Woken(reactor, Recorder(), 0, "127.0.0.1")
    port.startListening()
    try:
        port.getHandle().setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        port.write(b"x", dead)
        await until(lambda: port.receiveErrors["ECONNREFUSED"])
        await pause(0.05)
        assert len(woken) <= 2
    finally:
        port.stopListening()


def test_linkLocalPeersKeepTheirZone():
    protocol = Recorder()
    port = SturdyPort(None, protocol)
    port._deliver(b"x", (), ("fe80::7", 9, 0, 1))
    port._deliver(b"x", (), ("fe80::7", 9, 0, 999_999))
    port._deliver(b"x", (), ("2001:db8::7", 9, 0, 0))
    hosts = [host for _, (host, _) in protocol.got]
    assert hosts == [f"fe80::7%{socket.if_indextoname(1)}", "fe80::7%999999", "2001:db8::7"]


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
@pytest_twisted.ensureDeferred
async def test_everyAddressOfAMachineWithoutIPv6(number, monkeypatch):
    class WithoutIPv6(socket.socket):
        def __init__(self, family=-1, *arguments, **keywords):
            if family == socket.AF_INET6:
                raise OSError(number, "no IPv6")
            super().__init__(family, *arguments, **keywords)

    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    ports = openPorts(
        parseListen("udp:0"), lambda **where: SturdyPort(reactor, Recorder(), **where)
    )
    try:
        assert [port.family for port in ports] == [socket.AF_INET]
    finally:
        for port in ports:
            port.stopListening()
