"""
C{twistd udpprobe} as an operator runs it: a targets file, SIGHUP, an outage.
"""

from __future__ import annotations

import re
import signal
import time

from tests.helpers.namespaces import ip, link, namespaces
from tests.helpers.processes import TWISTD, fetch, finished, running, twistd
from tests.helpers.udppath import pathTo


def metrics(path):
    """
    Names with labels to values, from a status listener on a unix socket.
    """
    lines = [line for line in fetch(path, "/metrics").splitlines() if line.startswith("connpool_")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def value(found, what, name):
    return found.get(f'connpool_probe_{what}{{name="{name}"}}')


def until(look, seconds=20.0):
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_targetsAreReadAgain(tmp_path):
    targets, status = tmp_path / "targets", tmp_path / "status"
    with pathTo(lambda number: [0.002]) as one, pathTo(lambda number: []) as dead:
        targets.write_text(f"{one} name=one\n{dead} name=dead timeout=0.1 # no answers\n")
        with twistd(
            "udpprobe", "--targets", targets, "--interval", "0.02", "--round", "0.5",
            "--status", f"unix:{status}", cwd=tmp_path,
        ) as program:  # fmt: skip
            program.waitFor(r"one: 25 sent, 0 lost, round trip min")
            program.waitFor(r"dead: 25 sent, 25 lost, round trip none")
            found = metrics(status)
            assert value(found, "up", "one") == 1
            assert value(found, "up", "dead") == 0
            assert value(found, "rtt_p95_seconds", "one") >= 0.002
            assert value(found, "rtt_p99_seconds", "one") is None  # 25 are too few
            assert value(found, "lost_total", "dead") >= 25
            assert not [
                name for name in found if "dead" in name and ("rtt" in name or "trip" in name)
            ]
            buckets = [name for name in found if "round_trips_seconds_bucket" in name]
            assert len(buckets) == 12
            before = value(found, "sent_total", "one")

            targets.write_text(f"{one} name=one\n{one} name=two dscp=EF\nnonsense\n")
            program.process.send_signal(signal.SIGHUP)
            program.waitFor(r"not reloaded.*targets:3: 'nonsense' has no port")
            assert value(metrics(status), "up", "dead") == 0

            targets.write_text(f"{one} name=one\n{one} name=two dscp=EF\n")
            program.process.send_signal(signal.SIGHUP)
            program.waitFor("2 targets, 1 of them new or changed")
            program.waitFor(r"two: 25 sent, 0 lost")
            found = metrics(status)
            assert value(found, "sent_total", "one") > before
            assert value(found, "lost_total", "one") == 0
            assert not [name for name in found if "dead" in name]
            assert program.stop() in {0, -15}
            assert "Traceback" not in program.output


def test_aMistakeInTheFileIsOneLine(tmp_path):
    targets = tmp_path / "targets"
    targets.write_text("192.0.2.7:8641 fast\n")
    result = finished(*TWISTD, "-n", "--pidfile=", "udpprobe", "--targets", targets, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"udpprobe: --targets: {targets}:1: 'fast' is not OPTION=VALUE" in result.stderr


def test_anOutageIsLossWhileItLasts(tmp_path):
    """
    The link goes down: datagrams cannot be sent, and sessions not be opened.
    """
    status = tmp_path / "status"
    with namespaces(2) as (here, there):
        link(here, "la", there, "out")
        for side, its, own in ((here, "la", "10.9.0.1"), (there, "out", "10.9.0.2")):
            ip("-n", side.name, "addr", "add", f"{own}/24", "dev", its)
        with (
            running(*there.enter, *TWISTD, "-n", "--pidfile=", "udpecho", "--listen", "udp:8641",
                    cwd=tmp_path) as echo,
            running(*here.enter, *TWISTD, "-n", "--pidfile=", "udpprobe", "--interval", "0.05",
                    "--round", "0.5", "--timeout", "0.2", "--status", f"unix:{status}",
                    "--targets", targetsFile(tmp_path), cwd=tmp_path) as probe,
        ):  # fmt: skip
            echo.waitFor("answers on")
            for name in ("echo", "irtt"):
                probe.waitFor(rf"{name}: 10 sent, 0 lost")
            ip("-n", here.name, "link", "set", "la", "down")
            for name in ("echo", "irtt"):
                until(lambda name=name: value(metrics(status), "up", name) == 0)
            before = metrics(status)
            # that an opening is not answered takes two seconds to be known
            until(
                lambda: all(
                    value(metrics(status), "lost_total", name) > value(before, "lost_total", name)
                    for name in ("echo", "irtt")
                )
            )
            during = metrics(status)
            for name in ("echo", "irtt"):
                assert value(during, "lost_total", name) > value(before, "lost_total", name)
                assert value(during, "received_total", name) == value(
                    before, "received_total", name
                )
                assert value(during, "rtt_mean_seconds", name) is None
                for found in (before, during):
                    assert value(found, "sent_total", name) == value(
                        found, "received_total", name
                    ) + value(found, "lost_total", name)
            errors = [
                n for n in during if n.startswith("connpool_probe_errors_total") and "echo" in n
            ]
            assert re.search(r'reason="E(NETUNREACH|NETDOWN)"', " ".join(errors))
            ip("-n", here.name, "link", "set", "la", "up")
            for name in ("echo", "irtt"):
                until(lambda name=name: value(metrics(status), "up", name) == 1)
                probe.waitFor(f"{name}: answers again")
            # each round of the outage had the same trouble; it is said once
            assert probe.output.count("echo: nothing comes back") == 1
            assert "Traceback" not in probe.output


def targetsFile(tmp_path):
    path = tmp_path / "targets"
    path.write_text("10.9.0.2:8641 name=echo\n10.9.0.2:8641 name=irtt protocol=irtt\n")
    return path
