"""
C{connpool ping} on paths that lose, delay and repeat, checked against a
calculation of the test's own over C{--samples}.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from datetime import datetime

import pytest

from connpool.commands import main
from tests.helpers.processes import CONNPOOL, connpool, environment, running, twistd
from tests.helpers.udppath import pathTo

ANSWERS = r"answers on [0-9.]+:(\d+)"


def fate(number):
    """
    Loses one in seven, doubles one in five, overtakes, and is late once.
    """
    if number == 11:
        return [0.9]
    if number % 7 == 3:
        return []
    delay = 0.03 if number % 13 == 2 else 0.002 + number % 4 * 0.001
    return [delay, delay + 0.05] if number % 5 == 0 else [delay]


def readCSV(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def readJSON(path):
    return [
        {key: "" if value is None else str(value) for key, value in json.loads(line).items()}
        for line in path.read_text().splitlines()
    ]


def nearestRank(values, percent):
    return sorted(values)[max(math.ceil(round(len(values) * percent / 100, 9)), 1) - 1]


@pytest.mark.parametrize(("suffix", "read"), [(".csv", readCSV), (".jsonl", readJSON)])
def test_figuresAreThoseOfTheSamples(tmp_path, suffix, read):
    path = tmp_path / f"samples{suffix}"
    with pathTo(fate) as target:
        result = connpool(
            "ping", target, "--count", "200", "--interval", "0.01", "--timeout", "0.5",
            "--samples", path, "--json",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    lines = read(path)
    own = [line for line in lines if line["status"] in {"received", "lost", "unsent"}]
    assert [int(line["number"]) for line in sorted(own, key=lambda n: int(n["number"]))] == list(
        range(200)
    )
    assert {line["target"] for line in lines} == {target}
    received = [line for line in lines if line["status"] == "received"]
    rtts = [float(line["rtt"]) for line in received]
    assert report["sent"] == len(own) == 200
    assert report["received"] == len(received)
    assert report["lost"] == sum(line["status"] == "lost" for line in lines) == 30
    assert report["loss"] == pytest.approx(30 / 200)
    assert report["unsent"] == 0
    assert report["late"] == sum(line["status"] == "late" for line in lines) == 1
    assert report["duplicates"] == sum(line["status"] == "duplicate" for line in lines) > 20
    numbers = [int(line["number"]) for line in received]
    overtaken = sum(any(m > n for m in numbers[:i]) for i, n in enumerate(numbers))
    assert report["reordered"] == overtaken > 0
    rtt = report["rtt"]
    assert rtt["n"] == len(rtts)
    assert (rtt["min"], rtt["max"]) == (min(rtts), max(rtts))
    assert rtt["mean"] == pytest.approx(statistics.fmean(rtts))
    assert rtt["stddev"] == pytest.approx(statistics.pstdev(rtts))
    for name, percent in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert rtt[name] == nearestRank(rtts, percent)
    assert rtt["p999"] is None  # of fewer than a thousand it would be the maximum
    jitter = 0.0
    for before, after in itertools.pairwise(rtts):  # lines are in order of arrival
        jitter += (abs(after - before) - jitter) / 16
    assert report["jitter"] == pytest.approx(jitter)
    byNumber = dict(zip(numbers, rtts, strict=True))
    ipdv = [abs(byNumber[n] - byNumber[n - 1]) for n in byNumber if n - 1 in byNumber]
    assert report["ipdv"]["mean"] == pytest.approx(statistics.fmean(ipdv))
    lateness = [float(line["lateness"]) for line in own]
    assert report["lateness"]["max"] == max(lateness)
    assert report["lateness"]["mean"] == pytest.approx(statistics.fmean(lateness))


def test_lossesAreToldWithTheirTime():
    before = time.time()
    with pathTo(lambda number: [] if number in {2, 3} else [0.0]) as target:
        result = connpool("ping", target, "--count", "6", "--interval", "0.1", "--timeout", "1")
    found = re.findall(r"^#(\d)  lost, sent at (.*)$", result.stdout, re.MULTILINE)
    assert [number for number, _ in found] == ["2", "3"]
    times = [datetime.fromisoformat(text).timestamp() for _, text in found]
    assert before < times[0] < times[1] < time.time()


def test_manyLossesShareLines():
    with pathTo(lambda number: [] if 20 <= number < 180 else [0.0]) as target:
        result = connpool("ping", target, "--count", "200", "--interval", "0.005",
                          "--timeout", "1")  # fmt: skip
    found = re.findall(r"^#(\d+)(?: to #(\d+))?  lost, sent at ", result.stdout, re.MULTILINE)
    told = [n for first, last in found for n in range(int(first), int(last or first) + 1)]
    assert told == list(range(20, 180))
    assert len(found) < 20


def test_lossesGoToStandardErrorBesideJSON():
    with pathTo(lambda number: [] if number == 1 else [0.0]) as target:
        result = connpool(
            "ping", target, "--count", "3", "--interval", "0.02", "--timeout", "1", "--json"
        )
    assert json.loads(result.stdout)["lost"] == 1
    assert "#1  lost, sent at " in result.stderr


def test_unsentIsLostWithItsReason(tmp_path):
    """
    The limited broadcast address is refused by the system to whom did not ask for it.
    """
    samples = tmp_path / "unsent.jsonl"
    result = connpool(
        "ping", "255.255.255.255:9", "--count", "3", "--interval", "0.02", "--timeout", "0.1",
        "--samples", samples,
    )  # fmt: skip
    assert result.returncode == 1
    assert "3 sent, 0 received, 3 lost = 100 %, 3 of them could not be sent" in result.stdout
    assert re.search(r"^(EACCES|ENETUNREACH) 3$", result.stdout, re.MULTILINE)
    assert re.match(
        r"255.255.255.255:9: 64 bytes every 0.02 s\n#0.*  not sent \(E\w+\) at \d{4}-",
        result.stdout,
    )
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [(line["status"], line["rtt"]) for line in lines] == [("unsent", None)] * 3
    assert {line["error"] for line in lines} <= {"EACCES", "ENETUNREACH"}


def test_ctrlCInventsNoLoss(tmp_path):
    samples = tmp_path / "samples.csv"
    with (
        pathTo(lambda number: [0.3]) as target,
        running(
            *CONNPOOL, "ping", target, "--count", "0",
            "--interval", "0.02", "--samples", samples, cwd=tmp_path,
        ) as program,
    ):  # fmt: skip
        program.waitFor(f"{target}: 64 bytes")
        samplesIn(samples, 30)
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(20) == 0
        found = program.waitFor(r"(\d+) sent, (\d+) received, (\d+) lost = 0.00 %")
    assert found[1] == found[2]
    assert found[3] == "0"
    assert samples.read_text().count(",received,") == int(found[2])


def samplesIn(path, count):
    """
    Wait until C{count} lines are written.
    """
    end = time.monotonic() + 20
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_aStalledReaderInventsNoLossEither(tmp_path):
    """
    The process is stopped for longer than the timeout: answers waited in the socket.
    """
    samples = tmp_path / "samples.csv"
    with (
        pathTo(lambda number: [0.0]) as target,
        running(
            *CONNPOOL, "ping", target, "--count", "120",
            "--interval", "0.02", "--timeout", "1", "--json", "--samples", samples,
        ) as program,
    ):  # fmt: skip
        for lines in (10, 30):
            samplesIn(samples, lines)
            program.process.send_signal(signal.SIGSTOP)
            time.sleep(1.5)
            program.process.send_signal(signal.SIGCONT)
        assert program.process.wait(20) == 0
        report = json.loads(program.output)
    assert (report["sent"], report["received"], report["lost"]) == (120, 120, 0)
    assert report["lateness"]["max"] > 1  # it was


def test_severalTargets(tmp_path):
    samples = tmp_path / "samples.csv"
    with pathTo(lambda number: [0.001]) as one, pathTo(lambda number: []) as other:
        words = [
            "ping", one, other, "127.0.0.1:9", "--count", "4", "--interval", "0.05",
            "--timeout", "1", "--samples", samples,
        ]  # fmt: skip
        result = connpool(*words)
        assert result.returncode == 1
        assert re.search(
            rf"^{one}  4 sent, 4 received, 0 lost = 0.00 %, rtt min", result.stdout, re.MULTILINE
        )
        assert f"{other}  4 sent, 0 received, 4 lost = 100.00 %" in result.stdout
        assert "127.0.0.1:9  4 sent, 0 received, 4 lost = 100.00 %, ECONNREFUSED" in result.stdout
        assert f"{other}  #0" in result.stdout
        assert len([row for row in readCSV(samples) if row["target"] == one]) == 4
        reports = json.loads(connpool(*words, "--json").stdout)
        assert [report["received"] for report in reports] == [4, 0, 0]
        assert [report["name"] for report in reports] == [one, other, "127.0.0.1:9"]
        result = connpool("ping", one, "no..such:9", "--count", "1")
        assert result.returncode == 7
        assert result.stderr == ("connpool ping: no..such:9: lookup no..such: no such host\n")
        assert "1 sent, 1 received" in result.stdout
        result = connpool("ping", one, "no..such:9", "--count", "1", "--json")
        assert [each.get("code") for each in json.loads(result.stdout)] == [None, "lookup-failed"]
        result = connpool("ping", "no..such:7", "no..such:9", "--count", "1")
        assert (result.returncode, result.stdout) == (7, "")
        assert result.stderr.count("\n") == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["127.0.0.1:9", "--plot", "path.png"], "path.png: the picture is SVG; name it .svg"),
        (["127.0.0.1:9", "--plot", "path"], "--plot path: the picture is SVG; name it .svg"),
        (["127.0.0.1:9", "--samples", "s.txt"], "--samples s.txt: name it .csv for CSV or .jsonl"),
        (["127.0.0.1:9", "127.0.0.1:9"], "127.0.0.1:9 is named twice"),
        (["127.0.0.1:9", "127.0.0.1:7", "--sweep"], "--sweep is about one target"),
        (["127.0.0.1:9", "127.0.0.1:7", "--plot", "a.svg"], "--plot is about one target"),
        (["127.0.0.1:9", "--sweep", "--samples", "a.csv"], "--sweep has no round trips to write"),
        (["127.0.0.1:9", "--sweep", "--protocol", "tcp"], "--sweep: TCP has no datagrams"),
        (["127.0.0.1:9", "--dscp", "GOLD"], "--dscp: 'GOLD' is not a DSCP; write a number"),
        (["127.0.0.1:9", "--dscp", "64"], "--dscp: '64' is not a DSCP"),
        (["127.0.0.1:9", "--key-file", "k"], "--key-file: echo has no keys; a key goes with irtt"),
        (["127.0.0.1:9", "--protocol", "irtt", "--key-file", "/no"], "key-file=/no: No such file"),
        (["127.0.0.1:9", "--protocol", "tcp", "--dscp", "EF"], "--source is"),
        (["127.0.0.1:nosuch"], "no udp service is named 'nosuch'"),
        ([f"127.0.0.1:{n}" for n in range(1, 1002)], "1001 targets; one command takes 1000"),
    ],
    ids=lambda value: " ".join(value[1:3]) if isinstance(value, list) else "",
)
def test_aMistakeIsOneLine(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    assert main(["ping", *words]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("connpool ping: ")
    assert says in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--source", "::1"], 7, "127.0.0.1 has no IPv6 address"),
        (["--source", "host"], 2, "source 'host' is not an address"),
        (["--source", "192.0.2.9"], 2, "source 192.0.2.9: this machine has no such address"),
        (["-6", "--sweep"], 7, "127.0.0.1 has no IPv6 address"),
    ],
)
def test_aMistakeThatIsFoundLater(words, code, says):
    result = connpool("ping", "127.0.0.1:9", *words)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(f"connpool ping: {says}")
    assert result.stderr.count("\n") == 1


def test_aPlotThatCannotBeWritten(tmp_path):
    """
    It is found out before anything is measured.
    """
    path = tmp_path / "no/s.svg"
    result = connpool("ping", "127.0.0.1:9", "--count", "0", "--plot", path, timeout=30)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"connpool ping: --plot: cannot write {path}: No such file or directory\n"
    )


def test_samplesThatCannotBeWritten(tmp_path):
    with pathTo(lambda number: [0.0]) as target:
        path = tmp_path / "no" / "s.csv"
        result = connpool("ping", target, "--count", "1", "--samples", path)
        assert result.returncode == 1
        assert result.stderr == (
            f"connpool ping: --samples: cannot write {path}: No such file or directory\n"
        )
        if os.path.exists("/dev/full"):
            full = tmp_path / "full.csv"
            full.symlink_to("/dev/full")
            result = connpool("ping", target, "--count", "2", "--interval", "0.02",
                              "--samples", full)  # fmt: skip
            assert result.returncode == 1
            assert "2 sent, 2 received" in result.stdout
            assert result.stderr == (
                f"connpool ping: --samples: cannot write {full}: No space left on device\n"
            )


@pytest.mark.parametrize(
    ("closed", "json_"), [([2], []), ([2], ["--json"]), ([1], []), ([0, 1, 2], [])]
)
def test_withoutStandardStreams(closed, json_):
    """
    A supervisor may have closed any of them.
    """
    with pathTo(lambda number: [] if number == 1 else [0.0]) as target:
        program = (
            f"import os, sys; [os.close(fd) for fd in {closed}]; "
            "os.execv(sys.executable, [sys.executable, '-m', 'connpool', *sys.argv[1:]])"
        )
        result = subprocess.run(
            [sys.executable, "-c", program, "ping", target, "--count", "3", "--interval", "0.02",
             "--timeout", "1", *json_],
            capture_output=True, text=True, timeout=60, env=environment(), check=False,
        )  # fmt: skip
    # a report that nobody gets is a failure
    assert result.returncode == (1 if 1 in closed else 0), result.stderr
    assert "Traceback" not in result.stderr
    if 1 not in closed:
        assert "2 received" in result.stdout or json.loads(result.stdout)["received"] == 2


def test_keysOfBothProtocols(tmp_path):
    key, wrong = tmp_path / "key", tmp_path / "wrong"
    key.write_text("sesame\n")
    wrong.write_text("open\n")
    for protocol in ("irtt", "stamp"):
        with twistd(
            "udpecho", "--listen", "udp:0:interface=127.0.0.1",
            "--protocol", f"{protocol}:key-file={key}", cwd=tmp_path,
        ) as program:  # fmt: skip
            target = "127.0.0.1:" + program.waitFor(ANSWERS)[1]
            words = ["ping", target, "--protocol", protocol, "--count", "3", "--interval", "0.05"]
            words += ["--timeout", "1"]
            for size in ([], ["--size", "300"]):
                result = connpool(*words, "--key-file", key, *size)
                assert result.returncode == 0, result.stdout + result.stderr
                assert "3 sent, 3 received" in result.stdout
            assert connpool(*words).returncode == 1
            assert connpool(*words, "--key-file", wrong).returncode == 1


def test_serviceNamesAndFamilies(tmp_path):
    """
    C{discard} is port 9, where nobody is.
    """
    result = connpool("ping", "localhost:discard", "-4", "--count", "1", "--timeout", "0.2")
    assert "127.0.0.1:9 echo" in result.stdout, result.stderr
    with twistd("udpecho", "--listen", "udp:0", cwd=tmp_path) as program:
        port = program.waitFor(ANSWERS)[1]
        for version, host in (("-4", "127.0.0.1"), ("-6", "[::1]")):
            result = connpool("ping", f"{host}:{port}", version, "--count", "1",
                              "--source", host.strip("[]"), "--interface", "lo")  # fmt: skip
            assert f"{host}:{port} echo, 64 bytes: 1 sent, 1 received" in result.stdout
