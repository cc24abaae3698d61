import os

import pytest

from connpool.services.notify import Notifier
from tests.helpers.notifysocket import NotifySocket


@pytest.mark.parametrize("address", ["{tmp}/notify", "@connpool-test-{pid}"])
def test_tellsSystemd(tmp_path, address):
    systemd = NotifySocket(address.format(tmp=tmp_path, pid=os.getpid()))
    Notifier(systemd.address).tell("READY=1", "STATUS=ok")
    assert systemd.receive() == ["READY=1", "STATUS=ok"]
    systemd.close()


def test_nobodyIsToldWhereNobodyListens(tmp_path):
    Notifier().tell("READY=1")
    Notifier(str(tmp_path / "gone")).tell("READY=1")


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({"WATCHDOG_USEC": "-1"}, 0),
    ],
)
def test_theEnvironmentIsTakenOnce(environ, interval):
    environ = {"NOTIFY_SOCKET": "/run/n", "HOME": "/", **environ}
    assert Notifier.take(environ) == Notifier("/run/n", interval)
    assert environ == {"HOME": "/"}
    assert Notifier.take(environ) == Notifier()


def test_noWatchdogWithoutASocket():
    assert Notifier.take({"WATCHDOG_USEC": "30000000"}) == Notifier()


def test_whatIsSaidStaysInItsLine(tmp_path):
    systemd = NotifySocket(tmp_path / "notify")
    Notifier(systemd.address).tell("READY=1", "STATUS=caf\udce9\nWATCHDOG=trigger")
    assert systemd.receive() == ["READY=1", "STATUS=caf\\udce9"]
    systemd.close()
