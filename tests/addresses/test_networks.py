import pytest

from connpool.addresses import Networks
from connpool.errors import AddressError


def test_membership():
    networks = Networks.parse(["10.0.0.0/8", "fd00::/8", "192.0.2.7"])
    assert "10.255.0.1" in networks
    assert "::ffff:10.0.0.1" in networks
    assert "fd12::1%eth0" in networks
    assert "192.0.2.7" in networks
    assert "192.0.2.8" not in networks
    assert "localhost" not in networks
    assert "" not in networks


def test_anyIsEveryAddress():
    networks = Networks.parse(["any"])
    assert "203.0.113.9" in networks
    assert "2001:db8::1" in networks


def test_emptyIsFalse():
    assert not Networks.parse([])
    assert "127.0.0.1" not in Networks()


@pytest.mark.parametrize("text", ["10.0.0.1/8", "example.com", "", "10.0.0.0/33", "10/8", "*"])
def test_refusedWithOneLine(text):
    with pytest.raises(AddressError, match="write for example") as caught:
        Networks.parse([text])
    assert "\n" not in str(caught.value)
