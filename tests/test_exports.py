"""
The public names: a name that goes or comes is a decision, not an accident.
"""

from importlib import import_module

import pytest

PUBLIC = {
    "connpool.addresses": {
        "Client",
        "Listen",
        "NameResolver",
        "Networks",
        "TCPAddr",
        "UDPAddr",
        "UnknownAddress",
        "clientEndpoint",
        "clientOf",
        "joinHostPort",
        "parseListen",
        "resolveTCPAddr",
        "resolveUDPAddr",
        "splitHostPort",
        "tokenize",
    },
    "connpool.datagram": {
        "NOTHING",
        "RULES",
        "AnsweringPort",
        "DatagramInfo",
        "DatagramStats",
        "Echo",
        "Limits",
        "OwnPorts",
        "Point",
        "Policy",
        "Prober",
        "Report",
        "Spread",
        "SturdyPort",
        "TCPEcho",
        "TCPEchoFactory",
        "Unwrap",
        "makeResponder",
        "openPorts",
        "probe",
        "responderFactories",
        "shared",
    },
    "connpool.pool": {
        "AcquireTimeout",
        "ConnectFailed",
        "ConnectionPool",
        "ConnectionPoolService",
        "DoubleRelease",
        "ForeignLease",
        "Histogram",
        "KeyedConnectionPool",
        "KeyedPoolStats",
        "Lease",
        "LeaseError",
        "LeaseReleased",
        "Overloaded",
        "PoolClosed",
        "PoolDown",
        "PoolError",
        "PoolPaused",
        "PoolStats",
        "PooledEndpoint",
        "Settings",
        "TooManyWaiters",
        "exponentialBackoff",
        "newPool",
    },
    "connpool.proxyprotocol": {
        "MAX_HEADER",
        "DatagramHeaders",
        "Header",
        "HeaderParser",
        "NotAHeader",
        "Policy",
        "ProxiedConnection",
        "ProxiedEndpoint",
        "ProxiedFactory",
        "ProxyHeaderEndpoint",
        "ProxyInfo",
        "ProxyStats",
        "SSLInfo",
        "SecuredEndpoint",
        "ServerCertificate",
        "TLVs",
        "Trusted",
        "encodeV1",
        "encodeV2",
        "parseDatagram",
    },
    "connpool.testing": {
        "EVENTS",
        "Attempt",
        "Event",
        "Exploration",
        "FakeEndpoint",
        "FakeTransport",
        "Violation",
        "World",
        "checkInterleavings",
    },
    "connpool.observe": {
        "Field",
        "Protection",
        "Reading",
        "StatsCollector",
        "describeFields",
        "findTransfers",
        "findTroubles",
        "makeRegistry",
        "makeSite",
        "readSources",
    },
    "connpool.transfer": {
        "DURABILITIES",
        "IF_EXISTS",
        "FileStat",
        "LiveTransfer",
        "LocalStore",
        "MemoryStore",
        "Offer",
        "PartialInfo",
        "Receipt",
        "RelativeName",
        "StoreCaps",
        "displayName",
    },
}


@pytest.mark.parametrize("module", PUBLIC)
def test_publicNames(module):
    assert set(import_module(module).__all__) == PUBLIC[module]


@pytest.mark.parametrize("module", [*PUBLIC, "connpool.errors", "connpool.interfaces"])
def test_everyPublicNameExists(module):
    loaded = import_module(module)
    for name in loaded.__all__:
        assert getattr(loaded, name) is not None
