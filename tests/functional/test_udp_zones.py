"""
Link-local addresses on a host with three links.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import pytest

from tests.helpers.namespaces import ip, link, namespaces
from tests.helpers.processes import TWISTD, finished, running

LINKS = ("la", "lb", "lc")


class Net:
    """
    A host with three links, each to a peer; those of C{la} and C{lb} have the same
    address.
    """

    def __init__(self, host, peers):
        self.host = host
        self.peers = dict(zip(LINKS, peers, strict=True))

    def address(self, name):
        """
        The peer's address on the link C{name}.
        """
        return self.peers[name].linkLocal("out")

    def ping(self, *arguments, by=None):
        return finished(
            *(by or self.host).enter, sys.executable, "-m", "connpool", "ping", "--count", "3",
            "--interval", "0.05", "--timeout", "2", *arguments,
        )  # fmt: skip


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    where = tmp_path_factory.mktemp("zones")
    with namespaces(4) as (host, *peers), ExitStack() as stack:
        for name, peer, mac in zip(LINKS, peers, ("02:00:00:00:00:05",) * 2 + ("",), strict=True):
            link(host, name, peer, "out", mac)
        programs = [
            stack.enter_context(
                running(
                    *peer.enter, *TWISTD, "-n", "--pidfile=", "udpecho",
                    "--listen", "udp:8641", "--listen", r"tcp:8641:interface=\:\:",
                    cwd=where,
                )
            )
            for peer in peers
        ]  # fmt: skip
        for program in programs:
            program.waitFor("starting on 8641")
        yield Net(host, peers)


def test_theSameAddressOnTwoLinks(net):
    assert net.address("la") == net.address("lb") != net.address("lc")


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("protocol", ["echo", "irtt", "tcp"])
def test_sends(net, name, protocol):
    result = net.ping(f"[{net.address(name)}%{name}]:8641", "--protocol", protocol)
    assert "3 sent, 3 received, 0 lost" in result.stdout, result.stdout + result.stderr


def test_aLinkByNumberOrByInterface(net):
    address = net.address("lc")
    index = ip("-n", net.host.name, "-o", "link", "show", "lc").split(":")[0]
    for words in ([f"[{address}%{index}]:8641"], [f"[{address}]:8641", "--interface", "lc"]):
        result = net.ping(*words)
        assert "3 received" in result.stdout, result.stdout + result.stderr
        assert "%lc]:8641 echo" in result.stdout


def test_allAtOnceFromOneSource(net):
    source = net.host.linkLocal("lc") + "%lc"
    assert "3 received" in net.ping(f"[{net.address('lc')}%lc]:8641", "--source", source).stdout
    result = net.ping(*(f"[{net.address(name)}%{name}]:8641" for name in LINKS))
    assert result.stdout.count("3 sent, 3 received, 0 lost = 0.00 %") == 3, result.stdout


@pytest.mark.parametrize("protocol", ["echo", "tcp"])
def test_withoutAZoneTheLinksAreNamed(net, protocol):
    result = net.ping(f"[{net.address('la')}]:8641", "--protocol", protocol)
    assert (result.returncode, result.stdout) == (2, "")
    assert "say on which link" in result.stderr
    assert "la, lb, lc, lo" in result.stderr
    assert result.stderr.count("\n") == 1


def test_aLinkThatIsNotThere(net):
    for words in (["[fe80::1%ld]:8641"], [f"[{net.address('la')}]:8641", "--interface", "ld"]):
        result = net.ping(*words)
        assert (result.returncode, result.stdout) == (2, "")
        assert "no link 'ld'; its links: la, lb, lc, lo" in result.stderr
    result = net.ping("127.0.0.1:8641", "--interface", "ld")
    assert result.returncode == 2
    assert "interface 'ld': this machine has no such link; its links: la" in result.stderr


def test_bindsToOneLink(net, tmp_path):
    own = net.host.linkLocal("lb")
    listen = "udp:8642:interface=" + own.replace(":", r"\:")
    with running(
        *net.host.enter, *TWISTD, "-n", "--pidfile=", "udpecho", "--listen", f"{listen}%lb",
        cwd=tmp_path,
    ) as program:  # fmt: skip
        program.waitFor("answers on")
        result = net.ping(f"[{own}%out]:8642", by=net.peers["lb"])
        assert "3 received" in result.stdout, result.stdout + result.stderr
    result = finished(
        *net.host.enter, *TWISTD, "-n", "--pidfile=", "udpecho", "--listen", listen, cwd=tmp_path
    )
    assert result.returncode == 1
    assert "say on which link" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("protocol", ["auto", "echo", "stamp"])
def test_answersOnEveryLink(net, tmp_path, protocol):
    with running(
        *net.host.enter, *TWISTD, "-n", "--pidfile=", "udpecho", "--listen", "udp:8643",
        "--protocol", protocol, cwd=tmp_path,
    ) as program:  # fmt: skip
        program.waitFor("answers on")
        for name, peer in net.peers.items():
            target = f"[{net.host.linkLocal(name)}%out]:8643"
            words = ["--protocol", "stamp"] if protocol == "stamp" else []
            result = net.ping(target, *words, by=peer)
            assert "3 received" in result.stdout, name + result.stdout + result.stderr


def test_aFamilyThatIsNotThere(net, tmp_path):
    """
    The host has no IPv4 address but loopback; a name with both is measured by IPv6.
    """
    for side, own in ((net.host, "fd00::1"), (net.peers["la"], "fd00::2")):
        its = "la" if side is net.host else "out"
        ip("-n", side.name, "addr", "add", f"{own}/64", "dev", its, "nodad")
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.1 both\nfd00::2 both\n192.0.2.1 four\n")
    ping = (
        f"mount --bind {hosts} /etc/hosts && exec {sys.executable} -m connpool ping "
        "--count 2 --interval 0.05 --timeout 1 "
    )

    def measured(words):
        return finished(*net.host.enter, "unshare", "-m", "sh", "-c", ping + words)

    result = measured("both:8641")
    assert "[fd00::2]:8641 echo, 64 bytes: 2 sent, 2 received" in result.stdout, result.stderr
    result = measured("four:8641")
    assert result.returncode == 1
    assert "2 lost = 100 %, 2 of them could not be sent\nENETUNREACH 2" in result.stdout
    result = measured("both:8641 -4")
    assert "could not be sent" in result.stdout
    result = measured("four:8641 -6")
    assert (result.returncode, result.stdout) == (7, "")
    assert "four has no IPv6 address" in result.stderr


def test_marksArrive(net, tmp_path):
    """
    DSCP and TTL, as STAMP's reflector has seen them.
    """
    seen = tmp_path / "seen.py"
    seen.write_text(
        "import socket\n"
        "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
        "s.setsockopt(41, socket.IPV6_RECVTCLASS, 1)\n"
        "s.setsockopt(41, socket.IPV6_RECVHOPLIMIT, 1)\n"
        "s.bind(('::', 8650))\n"
        "print('bound', flush=True)\n"
        "data, control, _, addr = s.recvmsg(100, 200)\n"
        "print('seen', {kind: value[0] for _, kind, value in control}, flush=True)\n"
        "s.sendto(data, addr)\n"
    )
    with running(*net.peers["lc"].enter, sys.executable, str(seen)) as program:
        program.waitFor("bound")
        result = net.ping(
            f"[{net.address('lc')}%lc]:8650", "--dscp", "EF", "--ttl", "7", "--count", "1"
        )
        assert "1 received" in result.stdout
        # IPV6_TCLASS 67, IPV6_HOPLIMIT 52
        found = program.waitFor(r"seen \{(.*)\}")[1]
        assert "67: 184" in found
        assert "52: 7" in found
