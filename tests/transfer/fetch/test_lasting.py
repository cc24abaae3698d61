"""
A receiver that is read over as many connections as it takes.
"""

import pytest
from twisted.internet import defer
from twisted.internet.error import ConnectError

from connpool.errors import Forbidden, NetworkFailed, TransferError, Unavailable
from connpool.transfer.fetch.lasting import LastingRemote
from connpool.transfer.fetch.listing import entries, tree
from connpool.transfer.fetch.remote import Remote
from tests.transfer.fetch.test_download import Library

#: In directories two deep, some of several pages.
NAMES = sorted(
    [f"t/{a}/{b}/{'n' * 200}{c:03}" for a in range(2) for b in range(2) for c in range(300)]
    + [f"t/flat/{number:04}" for number in range(2100)]
)


@pytest.fixture
def library():
    made = Library()
    made.store.files = {f"alice/{name}": b"" for name in NAMES}
    made.waited = []
    yield made
    made.close()


def lasting(library):
    async def connect():
        try:
            return await library.opening()
        except ConnectError:
            raise NetworkFailed("cannot connect") from None

    remote = LastingRemote(library.clock, connect, lambda *said: library.waited.append(said))
    library.run(remote.open())
    return remote


def files(library, remote):
    failed = []

    async def listed():
        found = tree(remote, "t", lambda *told: failed.append(told))
        return [entry.path async for entry in found if not entry.directory]

    return library.run(listed()), failed


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_aListGoesOnWhereItsConnectionWasLost(library, how):
    library.plan = [{"cut": (1, cut, how)} for cut in range(1000, 250_000, 31_013)]
    found, failed = files(library, lasting(library))
    assert sorted(found) == NAMES  # each once
    assert failed == []
    assert len(library.waited) > 3
    assert {seconds for _, _, seconds in library.waited} <= {0.5, 1.0, 2.0}


def test_aConnectionIsGivenUpOnce(library):
    remote = lasting(library)
    library.wires[-1].reset(library.wires[-1].ends[0])
    library.refuse = True
    with pytest.raises(NetworkFailed):
        files(library, remote)
    assert remote.lost
    assert [seconds for *_, seconds in library.waited] == [0.5, 1, 2, 4, 8, 15, 15]
    library.refuse = False
    for _ in range(3):  # the names that are left do not wait again
        with pytest.raises(NetworkFailed):
            library.run(remote.ask("a", lambda remote: remote.file("a")))
    assert len(library.waited) == 7
    assert len(library.wires) == 1


def test_anotherFailureIsNoReasonToGiveUp(library):
    remote = lasting(library)
    asked = []

    async def ask(_):
        asked.append(1)
        raise Forbidden("no")

    with pytest.raises(Forbidden):
        library.run(remote.ask("a", ask))
    assert len(asked) == 1
    assert not remote.lost

    async def busy(_):
        raise Busy("busy")

    with pytest.raises(Busy):
        library.run(remote.ask("a", busy))
    assert not remote.lost
    assert len(library.wires) == 1

    async def first():
        async for entry in entries(remote, "t"):
            return entry.path
        return None

    assert library.run(first()) == "t/0"


def test_aListIsToldAtOnceThatTheReceiverCannotNow(library, monkeypatch):
    """
    It has answered, perhaps after it tried for long itself.
    """
    remote = lasting(library)
    asked = []

    async def unavailable(_, directory, after):
        asked.append(directory)
        raise Unavailable("its engine fails")

    monkeypatch.setattr(Remote, "page", unavailable)
    with pytest.raises(Unavailable):
        library.run(remote.page("t", b""))
    assert asked == ["t"]
    assert library.waited == []
    assert not remote.lost


class Busy(TransferError):
    retryable = True


def test_itCanBeInterruptedWhileItWaits(library):
    remote = lasting(library)
    library.wires[-1].reset(library.wires[-1].ends[0])
    library.refuse = True
    asking = defer.Deferred.fromCoroutine(remote.page("t", b""))
    asking.cancel()
    results = []
    asking.addErrback(results.append)
    assert results[0].check(defer.CancelledError)
    assert library.clock.getDelayedCalls() == []
