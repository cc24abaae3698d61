"""
What an engine does not have (directories, holes, older files to compare with), said to a sender.
"""

import hashlib

import pytest

from examples.s3.demo import receivers
from tests.helpers.processes import connpool

pytestmark = [pytest.mark.slow, pytest.mark.peer("weed")]


def test_aTreeWithAllOfThem(weed, tmp_path, prefix):
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    content = b"a" * 1000 + bytes(3 << 20) + b"z" * 1000
    with (tree / "holes.bin").open("wb") as file:
        file.write(content[:1000])
        file.seek(len(content) - 1000)
        file.write(content[-1000:])
    with receivers(tmp_path, weed, 1, prefix=prefix.rstrip("/")) as (receiver,):
        to = f"proxyheader:tcp:127.0.0.1:{receiver.port}"
        first = connpool("send", "--to", to, tree)
        again = connpool("send", "--to", to, "--update", tree)
        seen = connpool("send", "--to", to, "--update", "--dry-run", tree)
    assert (first.returncode, again.returncode, seen.returncode) == (0, 0, 0), first.stderr
    left = (
        "2 directories left out (empty ones, and the times of all): the receiver takes files only"
    )
    assert left in first.stdout + first.stderr
    assert "cannot tell what it has: all files were sent" in again.stdout + again.stderr
    assert "1 was there already" in again.stdout + again.stderr
    assert "cannot tell what it has: all files would be sent" in seen.stdout + seen.stderr
    assert weed.names("files", prefix) == [f"{prefix}tree/holes.bin"]
    assert weed.digest("files", f"{prefix}tree/holes.bin") == hashlib.sha256(content).digest()
