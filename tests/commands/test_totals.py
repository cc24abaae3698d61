"""
Totals of a run of many files.
"""

import io
import sys

import pytest

from connpool.commands.progress import Progress
from connpool.commands.totals import RunTotals, Totals, measured
from connpool.transfer.send.joblist import Job
from connpool.transfer.send.report import SendReport, UnderWay
from connpool.transfer.send.walking import Walk


@pytest.fixture
def report():
    return SendReport(outcomes=[None] * 37, connections=1, doneBytes=1000)


def test_howManyOfHowMany(report):
    totals = RunTotals(report, Totals(214, 5000))
    assert totals.text("") == "37 of 214 files"
    assert totals.text("disk") == "37 of 214 files, waiting for disk"
    job = Job("big", b"big")
    report.underWay[job] = UnderWay(job, 500, "publish", "")
    assert totals.text("disk") == "37 of 214 files, big publish, waiting for disk"
    # files that came after they were counted
    assert RunTotals(report, Totals(30, 1)).text("").startswith("30 of 30 files")


def test_oneFileIsItsName(report):
    report.outcomes.clear()
    totals = RunTotals(report, Totals(1, 5000))
    assert totals.text("") == "sending"
    job = Job("big", b"a\x1b[31m")
    report.underWay[job] = UnderWay(job, 500)
    assert "\x1b" not in totals.text("")
    assert "a" in totals.text("")
    report.underWay.clear()
    report.connections = 0
    assert totals.text("network") == "waiting for network"
    assert totals.text("") == "connecting"


def test_whileItIsBeingCounted(report):
    assert RunTotals(report).text("") == "37 files"
    assert RunTotals(report).size is None


def test_aLineForPrograms(report):
    totals = RunTotals(report, Totals(214, 5000), since=6.0)
    assert totals.line("", 10.0)["rate"] == 250
    report.doneBytes += 2500
    assert totals.line("rate", 15.0) == {
        "files": 37,
        "filesTotal": 214,
        "bytes": 3500,
        "bytesTotal": 5000,
        "rate": 500,
        "slow": "rate",
        "underWay": None,
    }
    # what is sent again was counted before
    report.doneBytes -= 100
    assert totals.line("", 16.0)["rate"] == 0
    assert RunTotals(report).line("", 1.0)["bytesTotal"] is None


def test_filesAreCounted(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_bytes(b"xx")
    (tmp_path / "d/b").write_bytes(b"yyy")
    (tmp_path / "d/l").symlink_to("a")
    assert measured(Walk([str(tmp_path / "d"), str(tmp_path / "no")])) == Totals(3, 5)


def test_linesHaveTheRateSinceTheLastOne(monkeypatch):
    times = iter([0.0, 10.0, 20.0, 25.0])
    monkeypatch.setattr("connpool.commands.progress._LINE_SECONDS", 1.0)
    monkeypatch.setattr("connpool.commands.progress.time.monotonic", lambda: next(times))
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with Progress() as progress:
        progress.show("2 of 3 files", 20, 100)
        progress.show("2 of 3 files", 20, 100)
        progress.show("3 of 3 files", 70, 100)
    assert stream.getvalue().splitlines() == [
        "2 of 3 files: 20 B of 100 B, 2 B/s",
        "2 of 3 files: 20 B of 100 B",
        "3 of 3 files: 70 B of 100 B, 10 B/s",
    ]
