"""
The contract of L{connpool.interfaces.IFileStore}, on every store that ships.
"""

from __future__ import annotations

from itertools import product

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    fail,
    maybeDeferred,
    succeed,
)
from zope.interface import implementer
from zope.interface.verify import verifyObject

from connpool.errors import (
    Busy,
    ConflictTakeover,
    Exists,
    NameRefused,
    Skipped,
    StoreError,
    TooLarge,
)
from connpool.interfaces import (
    IBatchStore,
    IDirectoryStore,
    IFileStore,
    IPartial,
    IPartialHolder,
    ISparsePartial,
    ISparseStore,
)
from connpool.transfer import RelativeName
from connpool.transfer.digests import DIGESTS
from connpool.transfer.holes import zeroDigest
from connpool.transfer.records import StoreSettings
from connpool.transfer.stores import LocalStore, MemoryStore
from connpool.transfer.stores.s3.store import S3Store
from connpool.transfer.syscalls import VOLATILE
from tests.helpers.waiting import assertNoResult, bounded
from tests.transfer.hostile import CORPUS
from tests.transfer.stores.kit import BLOCK, fill, offer, settled, storeBy, visible
from tests.transfer.stores.s3.engine import MemoryEngine


class MemoryUnderTest:
    isDurable = False
    isOrdered = True
    partBytes = BLOCK

    def __init__(self, root, **values):
        self.store = MemoryStore(**values)

    def files(self):
        return dict(self.store.files)


class LocalUnderTest:
    isOrdered = True
    partBytes = BLOCK

    def __init__(self, root, **values):
        self.root = root
        self.store = LocalStore(reactor, root, **values)
        self.isDurable = self.store.filesystem not in VOLATILE

    def files(self):
        return visible(self.root)


class S3UnderTest:
    """
    On an engine in memory, with parts of two blocks.
    """

    isDurable = isOrdered = True
    partBytes = 2 * BLOCK

    def __init__(self, root, **values):
        self.engine = MemoryEngine()
        self.store = S3Store(
            reactor,
            self.engine,
            StoreSettings(**values),
            prefix="in/",
            spoolDirectory=str(root),
            leastPart=self.partBytes,
        )

    def files(self):
        return {
            key.removeprefix("in/"): there.body
            for key, there in self.engine.objects.items()
            if key.startswith("in/")
        }


async def filesOf(tested):
    """
    What is published; a store that asks somebody for it may wait.
    """
    return await bounded(settled(tested.files()))


STORES = {"memory": MemoryUnderTest, "local": LocalUnderTest, "s3": S3UnderTest}
onEveryStore = pytest.fixture(params=STORES.values(), ids=STORES.keys())
onStoresWithDirectories = pytest.fixture(
    params=[MemoryUnderTest, LocalUnderTest], ids=["memory", "local"]
)


@onEveryStore
def tested(request, root):
    case = request.param(root)
    yield case
    pytest_twisted.blockon(bounded(case.store.close()))


@onStoresWithDirectories
def withDirectories(request, root):
    case = request.param(root)
    yield case
    pytest_twisted.blockon(bounded(case.store.close()))


@onEveryStore
def posix(request, root):
    case = request.param(root, names="posix")
    yield case
    pytest_twisted.blockon(bounded(case.store.close()))


@pytest_twisted.ensureDeferred
async def test_interfaces(tested):
    verifyObject(IFileStore, tested.store)
    partial = await bounded(tested.store.open(offer()))
    verifyObject(IPartial, partial)
    await bounded(partial.abort())


@pytest.mark.parametrize("durability", ["none", "data", "full"])
@pytest_twisted.ensureDeferred
async def test_putPublishesAndSaysSo(tested, durability):
    asked = offer("a/b/report.txt", durability=durability, modified=1_600_000_000 * 10**9)
    receipt = await bounded(settled(tested.store.put(asked, b"content", b"\1" * 32)))
    assert await filesOf(tested) == {"a/b/report.txt": b"content"}
    assert (receipt.name, receipt.wanted) == ("a/b/report.txt", "a/b/report.txt")
    assert (receipt.size, receipt.status) == (7, "stored")
    assert (receipt.integrity, receipt.root) == ("verified", "01" * 32)
    assert receipt.transferId == asked.transferId
    assert receipt.durability == (durability if tested.isDurable else "none")
    stat = await bounded(tested.store.stat(asked.name))
    assert (stat.size, stat.modified) == (7, 1_600_000_000 * 10**9)


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * BLOCK + 17])
@pytest_twisted.ensureDeferred
async def test_nothingIsVisibleBeforeCommit(tested, size):
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    partial = await bounded(tested.store.open(offer(size=size)))
    await fill(partial, content)
    assert list(partial.held) == ([(0, size)] if size else [])
    assert await filesOf(tested) == {}
    receipt = await bounded(partial.commit(b"\2" * 32))
    assert (receipt.size, receipt.status) == (size, "stored")
    assert await filesOf(tested) == {"report.txt": content}
    assert await bounded(tested.store.partials()) == []


@pytest_twisted.ensureDeferred
async def test_unknownSizeEndsAtTheLastByte(tested):
    partial = await bounded(tested.store.open(offer(size=None, digest=None, protocol="classic")))
    partial.write(0, b"abc")
    partial.write(3, bytearray(b"def"))
    receipt = await bounded(partial.commit(None))
    assert (receipt.size, receipt.integrity, receipt.root) == (6, "unverified", None)
    assert await filesOf(tested) == {"report.txt": b"abcdef"}


@pytest_twisted.ensureDeferred
async def test_anyOrder(tested):
    content = bytes(range(256)) * 512
    partial = await bounded(tested.store.open(offer(size=len(content))))
    half = len(content) // 2
    partial.write(half, content[half:])
    assert list(partial.held) == [(half, len(content))]
    partial.write(0, memoryview(content)[:half])
    assert list(partial.held) == [(0, len(content))]
    await bounded(partial.commit(None))
    assert await filesOf(tested) == {"report.txt": content}


@pytest_twisted.ensureDeferred
async def test_incompleteIsNotPublished(tested):
    partial = await bounded(tested.store.open(offer(size=10)))
    partial.write(0, b"12345")
    with pytest.raises(StoreError, match="not complete"):
        await bounded(partial.commit(None))
    await bounded(partial.abort())
    assert await filesOf(tested) == {}


@pytest_twisted.ensureDeferred
async def test_moreThanAnnouncedIsRefused(tested):
    partial = await bounded(tested.store.open(offer(size=3)))
    with pytest.raises(TooLarge):
        partial.write(0, b"1234")
    with pytest.raises(TooLarge):
        partial.write(3, b"4")
    partial.write(0, b"123")
    await bounded(partial.commit(None))
    assert await filesOf(tested) == {"report.txt": b"123"}


@pytest_twisted.ensureDeferred
async def test_heldBytesAreNotWrittenAgain(tested):
    partial = await bounded(tested.store.open(offer(size=9)))
    partial.write(3, b"345")
    for start, data in ((3, b"x"), (0, b"0123"), (5, b"xx"), (2, b"xxxxx")):
        with pytest.raises(StoreError):
            partial.write(start, data)
    partial.write(0, b"012")
    partial.write(6, b"678")
    await bounded(partial.commit(None))
    assert await filesOf(tested) == {"report.txt": b"012345678"}


@pytest_twisted.ensureDeferred
async def test_discardedBytesComeAgain(tested):
    partial = await bounded(tested.store.open(offer(size=2 * BLOCK)))
    await fill(partial, b"x" * 2 * BLOCK)
    partial.discard(0, BLOCK)
    assert list(partial.held) == [(BLOCK, 2 * BLOCK)]
    assert list(partial.digests) == [1]
    partial.write(0, b"y" * BLOCK)
    await bounded(partial.commit(None))
    assert await filesOf(tested) == {"report.txt": b"y" * BLOCK + b"x" * BLOCK}


@pytest_twisted.ensureDeferred
async def test_abortLeavesNothingAndMayBeRepeated(tested):
    partial = await bounded(tested.store.open(offer("a/b", size=3)))
    partial.write(0, b"123")
    await bounded(partial.abort())
    await bounded(partial.abort())
    with pytest.raises(StoreError):
        partial.write(0, b"1")
    with pytest.raises(StoreError):
        await bounded(partial.commit(None))
    assert await filesOf(tested) == {}
    assert await bounded(tested.store.partials()) == []


async def _store(store, way, name, content, **values):
    return await storeBy(way, store, offer(name, size=len(content), **values), content)


@pytest.mark.parametrize("way", ["put", "commit"])
@pytest.mark.parametrize("durability", ["none", "full"])
@pytest_twisted.ensureDeferred
async def test_conflictRules(tested, way, durability):
    async def store(content, ifExists):
        receipt = await _store(
            tested.store, way, "d/x.txt", content, ifExists=ifExists, durability=durability
        )
        return receipt.name, receipt.status

    assert await store(b"one", "refuse") == ("d/x.txt", "stored")
    for rule in ("rename", "refuse", "skip"):
        # the same content under the wanted name is not a second copy
        assert await store(b"one", rule) == ("d/x.txt", "duplicate")
    for rule in ("refuse", "skip"):
        with pytest.raises(Exists):
            await store(b"two", rule)
    assert await store(b"two", "rename") == ("d/x (1).txt", "stored")
    assert await store(b"three", "rename") == ("d/x (2).txt", "stored")
    # nor under a number: who sends it every night
    assert await store(b"two", "rename") == ("d/x (1).txt", "duplicate")
    assert await store(b"three", "rename") == ("d/x (2).txt", "duplicate")
    assert await filesOf(tested) == {
        "d/x.txt": b"one",
        "d/x (1).txt": b"two",
        "d/x (2).txt": b"three",
    }
    assert await store(b"four", "replace") == ("d/x.txt", "stored")
    assert (await filesOf(tested))["d/x.txt"] == b"four"


#: Item 23 of the corpus, and what is beside it.
NEIGHBOURS = [
    ("\u00e2", "a\u0302"),
    ("A", "a"),
    ("ß", "ss"),
    ("İ", "i\u0307"),
    ("\u212a", "K"),
    ("\u212a", "k"),
    ("ΣΊΣΥΦΟΣ.txt", "σίσυφος.TXT"),
]
LEVELS = pytest.mark.parametrize("durability", ["none", "full"])
WAYS = pytest.mark.parametrize("way", ["put", "commit"])


@WAYS
@LEVELS
@pytest.mark.parametrize("rule", ["rename", "replace", "refuse", "skip"])
@pytest_twisted.ensureDeferred
async def test_aNeighbourHasTheName(tested, way, durability, rule):
    asked = {"ifExists": rule, "durability": durability}
    expected = {}
    for number, (there, wanted) in enumerate([*NEIGHBOURS, *(pair[::-1] for pair in NEIGHBOURS)]):
        await _store(tested.store, way, f"{number}/{there}", b"1", **asked)
        expected[f"{number}/{there}"] = b"1"
        # with the content of its neighbour it is no duplicate
        storing = _store(tested.store, way, f"{number}/{wanted}", b"1", **asked)
        if rule == "rename":
            receipt = await storing
            variant = RelativeName.parse(f"{number}/{wanted}").variant("1").path
            assert (receipt.name, receipt.status) == (variant, "stored")
            expected[variant] = b"1"
            receipt = await _store(tested.store, way, f"{number}/{wanted}", b"1", **asked)
            assert (receipt.name, receipt.status) == (variant, "duplicate")
        else:
            with pytest.raises(Exists) as refused:
                await storing
            text = str(refused.value)
            assert text.startswith(f'"{wanted}" differs only in case or composition')
            assert f'"{there}"' in text
            assert "--names posix" in text
            assert "\n" not in text
        again = await _store(tested.store, way, f"{number}/{there}", b"1", **asked)
        assert again.status == ("stored" if rule == "replace" else "duplicate")
    assert await filesOf(tested) == expected


@WAYS
@LEVELS
@pytest_twisted.ensureDeferred
async def test_posixKeepsNeighboursApart(posix, way, durability):
    expected = {}
    for number, pair in enumerate(NEIGHBOURS):
        for rule, name in zip(("refuse", "replace"), pair, strict=True):
            for path in (f"{number}/{name}", f"{number}d/{name}/x"):
                asked = {"ifExists": rule, "durability": durability}
                receipt = await _store(posix.store, way, path, name.encode(), **asked)
                assert receipt.name == path
                expected[path] = name.encode()
    assert await filesOf(posix) == expected


@pytest_twisted.ensureDeferred
async def test_notNeighbours(tested):
    names = ["i", "ı", "i\u0307", "Ａ", "A", "ﬁ", "f", "μ", "m", "é", "e", "1", "①", "²", "2"]
    for name in names:
        receipt = await _store(tested.store, "put", name, name.encode(), ifExists="refuse")
        assert receipt.name == name
    assert await filesOf(tested) == {name: name.encode() for name in names}


@LEVELS
@pytest.mark.parametrize("rule", ["rename", "refuse"])
@pytest_twisted.ensureDeferred
async def test_neighboursInOneBatch(tested, rule, durability):
    waiting = []
    for number, pair in enumerate(NEIGHBOURS):
        for name in pair:
            asked = offer(f"{number}/{name}", ifExists=rule, durability=durability)
            try:
                waiting.append(settled(tested.store.put(asked, name.encode(), None)))
            except Exists as error:  # a level that is decided at once
                waiting.append(fail(error))
    for number, (first, second) in enumerate(NEIGHBOURS):
        ended = await bounded(
            DeferredList(waiting[2 * number : 2 * number + 2], consumeErrors=True)
        )
        if not tested.isOrdered and not ended[0][0]:
            # what is asked of an engine at once is done in any order
            ended, first, second = ended[::-1], second, first
        names = [each.name if success else each.value for success, each in ended]
        if not tested.isOrdered and names[0] != f"{number}/{first}":
            names, first, second = names[::-1], second, first
        assert names[0] == f"{number}/{first}"
        if rule == "refuse":
            if not tested.isOrdered and isinstance(names[1], Busy):
                # the other one was still being stored: its sender comes again
                asked = offer(f"{number}/{second}", ifExists=rule, durability=durability)
                with pytest.raises(Exists) as refused:
                    await bounded(settled(tested.store.put(asked, second.encode(), None)))
                names[1] = refused.value
            assert isinstance(names[1], Exists)
            assert "posix" in str(names[1])
        else:
            assert names[1] == f"{number}/{RelativeName.parse(second).variant('1').path}"
    assert len(await filesOf(tested)) == len(NEIGHBOURS) * (1 if rule == "refuse" else 2)


@pytest_twisted.ensureDeferred
async def test_fiftySpellingsOfOneName(tested):
    # batches, commits in threads and on the reactor's thread, all at once
    spellings = ["".join(each) for each in product(*zip("reader", "READER", strict=True))][:50]
    results = []
    for number, spelling in enumerate(spellings):
        asked = offer(
            f"d/{spelling}",
            size=4,
            ifExists="refuse",
            durability=("none", "full")[number % 2],
        )
        if number % 4 < 2:
            partial = await bounded(tested.store.open(asked))
            partial.write(0, b"%04d" % number)
            results.append(partial.commit(None))
        else:
            results.append(maybeDeferred(tested.store.put, asked, b"%04d" % number, None))
    ended = await bounded(DeferredList(results, consumeErrors=True))
    won = [result for success, result in ended if success]
    assert all(result.check(Exists) for success, result in ended if not success)
    assert [receipt.name for receipt in won] == list(await filesOf(tested))
    assert len(won) == 1


@WAYS
@pytest_twisted.ensureDeferred
async def test_numberedVariantsHaveNeighboursToo(tested, way):
    for number, name in enumerate(("X.txt", "X (1).TXT", "x (2).txt", "x.TXT")):
        receipt = await _store(tested.store, way, name, b"%d" % number, ifExists="rename")
        assert receipt.name == (name if number < 3 else "x (3).TXT")


@WAYS
@LEVELS
@pytest.mark.parametrize("rule", ["rename", "replace", "refuse", "skip"])
@pytest_twisted.ensureDeferred
async def test_noDirectoryIsMadeBesideItsNeighbour(tested, way, durability, rule):
    async def store(name, content=b"1"):
        asked = {"ifExists": rule, "durability": durability}
        return await _store(tested.store, way, name, content, **asked)

    await store("a/Docs/x")
    await store("file")
    for name, part, there in (
        ("a/docs/y", "docs", "Docs"),
        ("A/Docs/y", "A", "a"),
        ("File/y", "File", "file"),
    ):
        with pytest.raises(Exists) as refused:
            await store(name)
        assert f'"{part}"' in str(refused.value)
        assert f'"{there}"' in str(refused.value)
        assert "--names posix" in str(refused.value)
    await store("a/Docs/y")
    expected = {"a/Docs/x": b"1", "a/Docs/y": b"1", "file": b"1"}
    if rule == "rename":
        assert (await store("a/docs")).name == "a/docs (1)"
        expected["a/docs (1)"] = b"1"
    else:
        with pytest.raises(Exists):
            await store("a/docs")
    assert await filesOf(tested) == expected
    assert await bounded(tested.store.stat(RelativeName.parse("a/docs/y"))) is None


@pytest_twisted.ensureDeferred
async def test_manyOfOneName(tested):
    names = set()
    for number in range(110):
        receipt = await _store(
            tested.store, "put", "x.txt", b"%d" % number, durability="none", ifExists="rename"
        )
        names.add(receipt.name)
    assert len(names) == 110 == len(await filesOf(tested))
    assert {"x.txt", "x (1).txt", "x (100).txt"} <= names


@pytest.mark.parametrize("way", ["put", "commit"])
@pytest.mark.parametrize("rule", ["rename", "replace", "refuse", "skip"])
@pytest_twisted.ensureDeferred
async def test_fileWhereADirectoryIsNeeded(tested, way, rule):
    # item 32 of the corpus, both ways round
    await _store(tested.store, way, "a", b"1", ifExists=rule)
    with pytest.raises(Exists, match="not a directory"):
        await _store(tested.store, way, "a/b", b"2", ifExists=rule)
    await _store(tested.store, way, "c/d", b"3", ifExists=rule)
    if rule == "rename":
        assert (await _store(tested.store, way, "c", b"4", ifExists=rule)).name == "c (1)"
    else:
        with pytest.raises(Exists):
            await _store(tested.store, way, "c", b"4", ifExists=rule)
    files = await filesOf(tested)
    files.pop("c (1)", None)
    assert files == {"a": b"1", "c/d": b"3"}


@pytest_twisted.ensureDeferred
async def test_hostileNamesAreOrdinaryFiles(tested):
    expected = {}
    for number, hostile in enumerate(CORPUS):
        if not hostile.posix or len(hostile.raw) > 250:
            continue
        # one directory for each, since some names lie below others
        name = f"{number}/{hostile.raw.decode()}"
        parsed = RelativeName.parse(name, profile="posix")
        asked = attrs.evolve(offer(durability="none"), name=parsed)
        if "\\" in name and isinstance(tested.store, S3Store):
            with pytest.raises(NameRefused, match="backslash"):
                tested.store.put(asked, hostile.raw, None)
            continue
        await bounded(settled(tested.store.put(asked, hostile.raw, None)))
        expected[name] = hostile.raw
    assert await filesOf(tested) == expected


@pytest_twisted.ensureDeferred
async def test_statOfNothing(tested):
    assert await bounded(tested.store.stat(RelativeName.parse("a/b"))) is None
    await _store(tested.store, "put", "a", b"1")
    assert await bounded(tested.store.stat(RelativeName.parse("a/b"))) is None
    assert tested.store.trouble() is None


KEY = b"k" * 32
SECRET = b"s" * 32


@pytest.mark.parametrize("durability", ["none", "full"])
@pytest.mark.parametrize("way", ["put", "open"])
@pytest_twisted.ensureDeferred
async def test_sameKeySameReceipt(tested, way, durability):
    # the sender did not see its receipt, and what it sends again is no copy
    asked = offer(size=3, key=KEY, durability=durability)
    first = await bounded(settled(tested.store.put(asked, b"abc", None)))
    again = attrs.evolve(asked, transferId="f" * 32)
    if way == "put":
        second = await bounded(settled(tested.store.put(again, b"abc", None)))
    else:
        second = await bounded(tested.store.open(again))
    assert second == first
    assert await filesOf(tested) == {"report.txt": b"abc"}
    other = attrs.evolve(again, principal="mallory")
    third = await bounded(settled(tested.store.put(other, b"xyz", None)))
    assert third.name == "report (1).txt"


@pytest.mark.parametrize("durability", ["none", "full"])
@pytest_twisted.ensureDeferred
async def test_aKeyAnswersForItsContentOnly(tested, durability):
    # a file changed without its times: its key is the same
    first, second = (
        offer(size=3, key=KEY, durability=durability, transferId=letter * 32) for letter in "ab"
    )
    one, two = b"\1" * 32, b"\2" * 32
    old = await bounded(settled(tested.store.put(first, b"abc", one)))
    new = await bounded(settled(tested.store.put(second, b"xyz", two)))
    assert (new.root, new.transferId) == (two.hex(), second.transferId)
    assert sorted((await filesOf(tested)).values()) == [b"abc", b"xyz"]
    # each is answered again for its own content
    assert await bounded(settled(tested.store.put(first, b"xyz", two))) == new
    assert (await bounded(settled(tested.store.put(second, b"abc", one)))).root == old.root
    # an offer has no root: its sender compares
    assert (await bounded(tested.store.open(first))).root in (old.root, new.root)
    assert len(await filesOf(tested)) == 2


@pytest.mark.parametrize("durability", ["none", "full"])
@pytest_twisted.ensureDeferred
async def test_twoContentsUnderOneKeyAtOnce(tested, durability):
    asked = offer(size=3, key=KEY, durability=durability)
    both = [
        tested.store.put(asked, data, root)
        for data, root in ((b"abc", b"\1" * 32), (b"xyz", b"\2" * 32))
    ]
    receipts = [await bounded(settled(each)) for each in both]
    assert [receipt.root for receipt in receipts] == ["01" * 32, "02" * 32]
    assert sorted((await filesOf(tested)).values()) == [b"abc", b"xyz"]


@pytest.mark.parametrize("resumeKey", [None, SECRET])
@pytest.mark.parametrize("size", [2, 4, None])
@pytest_twisted.ensureDeferred
async def test_aKeyDoesNotAnswerForAnotherSize(tested, size, resumeKey):
    await bounded(settled(tested.store.put(offer(size=3, key=KEY), b"abc", b"\1" * 32)))
    partial = await bounded(tested.store.open(offer(size=size, key=KEY, resumeKey=resumeKey)))
    assert IPartial.providedBy(partial)
    data = b"wxyz"[: size or 3]
    partial.write(0, data)
    receipt = await bounded(partial.commit(b"\3" * 32))
    assert (receipt.root, receipt.size) == ("03" * 32, len(data))
    assert sorted((await filesOf(tested)).values()) == sorted([b"abc", data])


@pytest_twisted.ensureDeferred
async def test_aCommitIsAnsweredForItsOwnContent(tested):
    asked = offer(size=3, key=KEY)
    partials = [await bounded(tested.store.open(asked)) for _ in range(2)]
    for partial, data in zip(partials, (b"abc", b"xyz"), strict=True):
        partial.write(0, data)
    roots = [
        (await bounded(partial.commit(root))).root
        for partial, root in zip(partials, (b"\1" * 32, b"\2" * 32), strict=True)
    ]
    assert roots == ["01" * 32, "02" * 32]
    assert sorted((await filesOf(tested)).values()) == [b"abc", b"xyz"]


@pytest.mark.parametrize("ifExists", ["skip", "refuse"])
@pytest_twisted.ensureDeferred
async def test_skippedIsNotRefused(tested, ifExists):
    await bounded(settled(tested.store.put(offer(), b"abc", None)))
    with pytest.raises(Exists) as caught:
        await bounded(
            maybeDeferred(tested.store.put, offer(ifExists=ifExists, key=KEY), b"xyz", None)
        )
    assert isinstance(caught.value, Skipped) == (ifExists == "skip")
    assert await filesOf(tested) == {"report.txt": b"abc"}
    # and it leaves no receipt
    partial = await bounded(tested.store.open(offer(size=3, key=KEY)))
    assert IPartial.providedBy(partial)
    await bounded(partial.abort())


@pytest_twisted.ensureDeferred
async def test_sameKeyAfterACommit(tested):
    asked = offer(size=3, key=KEY)
    partial = await bounded(tested.store.open(asked))
    partial.write(0, b"abc")
    receipt = await bounded(partial.commit(None))
    assert await bounded(tested.store.open(asked)) == receipt


@pytest_twisted.ensureDeferred
async def test_sameKeyWhileTheFirstIsUnderWay(tested):
    asked = offer(size=3, key=KEY, durability="full")
    both = [tested.store.put(asked, b"abc", None) for _ in range(2)]
    first, second = [await bounded(settled(each)) for each in both]
    assert first == second
    assert await filesOf(tested) == {"report.txt": b"abc"}


@pytest_twisted.ensureDeferred
async def test_suspendAndResume(tested):
    content = bytes(range(256)) * 1024
    asked = offer(size=len(content), resumeKey=SECRET, key=KEY)
    partial = await bounded(tested.store.open(asked))
    await fill(partial, content[: 2 * BLOCK])
    await bounded(partial.suspend())
    await bounded(partial.suspend())
    with pytest.raises(StoreError):
        partial.write(3 * BLOCK, b"x")
    [info] = await bounded(tested.store.partials())
    assert (info.principal, info.name, info.size) == ("anonymous", "report.txt", len(content))
    assert (info.received, info.active) == (2 * BLOCK, False)
    assert info.allocated >= 2 * BLOCK

    partial = await bounded(tested.store.open(asked))
    assert list(partial.held) == [(0, 2 * BLOCK)]
    assert set(partial.digests) == {0, 1}
    assert await bounded(partial.settled()) == []
    await fill(partial, content)
    await bounded(partial.commit(b"\3" * 32))
    assert await filesOf(tested) == {"report.txt": content}
    assert await bounded(tested.store.partials()) == []


@pytest_twisted.ensureDeferred
async def test_moreThanOnePart(tested):
    content = bytes(range(256)) * (5 * tested.partBytes // 512) + b"end"
    asked = offer(size=len(content), resumeKey=SECRET, key=KEY)
    partial = await bounded(tested.store.open(asked))
    await fill(partial, content[: tested.partBytes + BLOCK])
    await bounded(partial.suspend())
    partial = await bounded(tested.store.open(asked))
    assert list(partial.held) == [(0, tested.partBytes + BLOCK)]
    await fill(partial, content)
    receipt = await bounded(partial.commit(b"\3" * 32))
    assert (receipt.size, receipt.status) == (len(content), "stored")
    assert await filesOf(tested) == {"report.txt": content}
    # known by its key, and by its content
    assert await bounded(tested.store.open(asked)) == receipt
    partial = await bounded(tested.store.open(attrs.evolve(asked, key=b"o" * 32)))
    await fill(partial, content)
    assert (await bounded(partial.commit(b"\3" * 32))).status == "duplicate"
    assert await filesOf(tested) == {"report.txt": content}


@pytest.mark.parametrize("change", [{"resumeKey": b"w" * 32}, {"principal": "mallory"}])
@pytest_twisted.ensureDeferred
async def test_onlyTheOwnerResumes(tested, change):
    asked = offer(size=2 * BLOCK, resumeKey=SECRET)
    partial = await bounded(tested.store.open(asked))
    await fill(partial, b"x" * BLOCK)
    await bounded(partial.suspend())
    other = await bounded(tested.store.open(attrs.evolve(asked, **change)))
    assert list(other.held) == []
    assert dict(other.digests) == {}
    await bounded(other.abort())
    mine = await bounded(tested.store.open(asked))
    assert list(mine.held) == [(0, BLOCK)]


@pytest_twisted.ensureDeferred
async def test_aNewerConnectionTakesOver(tested):
    asked = offer(size=2 * BLOCK, resumeKey=SECRET)
    older = await bounded(tested.store.open(asked))
    await fill(older, b"x" * BLOCK)
    newer = await bounded(tested.store.open(asked))
    assert list(newer.held) == [(0, BLOCK)]
    assert list(newer.digests) == [0]
    with pytest.raises(ConflictTakeover):
        older.write(BLOCK, b"y" * BLOCK)
    with pytest.raises(ConflictTakeover):
        older.record(1, b"\0" * 32)
    with pytest.raises(ConflictTakeover):
        older.discard(0, BLOCK)
    for end in (older.commit(None), older.checkpoint()):
        with pytest.raises(ConflictTakeover):
            await bounded(end)
    # what the evicted one does at its end harms nobody
    await bounded(older.suspend())
    await bounded(older.abort())
    newer.write(BLOCK, b"z" * BLOCK)
    await bounded(newer.commit(None))
    assert await filesOf(tested) == {"report.txt": b"x" * BLOCK + b"z" * BLOCK}


@implementer(IPartialHolder)
class Holder:
    """
    A transfer that is told, and lets go when it is asked to.
    """

    def __init__(self, place=None):
        self.place = place or succeed(None)
        self.told = 0

    def ready(self):
        return self.place

    def evicted(self):
        self.told += 1
        if not self.place.called:
            self.place.cancel()


@pytest_twisted.ensureDeferred
async def test_theOlderHolderIsToldAndWaitedFor(tested):
    verifyObject(IPartialHolder, Holder())
    asked = offer(size=2 * BLOCK, resumeKey=SECRET)
    one, two, three = Holder(), Holder(), Holder()
    older = await bounded(tested.store.open(asked, one))
    assert (one.told, older.epoch) == (0, 0)
    await fill(older, b"x" * BLOCK)
    opening = tested.store.open(asked, two)
    assert one.told == 1
    assertNoResult(opening)
    # it is not fenced: its last blocks are verified, and recorded
    older.write(BLOCK, b"y" * BLOCK)
    await bounded(older.suspend())
    newer = await bounded(opening)
    assert newer.epoch == 1
    assert newer.held[0][0] == 0
    # after an end nobody is told
    await bounded(newer.abort())
    last = await bounded(tested.store.open(asked, three))
    assert (one.told, two.told, last.epoch) == (1, 0, 0)
    await bounded(last.abort())


@pytest_twisted.ensureDeferred
async def test_aHolderThatWaitsMakesWay(tested):
    asked = offer(size=BLOCK, resumeKey=SECRET)
    waiting, newer = Holder(Deferred()), Holder()
    opening = tested.store.open(asked, waiting)
    assertNoResult(opening)
    assert await bounded(tested.store.partials()) == []
    partial = await bounded(tested.store.open(asked, newer))
    with pytest.raises(CancelledError):
        await bounded(opening)
    assert partial.epoch == 1
    await bounded(partial.abort())


@pytest_twisted.ensureDeferred
async def test_whatAHolderWaitsForMayFail(tested):
    for secret in (SECRET, None):
        asked = offer(size=BLOCK, resumeKey=secret)
        with pytest.raises(Busy):
            await bounded(tested.store.open(asked, Holder(fail(Busy("too many")))))
        partial = await bounded(tested.store.open(asked, Holder()))
        assert partial.epoch == 0
        await bounded(partial.abort())


@pytest_twisted.ensureDeferred
async def test_aReceiptLeavesNoClaim(tested):
    asked = offer(size=BLOCK, resumeKey=SECRET, key=SECRET)
    one = Holder()
    first = await bounded(tested.store.open(asked, one))
    await fill(first, b"x" * BLOCK)
    receipt = await bounded(first.commit(None))
    for _ in range(2):
        assert await bounded(tested.store.open(asked, Holder())) == receipt
    assert one.told == 0


@pytest_twisted.ensureDeferred
async def test_withoutAResumeKeyNothingStays(tested):
    partial = await bounded(tested.store.open(offer(size=2 * BLOCK)))
    await fill(partial, b"x" * BLOCK)
    await bounded(partial.checkpoint())
    await bounded(partial.suspend())
    assert await bounded(tested.store.partials()) == []


@pytest_twisted.ensureDeferred
async def test_checkpointSaysWhatIsDurable(tested):
    partial = await bounded(tested.store.open(offer(size=3 * BLOCK, resumeKey=SECRET)))
    await fill(partial, b"x" * BLOCK)
    assert list(partial.durable) == []
    await bounded(partial.checkpoint())
    assert list(partial.durable) == [(0, BLOCK)]
    partial.discard(0, BLOCK)
    assert list(partial.durable) == []


@pytest_twisted.ensureDeferred
async def test_deleteRemovesASuspendedPartial(tested):
    asked = offer(size=2 * BLOCK, resumeKey=SECRET, principal="alice")
    partial = await bounded(tested.store.open(asked))
    await fill(partial, b"x" * BLOCK)
    await bounded(partial.suspend())
    assert await bounded(tested.store.partials("bob")) == []
    [info] = await bounded(tested.store.partials("alice"))
    await bounded(tested.store.delete(info))
    await bounded(tested.store.delete(info))
    assert await bounded(tested.store.partials()) == []
    assert list((await bounded(tested.store.open(asked))).held) == []


# -- directories, of a store that has them ------------------------------------------------


def directory(tested, name, modified=None, durability="none", **more):
    return bounded(
        maybeDeferred(
            tested.store.makeDirectory, RelativeName.parse(name), modified, durability, **more
        )
    )


def timeOf(tested, name):
    if isinstance(tested, MemoryUnderTest):
        return tested.store.directories.get(name)
    return (tested.root / name).stat().st_mtime_ns if (tested.root / name).is_dir() else None


@pytest.mark.parametrize("durability", ["none", "data", "full"])
@pytest_twisted.ensureDeferred
async def test_aDirectoryIsMade(withDirectories, durability):
    verifyObject(IDirectoryStore, withDirectories.store)
    if IBatchStore.providedBy(withDirectories.store):
        verifyObject(IBatchStore, withDirectories.store)
    made = await directory(withDirectories, "a/b/c", 1_600_000_000 * 10**9 + 17, durability)
    assert made.made
    assert made.durability == (durability if withDirectories.isDurable else "none")
    assert timeOf(withDirectories, "a/b/c") == 1_600_000_000 * 10**9 + 17
    # again, with another time, before the epoch
    made = await directory(withDirectories, "a/b/c", -1_500_000_000, durability)
    assert not made.made
    assert timeOf(withDirectories, "a/b/c") == -1_500_000_000
    assert await filesOf(withDirectories) == {}
    # and without one
    await directory(withDirectories, "a/b/c", None, durability)
    assert timeOf(withDirectories, "a/b/c") == -1_500_000_000


@pytest_twisted.ensureDeferred
async def test_aDirectoryThatMayNotBeMade(withDirectories):
    assert await directory(withDirectories, "a/b", make=False) is None
    assert timeOf(withDirectories, "a") is None
    await directory(withDirectories, "a/b")
    assert (await directory(withDirectories, "a/b", 5, make=False)).made is False
    assert timeOf(withDirectories, "a/b") == 5


@pytest.mark.parametrize("name", ["f", "f/below"])
@pytest_twisted.ensureDeferred
async def test_aFileInThePlaceOfADirectory(withDirectories, name):
    await bounded(settled(withDirectories.store.put(offer("f"), b"x", None)))
    with pytest.raises(Exists):
        await directory(withDirectories, name)
    assert await filesOf(withDirectories) == {"f": b"x"}


@pytest_twisted.ensureDeferred
async def test_aNeighbourOfADirectory(withDirectories):
    await directory(withDirectories, "Logs")
    with pytest.raises(Exists):
        await directory(withDirectories, "logs/a")
    await bounded(settled(withDirectories.store.put(offer("Logs/x"), b"x", None)))
    assert await filesOf(withDirectories) == {"Logs/x": b"x"}


@pytest_twisted.ensureDeferred
async def test_holesAreZerosThatNobodyWrote(withDirectories):
    verifyObject(ISparseStore, withDirectories.store)
    size = 9 * BLOCK + 5
    partial = await bounded(
        withDirectories.store.open(offer(size=size, dataBytes=BLOCK, resumeKey=b"r" * 32))
    )
    verifyObject(ISparsePartial, partial)
    await settled(partial.write(2 * BLOCK, b"x" * BLOCK))
    await settled(partial.write(5 * BLOCK, b"y" * BLOCK))
    partial.discard(5 * BLOCK, 6 * BLOCK)
    for start, end in [(0, BLOCK), (BLOCK, 2 * BLOCK), (3 * BLOCK, size)]:
        await settled(partial.skip(start, end))
    with pytest.raises(StoreError):
        partial.skip(BLOCK, 3 * BLOCK)
    with pytest.raises(StoreError):
        partial.write(BLOCK, b"z")
    assert list(partial.held) == [(0, size)]
    receipt = await bounded(partial.commit(b"\2" * 32))
    assert (receipt.size, receipt.status) == (size, "stored")
    assert await filesOf(withDirectories) == {
        "report.txt": bytes(2 * BLOCK) + b"x" * BLOCK + bytes(6 * BLOCK + 5)
    }


@pytest_twisted.ensureDeferred
async def test_holesThatWereRecordedAreHeldAgain(withDirectories):
    asked = offer(size=9 * BLOCK, dataBytes=0, resumeKey=b"r" * 32)
    partial = await bounded(withDirectories.store.open(asked))
    await settled(partial.skip(0, 9 * BLOCK))
    for block in range(9):
        partial.record(block, zeroDigest(DIGESTS[asked.digest], BLOCK))
    await bounded(partial.suspend())
    again = await bounded(withDirectories.store.open(asked))
    assert list(again.held) == [(0, 9 * BLOCK)]
    assert await bounded(again.settled()) == []
    await bounded(again.commit(b"\2" * 32))
    assert await filesOf(withDirectories) == {"report.txt": bytes(9 * BLOCK)}
