import errno
import socket

import pytest

from connpool.addresses import clientEndpoint
from connpool.addresses.zones import checkZone, linkNames, socketAddress, zoneIndex, zoneName
from connpool.errors import AddressError


def test_namesAndNumbers():
    index = socket.if_nametoindex("lo")
    assert zoneIndex("lo") == zoneIndex(str(index)) == index
    assert zoneName(str(index)) == zoneName("lo") == "lo"
    assert zoneName("nowhere") == "nowhere"
    assert zoneIndex("4000000000") == 4_000_000_000
    for zone in ("nowhere", "99999999999", "٣", "", "x\0y", "x" * 100):
        with pytest.raises(OSError) as caught:
            zoneIndex(zone)
        assert caught.value.errno == errno.ENODEV
    assert linkNames()[-1] == "lo"


def test_socketsGetAnIndex():
    index = socket.if_nametoindex("lo")
    assert socketAddress("fe80::1%lo", 9) == ("fe80::1", 9, 0, index)
    assert socketAddress("::1", 9) == ("::1", 9)
    assert socketAddress("127.0.0.1", 9) == ("127.0.0.1", 9)


@pytest.mark.parametrize("host", ["fe80::1", "febf::1"])
def test_linkLocalNeedsALink(host):
    with pytest.raises(AddressError, match=f"{host} is link-local: say on which link, as in"):
        checkZone(host)
    with pytest.raises(AddressError, match=r"links of this machine: .*lo"):
        clientEndpoint(None, f"[{host}]:80")


@pytest.mark.parametrize(
    "host", ["fe80::1%lo", "fec0::1", "::1", "name", "127.0.0.1", "", "fe80::1%1"]
)
def test_othersDoNot(host):
    checkZone(host)


@pytest.mark.parametrize("host", ["fe80::1%nolink", "ff02::1%nolink"])
def test_aLinkThatIsNotThere(host):
    with pytest.raises(AddressError, match="has no link 'nolink'; its links: "):
        checkZone(host)
