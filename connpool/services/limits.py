"""
The number of connections that the descriptors of this process allow.
"""

from __future__ import annotations

import resource
from contextlib import suppress

__all__ = [
    "DESCRIPTORS_PER_CONNECTION",
    "MOST_CONNECTIONS",
    "RESERVED_DESCRIPTORS",
    "connectionsFor",
    "defaultConnections",
    "descriptorLimit",
    "raiseDescriptors",
]

#: Descriptors beside the connections: log, reactor, listeners, directories.
RESERVED_DESCRIPTORS = 64

#: A connection's socket, the file it writes, and one more while it is opened or published.
DESCRIPTORS_PER_CONNECTION = 3

#: What is not exceeded unless an operator says so: each one also takes memory.
MOST_CONNECTIONS = 10_000


def connectionsFor(descriptors: int) -> int:
    """
    @param descriptors: the limit on open files.
    @return: connections at once that cannot run into it; at least 1.
    """
    return max(1, (descriptors - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION)


def descriptorLimit() -> int:
    """
    @return: the limit on open files that L{raiseDescriptors} sets.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # "unlimited" cannot be set by everybody; the kernel's default fs.nr_open can
    return max(soft, 1 << 20) if hard == resource.RLIM_INFINITY else hard


def defaultConnections(services: int = 1) -> int:
    """
    @param services: that share this process.
    @return: connections for one of them.
    """
    return max(1, min(connectionsFor(descriptorLimit()) // services, MOST_CONNECTIONS))


def raiseDescriptors() -> None:
    """
    Raise the soft limit on open files to the hard one: it is low for the sake
    of programs that use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # where it cannot be raised, what there is stays
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptorLimit(), hard))
