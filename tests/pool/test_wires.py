"""
Transports over one another, seen as one.
"""

from types import SimpleNamespace

from connpool.pool.wires import NO_WIRE, Wires, layers, upgraded, wireOf


def test_theOnlyTransportIsAskedItself():
    tcp = SimpleNamespace(disconnecting=False, producer=None)
    assert wireOf(tcp) is tcp


def test_whatLiesBelowIsSeen():
    tcp = SimpleNamespace(disconnecting=False, producer=None)
    tls = SimpleNamespace(disconnecting=False, transport=tcp)  # as Twisted's, without a producer
    wire = wireOf(tls)
    assert list(layers(tls)) == [tls, tcp]
    assert (wire.disconnecting, wire.producer) == (False, None)
    tcp.disconnecting = True
    assert wire.disconnecting
    tcp.disconnecting, tls.disconnecting = False, True
    assert wire.disconnecting
    tcp.producer = object()
    assert wire.producer is tcp.producer


def test_whatDoesNotTellIsNotAsked():
    dumb = SimpleNamespace(transport=None)
    assert isinstance(wireOf(dumb), Wires)
    assert (wireOf(dumb).disconnecting, wireOf(dumb).producer) == (False, None)
    half = SimpleNamespace(disconnecting=True)
    assert (wireOf(half).disconnecting, wireOf(half).producer) == (True, None)
    assert not NO_WIRE.disconnecting


def test_whatBeganLaterIsSeen():
    tls = SimpleNamespace(disconnecting=False)
    tcp = SimpleNamespace(disconnecting=False, producer=None, protocol=tls)
    wire = upgraded(wireOf(tcp))
    assert not wire.disconnecting
    tls.disconnecting = True
    assert wire.disconnecting
    assert upgraded(NO_WIRE) is NO_WIRE
