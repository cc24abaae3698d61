"""
The errors of dials that failed, and the reasons of closings.
"""

from __future__ import annotations

from twisted.python.failure import Failure

from connpool.errors import ConnectFailed
from connpool.pool.connection import Connection
from connpool.pool.refusals import placeOf

__all__ = ["CLEAN", "EARLY", "dialFailure"]

#: The reasons for which a connection is closed that nobody is in the middle of.
CLEAN = frozenset(
    {"idle", "lifetime", "uses", "stale", "failback", "shrunk", "evicted", "condemned", "pool"}
)

#: The beginning of the cause, if a server accepted and ended a connection.
EARLY = "it accepted the connection and ended it before it said anything: "


def dialFailure(
    name: str, connection: Connection, reason: Failure, prefix: str = ""
) -> ConnectFailed:
    """
    The error for those who wait for a dial that failed.
    """
    error = ConnectFailed(
        f"pool {name} cannot connect to {placeOf(connection.destination.endpoint)}: "
        f"{prefix}{reason.getErrorMessage() or reason.type}"
    )
    error.__cause__ = reason.value
    return error
