import subprocess
import sys

import pytest

from connpool.errors import StartFailed
from connpool.services.startfailure import failStart


def test_whoTriesAgainForLongLeavesOneHook(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: seen.append(error))
    for _ in range(5000):
        with pytest.raises(StartFailed, match="no luck"):
            failStart("no luck")
    sys.excepthook(ZeroDivisionError, ZeroDivisionError(), None)
    assert [kind for kind, *_ in seen] == [ZeroDivisionError]


def test_oneLineAndExitCode1():
    program = "from connpool.services.startfailure import failStart; failStart('no luck')"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "no luck\n")
