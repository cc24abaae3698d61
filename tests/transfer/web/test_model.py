"""
An upload against a model of it, on a local store: whatever is done, an offset that was told
stays, and what is published is the file.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from connpool.transfer import LocalStore
from connpool.transfer.web import uploads
from tests.transfer.stores.kit import InlineReactor, visible
from tests.transfer.stores.onpartials import killed
from tests.transfer.web.kit import World, request
from tests.transfer.web.test_tus import BYTES, TUS, checksum, create, patch, urlOf

SIZE = 5000
CONTENT = random.Random(3).randbytes(SIZE)
BLOCK = 1024


class Receiver(World):
    """
    A receiver whose files are in a directory.
    """

    def __init__(self, root, clock=None):
        self.reactor = InlineReactor()
        store = LocalStore(self.reactor, root, threads=self.reactor)
        super().__init__(store=store)

    def die(self):
        """
        Let go of what the kernel would let go of, and of nothing else.
        """
        for partial in self.store.admission.active:
            killed(partial)
            partial._gone = True
        for client in self.clients:
            client.transport.lost = True
        self.reactor.wait(self.store.close())

    def stop(self):
        self.close()
        self.reactor.wait(self.store.close())


class Model(RuleBasedStateMachine):
    """
    @ivar told: the last offset that was told.
    @ivar sized: whether the receiver knows the size; L{None} if it was said and not answered.
    """

    @initialize(declared=st.booleans())
    def begin(self, declared):
        self.directory = tempfile.TemporaryDirectory(dir="/dev/shm")
        self.root = Path(self.directory.name)
        self.world = Receiver(self.root)
        self.removed = self.done = False
        self.told = 0
        self.sized = declared
        size = SIZE if declared else None
        fields = [] if declared else [b"Upload-Defer-Length: 1"]
        self.url = urlOf(create(self.world.connect(), size, *fields))

    def ask(self, method):
        answer = self.world.connect().ask(method, self.url, None, [TUS])
        if self.removed:
            assert answer.status == 404
            return None
        return answer

    @rule()
    def head(self):
        answer = self.ask(b"HEAD")
        if answer is None:
            return
        if answer.status == 404:
            # nobody who has told nothing has lost anything
            assert not self.told
            self.removed = True
            return
        offset = int(answer.fields["upload-offset"])
        assert offset >= self.told
        sized = "upload-length" in answer.fields
        assert self.sized in {None, sized}
        assert (offset == SIZE and sized) == self.done
        self.sized = sized
        self.told = offset

    @precondition(lambda self: not self.done and not self.removed)
    @rule(
        count=st.integers(0, SIZE),
        cut=st.none() | st.integers(1, 400),
        how=st.sampled_from(["plain", "right", "wrong"]),
        declare=st.booleans(),
    )
    def patch(self, count, cut, how, declare):
        self.head()
        if self.removed:
            return
        at = self.told
        data = CONTENT[at : at + count]
        fields = [TUS, BYTES, b"Upload-Offset: %d" % at]
        if declare:
            fields.append(b"Upload-Length: %d" % SIZE)
        if how != "plain":
            fields.append(checksum(b"sha1", data if how == "right" else data + b"x"))
        client = self.world.connect()
        wire = request(b"PATCH", self.url, data, fields)
        cut = len(data) if cut is None or cut > len(data) else cut
        cut = cut and len(data) - cut
        client.send(wire[: len(wire) - cut])
        if cut:
            client.reset()
            self.sized = self.sized or (None if declare else False)
            return
        answer = client.answer()
        if how == "wrong":
            assert answer.status == 460, answer
            self.sized = self.sized or (None if declare else False)
            return
        assert answer.status == 204, answer
        self.sized = self.sized or declare
        self.told = int(answer.fields["upload-offset"])
        assert self.told == at + len(data)
        self.done = self.sized and self.told == SIZE

    @precondition(lambda self: not self.done and not self.removed)
    @rule(count=st.integers(1, 100))
    def wrongOffset(self, count):
        answer = patch(self.world.connect(), self.url, self.told + 1 + SIZE, b"x")
        assert answer.status in {404, 409, 413}

    @rule(seconds=st.sampled_from([1, 14, 16]))
    def wait(self, seconds):
        self.world.clock.advance(seconds)

    @rule(dies=st.booleans())
    def restart(self, dies):
        (self.world.die if dies else self.world.stop)()
        self.world = Receiver(self.root)

    @precondition(lambda self: self.told > SIZE // 2)
    @rule()
    def remove(self):
        answer = self.ask(b"DELETE")
        if answer is not None:
            assert answer.status == (410 if self.done else 204)
            self.removed = self.removed or not self.done

    @invariant()
    def nothingElseIsThere(self):
        if hasattr(self, "root"):
            assert visible(self.root) == ({"x.bin": CONTENT} if self.done else {})

    def teardown(self):
        if hasattr(self, "world"):
            self.world.stop()
            self.directory.cleanup()


def run(examples):
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture(autouse=True)
def smallBlocks(monkeypatch):
    monkeypatch.setattr(uploads, "chooseBlockSize", lambda size: BLOCK)


def test_aModel():
    run(30)


def test_aWrongChecksumOfNothingCompletesNothing():
    model = Model()
    model.begin(declared=False)
    model.patch(count=SIZE, cut=None, declare=False, how="plain")
    model.patch(count=0, cut=None, declare=True, how="wrong")
    model.nothingElseIsThere()
    model.patch(count=0, cut=None, declare=True, how="right")
    assert model.done
    model.nothingElseIsThere()
    model.teardown()


@pytest.mark.slow
def test_aModelForLonger():
    run(int(os.environ.get("CONNPOOL_EXAMPLES", "500")))
