"""
Reading from an engine that others write to as well, and that does not always behave.
"""

import pytest
import pytest_twisted
from twisted.internet import reactor

from connpool.errors import Busy, NotFound, Unavailable
from connpool.transfer import RelativeName
from connpool.transfer.stores.s3.calls import Entry, Found, Listed, Put
from connpool.transfer.stores.s3.store import S3Store
from tests.helpers.waiting import bounded, failureResultOf, successResultOf
from tests.transfer.stores.s3.engine import MemoryEngine


class Answering(MemoryEngine):
    """
    An engine with answers that were given to it, for a kind of call.
    """

    def __init__(self):
        super().__init__()
        self.answers = {}

    def carryOut(self, call):
        given = self.answers.get(type(call).__name__)
        return given.pop(0) if given else super().carryOut(call)


@pytest.fixture
def engine():
    return Answering()


@pytest.fixture(params=["", "in/"], ids=["top", "prefix"])
def store(request, engine, tmp_path):
    store = S3Store(reactor, engine, prefix=request.param, spoolDirectory=str(tmp_path))
    yield store
    pytest_twisted.blockon(bounded(store.close()))


def name(text):
    return RelativeName.parse(text, profile="posix")


def put(store, engine, key, body=b"theirs", **metadata):
    engine.carryOut(Put(store.layout.prefix + key, body, None, metadata))


def listed(store, directory=None, after="", limit=1000):
    where = None if directory is None else name(directory)
    return successResultOf(store.listing(where, after, limit))


def test_namesThatNoFileCanHave(store, engine):
    for key in ("a", "d/b", "d/", "d//c", "d/.connpool", "d/x\\y", "d/\x01", "d/..", "..", "d/./x"):
        put(store, engine, key)
    engine.carryOut(Put(store.layout.private + "store", b"{}"))
    assert [each.name for each in listed(store).entries] == ["a", "d"]
    assert [each.name for each in listed(store, "d").entries] == ["b"]
    for path in ("d/x\\y", "d\\b", "/".join(["k" * 250] * 5)):
        failureResultOf(store.read(name(path), 0, 1), NotFound)
        failureResultOf(store.listing(name(path), "", 1), NotFound)


def test_aDirectoryOfNothingThatIsListed(store, engine):
    put(store, engine, "d//c")
    put(store, engine, "marked/", b"")
    for each in ("d", "marked"):
        assert listed(store, each).entries == ()
        assert not listed(store, each).more


def test_anObjectAndADirectoryOfOneName(store, engine):
    """
    The object is listed, wherever a page ends, and both are read.
    """
    for key in ("a", "a.b", "a/x", "b"):
        put(store, engine, key)
    for limit in (1, 2, 3, 9):
        found, after, more = [], "", True
        while more:
            page = listed(store, None, after, limit)
            found += [(each.name, each.directory) for each in page.entries]
            after, more = page.entries[-1].name, page.more
        assert found == [("a", False), ("a.b", False), ("b", False)]
    assert [each.name for each in listed(store, "a").entries] == ["x"]
    assert successResultOf(store.read(name("a"), 0, 9)).data == b"theirs"


@pytest.mark.parametrize(
    ("told", "modified"),
    [("12", 12), ("-12", -12), ("x", 10**15), ("--1", 10**15), ("9" * 2000, 10**15)],
)
def test_timesThatOthersWrote(store, engine, told, modified):
    put(store, engine, "a", mtime=told)
    assert successResultOf(store.read(name("a"), 0, 9)).modified == modified
    assert successResultOf(store.stat(name("a"))).modified == modified


def test_pastTheEndAnotherLookTellsTheVersion(store, engine):
    """
    Engines answer 416 with nothing but the size.
    """
    put(store, engine, "a", b"12345")
    whole = successResultOf(store.read(name("a"), 0, 9))
    engine.answers["Get"] = [Found("", 5, 0.0, 0.0)]
    beyond = successResultOf(store.read(name("a"), 5, 9))
    assert (beyond.data, beyond.size, beyond.version) == (b"", 5, whole.version)
    assert successResultOf(store.read(name("a"), 1 << 62, 1 << 63)).version == whole.version


def test_lessThanWasAskedForIsNoContent(store, engine):
    put(store, engine, "a", b"12345")
    for body in (b"1", b"123456"):
        engine.answers["Get"] = [Found('"e"', 5, 0.0, 0.0, {}, body)]
        failureResultOf(store.read(name("a"), 0, 5), Busy)
    # it was there, and longer, when it was looked at again
    engine.answers["Get"] = [Found("", 0, 0.0, 0.0)]
    failureResultOf(store.read(name("a"), 0, 5), Busy)


def test_aListingThatDoesNotGoOn(store, engine):
    engine.answers["List"] = [Listed((), more=True, date=0.0)]
    failureResultOf(store.listing(None, "", 10), Unavailable)


def test_anEngineThatMistakesThePlace(store, engine):
    """
    Names are not paths to it, and what lies elsewhere is not shown.
    """
    put(store, engine, "d/x")
    for after in ("../../x", "a/../../", "..\\x", "/"):
        assert [each.name for each in listed(store, "d", after).entries] == ["x"]
    elsewhere = Entry("away/from/here", 1, '"e"', 0.0)
    engine.answers["List"] = [Listed((elsewhere,), False, 0.0, ("away/from/",))]
    assert listed(store, "d").entries == ()


def test_aPageCostsAFewCalls(store, engine):
    """
    A thousand names of many that begin alike, after which a directory could come.
    """
    for number in range(3000):
        put(store, engine, f"log-{number:05}.a.txt")
    engine.calls.clear()
    page = listed(store, None, "log-00999.a.txt", 1000)
    assert [each.name for each in page.entries[::999]] == ["log-01000.a.txt", "log-01999.a.txt"]
    assert page.more
    assert sum(engine.calls.values()) <= 10
