"""
The names under which a server is asked over HTTP.
"""

import socket

import pytest

from connpool.addresses.hosts import hostOf, isOwnHost, withOwnHosts


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("LocalHost:8690", "localhost"),
        ("status.example.", "status.example"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", ""),
        ("[::1]x", ""),
        ("x]", ""),
        ("", ""),
    ],
)
def test_hostOf(header, host):
    assert hostOf(header) == host


@pytest.mark.parametrize("header", ["x:y", "[::1]x", "[::1]:x", "a:1:2", "[::1", "::1"])
def test_whatIsNone(header):
    assert hostOf(header) == ""


def test_ownHosts():
    names = withOwnHosts(["Files.Example."])
    own = socket.gethostname().lower()
    for host in ("localhost", own, own.partition(".")[0] + ".local", "files.example"):
        assert isOwnHost(host, names)
    for host in ("192.0.2.1", "::1", "fe80::1"):
        assert isOwnHost(host, names)
    for host in ("", "evil.example", "2130706433", "0x7f.1", "127.0.0.1.x", "127.1"):
        assert not isOwnHost(host, names)


def test_aMachineWithoutAName(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", str)
    assert withOwnHosts([]) == {"localhost"}
