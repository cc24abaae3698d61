"""
Files that somebody writes to while they are sent.
"""

import os

import pytest

from connpool.errors import ChangedSource
from connpool.transfer.send import readahead, source
from connpool.transfer.send.request import SendRequest
from connpool.transfer.wire.frames import Type
from tests.transfer.test_sessions import content, frames

BLOCK = 4096
PLAIN = SendRequest(durability="none", blockSize=BLOCK, extentBytes=2 * BLOCK, compress="never")
GROWING = SendRequest(
    durability="none", blockSize=BLOCK, extentBytes=2 * BLOCK, compress="never", growing=True
)


@pytest.fixture
def log(source, smallFiles):
    path = source / "log"
    path.write_bytes(content(50 * BLOCK + 99))
    return path


class Writer:
    """
    Does something to a file each time that a part of it was read.
    """

    def __init__(self, monkeypatch, act):
        self.reads = 0
        plain = readahead.readFully

        def readFully(fd, view, offset):
            count = plain(fd, view, offset)
            self.reads += 1
            act(self.reads)
            return count

        monkeypatch.setattr(readahead, "readFully", readFully)


def append(path, data=b"one more line\n"):
    with path.open("ab") as file:
        file.write(data)


def test_aLogThatGrows(world, log, monkeypatch):
    before = log.read_bytes()
    Writer(monkeypatch, lambda _: append(log))
    report = world.send(log, request=GROWING)
    assert report.exitCode == 0
    assert world.store.files == {"log": before}
    (outcome,) = report.outcomes
    assert outcome.grew
    assert outcome.receipt.size == len(before) < log.stat().st_size
    assert frames(world.wires[0], 0).count(Type.OFFER) == 1
    # nothing but what every receiver knows
    assert max(frames(world.wires[0], 0)) <= Type.DIRECTORY


def test_withoutTheOptionItIsBegunAgain(world, log, monkeypatch):
    Writer(monkeypatch, lambda _: append(log))
    began = world.clock.seconds()
    report = world.send(log, request=PLAIN)
    assert report.exitCode == 8
    assert "3 times" in str(report.outcomes[0].error)
    assert not report.outcomes[0].grew
    # the tries are apart
    assert world.clock.seconds() - began >= 1.5
    assert frames(world.wires[0], 0).count(Type.OFFER) == 3


def test_aWriterThatIsDoneSoon(world, log, monkeypatch):
    """
    It writes for a second: the second try is too early, the third is not.
    """
    Writer(monkeypatch, lambda _: world.clock.seconds() < 1.0 and append(log))
    report = world.send(log, request=PLAIN)
    assert report.exitCode == 0
    assert world.store.files["log"] == log.read_bytes()


def test_aPrefixThatChanged(world, log, monkeypatch):
    """
    What was sent is not what is there now: it is begun again, with what it has become.
    """

    def change(reads):
        if reads == 30:
            append(log)
            with log.open("r+b") as file:
                file.write(b"!!")

    Writer(monkeypatch, change)
    report = world.send(log, request=GROWING)
    assert report.exitCode == 0
    assert world.store.files == {"log": log.read_bytes()}
    assert frames(world.wires[0], 0).count(Type.OFFER) == 2


def test_aLogThatIsCutOff(world, log, monkeypatch):
    Writer(monkeypatch, lambda reads: reads == 3 and os.truncate(log, 10 * BLOCK))
    report = world.send(log, request=GROWING)
    assert report.exitCode == 0
    assert world.store.files == {"log": log.read_bytes()}


def test_aLogThatIsRotated(world, log, monkeypatch):
    before = log.read_bytes()

    def rotate(reads):
        if reads == 5:
            append(log)
            log.rename(log.with_name("log.1"))
            log.write_bytes(b"new")

    Writer(monkeypatch, rotate)
    report = world.send(log, request=GROWING)
    assert report.exitCode == 0
    assert world.store.files == {"log": before}


def test_aConnectionThatBreaks(world, log, monkeypatch):
    """
    The size is that of the first opening, also for the connection that goes on.
    """
    before = log.read_bytes()
    Writer(monkeypatch, lambda _: append(log))
    world.plan = [{"cut": (0, 90_000, "rst")}]
    report = world.send(log, request=GROWING)
    assert report.exitCode == 0
    assert report.connections == 2
    assert world.store.files == {"log": before}
    assert sum(map(len, world.wires[1].log[0])) < 140_000


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_smallOnes(tmp_path, size, monkeypatch):
    path = tmp_path / "log"
    path.write_bytes(content(size))
    fd = os.open(path, os.O_RDONLY)
    status = os.fstat(fd)
    plain = os.read

    def read(*arguments):
        data = plain(*arguments)
        append(path)
        return data

    monkeypatch.setattr(source.os, "read", read)
    if size:
        assert source.readWhole(fd, status, 2000, growing=True) == content(size)
        os.lseek(fd, 0, os.SEEK_SET)
    with pytest.raises(ChangedSource):
        source.readWhole(fd, status, 2000)
    os.close(fd)


def test_aSmallOneWhosePrefixChanged(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_bytes(b"first line\n")
    fd = os.open(path, os.O_RDONLY)
    status = os.fstat(fd)
    path.write_bytes(b"other line\n and more")
    assert source.readWhole(fd, status, 2000, growing=True) == b"other line\n"
    os.lseek(fd, 0, os.SEEK_SET)
    plain = os.read

    def read(*arguments):
        data = plain(*arguments)
        path.write_bytes(b"third line\n and so on")
        return data

    monkeypatch.setattr(source.os, "read", read)
    with pytest.raises(ChangedSource):
        source.readWhole(fd, status, 2000, growing=True)
    os.close(fd)
