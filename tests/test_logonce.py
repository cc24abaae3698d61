"""
Log lines for what happens again and again.
"""

from connpool.logonce import LogOnce, LogRarely


def test_troubleIsSaidWhenItBeginsOrChanges():
    lines = []
    log = LogOnce(lines.append)
    for trouble in ["full", "full", "gone", "gone", "full"]:
        log.met(trouble)
    assert lines == ["full", "gone", "full"]


def test_troubleThatWasOverIsSaidAgain():
    lines = []
    log = LogOnce(lines.append)
    assert not log.over()
    log.met("full")
    assert (log.trouble, log.over(), log.trouble) == ("full", True, "")
    log.met("full")
    assert lines == ["full", "full"]


def test_tenThousandEventsInAMinuteAreTwoLines():
    lines = []
    log = LogRarely(lambda event, unsaid: lines.append((event, unsaid)), 60.0)
    for n in range(10_000):
        log.happened(f"event {n}", 0.006 * n)
    assert lines == [("event 0", 0)]
    log.happened("event 10000", 60.0)
    assert lines[1:] == [("event 10000", 9_999)]


def test_flushSaysWhatIsLeftOver():
    lines = []
    log = LogRarely(lambda event, unsaid: lines.append((event, unsaid)))
    log.flush()
    for event in "abc":
        log.happened(event, 0.0)
    log.flush()
    log.flush()
    assert lines == [("a", 0), ("c", 1)]
