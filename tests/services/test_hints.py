"""
The commands that services print; tests/functional/test_endings.py pastes them.
"""

import attrs
import pytest
import trustme
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from connpool.addresses import Networks, parseListen
from connpool.services import hints
from connpool.services.access import Access
from connpool.services.hints import commandLine, localHost, sendHint, sendHintElsewhere


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    path = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    for name, hosts in (("here", ("localhost", "127.0.0.1")), ("away", ("inbox.example",))):
        issued = authority.issue_cert(*hosts)
        issued.private_key_and_cert_chain_pem.write_to_path(str(path / f"{name}.pem"))
    return path


def v4(host, port=8640):
    return IPv4Address("TCP", host, port)


def v6(host, port=8640):
    return IPv6Address("TCP", host, port)


def hint(listen, address, *, allow=(), credentials=False):
    access = Access(allow=Networks.parse(allow))
    return sendHint(parseListen(listen), address, access, credentials=credentials)


@pytest.mark.parametrize(
    ("listen", "address", "to"),
    [
        ("tcp:8640", v4("0.0.0.0"), "127.0.0.1:8640"),
        ("tcp:8640:interface=10.0.0.7", v4("10.0.0.7"), "10.0.0.7:8640"),
        (r"tcp:8640:interface=\:\:", v6("::"), "[::1]:8640"),
        (r"tcp:8640:interface=\:\:1", v6("::1"), "[::1]:8640"),
        ("systemd:domain=INET6:index=0", v6("::"), "[::1]:8640"),
        ("unix:/run/s", UNIXAddress(b"/run/s"), "unix:/run/s"),
        (r"unix:/run/a\:b", UNIXAddress(b"/run/a:b"), r"'unix:/run/a\:b'"),
        ("proxied:tcp:1:trusted=127.0.0.1", v4("127.0.0.1"), "proxyheader:tcp:127.0.0.1:8640"),
        ("proxied:tcp:1:trusted=192.0.2.1", v4("127.0.0.1"), "PROXY:PORT"),
    ],
)
def test_plain(listen, address, to):
    assert hint(listen, address) == f"connpool send --to {to} FILE"


@pytest.mark.parametrize(
    ("listen", "address", "to"),
    [
        ("secured:tcp:1:certificate=here.pem", v4("0.0.0.0"), "tls:127.0.0.1:8640"),
        (
            r"secured:tcp:1:interface=\:\::certificate=here.pem",
            v6("::"),
            r"'tls:localhost:endpoint=tcp\:[\:\:1]\:8640'",
        ),
        (
            "secured:tcp:1:certificate=away.pem",
            v4("127.0.0.1"),
            r"'tls:inbox.example:endpoint=tcp\:127.0.0.1\:8640'",
        ),
        (
            "secured:unix:s:certificate=here.pem",
            UNIXAddress(b"/run/s"),
            r"'tls:localhost:endpoint=unix\:/run/s'",
        ),
        ("ssl:1:privateKey=here.pem", v4("127.0.0.1"), "tls:127.0.0.1:8640"),
        (
            "secured:proxied:tcp:1:trusted=127.0.0.1:certificate=here.pem",
            v4("127.0.0.1"),
            r"'tls:127.0.0.1:endpoint=proxyheader\:tcp\:127.0.0.1\:8640'",
        ),
    ],
)
def test_withinTLS(certificates, monkeypatch, listen, address, to):
    monkeypatch.chdir(certificates)
    shown = "away" if "away" in listen else "here"
    expected = f"connpool send --to {to} --ca {certificates}/{shown}.pem FILE"
    assert hint(listen, address) == expected


def test_aCertificateThatTheSystemTrustsNeedsNoOption(certificates, monkeypatch):
    monkeypatch.setattr(hints, "_publiclyTrusted", lambda certificates: True)
    listen = f"secured:tcp:1:certificate={certificates}/here.pem"
    assert hint(listen, v4("127.0.0.1")) == "connpool send --to tls:127.0.0.1:8640 FILE"


def test_credentialsAndClientCertificates(certificates):
    listen = f"secured:tcp:1:certificate={certificates}/here.pem"
    assert hint(listen, v4("127.0.0.1"), credentials=True).endswith(
        " --credentials CREDENTIALS FILE"
    )
    certified = hint(f"{listen}:trustRoots=ca.pem", v4("127.0.0.1"), credentials=True)
    assert "--to tls:127.0.0.1:8640:certificate=CLIENT.pem " in certified
    assert "CREDENTIALS" not in certified


def test_ofAllAddressesOneThatIsLetIn(monkeypatch):
    monkeypatch.setattr(hints, "_ownAddresses", lambda v6: iter(["10.1.2.3", "10.9.9.9"]))
    allowed = Access(allow=Networks.parse(["10.9.0.0/16"]))
    assert localHost("0.0.0.0", allowed) == "10.9.9.9"
    assert localHost("0.0.0.0", Access()) == "127.0.0.1"
    denied = attrs.evolve(Access(), deny=Networks.parse(["127.0.0.0/8"]))
    assert localHost("0.0.0.0", denied) == "10.1.2.3"


def test_elsewhereACertificatesNameIsKnown(certificates):
    away = parseListen(f"secured:tcp:1:certificate={certificates}/away.pem")
    told = sendHintElsewhere(away, v4("0.0.0.0"), credentials=False)
    assert told == "connpool send --to tls:inbox.example:8640 --ca CA.pem FILE"
    here = parseListen(f"secured:tcp:1:certificate={certificates}/here.pem")
    assert sendHintElsewhere(here, v4("0.0.0.0"), credentials=False) is None
    assert sendHintElsewhere(parseListen("tcp:1"), v4("0.0.0.0"), credentials=False) is None


def test_wordsAsAShellTakesThem():
    assert commandLine(["a", "[::1]:8641", "b c", "$x"]) == "a [::1]:8641 'b c' '$x'"
