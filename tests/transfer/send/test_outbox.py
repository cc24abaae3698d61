import pytest

from connpool.transfer.send.outbox import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, Outbox

A, B = (1, 2, 3), (1, 2, 4)


def build(settle=2.0, attempts=3):
    return Outbox(settle, attempts)


def test_whatSettledIsDueOldestFirst():
    outbox = build()
    outbox.scanned({"young": A, "old": A}, 0.0)
    outbox.scanned({"young": B, "old": A}, 1.0)
    assert outbox.due(1.9, 10) == []
    assert outbox.due(2.0, 10) == ["old"]
    assert outbox.due(3.0, 10) == ["young"]
    assert outbox.due(4.0, 10) == []


def test_aWriterKeepsItFromSettling():
    outbox = build()
    for second in range(10):
        outbox.scanned({"a": (second,)}, float(second))
        assert outbox.due(float(second), 1) == []
    assert outbox.next(9.0) == 2.0


def test_limit():
    outbox = build(settle=0.0)
    outbox.scanned({str(n): A for n in range(10)}, 0.0)
    assert len(outbox.due(0.0, 3)) == 3
    assert len(outbox.due(0.0, 100)) == 7


def test_whatIsGoneIsForgottenUnlessItIsBeingSent():
    outbox = build(settle=0.0)
    outbox.scanned({"a": A, "b": A}, 0.0)
    outbox.due(0.0, 1)
    outbox.scanned({}, 1.0)
    assert outbox.snapshot()["sending"] == 1
    outbox.done("a")
    assert not any(outbox.snapshot().values())


def test_waitsDoubleUpToACap():
    outbox = build(settle=0.0)
    now, waits = 0.0, []
    outbox.scanned({"a": A}, now)
    for _ in range(20):
        assert outbox.due(now, 1) == ["a"]
        assert not outbox.failed("a", now, own=False)
        waits.append(outbox.next(now))
        assert outbox.due(now + waits[-1] - 0.001, 1) == []
        now += waits[-1]
    assert waits[:3] == [FIRST_WAIT_SECONDS, 2 * FIRST_WAIT_SECONDS, 4 * FIRST_WAIT_SECONDS]
    assert waits[-1] == LONGEST_WAIT_SECONDS


def test_daysAwayAreNotPoison():
    outbox = build(settle=0.0)
    outbox.scanned({"a": A}, 0.0)
    for tries in range(10_000):
        assert not outbox.failed("a", float(tries), own=False)


def test_failuresOfItsOwnArePoison():
    outbox = build(settle=0.0)
    outbox.scanned({"a": A}, 0.0)
    assert [outbox.failed("a", 0.0, own=True) for _ in range(3)] == [False, False, True]


def test_aChangedFileHasACleanRecord():
    outbox = build(settle=0.0)
    outbox.scanned({"a": A}, 0.0)
    outbox.failed("a", 0.0, own=True)
    outbox.failed("a", 0.0, own=True)
    outbox.scanned({"a": B}, 0.0)
    assert outbox.due(0.0, 1) == ["a"]
    assert not outbox.failed("a", 0.0, own=True)


def test_aRestartKnowsTheRecord():
    outbox = build(settle=0.0)
    outbox.scanned({"a": A, "b": A}, 0.0)
    outbox.failed("a", 0.0, own=True)
    outbox.failed("a", 0.0, own=True)
    again = build(settle=0.0)
    again.restore(outbox.memory, 0.0)
    again.scanned({"a": A, "b": A}, 0.0)
    assert again.failed("a", 0.0, own=True)
    assert not again.failed("b", 0.0, own=True)


@pytest.mark.parametrize("event", ["changed", "busy"])
def test_whatIsWrittenSettlesAgain(event):
    outbox = build()
    outbox.scanned({"a": A}, 0.0)
    assert outbox.due(2.0, 1) == ["a"]
    getattr(outbox, event)("a", 2.0)
    assert outbox.due(3.9, 1) == []
    assert outbox.due(4.0, 1) == ["a"]
    assert outbox.snapshot() == {"waiting": 0, "sending": 1, "kept": 0}


@pytest.mark.parametrize("kind", ["open", "written"])
def test_aFileThatIsOpenForLongIsNamed(kind):
    """
    A writer that holds it open in silence, and one that always writes.
    """
    outbox = build()
    for second in range(0, 100, 2):
        outbox.scanned({"a": (second if kind == "written" else 0,), "b": A}, float(second))
        for path in outbox.due(float(second), 10):
            if path == "a":
                outbox.busy(path, float(second))
            else:
                outbox.free(path)
                outbox.failed(path, float(second), own=False)
    assert outbox.longOpen(98.0, 99.0) is None
    assert outbox.longOpen(98.0, 98.0) == ("a", 98.0)
    assert outbox.due(100.0, 10) in (["a"], ["a", "b"])
    outbox.free("a")
    assert outbox.longOpen(200.0, 98.0) is None


def test_aBacklogIsNotOpen():
    outbox = build()
    outbox.scanned({"a": A}, 0.0)
    assert outbox.longOpen(1000.0, 10.0) is None


def test_withoutAnAnswerItMustLookTheSameForLong():
    outbox = build()
    outbox.scanned({"a": A}, 0.0)
    now = 2.0
    for content, ready in ((b"1", False), (b"2", False), (b"2", True)):
        assert outbox.due(now, 1) == ["a"]
        assert outbox.looked("a", content, now) is ready
        assert outbox.due(now + 9.9, 1) == []
        now += 10.0
    assert outbox.snapshot()["sending"] == 1


def test_whatCouldNotBeReadIsLookedAtAgain():
    outbox = build()
    outbox.scanned({"a": A}, 0.0)
    assert outbox.due(2.0, 1) == ["a"]
    assert not outbox.looked("a", None, 2.0)
    assert outbox.due(2.0, 1) == ["a"]


def test_whatStaysGoesAgainWhenItChanges():
    outbox = build(settle=0.0)
    outbox.scanned({"a": A}, 0.0)
    outbox.due(0.0, 1)
    row = outbox.keep("a")
    assert outbox.due(1000.0, 1) == []
    assert outbox.next(1000.0) is None
    assert outbox.snapshot() == {"waiting": 0, "sending": 0, "kept": 1}
    again = build(settle=0.0)
    again.restore([row], 0.0)
    again.scanned({"a": A}, 0.0)
    assert again.due(1000.0, 1) == []
    again.scanned({"a": B}, 1000.0)
    assert again.due(1000.0, 1) == ["a"]
    assert again.snapshot()["kept"] == 0
    again.done("a")
    again.scanned({}, 0.0)
    assert again.snapshot() == {"waiting": 0, "sending": 0, "kept": 0}


def test_aRenewedKeyIsRemembered():
    outbox = build(settle=0.0)
    outbox.scanned({"a": A}, 0.0)
    outbox.renew("a", b"salt")
    again = build(settle=0.0)
    again.restore(outbox.memory, 0.0)
    again.scanned({"a": A}, 0.0)
    assert again.saltOf("a") == b"salt"
    again.scanned({"a": B}, 0.0)
    assert again.saltOf("a") == b"", "its key is another one anyway"


def test_aReceiverThatIsAwayIsAskedWithOneFile():
    outbox = build(settle=0.0)
    outbox.scanned(dict.fromkeys("abc", A), 0.0)
    asked = []
    now = 1.0
    for _ in range(4):
        (path,) = outbox.due(now, 1)
        asked.append(path)
        outbox.failed(path, now, own=False)
        outbox.hold(path, now, rotate=True)
        assert outbox.due(now + FIRST_WAIT_SECONDS / 2, 1) == []
        now += outbox.next(now)
    assert asked == ["a", "b", "c", "a"], "it may be one file that it dies of"


def test_aReceiverThatDoesNotStoreDurablyGetsOneFile():
    outbox = build(settle=0.0)
    outbox.scanned(dict.fromkeys("abc", A), 0.0)
    now, waits = 0.0, []
    for _ in range(5):
        assert outbox.due(now, 1) == ["a"]
        outbox.failed("a", now, own=False)
        outbox.hold("a", now, rotate=False)
        waits.append(outbox.next(now))
        now += waits[-1]
    assert waits == [FIRST_WAIT_SECONDS * 2**n for n in range(5)]
    outbox.release()
    assert len(outbox.due(now, 3)) == 3
