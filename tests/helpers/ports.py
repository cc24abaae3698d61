"""
Ports for programs that cannot say which one the system gave them.
"""

import random
import socket
from pathlib import Path

#: The lowest port that is tried.
FIRST = 10_000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_given = set()


def freePort(kind=socket.SOCK_STREAM):
    """
    A port of 127.0.0.1 that is free, and stays so until somebody asks for it by its number:
    the system gives none of these to a socket that wants any.
    """
    end = int(RANGE.read_text().split()[0]) if RANGE.exists() else 32_768
    while True:
        port = random.SystemRandom().randrange(FIRST, end)
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
