"""
Reading and hashing a file ahead of the connection, in a thread.

Theory of operation
===================
The bytes that are hashed are the bytes that are sent: both happen out of one
buffer, so a file that is written to meanwhile cannot make its digest wrong.
Four buffers go round: some are written to the connection while others are
filled. Jobs run one after the other, since a block's hasher is fed in order; a
job never crosses the end of a block.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from connpool.errors import SourceError
from connpool.transfer.digests import Digest
from connpool.transfer.native.hashing import InThread
from connpool.transfer.native.outgoing import Extent

__all__ = ["Chunk", "ReadAhead", "blockDigests", "readFully"]

_BUFFERS, _BUFFER_SIZE = 4, 1 << 20


@attrs.define(eq=False)
class Chunk:
    """
    @ivar offset: in the file.
    @ivar view: the bytes; L{ReadAhead.free} gives the buffer back.
    @ivar block: the block that ends with it, and
    @ivar digest: its digest; else both are L{None}.
    @ivar short: the file ended early; the rest of the bytes are zeros.
    """

    offset: int
    view: memoryview
    buffer: memoryview
    block: int | None = None
    digest: bytes | None = None
    short: bool = False


def readFully(fd: int, view: memoryview, offset: int) -> int:
    """
    Fill C{view} from C{offset} on.

    @return: bytes read, fewer only at the end of the file.
    """
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            break
        done += count
    return done


class ReadAhead:
    """
    One connection's reader.

    @param run: how to run a function in a thread.
    """

    def __init__(self, run: InThread) -> None:
        self._run = run
        self._buffers = [memoryview(bytearray(_BUFFER_SIZE)) for _ in range(_BUFFERS)]
        self._wanted: deque[tuple[int, int, int, int, Digest, bool]] = deque()
        self._ready: deque[Chunk | Failure] = deque()
        self._waiter: Deferred[None] | None = None
        self._reading = False
        self._hasher: Any = None

    def start(self, fd: int, extent: Extent, blockSize: int, digest: Digest) -> None:
        """
        Read C{extent}; its chunks come after those asked for before.
        """
        at = extent.start
        while at < extent.end:
            blockEnd = min((at // blockSize + 1) * blockSize, extent.end)
            end = min(at + _BUFFER_SIZE, blockEnd)
            self._wanted.append((fd, at, end, blockSize, digest, end == blockEnd))
            at = end
        self._next()

    async def chunk(self) -> Chunk:
        """
        The next chunk.

        @raise SourceError: it cannot be read.
        """
        if not self._ready:
            self._waiter = Deferred()
            await self._waiter
        found = self._ready.popleft()
        if isinstance(found, Failure):
            found.raiseException()
        assert isinstance(found, Chunk)
        return found

    def free(self, chunk: Chunk) -> None:
        """
        The chunk was sent.
        """
        self._buffers.append(chunk.buffer)
        self._next()

    async def stop(self) -> None:
        """
        Forget what was asked for; returns when no thread reads any more.
        """
        self._wanted.clear()
        while self._reading:
            self._waiter = Deferred()
            await self._waiter
        for found in self._ready:
            if isinstance(found, Chunk):
                self._buffers.append(found.buffer)
        self._ready.clear()

    def _next(self) -> None:
        if self._reading or not self._wanted or not self._buffers:
            return
        # as many as there are buffers: each trip to the thread costs
        jobs = []
        while self._wanted and self._buffers:
            jobs.append((self._buffers.pop(), self._wanted.popleft()))
        self._reading = True
        self._run(lambda: self._readAll(jobs)).addBoth(self._done)

    def _done(self, result: Any) -> None:
        self._reading = False
        if isinstance(result, Failure):
            self._ready.append(result)
        else:
            self._ready.extend(result)
        waiter, self._waiter = self._waiter, None
        self._next()
        if waiter is not None:
            waiter.callback(None)

    def _readAll(self, jobs: list[Any]) -> list[Chunk | Failure]:
        """
        In the thread, one at a time.
        """
        found: list[Chunk | Failure] = []
        for buffer, job in jobs:
            try:
                found.append(self._read(buffer, *job))
            except SourceError:
                found.append(Failure())
                # what follows it is not wanted any more
                break
        for buffer, _ in jobs[len(found) :]:
            self._buffers.append(buffer)
        if found and isinstance(found[-1], Failure):
            self._buffers.append(jobs[len(found) - 1][0])
        return found

    def _read(
        self,
        buffer: memoryview,
        fd: int,
        at: int,
        end: int,
        blockSize: int,
        digest: Digest,
        last: bool,
    ) -> Chunk:
        view = buffer[: end - at]
        try:
            count = readFully(fd, view, at)
        except OSError as e:
            raise SourceError(f"cannot read it: {e.strerror}") from None
        if count < len(view):
            view[count:] = bytes(len(view) - count)
        if at % blockSize == 0:
            self._hasher = digest.new()
        self._hasher.update(view)
        chunk = Chunk(at, view, buffer, short=count < end - at)
        if last:
            chunk.block = at // blockSize
            chunk.digest = self._hasher.digest()
        return chunk


def blockDigests(
    fd: int, digest: Digest, size: int, blockSize: int, blocks: range, buffer: memoryview
) -> list[bytes]:
    """
    Read C{blocks} of a file that has (or had) C{size} bytes.
    """
    found = []
    for block in blocks:
        hasher = digest.new()
        at, end = block * blockSize, min((block + 1) * blockSize, size)
        while at < end and (count := readFully(fd, buffer[: end - at], at)):
            hasher.update(buffer[:count])
            at += count
        found.append(hasher.digest())
    return found
