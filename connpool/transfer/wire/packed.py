"""
Content that travels compressed: C{PACKED}, one part of one block in one frame of zstd.

Each frame is compressed by itself, with no dictionary: nothing of another file, or of another
part of the same one, has an influence on how long it is.  What comes out is bounded by what the
control part says, and that by L{MAX_PACKED_BYTES}, before anything is allocated.
"""

from __future__ import annotations

import sys

from connpool.errors import ProtocolError
from connpool.transfer.wire.fields import MAX_PACKED_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Unpacker", "pack"]

#: The window is at most as large as what comes out.
_OPTIONS: dict[int, int] = {
    zstd.DecompressionParameter.window_log_max: MAX_PACKED_BYTES.bit_length() - 1
}


def pack(data: memoryview | bytes, level: int) -> bytes:
    """
    Compress a part of a block.
    """
    return zstd.compress(data, level)


class Unpacker:
    """
    Unpacks one frame, as it comes.

    @param size: bytes that come out.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._zstd = zstd.ZstdDecompressor(options=_OPTIONS)

    def feed(self, data: memoryview) -> bytes:
        """
        Take some of the frame.

        @return: what is known of the content by now.
        @raise ProtocolError: it is no such frame.
        """
        try:
            found: bytes = self._zstd.decompress(data, self._left + 1)
        except Exception as e:  # EOFError, ZstdError, ValueError
            raise ProtocolError(f"PACKED cannot be unpacked: {e}") from None
        self._left -= len(found)
        if self._left < 0 or self._zstd.unused_data:
            raise ProtocolError("PACKED has more in it than it says")
        return found

    def finish(self) -> None:
        """
        Check that all came.

        @raise ProtocolError: some is missing.
        """
        if self._left or not self._zstd.eof:
            raise ProtocolError(f"{self._left} bytes are missing in PACKED")
