"""
A connection pool over endpoints.  See C{docs/pool.rst}.
"""

from connpool.errors import (
    AcquireTimeout,
    ConnectFailed,
    DestinationBad,
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
from connpool.pool.endpoint import PooledEndpoint
from connpool.pool.gocompat import newPool
from connpool.pool.keyed import KeyedConnectionPool, KeyedPoolStats
from connpool.pool.lease import Lease
from connpool.pool.pool import ConnectionPool
from connpool.pool.service import ConnectionPoolService
from connpool.pool.settings import Settings, exponentialBackoff
from connpool.pool.stats import Histogram, PoolStats

__all__ = [
    "AcquireTimeout",
    "ConnectFailed",
    "ConnectionPool",
    "ConnectionPoolService",
    "DestinationBad",
    "DoubleRelease",
    "ForeignLease",
    "Histogram",
    "KeyedConnectionPool",
    "KeyedPoolStats",
    "Lease",
    "LeaseError",
    "LeaseReleased",
    "Overloaded",
    "PoolClosed",
    "PoolDown",
    "PoolError",
    "PoolPaused",
    "PoolStats",
    "PooledEndpoint",
    "Settings",
    "TooManyWaiters",
    "exponentialBackoff",
    "newPool",
]
