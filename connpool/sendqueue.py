"""
The bytes that a socket still has to get rid of.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import Any

__all__ = ["unconfirmedBytes"]


def unconfirmedBytes(handle: Any) -> int:
    """
    @param handle: a stream socket, or L{None}.
    @return: bytes that were written and that the other side's kernel has not
        confirmed (C{SIOCOUTQ}, tcp(7)); 0 if that is not known.
    """
    try:
        # TIOCOUTQ has the same number
        answer: bytes = fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4))
    except (OSError, TypeError, ValueError):
        return 0
    count: int = struct.unpack("i", answer)[0]
    return count
