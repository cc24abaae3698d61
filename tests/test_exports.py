"""
The public names: a name that goes or comes is a decision, not an accident.
"""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import connpool.services

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
        "placeOf",
        "resolveTCPAddr",
        "resolveTarget",
        "resolveUDPAddr",
        "splitHostPort",
        "tokenize",
    },
    "connpool.datagram": {
        "NOTHING",
        "RULES",
        "AnsweringPort",
        "Auto",
        "DatagramInfo",
        "DatagramStats",
        "Echo",
        "Histogram",
        "Irtt",
        "Limits",
        "Marking",
        "OwnPorts",
        "Point",
        "Policy",
        "Prober",
        "Report",
        "Sample",
        "Spread",
        "Stamp",
        "SturdyPort",
        "SweepReport",
        "TCPEcho",
        "TCPEchoFactory",
        "TCPProber",
        "Unwrap",
        "makeProber",
        "makeResponder",
        "openPorts",
        "parseDSCP",
        "plot",
        "probe",
        "responderFactories",
        "shared",
        "sweep",
    },
    "connpool.pool": {
        "AcquireTimeout",
        "ConnectFailed",
        "ConnectionPool",
        "ConnectionPoolService",
        "DestinationBad",
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
        "MemoryStore",
    },
    "connpool.observe": {
        "Field",
        "History",
        "HistoryService",
        "Protection",
        "Reading",
        "State",
        "StateCounts",
        "StatsCollector",
        "TCPInfo",
        "TCPStates",
        "countStates",
        "describeFields",
        "findTransfers",
        "findTroubles",
        "makeRegistry",
        "makeSite",
        "readSockets",
        "readSources",
        "tcpInfo",
    },
    "connpool.services": {
        "Access",
        "FileReceiver",
        "FileSender",
        "ObservedService",
        "PoolRelay",
        "Target",
        "UDPEcho",
        "UDPProbe",
    },
    "connpool.transfer": {
        "DURABILITIES",
        "IF_EXISTS",
        "Credentials",
        "FileOutcome",
        "FileStat",
        "LiveTransfer",
        "LocalStore",
        "MemoryStore",
        "NativeReceiver",
        "Offer",
        "PartialInfo",
        "Policy",
        "Receipt",
        "RelativeName",
        "SendReport",
        "SessionFactory",
        "displayName",
        "hello",
        "sendFiles",
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


SOURCES = sorted(Path(connpool.__file__).parent.rglob("*.py"))


def returned(path):
    """
    The functions and methods with public names, each with the names in its return type.
    """
    tree = ast.parse(path.read_text())
    owners = [tree, *(each for each in tree.body if isinstance(each, ast.ClassDef))]
    for owner in owners:
        if getattr(owner, "name", "").startswith("_"):
            continue
        for each in owner.body:
            isFunction = isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            if isFunction and not each.name.startswith("_") and each.returns is not None:
                words = re.findall(r"\w+", ast.unparse(each.returns))
                yield each.name, words


@pytest.mark.parametrize("path", SOURCES, ids=lambda each: each.stem)
def test_publicFunctionsReturnPublicTypes(path):
    tree = ast.parse(path.read_text())
    defined = {each.name for each in tree.body if isinstance(each, ast.ClassDef)}
    public = {
        name
        for each in tree.body
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__all__"
        for name in ast.literal_eval(each.value)
    }
    hidden = {
        name: word for name, words in returned(path) for word in words if word in defined - public
    }
    assert not hidden


def test_theServicesPackageIsLight():
    code = "import sys, connpool.services; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()
    assert not [name for name in loaded if name.startswith(("twisted.", "connpool.transfer"))]
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        connpool.services.Nothing  # noqa: B018 - asked for
