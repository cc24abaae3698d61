"""
The state that released versions left on disk goes on working.

C{tests/transfer/released/makestate.py} says what is in the archives.
"""

import json
import os
import sys
import tarfile
from types import SimpleNamespace

import pytest

from connpool.transfer.send.keys import SenderKeys
from tests.helpers.processes import within
from tests.helpers.released import RELEASED, TODAY, VERSIONS, receiving
from tests.helpers.trees import publishedBelow
from tests.transfer import peer
from tests.transfer.released.makestate import (
    BLOCK,
    BLOCKS,
    DESTINATION,
    HELD,
    REFUSED,
    keyOf,
    large,
    small,
)

LACKING = sorted(set(range(BLOCKS)) - set(HELD))


@pytest.fixture(params=VERSIONS)
def left(request, tmp_path):
    """
    The directories that a version left a moment ago.
    """
    with tarfile.open(RELEASED / request.param / "state.tar.xz") as tar:
        # private directories stay private
        tar.extraction_filter = getattr(tarfile, "tar_filter", lambda member, _: member)
        tar.extractall(tmp_path)
    for path in tmp_path.rglob("*"):
        os.utime(path)
    return tmp_path


class Answered(Exception):
    """
    The receiver has a receipt already.
    """


class Sender(peer.Sender):
    """
    Ends an offer that is answered with a receipt.
    """

    def receive(self):
        frame = super().receive()
        if frame[0] == peer.RECEIPT:
            raise Answered(frame[2])
        return frame


def test_thereIsARelease():
    assert "0.1.0" in VERSIONS


@pytest.mark.parametrize("how", ["suspended", "killed"])
def test_aPartialGoesOnFromWhatIsHeld(left, how):
    name = f"partial/{how}"
    with receiving(TODAY, left / "root") as receiver:
        with receiver.connect() as connection:
            sender = peer.Sender(connection).greet()
            # another key sees nothing of it
            stream, missing = sender.offer(
                name.encode(), large(name), BLOCK, keyOf(name, "other key"), os.urandom(32)
            )
            assert missing == list(range(BLOCKS))
            sender.send(peer.CANCEL, stream, [])
        with receiver.connect() as connection:
            sender = peer.Sender(connection).greet()
            stream, missing = sender.offer(
                name.encode(), large(name), BLOCK, keyOf(name), keyOf(name, "resume key")
            )
            assert missing == LACKING
            sender.blocks(stream, large(name), BLOCK, missing)
            kind, fields = sender.commit(stream, large(name), BLOCK)
            assert (kind, fields[0]) == (peer.RECEIPT, "stored")
        assert receiver.files()[name] == large(name)


@pytest.mark.parametrize("name", ["commit/unnamed", "commit/named"])
def test_aCommitThatDiedIsFinished(left, name):
    with receiving(TODAY, left / "root") as receiver:
        before = receiver.files()
        with receiver.connect() as connection:
            sender = Sender(connection).greet()
            with pytest.raises(Answered):
                stream, missing = sender.offer(
                    name.encode(), large(name), BLOCK, keyOf(name), keyOf(name, "resume key")
                )
                sender.blocks(stream, large(name), BLOCK, missing)
                sender.commit(stream, large(name), BLOCK)
        assert receiver.files() == {**before, name: large(name)}


def test_anOldReceiptAnswers(left):
    """
    Also when a consumer has taken the file away: it does not come back.
    """
    root = left / "root"
    for name in ("put/told", "put/untold", "offer/told", "offer/untold"):
        (root / name).unlink()
    with receiving(TODAY, root) as receiver:
        before = receiver.files()
        with receiver.connect() as connection:
            sender = peer.Sender(connection).greet()
            streams = {}
            for name in ("put/told", "put/untold"):
                streams[sender.put(name.encode(), small(name), keyOf(name))] = name
            answers = sender.answers(streams)
        assert {kind for kind, _ in answers.values()} <= {peer.ACK, peer.RECEIPT}
        for name in ("offer/told", "offer/untold"):
            with receiver.connect() as connection, pytest.raises(Answered) as answered:
                Sender(connection).greet().offer(
                    name.encode(), large(name), BLOCK, keyOf(name), keyOf(name, "resume key")
                )
            status, named, size, *_ = answered.value.args[0]
            assert (status, named, size) == ("stored", name.encode(), len(large(name)))
        assert receiver.files() == before


def test_theProgramIsToldTheRest(left, tmp_path):
    told = tmp_path / "told"
    program = tmp_path / "program"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(told)!r}, 'a').write(sys.stdin.read())\n"
    )
    program.chmod(0o755)

    def names():
        lines = told.read_text().splitlines() if told.exists() else []
        return [json.loads(line)["name"] for line in lines]

    with receiving(TODAY, left / "root", "--on-received", program) as receiver:
        assert within(lambda: {"put/untold", "offer/untold"} <= set(names()))
        with receiver.connect() as connection:
            sender = peer.Sender(connection).greet()
            sender.answers([sender.put(b"new", b"x")])
        assert within(lambda: "new" in names())
    assert not {"put/told", "offer/told"} & set(names())


def test_aSecretGivesTheSameKeys(left):
    run = SenderKeys(left / "sender").begin(DESTINATION)
    status = SimpleNamespace(
        st_dev=1, st_ino=2, st_size=3, st_mtime_ns=4_000_000_000, st_ctime_ns=5_000_000_000
    )
    made = {
        "resumeKey": run.resumeKey(b"/src/a", status, b"src/a").hex(),
        "key": run.key(b"/src/a", status, b"src/a").hex(),
    }
    run.end(answered=False)
    assert made == json.loads((left / "sender/keys.json").read_text())


def test_aQueueGoesOn(left):
    """
    What waits and what was about to be moved arrives, once; what is refused is
    set aside; what was set aside, and what was moved, stays where it is.
    """
    outbox, done = left / "outbox", left / "done"
    poison = {path for path in outbox.rglob("*") if "poison" in path.parts}
    assert poison
    moved = {
        "taken": small("taken"),
        "waiting/small": small("waiting/small"),
        "waiting/there/large": large("waiting/there/large") * 20,
    }

    with receiving(TODAY, left / "inbox") as receiver:
        arguments = [
            *(f"--directory={outbox}", f"--move-to={done}", f"--to={receiver.address}"),
            *("--settle=0.05", "--interval=0.05", "--attempts=2"),
        ]
        with TODAY.service("filesend", *arguments, cwd=left) as filesend:
            filesend.waitFor(r"filesend set re\\+fused aside")
            # between the two they are in a private directory
            assert within(lambda: not publishedBelow(outbox)), filesend.output
            assert within(lambda: publishedBelow(done) == {"sent": small("sent"), **moved})
        assert receiver.files() == {"sent": small("sent"), **moved}
    assert all(path.exists() for path in poison)
    assert [p for p in outbox.rglob("*") if p.is_file() and p.read_bytes() == small("refused")]
    assert REFUSED not in publishedBelow(done)
    assert "Traceback" not in filesend.output
