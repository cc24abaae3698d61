"""
The list of jobs forgets nothing.
"""

import os

from twisted.internet.defer import maybeDeferred

from connpool.transfer.digests import DIGESTS
from connpool.transfer.send.joblist import AbsolutePaths, JobList
from connpool.transfer.send.keys import SenderKeys
from connpool.transfer.send.walking import Walk
from tests.helpers.waiting import successResultOf

MIB = 1 << 20


def test_whatIsBegunAgainAndDoesNotFitIntoABatchIsKept(tmp_path):
    (tmp_path / "files").mkdir()
    for number in range(8):
        (tmp_path / "files" / str(number)).write_bytes(bytes(MIB // 2))
    run = SenderKeys(tmp_path / "state").begin("destination")
    found = JobList(Walk([str(tmp_path / "files")], "stdin"), run, maybeDeferred, None)

    def jobs():
        taken = []
        while not found.filesDone:
            successResultOf(found.fill(MIB, DIGESTS["sha256"]))
            taken += [found.small.popleft().job for _ in range(len(found.small))]
        return taken

    first = jobs()
    assert len(first) == 8
    for job in first:
        found.again(job)
    assert jobs() == first
    run.end(True)


def test_absolutePaths(tmp_path, monkeypatch):
    """
    Those of C{os.path.abspath}, whatever came before.
    """
    monkeypatch.chdir(tmp_path)
    paths = AbsolutePaths()
    given = [
        "a",
        "d/a",
        "d/b",
        "./d/c",
        "d//e",
        "d/../f",
        "d/..",
        "d/.",
        "d/",
        "/",
        "/etc",
        "//x",
        "///x",
    ]
    given += [f"{tmp_path}/a", f"{tmp_path}/d/a", "d/b", "../x", "d/\udcff", ""]
    for path in [*given, *reversed(given)]:
        assert paths.of(path) == os.fsencode(os.path.abspath(path)), path
