import os
import socket

import pytest

from connpool import regularfiles
from connpool.regularfiles import readRegular


def test_aFileAndALinkToOne(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert readRegular(tmp_path / "file") == readRegular(str(tmp_path / "link")) == b"content"


def test_nothingElse(tmp_path):
    before = len(os.listdir("/dev/fd"))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("fifo", "link", "loop", "socket", ".", "missing", "/dev/zero", "/dev/tty"):
            with pytest.raises(OSError) as caught:
                readRegular(tmp_path / name)
            assert caught.value.strerror
    assert len(os.listdir("/dev/fd")) == before


def test_notWithoutEnd(tmp_path, monkeypatch):
    monkeypatch.setattr(regularfiles, "MAX_FILE_BYTES", 10)
    (tmp_path / "file").write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="more than 10 bytes"):
        readRegular(tmp_path / "file")
