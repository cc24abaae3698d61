"""
An acquire that waits, with the Deferred that its caller has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from connpool.pool.states import Waiter

__all__ = ["UNSET", "Acquire", "checkedTimeout"]


class _Unset:
    def __repr__(self) -> str:
        return "the pool's acquireTimeout"


#: For a timeout: the pool's C{acquireTimeout}.
UNSET: Any = _Unset()


def checkedTimeout(timeout: Any) -> Any:
    """
    Judge a timeout when it is given, whether or not it will be needed.

    @return: C{timeout}.
    @raise ValueError: it is none.
    """
    if timeout is UNSET or timeout is None:
        return timeout
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, (int, float))
        or not (timeout >= 0 and math.isfinite(timeout))
    ):
        raise ValueError(
            f"timeout={timeout!r} is out of range: it must be seconds, "
            "0 or more and finite, or None"
        )
    return timeout


class Acquire(Waiter):
    """
    A waiter with the Deferred that it waits with.

    @param left: called with it when its Deferred is cancelled.
    @ivar code: the code object that acquires, and
    @ivar offset: the place in it.
    @ivar holder: with C{debug}, the task that waits, and
    @ivar stack: where it does.
    """

    __slots__ = ("_left", "code", "deferred", "holder", "offset", "stack")

    def __init__(self, left: Callable[[Acquire], None], now: float, code: Any, offset: int) -> None:
        super().__init__(now)
        self._left = left
        self.code = code
        self.offset = offset
        self.holder: Any = None
        self.stack = ""
        self.deferred: Deferred[Any] = Deferred(self._cancelled)

    def _cancelled(self, _: Any) -> None:
        self._left(self)
