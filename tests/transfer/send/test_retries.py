"""
When a sender gives up, what it counts, and which keys it goes by.
"""

import os
import random
from pathlib import Path

import pytest

from connpool.errors import Forbidden, NetworkFailed, SourceError
from connpool.transfer.send import readahead
from connpool.transfer.send.client import Retry
from connpool.transfer.send.keys import SenderKeys
from connpool.transfer.send.request import SendRequest
from connpool.transfer.send.walking import FILE, Found, Walk
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Progress, Reject
from tests.transfer.scripted import scripted

ONCE = Retry(attempts=1)
BLOCK = 4096


pytestmark = pytest.mark.usefixtures("smallFiles")


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(100 * BLOCK))
    return path


# -- getting on -------------------------------------------------------------------------


def swallowing(count, said=0):
    """
    Takes some of a file, says perhaps how much of it is safe, and resets.
    """

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            receiver.accept(frame.stream)
            receiver.say(Type.PROGRESS, frame.stream, Progress("receive", said))
        elif receiver.received > count:
            receiver.transport.abortConnection()

    return answer


@pytest.mark.parametrize("said", [0, 5 * BLOCK, 1 << 62])
def test_bytesThatAreOnlySentAreNoProgress(world, tmp_path, said):
    """
    Kernels and proxies take megabytes; and what was safe is said once.
    """
    (tmp_path / "a").write_bytes(bytes(8 << 20))
    request = SendRequest(durability="none", blockSize=BLOCK, extentBytes=BLOCK)
    receivers = scripted(world, swallowing(3 << 20, said))
    report = world.send(tmp_path / "a", retry=Retry(attempts=4), request=request)
    assert isinstance(report.failed[0].error, NetworkFailed)
    assert len(receivers) == 4


def test_whatIsSafeIsProgress(world, large):
    """
    Each connection brings a little, more than {attempts} are needed.
    """
    world.plan = [{"cut": (0, 20_000, "rst"), "chunk": 1024}] * 40
    report = world.send(large, retry=Retry(attempts=2))
    assert report.exitCode == 0
    assert 20 < report.connections < 40
    assert world.store.files == {"large": large.read_bytes()}


# -- counting ---------------------------------------------------------------------------


def test_nothingIsCountedTwice(world, large):
    size = large.stat().st_size
    world.plan = [{"cut": (0, 300_000, "rst"), "chunk": 1024}, {"chunk": 1024}]
    sending = world.sending(large)
    report, seen = sending.report, []
    results = world.start(sending)
    while not results:
        if not sum(wire.step() for wire in world.wires if wire.alive):
            world.clock.advance(0.1)
        seen.append(report.progress)
        assert report.progress <= size
    assert len(world.wires) == 2
    assert max(seen) == report.progress == report.doneBytes == size
    # it held nothing when we came
    assert report.resumedBytes == 0


def test_heldBefore(world, large):
    world.plan = [{"cut": (0, 300_000, "rst"), "chunk": 1024}]
    world.send(large, retry=ONCE)
    world.plan = [{"cut": (0, 50_000, "rst"), "chunk": 1024}]
    report = world.send(large)
    assert report.connections == 2
    assert 60 * BLOCK < report.resumedBytes < 74 * BLOCK


def test_whatIsShownIsOfOneFile(world, large, tmp_path):
    (tmp_path / "other").write_bytes(bytes(3 * BLOCK))
    streams = {}

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            streams[message.name] = frame.stream

    receivers = scripted(world, answer)
    sending = world.sending(large, tmp_path / "other")
    world.start(sending)
    world.pump()
    receivers[0].say(Type.PROGRESS, streams[b"large"], Progress("receive", 0, "quota"))
    receivers[0].say(Type.PROGRESS, streams[b"other"], Progress("verify", 0, "disk"))
    world.pump()
    report = sending.report
    assert (list(report.open), report.phase, report.slow) == (
        ["large", "other"],
        "receive",
        "quota",
    )
    # one that moves goes before one that waits
    receivers[0].accept(streams[b"other"])
    world.pump()
    receivers[0].say(Type.PROGRESS, streams[b"other"], Progress("verify", 0, "disk"))
    receivers[0].say(Type.PROGRESS, streams[b"large"], Progress("receive", 0, "quota"))
    world.pump()
    assert (list(report.open), report.phase, report.slow) == (["other", "large"], "verify", "disk")
    assert report.open == {"other": 3 * BLOCK, "large": 0}
    assert [each.slowedBy for each in sending.liveTransfers(9)] == ["quota", "disk"]
    sending.cancel()
    world.pump()


# -- the source ---------------------------------------------------------------------------


def test_whatWasHeldCannotBeRead(world, large, tmp_path, monkeypatch):
    world.plan = [{"cut": (0, 300_000, "rst"), "chunk": 1024}]
    world.send(large, retry=ONCE)
    (tmp_path / "other").write_bytes(b"x")
    preadv = os.preadv

    def broken(fd, views, offset):
        if offset == 0:
            raise OSError(5, "Input/output error")
        return preadv(fd, views, offset)

    monkeypatch.setattr(readahead.os, "preadv", broken)
    report = world.send(large, tmp_path / "other")
    assert [type(outcome.error) for outcome in report.failed] == [SourceError]
    assert report.connections == 1
    assert world.store.files == {"other": b"x"}


def test_namedTwiceIsSentOnce(world, large, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = world.send(large, "large", "./large")
    assert [outcome.name for outcome in report.outcomes] == ["large"]
    assert report.exitCode == 0
    assert report.sentBytes == 100 * BLOCK


def test_whatIsTheSame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("d/a", "d/e/b", "-"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"")

    def names(*paths):
        return [found.name for found in Walk(paths) if found.kind == FILE]

    assert names("d", "./d", str(tmp_path / "d"), "d/") == [b"d/a", b"d/e/b"]
    assert names("-", "./-", "-") == [b"stdin", b"-"]
    # the same file by two names is two files
    assert names("d", "d/a", "d/e") == [b"d/a", b"d/e/b", b"a", b"e/b"]
    assert names(Found("d/a", b"x"), Found("./d/a", b"x"), Found("d/a", b"y")) == [b"x", b"y"]
    assert names(Found("d/a", b"a"), "d/a") == [b"a"]


# -- keys ----------------------------------------------------------------------------------


def offered(world):
    """
    The offers that come, each of which is refused.
    """
    offers = []

    def answer(receiver, frame, message):
        if frame.type is Type.OFFER:
            offers.append(message)
            receiver.say(Type.REJECT, frame.stream, Reject("forbidden", False, "no"))

    scripted(world, answer)
    return offers


def test_withoutADestinationNothingIsRemembered(world, large):
    """
    Two receivers must not get the same secret.
    """
    offers = offered(world)
    for destination in ("", "", "one", "one", "two"):
        report = world.send(large, destination=destination)
        assert isinstance(report.failed[0].error, Forbidden)
    keys = [offer.resumeKey for offer in offers]
    assert len(set(keys)) == 4
    assert keys[2] == keys[3]


def test_withoutADestinationTheCallItselfResumes(world, large, tmp_path):
    world.plan = [{"cut": (0, 300_000, "rst"), "chunk": 1024}]
    sending = world.sending(large, destination="")
    assert not sending.resumable
    report = world.finish(world.start(sending))
    assert report.exitCode == 0
    assert report.sentBytes < 130 * BLOCK
    assert not (tmp_path / "state").exists()


def test_askingEndsNoRun(world, large, tmp_path):
    """
    The keys of an interrupted run outlive a dry one.
    """
    world.plan = [{"cut": (0, 300_000, "rst"), "chunk": 1024}]
    world.send(large, retry=ONCE)
    runs = list((tmp_path / "state" / "runs").iterdir())
    assert len(runs) == 1
    report = world.send(large, request=SendRequest(dry=True))
    assert report.exitCode == 0
    assert list((tmp_path / "state" / "runs").iterdir()) == runs
    run = SenderKeys(tmp_path / "state").begin("world")
    assert list((tmp_path / "state" / "runs").iterdir()) == runs
    run.end(True)
