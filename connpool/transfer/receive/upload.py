"""
One large file on its way in: blocks, digests, checkpoints, commit.

Theory of operation
===================
An L{Upload} stands between the session (frames) and the reception (bytes).
Each piece of a run is written and hashed at the same time, out of one buffer;
a block is decided about when its last byte is hashed, all its writes are done
and the sender's digest is known, in whatever order these come (L{Board}).

I{The gate.}  L{Upload.close} shuts it at once: whatever arrives later, on any
connection, is dropped.  The partial is only let go of when nothing is being
written or hashed any more, so a successor never meets a write of ours.  COMMIT
does the same before it computes the root.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import DigestMismatch, ProtocolError, StoreError, TransferError
from connpool.transfer.digests import Digest, rootOf
from connpool.transfer.hashing import HashLane
from connpool.transfer.receive.blockmap import Arrival, Board
from connpool.transfer.receive.incoming import Incoming
from connpool.transfer.records import Receipt
from connpool.waiting import Waiters

__all__ = ["CHECKPOINT_BYTES", "CHECKPOINT_SECONDS", "Upload"]

#: A restart loses at most what came since the last checkpoint.
CHECKPOINT_BYTES = 64 << 20
CHECKPOINT_SECONDS = 2.0


class Upload:
    """
    @param incoming: the reception's hand on the partial.
    @param digest: of the session.
    @param lanes: makes a L{HashLane}.
    @param seconds: what time it is.
    @param repair: called with blocks that shall be sent again.
    @param failed: called once when the store fails.
    @ivar phase: C{receive}, C{verify} or C{publish}.
    """

    _log = Logger()

    def __init__(
        self,
        incoming: Incoming,
        digest: Digest,
        lanes: Callable[[], HashLane],
        seconds: Callable[[], float],
        repair: Callable[[list[int]], None],
        failed: Callable[[TransferError], None],
    ) -> None:
        self.incoming = incoming
        partial, offer = incoming.partial, incoming.offer
        self._digest = digest
        self._lanes = lanes
        self._seconds = seconds
        self._repair = repair
        self._failed = failed
        self._why = TransferError()
        self._hashing: dict[Any, HashLane] = {}
        self._busy = 0
        self._idle = Waiters()
        self._open = True
        self.phase = "receive"
        self._since = incoming.received
        self._checked = seconds()
        self._checking: Deferred[None] | None = None
        self.board = Board(offer.size, offer.blockSize, partial.digests)
        self._dropUnverified()
        self._settled = False
        partial.settled().addCallbacks(self._damaged, self._storeFailed)

    def _damaged(self, ranges: Sequence[tuple[int, int]]) -> None:
        """
        What was held before a restart is read again.
        """
        board = self.board
        self._settled = True
        blocks = [
            block
            for start, end in ranges
            for block in range(start // board.blockSize, -(-end // board.blockSize))
            if board.verified.pop(block, None) is not None
        ]
        for block in blocks:
            # the store may have dropped a part of it only
            self._discard(*board.span(block))
        self._ask(blocks)
        self._idle.wake()

    def _dropUnverified(self) -> None:
        """
        After a restart: bytes that are in no verified block come again.
        """
        partial, board = self.incoming.partial, self.board
        whole = set()
        wrong = []
        for start, end in list(partial.held):
            at = start
            while at < end:
                block = at // board.blockSize
                until = min(end, (block + 1) * board.blockSize)
                first, last = board.span(block)
                if block in board.verified and at == first and last <= until:
                    whole.add(block)
                else:
                    wrong.append((at, until))
                at = until
        for block in [b for b in board.verified if b not in whole]:
            del board.verified[block]
        for start, end in wrong:
            partial.discard(start, end)

    @property
    def durable(self) -> int:
        """
        Bytes that survive a restart.
        """
        return sum(end - start for start, end in self.incoming.partial.durable)

    # -- bytes

    def write(self, lane: Any, offset: int, view: memoryview) -> Deferred[None] | None:
        """
        Bytes of a run.

        @param lane: whose they are; one lane's bytes come in order.
        @return: L{None} when C{view} is not needed any more, or a Deferred
            that fires (and never fails) when it is not.
        @raise ProtocolError: for bytes outside the file.
        """
        waits: list[Deferred[None]] = []
        at = 0
        while at < len(view) and self._open:
            before = self.board.latest.get(lane)
            try:
                arrival, end = self.board.place(offset + at, lane, self._digest.new)
                if before is not None and before is not self.board.latest[lane]:
                    # it stays incomplete: one hasher a lane is enough
                    self._drop([before])
                piece = view[at : at + end - (offset + at)]
                if arrival is not None:
                    self._take(arrival, lane, offset + at, piece, waits)
            except ProtocolError:
                raise
            except TransferError:
                self._storeFailed(Failure())
                break
            at += len(piece)
        if not waits:
            return None
        if len(waits) == 1:
            return waits[0]
        left = len(waits)
        all_: Deferred[None] = Deferred()

        def one(_: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                all_.callback(None)

        for d in waits:
            d.addCallback(one)
        return all_

    def _take(
        self, arrival: Arrival, lane: Any, offset: int, piece: memoryview, waits: list[Any]
    ) -> None:
        arrival.next = offset + len(piece)
        arrival.busy += 1
        self._busy += 1
        try:
            written = self.incoming.write(offset, piece)
        except BaseException:
            # not written, so never complete
            arrival.next = offset
            arrival.dropped = True
            self._done(arrival)
            raise
        hashing = self._hashing.get(lane)
        if hashing is None:
            hashing = self._hashing[lane] = self._lanes()
        left = 2 if written is not None else 1
        wait: Deferred[None] | None = None
        over = False

        def one() -> None:
            nonlocal left, over
            left -= 1
            if not left:
                over = True
                if wait is not None:
                    wait.callback(None)
                self._done(arrival)

        def wrote(result: Any) -> None:
            if isinstance(result, Failure):
                arrival.dropped = True
                self._storeFailed(result)
            one()

        if written is not None:
            written.addBoth(wrote)
        hashing.update(arrival.hasher, piece, one)
        if not over:
            wait = Deferred()
            waits.append(wait)

    def _done(self, arrival: Arrival) -> None:
        """
        One piece is written and hashed.
        """
        arrival.busy -= 1
        self._busy -= 1
        if not arrival.busy:
            if arrival.dropped:
                self._forget(arrival)
            elif arrival.next == arrival.end:
                self._decide(arrival)
        if not self._busy:
            self._idle.wake()
        self.checkpoint()

    def _decide(self, arrival: Arrival) -> None:
        right = self.board.finish(arrival, arrival.hasher.digest())
        if right:
            self._verified(arrival.block)
        elif right is False:
            self._wrong([arrival.block])

    def _verified(self, block: int) -> None:
        try:
            self.incoming.partial.record(block, self.board.verified[block])
        except TransferError:
            self._storeFailed(Failure())

    def _discard(self, start: int, end: int) -> None:
        try:
            self.incoming.partial.discard(start, end)
        except TransferError:
            # it failed before: nothing of it will be trusted
            self._storeFailed(Failure())

    def _wrong(self, blocks: list[int]) -> None:
        for block in blocks:
            self._discard(*self.board.span(block))
        self._ask(blocks)

    def _ask(self, blocks: list[int]) -> None:
        # a COMMIT is answered by everything that is missing, once
        if blocks and self._open and self.phase == "receive":
            self._repair(blocks)

    def _forget(self, arrival: Arrival) -> None:
        del self.board.arriving[arrival.block]
        start = arrival.block * self.board.blockSize
        if arrival.next > start:
            self._discard(start, arrival.next)

    def _drop(self, arrivals: list[Arrival]) -> None:
        """
        Of these blocks, those that are not complete will not be finished.
        """
        for arrival in arrivals:
            if arrival.next == arrival.end or arrival.dropped:
                continue  # all of it came, and is being hashed or was decided about
            arrival.dropped = True
            if not arrival.busy:
                self._forget(arrival)

    # -- what the sender says

    def digests(self, first: int, wire: bytes) -> None:
        """
        The sender tells digests of blocks.
        """
        length = self._digest.length
        if len(wire) % length or not wire:
            raise ProtocolError(f"these are not digests of {length} bytes")
        if not self._open:
            return
        right, wrong = self.board.tell(
            first, (wire[at : at + length] for at in range(0, len(wire), length))
        )
        for block in right:
            self._verified(block)
        if wrong:
            self._wrong(wrong)

    def revoke(self, blocks: list[int]) -> None:
        """
        The sender has something else in these blocks.
        """
        if not self._open:
            return
        for block in blocks:
            if self.board.revoke(block):
                self._discard(*self.board.span(block))

    def laneLost(self, lane: Any) -> None:
        """
        A connection is gone: what it had begun comes again on another.
        """
        self._hashing.pop(lane, None)
        self.board.latest.pop(lane, None)
        self._drop([a for a in list(self.board.arriving.values()) if a.lane is lane])

    # -- ends

    async def commit(self, size: int, root: bytes) -> Receipt | None:
        """
        The sender has sent everything.

        @return: the receipt; or L{None} when blocks are wrong or missing,
            and C{repair} was called.
        @raise TransferError: it cannot be published.
        """
        board = self.board
        if board.size is None:
            if size > board.blockSize * 65_536:
                raise ProtocolError(f"{size} bytes are more than 65536 blocks")
            past = max((end for _, end in self.incoming.partial.held), default=0)
            if size < past:
                raise ProtocolError(f"{past} bytes came, COMMIT says {size}")
            board.size = size
        elif board.size != size:
            raise ProtocolError(f"{board.size} bytes were declared, COMMIT says {size}")
        self.phase = "verify"
        for arrival in list(board.arriving.values()):
            arrival.end = min(arrival.end, size)
            if arrival.next == arrival.end and not arrival.busy:
                self._decide(arrival)
        await self._quiet()
        if not self._open:
            raise self._why
        missing = board.missing()
        if missing:
            self._drop(list(board.arriving.values()))
            for block in list(board.computed):
                # complete, but the sender never told its digest
                board.computed.pop(block)
                self._discard(*board.span(block))
            self.phase = "receive"
            self._repair(missing)
            return None
        blocks = (board.verified[block] for block in range(len(board.verified)))
        if rootOf(self._digest, size, board.blockSize, blocks) != root:
            raise DigestMismatch("the blocks are right one by one, the file as a whole is not")
        self._open = False
        self.phase = "publish"
        if self._checking is not None:
            await self._after(self._checking)
        return await self.incoming.commit(root)

    async def end(self, why: TransferError, keep: bool) -> None:
        """
        Receive no more; keep what is verified or remove it.
        """
        self.close(why)
        await self._quiet()
        if self._checking is not None:
            await self._after(self._checking)
        if keep:
            await self.incoming.suspend(why)
        else:
            await self.incoming.abort(why)

    def close(self, why: TransferError) -> None:
        """
        Shut the gate: whatever arrives from now on is dropped.
        """
        if self._open:
            self._open = False
            self._why = why
            self._drop(list(self.board.arriving.values()))

    async def _quiet(self) -> None:
        """
        Until nothing is being written or hashed; and, to commit, what was held
        before a restart has been read.
        """
        while self._busy or (self._open and not self._settled):
            await self._idle.wait()

    @staticmethod
    def _after(running: Deferred[None]) -> Deferred[None]:
        d: Deferred[None] = Deferred()

        def fired(result: Any) -> Any:
            d.callback(None)
            return result

        running.addBoth(fired)
        return d

    def _storeFailed(self, failure: Failure) -> None:
        why = failure.value
        if not isinstance(why, TransferError):
            self._log.failure("the store failed", failure=failure)
            why = StoreError(f"the store failed: {type(why).__name__}")
        if self._open:
            self.close(why)
            self._failed(why)
        self._idle.wake()

    # -- checkpoints

    def checkpoint(self) -> None:
        """
        Make what came since the last checkpoint safe, if one is due.
        """
        if not self._open:
            return
        grown = self.incoming.received - self._since
        if self._checking is None and (
            grown >= CHECKPOINT_BYTES
            or (grown and self._seconds() - self._checked >= CHECKPOINT_SECONDS)
        ):
            self._since = self.incoming.received
            self._checked = self._seconds()
            self._checking = self.incoming.partial.checkpoint()
            self._checking.addBoth(self._checkpointed)

    def _checkpointed(self, result: Any) -> None:
        self._checking = None
        if isinstance(result, Failure):
            self._storeFailed(result)
