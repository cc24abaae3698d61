"""
What senders may do, and what each has done of it.

Theory of operation
===================
L{Limits} are an operator's numbers.  There is one L{Account} for all senders
together and one for each principal that the operator's table names; a transfer
passes both in the same way, and neither knows which it is.

A transfer takes a place when it is admitted and gives it back when it ends.
Who finds no place waits in the order of coming, if its protocol can wait.
Bytes and files are counted over the last 24 hours; what a transfer announced
counts as promised until it came, so transfers that would pass the limit
together are refused while the others finish.

Pure: no clock, no reactor.  The counts are this process's own: a restart
begins them anew, and processes that share a store count each for itself.
"""

from __future__ import annotations

from collections import deque

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import Busy, QuotaExceeded
from connpool.tokenbucket import TokenBucket

__all__ = ["BURST_SECONDS", "Account", "Limits", "Window"]

#: Bytes of small files that may be on their way to the disk.
SMALL_BYTES = 256 << 20
#: Seconds' worth of bytes that pass at once under a limit of bytes per second.
BURST_SECONDS = 0.1


@attrs.frozen(kw_only=True)
class Limits:
    """
    L{None} is no limit, or the receiver's own where these are a principal's.

    @ivar maxConnections: native sessions at once.
    @ivar maxTransfers: at once; as many small files that come in one piece may
        be on their way to the disk beside them.
    @ivar maxFileSize: bytes.
    @ivar maxBytes: bytes received in any 24 hours.
    @ivar maxFiles: files stored in any 24 hours.
    @ivar maxRate: bytes/s.
    @ivar minimumRate: bytes/s a sender must keep up, averaged over
        C{idleTimeout}; 0 for none.
    @ivar idleTimeout: seconds without a byte that end a transfer.
    @ivar maxTime: seconds that a transfer may take.
    """

    maxConnections: int | None = None
    maxTransfers: int | None = None
    maxFileSize: int | None = None
    maxBytes: int | None = None
    maxFiles: int | None = None
    maxRate: float | None = None
    minimumRate: float | None = None
    idleTimeout: float | None = None
    maxTime: float | None = None


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
        @param now: seconds.
        """
        slot = int(now // self.SLOT)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append([slot, 0])
        self._slots[-1][1] += count
        self._sum += count

    def sum(self, now: float) -> int:
        """
        @return: what was added in the last 24 hours, and up to one more.
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
    @param limits: of whom it is.
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
        A session begins.

        @raise Busy: if there are too many.
        """
        most = self.limits.maxConnections
        if most is not None and self.connections >= most:
            raise Busy(f"{most} connections{self._whose} are open; close one, or use fewer --jobs")
        self.connections += 1

    def disconnect(self) -> None:
        """
        It has ended.
        """
        self.connections -= 1

    # -- places

    @property
    def full(self) -> bool:
        """
        Whether a transfer more would be too many.
        """
        most = self.limits.maxTransfers
        return most is not None and self.transfers >= most

    def take(self, wait: bool) -> Deferred[None] | None:
        """
        Take a place for a transfer, until L{leave}.

        @param wait: whether to wait if there is none.
        @return: L{None}: it is taken; else what fires when it is.  Cancelling
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
        So many more small files are on their way to the disk, or fewer.
        """
        self._small += files
        self._smallBytes += size
        while self._crowd and not self._crowded:
            self._crowd.popleft().callback(None)

    def room(self) -> Deferred[None] | None:
        """
        @return: L{None} if a small file may come, else what fires when one may.
        """
        if not self._crowded:
            return None
        room: Deferred[None] = Deferred()
        self._crowd.append(room)
        return room

    @property
    def _crowded(self) -> bool:
        most = self.limits.maxTransfers
        return self._smallBytes > SMALL_BYTES or (most is not None and self._small >= most)

    # -- bytes and files

    def check(self, files: int, size: int, now: float) -> None:
        """
        @param files: that are going to come, beside those that have a place.
        @param size: bytes that are going to come, beside those promised.
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
            # also who has nothing to add finds out when there is no room at all
            if max(size, 1) > left:
                raise QuotaExceeded(
                    f"{max(0, left)} of {limits.maxBytes} bytes{whose} are left of these 24 hours "
                    f"and {size} are needed; more in {_hours(self._bytes, now)} hours"
                )

    def promise(self, size: int) -> None:
        """
        A transfer is going to bring C{size} bytes; or, below 0, it will not.
        """
        self._promised += size

    def came(self, count: int, now: float) -> float:
        """
        Bytes came.

        @return: seconds until more may come; 0 for now.
        """
        if self._bytes is not None:
            self._bytes.add(count, now)
        return 0.0 if self._rate is None else self._rate.take(count, now)

    def stored(self, now: float) -> None:
        """
        A file was stored.
        """
        if self._files is not None:
            self._files.add(1, now)


def _hours(window: Window, now: float) -> str:
    return f"{window.relief(now) / 3600:.1f}"
