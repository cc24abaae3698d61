"""
Files that grow while they are sent, such as logs: what was there at the opening is sent.

A file that grew is still the same file; whether what was sent of it is still the same, only
reading it once more can tell.
"""

from __future__ import annotations

import os
from typing import Any

from connpool.errors import SourceError
from connpool.transfer.send.extents import Extents
from connpool.transfer.send.session import SenderSession
from connpool.transfer.send.streams import LargeStream
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Data, encode

__all__ = ["prefixHolds"]

#: Bytes that are read again at once; seconds after which the receiver is given some bytes that
#: it has, or it would take us for gone, and how many.
_SLICE_BYTES, _REMIND_SECONDS, _REMIND_BYTES = 64 << 20, 5.0, 16 << 10


async def prefixHolds(
    reactor: Any, session: SenderSession, stream: LargeStream, extents: Extents
) -> bool:
    """
    Read again what was sent.

    @return: whether it is the same; not if the stream has ended.
    """
    size, count = extents.size, len(extents.digests)
    step = max(1, _SLICE_BYTES // stream.blockSize)
    reminded = reactor.seconds()
    for at in range(0, count, step):
        blocks = range(at, min(at + step, count))
        try:
            digests = await stream.readDigests(session.digest, size, blocks)
        except SourceError:
            return False
        if stream.over or digests != [extents.digests[block] for block in blocks]:
            return False
        if reactor.seconds() - reminded > _REMIND_SECONDS and stream.fd is not None:
            reminded = reactor.seconds()
            some = os.pread(stream.fd, min(_REMIND_BYTES, size), 0)
            message = Data(0)
            async with session.writer.hold(encode(Type.DATA, stream.number, message, len(some))):
                await session.writer.write(memoryview(some))
    return not stream.over
