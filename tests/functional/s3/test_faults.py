"""
Everything that can go wrong between a receiver and its engine, at every request.
"""

import hashlib
import os

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed

from connpool.errors import TransferError, Unavailable
from connpool.pool import ConnectionPool
from connpool.services.s3store import endpointsOf, parseArguments
from connpool.transfer.records import Receipt
from connpool.transfer.stores.s3.exchange import ExchangeFactory
from connpool.transfer.stores.s3.requests import SignedRequests
from connpool.transfer.stores.s3.signing import Signer
from connpool.transfer.stores.s3.store import S3Store
from tests.functional.s3.faults import FAULTS, proxied
from tests.helpers.waiting import bounded, pause, until
from tests.transfer.stores.kit import fill, offer, settled

pytestmark = [pytest.mark.slow, pytest.mark.peer("weed"), pytest.mark.timeout(600)]

#: The least that SeaweedFS, as most engines, takes for a part that is not the last.
PART = 5 << 20
BLOCK = 1 << 20
LARGE = os.urandom(BLOCK) * 5 + b"the last part"
SMALL = b"a small file"


class Source:
    """
    Keys that do not change.
    """

    def __init__(self, keys):
        self._keys = keys

    def keys(self, refused=None):
        return succeed(self._keys)


class Receiver:
    """
    A store as a receiver has it, which can die.
    """

    def __init__(self, url, keys, prefix, spool):
        arguments = parseArguments(f"bucket=files,endpoint={url}")
        pool = ConnectionPool(
            reactor, endpointsOf(reactor, arguments), ExchangeFactory(reactor), maxSize=8
        )
        self._requests = SignedRequests(
            *(reactor, pool, arguments.place, Signer("us-east-1"), Source(keys), url)
        )
        self.dead = self._buried = False
        self._unanswered = []
        self.store = S3Store(
            reactor,
            self,
            prefix=prefix,
            spoolDirectory=str(spool),
            leastPart=PART,
            closed=self._requests.close,
        )

    def perform(self, call, patience=None):
        if not self.dead:
            return self._requests.perform(call, patience)
        if self._buried:
            return fail(Unavailable("it is dead"))
        self._unanswered.append(Deferred())
        return self._unanswered[-1]

    def trouble(self):
        return self._requests.trouble()

    async def close(self):
        if self.dead:
            # nothing of it is carried out any more, and nothing waits for that
            self._buried = True
            for d in self._unanswered:
                d.errback(Unavailable("it is dead"))
            self.store._nextReap.cancel()
            self.store._threads.stop()
            await bounded(self._requests.close())
        else:
            await bounded(self.store.close(), 60)


async def receive(store, name, content, key, resumeKey, bounded=bounded):
    """
    Store a file, as a session does.
    """
    asked = offer(
        name,
        size=len(content),
        key=key,
        resumeKey=resumeKey,
        blockSize=BLOCK,
        durability="full",
    )
    root = hashlib.sha256(content).digest()
    if len(content) < BLOCK:
        return await bounded(settled(store.put(asked, content, root)), 60)
    partial = await bounded(store.open(asked), 60)
    if isinstance(partial, Receipt):
        return partial
    try:
        await bounded(Deferred.fromCoroutine(fill(partial, content, block=BLOCK)), 60)
        return await bounded(partial.commit(root), 60)
    except TransferError:
        await bounded(partial.suspend(), 60)
        raise


FILES = [("small", SMALL, b"1" * 32), ("d/large", LARGE, b"2" * 32)]


async def receiveAll(store, tries=3, bounded=bounded):
    """
    Store all files; what may succeed later comes again, as a sender has it.
    """
    receipts = []
    for name, content, key in FILES:
        for left in reversed(range(tries)):
            try:
                resumeKey = hashlib.sha256(key).digest()
                got = await receive(store, name, content, key, resumeKey, bounded)
                break
            except TransferError as e:
                if not (e.retryable and left):
                    raise
                await pause(0.1)
        receipts.append(got)
    return receipts


def told(receipt):
    """
    The words of a receipt that its sender acts upon.
    """
    return receipt.name, receipt.size, receipt.root, receipt.transferId


async def verify(engine, prefix, receiver, receipts):
    """
    The engine has both files under the names that the receipts say, and a sender that asks
    again gets the same receipts.
    """
    for (_, content, _), receipt in zip(FILES, receipts, strict=True):
        stored = engine.digest("files", f"{prefix}{receipt.name}")
        assert stored == hashlib.sha256(content).digest()
    again = await receiveAll(receiver.store)
    assert [told(each) for each in again] == [told(each) for each in receipts]
    assert sorted(engine.names("files", prefix)) == sorted(
        f"{prefix}{receipt.name}" for receipt in receipts
    )


@pytest.fixture
def proxy(weed):
    with proxied(weed.url) as made:
        yield made


@pytest.mark.parametrize("fault", FAULTS)
@pytest_twisted.ensureDeferred
async def test_everyRequest(weed, proxy, prefix, tmp_path, fault):
    at = 0
    while True:
        here = f"{prefix}{at}/"
        proxy.reset(fault, at)
        behind = Receiver(proxy.url, weed.keys, here, tmp_path)
        direct = Receiver(weed.url, weed.keys, here, tmp_path)
        try:
            try:
                receipts = await receiveAll(behind.store, 1)
            except TransferError as e:
                if not e.retryable:
                    raise
                # so the sender comes back, to whichever receiver
                receipts = await receiveAll(direct.store)
            await verify(weed, here, direct, receipts)
        finally:
            await behind.close()
            await direct.close()
        if not proxy.done.is_set():
            break
        at += 1
    assert at > 10, proxy.requests


@pytest_twisted.ensureDeferred
async def test_lateAfterATakeOver(weed, proxy, prefix, tmp_path):
    """
    A receiver dies with a request on its way, another one ends what it began, and then the
    engine carries the request out.
    """
    at = 0
    while True:
        here = f"{prefix}{at}/"
        proxy.reset("hold", at)
        dying = Receiver(proxy.url, weed.keys, here, tmp_path)
        direct = Receiver(weed.url, weed.keys, here, tmp_path)
        try:
            ending = Deferred.fromCoroutine(receiveAll(dying.store, 1, lambda d, _: d))
            ending.addErrback(lambda _: None)
            await until(lambda ending=ending: proxy.done.is_set() or ending.called, 60)
            dying.dead = True
            receipts = await receiveAll(direct.store)
            proxy.release()
            await verify(weed, here, direct, receipts)
        finally:
            await dying.close()
            await direct.close()
        if not proxy.done.is_set():
            break
        at += 1
    assert at > 10, proxy.requests
