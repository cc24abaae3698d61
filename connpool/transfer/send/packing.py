"""
The choice of what is compressed.

Theory of operation
===================
A part of a block is compressed where a sample of it shrinks; what does not shrink is tried less
and less often.  C{auto} compresses besides only where that brings the bytes to the receiver
sooner: the time that a connection takes for its bytes is measured, and that of compressing.
A path that takes them faster than they are compressed gets them as they are.

Pure, but for the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from connpool.transfer.wire.packed import pack

__all__ = ["COMPRESS", "Packer"]

#: What may be asked for.
COMPRESS = ("auto", "always", "never")
#: Parts that are smaller are not worth a try; bytes of a sample.
_LEAST_BYTES, _SAMPLE_BYTES = 1024, 8192
#: What is not smaller than this share of what it was is sent as it is.
_WORTH = 0.9
#: Bytes that go as they are after one that does not shrink, twice as many each time, and at most.
_SKIPPED_BYTES, _MOST_SKIPPED_BYTES = 4 << 20, 64 << 20
#: Bytes that a measured speed is about, and those on the way before anything is known: buffers
#: on it take as much at once.
_MEASURED_BYTES, _UNKNOWN_BYTES = 16 << 20, 8 << 20
#: Levels of zstd, and the nanoseconds a byte on the way from which on the slower one is worth it.
_QUICK_LEVEL, _THOROUGH_LEVEL, _THOROUGH_NANOSECONDS = 3, 6, 60


class _Speed:
    """
    Seconds a byte, of late.
    """

    def __init__(self) -> None:
        self.bytes = 0.0
        self._seconds = 0.0

    def took(self, seconds: float, count: int) -> None:
        """
        Note that C{count} bytes took so long.
        """
        if self.bytes > _MEASURED_BYTES:
            self.bytes /= 2
            self._seconds /= 2
        self.bytes += count
        self._seconds += seconds

    @property
    def each(self) -> float:
        """
        Seconds a byte.
        """
        return self._seconds / self.bytes if self.bytes else 0.0


class Packer:
    """
    The compression for one connection.

    @param mode: one of L{COMPRESS}, not C{never}.
    @param seconds: monotonic.
    """

    def __init__(self, mode: str, seconds: Callable[[], float] = time.perf_counter) -> None:
        self._always = mode == "always"
        self.seconds = seconds
        #: in a row; and bytes that are sent as they are before the next try
        self._misses = self._rest = 0
        self._gone = 0
        self._way, self._work = _Speed(), _Speed()
        self._ratio = 0.5

    def tries(self) -> bool:
        """
        Tell whether what comes next is to be given to L{pack}.
        """
        if self._rest <= 0 and not self._pays():
            self._rest = _SKIPPED_BYTES
        return self._rest <= 0

    def pack(self, view: memoryview) -> bytes | None:
        """
        @return: C{view} compressed; L{None} if it is to be sent as it is.
        """
        if len(view) < _LEAST_BYTES:
            return None
        middle = max(0, len(view) - _SAMPLE_BYTES) // 2
        sample = view[middle : middle + _SAMPLE_BYTES]
        if len(pack(sample, 1)) < _WORTH * len(sample):
            slow = self._way.each * 1e9 > _THOROUGH_NANOSECONDS
            began = self.seconds()
            packed = pack(view, _THOROUGH_LEVEL if slow else _QUICK_LEVEL)
            self._work.took(self.seconds() - began, len(view))
            ratio = len(packed) / len(view)
            self._ratio = (self._ratio + ratio) / 2
            if ratio < _WORTH:
                self._misses = 0
                return packed
        self._rest = min(_SKIPPED_BYTES << self._misses, _MOST_SKIPPED_BYTES)
        self._misses = min(self._misses + 1, 8)
        return None

    def wrote(self, seconds: float, count: int) -> None:
        """
        Note that the connection took C{count} bytes in so long.
        """
        self._way.took(seconds, count)
        self._gone += count
        self._rest -= count

    def _pays(self) -> bool:
        if self._always or self._gone < _UNKNOWN_BYTES:
            return True
        return self._work.each < self._way.each * (1 - self._ratio)
