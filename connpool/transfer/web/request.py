"""
A request whose head was taken, as the resources see it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import TransferError
from connpool.transfer.identities import ANONYMOUS, Identity
from connpool.transfer.web.answers import Answer
from connpool.transfer.web.flow import Sink
from connpool.transfer.web.head import Head
from connpool.transfer.web.problems import Fields
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


class _Connection(Protocol):
    """
    The connection that a request came by.
    """

    def receive(self, sink: Sink) -> Deferred[Sequence[tuple[bytes, bytes]]]:
        """
        Let the body flow, after C{100 Continue} if the client waits for that.
        """

    def interim(self, status: int, fields: Fields) -> None:
        """
        Send an answer that is not final.
        """

    def end(self, why: TransferError) -> None:
        """
        Break off the body.
        """


class Request:
    """
    One request.

    @ivar head: its head.
    @ivar target: the thing that it is about.
    @ivar sender: the client.
    """

    def __init__(self, head: Head, target: Target, sender: Sender, connection: _Connection) -> None:
        self.head = head
        self.target = target
        self.sender = sender
        self._connection = connection

    def receive(self, sink: Sink) -> Deferred[Sequence[tuple[bytes, bytes]]]:
        """
        Let the body flow; at most once.  A request whose body is not received gets its
        answer, and the connection ends.

        @param sink: given one run of content after the other, while at most a few MiB wait
            for it.
        @return: fires with the fields behind the body when C{sink} is done with all of it;
            fails with a L{TransferError}: the client left or was too slow, the body is
            broken, C{sink} failed, or L{end} was called.
        """
        return self._connection.receive(sink)

    def interim(self, status: int, fields: Fields = ()) -> None:
        """
        Send an answer that is not final, unless the client has left or speaks HTTP/1.0.

        @param status: 102 to 199; 100 is sent by L{receive}.
        """
        self._connection.interim(status, fields)

    def end(self, why: TransferError) -> None:
        """
        Break off the body: L{receive} fails with C{why}.  Later it does nothing.
        """
        self._connection.end(why)


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
