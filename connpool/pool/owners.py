"""
With C{debug}: which task holds which leases.
"""

from __future__ import annotations

import traceback
from contextvars import ContextVar
from typing import Any

__all__ = ["Holder", "currentHolder", "whole"]


class Holder:
    """
    A task, as far as the pool sees one: a C{contextvars} context.

    Plain callbacks share the reactor's context, so for code without
    coroutines the report may name leases of somebody else.

    @ivar connections: what it holds.
    @ivar waiting: how many acquires of its wait.
    """

    __slots__ = ("connections", "waiting")

    def __init__(self) -> None:
        self.connections: dict[Any, None] = {}
        self.waiting = 0


_current: ContextVar[Holder | None] = ContextVar("connpool.pool.holder", default=None)


def currentHolder() -> Holder:
    """
    @return: the caller's task.
    """
    holder = _current.get()
    if holder is None:
        holder = Holder()
        _current.set(holder)
    return holder


def whole() -> str:
    """
    @return: the stack, without the pool's own frames.
    """
    frames = [each for each in traceback.extract_stack() if "connpool/pool/" not in each.filename]
    return "".join(traceback.format_list(frames[-12:]))
