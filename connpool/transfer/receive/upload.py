"""
The bytes of one large file on their way in, block by block.

Theory of operation
===================
An L{Upload} stands between a stream (frames) and the reception (bytes).
Each piece of C{DATA} is written and hashed out of one buffer, the digest on the spot, while
the bytes are in the processor's cache; a block is decided about when all its writes are
done and the sender's digest is known, in whatever order these come.

Bytes of a block arrive in order over one I{lane} (a connection), one block a lane at a
time.  A block goes

    absent -> arriving -> complete -> verified

and back to absent when its digest is wrong or its lane ends.  What does not continue a
block that is arriving is dropped without complaint: nothing is lost by it, because the
sender's C{COMMIT} is answered by the list of what is missing.  A verified block never
changes, whatever arrives; only L{Upload.revoke} takes it back.

Whether bytes are still taken is known by the stream alone, and asked of it
(L{Owner}).  The partial is only let go of when nothing is being written any more, so a
successor never meets a write of ours.  A C{COMMIT} waits for the same before the root is
computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import DigestMismatch, ProtocolError, StoreError, TooLarge, TransferError
from connpool.transfer.digests import MAX_BLOCKS, Digest, blockCount, rootOf
from connpool.transfer.holes import KnownDigest, feedZeros, verifyHole, zeroDigest
from connpool.transfer.receive.reception import Incoming
from connpool.transfer.stores.ranges import blockRange
from connpool.waiting import Waiters

__all__ = ["DIGESTS_AHEAD", "Arrival", "Blockmap", "Owner", "Upload"]

#: Digests that are kept of blocks whose bytes have not begun to come.
DIGESTS_AHEAD = 1024


@attrs.define(eq=False)
class Arrival:
    """
    A block on its way.

    @ivar lane: the connection it comes by.
    @ivar block: its number.
    @ivar next: the offset in the file that comes next.
    @ivar end: the offset at which the block ends, as far as is known.
    @ivar hasher: computes its digest.
    @ivar busy: pieces being written or hashed.
    @ivar dropped: its bytes shall be forgotten once nothing is busy.
    """

    lane: Any
    block: int
    next: int
    end: int
    hasher: Any
    busy: int = 0
    dropped: bool = False


class Blockmap:
    """
    The blocks of one file: absent, arriving, complete or verified.

    Pure: no store, no clock, no hashing.  Costs O(1) a piece.

    @ivar size: bytes of the file, L{None} until known.
    @ivar verified: digests of the blocks that are right: those of the partial, which alone
        adds and removes them.
    @ivar expected: digests the sender told for blocks that are not verified.
    @ivar computed: digests of complete blocks that the sender told none for.
    """

    def __init__(self, size: int | None, blockSize: int, verified: Mapping[int, bytes]) -> None:
        if blockSize & (blockSize - 1):
            raise ProtocolError(f"the block size {blockSize} is not a power of two")
        if size is not None and blockCount(size, blockSize) > MAX_BLOCKS:
            raise ProtocolError(f"a block size of {blockSize} makes more than {MAX_BLOCKS} blocks")
        self.size = size
        self.blockSize = blockSize
        self.verified = verified
        self.expected: dict[int, bytes] = {}
        self.computed: dict[int, bytes] = {}
        self.arriving: dict[int, Arrival] = {}
        #: the block that came last by each lane
        self.latest: dict[Any, Arrival] = {}

    @property
    def most(self) -> int:
        """
        The number of blocks that the file has, at the most.
        """
        return MAX_BLOCKS if self.size is None else blockCount(self.size, self.blockSize)

    def place(self, offset: int, lane: Any, newHasher: Any) -> tuple[Arrival | None, int]:
        """
        Find the block of the bytes at C{offset}.

        @return: the arrival they continue or begin, or L{None} to drop them;
            and the offset at which the block ends.
        @raise ProtocolError: outside the file.
        """
        block, within = divmod(offset, self.blockSize)
        end = self.span(block)[1]
        if offset >= end or block >= MAX_BLOCKS:
            if self.size is None:
                raise TooLarge(
                    f"{MAX_BLOCKS} blocks of {self.blockSize} bytes are all there can be"
                )
            raise ProtocolError(f"offset {offset} is not in a file of {self.size} bytes")
        arrival = self.arriving.get(block)
        if arrival is None:
            if within or not self.absent(block):
                return None, end
            arrival = self.arriving[block] = Arrival(lane, block, offset, end, newHasher())
            self.latest[lane] = arrival
        elif arrival.lane is not lane or arrival.next != offset or arrival.dropped:
            return None, end
        return arrival, end

    def absent(self, block: int) -> bool:
        """
        Tell whether nothing is there of C{block}.
        """
        return not (block in self.verified or block in self.computed or block in self.arriving)

    def span(self, block: int) -> tuple[int, int]:
        """
        The beginning and the end of a block in the file.
        """
        return blockRange(block, self.blockSize, self.size)

    def finish(self, arrival: Arrival, digest: bytes) -> bool | None:
        """
        Decide about a block that is complete and written.

        @return: whether it is right; L{None} while the sender has not told.
        """
        del self.arriving[arrival.block]
        expected = self.expected.pop(arrival.block, None)
        if expected is None:
            self.computed[arrival.block] = digest
            return None
        return expected == digest

    def tell(self, first: int, digests: Iterable[bytes]) -> tuple[dict[int, bytes], list[int]]:
        """
        Take digests that the sender tells.

        @return: the complete blocks that are right by them, with their digests, and the
            wrong ones.
        @raise ProtocolError: outside the file.
        """
        right: dict[int, bytes] = {}
        wrong = []
        for block, digest in enumerate(digests, first):
            if block >= MAX_BLOCKS or (self.size is not None and self.span(block)[0] >= self.size):
                raise ProtocolError(f"there is no block {block} in this file")
            if block in self.verified:
                continue
            computed = self.computed.pop(block, None)
            if computed is None:
                if block in self.arriving or len(self.expected) < DIGESTS_AHEAD:
                    self.expected[block] = digest
            elif computed == digest:
                right[block] = digest
            else:
                wrong.append(block)
        return right, wrong

    def revoke(self, block: int) -> bool:
        """
        Forget a block: the sender's file has something else there.

        @return: whether bytes of it are held and must be forgotten.
        """
        self.expected.pop(block, None)
        return self.computed.pop(block, None) is not None or block in self.verified

    def missing(self) -> list[int]:
        """
        The blocks that are not verified; the size must be known.
        """
        assert self.size is not None
        count = blockCount(self.size, self.blockSize)
        if len(self.verified) == count:
            return []
        return [block for block in range(count) if block not in self.verified]


class Owner(Protocol):
    """
    The stream that the bytes come by.
    """

    @property
    def receiving(self) -> bool:
        """
        Tell whether it is the sender's turn.
        """

    @property
    def over(self) -> bool:
        """
        Tell whether nothing more of the file is taken.
        """

    def repair(self, blocks: list[int]) -> None:
        """
        Ask for blocks once more.
        """

    def storeFailed(self, why: TransferError) -> None:
        """
        The store failed.
        """


class Upload:
    """
    The bytes of one large file.

    @param digest: of the session.
    @ivar incoming: the reception's hand on the partial.
    @ivar blockmap: its blocks.
    """

    _log = Logger()

    def __init__(
        self,
        incoming: Incoming,
        digest: Digest,
        owner: Owner,
    ) -> None:
        self.incoming = incoming
        partial, offer = incoming.partial, incoming.offer
        self._digest = digest
        self._owner = owner
        self._busy = 0
        self._idle = Waiters()
        self.blockmap = Blockmap(offer.size, offer.blockSize, partial.digests)
        self._dropUnverified()
        self._settled = False
        partial.settled().addCallbacks(self._damaged, self._storeFailed)

    def _damaged(self, ranges: Sequence[tuple[int, int]]) -> None:
        """
        Ask for blocks that were held before a restart and are damaged.
        """
        blockmap = self.blockmap
        self._settled = True
        blocks = [
            block
            for start, end in ranges
            for block in range(start // blockmap.blockSize, -(-end // blockmap.blockSize))
            # else it comes again already
            if blockmap.absent(block)
        ]
        for block in blocks:
            # the store may have dropped a part of it only
            self._discard(*blockmap.span(block))
        self._ask(blocks)
        self._idle.wake()

    def _dropUnverified(self) -> None:
        """
        Forget bytes that are in no verified block, after a restart: they come again.
        """
        partial, blockmap = self.incoming.partial, self.blockmap
        whole = set()
        wrong = []
        for start, end in list(partial.held):
            at = start
            while at < end:
                block = at // blockmap.blockSize
                until = min(end, (block + 1) * blockmap.blockSize)
                first, last = blockmap.span(block)
                if block in blockmap.verified and at == first and last <= until:
                    whole.add(block)
                else:
                    wrong.append((at, until))
                at = until
        wrong += [blockmap.span(block) for block in blockmap.verified if block not in whole]
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
        Take bytes of C{DATA}.

        @param lane: the connection they came by; those of one come in order.
        @return: L{None} when C{view} is not needed any more, or a Deferred
            that fires (and never fails) when it is not.
        @raise ProtocolError: for bytes outside the file.
        """
        return self._piecewise(lane, offset, len(view), view)

    def skip(self, lane: Any, start: int, end: int) -> Deferred[None] | None:
        """
        Take a hole: whole blocks of full length, or a part of one block.

        @param lane: as in L{write}.
        @return: L{None}, or a Deferred that fires (and never fails) when it is there.
        @raise ProtocolError: for any other range.
        """
        verifyHole(start, end, self.blockmap.blockSize, self.blockmap.size)
        return self._piecewise(lane, start, end - start, None)

    def _piecewise(
        self, lane: Any, offset: int, length: int, view: memoryview | None
    ) -> Deferred[None] | None:
        """
        @param view: the bytes; L{None} for zeros that nobody wrote.
        """
        waits: list[Deferred[None]] = []
        at = 0
        while at < length and self._owner.receiving:
            before = self.blockmap.latest.get(lane)
            try:
                arrival, end = self.blockmap.place(offset + at, lane, self._digest.new)
                if before is not None and before is not self.blockmap.latest[lane]:
                    # it stays incomplete: one hasher a lane is enough
                    self._drop([before])
                count = min(length - at, end - (offset + at))
                if arrival is not None:
                    piece = None if view is None else view[at : at + count]
                    wait = self._take(arrival, offset + at, piece, count)
                    if wait is not None:
                        waits.append(wait)
            except ProtocolError:
                raise
            except TransferError:
                self._storeFailed(Failure())
                break
            at += count
        if len(waits) < 2:
            return waits[0] if waits else None
        return gatherResults(waits).addCallback(lambda _: None)

    def _take(
        self, arrival: Arrival, offset: int, piece: memoryview | None, count: int
    ) -> Deferred[None] | None:
        arrival.next = offset + count
        arrival.busy += 1
        self._busy += 1
        try:
            written = (
                self.incoming.skip(offset, offset + count)
                if piece is None
                else self.incoming.write(offset, piece)
            )
        except BaseException:
            # not written, so never complete
            arrival.next = offset
            arrival.dropped = True
            self._done(arrival)
            raise
        if piece is not None:
            arrival.hasher.update(piece)
        elif count < self.blockmap.blockSize:
            feedZeros(arrival.hasher, count)
        else:  # nobody need say its digest
            zero = zeroDigest(self._digest, count)
            arrival.hasher = KnownDigest(zero)
            self.blockmap.expected[arrival.block] = zero
        if written is None:
            self._done(arrival)
            return None

        def wrote(result: Any) -> None:
            if isinstance(result, Failure):
                arrival.dropped = True
                self._storeFailed(result)
            self._done(arrival)

        return written.addBoth(wrote)

    def _done(self, arrival: Arrival) -> None:
        """
        Count a piece that is written.
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
        digest = arrival.hasher.digest()
        right = self.blockmap.finish(arrival, digest)
        if right:
            self._verified(arrival.block, digest)
        elif right is False:
            self._wrong([arrival.block])

    def _verified(self, block: int, digest: bytes) -> None:
        try:
            self.incoming.partial.record(block, digest)
        except TransferError:
            self._storeFailed(Failure())

    def _discard(self, start: int, end: int) -> None:
        try:
            more = self.incoming.partial.discard(start, end)
        except TransferError:
            # an earlier failure: nothing of it will be trusted
            self._storeFailed(Failure())
            return
        step = self.blockmap.blockSize
        self._ask([block for at, to in more for block in range(at // step, -(-to // step))])

    def _wrong(self, blocks: list[int]) -> None:
        for block in blocks:
            self._discard(*self.blockmap.span(block))
        self._ask(blocks)

    def _ask(self, blocks: list[int]) -> None:
        # a COMMIT is answered by everything that is missing, once
        if blocks and self._owner.receiving:
            self._owner.repair(blocks)

    def _forget(self, arrival: Arrival) -> None:
        del self.blockmap.arriving[arrival.block]
        start = arrival.block * self.blockmap.blockSize
        if arrival.next > start:
            self._discard(start, arrival.next)

    def _drop(self, arrivals: Iterable[Arrival] | None = None) -> None:
        """
        Give up the blocks among these that are not complete.

        @param arrivals: all unless given.
        """
        for arrival in list(self.blockmap.arriving.values() if arrivals is None else arrivals):
            if arrival.next == arrival.end or arrival.dropped:
                continue  # all of it came, and is being written or was decided about
            arrival.dropped = True
            if not arrival.busy:
                self._forget(arrival)

    # -- digests

    def digests(self, first: int, wire: bytes) -> None:
        """
        Take digests of blocks that the sender tells.
        """
        length = self._digest.length
        if len(wire) % length or not wire:
            raise ProtocolError(f"these are not digests of {length} bytes")
        right, wrong = self.blockmap.tell(
            first, (wire[at : at + length] for at in range(0, len(wire), length))
        )
        for block, digest in right.items():
            self._verified(block, digest)
        if wrong:
            self._wrong(wrong)

    def revoke(self, blocks: list[int]) -> None:
        """
        Forget blocks in which the sender has something else.
        """
        for block in blocks:
            if self.blockmap.revoke(block):
                self._discard(*self.blockmap.span(block))

    def laneLost(self, lane: Any) -> None:
        """
        Forget the block that a lost connection had begun: it comes again on another.
        """
        self.blockmap.latest.pop(lane, None)
        self._drop(each for each in self.blockmap.arriving.values() if each.lane is lane)

    # -- ends

    async def verify(self, size: int, root: bytes) -> bool:
        """
        Compare the file with what the sender says of it.

        @return: whether it is whole; if not, the blocks that are wrong or missing were asked
            for, unless it ended meanwhile.
        @raise TransferError: it cannot be published.
        """
        blockmap = self.blockmap
        if blockmap.size is None:
            if size > blockmap.blockSize * MAX_BLOCKS:
                raise ProtocolError(f"{size} bytes are more than {MAX_BLOCKS} blocks")
            past = max((end for _, end in self.incoming.partial.held), default=0)
            if size < past:
                raise ProtocolError(f"{past} bytes came, COMMIT says {size}")
            blockmap.size = size
        elif blockmap.size != size:
            raise ProtocolError(f"{blockmap.size} bytes were declared, COMMIT says {size}")
        for arrival in list(blockmap.arriving.values()):
            arrival.end = min(arrival.end, size)
            if arrival.next == arrival.end and not arrival.busy:
                self._decide(arrival)
        await self._quiet()
        if self._owner.over:
            return False
        missing = blockmap.missing()
        if missing:
            self._drop()
            for block in list(blockmap.computed):
                # complete, but the sender never told its digest
                blockmap.computed.pop(block)
                self._discard(*blockmap.span(block))
            if not self._owner.over:
                self._owner.repair(missing)
            return False
        blocks = (blockmap.verified[block] for block in range(len(blockmap.verified)))
        if rootOf(self._digest, size, blockmap.blockSize, blocks) != root:
            raise DigestMismatch("the blocks are right one by one, the file as a whole is not")
        return True

    async def letGo(self, why: TransferError, keep: bool) -> None:
        """
        Keep the verified blocks or remove them, once nothing is written any more.
        """
        self._drop()
        await self._quiet()
        await self.incoming.checkpointed()
        await (self.incoming.suspend(why) if keep else self.incoming.abort(why))

    async def _quiet(self) -> None:
        """
        Wait until nothing is being written; and, to commit, until the blocks that
        were held before a restart have been read.
        """
        while self._busy or not (self._settled or self._owner.over):
            await self._idle.wait()

    def _storeFailed(self, failure: Failure) -> None:
        why = failure.value
        if not isinstance(why, TransferError):
            self._log.failure("the store failed", failure=failure)
            why = StoreError(f"the store failed: {type(why).__name__}")
        self._owner.storeFailed(why)
        self._idle.wake()

    def checkpoint(self) -> None:
        """
        Make the bytes that came since the last checkpoint safe, if one is due.
        """
        if self._owner.over:
            return
        self.incoming.checkpoint(self._storeFailed)
