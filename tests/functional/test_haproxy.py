"""
A real HAProxy in front: who is calling is seen, logged and limited.

Clients come from 127.0.0.2 and from ::1, HAProxy itself connects from
127.0.0.1, so that the client and the proxy cannot be mistaken.
"""

import re
import socket

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    connectProtocol,
    serverFromString,
)

from connpool.addresses import Networks, parseListen
from connpool.interfaces import IStatsSource
from connpool.services.access import Access
from connpool.services.listening import ListeningService
from tests.helpers.haproxy import CLIENT, Banners, Reader, address, hangUp, haproxy, speak
from tests.helpers.processes import twistd
from tests.helpers.waiting import bounded, until

pytestmark = pytest.mark.peer("haproxy")

BACKENDS = ["tcp:0:interface=127.0.0.1", r"tcp:0:interface=\:\:1", "unix:{path}"]


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest_twisted.ensureDeferred
async def test_everyKindOfClient(tmp_path, how, backend):
    """
    v1 and v2; clients over IPv4, IPv6 and a unix socket; backends of each kind.
    """
    factory = Banners()
    endpoint = serverFromString(
        reactor,
        "proxied:" + backend.format(path=tmp_path / "back") + r":trusted=127.0.0.1,\:\:1,unix",
    )
    port = await bounded(endpoint.listen(factory))
    with haproxy(tmp_path, f"{address(port)} {how}") as front:
        for kind, host in (("tcp4", CLIENT), ("tcp6", "::1"), ("unix", "unknown")):
            reader = await speak(front.endpoint(kind))
            assert reader.data == b"hello x"
            assert factory.peers[-1] == host
            if kind == "tcp4":
                header = factory.transports[-1].proxyInfo.header
                assert header.version == (1 if how == "send-proxy" else 2)
                assert header.source.port == reader.transport.getHost().port
                assert header.destination.port == front.port
            await hangUp(reader)
    stats = endpoint.stats()
    assert stats.headers == 3
    assert stats.local + stats.unknown == 1
    assert stats.malformed == stats.untrusted == stats.missing == 0
    await bounded(port.stopListening())


@pytest_twisted.ensureDeferred
async def test_fields(tmp_path):
    """
    Checksum and unique id as HAProxy writes them.
    """
    factory = Banners()
    endpoint = serverFromString(reactor, "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1")
    port = await bounded(endpoint.listen(factory))
    options = "send-proxy-v2 proxy-v2-options crc32c,unique-id\n  unique-id-format %pid-%ci-%cp"
    with haproxy(tmp_path, f"{address(port)} {options}") as front:
        reader = await speak(front.endpoint("tcp4"))
        fields = factory.transports[0].proxyInfo.header.tlvs
        assert re.fullmatch(rb"\d+-127\.0\.0\.2-\d+", fields.uniqueId)
        assert fields.get(0x03) is not None
        await hangUp(reader)
    await bounded(port.stopListening())


@pytest.mark.parametrize("how", ["check-send-proxy send-proxy", "check-send-proxy send-proxy-v2"])
@pytest_twisted.ensureDeferred
async def test_healthChecks(tmp_path, how):
    """
    They are taken, and nobody is mistaken for a client: v2 says LOCAL, v1
    the proxy's own address.
    """
    factory = Banners()
    endpoint = serverFromString(reactor, "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1")
    port = await bounded(endpoint.listen(factory))
    with haproxy(tmp_path, f"{address(port)} check inter 50ms {how}") as front:
        await until(lambda: endpoint.stats().headers >= 3)
        assert endpoint.stats().local == (endpoint.stats().headers if "v2" in how else 0)
        assert set(factory.peers) == {"unknown" if "v2" in how else "127.0.0.1"}
        reader = await speak(front.endpoint("tcp4"))
        assert CLIENT in factory.peers
        await hangUp(reader)
    await bounded(port.stopListening())
    assert endpoint.stats().malformed == 0


@pytest_twisted.ensureDeferred
async def test_headerBeforeTLS(tmp_path):
    """
    HAProxy passes TLS through, its header in front of it.
    """
    from twisted.internet import ssl
    from twisted.internet.endpoints import wrapClientTLS

    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    factory = Banners()
    endpoint = serverFromString(
        reactor,
        "secured:proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1"
        f":certificate={tmp_path}/both.pem",
    )
    port = await bounded(endpoint.listen(factory))
    with haproxy(tmp_path, f"{address(port)} send-proxy-v2") as front:
        caller = wrapClientTLS(ssl.CertificateOptions(), front.endpoint("tcp4"), reactor)
        reader = await speak(caller)
        assert reader.data == b"hello x"
        assert factory.peers == [CLIENT]
        await hangUp(reader)
    await bounded(port.stopListening())


@pytest_twisted.ensureDeferred
async def test_limitsActOnTheClient(tmp_path):
    """
    Allow-lists and per-peer limits see who is behind the proxy.
    """
    factory = Banners()
    service = ListeningService(
        reactor,
        [parseListen("proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1")],
        factory,
        access=Access(allow=Networks.parse([CLIENT, "127.0.0.3"]), maxPerPeer=1),
        drainTimeout=5,
    )
    service.privilegedStartService()
    service.startService()
    host = service.getHost()
    with haproxy(tmp_path, f"{host.host}:{host.port} send-proxy-v2") as front:
        first = await speak(front.endpoint("tcp4"))
        assert first.data == b"hello x"
        for refused in (
            front.endpoint("tcp4"),  # the second of this client
            front.endpoint("tcp4", "127.0.0.4"),
            front.endpoint("tcp6"),
            front.endpoint("unix"),
        ):
            reader = await speak(refused)
            assert reader.data == b""
        other = await speak(front.endpoint("tcp4", "127.0.0.3"))
        assert other.data == b"hello x"
        stats = service.stats()
        assert (stats.connections, stats.refusedLimit) == (2, 1)
        assert (stats.refusedAddress, stats.healthChecks) == (2, 1)
        # the endpoint's own numbers are found below the service
        (headers,) = service
        assert IStatsSource.providedBy(headers)
        assert (headers.kind, headers.stats().headers, headers.stats().local) == ("proxy", 6, 1)
        await hangUp(first)
        await hangUp(other)
    # the address of the proxy itself gains nothing
    direct = await bounded(
        connectProtocol(TCP4ClientEndpoint(reactor, host.host, host.port), Reader())
    )
    await until(lambda: direct.lost)
    assert factory.peers == [CLIENT, "127.0.0.3"]
    await bounded(service.stopService())


def send(sock, name, content=b"content"):
    """
    The classic protocol, by hand.

    @return: what the receiver said to the name.
    """
    with sock:
        sock.settimeout(20)
        sock.sendall(name)
        said = sock.recv(100)
        if said == b"ok":
            sock.sendall(content)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1000):
                pass
        return said


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2"])
def test_filerecvBehindHAProxy(tmp_path, how):
    """
    The receiver logs the real client and asks its lists about it; loopback's
    privilege does not reach through a proxy.
    """
    (tmp_path / "in").mkdir()
    with twistd(
        *("filerecv", "--directory", tmp_path / "in"),
        *("--listen", "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1"),
        *("--allow", "127.0.0.0/8", "--allow", "::1", "--deny", "127.0.0.4"),
        *("--classic-from", CLIENT, "--classic-from", "::1"),
        cwd=tmp_path,
    ) as receiver:
        port = receiver.waitFor(r"filerecv listens on 127\.0\.0\.1:(\d+)")[1]
        with haproxy(tmp_path, f"127.0.0.1:{port} {how} check inter 100ms") as front:

            def connect(source):
                return socket.create_connection(
                    ("127.0.0.1", front.port), timeout=20, source_address=(source, 0)
                )

            assert send(connect(CLIENT), b"a.txt") == b"ok"
            receiver.waitFor(rf"received.* from {CLIENT}")
            assert send(socket.create_connection(("::1", front.port6), 20), b"6.txt") == b"ok"
            receiver.waitFor(r"received.* from ::1")
            # a loopback address behind a proxy is not a local client,
            assert send(connect("127.0.0.3"), b"b.txt").startswith(b"forbidden")
            assert send(connect("127.0.0.4"), b"c.txt").count(b"forbidden") == 1
            # and a unix socket's client behind one is nobody
            unix = socket.socket(socket.AF_UNIX)
            unix.connect(str(front.path))
            answer = send(unix, b"d.txt")
            # of which version 2 says that the proxy speaks for itself
            assert answer == b"" if "v2" in how else b"forbidden" in answer
            direct = socket.create_connection(("127.0.0.1", int(port)), 20)
            assert send(direct, b"e.txt") == b""
        receiver.stop()
        assert "Traceback" not in receiver.output
        assert "from 127.0.0.1," not in receiver.output
    received = {path.name: path.read_bytes() for path in (tmp_path / "in").glob("*.txt")}
    assert received == {"a.txt": b"content", "6.txt": b"content"}


def test_tcpEchoBehindHAProxy(tmp_path):
    """
    C{twistd udpecho} echoes TCP too.
    """
    with twistd(
        *(
            "udpecho",
            "--allow-root",
            "--listen",
            "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1",
        ),
        *("--allow", CLIENT),
        cwd=tmp_path,
    ) as service:
        port = service.waitFor(r"\(PROXY\) starting on (\d+)")[1]
        with haproxy(tmp_path, f"127.0.0.1:{port} send-proxy") as front:
            for source, echoed in ((CLIENT, b"ping"), ("127.0.0.3", b"")):
                with socket.create_connection(
                    ("127.0.0.1", front.port), timeout=20, source_address=(source, 0)
                ) as sock:
                    sock.sendall(b"ping")
                    assert sock.recv(100) == echoed
        service.stop()
        assert "Traceback" not in service.output


@pytest_twisted.ensureDeferred
async def test_poolBehindHAProxy(tmp_path):
    """
    C{twistd connpool} lets the real client in, and passes on who it is.
    """
    factory = Banners()
    endpoint = serverFromString(reactor, "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1")
    upstream = await bounded(endpoint.listen(factory))
    with twistd(
        *("connpool", "--listen", "proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1"),
        *("--upstream", f"tcp:127.0.0.1:{upstream.getHost().port}"),
        *("--proxy-header", "v2", "--allow", CLIENT),
        cwd=tmp_path,
    ) as service:
        await until(lambda: "(PROXY) starting on" in service.output)
        port = service.waitFor(r"\(PROXY\) starting on (\d+)")[1]
        with haproxy(tmp_path, f"127.0.0.1:{port} send-proxy") as front:
            reader = await speak(front.endpoint("tcp4"))
            assert reader.data == b"hello x"
            assert factory.peers == [CLIENT]
            await hangUp(reader)
            refused = await speak(front.endpoint("tcp4", "127.0.0.3"))
            assert refused.data == b""
        # what it dialled ahead and never used has no header to send
        service.stop()
        assert "Traceback" not in service.output
    assert factory.peers == [CLIENT]
    await bounded(upstream.stopListening())
