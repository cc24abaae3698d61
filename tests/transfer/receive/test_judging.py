"""
Files that are judged before they are published, whichever way they came.
"""

import os
import random

import pytest
from twisted.internet.defer import Deferred
from zope.interface import implementer

from connpool.errors import Held, HookRefused
from connpool.interfaces import ITransferJudge
from connpool.transfer.receive.judging import contentOf
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.session import NativeReceiver
from connpool.transfer.wire.frames import Type
from tests.transfer.web.kit import World as Doors
from tests.transfer.web.test_tus import create, patch, urlOf
from tests.transfer.world import World

BLOCK = 4096
LARGE = random.Random(1).randbytes(20 * BLOCK)

pytestmark = pytest.mark.usefixtures("smallFiles")


@implementer(ITransferJudge)
class Judge:
    """
    Lets pass, refuses, holds or waits, by the name of a file.
    """

    def __init__(self):
        self.seen = []
        self.waiting = []
        self.broken = False

    def beforePublish(self, offer, peer, content):
        fd = content()
        if isinstance(fd, Deferred):
            fd = fd.result
        with open(fd, "rb") as file:
            self.seen.append((offer.name.path, offer.size, file.read()))
        name = offer.name.components[-1]
        if name.startswith("bad"):
            raise HookRefused("it is bad")
        if name.startswith("hold"):
            raise Held("not now")
        if name.startswith("broken"):
            raise RuntimeError("a judge has a fault")
        if name.startswith("wait"):
            waiting = Deferred()
            self.waiting.append(waiting)
            return waiting
        return None

    def _nothing(self, *details):
        pass

    offered = refused = started = progressed = published = failed = _nothing


class Court(World):
    """
    A receiver whose files are judged.
    """

    def restart(self):
        self.judge = getattr(self, "judge", None) or Judge()
        self.reception = Reception(self.store, self.clock, self.policy, [self.judge])
        self.receiver = NativeReceiver(self.clock, self.reception, **self.receiver_)


@pytest.fixture
def court(tmp_path):
    made = Court(tmp_path / "state")
    yield made
    made.close()


def outcomes(report):
    return {
        outcome.name.split("/")[-1]: outcome.error.code if outcome.error else outcome.status
        for outcome in report.outcomes
    }


@pytest.mark.parametrize("content", [b"small", LARGE], ids=["small", "large"])
def test_nothingIsPublishedThatIsNotLetPass(court, source, content, expectFailure):
    expectFailure(RuntimeError)
    for name in ("good", "bad", "hold", "broken"):
        (source / name).write_bytes(content)
    report = court.send(source)

    assert outcomes(report) == {
        "good": "stored",
        "bad": "hook-refused",
        "hold": "held",
        "broken": "held",
    }
    assert court.store.files == {"source/good": content}
    seen = [
        name for name, size, data in court.judge.seen if (size, data) == (len(content), content)
    ]
    # what is held is tried again, what is refused is not
    assert len(seen) == len(court.judge.seen)
    assert seen.count("source/bad") == seen.count("source/good") == 1
    assert seen.count("source/hold") > 1
    stats = court.reception.stats()
    assert (stats.judgeRefused, stats.judging) == (1, 0)
    assert stats.judgeHeld == seen.count("source/hold") + seen.count("source/broken")
    assert "it is bad" in str(next(o.error for o in report.outcomes if o.name.endswith("bad")))


def test_aBadFileOfABatchFailsAlone(court, source):
    for number in range(60):
        (source / f"{'bad' if number % 7 == 0 else 'good'}{number}").write_bytes(b"%d" % number)
    report = court.send(source)
    assert sum(outcome.good for outcome in report.outcomes) == 51
    assert not [name for name in court.store.files if "bad" in name]


@pytest.mark.parametrize("content", [b"small", LARGE], ids=["small", "large"])
def test_aSenderHearsWhatIsWaitedFor(court, source, content):
    (source / "wait").write_bytes(content)
    sending = court.sending(source)
    results = court.start(sending)
    court.pump()
    for _ in range(20):
        court.clock.advance(1.0)
        court.pump()
    assert court.judge.waiting
    assert court.store.files == {}
    assert sending.report.wait.what == "hook"
    assert court.reception.stats().judging == 1
    court.judge.waiting[0].callback(None)
    assert court.finish(results).exitCode == 0
    assert court.store.files == {"source/wait": content}


def test_whatIsHeldIsNotSentAgain(court, source):
    (source / "hold").write_bytes(LARGE)
    report = court.send(source)
    assert report.exitCode == 4
    assert report.sentBytes == len(LARGE)
    assert court.store.files == {}
    # later, by another run, and another receiver over the same store
    court.judge = Judge()
    court.judge.beforePublish = lambda *_: None
    court.restart()
    report = court.send(source)
    assert report.exitCode == 0
    assert (report.sentBytes, report.resumedBytes) == (0, len(LARGE))
    assert court.store.files == {"source/hold": LARGE}


def test_aSenderThatLeavesWhileItIsJudged(court, source):
    """
    It goes on, and the answer is there when the sender comes again.
    """
    (source / "wait").write_bytes(LARGE)
    results = court.start(court.sending(source))
    court.pump()
    while not court.judge.waiting:
        court.clock.advance(0.1)
        court.pump()
    court.wires[0].reset(court.wires[0].ends[0])
    court.pump()
    court.judge.waiting[0].callback(None)
    court.pump()
    assert court.store.files == {"source/wait": LARGE}
    report = court.finish(results)
    assert report.exitCode == 0
    assert len(court.judge.seen) == 1
    assert report.sentBytes == len(LARGE)


def test_aNewerConnectionDoesNotPublishWhatIsNotJudged(court, source):
    (source / "wait").write_bytes(LARGE)
    court.plan = [{"cut": (1, 10**9, "fin")}]
    results = court.start(court.sending(source))
    court.pump()
    while not court.judge.waiting:
        court.clock.advance(0.1)
        court.pump()
    court.wires[0].silent = True
    again = court.start(court.sending(source))
    for _ in range(20):
        court.clock.advance(0.5)
        court.pump()
    assert court.store.files == {}, "the newer one waits for the judgement"
    for _ in range(2000):
        for waiting in court.judge.waiting:
            if not waiting.called:
                waiting.errback(HookRefused("it is bad"))
        if again and results:
            break
        court.clock.advance(0.5)
        court.pump()
    assert outcomes(again[0])["wait"] == "hook-refused"
    assert court.store.files == {}


def test_resultsOfADryRunAreNotJudged(court, source):
    (source / "bad").write_bytes(LARGE)
    request = type(court.sending(source)._request)(dry=True)
    assert court.send(source, request=request).exitCode == 0
    assert court.judge.seen == []


def test_framesSayIt(court, source):
    (source / "wait").write_bytes(LARGE)
    results = court.start(court.sending(source))
    court.pump()
    for _ in range(3):
        court.clock.advance(1.0)
        court.pump()
    from connpool.transfer.wire.frames import FrameReader
    from connpool.transfer.wire.messages import decode

    wire = b"".join(court.wires[0].log[1])[8:]
    said = [decode(each) for each in FrameReader().feed(wire) if each.type is Type.PROGRESS]
    assert ("publish", "hook") in {(each.phase, each.slow) for each in said}
    court.judge.waiting[0].callback(None)
    court.finish(results)


# -- by HTTP -----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"small", bytes(300_000)], ids=["small", "large"])
def test_byHTTP(content, expectFailure):
    expectFailure(RuntimeError)
    judge = Judge()
    doors = Doors(policy=Policy(minimumRate=0), listeners=[judge])
    client = doors.connect()
    for name, status in ((b"good", 201), (b"bad", 422), (b"hold", 503), (b"broken", 503)):
        answer = client.put(b"/" + name, content)
        assert answer.status == status
        if status == 503:
            assert "retry-after" in answer.fields

    assert doors.files == {"good": content}
    assert [data for _, _, data in judge.seen] == [content] * 4
    doors.close()


def test_anUploadInSeveralRequests():
    """
    What is held is asked for again by its last byte; what is refused is gone.
    """
    judge = Judge()
    doors = Doors(policy=Policy(minimumRate=0), listeners=[judge])
    for name, statuses in ((b"good", [204]), (b"bad", [422, 404]), (b"hold", [503, 503])):
        client = doors.connect()
        url = urlOf(create(client, len(LARGE), name=name))
        for at, status in zip((0, len(LARGE) - 1), statuses, strict=False):
            assert patch(client, url, at, LARGE[at:]).status == status
    assert doors.files == {"good": LARGE}
    judge.beforePublish = lambda *_: None
    assert patch(doors.connect(), url, len(LARGE) - 1, LARGE[-1:]).status == 204
    assert doors.files == {"good": LARGE, "hold": LARGE}
    doors.close()


# -- content -----------------------------------------------------------------------------


def test_contentCannotBeWritten():
    fd = contentOf(memoryview(b"content"))
    try:
        assert os.read(fd, 100) == b"content"
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_contentWithoutMemoryFiles(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    fd = contentOf(b"content")
    try:
        assert os.read(fd, 100) == b"content"
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)
