"""
One address of a name that has several.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from twisted.internet.defer import succeed

from connpool.addresses import clientEndpoint, parseListen, resolveTarget, splitHostPort
from connpool.addresses.targets import hasRoute
from connpool.errors import AddressError, LookupFailed
from tests.helpers.waiting import failureResultOf, successResultOf


class Names:
    def __init__(self, *found):
        self.found = [(ip_address(text), "") for text in found]

    def lookUp(self, host):
        return succeed(self.found)


BOTH = Names("2001:db8::7", "192.0.2.7", "192.0.2.8", "2001:db8::8")


def choose(routes, names=BOTH, **options):
    asked = []

    def routed(host, port):
        asked.append((host, port))
        return host in routes

    d = resolveTarget(None, "udp", "both:8641", resolver=names, routed=routed, **options)
    return d, asked


@pytest.mark.parametrize(
    ("routes", "family", "chosen"),
    [
        ({"192.0.2.7", "2001:db8::7"}, 0, "192.0.2.7"),
        ({"2001:db8::7"}, 0, "2001:db8::7"),
        ({"192.0.2.8"}, 0, "192.0.2.8"),
        ({"2001:db8::8"}, 0, "2001:db8::8"),
        (set(), 0, "192.0.2.7"),
        ({"192.0.2.7", "2001:db8::7"}, 6, "2001:db8::7"),
        ({"2001:db8::7"}, 4, "192.0.2.7"),
    ],
)
def test_theFamilyThatThisMachineHas(routes, family, chosen):
    d, asked = choose(routes, family=family)
    assert successResultOf(d) == (chosen, 8641)
    assert all(port == 8641 for _, port in asked)


def test_noneOfThisFamily():
    d, _ = choose({"192.0.2.7"}, Names("192.0.2.7"), family=6)
    assert "both has no IPv6 address" in str(failureResultOf(d, LookupFailed))


def test_aLinkForThoseThatNeedOne():
    d, _ = choose({"fe80::1%lo"}, Names("fe80::1"), zone="lo")
    assert successResultOf(d) == ("fe80::1%lo", 8641)
    d, _ = choose({"2001:db8::7"}, Names("2001:db8::7"), zone="lo")
    assert successResultOf(d) == ("2001:db8::7", 8641)
    d, _ = choose(set(), Names("fe80::1"))
    assert "say on which link" in str(failureResultOf(d, AddressError))


def test_routes():
    assert hasRoute("127.0.0.1", 9)
    assert hasRoute("::1", 9)
    assert not hasRoute("fe80::1%nolink", 9)


SERVICES = {("echo", "udp"): 7, ("web", "tcp"): 8080}


def services(name, protocol):
    return SERVICES.get((name, protocol))


def test_serviceNames():
    assert splitHostPort("h:web", services=services) == ("h", 8080)
    assert splitHostPort("[::1]:echo", "udp", services) == ("::1", 7)
    with pytest.raises(AddressError, match="no tcp service is named 'echo'"):
        splitHostPort("h:echo", services=services)
    d = resolveTarget(
        None, "udp", "h:echo", resolver=BOTH, services=services, routed=lambda *_: True
    )
    assert successResultOf(d) == ("192.0.2.7", 7)


def test_serviceNamesOfThisMachine():
    """
    http and domain are in every /etc/services.
    """
    from twisted.internet import reactor

    assert "80" in str(vars(clientEndpoint(reactor, "127.0.0.1:http")))
    listen = parseListen("udp:domain:interface=127.0.0.1")
    assert listen.arguments == ("53",)
    with pytest.raises(AddressError, match="no udp service is named 'nosuch'"):
        parseListen("udp:nosuch")
    # the kind of an endpoint is no host
    assert "http" in str(vars(clientEndpoint(reactor, "unix:http")))
