import json
import socket
import ssl
from base64 import b64encode

import attrs
import pytest
import pytest_twisted
import trustme
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from twisted.web.http import HTTPChannel

import connpool.observe.site
from connpool.addresses import parseListen
from connpool.observe import Protection, makeSite
from connpool.observe.feed import MOST_VIEWERS
from connpool.observe.overview import MOST_TRANSFERS
from connpool.services.listening import ListeningService
from tests.helpers.waiting import bounded, until
from tests.observe.sample import HOSTILE, busy, transfer
from tests.observe.web import serving

PATHS = ["/", "/status.json", "/metrics", "/healthz", "/readyz", "/balancer", "/events", "/nowhere"]


@pytest_twisted.ensureDeferred
async def test_everyPath():
    root, _ = busy()
    async with serving(root) as web:
        found = {path: await web.get(path) for path in PATHS if path != "/events"}
    assert {path: answer.code for path, answer in found.items()} == {
        "/": 200,
        "/status.json": 200,
        "/metrics": 200,
        "/healthz": 200,
        "/readyz": 200,
        "/balancer": 200,
        "/nowhere": 404,
    }
    assert found["/"].headers["content-type"] == "text/html; charset=utf-8"
    assert found["/metrics"].headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"connpool_transfer_active" in found["/metrics"].body
    assert found["/readyz"].body == b"ready\n"
    for answer in found.values():
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["server"] == "connpool"
        assert "access-control-allow-origin" not in answer.headers


@pytest_twisted.ensureDeferred
async def test_readinessSaysWhy():
    root, sources = busy()
    sources["transfer"].why = "the disk is full"
    async with serving(root) as web:
        answer = await web.get("/readyz")
        assert (answer.code, answer.body) == (503, b"inbox: the disk is full\n")
        assert (await web.get("/healthz")).code == 200
        await bounded(root.stopService())
        answer = await web.get("/readyz")
        assert answer.code == 503
        assert answer.body == b"the service: not running\n"  # once, not for each part


@pytest_twisted.ensureDeferred
async def test_balancersAreNotToldOfTroubles():
    """
    They would cut what runs; a stop lets it end.
    """
    root, sources = busy()
    sources["transfer"].why = "the disk is full"
    async with serving(root) as web:
        answer = await web.get("/balancer")
        assert (answer.code, answer.body) == (200, b"up\n")
        # as HAProxy asks
        assert b" 200 " in await web.raw(b"GET /balancer HTTP/1.0\r\n\r\n")
        await bounded(root.stopService())
        answer = await web.get("/balancer")
        assert (answer.code, answer.body) == (404, b"draining\n")


@pytest_twisted.ensureDeferred
async def test_onlyReading():
    root, _ = busy()
    async with serving(root) as web:
        for path in PATHS:
            for method in ("DELETE", "OPTIONS", "TRACE", "BREW"):
                answer = await web.get(path, method=method)
                assert (answer.code, answer.headers["allow"]) == (405, "GET, HEAD")
            answer = await web.get(path, method="HEAD")
            assert answer.body == b""
            assert answer.code == (404 if path == "/nowhere" else 200)


@pytest.mark.parametrize(
    "header", ["Content-Length: 2000000", "Content-Length: 3", "Transfer-Encoding: chunked"]
)
@pytest_twisted.ensureDeferred
async def test_bodiesAreRefusedBeforeTheyCome(header):
    root, _ = busy()
    async with serving(root) as web:
        for more in (b"", b"5\r\nabcde\r\n0\r\n\r\n", b"x" * 30_000):
            head = f"POST / HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode()
            answers = await web.raw(head + more)
            assert answers.startswith(b"HTTP/1.1 413 ")
            assert answers.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "hostile",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"x: y\r\n" * 600 + b"\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
@pytest_twisted.ensureDeferred
async def test_nonsenseIsEndedAndHarmsNobody(hostile):
    root, _ = busy()
    async with serving(root) as web:
        client = await web.connect()
        client.transport.write(hostile)
        await until(lambda: client.received or client.lost.called)
        assert b" 200 " not in client.received
        client.transport.abortConnection()
        await bounded(client.lost)
        assert (await web.get("/healthz")).code == 200


@pytest.mark.parametrize(
    "accept",
    ["text/plain;version=x", "application/openmetrics-text;version=", "\\"],
)
@pytest_twisted.ensureDeferred
async def test_metricsWhateverIsAsked(accept):
    root, _ = busy()
    async with serving(root) as web:
        answer = await web.get("/metrics", f"Accept: {accept}", "Accept-Encoding: gzip;q=x")
        assert answer.code == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
    ],
)
@pytest_twisted.ensureDeferred
async def test_whoDoesNotCloseItsTLSHoldsNoConnection(tmp_path, monkeypatch, request_):
    """
    Also on Twisted's own TLS endpoints.
    """
    monkeypatch.setattr(connpool.observe.site, "LINGER_SECONDS", 0.1)
    monkeypatch.setattr(HTTPChannel, "abortTimeout", 0.1)
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    key = f"privateKey={tmp_path}/both.pem:certKey={tmp_path}/both.pem"
    root, _ = busy()
    root.startService()
    listening = ListeningService(
        reactor, [parseListen(f"ssl:0:interface=127.0.0.1:{key}")], makeSite(reactor, [root])
    )
    listening.startService()
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def ask():
        plain = socket.create_connection(("127.0.0.1", listening.getHost().port), 20)
        client = context.wrap_socket(plain)
        client.sendall(request_)
        return client, client.recv(100)

    client, answer = await bounded(deferToThread(ask))
    assert answer.startswith(b"HTTP/1.")
    await until(lambda: not listening.stats().connections)
    client.close()
    await bounded(listening.stopService())
    await bounded(root.stopService())


# -- the Host header ---------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_unknownHostsAreRefused():
    root, _ = busy()
    async with serving(root, Protection(hosts=["Status.example"])) as web:
        for host in (
            "attacker.example",
            "localhost.attacker.example",
            "127.0.0.1.nip.io",
            "",
            "a b",
        ):
            for path in PATHS:
                answer = await web.get(path, host=host)
                assert (answer.code, host) == (421, host)
                assert b"inbox" not in answer.body
        for host in ("status.example:9000", "localhost:1", "127.0.0.1", "[::1]:8690", "192.0.2.1"):
            assert (await web.get("/healthz", host=host)).code == 200
        twice = await web.get("/healthz", "Host: attacker.example")
        assert twice.code == 421
        # a health check of HTTP/1.0
        assert b" 200 " in await web.raw(b"GET /healthz HTTP/1.0\r\n\r\n")


@pytest_twisted.ensureDeferred
async def test_headersThatAreNoText(protection):
    """
    Refused like any other, without a traceback in the log for each.
    """
    root, _ = busy()
    async with serving(root, protection) as web:
        request = b"GET / HTTP/1.1\r\nConnection: close\r\nHost: %s\r\nAuthorization: \xff\r\n\r\n"
        assert b" 421 " in await web.raw(request % b"\xff")
        assert b" 401 " in await web.raw(request % b"localhost")


# -- passwords ---------------------------------------------------------------


def basic(user, password):
    return "Authorization: Basic " + b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def protection(monkeypatch):
    monkeypatch.setattr(connpool.observe.site, "WRONG_PASSWORD_SECONDS", 0.01)
    checker = InMemoryUsernamePasswordDatabaseDontUse(watcher=b"s3cret")
    return Protection(checker=checker)


@pytest_twisted.ensureDeferred
async def test_everyPathWantsThePassword(protection):
    root, _ = busy()
    async with serving(root, protection) as web:
        wrong = ["X: y", basic("watcher", "wrong"), basic("", ""), "Authorization: Basic %%%"]
        wrong += ["Authorization: Bearer s3cret", "Authorization: Basic", basic("ö", "\x00")]
        for path in PATHS:
            for header in wrong:
                answer = await web.get(path, header)
                assert answer.code == 401
                assert answer.headers["www-authenticate"].startswith("Basic realm=")
                assert b"inbox" not in answer.body
        assert (await web.get("/status.json", basic("watcher", "s3cret"))).code == 200


@pytest_twisted.ensureDeferred
async def test_aWrongPasswordIsAnsweredLate(protection, monkeypatch):
    monkeypatch.setattr(connpool.observe.site, "WRONG_PASSWORD_SECONDS", 1000.0)
    root, _ = busy()
    async with serving(root, protection) as web:
        request = f"GET / HTTP/1.1\r\nHost: localhost\r\n{basic('a', 'b')}\r\n\r\n".encode()
        client = await web.connect()
        # the next guess on this connection waits for the first
        client.transport.write(request * 50)
        soon = reactor.seconds() + 900
        late = await until(
            lambda: [call for call in reactor.getDelayedCalls() if call.getTime() > soon]
        )
        assert len(late) == 1
        assert client.received == b""
        client.transport.abortConnection()
        await until(lambda: not late[0].active())


@pytest_twisted.ensureDeferred
async def test_aBrokenCheckerLetsNobodyIn(protection, expectFailure):
    class Broken:
        def requestAvatarId(self, credentials):
            raise ZeroDivisionError

    expectFailure(ZeroDivisionError)
    root, _ = busy()
    async with serving(root, Protection(checker=Broken())) as web:
        assert (await web.get("/", basic("a", "b"))).code == 401


@pytest_twisted.ensureDeferred
async def test_refusalsAreSummarised(protection):
    root, _ = busy()
    with capturedLogs() as logs:
        async with serving(root, protection) as web:
            for _ in range(5):
                await web.get("/", host="attacker.example")
                await web.get("/", basic("watcher", "guess"))
    lines = [each for each in map(formatEvent, logs) if "refused" in each]
    assert lines == [
        "status page: refused 127.0.0.1: unknown host name",
        "status page: refused 127.0.0.1: wrong password",
    ]
    assert not any("guess" in formatEvent(each) for each in logs)


# -- events ------------------------------------------------------------------


def events(received):
    """
    @return: C{(event, decoded data)} as a browser reads them.
    """
    # past the head; chunks begin at line ends of their own
    found = []
    for block in received.decode().replace("\r\n", "\n").split("\n\n"):
        lines = [line for line in block.split("\n") if line.startswith(("event: ", "data: "))]
        if len(lines) == 2 and block.endswith("}"):
            found.append((lines[0][7:], json.loads(lines[1][6:])))
    return found


async def follow(web):
    client = await web.connect()
    client.transport.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(lambda: b"event: look" in client.received or b" 503 " in client.received)
    return client


@pytest_twisted.ensureDeferred
async def test_eventsCarryTheSchemaAndThenLooks():
    root, sources = busy()
    async with serving(root) as web:
        client = await follow(web)
        await until(lambda: len(events(client.received)) >= 5)
        client.transport.abortConnection()
    first, recent, history, second, third = events(client.received)[:5]
    assert recent[0] == "recent"
    assert [each["name"] for each in recent[1]["refusals"]] == ["../../etc/passwd"]
    assert history == ("history", {"series": {}})
    (first, schema), (second, look), (third, _) = first, second, third
    assert (first, second, third) == ("schema", "look", "look")
    assert set(schema) == {source.kind for source in sources.values()}
    assert look["ready"] is True
    assert look["transfers"][0]["name"] == "backups/2026-11-22.tar.zst"
    assert b"text/event-stream" in client.received


@pytest_twisted.ensureDeferred
async def test_aNameCannotMakeAnEvent():
    root, sources = busy()
    names = [*HOSTILE, "\r\nevent: look\r\ndata: {}\r\n\r\n"]
    sources["transfer"].transfers = [transfer(n, name) for n, name in enumerate(names)]
    # even one that no displayName() has seen
    sources["transfer"].transfers += [
        attrs.evolve(transfer(99, "x"), name="\n\nevent: look\ndata: {}\n\n\u2028\r")
    ]
    async with serving(root) as web:
        client = await follow(web)
        await until(lambda: len(events(client.received)) >= 4)
        client.transport.abortConnection()
    assert client.received.count(b"\nevent: ") == 4
    assert len(events(client.received)[3][1]["transfers"]) == len(names) + 1


@pytest_twisted.ensureDeferred
async def test_thousandsOfTransfersAreNotAllShown():
    root, sources = busy()
    sources["transfer"].transfers = [transfer(n, "x") for n in range(5000)]
    async with serving(root) as web:
        look = json.loads((await web.get("/status.json")).body)
    assert len(look["transfers"]) == MOST_TRANSFERS


@pytest_twisted.ensureDeferred
async def test_viewersAreLimitedAndGoAway():
    root, _ = busy()
    async with serving(root) as web:
        clients = [await follow(web) for _ in range(MOST_VIEWERS + 1)]
        assert [b" 200 " in client.received for client in clients] == [True] * MOST_VIEWERS + [
            False
        ]
        clients[0].transport.abortConnection()
        await bounded(clients[0].lost)
        for _ in range(100):
            client = await follow(web)
            client.transport.abortConnection()
            if b" 200 " in client.received:
                break
        else:
            raise AssertionError("the place of a viewer that left stays taken")
        for client in clients[1:]:
            client.transport.abortConnection()
