"""
Reading and hashing a file for its connection.

Theory of operation
===================
The bytes that are hashed are the bytes that are sent: both happen out of one
buffer, so a file that is written to meanwhile cannot make its digest wrong.

It begins in a thread, since nobody knows the medium: a disk, or a network file system that
hangs, delays nobody there.  Four buffers go round, some written to the connection while
others are filled.  Once reading has turned out to be quick, because the file is in the page
cache, each piece is read and hashed when it is asked for (L{Latency}): there it costs less
than the way to the thread and back.  Jobs run one after the other, since a block's hasher is
fed in order; a job never crosses the end of a block.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from connpool.errors import SourceError
from connpool.transfer.digests import Digest
from connpool.transfer.holes import MAX_HOLE_BLOCK_BYTES, feedZeros, isHole, zeroDigest
from connpool.transfer.iothreads import InThread, Latency
from connpool.transfer.send.extents import Extent

__all__ = ["Chunk", "ReadAhead", "blockDigests", "readFully", "readSome", "stdinDescriptor"]

_BUFFER_COUNT, _BUFFER_BYTES = 4, 1 << 20
#: Seconds that reading a piece may take on the reactor's thread, on average, and how many are
#: quick in a row before it is read there.
INLINE_SECONDS, CALM_READS = 0.002, 8
#: Milliseconds between two questions whether what is waited for is still wanted.
_POLL_MILLISECONDS = 100


@attrs.define(eq=False)
class Chunk:
    """
    @ivar offset: in the file.
    @ivar length: bytes of the file.
    @ivar view: these, none of a hole; L{ReadAhead.free} gives the buffer back.
    @ivar block: the block that ends with it, and
    @ivar digest: its digest; else both are L{None}.
    @ivar short: the file ended early; the rest of the bytes are zeros.
    @ivar error: why it cannot be read; the bytes are zeros.
    """

    offset: int
    length: int
    view: memoryview
    buffer: memoryview
    block: int | None = None
    digest: bytes | None = None
    short: bool = False
    error: SourceError | None = None


def readFully(fd: int, view: memoryview, offset: int) -> int:
    """
    Fill C{view} from C{offset} on.

    @return: bytes read, fewer only at the end of the file.
    @raise SourceError: it cannot be read.
    """
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as e:
            raise SourceError(f"cannot read it: {e.strerror}") from None
        if not count:
            break
        done += count
    return done


class ReadAhead:
    """
    One connection's reader.

    @param inThread: runs a function in a thread.
    """

    def __init__(self, inThread: InThread) -> None:
        self._inThread = inThread
        self._buffers = [memoryview(b"")] * _BUFFER_COUNT  # made when they are needed
        self._wanted: deque[tuple[int, int, int, int, Digest, bool, bool]] = deque()
        self._ready: deque[Chunk | Failure] = deque()
        self._waiter: Deferred[None] | None = None
        self._reading = False
        self._hasher: Any = None
        self._latency = Latency(INLINE_SECONDS, CALM_READS, inline=False)

    def start(
        self,
        fd: int,
        extent: Extent,
        blockSize: int,
        digest: Digest,
        most: int = _BUFFER_BYTES,
        pieces: Iterable[tuple[int, int, bool]] | None = None,
    ) -> None:
        """
        Read C{extent}; its chunks come after those asked for before.

        @param most: bytes of a chunk.
        @param pieces: its data and its holes, as L{piecesOf} gives them, if it may have any.
        """
        for start, end, hole in pieces or [(extent.start, extent.end, False)]:
            at = start
            while at < end:
                blockEnd = min((at // blockSize + 1) * blockSize, extent.end)
                until = end if hole else min(at + _BUFFER_BYTES, at + most, blockEnd, end)
                self._wanted.append((fd, at, until, blockSize, digest, until == blockEnd, hole))
                at = until
        self._next()

    async def chunk(self) -> Chunk:
        """
        Wait for the next chunk.
        """
        if not self._ready and not self._reading:
            if self._latency.inline:
                return self._read(self._buffers.pop(), *self._wanted.popleft())
            self._next()
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
        Use the buffer of a chunk again that was sent.
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
        if self._reading or not self._wanted or not self._buffers or self._latency.inline:
            return
        # as many as there are buffers: each trip to the thread costs
        jobs = []
        while self._wanted and self._buffers:
            jobs.append((self._buffers.pop(), self._wanted.popleft()))
        self._reading = True
        self._inThread(lambda: [self._read(buffer, *job) for buffer, job in jobs]).addBoth(
            self._done
        )

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

    def _read(
        self,
        buffer: memoryview,
        fd: int,
        at: int,
        end: int,
        blockSize: int,
        digest: Digest,
        last: bool,
        hole: bool,
    ) -> Chunk:
        """
        Fill a buffer and hash it, in a thread or not, one at a time.
        """
        buffer = buffer or memoryview(bytearray(_BUFFER_BYTES))
        view = buffer[: 0 if hole else end - at]
        chunk = Chunk(at, end - at, view, buffer)
        count = 0
        began = time.perf_counter()
        try:
            count = readFully(fd, view, at)
            chunk.short = count < len(view)
        except SourceError as e:
            chunk.error = e
        self._latency.took(time.perf_counter() - began)
        if count < len(view):
            view[count:] = bytes(len(view) - count)
        if at % blockSize == 0:
            self._hasher = digest.new()
        if hole:
            feedZeros(self._hasher, end - at)
        else:
            self._hasher.update(view)
        if last:
            chunk.block = at // blockSize
            chunk.digest = self._hasher.digest()
        return chunk


def blockDigests(
    fd: int, digest: Digest, size: int, blockSize: int, blocks: Iterable[int]
) -> list[bytes]:
    """
    Read C{blocks} of a file that has (or had) C{size} bytes.

    @raise SourceError: it cannot be read.
    """
    found = []
    buffer = memoryview(bytearray(min(blockSize, _BUFFER_BYTES)))
    for block in blocks:
        at, end = block * blockSize, min((block + 1) * blockSize, size)
        if end - at == blockSize <= MAX_HOLE_BLOCK_BYTES and isHole(fd, at, end):
            found.append(zeroDigest(digest, blockSize))
            continue
        hasher = digest.new()
        while at < end and (count := readFully(fd, buffer[: end - at], at)):
            hasher.update(buffer[:count])
            at += count
        found.append(hasher.digest())
    return found


def stdinDescriptor() -> int:
    """
    @raise SourceError: there is no standard input.
    """
    try:
        fd = sys.stdin.fileno()
    except (AttributeError, ValueError, OSError):
        raise SourceError("there is no standard input") from None
    with contextlib.suppress(OSError):
        # of a pipe: fewer trips to a thread
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _BUFFER_BYTES)
    return fd


def readSome(fd: int, most: int, wanted: Callable[[], bool]) -> bytes:
    """
    Wait for something to read, in a thread, as long as it is C{wanted}.

    @return: what there is; nothing at the end, and when it is not wanted.
    @raise SourceError: it cannot be read.
    """
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    try:
        while wanted():
            if ready.poll(_POLL_MILLISECONDS):
                return os.read(fd, most)
    except OSError as e:
        raise SourceError(f"cannot read it: {e.strerror}") from None
    return b""
