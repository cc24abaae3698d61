"""
File transfer beside what is used otherwise: what a user waits for.
"""

from benchmarks.setup import Make
from benchmarks.transfer.bytes import durable, large, small, tls
from benchmarks.transfer.outbox import outbox
from benchmarks.transfer.path import delay, resume
from benchmarks.transfer.service import connections, crowd, memory
from benchmarks.transfer.startup import startup

__all__ = ["PEERS", "SECTIONS", "SHORT"]

#: What C{--install} installs.
PEERS = ("pyftpdlib", "trustme", "xxhash")

#: A new one is a line here, and a function that yields a section.
SECTIONS: dict[str, Make] = {
    "large": large,
    "tls": tls,
    "small": small,
    "durable": durable,
    "outbox": outbox,
    "crowd": crowd,
    "connections": connections,
    "memory": memory,
    "delay": delay,
    "resume": resume,
    "startup": startup,
}

#: Those of the short table and the short chart.
SHORT = ("large", "tls", "small", "durable", "startup")
