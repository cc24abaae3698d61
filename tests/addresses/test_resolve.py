"""
Resolving as Go does: the rows Go itself printed, and look-ups that end.
"""

import json
import re
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, serverFromString
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from connpool.addresses import (
    NameResolver,
    TCPAddr,
    UDPAddr,
    clientEndpoint,
    resolveTCPAddr,
    resolveUDPAddr,
)
from connpool.addresses.goaddress import isDomainName, parseLiteral, parsePort, splitGo
from connpool.addresses.resolve import systemServices
from connpool.errors import AddressError, LookupFailed
from tests.helpers.processes import connpool
from tests.helpers.waiting import assertNoResult, bounded, failureResultOf, successResultOf, until

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "go_addresses.jsonl").read_text().splitlines()
]

#: Rows where current Go differs from Go 1.19.8, which printed them: what it
#: gives now, and why.
CHANGED = {
    # golang/go #80168: 2**32 + 80 wrapped around
    ("tcp", "127.0.0.1:4294967376"): "address 4294967376: invalid port",
    # literals go through netip.ParseAddr since Go 1.22: a zone has a name,
    ("tcp", "[fe80::1%]:80"): "lookup fe80::1%: no such host",
    # begins at the first percent sign,
    ("tcp", "[fe80::1%a%b]:80"): TCPAddr("fe80::1", 80, "a%b"),
    # and a group of an IPv6 address has at most four digits
    ("tcp", "[::00001]:80"): "lookup ::00001: no such host",
    # golang/go #63160: an unknown service is a failed look-up
    ("tcp", "127.0.0.1: 80"): "lookup tcp/ 80: unknown port",
    ("tcp", "127.0.0.1:80 "): "lookup tcp/80 : unknown port",
    ("tcp", "127.0.0.1:0x50"): "lookup tcp/0x50: unknown port",
    ("udp", "127.0.0.1:http"): "lookup udp/http: unknown port",
    ("udp", "127.0.0.1:ssh"): "lookup udp/ssh: unknown port",
}

SERVICES = {
    ("http", "tcp"): 80,
    ("www", "tcp"): 80,
    ("https", "tcp"): 443,
    ("syslog", "tcp"): 514,
    ("domain", "tcp"): 53,
    ("domain", "udp"): 53,
}


def services(name, protocol):
    return SERVICES.get((name, protocol))


class Names:
    """
    A resolver that knows a few names and answers at once.
    """

    def __init__(self, **known):
        self.known = known
        self.asked = []

    def lookUp(self, host):
        self.asked.append(host)
        found = self.known.get(host.lower().replace(".", "_"))
        if found is None:
            return fail(LookupFailed(f"lookup {host}: no such host"))
        return succeed([(ip_address(text), "") for text in found])


def outcome(d):
    """
    The address, or the text of the error.
    """
    results = []
    d.addBoth(results.append)
    (result,) = results
    return str(result.value) if hasattr(result, "value") else result


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['Net']} {row['Addr']}"[:40])
def test_goRows(row):
    resolve = resolveTCPAddr if row["Kind"] == "tcp" else resolveUDPAddr
    names = Names(localhost=["127.0.0.1"])
    result = outcome(resolve(Clock(), row["Net"], row["Addr"], names, services))
    changed = CHANGED.get((row["Net"], row["Addr"]))
    if changed is not None:
        assert result == changed
        return
    if row["Err"]:
        # Go names the server it asked
        assert result == re.sub(r" on [0-9.]+:53", "", row["Err"])
        return
    make = TCPAddr if row["Kind"] == "tcp" else UDPAddr
    assert result == make(None if row["IPNil"] else row["IP"], row["Port"], row["Zone"])
    assert str(result) == row["Str"]
    # literals are never looked up
    assert names.asked == ([] if "localhost" not in row["Addr"].lower() else names.asked)


def test_everyChangedRowIsARow():
    assert set(CHANGED) <= {(row["Net"], row["Addr"]) for row in ROWS}
    assert len(ROWS) == 100


@pytest.mark.parametrize(
    ("network", "address", "ip"),
    [
        # IPv4 first for names, in whatever order the system answers
        ("tcp", "both:80", "192.0.2.1"),
        ("tcp", "[both]:80", "2001:db8::1"),
        ("tcp4", "[both]:80", "192.0.2.1"),
        ("tcp6", "both:80", "2001:db8::1"),
        ("tcp", "six:80", "2001:db8::6"),
        ("tcp", "[four]:80", "192.0.2.4"),
    ],
)
def test_whichAddressOfAName(network, address, ip):
    names = Names(both=["2001:db8::1", "192.0.2.1", "192.0.2.2"], six=["2001:db8::6"])
    names.known["four"] = ["192.0.2.4"]
    assert outcome(resolveTCPAddr(Clock(), network, address, names)) == TCPAddr(ip, 80)


def test_noAddressOfThisFamily():
    names = Names(six=["2001:db8::6"])
    result = outcome(resolveUDPAddr(Clock(), "udp4", "six:7", names))
    assert result == "address six: no suitable address found"


def test_namesThatAreNone():
    """
    They fail at once, without a look-up.
    """
    names = Names()
    for host in ("a" * 64, "x." * 130, "127.1", "-a", "a-", "a..b", "bücher", "a_b c", "1.2.3.4."):
        result = outcome(resolveTCPAddr(Clock(), "tcp", f"{host}:80", names))
        assert result == f"lookup {host}: no such host"
    assert names.asked == []


def test_domainNames():
    assert isDomainName("a" * 63 + ".example.")
    assert isDomainName("_dns.sd-1.example")
    assert isDomainName("1.example")
    assert not isDomainName("1.2.3")


def test_hugePortsTakeNoTime():
    assert outcome(resolveTCPAddr(Clock(), "tcp", "h:" + "9" * 100_000)).endswith("invalid port")
    assert outcome(resolveTCPAddr(Clock(), "tcp", ":" + "0" * 100_000 + "80")) == TCPAddr(None, 80)


@given(st.text(max_size=60), st.sampled_from(["tcp", "tcp4", "tcp6", "", "udp"]))
def test_anyText(text, network):
    """
    An address or one of our errors, whatever is asked.
    """
    result = outcome(resolveTCPAddr(Clock(), network, text, Names(), services))
    assert isinstance(result, TCPAddr | str)


@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.integers(0, 65535),
    st.sampled_from(["", "eth0", "2"]),
)
def test_roundTrip(ip, port, zone):
    if ip.version == 4 or ip.ipv4_mapped:
        zone = ""
    address = TCPAddr(str(getattr(ip, "ipv4_mapped", None) or ip), port, zone)
    assert outcome(resolveTCPAddr(Clock(), "tcp", str(address))) == address


@given(st.text("[]:a1%", max_size=12))
def test_splitting(text):
    try:
        host, port = splitGo(text)
    except AddressError as e:
        assert str(e).startswith(f"address {text}: ")  # noqa: PT017 - most texts raise nothing
        return
    assert text in {f"{host}:{port}", f"[{host}]:{port}"}
    assert ":" not in port


def test_servicesOfThisMachine():
    assert systemServices("http", "tcp") in {80, None}
    assert systemServices("no such service\0", "tcp") is None
    assert systemServices("\ud800", "tcp") is None
    assert parsePort("tcp", "+080", services) == 80
    assert parseLiteral("127.0.0.1%eth0") is None


# -- look-ups that end


class Threads(Clock):
    """
    A clock that takes calls from threads: those run in L{turn}.
    """

    def __init__(self):
        super().__init__()
        self.fromThreads = []
        self.called = threading.Semaphore(0)

    def callFromThread(self, function, *args):
        self.fromThreads.append((function, args))
        self.called.release()

    def turn(self):
        assert self.called.acquire(timeout=20)
        function, args = self.fromThreads.pop(0)
        function(*args)


V4 = (ip_address("192.0.2.1"), "")


def test_aNameIsLookedUpInAThread():
    clock = Threads()
    seen = []

    def ask(host):
        seen.append((host, threading.current_thread() is threading.main_thread()))
        return [V4]

    d = NameResolver(clock, ask=ask).lookUp("example.com")
    assertNoResult(d)
    clock.turn()
    assert successResultOf(d) == [V4]
    assert seen == [("example.com", False)]
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (__import__("socket").gaierror(-2, "Name or service not known"), "no such host"),
        (__import__("socket").gaierror(-3, "Temporary failure"), "server misbehaving"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (UnicodeError("label too long"), "label too long"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_whateverTheSystemSays(error, text):
    def ask(host):
        raise error

    clock = Threads()
    d = NameResolver(clock, ask=ask).lookUp("example.com")
    clock.turn()
    assert str(failureResultOf(d, LookupFailed)) == f"lookup example.com: {text}"


def test_noAnswerIsAFailure():
    clock = Threads()
    d = NameResolver(clock, ask=lambda _: []).lookUp("example.com")
    clock.turn()
    assert "no such host" in str(failureResultOf(d, LookupFailed))


def test_aSystemWithoutThreadsDoesNotStopItForEver(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    clock = Threads()
    resolver = NameResolver(clock, threads=1, ask=lambda _: [V4])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        d = resolver.lookUp("example.com")
        assert "can't start new thread" in str(failureResultOf(d, LookupFailed))
    d = resolver.lookUp("example.com")
    clock.turn()
    assert successResultOf(d) == [V4]


def test_aResolverThatNeverAnswers():
    """
    Everything ends: what has a thread, what waits for one, what is cancelled.
    """
    clock = Threads()
    go = threading.Event()
    asked = []

    def ask(host):
        asked.append(host)
        go.wait(20)
        return [V4]

    resolver = NameResolver(clock, timeout=10, threads=2, ask=ask)
    stuck = [resolver.lookUp(f"name{n}.example") for n in range(4)]
    stuck[0].cancel()
    stuck[2].cancel()
    failureResultOf(stuck[0], CancelledError)
    failureResultOf(stuck[2], CancelledError)
    clock.advance(10)
    for d in (stuck[1], stuck[3]):
        assert str(failureResultOf(d, LookupFailed)).endswith("i/o timeout")
    late = resolver.lookUp("late.example")
    assert len(asked) <= 2
    go.set()
    for _ in range(3):
        clock.turn()
    assert successResultOf(late) == [V4]
    # the cancelled and the late ones never began
    assert asked[2:] == ["late.example"]
    assert not clock.getDelayedCalls()


def test_aLongLabelFailsAtOnce():
    """
    Twisted's resolver never answers for it.
    """
    d = NameResolver(Clock()).lookUp("a" * 64 + ".example")
    assert "no such host" in str(failureResultOf(d, LookupFailed))
    assert successResultOf(NameResolver(Clock()).lookUp("::1")) == [(ip_address("::1"), "")]


class Receiver:
    def __init__(self):
        self.events = []

    def resolutionBegan(self, resolution):
        self.resolution = resolution
        self.events.append("began")

    def addressResolved(self, address):
        self.events.append((address.host, address.port))

    def resolutionComplete(self):
        self.events.append("complete")


def test_asAReactorsResolver():
    clock = Threads()
    link = (ip_address("fe80::1"), "eth0")
    resolver = NameResolver(clock, ask=lambda _: [V4, link])
    assert verifyObject(IHostnameResolver, resolver)
    receiver = Receiver()
    resolver.resolveHostName(receiver, "example.com", 80)
    assert receiver.events == ["began"]
    clock.turn()
    assert receiver.events == ["began", ("192.0.2.1", 80), ("fe80::1%eth0", 80), "complete"]
    from twisted.internet.address import IPv6Address

    receiver = Receiver()
    resolver.resolveHostName(receiver, "example.com", 80, [IPv6Address])
    clock.turn()
    assert receiver.events == ["began", ("fe80::1%eth0", 80), "complete"]
    receiver = Receiver()
    resolver.resolveHostName(receiver, "example.com", 80)
    receiver.resolution.cancel()
    assert receiver.events == ["began", "complete"]
    clock.turn()


# -- where to connect


@pytest_twisted.ensureDeferred
async def test_clientEndpoint(tmp_path):
    factory = Factory.forProtocol(Protocol)
    ports = [
        await bounded(serverFromString(reactor, text).listen(factory))
        for text in ("tcp:0:interface=127.0.0.1", f"unix:{tmp_path}/s")
    ]
    number = ports[0].getHost().port
    for text in (f"127.0.0.1:{number}", f"localhost:{number}", f"unix:{tmp_path}/s"):
        connected = await bounded(connectProtocol(clientEndpoint(reactor, text), Protocol()))
        lost = Deferred()
        connected.connectionLost = lambda _, lost=lost: lost.callback(None)
        connected.transport.loseConnection()
        await bounded(lost)
    for port in ports:
        await bounded(port.stopListening())
    await until(lambda: not [each for each in reactor.getReaders() if each in ports])


def test_clientEndpointKinds():
    assert isinstance(clientEndpoint(reactor, "h:1"), HostnameEndpoint)
    assert "fe80::1%lo" in str(vars(clientEndpoint(reactor, "[fe80::1%lo]:80")))


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("localhost", "no port"),
        ("::1:80", "too many colons"),
        ("h:no-such-service", "no tcp service is named"),
        ("a" * 64 + ".example:80", "not a host name"),
        ("127.1:80", "not a host name"),
        ("bücher.example:80", "not a host name"),
        ("tcp:h:80:timeout=x", "timeout= is seconds above 0"),
        ("", "no port"),
    ],
)
def test_clientEndpointMistakes(text, remedy):
    with pytest.raises(AddressError) as caught:
        clientEndpoint(reactor, text)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


# -- the command


def test_resolveCommand():
    found = connpool("resolve", "tcp6", "[fe80::1%eth0]:8640")
    assert (found.returncode, found.stdout) == (0, "[fe80::1%eth0]:8640\n")
    found = connpool("resolve", "udp", "localhost:7", "--json")
    assert json.loads(found.stdout) == {
        "address": "127.0.0.1:7",
        "ip": "127.0.0.1",
        "port": 7,
        "zone": "",
    }
    wrong = connpool("resolve", "tcp4", "[::1]:80")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "connpool resolve: address ::1: no suitable address found\n"
    wrong = connpool("resolve", "tcp", "a..b:80", "--json")
    assert json.loads(wrong.stdout) == {
        "error": "lookup a..b: no such host",
        "code": "lookup-failed",
    }
    assert wrong.returncode == 7
