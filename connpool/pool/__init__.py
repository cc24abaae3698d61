"""
A connection pool over endpoints.  See C{docs/pool.rst}.
"""

from connpool.errors import (
    AcquireTimeout,
    ConnectFailed,
    DoubleRelease,
    ForeignLease,
    LeaseError,
    LeaseReleased,
    Overloaded,
    PoolClosed,
    PoolDown,
    PoolError,
    PoolPaused,
    TooManyWaiters,
)
from connpool.pool.lease import Lease
from connpool.pool.pool import ConnectionPool
from connpool.pool.seed import newPool
from connpool.pool.settings import Settings, exponentialBackoff
from connpool.pool.stats import Histogram, PoolStats

__all__ = [
    "AcquireTimeout",
    "ConnectFailed",
    "ConnectionPool",
    "DoubleRelease",
    "ForeignLease",
    "Histogram",
    "Lease",
    "LeaseError",
    "LeaseReleased",
    "Overloaded",
    "PoolClosed",
    "PoolDown",
    "PoolError",
    "PoolPaused",
    "PoolStats",
    "Settings",
    "TooManyWaiters",
    "exponentialBackoff",
    "newPool",
]
