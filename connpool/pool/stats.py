"""
A pool's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs

from connpool.pool.core import Core

__all__ = ["Histogram", "PoolStats", "snapshot"]


@attrs.frozen
class Histogram:
    """
    Durations by powers of two.

    @ivar bounds: the upper bound of each bucket, seconds; the last is infinite.
    @ivar counts: how many durations fell into each bucket (not cumulative).
    @ivar total: their sum, seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """
        The number of durations.
        """
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """
        @param share: from 0 to 1; 0.99 is the 99th percentile.
        @return: the upper bound of the bucket in which it lies, seconds; 0.0
            for no durations.
        """
        left = share * self.count
        for bound, count in zip(self.bounds, self.counts, strict=True):
            left -= count
            if count and left <= 0:
                return bound
        return 0.0


#: 1 us, 2 us, 4 us … 134 s, infinity
BOUNDS_SECONDS = (*(2.0**power / 1e6 for power in range(28)), float("inf"))


def _histogram(buckets: list[int], total: float) -> Histogram:
    last = len(BOUNDS_SECONDS) - 1
    return Histogram(BOUNDS_SECONDS, (*buckets[:last], sum(buckets[last:])), total)


@attrs.frozen(kw_only=True)
class PoolStats:
    """
    One pool at one moment.  Counters only ever grow.

    @ivar state: C{open}, C{paused}, C{draining}, C{closing} or C{closed}.
    @ivar down: whether the pool cannot reach any destination.
    @ivar maxSize: the cap.
    @ivar size: all connections: the six gauges that follow, together.
    @ivar leased: handed out.
    @ivar idle: ready to be handed out.
    @ivar connecting: being dialled, handshaken or prepared.
    @ivar returning: given back while a read was being delivered.
    @ivar checking: being reset or validated.
    @ivar closing: asked to close, socket not gone yet.
    @ivar waiting: acquires in the queue.
    @ivar acquires: leases handed out.
    @ivar acquiresWaited: of these, after waiting in the queue.
    @ivar acquireTimeouts: acquires that gave up.
    @ivar acquireCancels: acquires that were cancelled while they waited.
    @ivar acquiresRejected: acquires that failed for any reason but cancelling.
    @ivar acquiresDropped: of these, shed by the C{codel} queue.
    @ivar releases: leases given back as good.
    @ivar discards: leases given back as bad.
    @ivar detaches: connections the caller took over.
    @ivar dials: dials begun.
    @ivar dialFailures: dials that failed: connect, handshake or C{prepare}.
    @ivar dialsElided: dials ended because a returned connection made them surplus.
    @ivar resetFailures: resets that failed or took too long.
    @ivar validateFailures: validations that failed or took too long.
    @ivar closed: connections that ended, by reason: C{idle}, C{lifetime} and
        C{uses} (the limits of these names), C{peer} (lost, half-closed, or
        hung up by its own protocol), C{data} (bytes came that nobody asked
        for), C{discarded}, C{reset}, C{validate}, C{leaked}, C{failed} (never
        became ready), C{elided}, C{stale} (C{purge}), C{shrunk} (C{maxSize}
        was lowered), C{evicted} (room for another key), C{pool} (closed with
        it), C{detached}.
    @ivar aborted: closings that took longer than C{closeTimeout}.
    @ivar leaksSuspected: leases held longer than C{leakThreshold}.
    @ivar leasesExpired: leases that the pool ended after C{leaseTimeout}.
    @ivar keepalives: validations in the background, after C{keepaliveTime}.
    @ivar leasesLostToGC: leases nobody gave back.
    @ivar doubleReleases: leases given back twice (refused).
    @ivar wait: how long acquires waited in the queue.
    @ivar waitMost: the longest wait, seconds.
    @ivar use: how long leases were held.
    @ivar dial: how long successful dials took.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset(
        {
            "maxSize",
            "size",
            "leased",
            "idle",
            "connecting",
            "returning",
            "checking",
            "closing",
            "waiting",
            "waitMost",
        }
    )

    state: str
    down: bool
    maxSize: int
    size: int
    leased: int
    idle: int
    connecting: int
    returning: int
    checking: int
    closing: int
    waiting: int
    acquires: int
    acquiresWaited: int
    acquireTimeouts: int
    acquireCancels: int
    acquiresRejected: int
    acquiresDropped: int
    releases: int
    discards: int
    detaches: int
    dials: int
    dialFailures: int
    dialsElided: int
    resetFailures: int
    validateFailures: int
    closed: Mapping[str, int]
    aborted: int
    leaksSuspected: int
    leasesExpired: int
    keepalives: int
    leasesLostToGC: int
    doubleReleases: int
    wait: Histogram
    waitMost: float
    use: Histogram
    dial: Histogram


def snapshot(core: Core) -> PoolStats:
    """
    @return: the numbers of C{core} now.
    """
    inventory = core.inventory
    counts = inventory.counts
    return PoolStats(
        state=core.phase.value,
        down=core.supply.down(),
        maxSize=core.settings.maxSize,
        size=inventory.size,
        leased=inventory.leased,
        idle=inventory.idleCount,
        connecting=inventory.connecting,
        returning=inventory.returning,
        checking=inventory.checking,
        closing=inventory.closing,
        waiting=len(core.queue),
        acquires=core.acquires,
        acquiresWaited=core.waited,
        acquireTimeouts=counts["timeouts"],
        acquireCancels=counts["cancels"],
        acquiresRejected=counts["rejected"],
        acquiresDropped=counts["dropped"],
        releases=core.releases,
        discards=counts["discards"],
        detaches=counts["detaches"],
        dials=counts["dials"],
        dialFailures=counts["dialFailures"],
        dialsElided=counts["elided"],
        resetFailures=counts["reset"],
        validateFailures=counts["validate"],
        closed=dict(inventory.closed),
        aborted=counts["aborted"],
        leaksSuspected=counts["leaksSuspected"],
        leasesExpired=counts["leasesExpired"],
        keepalives=counts["keepalives"],
        leasesLostToGC=counts["leasesLostToGC"],
        doubleReleases=counts["doubleReleases"],
        wait=_histogram(core.waitBuckets, core.waitTotal),
        waitMost=core.waitMost,
        use=_histogram(core.useBuckets, core.useTotal),
        dial=_histogram(core.dialBuckets, core.dialTotal),
    )
