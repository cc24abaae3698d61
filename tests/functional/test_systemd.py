"""
The units in examples/systemd: what systemd thinks of them, and whether what
they start would start.
"""

import os
import shlex
import sys

import pytest

from connpool.services.compose import compose
from tests.helpers.processes import CHECKOUT, TWISTD, finished

UNITS = CHECKOUT / "examples" / "systemd"


def analyze(*words):
    return finished("systemd-analyze", "--no-pager", *words)


@pytest.mark.peer("systemd-analyze")
def test_theSandboxIsTight():
    judged = analyze("security", "--offline=true", "--threshold=20", UNITS / "connpool.service")
    assert judged.returncode == 0, judged.stdout.splitlines()[-1]


@pytest.mark.peer("systemd-analyze")
def test_systemdUnderstandsTheUnits(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "twistd").symlink_to("/bin/true")
    for name in ("connpool.service", "connpool.socket"):
        text = (UNITS / name).read_text().replace("/opt/connpool/bin", str(programs))
        (tmp_path / name).write_text(text)
    judged = analyze("verify", *sorted(tmp_path.glob("connpool.*")))
    complaints = [line for line in judged.stderr.splitlines() if "connpool" in line]
    assert (judged.returncode, complaints) == (0, [])


def test_whatTheUnitStartsIsRight(tmp_path):
    lines = (UNITS / "connpool.service").read_text().splitlines()
    commands = [line.partition("=")[2] for line in lines if line.startswith("ExecStartPre=")]
    (check,) = commands
    (start,) = [line.partition("=")[2] for line in lines if line.startswith("ExecStart=")]
    (directories,) = [line for line in lines if line.startswith("StateDirectory=")]
    for directory in directories.partition("=")[2].split():
        # systemd makes /var/lib/connpool, where both begin
        (tmp_path / directory).mkdir()
    here = tmp_path / "connpool"
    path = "/etc/connpool/services.toml"
    assert path in check
    # where ExecStartPre says that it is right, ExecStart would start it
    for command in (check, start.replace(" compose ", " compose --check ")):
        words = shlex.split(command.replace(path, str(UNITS / "services.toml")))[1:]
        ended = finished(*TWISTD, *words, cwd=here)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.endswith("2 services, no mistake found\n")
    assert os.listdir(here) == ["inbox"]


def test_theSocketHasTheNameThatTheServiceAsksFor(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    (name,) = [
        line.partition("=")[2]
        for line in (UNITS / "connpool.socket").read_text().splitlines()
        if line.startswith("FileDescriptorName=")
    ]
    composed = compose((UNITS / "services.toml").read_text())
    inbox = composed.getServiceNamed("inbox").services[0]
    (listen,) = inbox.listening._listens
    assert listen.keywords["name"] == name
