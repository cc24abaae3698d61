import pytest

from connpool.addresses import parseListen, tokenize
from connpool.errors import AddressError


def test_tokenizeUnescapes():
    assert tokenize(r"tcp:80:interface=\:\:1:a\=b:c=d=e") == (
        ["tcp", "80", "a=b"],
        {"interface": "::1", "c": "d=e"},
    )


@pytest.mark.parametrize(
    ("description", "local", "datagram"),
    [
        ("tcp:8640:interface=127.0.0.1", True, False),
        (r"tcp:8640:interface=\:\:1", True, False),
        (r"tcp6:8640:interface=\:\:1", True, False),
        ("tcp:8640", False, False),
        ("tcp:8640:interface=0.0.0.0", False, False),
        ("unix:/run/x.sock", True, False),
        ("systemd:domain=INET:name=web", False, False),
        ("systemd:INET6:0", False, False),
        ("systemd:domain=UNIX:name=web", True, False),
        ("proxied:systemd:domain=UNIX:name=web:trusted=unix", False, False),
        # who is behind it does not show
        ("haproxy:tcp:8640:interface=127.0.0.1", False, False),
        ("secured:tcp:443:interface=127.0.0.1:certificate=c:privateKey=k", True, False),
        ("proxied:tcp:443:interface=127.0.0.1:trusted=unix", False, False),
        ("proxied:secured:tcp:443:trusted=10.0.0.0/8", False, False),
        ("udp:8641:interface=127.0.0.1", True, True),
        ("udp:8641", False, True),
        ("udp:systemd:name=echo", False, True),
    ],
)
def test_whoCanReachIt(description, local, datagram):
    listen = parseListen(description)
    assert listen.local is local
    assert listen.datagram is datagram


@pytest.mark.parametrize(
    "description",
    [
        "",
        "tcp",
        "proxied:",
        ":80",
        "8640",
        "udp:8641:127.0.0.1",
        "udp:8641:::1",
        "udp:x",
        "udp:65536",
        "udp:1:interfce=127.0.0.1",
        # what systemd passed is open where systemd opened it
        "udp:systemd:name=echo:interface=127.0.0.1",
        "udp:8641:name=echo",
        "udp:systemd:index=first",
        "systemd:name=web",
        "systemd:domain=INET",
        "systemd:domain=IPV4:name=web",
        "systemd:domain=INET:name=web:index=0",
        "systemd:domain=INET:index=-1",
        "secured:systemd:domain=FOO:name=web:certificate=c",
        "udp:1:reusePort=maybe",
        "tcp:80:interface=a:interface=b",
        "tcp:80\\",
        "tcp:nosuch",
        "tcp:65536",
        "tcp:-5:interface=127.0.0.1",
    ],
)
def test_mistakesAreOneLine(description):
    with pytest.raises(AddressError) as caught:
        parseListen(description)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrapper", ["secured", "proxied", "proxied:secured"])
@pytest.mark.parametrize("wrapped", [r"tcp\:8640", r"tcp\:8640\:interface=127.0.0.1"])
def test_whatIsWrappedStandsAsItIs(wrapper, wrapped):
    """
    Twisted's own wrappers want backslashes there.
    """
    with pytest.raises(AddressError, match="has no backslashes before its colons"):
        parseListen(f"{wrapper}:{wrapped}:certificate=c:trusted=unix")


@pytest.mark.parametrize(
    ("description", "known", "port"),
    [
        ("tcp:https", "tcp:443", "443"),
        (r"tcp6:domain:interface=\:\:1", r"tcp6:53:interface=\:\:1", "53"),
        ("secured:tcp:https:certificate=c", "secured:tcp:443:certificate=c", "443"),
        ("udp:domain", "udp:domain", "53"),
        ("tcp:8640", "tcp:8640", "8640"),
        # not a port
        ("unix:https", "unix:https", "https"),
    ],
)
def test_namesOfServicesArePorts(description, known, port):
    listen = parseListen(description)
    assert listen.description == known
    assert listen.arguments[0] == port
