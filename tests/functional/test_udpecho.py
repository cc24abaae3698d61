"""
C{twistd udpecho} and C{connpool ping} as an operator runs them.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.helpers.processes import TWIST, TWISTD, connpool, environment, goes, running, twistd

#: twist logs JSON
ANSWERS = r"(answers on|where\": \")[ ]?[0-9.]+:(\d+)"


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    where = tmp_path_factory.mktemp("udpecho")
    with twistd("udpecho", "--listen", "udp:0:interface=127.0.0.1", cwd=where) as program:
        yield "127.0.0.1:" + program.waitFor(ANSWERS)[2]
        program.stop()


def test_ping(echo):
    result = connpool("ping", echo, "--count", "5", "--interval", "0.02")
    assert result.returncode == 0, result.stderr
    assert "5 sent, 5 received, 0 lost = 0.00 %" in result.stdout


def test_json(echo):
    result = connpool(
        "ping", echo, "--count", "50", "--interval", "0.002", "--size", "1000", "--json"
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["sent"], report["received"], report["lost"]) == (50, 50, 0)
    assert report["size"] == 1000
    rtt = report["rtt"]
    assert 0 < rtt["min"] <= rtt["p50"] <= rtt["p95"] <= rtt["max"] < 1
    assert rtt["p99"] is None


def test_nothingComesBack():
    # the discard port: nobody there
    result = connpool(
        "ping", "127.0.0.1:9", "--count", "2", "--interval", "0.05", "--timeout", "0.2"
    )
    assert result.returncode == 1
    assert "0 received, 2 lost = 100.00 %" in result.stdout
    assert "ECONNREFUSED 2" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["127.0.0.1"], 2, "has no port"),
        (["no..such-host:8641"], 7, "lookup no..such-host: no such host"),
        (["127.0.0.1:8641", "--size", "4"], 2, "12 to 65507 bytes"),
        (["127.0.0.1:8641", "--size", "65508"], 2, "12 to 65507 bytes"),
        (["127.0.0.1:8641", "--interval", "0"], 2, "invalid number of seconds value: '0'"),
        (["127.0.0.1:8641", "--count", "-1"], 2, "invalid count value: '-1'"),
    ],
)
def test_mistakes(arguments, code, says):
    result = connpool("ping", *arguments)
    assert result.returncode == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "udp:8641:::1"], "one port and key=value parts only"),
        (["--listen", "udp:port"], "the port must be a number"),
        (["--listen", "udp:8641:reusePort=maybe"], "reusePort is yes or no"),
        (["--listen", "udp:0:interface=localhost"], "'localhost' is not an address"),
        (["--listen", "udp:0:interface=192.0.2.1"], "this machine has no such address"),
        (["--listen", "udp:systemd:name=echo"], "systemd passed no such socket"),
        (["--protocol", "chargen"], "'chargen' is no datagram protocol"),
        (["--protocol", "echo:loud"], "echo: takes no arguments"),
        (["--relax", "everything"], "'everything' is not one of"),
        (["--trust", "here"], "is not a network"),
        (["--rate", "0"], "--rate: '0' is not a count"),
        (["--listen", "secured:udp:8641"], "there is no TLS over UDP"),
    ],
)
def test_aMistakeIsOneLine(tmp_path, arguments, says):
    result = subprocess.run(
        [*TWISTD, "-n", "--pidfile=", "udpecho", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert result.returncode == 1
    output = result.stdout + result.stderr
    (line,) = [line for line in output.splitlines() if "udpecho: " in line]
    assert says in line
    assert "Traceback" not in output


def test_portInUse(tmp_path, echo):
    listen = f"udp:{echo.partition(':')[2]}:interface=127.0.0.1"
    for command in (
        [*TWISTD, "-n", "--pidfile="],
        [*TWISTD, "--logfile=log"],
        TWIST,
    ):
        result = subprocess.run(
            [*command, "udpecho", "--listen", listen],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
            check=False,
        )
        assert result.returncode == 1, command
        output = result.stdout + result.stderr
        # a daemonizing twistd hands on the first hundred bytes only
        assert "Address alre" in output, command
        assert "Traceback" not in output
        assert goes(tmp_path / "twistd.pid")


def test_twist(tmp_path):
    with running(
        *TWIST, "udpecho", "--listen", "udp:0:interface=127.0.0.1", cwd=tmp_path
    ) as program:
        port = program.waitFor(ANSWERS)[2]
        assert connpool("ping", f"127.0.0.1:{port}", "--count", "1").returncode == 0


def test_bothFamiliesOnOnePort(tmp_path):
    with twistd("udpecho", "--listen", "udp:0", cwd=tmp_path) as program:
        port = program.waitFor(ANSWERS)[2]
        assert connpool("ping", f"127.0.0.1:{port}", "--count", "1").returncode == 0
        assert connpool("ping", f"[::1]:{port}", "--count", "1").returncode == 0
