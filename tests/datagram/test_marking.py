import socket

import pytest

from connpool.datagram import Marking, parseDSCP
from connpool.errors import AddressError


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("63", 63), ("EF", 46), ("ef", 46), ("AF41", 34), ("cs7", 56), ("LE", 1)],
)
def test_names(text, value):
    assert parseDSCP(text) == value


@pytest.mark.parametrize("text", ["", "64", "-1", "1.5", "GOLD", "AF44", "٣", "046"])
def test_mistakes(text):
    with pytest.raises(AddressError, match="is not a DSCP; write a number from 0 to 63"):
        parseDSCP(text)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_isSetOnTheSocket(family):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        Marking(dscp=46, ttl=3, interface="lo").apply(sock)
        if family == socket.AF_INET:
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 184
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 3
        else:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 184
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) == 3
        assert sock.getsockopt(socket.SOL_SOCKET, 25, 16).rstrip(b"\0") == b"lo"
        for name in ("nolink", "x" * 100):
            with pytest.raises(AddressError, match=r"no such link; its links: .*lo"):
                Marking(interface=name).apply(sock)


def test_nothingIsChangedUnasked():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        before = sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
        Marking().apply(sock)
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == before


def test_whereNoLinkCanBeChosen(monkeypatch):
    monkeypatch.delattr(socket, "SO_BINDTODEVICE")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(AddressError, match="cannot choose a link; name a source address"),
    ):
        Marking(interface="lo").apply(sock)
