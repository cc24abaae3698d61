"""
A reader follows one file through few modules, from its first frame to its receipt.
"""

import socket
from contextlib import contextmanager

from tests.helpers.receiving import observed
from tests.transfer import peer

MIB = 1 << 20


@contextmanager
def session(tmp_path):
    """
    An open session, and the modules that were entered since the last question.
    """
    with (
        observed(tmp_path / "inbox", "tests.transfer.entered") as (port, asked),
        socket.create_connection(("127.0.0.1", port), 20) as connection,
    ):
        connection.settimeout(20)
        sender = peer.Sender(connection).greet()
        asked()
        yield sender, asked


def test_smallFileGoesThroughFewModules(tmp_path):
    with session(tmp_path) as (sender, asked):
        stream = sender.put(b"small", bytes(1000))
        assert sender.answers([stream])[stream][0] == peer.ACK
        passed = {name.removeprefix("connpool.transfer.") for name in asked()}
    assert (tmp_path / "inbox" / "small").read_bytes() == bytes(1000)
    assert "receive.smallfiles" in passed
    assert len(passed) <= 16, " ".join(sorted(passed))


def test_largeFileGoesThroughFewModules(tmp_path):
    content = bytes(3_000_000)
    with session(tmp_path) as (sender, asked):
        stream, _ = sender.offer(b"large", content, MIB)
        sender.blocks(stream, content, MIB, range(3))
        assert sender.commit(stream, content, MIB)[0] == peer.RECEIPT
        passed = {name.removeprefix("connpool.transfer.") for name in asked()}
    assert (tmp_path / "inbox" / "large").read_bytes() == content
    assert "receive.stream" in passed
    assert len(passed) <= 24, " ".join(sorted(passed))
