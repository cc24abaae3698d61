from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from connpool.observe.feed import MOST_MISSED_LOOKS, Feed


class Request:
    """
    What a feed needs of a request.
    """

    def __init__(self):
        self.written = b""
        self.finished = Deferred()
        self.aborted = False
        self.transport = self

    def notifyFinish(self):
        return self.finished

    def registerProducer(self, producer, streaming):
        assert streaming
        self.producer = producer

    def write(self, data):
        self.written += data

    def abortConnection(self):
        self.aborted = True
        self.finished.errback(ConnectionError())

    @property
    def looks(self):
        return self.written.count(b"event: look\n")


class Seen:
    def __init__(self):
        self.schema = b"{}"
        self.asked = 0

    def look(self):
        self.asked += 1
        return b'{"n":1}'


def build():
    clock, seen = Clock(), Seen()
    return clock, seen, Feed(clock, {"schema": lambda: seen.schema}, seen.look)


def test_nothingRunsWhileNobodyWatches():
    clock, seen, feed = build()
    assert clock.getDelayedCalls() == []
    viewer = Request()
    feed.join(viewer)
    clock.advance(1)
    viewer.finished.callback(None)
    assert clock.getDelayedCalls() == []
    assert seen.asked == 2


def test_oneLookServesAllViewers():
    clock, seen, feed = build()
    viewers = [Request() for _ in range(3)]
    for viewer in viewers:
        feed.join(viewer)
    before = seen.asked
    clock.advance(1)
    assert seen.asked == before + 1
    assert {viewer.looks for viewer in viewers} == {2}


def test_theSchemaComesFirstAndWhenItChanges():
    clock, seen, feed = build()
    viewer = Request()
    feed.join(viewer)
    assert viewer.written.index(b"event: schema") < viewer.written.index(b"event: look")
    clock.advance(1)
    assert viewer.written.count(b"event: schema") == 1
    seen.schema = b'{"pool":[]}'
    clock.advance(1)
    assert viewer.written.count(b"event: schema") == 2


def test_aSlowViewerMissesLooksAndIsLetGo():
    clock, _, feed = build()
    slow, quick = Request(), Request()
    feed.join(slow)
    feed.join(quick)
    slow.producer.pauseProducing()
    clock.pump([1] * 10)
    assert (slow.looks, quick.looks) == (1, 11)
    slow.producer.resumeProducing()
    clock.advance(1)
    assert slow.looks == 2
    slow.producer.pauseProducing()
    clock.pump([1] * MOST_MISSED_LOOKS)
    assert not slow.aborted
    clock.advance(1)
    assert slow.aborted
    assert not quick.aborted


def test_aLookThatFailsEndsTheViewersAndTheFeedRecovers(expectFailure):
    expectFailure(ZeroDivisionError)
    clock, seen, feed = build()
    viewer = Request()
    feed.join(viewer)
    looked, seen.look = seen.look, None
    feed._current = lambda: 1 // 0
    clock.advance(1)
    assert viewer.aborted
    feed._current = looked
    again = Request()
    feed.join(again)
    clock.advance(1)
    assert again.looks == 2
    again.finished.callback(None)
