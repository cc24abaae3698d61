"""
A request whose head was taken, as the resources see it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import TransferError
from connpool.transfer.identities import ANONYMOUS, Identity
from connpool.transfer.web.answers import Answer
from connpool.transfer.web.flow import Sink, Trailers
from connpool.transfer.web.head import Head
from connpool.transfer.web.target import Target

__all__ = ["Request", "Resource", "Sender"]


@attrs.frozen
class Sender:
    """
    The client of a request, once it is let in.

    @ivar peer: its name in logs.
    @ivar identity: the operator's entry for it; L{None} if everybody may send.
    @ivar network: the address of one without an entry, or its network where a sender has many
        addresses; else empty.
    @ivar shared: others may come from the same address: a proxy forwards them.
    """

    peer: str
    identity: Identity | None = None
    network: str = ""
    shared: bool = False

    @property
    def principal(self) -> str:
        """
        The owner of its files.
        """
        return ANONYMOUS if self.identity is None else self.identity.principal


@attrs.frozen
class Request:
    """
    One request.

    @ivar head: its head.
    @ivar target: the thing that it is about.
    @ivar sender: the client.
    @ivar receive: lets the body flow into a sink, at most once; a request whose body is not
        received gets its answer, and the connection ends.  Fires with the fields behind the
        body when the sink is done with all of it; fails with a L{TransferError}: the client
        left or was too slow, the body is broken, the sink failed, or C{end} was called.
    @ivar end: breaks the body off: C{receive} fails with the given error.  Later it does
        nothing.
    """

    head: Head
    target: Target
    sender: Sender
    receive: Callable[[Sink], Deferred[Trailers]]
    end: Callable[[TransferError], None]


class Resource(Protocol):
    """
    An adapter: it answers the requests of some methods.
    """

    @property
    def methods(self) -> Sequence[str]:
        """
        The methods that it answers.
        """

    def answer(self, request: Request) -> Awaitable[Answer]:
        """
        @return: the answer; fails with a L{TransferError} that becomes a problem document.
        """
