"""
The accounts of senders: the part of their limits that each has used.

Theory of operation
===================
There is one L{Account} for all senders together and one for each principal that the
operator's table names; a transfer passes both in the same way, and neither knows which
it is.

A transfer takes a place when it is admitted and gives it back when it ends.
One that finds no place waits in the order of coming, if its protocol can wait.
Bytes and files are counted over the last 24 hours; what a transfer announced
counts as promised until it came, so transfers that would pass the limit
together are refused while the others finish.

An L{Account} is pure: no clock, no reactor; L{Quotas} brings the time.  The counts are
this process's own: a restart begins them anew, and processes that share a store count
each for itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from zope.interface import implementer

from connpool.errors import Busy, ConflictTakeover, QuotaExceeded, TooLarge, TransferError
from connpool.interfaces import IPartialHolder
from connpool.tokenbucket import TokenBucket
from connpool.transfer.identities import Identity, Limits
from connpool.transfer.names import displayName
from connpool.transfer.receive.policy import Policy
from connpool.transfer.records import Offer, SmallFile

__all__ = ["BURST_SECONDS", "Account", "Places", "Quotas", "Window"]

N = TypeVar("N", int, float)

#: Bytes of small files that may be on their way to the disk.
SMALL_BYTES = 256 << 20
#: Seconds' worth of bytes that pass at once under a limit of bytes per second.
BURST_SECONDS = 0.1


class Window:
    """
    A sum over the last 24 hours, in slots of an hour: a slot leaves when all
    of it is older, so that no 24 hours see more than the sum says.
    """

    SPAN, SLOT = 86_400.0, 3600.0

    def __init__(self) -> None:
        #: number of the hour, and what was added in it
        self._slots: deque[list[int]] = deque()
        self._sum = 0

    def add(self, count: int, now: float) -> None:
        """
        Add to the sum.

        @param now: seconds.
        """
        slot = int(now // self.SLOT)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append([slot, 0])
        self._slots[-1][1] += count
        self._sum += count

    def sum(self, now: float) -> int:
        """
        @return: the sum of the last 24 hours, and up to one more.
        """
        while self._slots and self.relief(now) <= 0:
            self._sum -= self._slots.popleft()[1]
        return self._sum

    def relief(self, now: float) -> float:
        """
        @return: seconds until the sum becomes smaller; C{SPAN} if it is 0.
        """
        if not self._slots:
            return self.SPAN
        return (self._slots[0][0] + 1) * self.SLOT + self.SPAN - now


class Account:
    """
    The account of one sender, or of all together.

    @param limits: of the sender whose account it is.
    @param whose: for messages, C{" of 'alice'"}; empty for all together.
    @ivar connections: sessions now.
    @ivar transfers: places taken.
    """

    def __init__(self, limits: Limits, whose: str = "") -> None:
        self.limits = limits
        self._whose = whose
        self.connections = self.transfers = 0
        self._promised = 0
        self._waiting: deque[Deferred[None]] = deque()
        self._small = self._smallBytes = 0
        self._crowd: deque[Deferred[None]] = deque()
        self._bytes = None if limits.maxBytes is None else Window()
        self._files = None if limits.maxFiles is None else Window()
        self._rate = TokenBucket(limits.maxRate, BURST_SECONDS) if limits.maxRate else None
        #: whether anything here depends on time
        self.timed = bool(self._rate) or self._bytes is not None or self._files is not None

    # -- connections

    def connect(self) -> None:
        """
        Count a session that begins.

        @raise Busy: if there are too many.
        """
        most = self.limits.maxConnections
        if most is not None and self.connections >= most:
            raise Busy(f"{most} connections{self._whose} are open; close one, or use fewer --jobs")
        self.connections += 1

    def disconnect(self) -> None:
        """
        Count a session that has ended.
        """
        self.connections -= 1

    # -- places

    @property
    def full(self) -> bool:
        """
        Tell whether a transfer more would be too many.
        """
        most = self.limits.maxTransfers
        return most is not None and self.transfers >= most

    def take(self, wait: bool) -> Deferred[None] | None:
        """
        Take a place for a transfer, until L{leave}.

        @param wait: whether to wait if there is none.
        @return: L{None}: it is taken; else a Deferred that fires when it is.  Cancelling
            that leaves the queue.
        @raise Busy: if there is none and C{wait} is false.
        """
        if not (self.full or self._waiting):
            self.transfers += 1
            return None
        if not wait:
            raise Busy(
                f"{self.limits.maxTransfers} transfers{self._whose} are under way; try later"
            )
        place: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(place)
        return place

    def leave(self) -> None:
        """
        Give a place back.
        """
        self.transfers -= 1
        while self._waiting and not self.full:
            self.transfers += 1
            self._waiting.popleft().callback(None)

    @property
    def waiting(self) -> int:
        """
        Transfers without a place.
        """
        return len(self._waiting)

    # -- small files, which take no place: each ends by itself

    def small(self, files: int, size: int) -> None:
        """
        Count small files that are on their way to the disk; below 0 for those that have ended.
        """
        self._small += files
        self._smallBytes += size
        while self._crowd and not self._crowded:
            self._crowd.popleft().callback(None)

    def room(self) -> Deferred[None] | None:
        """
        @return: L{None} if a small file may come, else a Deferred that fires when one may.
        """
        if not self._crowded:
            return None
        room: Deferred[None] = Deferred()
        self._crowd.append(room)
        return room

    @property
    def spare(self) -> float:
        """
        Small files that may come beside those that are on their way to the disk.
        """
        most = self.limits.maxTransfers
        return math.inf if most is None else most - self._small

    @property
    def _crowded(self) -> bool:
        most = self.limits.maxTransfers
        return self._smallBytes > SMALL_BYTES or (most is not None and self._small >= most)

    # -- bytes and files

    def check(self, files: int, size: int, now: float) -> None:
        """
        Decide whether more may come.

        @param files: that are going to come, beside those that have a place.
        @param size: bytes that are going to come, beside those promised; 1 for a number that
            nobody knows yet.
        @param now: seconds.
        @raise QuotaExceeded: a file more, or so many bytes, would be too much
            for 24 hours.
        """
        limits, whose = self.limits, self._whose
        if self._files is not None and limits.maxFiles is not None:
            came = self._files.sum(now) + self.transfers + self._small
            if came + files > limits.maxFiles:
                raise QuotaExceeded(
                    f"{limits.maxFiles} files{whose} came within 24 hours, as many as are taken; "
                    f"the next in {_hours(self._files, now)} hours"
                )
        if self._bytes is not None and limits.maxBytes is not None:
            left = limits.maxBytes - self._bytes.sum(now) - self._promised
            if size > max(0, left):
                raise QuotaExceeded(
                    f"{max(0, left)} of {limits.maxBytes} bytes{whose} are left of these 24 hours "
                    f"and {size} are needed; more in {_hours(self._bytes, now)} hours"
                )

    def promise(self, size: int) -> None:
        """
        Count on C{size} bytes that a transfer is going to bring; below 0, on fewer.
        """
        self._promised += size

    def came(self, count: int, now: float) -> float:
        """
        Count bytes that came.

        @return: seconds until more may come; 0 for now.
        """
        if self._bytes is not None:
            self._bytes.add(count, now)
        return 0.0 if self._rate is None else self._rate.take(count, now)

    def skipped(self, count: int, now: float) -> None:
        """
        Count bytes of holes: part of the file, and nothing that came.
        """
        if self._bytes is not None:
            self._bytes.add(count, now)

    def stored(self, files: int, now: float) -> None:
        """
        Count files that were stored.
        """
        if self._files is not None:
            self._files.add(files, now)


class Quotas:
    """
    The accounts of a reception.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @ivar receivedBytes: bytes that were charged.
    @ivar holeBytes: bytes of holes, which did not come.
    @ivar savedBytes: bytes that did not come because content was compressed.
    """

    def __init__(self, policy: Policy, clock: Any) -> None:
        self._policy = policy
        self._clock = clock
        self._everybody = Account(policy)
        self._accounts: dict[str, tuple[Account, ...]] = {}
        #: what waits for a rate, and its timer
        self._waits: dict[Deferred[None], Any] = {}
        self.receivedBytes = self.holeBytes = self.savedBytes = 0

    def accounts(self, identity: Identity | None) -> tuple[Account, ...]:
        """
        @return: those that a transfer of C{identity} passes.
        """
        if identity is None:
            return (self._everybody,)
        accounts = self._accounts.get(identity.principal)
        if accounts is None:
            whose = f" of {displayName(identity.principal)!r}"
            accounts = (self._everybody, Account(identity, whose))
            self._accounts[identity.principal] = accounts
        return accounts

    def deadline(self, identity: Identity | None) -> tuple[float, float]:
        """
        @return: C{idleTimeout} and C{minimumRate} of a sender.
        """
        policy = self._policy
        if identity is None:
            return policy.idleTimeout, policy.minimumRate
        idle, rate = identity.idleTimeout, identity.minimumRate
        return (
            policy.idleTimeout if idle is None else idle,
            policy.minimumRate if rate is None else rate,
        )

    def largest(self, offer: Offer) -> int | None:
        """
        @return: the most bytes that C{offer} may have; L{None} for no limit.
        """
        identity = offer.identity
        return _least(self._policy.maxFileSize, None if identity is None else identity.maxFileSize)

    def longest(self, offer: Offer) -> float | None:
        """
        @return: the most seconds that C{offer} may take; L{None} for no limit.
        """
        identity = offer.identity
        return _least(self._policy.maxTime, None if identity is None else identity.maxTime)

    def checkSize(self, offer: Offer) -> None:
        """
        @raise TooLarge: if the file is larger than any that is taken.
        """
        limit = self.largest(offer)
        if limit is not None and offer.size is not None and offer.size > limit:
            raise TooLarge(f"{offer.name} has {offer.size} bytes; at most {limit} are taken")

    def check(self, accounts: Sequence[Account], files: int, size: int) -> None:
        """
        Decide whether so many files and bytes more may come within these 24 hours.

        @raise QuotaExceeded: if not.
        """
        for account in accounts:
            account.check(files, size, self._now(account))

    def stored(self, accounts: Sequence[Account], files: int = 1) -> None:
        """
        Count files that were stored.
        """
        for account in accounts:
            account.stored(files, self._now(account))

    def admit(self, accounts: Sequence[Account], files: Sequence[SmallFile]) -> None:
        """
        Let small files of one sender come, all or none; they count as under way (L{small})
        from now on.

        @raise TransferError: they may not, or not all of them.
        """
        sizes = [len(file.data) for file in files]
        largest, size = self.largest(files[0].offer), sum(sizes)
        if largest is not None and max(sizes) > largest:
            for file in files:
                self.checkSize(file.offer)
        self.check(accounts, len(files), size)
        self.small(accounts, len(files), size)

    def small(self, accounts: Sequence[Account], files: int, size: int) -> None:
        """
        As L{Account.small}, of each account.
        """
        for account in accounts:
            account.small(files, size)

    def charge(self, accounts: Sequence[Account], count: int) -> Deferred[None] | None:
        """
        Count bytes that are coming.

        @return: fires when more may come; L{None} for now.
        """
        self.receivedBytes += count
        wait = 0.0
        for account in accounts:
            if account.timed:
                wait = max(wait, account.came(count, self._clock.seconds()))
        if not wait:
            return None
        held: Deferred[None] = Deferred()
        self._waits[held] = self._clock.callLater(wait, self._release, held)
        return held

    def skip(self, accounts: Sequence[Account], count: int) -> None:
        """
        Count bytes of holes.  The rate is not about them.
        """
        self.holeBytes += count
        for account in accounts:
            account.skipped(count, self._now(account))

    def _release(self, held: Deferred[None]) -> None:
        del self._waits[held]
        held.callback(None)

    def hurry(self) -> None:
        """
        Let all that wait for a rate go on: the reception stops.
        """
        while self._waits:
            held, call = self._waits.popitem()
            call.cancel()
            held.callback(None)

    def slowedBy(self, identity: Identity | None) -> str:
        """
        @return: the thing that small files of C{identity} wait for: C{rate} or C{disk}.
        """
        limited = any(account.limits.maxRate for account in self.accounts(identity))
        return "rate" if limited and self._waits else "disk"

    def spare(self, identity: Identity | None) -> float:
        """
        As L{Account.spare}, the least of the accounts of C{identity}.
        """
        return min(account.spare for account in self.accounts(identity))

    def room(self, identity: Identity | None) -> Deferred[None] | None:
        """
        @return: L{None} if a small file of C{identity} may come now, else a Deferred that
            fires when it may.
        """
        rooms = (account.room() for account in self.accounts(identity))
        return next((room for room in rooms if room is not None), None)

    @property
    def waiting(self) -> int:
        """
        Transfers without a place.
        """
        named = sum(account.waiting for _, account in self._accounts.values())
        return self._everybody.waiting + named

    def _now(self, account: Account) -> float:
        return float(self._clock.seconds()) if account.timed else 0.0


@implementer(IPartialHolder)
class Places:
    """
    The places of one transfer in its accounts.
    """

    def __init__(
        self,
        accounts: Sequence[Account],
        end: Callable[[TransferError], Any] | None,
        waiting: Callable[[Deferred[None]], Any] | None,
    ) -> None:
        self.accounts = accounts
        self._end = end
        self._waiting = waiting
        self._taken: list[Account] = []

    def ready(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._take())

    async def _take(self) -> None:
        # its own limit first: one that waits for it takes no place from others
        for account in reversed(self.accounts):
            place = account.take(self._waiting is not None)
            if place is not None and self._waiting is not None:
                self._waiting(place)
                await place
            self._taken.append(account)

    def evicted(self) -> None:
        if self._end is not None:
            self._end(
                ConflictTakeover("a newer connection of this sender has taken the transfer over")
            )

    def leave(self) -> None:
        """
        Give the places back.
        """
        taken, self._taken = self._taken, []
        for account in taken:
            account.leave()


def _hours(window: Window, now: float) -> str:
    return f"{window.relief(now) / 3600:.1f}"


def _least(one: N | None, other: N | None) -> N | None:
    """
    @return: the smaller of two limits.
    """
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
