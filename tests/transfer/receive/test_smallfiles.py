"""
Small files that come together: each is decided as if it had come alone.
"""

import os
import random
import sys
from collections import Counter

import attrs
import pytest
from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs, formatEvent
from zope.interface import implementer

import connpool
from connpool.errors import NoSpace, ProtocolError
from connpool.interfaces import IBatchStore
from connpool.logonce import GATHER_SECONDS
from connpool.transfer import LocalStore
from connpool.transfer.receive import smallfiles
from connpool.transfer.receive.policy import Policy
from connpool.transfer.records import SmallFile
from connpool.transfer.stores import MemoryStore, commit, directories, local, receiptlog
from connpool.transfer.wire.frames import BOUNDS, MAX_STREAM, Frame, Type
from connpool.transfer.wire.messages import BATCH_FILES, Puts, decode, encode
from tests.transfer.hostile import CORPUS
from tests.transfer.raw import connect, entry
from tests.transfer.stores.kit import InlineReactor, Recorded, offer, visible
from tests.transfer.world import World

#: The folder of our own functions.
OURS = os.path.dirname(connpool.__file__) + os.sep
FILES = [(b"d/%d" % number, b"content %d" % number) for number in range(20)]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "state")
    yield made
    made.settle(200)
    made.close()


class OnClock(InlineReactor):
    """
    The reactor of a store whose time is that of a world.
    """

    clock = None

    def callLater(self, delay, f, *args):
        return self.clock.callLater(delay, f, *args)


def opened(tmp_path):
    """
    A world with a local store, and its system calls.
    """
    (tmp_path / "root").mkdir()
    reactor, syscalls = OnClock(), Recorded(lazy=True)
    store = LocalStore(reactor, tmp_path / "root", syscalls=syscalls, threads=reactor)
    world = World(tmp_path / "state", store=store)
    reactor.clock = world.clock
    return world, syscalls


@pytest.fixture(params=["memory", "local"])
def stored(request, tmp_path):
    """
    A world, and its files; with a store that takes batches, and with one that does not.
    """
    if request.param == "local":
        made, _ = opened(tmp_path)
        yield made, lambda: visible(tmp_path / "root")
    else:
        made = World(tmp_path / "state")
        yield made, lambda: made.store.files
    made.settle(20)
    closing = made.store.close()
    made.close()
    assert closing.called


def batches(world, **policy):
    if policy:
        world.policy = Policy(minimumRate=0, **policy)
        world.restart()
    return connect(world, "puts").greet()


def answers(client):
    """
    @return: what each stream was answered: its code, or its name; C{None} for an ACK.
    """
    found = {}
    for frame, message in client.frames:
        if frame.type is Type.ACK:
            for first, count in message.streams:
                found.update(dict.fromkeys(range(first, first + count)))
        elif frame.type is Type.REJECT:
            found[frame.stream] = message.code
        elif frame.type is Type.RECEIPT:
            found[frame.stream] = message.name.decode()
    return found


def test_oneFrameOneAnswer(stored):
    world, files = stored
    client = batches(world).puts(5, FILES)
    assert client.last(Type.ACK).streams == ((5, 20),)
    assert files() == {name.decode(): data for name, data in FILES}
    # the next stream is the one after the last file
    client.put(25, b"more", b"x")
    assert client.last(Type.ACK).streams == ((25, 1),)


def test_framesOfOneTurnGoTogether(stored, monkeypatch):
    world, files = stored
    client = connect(world).greet()
    calls = []
    put = smallfiles.WholeFiles.put

    def counted(whole, files, *details):
        calls.append(len(files))
        return put(whole, files, *details)

    monkeypatch.setattr(smallfiles.WholeFiles, "put", counted)
    pump, world.pump = world.pump, lambda: None  # what was said arrives at once
    for number, (name, data) in enumerate(FILES, 1):
        client.put(number, name, data)
    world.pump = pump
    world.pump()
    assert calls == [20]
    assert client.last(Type.ACK).streams == ((1, 20),)
    assert files() == {name.decode(): data for name, data in FILES}


def test_aBadOneFailsAlone(stored):
    world, files = stored
    client = batches(world, maxFileSize=100)
    client.puts(
        1,
        [
            (b"a", b"x"),
            (b"../b", b"x"),
            (entry(b"c", b"other"), b"wrong"),
            (b"d", b"x" * 101),
            (b"a/e", b"x"),
            (b"f", b""),
            (b".connpool/g", b"x"),
            (b"h", b"x" * 100),
        ],
    )
    assert answers(client) == {
        1: None,
        2: "name-refused",
        3: "digest-mismatch",
        4: "too-large",
        5: "exists",
        6: None,
        7: "name-refused",
        8: None,
    }
    # exceptions first, and the rest by one frame
    assert client.kinds()[-1] is Type.ACK
    assert client.kinds().count(Type.ACK) == 1
    assert files() == {"a": b"x", "f": b"", "h": b"x" * 100}


@pytest.mark.parametrize(
    ("rule", "second", "content"),
    [
        ("rename", "a (1)", {"a": b"1", "a (1)": b"2"}),
        ("replace", None, {"a": b"2"}),
        ("refuse", "exists", {"a": b"1"}),
        ("skip", "exists", {"a": b"1"}),
    ],
)
def test_oneNameIsDecidedInOrder(stored, rule, second, content):
    world, files = stored
    client = batches(world, ifExists=rule).puts(1, [(b"a", b"1"), (b"a", b"2")])
    assert answers(client) == {1: None, 2: second}
    assert files() == content


def test_theRuleThatIsAskedFor(stored):
    world, files = stored
    client = batches(world).puts(1, [(b"a", b"1"), (b"a", b"2")], ifExists="refuse")
    assert answers(client) == {1: None, 2: "exists"}
    client.puts(3, FILES[:3], ifExists="replace")
    assert {answers(client)[number] for number in (3, 4, 5)} == {"forbidden"}
    assert files() == {"a": b"1"}


def test_oneKeyIsStoredOnce(stored):
    world, files = stored
    keys = [os.urandom(32) for _ in FILES]
    batch = [(entry(n, c, k), c) for (n, c), k in zip(FILES, keys, strict=True)]
    client = connect(world, "puts", "earlier").greet().puts(1, batch)
    again = [(attrs_evolved(each), c) for each, c in batch]
    client.puts(21, again)
    assert answers(client) == {
        **dict.fromkeys(range(1, 21)),
        **{number: name.decode() for number, (name, _) in enumerate(FILES, 21)},
    }
    assert {decoded.extensions[0].value for _, decoded in client.frames[-20:]} == {b"\1"}
    # twice in one frame: the second is a repetition of the first
    client.puts(41, [(entry(b"t", b"x", keys[0]), b"x"), (entry(b"t", b"x", keys[0]), b"x")])
    assert answers(client)[41] is None
    assert answers(client)[42] == "t"
    assert files() == {**{name.decode(): data for name, data in FILES}, "t": b"x"}


def attrs_evolved(each):
    """
    The same file, as a later run offers it.
    """
    return type(each)(os.urandom(16), *(getattr(each, name) for name in each.__struct_fields__[1:]))


def test_quotasCountEach(stored):
    world, _ = stored
    client = batches(world, maxFiles=3).puts(1, [(n, c) for n, c in FILES[:5]])
    assert answers(client) == {1: None, 2: None, 3: None, 4: "quota", 5: "quota"}
    client = batches(world, maxBytes=25).puts(
        1, [(b"a", b"x" * 20), (b"b", b"x" * 10), (b"c", b"x")]
    )
    assert answers(client) == {1: None, 2: "quota", 3: None}


def test_everyHostileName(stored):
    world, _ = stored
    client = batches(world)
    stream = 1
    for start in range(0, len(CORPUS), 10):
        some = [hostile for hostile in CORPUS[start : start + 10] if len(hostile.raw) <= 4200]
        client.puts(stream, [(hostile.raw, b"%d" % start) for hostile in some])
        said = answers(client)
        for number, hostile in enumerate(some, stream):
            assert (said[number] == "name-refused") == (not hostile.portable), hostile
        stream += len(some)
    assert client.puts(stream, FILES).last(Type.ACK)


def test_aStoreThatIsNearlyFullTakesWhatFits(world):
    class Full(MemoryStore):
        def putAll(self, files):
            raise NoSpace("not all of them")

    world.store = implementer(IBatchStore)(Full)(capacity=100)
    world.restart()
    client = batches(world).puts(1, [(b"a", b"x" * 90), (b"b", b"x" * 20), (b"c", b"x" * 10)])
    assert answers(client) == {1: None, 2: "no-space", 3: None}


@pytest.mark.parametrize("later", [False, True])
def test_aStoreThatFailsIsLogged(world, expectFailure, later):
    class Broken(MemoryStore):
        def putAll(self, files):
            if later:
                return fail(ZeroDivisionError())
            raise ZeroDivisionError

    world.store = implementer(IBatchStore)(Broken)()
    world.restart()
    expectFailure(ZeroDivisionError)
    client = batches(world).puts(1, FILES)
    assert set(answers(client).values()) == {"store-error"}
    assert world.wires[-1].ends[1].protocol.holds == 0
    assert world.reception.stats().failed == len(FILES)


def test_whateverFailsIsAnswered(world, expectFailure):
    expectFailure(ZeroDivisionError)
    client = batches(world)
    world.reception.quotas.admit = lambda *_: 1 / 0
    client.puts(1, FILES)
    assert set(answers(client).values()) == {"store-error"}
    assert not client.lost


class Slow(MemoryStore):
    """
    Stores later, the last first.
    """

    def __init__(self):
        super().__init__()
        self.waiting = []

    def put(self, asked, data, root):
        assert type(data) is bytes
        stored = Deferred()
        self.waiting.append((stored, lambda: MemoryStore.put(self, asked, data, root)))
        return stored

    def go(self):
        stored, store = self.waiting.pop()
        stored.callback(store())


@pytest.mark.parametrize("names", [[b"a", b"b", b"c"], [b"a", b"b", b"a"]])
def test_aStoreWithoutBatchesWorksOnAllAtOnce(world, names):
    world.store = Slow()
    world.restart()
    client = batches(world).puts(1, [(name, b"%d" % number) for number, name in enumerate(names)])
    at_once = len(world.store.waiting)
    while world.store.waiting:
        world.store.go()
    world.pump()
    # unless two have one name
    assert at_once == (3 if len(set(names)) == 3 else 1)
    assert answers(client) == {1: None, 2: None, 3: None if at_once == 3 else "a (1)"}
    assert world.store.files["a"] == b"0"


def test_listenersAreToldOfEach(stored):
    world, _ = stored

    class Listener:
        def __init__(self):
            self.told = []

        def __getattr__(self, event):
            return lambda *details: self.told.append((event, str(getattr(details[0], "name", ""))))

    listener = Listener()
    client = batches(world)
    world.reception.listeners = (listener,)
    client.puts(1, [(b"a", b"1"), (b"../b", b"2"), (b"c", b"3")])
    assert [name for event, name in listener.told if event == "offered"] == ["a", "c"]
    assert [name for event, name in listener.told if event == "published"] == ["a", "c"]
    assert [event for event, _ in listener.told].count("refused") == 1


def test_oneEventForABatch(stored):
    world, _ = stored
    client = batches(world)
    with capturedLogs() as events:
        client.puts(1, FILES[:3])
        world.clock.advance(GATHER_SECONDS)
        client.puts(4, [(b"alone", b"x")])
    together, alone = [event for event in events if "text" in event]
    assert formatEvent(together).count("\n") == 2
    assert [receipt.name for receipt in together["receipts"]] == ["d/0", "d/1", "d/2"]
    for line, receipt in zip(formatEvent(together).split("\n"), together["receipts"], strict=True):
        assert line.startswith(f"received {receipt.name} (9 bytes, stored, verified, durability ")
        assert line.endswith(f"id {receipt.transferId}")
    assert (alone["id"], alone["receipt"].name) == (alone["receipt"].transferId, "alone")


def test_oneEventForFilesOneAfterAnother(stored):
    """
    They come alone, and soon after one another: the first is logged at once, and a stop waits
    for nobody's turn.
    """
    world, _ = stored
    client = batches(world)
    with capturedLogs() as events:
        for number in range(4):
            client.puts(1 + number, [(b"%d" % number, b"x")])
        said = [formatEvent(event).count("\n") + 1 for event in events if "text" in event]
        assert said == [1]
        world.reception.hurry()
    first, rest = [event for event in events if "text" in event]
    assert first["receipt"].name == "0"
    assert [receipt.name for receipt in rest["receipts"]] == ["1", "2", "3"]


def test_aReceiverThatStopsRefusesEach(world):
    client = batches(world).offer(1, name=b"large")
    world.wires[-1].ends[1].protocol.drain()
    client.puts(2, FILES)
    assert {answers(client)[number] for number in range(2, 22)} == {"busy"}


# -- against the protocol --------------------------------------------------------------


def refused(client, code="protocol"):
    assert client.last(Type.ERROR).code == code
    assert client.lost


def test_sizesThatDoNotAddUp(world):
    for sizes in ([1, 2], [3], [0], [5, 0, 0]):
        client = batches(world)
        files = [(entry(b"%d" % n, b"", size=size), b"") for n, size in enumerate(sizes)]
        files[0] = (files[0][0], b"ab")
        refused(client.puts(1, files))
    assert not world.store.files


def test_aFileThatIsNotSmall(world):
    large = bytes(smallfiles.SMALL_FILE_BYTES + 1)
    refused(batches(world).puts(1, [(b"a", b"x"), (b"b", large)]))
    assert not world.store.files


def test_noneOrTooMany(world):
    refused(batches(world).puts(1, []))
    refused(batches(world).puts(1, [(entry(b"a", b"", root=bytes(16)), b"")] * (BATCH_FILES + 1)))
    # as many as there may be
    client = batches(world)
    client.puts(1, [(entry(b"%d" % n, b"", root=bytes(16)), b"") for n in range(BATCH_FILES)])
    assert len(answers(client)) == BATCH_FILES


def test_streamsOfABatch(world):
    client = batches(world).puts(1, FILES)
    refused(client.put(20, b"in-between", b"x"))
    refused(batches(world).puts(MAX_STREAM, FILES[:2]))
    client = batches(world).puts(MAX_STREAM - 1, FILES[:2])
    assert Type.ERROR not in client.kinds()


def test_withoutTheCapability(world):
    refused(connect(world).greet().puts(1, FILES))


def test_batchesAreKeptAsFarAsTheyMayGo(world):
    client = batches(world)
    message = Puts("", "none", (entry(b"a", b"", size=1 << 20),))
    client.transport.write(encode(Type.PUTS, 1, message, BOUNDS[Type.PUTS].data))
    link = world.wires[-1].ends[1].protocol
    for _ in range(4):
        client.transport.write(bytes(1 << 20))
        world.pump()
        assert link.kept <= BOUNDS[Type.PUTS].data + 65_535
    refused(client)
    assert link.kept == 0


@pytest.mark.parametrize("seed", range(20))
def test_damagedBatches(world, seed):
    """
    Whatever is said in place of a control part is read or refused, never an error of ours.
    """
    chance = random.Random(seed)
    wire = bytearray(encode(Type.PUTS, 1, Puts("", "none", (entry(b"a", b"x"),) * 3), 3))
    control = wire[16:]
    for _ in range(200):
        changed = bytearray(control)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        frame = Frame(Type.PUTS, 1, bytes(changed), b"xxx", 3)
        try:
            message = decode(frame)
        except ProtocolError:
            continue
        assert 1 <= len(message.entries) <= BATCH_FILES


# -- a tree of all sorts ---------------------------------------------------------------


def test_aMixedTree(stored, source, monkeypatch):
    """
    A name that is refused, a file that changes while it is read, a large one, one whose time
    goes by itself, long names: each ends as it would have alone.
    """
    world, files = stored
    monkeypatch.setattr(smallfiles, "SMALL_FILE_BYTES", 2048)
    wanted = {}
    for number in range(300):
        name = f"{number:03}" + "n" * 200 * (number % 3 == 0)
        wanted[f"source/{name}"] = b"%d" % number * (number % 7)
    wanted["source/large"] = random.Random(1).randbytes(100_000)
    wanted["source/050-later"] = b"later"
    for name, data in wanted.items():
        (source.parent / name).write_bytes(data)
    beyond = 2_400 * 31_556_952 * 10**9 - 1970 * 31_556_952 * 10**9
    os.utime(source / "050-later", ns=(beyond, beyond))
    (source / "bad:name").write_bytes(b"x")
    changing = source / "100-changes"
    changing.write_bytes(b"x")
    read = os.read

    def reads(fd, count):
        if os.readlink(f"/proc/self/fd/{fd}") == str(changing):
            with changing.open("ab") as file:
                file.write(b"x")
        return read(fd, count)

    monkeypatch.setattr("connpool.transfer.send.source.os.read", reads)
    report = world.send(source)
    monkeypatch.undo()
    failed = {outcome.name: outcome.error.code for outcome in report.failed}
    assert failed == {
        "source/bad:name": "name-refused",
        "source/100-changes": "source-changed",
    }
    assert files() == wanted
    assert len(report.outcomes) == len(wanted) + 2


# -- what it costs ---------------------------------------------------------------------


def test_aFileOfABatchCostsFewCalls(tmp_path, monkeypatch):
    """
    No look at anything but the file itself, and no more than so many functions of ours.
    """
    monkeypatch.setattr(local, "INLINE_BATCH_SECONDS", 60.0)
    for module in (commit, directories, local, receiptlog):
        # on a busy machine it would be time for many looks
        monkeypatch.setattr(module, "LOOK_SECONDS", 60.0)
    count = 200
    world, syscalls = opened(tmp_path)
    client = batches(world)
    files = [(b"d/f%d" % number, b"x" * 100) for number in range(count + 1)]
    client.puts(1, files[:1])
    rest = [(entry(name, data), data) for name, data in files[1:]]
    message = Puts("", "none", tuple(each for each, _ in rest))
    frame = encode(Type.PUTS, 2, message, 100 * count) + b"x" * 100 * count
    link = world.wires[-1].ends[1].protocol
    del syscalls.log[:]
    calls = 0

    def count_(frame, event, argument):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(OURS)

    sys.setprofile(count_)
    try:
        link.dataReceived(frame)
    finally:
        sys.setprofile(None)
    world.pump()
    assert len(answers(client)) == count + 1
    names = syscalls.names()
    once = {name: names.count(name) for name in set(names)}
    for name in ("open", "pwrite", "link", "unlink", "close"):
        assert count <= once.pop(name) <= count + 5, name
    # one write of receipts; and now and then a look at what may have changed
    assert once.pop("write") == 1
    assert sum(once.values()) < count / 2, once
    assert calls / count < CALLS_PER_FILE
    world.store.close()
    world.close()


#: Functions of ours that are entered for one file of a batch, decoding and answer included;
#: and for one that is sent, finding it and its answer included.
CALLS_PER_FILE, SENT_CALLS_PER_FILE = 36, 30


def test_aFileThatIsSentCostsFewCalls(world, source):
    count = 200
    for number in range(count):
        (source / f"{number}").write_bytes(b"x" * 100)
    ours: Counter[str] = Counter()
    kernel: Counter[str] = Counter()

    def count_(frame, event, argument):
        if "/connpool/transfer/" not in frame.f_code.co_filename:
            return
        if event == "call":
            ours[frame.f_code.co_filename.rpartition("/transfer/")[2].partition("/")[0]] += 1
        elif event == "c_call" and getattr(argument, "__module__", "") == "posix":
            kernel[argument.__name__] += 1

    sys.setprofile(count_)
    try:
        report = world.send(source)
    finally:
        sys.setprofile(None)
    assert report.exitCode == 0
    for name, most in {"open": 1, "read": 1, "fstat": 2, "close": 1}.items():
        assert count * most <= kernel.pop(name) <= count * most + 10, name
    assert sum(kernel.values()) < count / 2, kernel
    assert ours["send"] / count < SENT_CALLS_PER_FILE


def test_smallFileIsAValue():
    one = SmallFile(offer(), b"x", None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.data = b"y"
