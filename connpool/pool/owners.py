"""
With C{debug}: the tasks, and the leases that each holds.
"""

from __future__ import annotations

import inspect
import traceback
from sys import _getframe
from typing import Any

__all__ = ["Holder", "currentHolder", "whole"]

_SUSPENDS = (
    inspect.CO_COROUTINE
    | inspect.CO_GENERATOR
    | inspect.CO_ASYNC_GENERATOR
    | inspect.CO_ITERABLE_COROUTINE
)


class Holder:
    """
    A task: the outermost of the coroutines, or generators, that await one another.
    Plain callbacks belong to no task, so nothing is known of them.

    @ivar connections: the connections that it holds.
    @ivar waiting: how many of its acquires wait.
    """

    __slots__ = ("_task", "connections", "waiting")

    def __init__(self, task: int) -> None:
        self._task = task
        self.connections: dict[Any, None] = {}
        self.waiting = 0

    def changed(self) -> None:
        """
        Forget a task that neither holds nor waits any more.
        """
        if not self.connections and not self.waiting:
            _holders.pop(self._task, None)


#: By the identity of the task's frame, which is kept as long as the coroutine lives;
#: a reference would keep alive what the task has dropped.
_holders: dict[int, Holder] = {}


def currentHolder() -> Holder | None:
    """
    @return: the caller's task; L{None} outside of coroutines.
    """
    frame: Any = _getframe(1)
    task = None
    while frame is not None:
        if frame.f_code.co_flags & _SUSPENDS:
            task = frame
        elif task is not None or frame.f_globals.get("__name__", "").startswith("twisted."):
            break
        frame = frame.f_back
    if task is None:
        return None
    return _holders.setdefault(id(task), Holder(id(task)))


def whole() -> str:
    """
    @return: the stack, without the pool's own frames.
    """
    frames = [each for each in traceback.extract_stack() if "connpool/pool/" not in each.filename]
    return "".join(traceback.format_list(frames[-12:]))
