"""
Requests that a page, a proxy or a stranger makes.
"""

import base64
import socket

import pytest
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.address import IPv4Address, UNIXAddress

from connpool.errors import AuthenticationFailed
from connpool.services.credentials import Authenticator
from connpool.transfer.identities import Identity
from connpool.transfer.web.gate import readCredentials
from tests.transfer.web.kit import HOST, request
from tests.transfer.world import Passwords

SMALL = b"small"


def basic(user=b"alice", secret=b"right", scheme=b"Basic"):
    return b"Authorization: " + scheme + b" " + base64.b64encode(user + b":" + secret)


# -- hosts: DNS rebinding

OWN = socket.gethostname().lower().encode()


@pytest.mark.parametrize(
    "host",
    [
        *(b"127.0.0.1", b"127.0.0.1:8640", b"[::1]", b"[::1]:8640", b"localhost", b"LocalHost:1"),
        *(b"192.0.2.1", b"localhost.", OWN, OWN.partition(b".")[0] + b".local:8640"),
        *(b"files.example", b"FILES.example:443"),
    ],
)
def test_hosts(doors, host):
    client = doors(hosts=("files.example",)).connect()
    assert client.ask(b"PUT", b"/x", SMALL, host=host).status == 201


@pytest.mark.parametrize(
    "host",
    [
        *(b"evil.example", b"evil.example:8640", b"127.0.0.1.evil.example", b"", b"0x7f.1"),
        *(b"localhost.evil.example", b"2130706433", b"127.1", b"localhost..", b"files.example.x"),
    ],
)
def test_otherHosts(doors, host):
    world = doors(hosts=("files.example",), origins=("https://app.example",))
    for method in (b"PUT", b"GET", b"OPTIONS", b"POST", b"DELETE"):
        answer = world.connect().ask(method, b"/x", SMALL, [b"Origin: https://app.example"], host)
        assert answer.status == 421
        assert "access-control-allow-origin" not in answer.fields
    assert world.files == {}


@pytest.mark.parametrize(
    "host", [b"[::1].x", b"[::1", b"::1", b"localhost:x", b"a,b/", b"x@localhost"]
)
def test_hostsThatAreNone(door, host):
    assert door.connect().ask(b"PUT", b"/x", SMALL, host=host).status in {400, 421}
    assert door.files == {}


def test_theHostOfTheUrl(doors):
    world = doors(url="https://files.example:8443/up/")
    assert world.connect().ask(b"PUT", b"/x", SMALL, host=b"files.example").status == 201


# -- origins: pages of other sites


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [b"Origin: http://" + HOST],
        [b"Origin: https://" + HOST],
        [b"Sec-Fetch-Site: same-origin"],
        [b"Sec-Fetch-Site: none"],
        [b"Sec-Fetch-Mode: cors"],
        [b"Referer: http://" + HOST + b"/"],
        [b"Origin: https://app.example", b"Sec-Fetch-Site: cross-site"],
        [b"Origin: https://files.example"],
    ],
)
def test_origins(doors, fields):
    world = doors(origins=("https://app.example",), url="https://files.example/")
    assert world.connect().put(b"/x", SMALL, *fields).status == 201


@pytest.mark.parametrize(
    "fields",
    [
        [b"Origin: http://evil.example"],
        [b"Origin: null"],
        [b"Origin: "],
        [b"Origin: http://127.0.0.1:8641"],
        [b"Origin: http://127.0.0.1"],
        [b"Origin: http://127.0.0.1:8640.evil.example"],
        [b"Origin: http://x@" + HOST],
        [b"Origin: http://" + HOST + b"/"],
        [b"Origin: http://LOCALHOST:8640"],
        [b"Origin: file://" + HOST],
        [b"Origin: https://app.example/"],
        [b"Origin: https://APP.example"],
        [b"Origin: https://app.example:443"],
        [b"Origin: https://app.example.evil.example"],
        [b"Origin: http://app.example"],
        [b"Origin: http://" + HOST, b"Origin: http://evil.example"],
        [b"Sec-Fetch-Site: cross-site"],
        [b"Sec-Fetch-Site: same-site"],
        [b"Referer: http://evil.example/" + HOST],
        [b"Referer: about:blank"],
    ],
)
def test_otherOrigins(doors, fields):
    world = doors(origins=("https://app.example",))
    for method in (b"PUT", b"POST", b"PATCH", b"DELETE"):
        answer = world.connect().ask(method, b"/x", SMALL, fields)
        assert (answer.status, answer.json["code"]) == (403, "forbidden")
        assert "access-control-allow-origin" not in answer.fields
    assert world.files == {}


def test_rightHostAndWrongOriginAndTheReverse(door):
    client = door.connect().ask
    assert client(b"PUT", b"/x", SMALL, [b"Origin: http://evil.example"]).status == 403
    client = door.connect().ask
    assert client(b"PUT", b"/x", SMALL, [b"Origin: http://" + HOST], b"evil.example").status == 421
    assert door.files == {}


def test_everyOrigin(doors):
    world = doors(origins=("*",))
    assert world.connect().put(b"/x", SMALL, b"Origin: https://any.example").status == 201
    assert world.connect().put(b"/y", SMALL, b"Origin: null").status == 403


def test_answersForListedOrigins(doors):
    world = doors(origins=("https://app.example",), authenticator=Passwords(b"right"))
    client = world.connect()
    for origin, status, shared in (
        (b"https://app.example", 401, True),
        (b"https://evil.example", 403, False),
        (None, 401, False),
    ):
        fields = [] if origin is None else [b"Origin: " + origin]
        answer = world.connect().put(b"/x", SMALL, *fields)
        assert answer.status == status
        assert answer.fields["vary"] == "Origin"
        assert answer.fields.get("access-control-allow-origin") == (
            origin.decode() if shared else None
        )
        assert ("access-control-expose-headers" in answer.fields) is shared
        assert "access-control-allow-credentials" not in answer.fields
    preflight = client.ask(
        b"OPTIONS",
        b"/x",
        None,
        [
            b"Origin: https://app.example",
            b"Access-Control-Request-Method: PUT",
            b"Access-Control-Request-Private-Network: true",
            b"Access-Control-Request-Headers: " + b",".join([b"x"] * 5000),
        ],
    )
    assert preflight.status == 204
    assert preflight.fields["access-control-allow-origin"] == "https://app.example"
    assert "PUT" in preflight.fields["access-control-allow-methods"]
    assert preflight.fields["access-control-max-age"] == "86400"
    assert "access-control-allow-private-network" not in preflight.fields
    assert "content-length" not in preflight.fields


@pytest.mark.parametrize(
    "fields",
    [
        [b"Access-Control-Request-Method: PUT"],
        [b"Access-Control-Request-Method: PUT", b"Origin: https://evil.example"],
        [b"Access-Control-Request-Method: PUT", b"Origin: null"],
        [b"Origin: https://app.example"],
    ],
)
def test_noPreflight(doors, fields):
    answer = doors(origins=("https://app.example",)).connect().ask(b"OPTIONS", b"/x", None, fields)
    assert answer.status == 204
    assert "access-control-allow-methods" not in answer.fields
    assert "PUT" in answer.fields["allow"]


def test_theServerAsAWhole(door):
    assert door.connect().ask(b"OPTIONS", b"*").status == 204


# -- proxies on this machine

FORWARDING = [
    *(b"X-Forwarded-For: 127.0.0.1", b"X-Real-IP: 127.0.0.1", b"Forwarded: for=127.0.0.1"),
    *(b"Via: 1.1 x", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: 127.0.0.1", b"via:"),
]


@pytest.mark.parametrize("field", FORWARDING)
@pytest.mark.parametrize("peer", [IPv4Address("TCP", "127.0.0.1", 1), UNIXAddress("")])
def test_aProxyLaundersNoTrust(doors, field, peer):
    for settings in ({}, {"url": "http://files.example/"}):
        world = doors(**settings)
        answer = world.connect(peer=peer).put(b"/x", SMALL, field)
        assert answer.status == 403
        assert "--web-url" in answer.json["detail"]
        assert world.files == {}
    world = doors(url="https://files.example/")
    assert world.connect(peer=peer).put(b"/x", SMALL, field).status == 201


@pytest.mark.parametrize("field", FORWARDING)
def test_forwardingFieldsGrantNothing(doors, field):
    """
    From elsewhere they change neither who is asking nor what is logged nor what is told.
    """
    world = doors(authenticator=Passwords(b"right"), url="https://files.example/")
    client = world.connect("192.0.2.7")
    answer = client.put(b"/x", SMALL, field, basic())
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    plain = doors(url="https://files.example/")
    answer = plain.connect("192.0.2.7").put(b"/x", SMALL, field)
    assert answer.fields["location"] == "https://files.example/x"
    assert plain.reception.recent.latest()[0].peer == "192.0.2.7"


# -- credentials


@pytest.mark.parametrize("scheme", [b"Basic", b"basic", b"Bearer"])
def test_credentials(doors, scheme):
    world = doors(authenticator=Passwords(b"right"))
    answer = world.connect().put(b"/x", SMALL, basic(scheme=scheme))
    assert answer.status == 201
    assert answer.json["principal"] == "alice"


@pytest.mark.parametrize(
    "field",
    [
        b"X: y",
        basic(secret=b"wrong"),
        b"Authorization: Basic",
        b"Authorization: Basic YWxpY2U=",
        b"Authorization: Basic !!!!",
        b"Authorization: Basic YWxpY2U6cmlnaHQ",
        b"Authorization: Basic /zpyaWdodA==",
        b"Authorization: Digest x",
        b"Authorization: right",
        b"Authorization: Bearer " + b"A" * 15_000,
    ],
)
def test_wrongCredentials(doors, field):
    world = doors(authenticator=Passwords(b"right"))
    answer = world.connect().put(b"/x", SMALL, field)
    assert (answer.status, answer.json["code"]) == (401, "auth-failed")
    assert answer.fields["www-authenticate"].startswith("Basic realm=")
    assert world.files == {}


def test_twoCredentials(doors):
    world = doors(authenticator=Passwords(b"right"))
    assert world.connect().put(b"/x", SMALL, basic(), basic()).status == 400
    assert world.files == {}


def test_credentialsInClear(doors):
    """
    From elsewhere without TLS they are not even looked at.
    """
    checked = []

    class Noticing(Passwords):
        def password(self, transport, user, secret):
            checked.append(user)
            return super().password(transport, user, secret)

    world = doors(authenticator=Noticing(b"right"))
    for host in ("192.0.2.1", "10.0.0.1"):
        answer = world.connect(host).put(b"/x", SMALL, basic())
        assert (answer.status, answer.json["code"]) == (403, "forbidden")
    assert checked == []
    # a right answer holds for these very bytes
    client = world.connect()
    statuses = [
        client.put(b"/x", SMALL, field).status
        for field in (basic(), basic(), basic(user=b"bob"), basic(user=b"bob"), basic())
    ]
    assert statuses == [201, 200, 200, 200, 200]
    assert checked == ["alice", "bob", "alice"]


@pytest.mark.parametrize("third", [basic(secret=b"wrong"), b"X: y"])
def test_rightAndThenWrong(doors, third):
    world = doors(authenticator=Passwords(b"right"))
    client = world.connect()
    assert client.put(b"/a", SMALL, basic()).status == 201
    assert client.put(b"/b", SMALL, third).status == 401
    assert list(world.files) == ["a"]


def test_theExpectationOfAStranger(doors):
    world = doors(authenticator=Passwords(b"right"))
    head = request(b"PUT", b"/x", bytes(1 << 20), [b"Expect: 100-continue"])[: -(1 << 20)]
    client = world.connect().send(head)
    assert [answer.status for answer in client.answers()] == [401]


def test_aCertificateFirst(doors):
    class Both(Passwords):
        def certified(self, transport):
            return Identity("certificate:machine")

    world = doors(authenticator=Both(b"right"))
    answer = world.connect("192.0.2.1").put(b"/x", SMALL, basic(user=b"bob"))
    assert answer.json["principal"] == "certificate:machine"


def test_onlyCertificates(doors):
    class Certificates(Passwords):
        takesPasswords = False

    answer = doors(authenticator=Certificates(b"")).connect().put(b"/x", SMALL, basic())
    assert answer.status == 403
    assert "certificate" in answer.json["detail"]


def test_aCheckerWithAFault(doors, expectFailure):
    expectFailure(ZeroDivisionError)

    class Faulty(Passwords):
        def password(self, transport, user, secret):
            raise ZeroDivisionError

    answer = doors(authenticator=Faulty(b"")).connect().put(b"/x", SMALL, basic())
    assert answer.status == 401


def guesser(doors, **settings):
    checker = InMemoryUsernamePasswordDatabaseDontUse(alice=b"right", bob=b"right")
    world = doors(**settings)
    world.door = type(world.door)(
        *(world.clock, world.reception, Authenticator(world.clock, [checker])),
        counts=world.counts,
    )
    return world


def test_guessing(doors):
    world = guesser(doors)
    client = world.connect()
    for number in range(100):
        assert client.put(b"/x", b"", basic(secret=b"%d" % number)).status == 401
    assert client.put(b"/x", b"", basic()).status == 401
    world.clock.advance(60.0)
    assert world.connect().put(b"/x", b"", basic()).status == 201


def test_guessingBehindAProxyIsCountedForTheUser(doors):
    """
    All clients of the proxy have its address.
    """

    class Slow(Passwords):
        asked = 0

        def password(self, transport, user, secret):
            Slow.asked += 1
            return super().password(transport, user, secret)

    world = doors(authenticator=Slow(b"right"), url="https://files.example/")
    for number in range(30):
        client = world.connect()
        guess = basic(secret=b"%d" % number)
        assert client.put(b"/x", b"", guess, b"X-Forwarded-For: 192.0.2.1").status == 401
    assert Slow.asked == 10
    assert world.connect().put(b"/x", b"", basic(), b"Via: x").status == 401
    assert world.connect().put(b"/y", b"", basic(user=b"bob"), b"Via: x").status == 201


def test_theConnectionsOfASender(doors):
    class Table(Passwords):
        def password(self, transport, user, secret):
            return super().password(transport, user, secret).addCallback(lambda _: alice)

    alice = Identity("alice", maxConnections=2)
    world = doors(authenticator=Table(b"right"))
    clients = [world.connect() for _ in range(3)]
    assert [client.put(b"/x", b"", basic()).status for client in clients] == [201, 200, 503]
    assert clients[0].put(b"/x", b"", basic()).status == 200
    clients[1].reset()
    assert world.connect().put(b"/x", b"", basic()).status == 200


def test_refusalsAreSummarised(door, caplog):
    from twisted.logger import globalLogPublisher

    lines = []
    globalLogPublisher.addObserver(lines.append)
    try:
        for _ in range(1000):
            door.connect().put(b"/x", b"", b"Origin: http://evil.example")
        door.clock.advance(61.0)
        door.connect().put(b"/x", b"", b"Origin: http://evil.example")
    finally:
        globalLogPublisher.removeObserver(lines.append)
    texts = [line["text"] for line in lines if "text" in line]
    assert len(texts) == 2
    assert "999 more" in texts[1]
    assert door.counts.stats().refused == {"forbidden": 1001}


def test_wordsThatAreNoCredentials():
    for value in (b"", b"Basic", b"Basic :", b"Basic OnJpZ2h0\x01", b"Bearer"):
        with pytest.raises(AuthenticationFailed):
            readCredentials(value)
