"""
The rate that an operator allows, as C{connpool send} and C{twistd filesend} keep it.
"""

import signal

from tests.helpers.processes import twistd, within
from tests.helpers.receiving import content, filerecv
from tests.helpers.trees import filesBelow


def test_theRateOfAFolderChangesWhileAFileIsSent(tmp_path):
    root, outbox, rate = tmp_path / "root", tmp_path / "outbox", tmp_path / "rate"
    root.mkdir()
    outbox.mkdir()
    rate.write_text("16K\n")
    (outbox / "large").write_bytes(content(8 << 20))
    with filerecv(root, "--min-rate=0", cwd=tmp_path) as (_, place):
        argv = [f"--directory={outbox}", f"--to={place}", "--settle=0.1", f"--bwlimit={rate}"]
        with twistd("filesend", *argv, "--interval=0.1", cwd=tmp_path) as program:
            program.waitFor("filesend watches")
            assert within(lambda: filesBelow(root / ".connpool/partials"), 20)
            rate.write_text("quick")
            program.process.send_signal(signal.SIGHUP)
            program.waitFor("not reloaded.*'quick' is not a size")
            assert not (root / "large").exists()
            rate.write_text("")
            program.process.send_signal(signal.SIGHUP)
            # at 16 KiB a second it would take eight minutes
            assert within((root / "large").exists, 20)
            assert program.stop() in {0, -15}
    assert (root / "large").read_bytes() == content(8 << 20)
