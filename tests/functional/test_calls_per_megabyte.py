"""
The calls that a large file costs, for each MiB: reads, writes, digests, turns, Deferreds.

Both ends are in this process, on real sockets.  Counts, never times: what is counted here
is what the rates in C{docs/speed.rst} come from.
"""

import os
from collections import Counter

import attrs
import pytest
import trustme
from twisted.internet import reactor, threads
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from connpool.services import FileReceiver
from connpool.tlstransport import TLSClientEndpoint
from connpool.transfer import digests, sendFiles
from connpool.transfer.iothreads import Latency
from connpool.transfer.send import readahead
from connpool.transfer.send.classic import sendClassic
from connpool.transfer.syscalls import Syscalls
from connpool.transfer.wire import borrowed
from tests.helpers.waiting import bounded

MIB = 1 << 20
COUNT = 48

#: Calls for each MiB, at most.  Measured: about 1.1 reads, 1.4 writes, 2.4 digests of both ends
#: together, 1.6 Deferreds and 1.9 turns; threads only until the medium is known to be quick.  Each
#: end borrows the socket once.
MOST = {
    "read": 2,
    "write": 2,
    "read of the source": 1.1,
    "wakeup to write": 3,
    "digest": 3.5,
    "turn": 4,
    "Deferred": 2.5,
    "thread": 0.3,
    "loan": 4 / COUNT,
}
#: The same within TLS: a record is 16 KiB, and there are none of those.
MOST_WITHIN_TLS = {**MOST, "read": 3, "write": 3, "digest": 5}


class Counting:
    """
    @ivar calls: by what was called.
    """

    def __init__(self, monkeypatch):
        self.calls = Counter()
        self._monkeypatch = monkeypatch
        self.around(borrowed.BorrowedReader, "doRead", "read")
        self.around(borrowed.BorrowedWriter, "doWrite", "wakeup to write")
        self.around(borrowed.BorrowedReader, "__init__", "loan")
        self.around(borrowed.BorrowedWriter, "__init__", "loan")
        self.around(Syscalls, "writeAll", "write")
        self.around(readahead, "readFully", "read of the source")
        self.around(threads, "deferToThreadPool", "thread")
        self.around(Deferred, "__init__", "Deferred")
        self.around(reactor, "doIteration", "turn")
        # the medium is quick, however busy this machine is
        took = Latency.took
        monkeypatch.setattr(Latency, "took", lambda self, _, calls=1: took(self, 0.0, calls))
        blake3 = digests.DIGESTS["blake3"]
        counted = attrs.evolve(blake3, new=lambda *data: Hasher(self.calls, blake3.new(*data)))
        monkeypatch.setitem(digests.DIGESTS, "blake3", counted)

    def around(self, owner, name, what):
        function = getattr(owner, name)

        def called(*arguments, **keywords):
            self.calls[what] += 1
            return function(*arguments, **keywords)

        self._monkeypatch.setattr(owner, name, called)


class Hasher:
    def __init__(self, calls, hasher):
        self._calls = calls
        self._hasher = hasher
        self.digest = hasher.digest

    def update(self, data):
        self._calls["digest"] += 1
        self._hasher.update(data)


@pytest.fixture
def receiving(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return FileReceiver(reactor, str(root), listen=["tcp:0:interface=127.0.0.1"]), root


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(os.urandom(MIB) * COUNT)
    return path


async def test_largeFileWithinTLS(tmp_path, source, monkeypatch):
    authority, pem = trustme.CA(), tmp_path / "own.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    root = tmp_path / "root"
    root.mkdir()
    listen = f"secured:tcp:0:interface=127.0.0.1:certificate={pem}:privateKey={pem}"
    service = FileReceiver(reactor, str(root), listen=[listen])
    service.startService()
    try:
        host = service.listening.getHosts()[0]
        roots = trustRootFromCertificates([Certificate.loadPEM(authority.cert_pem.bytes())])
        endpoint = TLSClientEndpoint(
            reactor,
            optionsForClientTLS("localhost", trustRoot=roots),
            TCP4ClientEndpoint(reactor, "127.0.0.1", host.port),
        )
        counting = Counting(monkeypatch)
        report = await bounded(sendFiles(reactor, endpoint, [str(source)], durability="none"), 30)
        assert report.exitCode == 0
        monkeypatch.undo()
    finally:
        await bounded(service.stopService())
    found = {what: count / COUNT for what, count in counting.calls.items()}
    assert {"read", "write", "turn", "digest"} <= found.keys()
    most = MOST_WITHIN_TLS
    assert {what: count for what, count in found.items() if count > most[what]} == {}
    assert (root / "large").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("protocol", ["native", "classic"])
async def test_largeFile(receiving, source, monkeypatch, protocol):
    service, root = receiving
    service.startService()
    try:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", service.listening.getHosts()[0].port)
        counting = Counting(monkeypatch)
        if protocol == "native":
            report = await bounded(
                sendFiles(reactor, endpoint, [str(source)], durability="none"), 30
            )
            assert report.exitCode == 0
        else:
            await bounded(Deferred.fromCoroutine(sendClassic(reactor, endpoint, str(source))), 30)
        monkeypatch.undo()
    finally:
        await bounded(service.stopService())
    found = {what: count / COUNT for what, count in counting.calls.items()}
    assert {"read", "write", "turn"} <= found.keys()
    assert (protocol == "native") == ("digest" in found)
    assert {what: count for what, count in found.items() if count > MOST[what]} == {}
    assert (root / "large").read_bytes() == source.read_bytes()
