import os

from connpool.transfer.send.keys import HeldRun, SenderKeys


def test_aSaltMakesAnotherKeyAlsoAfterARestart(tmp_path):
    """
    For a file that looks the same and is not.
    """
    status = os.stat(tmp_path)
    keys = set()
    for salts in ({}, {b"/a": b"salt"}, {b"/b": b"salt"}):
        run = SenderKeys(tmp_path / "state").begin("to")
        held = HeldRun(run, salts)
        keys.add(held.key(b"/a", status, b"a"))
        assert held.begin("to") is held
        held.end(True)
        run.end(False)
    assert len(keys) == 2
