"""
The prober's side of a protocol: requests, and the statements of a reply.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

__all__ = ["Reply", "Wire"]


@attrs.frozen
class Reply:
    """
    @ivar number: of the request that it answers.
    @ivar received: the far side's time of receipt, nanoseconds since the epoch;
        L{None} unless it says.
    @ivar sent: the far side's time of answering.
    @ivar count: datagrams of ours that the far side has received so far.
    """

    number: int
    received: int | None = None
    sent: int | None = None
    count: int | None = None


class Wire:
    """
    One protocol, from the prober's side; built for one run and size.

    @cvar minimum: bytes of the smallest datagram it can number.
    @cvar signedMinimum: the same with a key; L{None} if it has no such thing.

    @param key: shared with the far side; L{None} for none.
    """

    minimum: ClassVar[int] = 0
    signedMinimum: ClassVar[int | None] = None

    def __init__(self, size: int, key: bytes | None = None) -> None:
        self.size = size
        self._key = key

    def opening(self, interval: float, duration: float) -> bytes | None:
        """
        @param interval: seconds between requests.
        @param duration: seconds from the first to the last; may be infinite.
        @return: the datagram to send before the first request, and again when
            the far side has long been silent; L{None} for nothing.
        """
        return None

    def opened(self, data: bytes) -> bool:
        """
        @return: whether this answers the opening, so that requests may follow.
        @raise ProbeFailed: it does, with no.
        """
        return False

    def closing(self) -> bytes | None:
        """
        @return: the datagram to send after the last answer; L{None} for nothing.
        """
        return None

    def request(self, number: int) -> bytes:
        """
        @param number: from 0.
        @return: the datagram, of exactly the run's size.
        """
        raise NotImplementedError

    def reply(self, data: bytes) -> Reply | None:
        """
        @return: L{None} if C{data} is no answer to this run.
        """
        raise NotImplementedError
