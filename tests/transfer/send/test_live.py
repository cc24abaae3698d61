"""
What a sending shows of itself.
"""

import os

import pytest
from twisted.internet import task
from zope.interface.verify import verifyObject

from connpool.errors import SourceError
from connpool.interfaces import ILiveTransfers
from connpool.transfer.send.client import Sending
from connpool.transfer.send.joblist import Job
from connpool.transfer.send.keys import SenderKeys


@pytest.fixture
def sending(tmp_path):
    keys = SenderKeys(tmp_path)
    return Sending(task.Clock(), None, [], "host:1", keys=keys, inThread=lambda *_: None)


@pytest.fixture
def reporter(sending):
    return sending._reporter


def job(name, size):
    made = Job(name, name.encode())
    if size is not None:
        made.status = os.stat_result((0, 0, 0, 0, 0, 0, size, 0, 0, 0))
    return made


def test_provides(sending):
    verifyObject(ILiveTransfers, sending)


def test_largeFilesAreShownUntilTheyAreAnswered(sending, reporter):
    first, small, stream = job("a\u202eb", 1000), job("small", 10), job("stdin", None)
    reporter.resumed(first, 300)
    reporter.sent(first, 200)
    reporter.sent(small, 10)
    reporter.sent(stream, 77)
    shown = sending.liveTransfers(10)
    assert [(each.name, each.size, each.done) for each in shown] == [
        ("a\\u202eb", 1000, 500),
        ("stdin", None, 77),
    ]
    live = shown[0]
    assert (live.transferId, live.peer) == (first.transferId.hex(), "host:1")
    assert (live.direction, live.phase, live.slowedBy) == ("out", "moving", "peer")
    assert len(sending.liveTransfers(1)) == 1
    reporter.phase(first, "publish", "disk")
    reporter.sent(first, 900)
    live = sending.liveTransfers(10)[0]
    assert (live.done, live.phase, live.slowedBy) == (1000, "publishing", "disk")
    reporter.failed(first, SourceError("gone"))
    assert [each.name for each in sending.liveTransfers(10)] == ["stdin"]
