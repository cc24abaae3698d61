"""
An acquire that waits, with the Deferred that its caller has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from connpool.pool.states import Waiter
from connpool.pool.timers import NEVER

__all__ = ["UNSET", "Acquire", "checkedTimeout"]


class _Unset:
    def __repr__(self) -> str:
        return "the pool's acquireTimeout"


#: For a timeout: the pool's C{acquireTimeout}.
UNSET: Any = _Unset()


def checkedTimeout(timeout: Any, name: str = "timeout") -> Any:
    """
    Judge a timeout when it is given, whether or not it will be needed.

    @param name: of the argument.
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
            f"{name}={timeout!r} is out of range: it must be seconds, 0 or more and finite, or None"
        )
    return timeout


class Acquire(Waiter, Deferred[Any]):
    """
    A waiter, and the Deferred that its caller has: one object, since two that know
    each other are left to the garbage collector.

    @param left: called with it when it is cancelled.
    @ivar code: the code object that acquires, and
    @ivar offset: the place in it.
    @ivar scope: the scope that waits, which may get the connection itself; L{None}
        where the caller gets a lease.
    @ivar holder: with C{debug}, the task that waits, and
    @ivar stack: where it does.
    """

    def __init__(
        self,
        left: Callable[[Acquire], None],
        now: float,
        until: float,
        code: Any,
        offset: int,
        scope: Any,
    ) -> None:
        Deferred.__init__(self, left)  # type: ignore[arg-type]  # it gets no other
        self.since = now
        self.until = until
        self.code = code
        self.offset = offset
        self.scope = scope

    # set only where they are needed
    deadline = NEVER
    holder: Any = None
    stack = ""
