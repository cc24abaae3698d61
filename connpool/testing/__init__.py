"""
For the tests of programs that use this package.
"""

from connpool.testing.endpoints import Attempt, FakeEndpoint, FakeTransport

__all__ = ["Attempt", "FakeEndpoint", "FakeTransport"]
