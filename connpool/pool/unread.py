"""
The bytes, or the end, that the kernel holds for a connection and the reactor has
not delivered yet.

A request's answer and the server's close often lie in the kernel together.  The
reactor delivers the first and will deliver the second in its next turn; between
the two the connection looks as good as any.  One C{poll} without a wait costs
half a microsecond and sees both.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

__all__ = ["endsToo", "unreadOf"]

_BYTES = getattr(select, "POLLIN", 0)
#: Where a system lacks it (macOS), an end shows as bytes do.
_END = getattr(select, "POLLRDHUP", 0)


def unreadOf(transport: Any) -> Callable[[int], list[Any]] | None:
    """
    @param transport: the lowest transport of a connection.
    @return: a function that takes the milliseconds to wait, 0, and returns an
        empty list when there is nothing; or L{None} where that cannot be asked.
    """
    ask: Callable[[int], list[Any]] | None = getattr(transport, "pollUnread", None)
    if ask is not None:
        return ask  # a transport without a socket that knows by itself
    if not hasattr(select, "poll"):
        return None
    try:
        number = transport.getHandle().fileno()
    except (AttributeError, OSError):
        return None
    if not isinstance(number, int) or number < 0:
        return None
    poller = select.poll()
    poller.register(number, _BYTES | _END)
    return poller.poll


def endsToo(news: list[Any]) -> bool:
    """
    @param news: what such a function returned.
    @return: whether there is an end, or an error, and not bytes alone.
    """
    return any(flags & ~_BYTES for _, flags in news)
