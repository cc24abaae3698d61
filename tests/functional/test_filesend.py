"""
Forwarding a folder, through real sockets and a real receiver.
"""

import contextlib
import errno
import mmap
import os
import shutil
import socket
import threading
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.python import usage
from zope.interface.verify import verifyObject

from connpool.interfaces import ILiveTransfers, IReadiness, IStatsSource
from connpool.services import filerecv, filesend, filesender
from connpool.transfer.send import departures, openfiles
from connpool.transfer.send.outboxfolder import POISON, PRIVATE
from connpool.transfer.send.source import versionOf
from tests.helpers.mounts import mounted
from tests.helpers.ports import freePort
from tests.helpers.processes import TWISTD, finished
from tests.helpers.waiting import bounded, pause, until
from tests.transfer import peer

FAST = ["--settle=0.05", "--interval=0.05"]


def receiver(root, *argv):
    options = filerecv.Options()
    options.parseOptions(
        [f"--directory={root}", "--listen=tcp:0:interface=127.0.0.1", "--allow-root", *argv]
    )
    return filerecv.makeService(options, reactor)


def sender(outbox, port, *argv):
    options = filesend.Options()
    options.parseOptions(
        [f"--directory={outbox}", f"--to=127.0.0.1:{port}", "--allow-root", *FAST, *argv]
    )
    return filesend.makeService(options, reactor)


@pytest.fixture
def outbox(source):
    return source


def received(root):
    found = {}
    for where, _, names in os.walk(root):
        if ".connpool" not in where:
            for name in names:
                path = Path(where, name)
                with contextlib.suppress(FileNotFoundError):  # forwarded just now
                    found[str(path.relative_to(root))] = path.read_bytes()
    return found


def test_provides(outbox):
    for interface in (IStatsSource, ILiveTransfers, IReadiness):
        verifyObject(interface, sender(outbox, 1))


@pytest_twisted.ensureDeferred
async def test_whatSettlesIsForwardedAndRemoved(outbox, root, start):
    receiving = start(receiver(root))
    files = {
        "a.txt": b"1",
        "d/e/报告": b"2" * 100_000,
        "large": os.urandom(3_000_000),
        "empty": b"",
    }
    for name, content in files.items():
        (outbox / name).parent.mkdir(parents=True, exist_ok=True)
        (outbox / name).write_bytes(content)
    sending = start(sender(outbox, receiving.listening.getHost().port))
    await until(lambda: sending.stats().sent == len(files))
    assert received(root) == files
    assert received(outbox) == {}
    assert sending.stats().sentBytes == sum(map(len, files.values()))
    (outbox / "later").write_bytes(b"3")
    await until(lambda: sending.stats().sent == len(files) + 1)
    assert received(root)["later"] == b"3"
    assert receiving.listening.stats().accepted <= 2, "connections are reused"


@pytest_twisted.ensureDeferred
async def test_orMoved(tmp_path, outbox, root, start):
    (tmp_path / "done").mkdir()
    (outbox / "a").write_bytes(b"1")
    receiving = start(receiver(root))
    sending = start(
        sender(outbox, receiving.listening.getHost().port, f"--move-to={tmp_path}/done")
    )
    await until(lambda: sending.stats().sent == 1)
    assert received(tmp_path / "done") == received(root) == {"a": b"1"}
    assert received(outbox) == {}


@pytest.mark.parametrize("how", ["open", "mapped"])
@pytest_twisted.ensureDeferred
async def test_halfAFileIsNeverSent(outbox, root, start, how):
    """
    A writer that is silent for long, its file open; or only mapped.
    """
    receiving = start(receiver(root))
    argv = ["--writer-warning=0.2"]
    with (outbox / "log").open("wb+") as writer:
        writer.write(b"first  half")
        writer.flush()
        mapping = mmap.mmap(writer.fileno(), 11)
        if how == "open":
            mapping.close()
        else:
            writer.close()
        sending = start(sender(outbox, receiving.listening.getHost().port, *argv))
        (outbox / "other").write_bytes(b"1")
        await until(lambda: sending.trouble() is not None)
        assert "log has been open for writing for" in sending.trouble()
        await until(lambda: sending.stats().sent == 1)
        assert received(root) == {"other": b"1"}
        if how == "open":
            writer.write(b", second half")
        else:
            mapping[:6] = b"second"
            mapping.close()
    await until(lambda: sending.stats().sent == 2)
    content = b"first  half, second half" if how == "open" else b"second half"
    assert received(root) == {"other": b"1", "log": content}
    assert received(outbox) == {}
    await until(lambda: sending.trouble() is None)


@pytest_twisted.ensureDeferred
async def test_aFolderThatCannotBeReadIsNamed(outbox, root, start):
    receiving = start(receiver(root))
    sending = start(sender(outbox, receiving.listening.getHost().port))
    (outbox / "a").write_bytes(b"1")
    await until(lambda: sending.stats().sent == 1)
    away = outbox.rename(outbox.with_name("away"))
    await until(lambda: sending.trouble() is not None)
    assert sending.trouble().endswith(f"No such file or directory ('{outbox}')")
    shutil.rmtree(away / PRIVATE)
    (away / PRIVATE).touch()
    (away / "b").write_bytes(b"2")
    away.rename(outbox)
    await until(lambda: f"File exists ('{outbox}/{PRIVATE}" in sending.trouble())
    (outbox / PRIVATE).unlink()
    await until(lambda: sending.stats().sent == 2)
    assert sending.trouble() is None
    assert received(root) == {"a": b"1", "b": b"2"}


@pytest_twisted.ensureDeferred
async def test_itWaitsForAReceiverThatIsAway(outbox, root, start):
    port = freePort()
    for n in range(50):
        (outbox / str(n)).write_bytes(b"%d" % n)
    sending = start(sender(outbox, port))
    await until(lambda: sending.stats().failed >= 3, 30)
    assert sending.stats().setAside == 0
    again = start(receiver(root, f"--listen=tcp:{port}:interface=127.0.0.1"))
    await until(lambda: sending.stats().sent == 50, 60)
    assert received(root) == {str(n): b"%d" % n for n in range(50)}
    assert again.stats().published == 50


@pytest_twisted.ensureDeferred
async def test_anAbsentReceiverCostsABoundedNumberOfDials(outbox, start):
    dials = []

    class Closing(Protocol):
        def connectionMade(self):
            dials.append(reactor.seconds())
            self.transport.loseConnection()

    port = await bounded(
        TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory.forProtocol(Closing))
    )
    for n in range(200):
        (outbox / str(n)).write_bytes(b"x")
    sending = start(sender(outbox, port.getHost().port))
    await until(lambda: sending.stats().failed >= 3, 60)
    await bounded(sending.stopService())
    assert len(dials) <= 4 * 2, "dials do not grow with the files"
    assert len(received(outbox)) == 200
    await bounded(port.stopListening())


@pytest_twisted.ensureDeferred
async def test_poisonIsSetAsideAndTheRestGoes(outbox, root, start):
    receiving = start(receiver(root, "--max-file-size=1K"))
    (outbox / "too large").write_bytes(bytes(2000))
    (outbox / "bad\\name").write_bytes(b"x")
    (outbox / "good").write_bytes(b"x")
    sending = start(sender(outbox, receiving.listening.getHost().port, "--attempts=2"))
    await until(lambda: sending.stats().setAside == 2)
    await until(lambda: sending.stats().sent == 1)
    assert received(root) == {"good": b"x"}
    aside = outbox / PRIVATE / POISON
    assert (aside / "too large/file").stat().st_size == 2000
    assert "too-large" in (aside / "too large/why").read_text()
    assert "name-refused" in (aside / "bad\\name/why").read_text()


@pytest_twisted.ensureDeferred
async def test_whatReplacesPoisonMeanwhileIsSent(outbox, root, start):
    receiving = start(receiver(root, "--max-file-size=1K"))
    (outbox / "a").write_bytes(bytes(2000))
    sending = sender(outbox, receiving.listening.getHost().port, "--attempts=1")
    start(sending)
    setAside = sending._folder.setAside

    def replaceAndSetAside(name, *details):
        (outbox / "new").write_bytes(b"good")
        os.replace(outbox / "new", outbox / "a")
        return setAside(name, *details)

    sending._folder.setAside = replaceAndSetAside
    await until(lambda: sending.stats().sent == 1)
    assert received(root) == {"a": b"good"}
    assert sending.stats().setAside == 0
    assert received(outbox / PRIVATE / POISON) == {}


@pytest_twisted.ensureDeferred
async def test_aShortageOfDescriptorsIsNoPoison(outbox, root, start, monkeypatch):
    receiving = start(receiver(root))
    (outbox / "a").write_bytes(b"1")
    (outbox / "directory").mkdir()
    opening = os.open
    short = True

    def exhausted(path, *arguments, **keywords):
        if short and str(path) == str(outbox / "a"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opening(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", exhausted)
    sending = start(sender(outbox, receiving.listening.getHost().port, "--attempts=1"))
    await until(lambda: sending.stats().failed >= 2)
    assert sending.stats().setAside == 0
    short = False
    await until(lambda: sending.stats().sent == 1)
    assert received(root) == {"a": b"1"}


@pytest_twisted.ensureDeferred
async def test_aFolderIsNotReadForEachGo(outbox, root, start, monkeypatch):
    monkeypatch.setattr(filesender, "BATCH_FILES", 5)
    looks = []
    scan = filesender.OutboxFolder.scan

    def scanning(folder):
        looks.append(folder)
        return scan(folder)

    monkeypatch.setattr(filesender.OutboxFolder, "scan", scanning)
    receiving = start(receiver(root))
    for n in range(100):
        (outbox / str(n)).write_bytes(b"x")
    sending = start(sender(outbox, receiving.listening.getHost().port, "--interval=20"))
    await until(lambda: sending.stats().sent == 100)
    assert len(looks) <= 3, "twenty goes"


@pytest_twisted.ensureDeferred
async def test_whatComesWhileOthersAreSentIsSeenInTime(outbox, root, start, monkeypatch):
    """
    C{--interval} holds while there is always something to send.
    """
    monkeypatch.setattr(filesender, "BATCH_FILES", 1)
    receiving = start(receiver(root))
    for n in range(400):
        (outbox / str(n)).write_bytes(b"x")
    sending = start(sender(outbox, receiving.listening.getHost().port))
    await until(lambda: sending.stats().sent > 10)
    (outbox / "later").write_bytes(b"x")
    seen = sending._outbox
    await until(lambda: "later" in seen._entries or sending.stats().sent == 401)
    assert sending.stats().sent < 400


@pytest_twisted.ensureDeferred
async def test_whatWasSentGoesWhileOthersAreSent(tmp_path, outbox, root, start, monkeypatch):
    """
    The disk is free before the last one has been sent.
    """
    monkeypatch.setattr(departures, "WORTH_FILES", 1)
    rate = tmp_path / "rate"
    rate.write_text("16K")
    tree = tmp_path / "tree"
    tree.mkdir()
    small = {f"a{number}": b"x" for number in range(9)}
    files = {**small, "large": os.urandom(4 << 20)}
    for name, content in files.items():
        (tree / name).write_bytes(content)
    receiving = start(receiver(root, "--min-rate=0"))
    # one alone comes first, until its receipt promises enough
    (outbox / "first").write_bytes(b"x")
    sending = start(sender(outbox, receiving.listening.getHost().port, f"--bwlimit={rate}"))
    await until(lambda: sending.stats().sent == 1)
    tree.rename(outbox / "tree")  # all of them settle together
    await until(lambda: received(outbox).keys() == {"tree/large"})
    assert sending.stats().sent == 1, "they are of one go"
    rate.write_text("0")
    sending.reload()
    await until(lambda: sending.stats().sent == 1 + len(files))
    assert received(root / "tree") == files
    assert received(outbox) == {}
    assert list((outbox / PRIVATE / "taken").iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_whatIsReceivedIntoTheFolderIsForwardedAndTheReceiverKeepsItsOwn(outbox, root, start):
    receiving = start(receiver(root))
    first = start(receiver(outbox))
    second = start(
        sender(outbox, receiving.listening.getHost().port, "--attempts=1", "--settle=0.01")
    )
    (root.parent / "origin").mkdir()
    (root.parent / "origin/a").write_bytes(b"1")
    start(sender(root.parent / "origin", first.listening.getHost().port))
    await until(lambda: received(root) == {"a": b"1"})
    # what it has then it has written, and takes nothing away itself
    await bounded(first.stopService())
    own = set((outbox / ".connpool").rglob("*"))
    await pause(0.5)
    assert second.stats().setAside == 0
    assert set((outbox / ".connpool").rglob("*")) == own


async def failsWith(make, outbox, start, **values):
    """
    A sender that was stopped after two failures, and the receiver that it met.
    """
    receivers = []

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            receivers.append(make(connection))
            vars(receivers[0]).update(values)
            with contextlib.suppress(ConnectionResetError):  # stopped in between
                receivers[0].serve()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        thread = threading.Thread(target=serve)
        thread.start()
        sending = start(sender(outbox, listener.getsockname()[1]))
        await until(lambda: sending.stats().failed >= 2)
        await bounded(sending.stopService())
        await bounded(deferToThread(thread.join, 30))
    return sending, receivers[0]


class Liar(peer.Receiver):
    """
    Has everything already, it says; but what it had was something else.
    """

    told = 0

    def frameReceived(self, kind, stream, fields, data, raw):
        if kind in (peer.PUT, peer.OFFER):
            self.told += 1
            size = len(data) if kind == peer.PUT else fields[3]
            root = peer.root(b"something else", peer.SMALL_BLOCK)
            said = ["duplicate", fields[1], size, "full", "ext4", "verified", "sha256"]
            self.send(peer.RECEIPT, stream, [*said, root, 1])
        else:
            super().frameReceived(kind, stream, fields, data, raw)


@pytest_twisted.ensureDeferred
async def test_aReceiverThatLiesGetsNoSourceRemoved(outbox, start):
    files = {"small": b"x", "large": os.urandom(2_000_000)}
    for name, content in files.items():
        (outbox / name).write_bytes(content)
    sending, liar = await failsWith(Liar, outbox, start)
    assert liar.told >= 2
    assert sending.stats().sent == 0
    assert received(outbox) == files


class Weaker(peer.Receiver):
    """
    Has everything, it says, but promises less than it was asked for.
    """

    promise = ("stored", "data", "verified")
    told = 0

    def frameReceived(self, kind, stream, fields, data, raw):
        if kind == peer.PUT:
            self.told += 1
            status, durability, integrity = self.promise
            root = peer.root(bytes(data), peer.SMALL_BLOCK)
            said = [status, fields[1], len(data), durability, "ext4", integrity, "sha256"]
            self.send(peer.RECEIPT, stream, [*said, root, 1])
        else:
            super().frameReceived(kind, stream, fields, data, raw)


@pytest.mark.parametrize(
    "promise",
    [
        ("stored", "data", "verified"),
        ("duplicate", "none", "verified"),
        ("stored", "full", "unverified"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_aReceiptThatPromisesLessRemovesNothing(outbox, start, promise):
    for n in range(20):
        (outbox / f"{n}").write_bytes(b"x")
    sending, weaker = await failsWith(Weaker, outbox, start, promise=promise)
    assert sending.stats().sent == 0
    assert len(received(outbox)) == 20
    if promise[1] != "full":
        assert weaker.told == sending.stats().failed
        assert f'at the level "{promise[1]}"' in sending.trouble()


@pytest_twisted.ensureDeferred
async def test_aReceiverInMemoryIsReportedAndGetsOneFile(tmp_path, outbox, start):
    """
    What it has must not pile up there, sent again and again.
    """
    for n in range(50):
        (outbox / f"{n}").write_bytes(b"%d" % n)
    (tmp_path / "mount").mkdir()
    with mounted("tmpfs", tmp_path / "mount") as at:
        receiving = start(receiver(at))
        sending = start(sender(outbox, receiving.listening.getHost().port))
        await until(lambda: sending.stats().failed >= 2)
        assert len(received(at)) == 1
        assert "tmpfs" in sending.trouble()
        assert '"full"' in sending.trouble()
        assert len(received(outbox)) == 50
        await bounded(sending.stopService())
        await bounded(receiving.stopService())


@pytest.mark.parametrize("kind", ["overlay", "fuse"])
@pytest.mark.parametrize("trust", [True, False])
@pytest_twisted.ensureDeferred
async def test_whereNobodyCanTell(tmp_path, root, start, monkeypatch, kind, trust):
    """
    It is sent when it looked the same for long, and stays unless that is trusted.
    """
    monkeypatch.setattr(openfiles, "_FIRST_PID_NAMESPACE", 1)  # as in a container
    receiving = start(receiver(root))
    port = receiving.listening.getHost().port
    argv = ["--trust-settled"] * trust
    (tmp_path / "mount").mkdir()
    with mounted(kind, tmp_path / "mount") as at:
        (at / "a").write_bytes(b"1")
        with (at / "b").open("wb+") as file:
            file.write(b"half")
            file.flush()
            mapping = mmap.mmap(file.fileno(), 4)
        with capturedLogs() as logs:
            sending = start(sender(at, port, *argv))
            await until(lambda: received(root) == {"a": b"1"})
            await pause(0.5)
            assert received(root) == {"a": b"1"}, "one is mapped"
            mapping[:] = b"full"
            mapping.close()
            await until(lambda: received(root) == {"a": b"1", "b": b"full"})
            if trust:
                await until(lambda: sending.stats().sent == 2)
                assert received(at) == {}
            else:
                await until(lambda: sending.stats().kept == 2)
                await bounded(sending.stopService())
                sending = start(sender(at, port, *argv))
                await pause(0.5)
                assert receiving.stats().published == 2, "a restart sends nothing again"
                (at / "a").write_bytes(b"another")
                await until(lambda: receiving.stats().published == 3)
                assert received(at) == {"a": b"another", "b": b"full"}
        await bounded(sending.stopService())
    said = [event for event in logs if "nobody can tell" in event.get("log_format", "")]
    assert len(said) == 1 + (not trust), "once in each life"
    assert ("--trust-settled says" in said[0]["then"]) is trust


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest_twisted.ensureDeferred
async def test_whatAMappingChangedWhileItWasSentIsSentAgain(outbox, root, start, size):
    """
    Its times are the same, and so would be its key.
    """
    receiving = start(receiver(root))
    path = outbox / "a"
    path.write_bytes(b"1" * size)
    sending = start(sender(outbox, receiving.listening.getHost().port))
    remove = sending._folder.remove

    def changing(sent):
        status = path.stat()
        with path.open("rb+") as file:
            file.write(b"2" * size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        sending._folder.remove = remove
        # on a file system that has no time of change either
        return remove([attrs.evolve(each, version=versionOf(path.stat())) for each in sent])

    sending._folder.remove = changing
    await until(lambda: sending.stats().sent == 1)
    assert b"2" * size in received(root).values()
    assert received(outbox) == {}


@pytest_twisted.ensureDeferred
async def test_temporaryNamesAndEmptyDirectories(outbox, root, start):
    receiving = start(receiver(root))
    for name in ("d/e/a", ".b.Ab12Cd", "c.part", "f/g.new", "g/keep.new", "h/i/j"):
        (outbox / name).parent.mkdir(parents=True, exist_ok=True)
        (outbox / name).write_bytes(b"x")
    ignore = ["--ignore=*.new", "--ignore=!keep.new", "--ignore=/h/i/"]
    sending = start(sender(outbox, receiving.listening.getHost().port, *ignore))
    await until(lambda: sending.stats().sent == 2)
    await until(lambda: not (outbox / "d").exists())
    await until(lambda: (sending.stats().temporary, sending.stats().ignored) == (2, 2))
    os.rename(outbox / ".b.Ab12Cd", outbox / "b")
    await until(lambda: sending.stats().sent == 3)
    assert received(root) == {"d/e/a": b"x", "b": b"x", "g/keep.new": b"x"}
    assert received(outbox) == {"c.part": b"x", "f/g.new": b"x", "h/i/j": b"x"}


@pytest_twisted.ensureDeferred
async def test_directoriesAreKeptAndTemporaryNamesSentWhenAsked(outbox, root, start):
    receiving = start(receiver(root))
    (outbox / "d").mkdir()
    (outbox / "d/a.part").write_bytes(b"x")
    argv = ["--keep-directories", "--send-temporary"]
    sending = start(sender(outbox, receiving.listening.getHost().port, *argv))
    await until(lambda: sending.stats().sent == 1)
    assert received(root) == {"d/a.part": b"x"}
    assert (outbox / "d").is_dir()


@pytest_twisted.ensureDeferred
async def test_aStopWhileSourcesAreRemovedKeepsTheirKeys(outbox, root, start):
    """
    The stop waits for the removal; the run ends as it should.
    """
    receiving = start(receiver(root))
    (outbox / "a").write_bytes(b"x")
    sending = start(sender(outbox, receiving.listening.getHost().port))
    remove, reached, go = sending._folder.remove, threading.Event(), threading.Event()

    def waiting(sent):
        reached.set()
        go.wait(30)
        return remove(sent)

    sending._folder.remove = waiting
    await until(reached.is_set)
    stopping = sending.stopService()
    await pause(0.1)
    go.set()
    await bounded(stopping)
    assert sending.stats().sent == 1
    assert received(outbox / PRIVATE / "state/runs") == {}


@pytest_twisted.ensureDeferred
async def test_aNameThatIsNotUTF8IsSaidOnce(outbox, start):
    with open(os.path.join(os.fsencode(outbox), b"caf\xe9"), "w"):
        pass
    with capturedLogs() as logs:
        start(sender(outbox, 1))
        await until(lambda: any("UTF-8" in event.get("why", "") for event in logs))
        await pause(0.2)
    (event,) = [event for event in logs if "UTF-8" in event.get("why", "")]
    assert event["file"].endswith("caf\\xe9")


@pytest_twisted.ensureDeferred
async def test_aFullDiskDoesNotEndTheWatching(outbox, root, start, monkeypatch):
    write = os.write

    def full(fd, data):
        if os.readlink(f"/proc/self/fd/{fd}").startswith(str(outbox)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    def remember(strikes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    receiving = start(receiver(root))
    sending = start(sender(outbox, receiving.listening.getHost().port))
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        patched.setattr(sending._folder, "remember", remember)
        for n in range(3):
            (outbox / str(n)).write_bytes(b"x")
            await until(lambda n=n: sending.stats().sent == n + 1)
    assert not list((outbox / PRIVATE).rglob("runs/*"))
    assert len(os.listdir("/proc/self/fd")) <= before + 3, "the connection, and no more"
    secret = outbox / PRIVATE / "state/secret"
    secret.write_bytes(b"damaged")
    (outbox / "later").write_bytes(b"x")
    await until(lambda: "damaged" in sending._met.trouble)
    secret.unlink()
    await until(lambda: sending.stats().sent == 4)


@pytest_twisted.ensureDeferred
async def test_restartsOfBothEndsLoseAndDoubleNothing(outbox, root, start):
    files = {f"{n}": os.urandom(40_000) for n in range(60)}
    for name, content in files.items():
        (outbox / name).write_bytes(content)
    port = freePort()
    words = [f"--listen=tcp:{port}:interface=127.0.0.1", "--drain-timeout=0.1"]
    receiving = start(receiver(root, *words))
    for _ in range(3):
        sending = start(sender(outbox, port))
        await pause(0.15)
        await bounded(sending.stopService())
        await bounded(receiving.stopService())
        receiving = start(receiver(root, *words))
    start(sender(outbox, port))
    await until(lambda: received(outbox) == {}, 60)
    assert received(root) == files


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--directory=x"],
        ["--to=127.0.0.1:1"],
        ["--directory=x", "--to=nowhere"],
        ["--directory=x", "--to=tpc:a:1"],
        ["--directory=x", "--to=a:1", "--settle=0"],
        ["--directory=x", "--to=a:1", "--jobs=0"],
        ["--directory=x", "--to=a:1", "--writer-warning=0"],
        ["--directory=x", "--to=a:1", "--ignore=["],
        ["--directory=x", "--to=a:1", "--ignore="],
        ["--directory=x", "--to=a:1", "--bwlimit=10"],
        ["--directory=x", "--to=a:1", "--bwlimit=/nonexistent/rate"],
    ],
)
def test_mistakesAreOneLine(argv):
    options = filesend.Options()
    with pytest.raises(usage.UsageError) as caught:
        options.parseOptions(argv)
    assert "\n" not in str(caught.value)


def test_aMissingFolderIsOneLine(tmp_path):
    words = ["filesend", "--allow-root", "--directory=none", "--to=a:1"]
    ended = finished(*TWISTD, "-n", "--pidfile=", *words, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == "filesend: none is not a directory; make it first\n"


@pytest_twisted.ensureDeferred
async def test_aFileThatTheReceiverSkipsIsNotRemoved(outbox, root, start):
    (root / "f").write_bytes(b"another content")
    receiving = start(receiver(root, "--if-exists=skip"))
    (outbox / "f").write_bytes(b"mine")
    sending = start(sender(outbox, receiving.listening.getHost().port))
    await until(lambda: sending.stats().kept == 1)
    assert sending.stats().failed == 0, "skipping is no failure"
    await bounded(sending.stopService())
    assert received(outbox) == {"f": b"mine"}
    assert received(root) == {"f": b"another content"}
