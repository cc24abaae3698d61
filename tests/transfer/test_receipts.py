"""
A receipt is for its content, on both ends: no run reports old content as the new, and what
an earlier run stored is told apart.
"""

import os
import random

import pytest

from connpool.errors import Skipped
from connpool.transfer.digests import DIGESTS, rootOf
from connpool.transfer.receive import greeting
from connpool.transfer.receive.policy import Policy
from connpool.transfer.send import keys
from connpool.transfer.send.client import Retry
from connpool.transfer.send.keys import HeldRun, SenderKeys
from connpool.transfer.send.request import SendRequest
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Commit, Put, ReceiptMessage, Reject, extensionOf
from tests.transfer.raw import SHA, connect
from tests.transfer.scripted import scripted

BLOCK = 4096
SMALL = 1 << 20
ONCE = Retry(attempts=1)

pytestmark = pytest.mark.usefixtures("smallFiles")


@pytest.fixture
def oldReceiver(monkeypatch):
    """
    A receiver that has no capability but that of version 0.1.0.
    """
    monkeypatch.setattr(greeting, "CAPABILITIES", ("join",))


def content(seed, size):
    return random.Random(seed).randbytes(size)


def rootsOf(data, block):
    return rootOf(
        SHA, len(data), block, [SHA.of(data[at : at + block]) for at in range(0, len(data), block)]
    )


@pytest.fixture
def blind(monkeypatch):
    """
    Times tell nothing of a change, as of one through a mapping.
    """
    real = keys.struct.pack

    def pack(form, *values):
        return real(form, *((*values[:3], 0, 0) if form == ">QQQqq" else values))

    monkeypatch.setattr(keys.struct, "pack", pack)


def runThatDidNotEnd(world, path):
    """
    Store C{path}, under a run that goes on.
    """
    run = SenderKeys(world.state).begin("world")
    report = world.finish(world.start(sendingBy(world, path, keys=run)))
    assert report.exitCode == 0
    # a process that died: the lock is gone, the run is not
    os.close(run._lock)
    return report


def sendingBy(world, *paths, keys, **more):
    sending = world.sending(*paths, **more)
    sending._run.end(True)
    sending._run = keys
    sending._jobs.run = keys
    keys.end = lambda answered: None
    return sending


@pytest.mark.parametrize("size", [100, 20 * BLOCK], ids=["PUT", "OFFER"])
@pytest.mark.parametrize("old", [False, True], ids=["today", "0.1.0"])
def test_otherContentUnderTheSameKey(world, tmp_path, blind, monkeypatch, size, old):
    if old:
        monkeypatch.setattr(greeting, "CAPABILITIES", ("join",))
    path = tmp_path / "state.db"
    path.write_bytes(content(1, size))
    runThatDidNotEnd(world, path)
    path.write_bytes(content(2, size))
    report = world.send(path)
    assert report.exitCode == 0
    assert [outcome.earlier for outcome in report.outcomes] == [""]
    assert content(2, size) in world.store.files.values()
    assert len(world.store.files) == 2


def test_aFreshKeyIsTriedOnce(world, tmp_path):
    """
    A receiver that has the wrong receipt for every key is not asked forever.
    """
    path = tmp_path / "f"
    path.write_bytes(content(1, 20 * BLOCK))
    offered = []

    def answer(receiver, frame, message):
        if frame.type is Type.PING:
            receiver.say(Type.PONG, 0, message)
        elif frame.type is Type.OFFER:
            offered.append(message.key)
            wrong = ReceiptMessage(
                "stored", message.name, message.size, "full", "x", "verified", "sha256",
                bytes(32), 1,
            )  # fmt: skip
            receiver.say(Type.RECEIPT, frame.stream, wrong)

    scripted(world, answer)
    report = world.send(path, retry=ONCE)
    assert report.exitCode == 5
    assert len(offered) == len(set(offered)) == 2


def test_aReceiptForAPutIsCompared(world, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(content(1, 100))
    keys = []

    def answer(receiver, frame, message):
        if frame.type is Type.PUT:
            keys.append(message.key)
            root = message.root if len(keys) > 1 else bytes(32)
            right = ReceiptMessage(
                "stored", message.name, 100, "full", "x", "verified", "blake3", root, 1
            )
            receiver.say(Type.RECEIPT, frame.stream, right)

    scripted(world, answer)
    report = world.send(path, retry=ONCE)
    assert report.exitCode == 0
    assert len(set(keys)) == 2


@pytest.mark.parametrize("size", [100, 20 * BLOCK], ids=["PUT", "OFFER"])
@pytest.mark.parametrize("taken", [False, True], ids=["there", "taken"])
def test_whatAnEarlierRunStoredIsToldApart(world, tmp_path, size, taken):
    path = tmp_path / "f"
    path.write_bytes(content(1, size))
    runThatDidNotEnd(world, path)
    if taken:
        world.store.files.clear()
    report = world.send(path)
    [outcome] = report.outcomes
    assert outcome.good
    assert outcome.earlier == ("gone" if taken else "there")
    assert outcome.status == ("taken-away" if taken else "stored")
    assert report.doneBytes == (0 if taken else size)
    # delivered once: a consumer who moved it away does not get it again
    assert len(world.store.files) == (0 if taken else 1)


@pytest.mark.parametrize("taken", [False, True], ids=["there", "taken"])
def test_anOldReceiverIsSentSmallFilesAgain(world, tmp_path, oldReceiver, taken):
    path = tmp_path / "f"
    path.write_bytes(content(1, 100))
    runThatDidNotEnd(world, path)
    if taken:
        world.store.files.clear()
    [outcome] = world.send(path).outcomes
    assert (outcome.status, outcome.earlier) == ("stored" if taken else "duplicate", "")
    assert world.store.files == {"f": content(1, 100)}


def test_anOldReceiverCannotTellOfLargeFiles(world, tmp_path, oldReceiver):
    path = tmp_path / "f"
    path.write_bytes(content(1, 20 * BLOCK))
    runThatDidNotEnd(world, path)
    [outcome] = world.send(path).outcomes
    assert (outcome.status, outcome.earlier) == ("stored", "unknown")


def test_aHeldRunKeepsItsKeysWithAnOldReceiver(world, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x")
    first = SenderKeys(world.state).begin("world")
    status = path.stat()
    key = first.key(b"f", status, b"f", b"root", afresh=True)
    os.close(first._lock)
    again = SenderKeys(world.state).begin("world")
    assert again.key(b"f", status, b"f", b"root") == key
    assert again.key(b"f", status, b"f", b"root", afresh=True) != key
    assert HeldRun(again).key(b"f", status, b"f", b"root", afresh=True) == key
    again.end(True)


@pytest.mark.parametrize("size", [100, 20 * BLOCK], ids=["PUT", "OFFER"])
def test_anAnswerThatGotLostIsOfThisRun(world, tmp_path, size):
    """
    The connection breaks after the file was stored: the next one gets the receipt, and
    nobody says that an earlier run stored it.
    """
    path = tmp_path / "f"
    path.write_bytes(content(1, size))
    other = tmp_path / "g"
    other.write_bytes(content(2, size))
    world.send(other)
    world.plan = [{"cut": (1, world.wires[-1].sent[1] - 1, "rst")}]
    report = world.send(path)
    [outcome] = report.outcomes
    assert (outcome.status, outcome.earlier) == ("stored", "")
    assert report.connections == 2
    assert sorted(world.store.files) == ["f", "g"]


def test_commitWithAnotherRoot(world):
    """
    Two streams with one key: the second one's content is another, and so is its receipt.
    """
    client = connect(world).greet()
    first, second = content(1, BLOCK), content(2, BLOCK)
    key = bytes(range(32))
    for stream in (1, 2):
        client.offer(stream, name=b"f", size=BLOCK, key=key)
    for stream, data in ((1, first), (2, second)):
        client.data(stream, 0, data).digests(stream, 0, data)
        client.say(Type.COMMIT, stream, Commit(BLOCK, rootsOf(data, BLOCK)))
    receipts = [message for frame, message in client.frames if frame.type is Type.RECEIPT]
    assert [receipt.root for receipt in receipts] == [
        rootsOf(first, BLOCK),
        rootsOf(second, BLOCK),
    ]
    assert sorted(world.store.files.values()) == sorted([first, second])


def test_aPutWithTheKeyOfAnother(world):
    client = connect(world).greet()
    for stream, data in ((1, b"AAAA"), (2, b"BBBB"), (3, b"AAAA")):
        put = Put(bytes([7] * 16), b"f", bytes(32), rootsOf(data, SMALL), durability="none")
        client.say(Type.PUT, stream, put, data)
    assert sorted(world.store.files.values()) == [b"AAAA", b"BBBB"]
    world.settle(1)
    assert Type.REJECT not in client.kinds()


def test_anOfferWithTheKeyOfAnotherSize(world):
    client = connect(world).greet()
    put = Put(bytes(16), b"f", bytes(32), rootsOf(b"AAAA", SMALL), durability="none")
    client.say(Type.PUT, 1, put, b"AAAA")
    client.offer(2, name=b"f", size=5, key=bytes(32))
    assert client.kinds()[-1] is Type.ACCEPT
    client.offer(3, name=b"f", size=None, key=bytes(32))
    assert client.kinds()[-1] is Type.ACCEPT
    client.offer(4, name=b"f", size=4, key=bytes(32))
    assert client.last().root == rootsOf(b"AAAA", SMALL)


def test_onlyAReceiverThatWasAskedTellsOfEarlierOnes(world):
    """
    The sender of 0.1.0 has no such capability: it gets an ACK, as ever.
    """
    client = connect(world).greet()
    for stream in (1, 2):
        put = Put(bytes([stream] * 16), b"f", bytes(32), rootsOf(b"A", SMALL), durability="none")
        client.say(Type.PUT, stream, put, b"A")
        world.settle(1)
    assert client.kinds().count(Type.ACK) == 2
    assert Type.RECEIPT not in client.kinds()


# -- skip ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 20 * BLOCK], ids=["PUT", "OFFER"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_skippedIsAStatus(world, tmp_path, size, jobs):
    path = tmp_path / "f"
    path.write_bytes(content(1, size))
    world.send(path)
    path.write_bytes(content(2, size))
    request = SendRequest("skip", "none", blockSize=BLOCK)
    report = world.send(path, request=request, jobs=jobs)
    [outcome] = report.outcomes
    assert (outcome.status, outcome.good, outcome.receipt) == ("skipped", True, None)
    assert isinstance(outcome.error, Skipped)
    assert report.exitCode == 0
    assert world.store.files == {"f": content(1, size)}
    stats = world.reception.stats()
    assert (stats.skipped, stats.failed) == (1, 0)
    # the same content is no other one
    path.write_bytes(content(1, size))
    assert world.send(path, request=request).outcomes[0].status == "duplicate"


def test_skippedByTheReceiversRule(world, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"1")
    world.policy = Policy(minimumRate=0, ifExists="skip")
    world.restart()
    world.send(path)
    path.write_bytes(b"2")
    assert world.send(path).outcomes[0].status == "skipped"


def test_aDirectoryInTheWayIsNotSkipped(world, tmp_path):
    (tmp_path / "d").write_bytes(b"1")
    world.send(tmp_path / "d")
    (tmp_path / "d").unlink()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"2")
    report = world.send(tmp_path / "d", request=SendRequest("skip", "none"))
    assert {outcome.status for outcome in report.outcomes} == {"failed"}
    assert report.exitCode == 4


def test_oldPeersAndSkip(world, tmp_path):
    """
    The sender of 0.1.0 sees a REJECT that it knows; the receiver of 0.1.0 says no more than
    that, and this sender knows its text.
    """
    client = connect(world).greet()
    for stream, data in ((1, b"A"), (2, b"B")):
        put = Put(
            bytes(16), b"f", bytes([stream] * 32), rootsOf(data, SMALL), ifExists="skip",
            durability="none",
        )  # fmt: skip
        client.say(Type.PUT, stream, put, data)
    reject = client.last(Type.REJECT)
    assert (reject.code, reject.retryable) == ("exists", False)
    assert extensionOf(reject, "skipped") == b""
    path = tmp_path / "f"
    path.write_bytes(b"1")
    texts = {
        '"f" already exists on the receiver with different content': "skipped",
        '"f" is not a directory on the receiver': "failed",
    }
    for text, status in texts.items():

        def answer(receiver, frame, message, text=text):
            if frame.type is Type.PUT:
                receiver.say(Type.REJECT, frame.stream, Reject("exists", False, text))

        scripted(world, answer)
        [outcome] = world.send(path, request=SendRequest("skip", "none"), retry=ONCE).outcomes
        assert outcome.status == status


def test_refusedWhereSkipWasNotAsked(world, tmp_path):
    """
    The same words under another rule are a failure.
    """
    path = tmp_path / "f"
    path.write_bytes(b"1")
    world.send(path)
    path.write_bytes(b"2")
    report = world.send(path, request=SendRequest("refuse", "none"))
    assert report.exitCode == 4
    assert report.outcomes[0].status == "failed"


def test_theKeyOfASmallFileIsThatOfItsContent(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x")
    run = SenderKeys(tmp_path / "state").begin("world")
    digest = DIGESTS["sha256"]
    status = path.stat()
    roots = [rootOf(digest, 1, SMALL, [digest.of(data)]) for data in (b"x", b"y")]
    found = {run.key(b"f", status, b"f", root) for root in roots}
    assert len(found) == 2
    assert run.key(b"f", status, b"f") not in found
    assert run.key(b"f", status, b"f") == run.key(b"f", status, b"f", afresh=True)
    run.end(True)
