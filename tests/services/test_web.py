"""
The options of the web door, and the clients that it is open to.
"""

import pytest
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python import usage
from zope.interface.verify import verifyObject

from connpool.addresses import parseListen
from connpool.errors import WrongSetting
from connpool.interfaces import IDrainableProtocol
from connpool.services import Access, FileReceiver, filerecv
from connpool.services.hints import curlHint
from connpool.services.web import WebEntrance, WebRefusal
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.reception import Reception
from connpool.transfer.stores import MemoryStore

CHECKER = InMemoryUsernamePasswordDatabaseDontUse()


@pytest.mark.parametrize(
    ("argv", "keywords", "says"),
    [
        (["--no-web", "--web-sha256"], {"web": False, "webSha256": True}, "not with --no-web"),
        (["--no-web", "--web-host=x"], {"web": False, "webHosts": ["x"]}, "not with --no-web"),
        (["--web-download"], {"webDownload": True}, "read = true"),
        (["--web-host=x:80"], {"webHosts": ["x:80"]}, "without the port"),
        (["--web-host=a b"], {"webHosts": ["a b"]}, "is not a name"),
        (["--web-host="], {"webHosts": [""]}, "--web-host: ''"),
        (["--web-origin=x"], {"webOrigins": ["x"]}, "--web-origin: 'x'"),
        (["--web-origin=https://x/"], {"webOrigins": ["https://x/"]}, "without a path"),
        (["--web-origin=https://X"], {"webOrigins": ["https://X"]}, "lower case"),
        (["--web-origin=https://x:443"], {"webOrigins": ["https://x:443"]}, "usual port"),
        (["--web-origin=https://*.x"], {"webOrigins": ["https://*.x"]}, "not an origin"),
        (["--web-origin=null"], {"webOrigins": ["null"]}, "not an origin"),
        (["--web-origin=*"], {"webOrigins": ["*"]}, "--auth"),
        (["--web-url=x"], {"webUrl": "x"}, "--web-url: 'x'"),
        (["--web-url=https://x/?y"], {"webUrl": "https://x/?y"}, "not the URL"),
        (["--web-url=https://u@x/"], {"webUrl": "https://u@x/"}, "not the URL"),
    ],
)
def test_mistakes(argv, keywords, says):
    options = filerecv.Options()
    with pytest.raises(usage.UsageError) as told:
        options.parseOptions(argv)
    with pytest.raises(WrongSetting) as raised:
        FileReceiver(Clock(), "inbox", **keywords)
    assert str(raised.value) == str(told.value)
    assert says in str(told.value)
    assert "\n" not in str(told.value)


def test_bothWays():
    with pytest.raises(usage.UsageError, match="exclude one another"):
        filerecv.Options().parseOptions(["--web", "--no-web"])


def test_whatIsTaken(tmp_path):
    (tmp_path / "passwords").write_text("a:b\n")
    argv = ["--web", "--web-host=x", "--web-host=Y.", "--web-url=https://x:1/up", "--web-sha256"]
    argv += ["--web-origin=http://127.0.0.1:8080", "--web-origin=https://[::1]:1"]
    argv += ["--web-origin=*", f"--auth=file:{tmp_path}/passwords"]
    filerecv.Options().parseOptions(argv)


def entrance(web=None):
    clock = Clock()
    made = WebEntrance(clock, web, (), (), None, False, credentials=False)
    made.start(Reception(MemoryStore(), clock, Policy()), None)
    return made


def ask(made, peer):
    transport = StringTransport(peerAddress=peer)
    protocol = made.choices[0].build(transport)
    protocol.makeConnection(transport)
    if not isinstance(protocol, WebRefusal):
        protocol.dataReceived(b"GET / HTTP/1.0\r\n\r\n")
        protocol.connectionLost()
    return int(transport.value().split(b" ")[1])


HERE, THERE = IPv4Address("TCP", "127.0.0.1", 1), IPv4Address("TCP", "192.0.2.1", 1)


@pytest.mark.parametrize(
    ("web", "peer", "status"),
    [
        (None, HERE, 200),
        (None, UNIXAddress("/x"), 200),
        (None, THERE, 403),
        (True, HERE, 200),
        (True, THERE, 200),
    ],
)
def test_theDoorIsOpen(web, peer, status):
    assert ask(entrance(web), peer) == status


def test_noDoor():
    assert entrance(False).choices == []
    receiver = FileReceiver(Clock(), "inbox", web=False)
    assert [getattr(each, "kind", None) for each in receiver] == ["listener"]


def test_theRefusal():
    transport = StringTransport()
    refusal = WebRefusal()
    refusal.makeConnection(transport)
    head, _, body = transport.value().partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert b"--web" in body
    assert transport.disconnecting
    verifyObject(IDrainableProtocol, refusal)
    refusal.drain()
    refusal.readConnectionLost()
    refusal.writeConnectionLost()


@pytest.mark.parametrize(("web", "names"), [(None, [b"http/1.1"]), (False, [])])
def test_theNameInTheHandshake(web, names):
    """
    curl and browsers ask for one, and a server that knows none ends the handshake.
    """
    gate = FileReceiver(Clock(), "inbox", web=web).listening.gate
    verifyObject(IProtocolNegotiationFactory, gate)
    assert gate.acceptableProtocols() == names


@pytest.mark.parametrize(
    ("listen", "address", "credentials", "hint"),
    [
        ("tcp:1", IPv4Address("TCP", "0.0.0.0", 1), False, "http://127.0.0.1:1/"),
        ("tcp:1", IPv4Address("TCP", "127.0.0.1", 1), True, "-u USER -T FILE http"),
        ("unix:/x", UNIXAddress("/x"), False, "--unix-socket /x -T FILE http://localhost/"),
        ("proxied:tcp:1:trusted=127.0.0.1", HERE, False, None),
    ],
)
def test_theHint(listen, address, credentials, hint):
    told = curlHint(parseListen(listen), address, Access(), credentials=credentials)
    assert (hint is None) is (told is None)
    assert told is None or hint in told
