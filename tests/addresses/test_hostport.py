import pytest

from connpool.addresses import joinHostPort, splitHostPort
from connpool.errors import AddressError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:8640", "localhost", 8640),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ],
)
def test_splitAndJoin(text, host, port):
    assert splitHostPort(text) == (host, port)
    assert joinHostPort(host, port) == text


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("localhost", "no port"),
        ("::1:80", "too many colons"),
        ("[::1]", "missing ']'"),
        ("[::1:80", "missing ']'"),
        ("[[::1]]:80", "brackets inside"),
        ("a]:80", "unexpected bracket"),
        (":80", "no host"),
        ("[]:80", "no host"),
        ("a:", "1 to 65535"),
        ("a:0", "1 to 65535"),
        ("a:65536", "1 to 65535"),
        ("a:١", "1 to 65535"),
        ("a:+1", "1 to 65535"),
        ("a:" + "9" * 5000, "1 to 65535"),
    ],
)
def test_mistakesNameTheRemedy(text, remedy):
    with pytest.raises(AddressError) as caught:
        splitHostPort(text)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
