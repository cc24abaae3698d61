"""
Contestants that take turns, and what is written of them.
"""

import contextlib
import json
import sys
import types
from xml.etree import ElementTree as ET

import pytest

from benchmarks.__main__ import main
from benchmarks.chart import draw
from benchmarks.processes import Failed
from benchmarks.report import asJSON, asRST, asText, dumped, inserted, summary
from benchmarks.section import Column, Section, Wanted, run, versus
from benchmarks.spread import ENOUGH

MACHINE = dict.fromkeys(("date", "kernel", "processor", "cores", "load", "python"), "?")


def seconds(row):
    return row["s"]


class Contestant:
    def __init__(self, name, *times, without=None, log=None):
        self.name = name
        self.times = times
        self.without = without
        self.log = [] if log is None else log
        self.runs = 0

    def missing(self):
        return self.without

    def once(self):
        self.log.append(self.name)
        self.runs += 1
        return {"s": self.times[self.runs % len(self.times)]}


def section(*contestants, bars=(), **more):
    return Section("A title & more", contestants, [Column("s", seconds)], bars, **more)


def test_theyTakeTurnsTheOtherWayRoundEachTime():
    log = []
    measured = run("key", section(Contestant("a", 1.0, log=log), Contestant("b", 2.0, log=log)), 2)
    assert log == ["a", "b", "b", "a", "a", "b"]  # the first round warms up
    assert measured.rows == {"a": {"s": [1.0, 1.0]}, "b": {"s": [2.0, 2.0]}}


def test_thoseWhoseBarIsNotResolvedGoOnAlone():
    ours, near, far = Contestant("ours", 1.0), Contestant("near", 1.05), Contestant("far", 3.0)
    bars = [versus("ours", "near", 1.0, seconds), versus("ours", "far", 1.0, seconds)]
    measured = run("key", section(ours, near, far, bars=bars, warm=False), 3)
    assert (ours.runs, near.runs, far.runs) == (ENOUGH, ENOUGH, 3)
    assert [(len(each.bar.values), each.verdict) for each in measured.bars] == [
        (ENOUGH, "met"),
        (3, "met"),
    ]


def test_whatCannotBeResolvedEnds():
    ours, peer = Contestant("ours", 1.0), Contestant("peer", 0.5, 2.0)
    measured = run("key", section(ours, peer, bars=[versus("ours", "peer", 1.0, seconds)]), 2)
    assert [each.verdict for each in measured.bars] == ["not resolved"]
    assert ours.runs == ENOUGH + 1


def test_aQuickRunDoesNotTry():
    ours, peer = Contestant("ours", 1.0), Contestant("peer", 1.0)
    run("key", section(ours, peer, bars=[versus("ours", "peer", 1.0, seconds)], warm=False), 2, 0)
    assert ours.runs == 2


def test_whoIsMissingIsNamedEverywhere():
    gone = Contestant("gone", 1.0, without="it is not installed")
    measured = run(
        "key", section(Contestant("ours", 1.0), gone, bars=[versus("ours", "gone", 1, seconds)]), 2
    )
    assert gone.runs == 0
    assert [each.verdict for each in measured.bars] == ["not measured"]
    for text in (asText(measured), asRST(MACHINE, "run", [measured])):
        assert "gone: it is not installed" in text
        assert "not measured" in text
    assert asJSON("x", MACHINE, "run", [measured])["sections"]["key"]["missing"]


def test_theFastestAmongThoseThatRan():
    def best(ours, *others):
        return [min(row["s"][0] for row in others) / ours["s"][0]]

    wanted = Wanted("", ("ours",), best, 1.0, among=("b", "c", "gone"))
    rows = {"ours": {"s": [1.0]}, "b": {"s": [3.0]}, "c": {"s": [2.0]}}
    assert wanted.bar(rows).values == (2.0,)
    assert wanted.bar({"ours": {"s": [1.0]}}).values == ()


def test_whatTheLeastThereIsToDoReaches():
    bars = [versus("ours", "peer", 4.0, seconds, bound="bare"), versus("ours", "bare", 1, seconds)]
    ours, peer = Contestant("ours", 2.0), Contestant("peer", 3.0)
    measured = run("key", section(ours, peer, Contestant("bare", 1.5), bars=bars), 2)
    first, second = measured.bars
    assert (first.middle, first.bar.bound) == (1.5, ("bare", 2.0))
    assert "≥ 4; bare: 2" in asText(measured)
    assert second.bar.bound == ("", None)
    without = run("key", section(ours, peer, bars=bars), 2)
    assert without.bars[0].bar.bound == ("bare", None)
    assert "bare:" not in asText(without)


def test_whatIsWritten():
    contestants = [Contestant("ours", 1.0, 1.2), Contestant("peer <1>", 2.0, 2.2)]
    bars = [versus("ours", "peer <1>", 1.0, seconds, stretch=1.5)]
    measured = run("key", section(*contestants, bars=bars), 5)
    text = asText(measured)
    assert "peer <1> / ours" in text
    assert "met" in text
    assert "* - peer <1>" in asRST(MACHINE, "run", [measured])
    assert summary([measured]).count("peer <1> / ours") == 1
    found = json.loads(json.dumps(asJSON("x", MACHINE, "run", [measured])))
    assert found["sections"]["key"]["rounds"]["ours"]["s"]
    picture = ET.fromstring(draw("All", [measured]))
    words = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "peer <1>" in words
    assert len([*picture.iter("{http://www.w3.org/2000/svg}rect")]) == 2


def test_aPictureOfWhatLiesFarApart():
    measured = run("key", section(Contestant("ours", 0.001), Contestant("peer", 100.0)), 2)
    assert ", logarithmic" in draw("All", [measured])


def test_theShortTableGoesBetweenItsMarks():
    page = "a\n.. begin of the short table\n\nold\n\n.. end of the short table\nz\n"
    once = inserted(page, "new\n")
    assert "old" not in once
    assert once.startswith("a\n")
    assert once.endswith("\nz\n")
    assert inserted(once, "new\n") == once
    with pytest.raises(ValueError, match="there is no"):
        inserted("a page without marks", "new")


def test_listsOfNumbersAreALineEach():
    text = dumped({"a": [0.123456789, 2], "b": {"c": [1.0]}})
    assert json.loads(text) == {"a": [0.123457, 2], "b": {"c": [1.0]}}
    assert text == '{\n "a": [0.123457, 2],\n "b": {\n  "c": [1.0]\n }\n}\n'


def test_whoFailsIsLeftOutAndTheOthersGoOn(monkeypatch, tmp_path, capsys):
    class Breaking(Contestant):
        def once(self):
            if self.runs == 2:
                raise Failed("it hangs")
            return super().once()

    @contextlib.contextmanager
    def making(setup):
        whole, broken = Contestant("ours", 1.0), Breaking("theirs", 2.0)
        yield section(whole, broken, bars=[versus("ours", "theirs", 1.0, seconds)])

    suite = types.ModuleType("benchmarks.datagram")
    suite.SECTIONS, suite.SHORT = {"one": making}, ()
    monkeypatch.setitem(sys.modules, "benchmarks.datagram", suite)
    assert main(["datagram", "--rounds", "3", "--out", str(tmp_path)]) == 1
    assert "left out: theirs: it hangs" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "datagram.json").read_text())["sections"].values()
    assert found["rounds"] == {"ours": {"s": [1, 1, 1]}}
    assert [bar["verdict"] for bar in found["bars"]] == ["not measured"]


def test_aSectionThatFailedIsNamedAndTheOthersAreMeasured(monkeypatch, tmp_path, capsys):
    @contextlib.contextmanager
    def broken(setup):
        raise Failed("the peer did not start")
        yield

    @contextlib.contextmanager
    def whole(setup):
        yield section(Contestant("ours", 1.0))

    suite = types.ModuleType("benchmarks.datagram")
    suite.SECTIONS, suite.SHORT = {"broken": broken, "whole": whole}, ("whole",)
    monkeypatch.setitem(sys.modules, "benchmarks.datagram", suite)
    assert main(["datagram", "--rounds", "1", "--out", str(tmp_path)]) == 1
    assert "broken: the peer did not start" in capsys.readouterr().out
    found = json.loads((tmp_path / "datagram.json").read_text())["sections"]
    assert found["broken"]["missing"] == {"broken": "the peer did not start"}
    assert found["whole"]["rounds"] == {"ours": {"s": [1.0]}}
    assert "broken: the peer did not start" in (tmp_path / "datagram.inc").read_text()
