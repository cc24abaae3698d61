"""
The contract of L{connpool.interfaces.IInspectableStore}, on every store that has it.
"""

import os

import pytest
import pytest_twisted
from twisted.internet import reactor
from zope.interface.verify import verifyObject

from connpool.errors import TransferError
from connpool.interfaces import IInspectablePartial, IInspectableStore
from connpool.transfer.stores import LocalStore, MemoryStore
from tests.helpers.waiting import bounded
from tests.transfer.stores.kit import BLOCK, fill, offer

CONTENT = bytes(range(256)) * 1024


@pytest.fixture(params=["memory", "local"])
def store(request, root):
    made = MemoryStore() if request.param == "memory" else LocalStore(reactor, root)
    yield made
    pytest_twisted.blockon(bounded(made.close()))


def asked(**more):
    return offer("a", size=len(CONTENT), durability="none", **more)


async def shown(partial):
    fd = await bounded(partial.openContent())
    try:
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", 0)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


@pytest_twisted.ensureDeferred
async def test_theContentIsThereBeforeItIsPublished(store):
    verifyObject(IInspectableStore, store)
    partial = await bounded(store.open(asked()))
    verifyObject(IInspectablePartial, partial)
    await fill(partial, CONTENT)
    for _ in range(2):
        assert await shown(partial) == CONTENT
    assert await bounded(store.stat(asked().name)) is None
    await bounded(partial.commit(None))
    with pytest.raises(TransferError):
        await bounded(partial.openContent())


@pytest_twisted.ensureDeferred
async def test_whatIsNotWholeIsNotShown(store):
    partial = await bounded(store.open(asked()))
    await fill(partial, CONTENT[: 2 * BLOCK])
    with pytest.raises(TransferError):
        await bounded(partial.openContent())
    await bounded(partial.abort())


@pytest_twisted.ensureDeferred
async def test_ofUnknownSizeItEndsWithWhatIsHeld(store):
    partial = await bounded(store.open(offer("a", durability="none")))
    await fill(partial, CONTENT)
    assert await shown(partial) == CONTENT
    await bounded(partial.abort())


@pytest_twisted.ensureDeferred
async def test_afterARestartItIsReadAgainFirst(root):
    store = LocalStore(reactor, root)
    asks = asked(resumeKey=bytes(32), key=bytes(32))
    partial = await bounded(store.open(asks))
    await fill(partial, CONTENT)
    await bounded(partial.suspend())
    await bounded(store.close())
    store = LocalStore(reactor, root)
    partial = await bounded(store.open(asks))
    assert await shown(partial) == CONTENT
    await bounded(partial.abort())
    await bounded(store.close())


@pytest_twisted.ensureDeferred
async def test_aPrivateNameThatWasTakenAway(root):
    store = LocalStore(reactor, root)
    partial = await bounded(store.open(asked()))
    await fill(partial, CONTENT)
    for path in root.glob(".connpool/temporary/*"):
        path.unlink()
    assert await shown(partial) == CONTENT
    await bounded(partial.abort())
    await bounded(store.close())
