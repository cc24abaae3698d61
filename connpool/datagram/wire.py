"""
What the prober wants of a protocol: requests, and what a reply says.
"""

from __future__ import annotations

from typing import Protocol

import attrs

__all__ = ["Reply", "Wire"]


@attrs.frozen
class Reply:
    """
    @ivar number: of the request that it answers.
    @ivar received: the far side's time of receipt, nanoseconds since the epoch;
        L{None} unless it says.
    @ivar sent: the far side's time of answering.
    @ivar count: how many of our datagrams the far side has received so far.
    """

    number: int
    received: int | None = None
    sent: int | None = None
    count: int | None = None


class Wire(Protocol):
    """
    One protocol, from the prober's side; built for one run and size.

    @cvar minimum: the smallest datagram it can number.
    """

    protocol: str
    minimum: int

    def request(self, number: int) -> bytes:
        """
        @param number: from 0.
        @return: the datagram, of exactly the run's size.
        """

    def reply(self, data: bytes) -> Reply | None:
        """
        @return: L{None} for what is not an answer to this run.
        """
