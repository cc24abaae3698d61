"""
A keyed pool's numbers.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

__all__ = ["COUNTERS_OF_KEYS", "GAUGES_OF_KEYS", "KeyedPoolStats"]


@attrs.frozen(kw_only=True)
class KeyedPoolStats:
    """
    A keyed pool at one moment.

    @ivar state: C{open}, C{paused} or C{closed}.
    @ivar maxTotal: the cap over all keys.
    @ivar size: all connections of all keys.
    @ivar keys: keys that have a connection or a waiter.
    @ivar starving: keys that wait for room under the cap.
    @ivar evictions: connections closed to make room for another key.
    @ivar down: keys whose destination cannot be reached.

    The others are sums over all keys.

    @ivar leased: handed out.
    @ivar idle: ready to be handed out.
    @ivar waiting: acquires in the queues.
    @ivar acquires: that got a connection.
    @ivar acquiresWaited: of these, after waiting in a queue.
    @ivar acquireTimeouts: acquires that gave up.
    @ivar acquiresRejected: acquires that failed for any reason but cancelling.
    @ivar releases: leases given back as good.
    @ivar discards: leases given back as bad.
    @ivar dials: dials begun.
    @ivar dialFailures: dials that failed: connect, handshake or C{prepare}.
    @ivar keepalives: validations in the background, after C{keepaliveTime}.
    @ivar leasesExpired: leases that the pool ended after C{leaseTimeout}.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset(
        {"maxTotal", "size", "keys", "starving", "down", "leased", "idle", "waiting"}
    )

    state: str
    maxTotal: int
    size: int
    keys: int
    starving: int
    evictions: int
    down: int
    leased: int
    idle: int
    waiting: int
    acquires: int
    acquiresWaited: int
    acquireTimeouts: int
    acquiresRejected: int
    releases: int
    discards: int
    dials: int
    dialFailures: int
    keepalives: int
    leasesExpired: int


#: The numbers of all keys together.
GAUGES_OF_KEYS = ("leased", "idle", "waiting")
COUNTERS_OF_KEYS = (
    "acquires",
    "acquiresWaited",
    "acquireTimeouts",
    "acquiresRejected",
    "releases",
    "discards",
    "dials",
    "dialFailures",
    "keepalives",
    "leasesExpired",
)
