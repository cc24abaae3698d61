"""
What a large file costs on the way from one process to the other: calls, not times.
"""

import sys

import pytest

from tests.helpers.processes import CHECKOUT, finished
from tests.helpers.receiving import observed

MIB = 1 << 20
SIZE_MIB = 32
COUNTED = [sys.executable, "-m", "tests.transfer.counted"]


#: Calls of functions, in Python or C, for each mebibyte: of the sender, of the receiver, and
#: those that read from a socket.  A receiver reads what is there: on a machine that does
#: other things that is less at a time.
NATIVE = (["--durability", "none"], 0, (150, 600, 12))
CLASSIC = (["--protocol", "classic"], 9, (400, 600, 12))


@pytest.mark.parametrize(("words", "code", "most"), [NATIVE, CLASSIC])
def test_aMebibyteCostsFewCalls(tmp_path, words, code, most):
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    with observed(tmp_path / "inbox", "tests.transfer.counted", "receive") as (port, counted):
        costs = []
        for size in (1, SIZE_MIB * MIB):  # the first is what is made once
            path = tmp_path / f"file-{size}"
            path.write_bytes(bytes(size))
            counted()
            to = ["--to", f"127.0.0.1:{port}", *words, str(path)]
            done = finished(*COUNTED, "send", *to, cwd=CHECKOUT, **state)
            assert done.returncode == code, done.stdout + done.stderr
            costs.append((int(done.stdout.split()[-2]), *map(int, counted())))
        assert (tmp_path / "inbox" / path.name).stat().st_size == size
    each = [(large - tiny) / SIZE_MIB for tiny, large in zip(*costs, strict=True)]
    assert all(cost <= limit for cost, limit in zip(each, most, strict=True)), each
