"""
The contract of stores on a real engine: the same tests as on all others.
"""

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import succeed

from connpool.pool import ConnectionPool
from connpool.services.s3store import endpointsOf, parseArguments
from connpool.transfer.records import StoreSettings
from connpool.transfer.stores.s3.calls import Get, List, together
from connpool.transfer.stores.s3.exchange import ExchangeFactory
from connpool.transfer.stores.s3.requests import SignedRequests
from connpool.transfer.stores.s3.signing import Signer
from connpool.transfer.stores.s3.store import S3Store
from tests.helpers.waiting import bounded
from tests.transfer.stores import test_contract

pytestmark = [pytest.mark.slow, pytest.mark.peer("weed"), pytest.mark.timeout(300)]

globals().update(
    (name, value)
    for name, value in vars(test_contract).items()
    if name.startswith("test_") and "withDirectories" not in value.__code__.co_varnames
)


class Source:
    """
    Keys that do not change.
    """

    def __init__(self, keys):
        self._keys = keys

    def keys(self, refused=None):
        return succeed(self._keys)


class EngineUnderTest:
    isDurable = True
    isOrdered = False
    # the least that engines take
    partBytes = 5 << 20

    def __init__(self, engine, prefix, root, **values):
        arguments = parseArguments(f"bucket=files,endpoint={engine.url}")
        pool = ConnectionPool(
            reactor, endpointsOf(reactor, arguments), ExchangeFactory(reactor), maxSize=16
        )
        signer = Signer("us-east-1")
        requests = SignedRequests(
            *(reactor, pool, arguments.place, signer, Source(engine.keys), engine.url)
        )
        self.prefix = prefix
        self.store = S3Store(
            reactor,
            requests,
            StoreSettings(**values),
            prefix=prefix,
            spoolDirectory=str(root),
            leastPart=self.partBytes,
            closed=requests.close,
        )

    def files(self):
        return self.store.run(self._files())

    async def _files(self):
        keys = [entry.key for entry in (await List(self.prefix)).entries]
        found = await together(map(Get, keys))
        return {
            key.removeprefix(self.prefix): there.body
            for key, there in zip(keys, found, strict=True)
        }


@pytest.fixture
def tested(weed, prefix, tmp_path):
    case = EngineUnderTest(weed, prefix, tmp_path)
    yield case
    pytest_twisted.blockon(bounded(case.store.close()))


@pytest.fixture
def posix(weed, prefix, tmp_path):
    case = EngineUnderTest(weed, prefix, tmp_path, names="posix")
    yield case
    pytest_twisted.blockon(bounded(case.store.close()))
