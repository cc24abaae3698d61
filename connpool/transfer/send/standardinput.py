"""
Standard input on its way out: of unknown size, and read only once.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from connpool.errors import SourceError, TooLarge
from connpool.transfer.digests import MAX_BLOCKS, rootOf
from connpool.transfer.send.readahead import readSome
from connpool.transfer.send.streams import Exchange, LargeStream
from connpool.transfer.wire.content import Packed
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Data, Digests, encode

if TYPE_CHECKING:
    from connpool.transfer.send.packing import Packer

__all__ = ["sendStandardInput"]


async def sendStandardInput(
    exchange: Exchange, stream: LargeStream, fd: int, packer: Packer | None = None
) -> None:
    """
    Send what comes, when it comes, until the end of input; what cannot be
    read again is not repaired.

    @param packer: compresses what shrinks; L{None} for nothing.
    """
    session, writer = exchange.session, exchange.session.writer
    while not stream.accepted and not stream.over:
        await exchange.event()
    hasher = session.digest.new()
    digests: list[bytes] = []
    at = 0
    while not stream.over:
        stream.job.spent = True
        room = min(writer.portion, 1 << 20, stream.blockSize - at % stream.blockSize)
        try:
            data = await exchange.inThread(partial(readSome, fd, room, lambda: not stream.over))
        except SourceError as e:
            stream.giveUp(e, keep=False)
            return
        if stream.over:
            return
        if data:
            if at // stream.blockSize >= MAX_BLOCKS:
                why = TooLarge(f"standard input is longer than {at} bytes")
                stream.giveUp(why, keep=False)
                return
            hasher.update(data)
            packed = None
            if packer is not None and packer.tries():
                packed = packer.pack(memoryview(data))
            began = 0.0 if packer is None else packer.seconds()
            await writer.turn()
            if packed is None:
                sent, head = data, encode(Type.DATA, stream.number, Data(at), len(data))
            else:
                sent = packed
                head = encode(Type.PACKED, stream.number, Packed(at, len(data)), len(packed))
                exchange.reporter.saved(stream.job, len(data) - len(packed))
            writer.spend(len(sent))
            async with writer.hold(head):
                await writer.write(memoryview(sent))
            if packer is not None:
                packer.wrote(packer.seconds() - began, len(sent))
            if stream.over:
                return
            at += len(data)
            exchange.reporter.sent(stream.job, len(data))
        whole = at % stream.blockSize == 0
        if (data and whole) or (not data and not whole):
            digest = hasher.digest()
            hasher = session.digest.new()
            message = Digests(len(digests))
            digests.append(digest)
            writer.send(encode(Type.DIGESTS, stream.number, message, len(digest)), digest)
        if not data:
            stream.commit(at, rootOf(session.digest, at, stream.blockSize, digests))
            exchange.reporter.phase(stream.job, "publish", "")
            return
