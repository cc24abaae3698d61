"""
For the tests of programs that use this package.
"""

from connpool.testing.endpoints import Attempt, FakeEndpoint, FakeTransport
from connpool.testing.events import EVENTS
from connpool.testing.interleavings import Exploration, Violation, checkInterleavings
from connpool.testing.world import Event, World
from connpool.transfer.stores.memory import MemoryStore

__all__ = [
    "EVENTS",
    "Attempt",
    "Event",
    "Exploration",
    "FakeEndpoint",
    "FakeTransport",
    "MemoryStore",
    "Violation",
    "World",
    "checkInterleavings",
]
