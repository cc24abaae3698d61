"""
Receivers that end amid a transfer, behind HAProxy: the sender goes on at another one.

C{CONNPOOL_TAKEOVERS=100} does so as often; six times otherwise.
"""

import hashlib
import os
import random
import re
import signal
import subprocess

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.threads import deferToThread

from connpool.transfer import sendFiles
from connpool.transfer.send.client import Retry
from connpool.transfer.send.pace import Pace
from connpool.transfer.stores.s3.partplan import LEAVING, PART_BYTES
from examples.s3.demo import balancer, receivers
from tests.helpers.waiting import bounded, pause, until

RUNS = int(os.environ.get("CONNPOOL_TAKEOVERS", "6"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peer("weed", "haproxy", "ss"),
    pytest.mark.timeout(120 + 60 * RUNS),
]

#: The file, and the bytes of it that are sent in a second.
FILE_BYTES, RATE = 96 << 20, 24 << 20
ENDS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
#: One connection: what it was filling, and what was on its way; and the heads of frames, with
#: a piece that was read and had to wait.
MOST_TWICE_BYTES = (1 + LEAVING) * PART_BYTES + (1 << 20)


class Sent:
    """
    A file on its way.
    """

    def __init__(self, front, path):
        self.sending = None
        pace = Pace(reactor, RATE)
        self.ended = sendFiles(
            reactor,
            TCP4ClientEndpoint(reactor, "127.0.0.1", front),
            [str(path)],
            retry=Retry(attempts=30),
            begun=lambda sending: setattr(self, "sending", sending),
            pace=pace,
        )

    @property
    def bytes(self):
        return 0 if self.sending is None else self.sending.report.sentBytes


async def busyOne(running, least):
    """
    The receiver that has received so many bytes.
    """
    while True:
        for each in running:
            if await bounded(deferToThread(each.received)) - least.get(each.name, 0) > 0:
                return each
        await pause(0.05)


def hadRead(receiver):
    """
    The bytes that a receiver, which is stopped, has read of its connections: what the kernel
    took for it, without what it still has.
    """
    port = f"( sport = :{receiver.port} )"
    words = ["ss", "-tinHO", "state", "established", port]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return sum(
        int(taken[1]) - int(line.split()[0])
        for line in lines
        if (taken := re.search(r"bytes_received:(\d+)", line))
    )


@pytest_twisted.ensureDeferred
async def test_receiversThatEnd(weed, tmp_path, prefix):
    chance = random.Random(os.environ.get("CONNPOOL_SEED", "17"))
    twice = []
    with (
        receivers(tmp_path, weed, 2, "--drain-timeout=1", prefix=prefix.rstrip("/")) as running,
        balancer(tmp_path, running) as (_, front),
    ):
        for number in range(RUNS):
            end = ENDS[number % len(ENDS)]
            path = tmp_path / f"file{number}"
            path.write_bytes(chance.randbytes(FILE_BYTES + 9))
            size = path.stat().st_size
            before = {each.name: each.received() for each in running}
            sent = Sent(front, path)
            at = chance.uniform(0.1, 0.8) * size
            await until(lambda sent=sent, at=at: sent.bytes > at, 60)
            busy = await bounded(Deferred.fromCoroutine(busyOne(running, before)))
            (other,) = [each for each in running if each is not busy]
            if end == signal.SIGTERM:
                busy.signal(end)
            else:
                busy.signal(signal.SIGSTOP)
                await until(lambda busy=busy: busy.isStopped)
                had = hadRead(busy)
                busy.signal(end)
            report = await bounded(sent.ended, 90)
            (outcome,) = report.outcomes
            assert outcome.error is None, (end, outcome)
            if end == signal.SIGTERM:
                again = report.sentBytes - size
            else:
                # it had some bytes, and the other one needed the rest and these
                again = had + await bounded(deferToThread(other.received)) - before[other.name]
                again -= size
            twice.append((end.name, again))
            print(f"{number} {end.name}: {again / 2**20:.1f} MiB again", flush=True)
            if end == signal.SIGSTOP:
                # it wakes, and finds that its transfer is another one's
                busy.signal(signal.SIGCONT)
                await pause(1)
                await until(lambda busy=busy: busy.answers("/balancer"))
            else:
                await bounded(deferToThread(busy.process.wait), 30)
                await bounded(deferToThread(busy.start), 40)
            stored = weed.digest("files", f"{prefix}{outcome.receipt.name}")
            assert stored == hashlib.sha256(path.read_bytes()).digest(), end
            assert outcome.receipt.name == path.name
            path.unlink()
    assert max(count for _, count in twice) <= MOST_TWICE_BYTES, twice
    assert len(weed.names("files", prefix)) == RUNS
