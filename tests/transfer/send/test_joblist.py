"""
The list of jobs forgets nothing.
"""

from twisted.internet.defer import maybeDeferred

from connpool.transfer.digests import DIGESTS
from connpool.transfer.send.joblist import JobList
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
