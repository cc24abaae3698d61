"""
Reading and hashing a file: in a thread as long as nobody knows that it is quick.
"""

import os
from types import SimpleNamespace

import pytest
from twisted.internet import defer

from connpool.transfer.digests import digestNamed
from connpool.transfer.send import readahead
from connpool.transfer.send.extents import Extent
from connpool.transfer.send.readahead import CALM_READS, ReadAhead

MIB = 1 << 20
BLAKE3 = digestNamed("blake3")


class Medium:
    """
    A file whose reads take the time that they are told to.

    @ivar trips: how often a thread was asked.
    """

    def __init__(self, monkeypatch, path, count):
        self.now = self.seconds = 0.0
        self.trips = 0
        path.write_bytes(os.urandom(MIB) * count)
        self.content = path.read_bytes()
        self.fd = os.open(path, os.O_RDONLY)
        readNow = readahead.readFully

        def readFully(fd, view, offset):
            self.now += self.seconds
            return readNow(fd, view, offset)

        monkeypatch.setattr(readahead, "readFully", readFully)
        monkeypatch.setattr(readahead, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def inThread(self, function):
        self.trips += 1
        return defer.maybeDeferred(function)

    def read(self, reader, first, last):
        """
        Read some blocks of 1 MiB.

        @return: how often a thread was asked.
        """
        before = self.trips
        reader.start(self.fd, Extent(first * MIB, last * MIB), MIB, BLAKE3)
        for block in range(first, last):
            d = defer.Deferred.fromCoroutine(reader.chunk())
            chunk = d.result
            here = self.content[block * MIB : (block + 1) * MIB]
            assert chunk.view == here
            assert (chunk.block, chunk.digest) == (block, BLAKE3.of(here))
            reader.free(chunk)
        return self.trips - before


@pytest.fixture
def medium(monkeypatch, tmp_path):
    medium = Medium(monkeypatch, tmp_path / "file", 64)
    yield medium
    os.close(medium.fd)


def test_aFileInThePageCacheIsReadWithoutThreads(medium):
    reader = ReadAhead(medium.inThread)
    assert medium.read(reader, 0, CALM_READS) > 0
    assert medium.read(reader, CALM_READS, 64) == 0


def test_aSlowMediumIsReadAhead(medium):
    medium.seconds = 2 * readahead.INLINE_SECONDS
    reader = ReadAhead(medium.inThread)
    assert 0 < medium.read(reader, 0, 64) <= 64


def test_aMediumThatBecomesSlowIsLeftToThreads(medium):
    reader = ReadAhead(medium.inThread)
    medium.read(reader, 0, 16)
    medium.seconds = 20 * readahead.INLINE_SECONDS
    assert medium.read(reader, 16, 32) >= 3
    medium.seconds = 0.0
    medium.read(reader, 32, 32 + CALM_READS + 4)
    assert medium.read(reader, 32 + CALM_READS + 4, 64) == 0


def test_nothingIsReadThatIsNotAskedForAnyMore(medium):
    reader = ReadAhead(medium.inThread)
    medium.read(reader, 0, 16)
    reader.start(medium.fd, Extent(16 * MIB, 32 * MIB), MIB, BLAKE3)
    assert defer.Deferred.fromCoroutine(reader.stop()).called
    assert medium.read(reader, 32, 33) == 0
