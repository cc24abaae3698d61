"""
Standard input on its way out: of unknown size, and read only once.
"""

from __future__ import annotations

from functools import partial

from connpool.errors import SourceError, TooLarge
from connpool.transfer.digests import MAX_BLOCKS, rootOf
from connpool.transfer.send.readahead import readSome
from connpool.transfer.send.streams import Exchange, LargeStream
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import Data, Digests, encode

__all__ = ["sendStandardInput"]


async def sendStandardInput(exchange: Exchange, stream: LargeStream, fd: int) -> None:
    """
    Send what comes, when it comes, until the end of input; what cannot be
    read again is not repaired.
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
            await writer.turn()
            writer.spend(len(data))
            async with writer.hold(encode(Type.DATA, stream.number, Data(at), len(data))):
                await writer.write(memoryview(data))
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
