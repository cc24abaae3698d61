import pytest

from connpool.addresses import Networks
from connpool.addresses.networks import networkOf
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


def test_aMappedNetworkIsItsIPv4Network():
    """
    A rule with an address as the log of a dual-stack listener shows it.
    """
    networks = Networks.parse(["::ffff:192.0.2.7", "::ffff:10.0.0.0/104"])
    for host in ("::ffff:192.0.2.7", "192.0.2.7", "::ffff:10.1.2.3", "10.1.2.3"):
        assert host in networks
    assert "192.0.2.8" not in networks
    assert "11.0.0.1" not in Networks.parse(["::ffff:10.0.0.0/104"])
    assert "10.0.0.1" in Networks.parse(["::ffff:0:0/96"])


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


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "c00002/24"),
        ("::ffff:192.0.2.7", "c00002/24"),
        ("2001:db8::1:2:3:4", "20010db800000000/64"),
        # all of a link are in one network
        ("fe80::1%eth0", "fe800000000000000000000000000001/128"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_whoIsCountedTogether(host, network):
    assert networkOf(host, ipv4=24) == network


def test_anIPv4AddressCountsForItself():
    assert networkOf("192.0.2.7") == networkOf("::ffff:192.0.2.7") == "c0000207/32"
