"""
Files with holes between real processes, over real file systems.
"""

import json
import os

import pytest

from connpool.transfer import holes
from tests.helpers.processes import CONNPOOL, connpool, running, within
from tests.helpers.receiving import Receiving, content
from tests.helpers.released import TODAY, VERSIONS, receiving, released
from tests.helpers.trees import checkpointed
from tests.transfer.test_holes import sparse

MIB, TIB = 1 << 20, 1 << 40


def islands(path, count, size=MIB):
    """
    A TiB with data in C{count} places.
    """
    with path.open("wb") as file:
        file.truncate(TIB)
        for number in range(count):
            os.pwrite(file.fileno(), content(size, number), number * (TIB // count) + 12_345)
        if not holes.isHole(file.fileno(), TIB - MIB, TIB):
            pytest.skip("the file system of the tests makes no holes")


def same(path, other):
    """
    Tell whether two files have the same data in the same places.
    """
    with path.open("rb") as one, other.open("rb") as two:
        fds = one.fileno(), two.fileno()
        ranges = [list(holes.dataRanges(fd, 0, TIB)) for fd in fds]
        return path.stat().st_size == other.stat().st_size and all(
            os.pread(fds[0], end - start, start) == os.pread(fds[1], end - start, start)
            for start, end in [*ranges[0], *ranges[1]]
        )


@pytest.mark.parametrize("jobs", [1, 3])
def test_aTebibyteWithTenMebibytes(tmp_path, jobs):
    islands(tmp_path / "disk.img", 10)
    with Receiving(tmp_path) as there:
        done = there.send("--json", "--jobs", jobs, tmp_path / "disk.img")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        (line,) = [line for line in lines if line["status"] == "stored"]
        assert TIB - 12 * MIB < line["receipt"]["holeBytes"] < TIB - 10 * MIB
        stored = there.root / "disk.img"
        assert same(tmp_path / "disk.img", stored)
        assert stored.stat().st_blocks * 512 < 12 * MIB
        # the same again: compared, and not stored twice
        again = there.send(tmp_path / "disk.img")
        assert again.returncode == 0, again.stderr
        assert "1 was there already" in again.stderr
        # by somebody else: the content that is there is compared
        other = {"XDG_STATE_HOME": str(tmp_path / "other")}
        again = connpool("send", "--to", there.place, tmp_path / "disk.img", **other)
        assert again.returncode == 0, again.stderr
        assert "1 was there already" in again.stderr
        assert [path.name for path in there.root.iterdir() if path.is_file()] == ["disk.img"]


def test_bothWereKilled(tmp_path):
    """
    Blocks that are holes are held again, and are not read: that would take minutes.
    """
    path, there = tmp_path / "disk.img", Receiving(tmp_path, "--max-rate=10M")
    islands(path, 60)
    command = [*CONNPOOL, "send", "--to", there.place, "--durability", "none", path]
    with there, running(*command, XDG_STATE_HOME=str(tmp_path / "state")) as sender:
        assert within(lambda: there.written() > 20 * MIB and checkpointed(there.root))
        sender.process.kill()
        there.kill()
        there.options = ()
        there.__enter__()
        done = there.send(path)
        assert done.returncode == 0, done.stderr
        assert "of it held before" in done.stderr
        assert same(path, there.root / "disk.img")
        with (there.root / "disk.img").open("rb") as file:
            ranges = list(holes.dataRanges(file.fileno(), 0, TIB))
        large = [(start, end) for start, end in ranges if end - start > 1.1 * MIB]
        assert sum(end - start for start, end in ranges) < 62 * MIB, (large, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["released sends", "released receives"])
@pytest.mark.parametrize("version", VERSIONS)
def test_aReleasedVersionSendsZeros(tmp_path, version, way):
    wanted = sparse(tmp_path / "f", 9 * MIB, at12345=b"x" * 5000)
    old = released(version)
    sender, receiver = (old, TODAY) if way == "released sends" else (TODAY, old)
    with receiving(receiver, tmp_path / "root") as there:
        done = sender.send(
            "--to", there.address, "--durability", "none", tmp_path / "f", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert there.files() == {"f": wanted}
