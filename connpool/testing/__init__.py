"""
For the tests of programs that use this package.
"""

from connpool.testing.endpoints import Attempt, FakeEndpoint, FakeTransport
from connpool.testing.interleavings import (
    EVENTS,
    Event,
    Exploration,
    Violation,
    World,
    checkInterleavings,
)

__all__ = [
    "EVENTS",
    "Attempt",
    "Event",
    "Exploration",
    "FakeEndpoint",
    "FakeTransport",
    "Violation",
    "World",
    "checkInterleavings",
]
