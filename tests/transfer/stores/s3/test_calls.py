"""
Cores are run on whatever carries out their calls.
"""

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from connpool.errors import Unavailable
from connpool.transfer.stores.s3.calls import (
    ABSENT,
    Delete,
    Done,
    Get,
    Missing,
    Put,
    performed,
    together,
)
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf


class Scripted:
    """
    Answers as it is told to, and keeps what was asked.
    """

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def perform(self, call, patience=None):
        self.asked.append(call)
        return self.answer(call)

    def trouble(self):
        return None


async def core():
    if isinstance(await Get("a"), Missing):
        await Put("a", b"x", ABSENT)
    return await together([Delete("b"), Delete("c")])


def test_aCoreGetsTheAnswersOfItsCalls():
    answers = {Get: Missing(), Put: Done("e"), Delete: Done()}
    requests = Scripted(lambda call: succeed(answers[type(call)]))
    assert successResultOf(performed(core(), requests)) == [Done(), Done()]
    assert requests.asked == [Get("a"), Put("a", b"x", ABSENT), Delete("b"), Delete("c")]


@pytest.mark.parametrize("which", [Get, Delete])
def test_aCoreGetsTheErrors(which):
    def answer(call):
        if isinstance(call, which):
            return fail(Unavailable("gone"))
        return succeed(Missing() if isinstance(call, Get) else Done())

    failureResultOf(performed(core(), Scripted(answer)), Unavailable)


def test_cancelledCallsAreCancelled():
    cancelled = []
    requests = Scripted(lambda call: Deferred(lambda d: cancelled.append(call)))
    running = performed(core(), requests)
    assertNoResult(running)
    running.cancel()
    assert cancelled == [Get("a")]
    running.addErrback(lambda failure: None)
