"""
Files that are got from a receiver, and who may.
"""

import os
import random
from types import SimpleNamespace

import pytest
from twisted.internet import defer
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import (
    ChangedSource,
    DigestMismatch,
    Exists,
    Forbidden,
    NetworkFailed,
    NotFound,
    ProtocolError,
    StoreError,
    TransferError,
    Unsupported,
)
from connpool.interfaces import IAuthenticator
from connpool.transfer import RelativeName
from connpool.transfer.digests import digestNamed, rootOf
from connpool.transfer.fetch import download
from connpool.transfer.fetch.download import fetchFile
from connpool.transfer.fetch.listing import entries
from connpool.transfer.fetch.localfile import LocalFile
from connpool.transfer.fetch.remote import Remote
from connpool.transfer.identities import Identity
from connpool.transfer.receive.policy import Policy
from connpool.transfer.send.connections import Dialled, SessionFactory
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.handshake import READ
from connpool.transfer.wire.messages import Progress
from connpool.transfer.wire.readmessages import (
    ListedName,
    ListingMessage,
    ListMessage,
    ReadMessage,
)
from tests.transfer.hostile import CORPUS
from tests.transfer.raw import Raw
from tests.transfer.world import World

PIECE = 4096
CONTENT = random.Random(1).randbytes(20 * PIECE + 7)


@implementer(IAuthenticator)
class Known:
    """
    Says that everybody is one identity.
    """

    takesPasswords = False

    def __init__(self, identity):
        self.identity = identity

    def certified(self, transport):
        return self.identity


ALICE = Identity("alice", RelativeName.parse("alice"), read="own")


class Library(World):
    """
    A receiver that is read.
    """

    def __init__(self, identity=ALICE, *, reading=True, **more):
        policy = Policy(minimumRate=0, reading=reading, **more)
        super().__init__(policy=policy, authenticator=Known(identity))
        self.store.files.update(
            {
                "alice/a": CONTENT,
                "alice/empty": b"",
                "alice/d/b": b"b",
                "alice/.hidden": b"h",
                "bob/secret": b"secret",
            }
        )

    async def opening(self, more=(READ,)):
        factory = SessionFactory(self.clock, ("sha256",), more=more)
        dialled = Dialled(SimpleNamespace(connect=self.connect), factory)
        return Remote((await dialled.open()).session)

    def remote(self, more=(READ,)):
        return self.run(self.opening(more))

    def result(self, d):
        results = []
        d.addBoth(results.append)
        self.pump()
        for _ in range(100):
            if results:
                break
            self.clock.advance(1.0)
            self.pump()
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        return result

    def run(self, coroutine):
        return self.result(defer.Deferred.fromCoroutine(coroutine))

    def fetch(self, name, target, remote=None, **more):
        remote = remote or self.remote()
        return self.run(fetchFile(remote, name, str(target), defer.maybeDeferred, **more))

    def names(self, directory="", remote=None):
        async def listed():
            return [entry.path async for entry in entries(remote or self.remote(), directory)]

        return self.run(listed())


@pytest.fixture(autouse=True)
def smallPieces(monkeypatch):
    monkeypatch.setattr(download, "PIECE_BYTES", PIECE)


@pytest.fixture
def library():
    made = Library()
    yield made
    made.close()


def hidden(target):
    return target.parent / f".{target.name}.connpool-part"


# -- who reads what ----------------------------------------------------------------------


def test_anIdentityReadsItsOwnDirectory(library):
    assert library.names() == [".hidden", "a", "d", "empty"]
    assert library.names("d") == ["d/b"]


def test_aDirectoryThatIsNotMadeYetIsEmpty():
    library = Library(Identity("new", RelativeName.parse("new"), read="own"))
    assert library.names() == []
    with pytest.raises(NotFound):
        library.names("sub")
    library.close()


def test_orEverythingIfThatIsWritten(tmp_path):
    library = Library(Identity("eve", RelativeName.parse("eve"), read="everything"))
    assert library.names() == ["alice", "bob"]
    assert library.fetch("bob/secret", tmp_path / "s").size == 6
    library.close()


@pytest.mark.parametrize("identity", [None, Identity("bob", RelativeName.parse("alice"))])
def test_nobodyElseReads(identity, tmp_path):
    library = Library(identity)
    if identity is None:
        library.receiver.authenticator = None
    answers = set()
    for name in ("a", "nothing", "../bob/secret", ""):
        with pytest.raises(Forbidden) as refused:
            library.fetch(name, tmp_path / "x")
        answers.add(str(refused.value))
    with pytest.raises(Forbidden) as refused:
        library.names()
    answers.add(str(refused.value))
    assert len(answers) == 1, "it tells nothing about what there is"
    assert library.reception.stats().readRefused == 5
    assert not list(tmp_path.iterdir())
    library.close()


def test_whatMayNotBeReadIsAsIfItWereNotThere(library, tmp_path):
    remote = library.remote()
    for name in ("nothing", "../bob/secret", "bob/secret", ".connpool/done", "d", "a/x", "", "/a"):
        with pytest.raises(NotFound) as refused:
            library.fetch(name, tmp_path / "x", remote)
        assert str(refused.value) == f'the receiver says: there is no "{name}"'
    for hostile in CORPUS:
        if hostile.raw == b"a":
            continue  # it is there
        message = ReadMessage(hostile.raw[:49_000], 0, 1)
        with pytest.raises(TransferError):
            library.run(remote._ask(Type.READ, message, Type.CONTENT, 1))
    assert remote.session.lost is None


def test_dotfilesAreNotThereWhereNoneAreTaken(tmp_path):
    library = Library(dotfiles=False)
    assert library.names() == ["a", "d", "empty"]
    with pytest.raises(NotFound):
        library.fetch(".hidden", tmp_path / "x")
    library.close()


def test_pagesOfAManyFilesDirectory(library):
    library.store.files.update({f"alice/many/{number:04}": b"" for number in range(2500)})
    library.store.files.update({f"alice/many/{'x' * 240}{n:04}": b"" for n in range(600)})
    names = library.names("many")
    assert len(names) == len(set(names)) == 3100
    assert library.reception.stats().listings >= 5


def test_aReceiverWhereNobodyReadsSaysSoInItsGreeting():
    library = Library(reading=False)
    with pytest.raises(Unsupported, match="read = true"):
        library.remote()
    library.close()


def test_aSenderThatDoesNotAskForItCannotRead(library):
    with pytest.raises(Unsupported):
        library.remote(())


# -- getting -----------------------------------------------------------------------------


def test_aFileIsThereWhole(library, tmp_path):
    library.store._modified["alice/a"] = 1_000_000_000_123_456_789
    steps = []
    fetched = library.fetch("a", tmp_path / "a", progress=lambda *far: steps.append(far))
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert os.stat(tmp_path / "a").st_mtime_ns == 1_000_000_000_123_456_789
    assert (fetched.status, fetched.size, fetched.came) == ("stored", len(CONTENT), len(CONTENT))
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert steps == sorted(steps)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    stats = library.reception.stats()
    assert stats.readBytes == len(CONTENT)
    assert stats.readFiles >= 1
    assert library.fetch("empty", tmp_path / "e").size == 0
    assert (tmp_path / "e").read_bytes() == b""


def test_theRootIsThatOfASender(library, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PIECE_BYTES", 1 << 20)
    content = random.Random(2).randbytes((2 << 20) + 5)
    library.store.files["alice/large"] = content
    digest = digestNamed("sha256")
    blocks = [digest.of(content[at : at + (1 << 20)]) for at in range(0, len(content), 1 << 20)]
    fetched = library.fetch("large", tmp_path / "l")
    assert fetched.root == rootOf(digest, len(content), 1 << 20, blocks)


@pytest.mark.parametrize("held", [1, PIECE, 5 * PIECE + 3, len(CONTENT), len(CONTENT) + 9])
def test_whatLiesThereIsUsedAsFarAsItIsRight(library, tmp_path, held):
    part = bytearray(CONTENT[:held].ljust(held, b"x"))
    damaged = held > 2 * PIECE
    if damaged:
        part[PIECE] ^= 1
    hidden(tmp_path / "a").write_bytes(part)
    fetched = library.fetch("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    right = len(CONTENT) if held >= len(CONTENT) else held // PIECE * PIECE
    assert fetched.came == len(CONTENT) - right + PIECE * damaged


def test_aConnectionThatBreaksAnywhere(tmp_path):
    """
    What is here grows, and nothing half is ever seen.
    """
    for cut in range(200, len(CONTENT), 7919):
        for how in ("fin", "rst"):
            library = Library()
            library.plan = [{"cut": (1, cut, how), "chunk": 4096}]
            target = tmp_path / f"{cut}{how}"
            with pytest.raises(NetworkFailed):
                library.fetch("a", target)
            assert not target.exists()
            fetched = library.fetch("a", target)
            assert target.read_bytes() == CONTENT
            assert fetched.came <= len(CONTENT)
            library.close()


def test_bytesThatArriveDamagedAreAskedForAgain(tmp_path):
    library = Library()
    library.plan = [{"flips": [(1, len(CONTENT) // 2), (1, len(CONTENT) // 3)]}]
    fetched = library.fetch("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert fetched.size == len(CONTENT)
    library.close()


def test_damageWithoutEndIsAnError(library, tmp_path, monkeypatch):
    remote = library.remote()
    real = remote.digest.of
    monkeypatch.setattr(remote, "digest", SimpleNamespace(of=lambda data: real(data)[::-1]))
    with pytest.raises(DigestMismatch):
        library.fetch("a", tmp_path / "a", remote)
    assert not (tmp_path / "a").exists()


def test_aFileThatChangesMeanwhileIsOneOfItsContents(library, tmp_path):
    other = bytes(len(CONTENT))
    done = []

    def change(far, _):
        if far > len(CONTENT) // 2 and not done:
            done.append(far)
            library.store.files["alice/a"] = other

    library.fetch("a", tmp_path / "a", progress=change)
    assert (tmp_path / "a").read_bytes() == other
    assert done


def test_aFileThatNeverRestsIsAnError(library, tmp_path):
    count = [0]

    def change(*_):
        count[0] += 1
        library.store.files["alice/a"] = count[0].to_bytes(8, "big") * 4000

    with pytest.raises(ChangedSource):
        library.fetch("a", tmp_path / "a", progress=change)
    assert not (tmp_path / "a").exists()


def test_whatIsHereAlreadyDoesNotComeAgain(library, tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    fetched = library.fetch("a", tmp_path / "a")
    assert (fetched.status, fetched.came) == ("duplicate", 0)
    assert not hidden(tmp_path / "a").exists()


def test_anotherContentStays(library, tmp_path):
    for content in (b"mine", CONTENT[:-1] + b"x"):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(Exists):
            library.fetch("a", tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == content
    library.fetch("a", tmp_path / "a", replace=True)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_linksAndDirectoriesAreNotWrittenThrough(library, tmp_path):
    (tmp_path / "real").write_bytes(b"mine")
    (tmp_path / "a").symlink_to("real")
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("a", "d", "fifo"):
        for replace in (False, True):
            with pytest.raises(Exists):
                library.fetch("a", tmp_path / name, replace=replace)
    hidden(tmp_path / "b").symlink_to("real")
    with pytest.raises(StoreError):
        library.fetch("a", tmp_path / "b")
    assert (tmp_path / "real").read_bytes() == b"mine"


def test_twoDoNotWriteTheSameFile(library, tmp_path):
    with LocalFile.open(str(tmp_path / "a")), pytest.raises(StoreError, match="another process"):
        library.fetch("a", tmp_path / "a")


def test_aDeathRightAfterPublishing(library, tmp_path):
    os.link(_write(tmp_path / "a", CONTENT), hidden(tmp_path / "a"))
    (tmp_path / "a").unlink()
    os.link(hidden(tmp_path / "a"), tmp_path / "elsewhere")
    library.fetch("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert not hidden(tmp_path / "a").exists()
    assert (tmp_path / "elsewhere").read_bytes() == CONTENT


def _write(path, content):
    path.write_bytes(content)
    return path


# -- hostile peers -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"..", b"a/b", b"/etc", b".connpool", b"\xff", b"a\x00", b"."])
def test_aReceiverCannotNameWhatLiesElsewhere(library, name):
    remote = library.remote()
    page = ListingMessage((ListedName(name, False, 1, 0),), False)

    async def ask(*_):
        return page, None

    remote._ask = ask
    with pytest.raises(ProtocolError):
        library.names("", remote)


def test_aReceiverCannotListWithoutEnd(library):
    remote = library.remote()

    async def ask(*_):
        return ListingMessage((ListedName(b"a", False, 1, 0),), True), None

    remote._ask = ask
    with pytest.raises(ProtocolError, match="sorted"):
        library.names("", remote)


@pytest.fixture
def raw(library):
    wire = library.wire()
    wire.clock = library.clock
    library.wires.append(wire)
    client = Raw(library)
    client.capabilities = ("join", READ)
    wire.attach(client, library.receiver.build(wire.ends[1]))
    client.greet()
    return client


def test_requestsAreAnsweredInTheirOrder(raw):
    for number in range(1, 5):
        raw.say(Type.READ, number, ReadMessage(b"a", 0, number))
    found = [frame for frame, _ in raw.frames if frame.type is Type.CONTENT]
    assert [(frame.stream, frame.data) for frame in found] == [
        (number, CONTENT[:number]) for number in range(1, 5)
    ]


@pytest.mark.parametrize(
    ("kind", "stream", "message"),
    [
        (Type.READ, 1, ReadMessage(b"a", 0, (1 << 20) + 1)),
        (Type.READ, 1, ReadMessage(b"a", 5, 4)),
        (Type.CONTENT, 1, ReadMessage(b"a", 0, 4)),
        (Type.LISTING, 1, ListMessage()),
        (Type.PROGRESS, 1, Progress("receive", 0)),
    ],
)
def test_requestsThatMakeNoSense(raw, kind, stream, message):
    raw.say(kind, stream, message)
    assert raw.last(Type.ERROR).code == "protocol"


def test_aStreamIsUsedOnce(raw):
    raw.say(Type.LIST, 5, ListMessage())
    raw.say(Type.LIST, 5, ListMessage())
    assert raw.last(Type.ERROR).code == "protocol"


def test_withoutTheCapabilityNothingIsRead(library):
    wire = library.wire()
    wire.clock = library.clock
    library.wires.append(wire)
    client = Raw(library)
    wire.attach(client, library.receiver.build(wire.ends[1]))
    client.greet()
    client.say(Type.LIST, 1, ListMessage())
    assert client.last(Type.ERROR).code == "protocol"
    assert Type.LISTING not in client.kinds()


def test_whoDoesNotReadIsReadForOnce(raw, library):
    """
    What a peer does not take is not read from the disk for it, and its requests have a bound.
    """
    library.store.files["alice/big"] = bytes(1 << 20)
    transport = library.wires[-1].ends[0]
    transport.paused = True
    for number in range(1, 200):
        raw.say(Type.READ, number, ReadMessage(b"big", 0, 1 << 20))
    assert library.reception.stats().readBytes <= 3 << 20
    server = library.wires[-1].ends[1]
    assert server.unsent <= 2 << 20
    transport.paused = False
    library.pump()
    kinds = raw.kinds()
    assert kinds.count(Type.CONTENT) + kinds.count(Type.REJECT) == 199
