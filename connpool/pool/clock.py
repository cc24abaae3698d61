"""
The clock of a pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.python import runtime

__all__ = ["steady"]


def steady(reactor: Any) -> Callable[[], float]:
    """
    @return: C{reactor.seconds}; or, where that is the wall clock as on POSIX,
        the monotonic one: whoever sets the clock must neither end connections
        nor keep a destination down for an hour.
    """
    return time.monotonic if reactor.seconds is runtime.seconds else reactor.seconds
