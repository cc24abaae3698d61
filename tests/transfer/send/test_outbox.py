from connpool.transfer.send.outbox import FIRST_WAIT, LONGEST_WAIT, Outbox

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
    assert len(outbox) == 1
    outbox.done("a")
    assert len(outbox) == 0


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
    assert waits[:3] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT]
    assert waits[-1] == LONGEST_WAIT


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
    again.restore([(path, ident, count) for path, (ident, count) in outbox.strikes.items()], 0.0)
    again.scanned({"a": A, "b": A}, 0.0)
    assert again.failed("a", 0.0, own=True)
    assert not again.failed("b", 0.0, own=True)


def test_changedSettlesAgain():
    outbox = build()
    outbox.scanned({"a": A}, 0.0)
    assert outbox.due(2.0, 1) == ["a"]
    outbox.changed("a", 2.0)
    assert outbox.due(3.9, 1) == []
    assert outbox.due(4.0, 1) == ["a"]
    assert outbox.snapshot() == {"waiting": 0, "sending": 1}
