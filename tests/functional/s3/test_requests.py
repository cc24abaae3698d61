"""
Every call to a real engine, in clear and through TLS, and an engine that comes and goes.
"""

import os
import ssl
import threading
import time
import zlib

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from connpool.pool import ConnectionPool
from connpool.services import s3store
from connpool.services.s3store import connect, endpointsOf, parseArguments
from connpool.transfer.records import StoreSettings
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.exchange import ExchangeFactory
from connpool.transfer.stores.s3.requests import SignedRequests
from connpool.transfer.stores.s3.signing import Signer
from examples.s3.engines import seaweedfs
from tests.functional.s3.test_faults import Source
from tests.helpers.waiting import bounded, until

pytestmark = [pytest.mark.slow, pytest.mark.peer("weed")]

#: Names that a signature, a path or XML may get wrong.
NAMES = [
    *(
        "plain",
        "a b+c&d=e",
        "100%",
        "äöü",
        "a\u0308",
        "\U0001f600",
        "~!*'();:@$,[]",
        "#?",
        "<&>\"'",
    ),
    *("d/e/f", "-", "..a", "a.."),
]
PART = 5 << 20


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """
    A SeaweedFS behind TLS, and the file of its authority.
    """
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    trusted = directory / "ca.pem"
    authority.cert_pem.write_to_path(trusted)
    certificate = directory / "engine.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    context = ssl.create_default_context(cafile=trusted)
    with seaweedfs(directory / "engine", certificate=certificate, context=context) as engine:
        yield engine, str(trusted)


def requestsTo(engine, *urls, **named):
    text = "".join(f",endpoint={url}" for url in urls or [engine.url])
    arguments = parseArguments(f"bucket=files{text}")
    pool = ConnectionPool(
        reactor, endpointsOf(reactor, arguments), ExchangeFactory(reactor), maxSize=8
    )
    signer = Signer("us-east-1")
    source = Source(engine.keys)
    return SignedRequests(reactor, pool, arguments.place, signer, source, arguments.url, **named)


async def everyCall(perform, prefix, path, checksum="crc32"):
    """
    Make each kind of call, with a body in memory and in a file.
    """
    for name in NAMES:
        key = f"{prefix}{name}"
        stored = await bounded(perform(calls.Put(key, b"one", calls.ABSENT, {"connpool": "t"})))
        assert stored.etag
        again = await bounded(perform(calls.Put(key, b"two", calls.ABSENT)))
        assert again == calls.Conflict()
        found = await bounded(perform(calls.Get(key)))
        assert (found.body, found.size, found.metadata["connpool"]) == (b"one", 3, "t")
        assert 0 <= found.age < 60
        listed = await bounded(perform(calls.List(key)))
        assert key in {entry.key for entry in listed.entries}
    key = f"{prefix}large"
    path.write_bytes(os.urandom(PART) + b"the last")
    with path.open("rb") as file:
        fd = file.fileno()
        pieces = [calls.Piece(fd, 0, PART), calls.Piece(fd, PART, 8)]
        crcs = [zlib.crc32(os.pread(fd, piece.length, piece.start)) for piece in pieces]
        upload = (await bounded(perform(calls.CreateUpload(key, {"connpool": "u"})))).uploadId
        wrong = calls.PutPart(key, upload, 1, pieces[0], crcs[0] ^ 1)
        refused = await bounded(perform(wrong))
        assert refused == calls.BadDigest() or checksum != "crc32"
        parts = await bounded(
            gatherResults(
                perform(calls.PutPart(key, upload, n + 1, pieces[n], crcs[n])) for n in (0, 1)
            )
        )
        listed = await bounded(perform(calls.ListUploads(key)))
        assert listed.uploadIds == (upload,)
        there = await bounded(perform(calls.ListParts(key, upload)))
        assert set(there.parts) == {(n + 1, part.etag) for n, part in enumerate(parts)}
        rest = await bounded(perform(calls.ListParts(key, upload, 1)))
        assert (rest.parts, rest.more) == (((2, parts[1].etag),), False)
        named = tuple((n + 1, part.etag, crcs[n]) for n, part in enumerate(parts))
        bad = calls.Complete(key, upload, ((1, '"00"', 0),), calls.ABSENT)
        assert await bounded(perform(bad)) == calls.InvalidPart()
        done = await bounded(perform(calls.Complete(key, upload, named, calls.ABSENT)))
        assert isinstance(done, calls.Done)
    head = await bounded(perform(calls.Head(key)))
    assert (head.size, head.metadata["connpool"]) == (PART + 8, "u")
    span = await bounded(perform(calls.Get(key, (PART, PART + 8))))
    assert (span.body, span.size) == (b"the last", PART + 8)
    gone = calls.PutPart(key, "0" * 32, 1, b"x", zlib.crc32(b"x"))
    assert await bounded(perform(gone)) == calls.NoSuchUpload()
    assert await bounded(perform(calls.ListParts(key, "0" * 32))) == calls.NoSuchUpload()
    assert await bounded(perform(calls.Abort(key, "0" * 32))) == calls.Done()
    for name in [*NAMES, "large"]:
        await bounded(perform(calls.Delete(f"{prefix}{name}")))
    assert await bounded(perform(calls.Get(key))) == calls.Missing()
    assert await bounded(perform(calls.Head(key))) == calls.Missing()


@pytest.mark.parametrize("checksum", ["crc32", "md5"])
@pytest_twisted.ensureDeferred
async def test_inClear(weed, prefix, tmp_path, checksum):
    requests = requestsTo(weed, checksum=checksum)
    await everyCall(requests.perform, prefix, tmp_path / "file", checksum)
    await bounded(requests.close())


@pytest_twisted.ensureDeferred
async def test_throughTLS(secure, prefix, tmp_path, monkeypatch):
    """
    The probe and the requests trust what AWS_CA_BUNDLE names.
    """
    engine, trusted = secure
    monkeypatch.setenv("AWS_CA_BUNDLE", trusted)
    for name, value in engine.environment.items():
        monkeypatch.setenv(name, value)
    arguments = parseArguments(f"bucket=files,endpoint={engine.url},prefix={prefix}")
    requests, _, probed = connect(reactor, arguments, StoreSettings())
    assert probed.checksum == "crc32"
    await everyCall(requests.perform, prefix, tmp_path / "file")
    await bounded(requests.close())
    await bounded(deferToThread(probeEnded))


def probeEnded():
    for thread in threading.enumerate():
        if thread.name.startswith("s3-probe"):
            thread.join(20)


def test_certificateThatIsNotTrusted(secure, monkeypatch):
    engine, _ = secure
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    for name, value in engine.environment.items():
        monkeypatch.setenv(name, value)
    arguments = parseArguments(f"bucket=files,endpoint={engine.url}")
    with pytest.raises(s3store.StartFailed, match="certificate is not trusted") as caught:
        connect(reactor, arguments, StoreSettings())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ahead", [-86400, 86400])
@pytest_twisted.ensureDeferred
async def test_wrongClock(weed, prefix, ahead):
    """
    The engine's own corrects it.
    """
    requests = requestsTo(weed, now=lambda: time.time() + ahead)
    assert isinstance(await bounded(requests.perform(calls.Put(f"{prefix}a", b"x"))), calls.Done)
    assert requests.stats().retries == 1
    assert isinstance(await bounded(requests.perform(calls.Get(f"{prefix}a"))), calls.Found)
    assert requests.stats().retries == 1
    await bounded(requests.close())


@pytest_twisted.ensureDeferred
async def test_anotherEndpoint(weed, prefix):
    """
    The first one does not listen.
    """
    requests = requestsTo(weed, "http://127.0.0.1:1", weed.url)
    assert isinstance(await bounded(requests.perform(calls.Put(f"{prefix}a", b"x"))), calls.Done)
    await bounded(requests.close())


@pytest_twisted.ensureDeferred
async def test_engineThatIsKilled(tmp_path, prefix):
    """
    Calls wait for it, for two minutes at most, and a trouble is told meanwhile.
    """
    with seaweedfs(tmp_path / "engine") as engine:
        requests = requestsTo(engine)
        await bounded(requests.perform(calls.Put(f"{prefix}a", b"x")))
        engine.kill()
        waiting = requests.perform(calls.Put(f"{prefix}b", b"y"))
        assert engine.url in await until(requests.trouble, 60)
        assert not waiting.called
        await bounded(deferToThread(engine.start), 40)
        assert isinstance(await bounded(waiting, 40), calls.Done)
        assert requests.trouble() is None
        for name, body in (("a", b"x"), ("b", b"y")):
            found = await bounded(requests.perform(calls.Get(f"{prefix}{name}")))
            assert found.body == body
        await bounded(requests.close())
