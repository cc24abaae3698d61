"""
A request whose head was taken, as its resource sees it.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import TransferError
from connpool.transfer.names import displayName
from connpool.transfer.receive.reception import Reception
from connpool.transfer.records import Offer
from connpool.transfer.web.answers import Answer
from connpool.transfer.web.fields import durabilityOf, preferencesOf, ruleAskedFor
from connpool.transfer.web.flow import Sink
from connpool.transfer.web.gate import Sender
from connpool.transfer.web.head import FieldValues, Head
from connpool.transfer.web.settings import WebSettings
from connpool.transfer.web.target import Target

__all__ = ["Request", "Resource"]


@attrs.frozen
class Request:
    """
    One request.

    @ivar target: the thing that it is about.
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
    receive: Callable[[Sink], Deferred[FieldValues]]
    end: Callable[[TransferError], None]
    reception: Reception
    settings: WebSettings

    def offer(self, name: bytes = b"", **values: Any) -> Offer:
        """
        Make the offer of a file, on the terms that the request asks for.

        @param name: below the target.
        @param values: further attributes of the offer.
        @raise TransferError: it is refused, which is counted and logged.
        """
        preferences = preferencesOf(self.head)
        rule = ruleAskedFor(self.head, preferences) or ""
        values = {
            "transferId": secrets.token_hex(16),
            "durability": durabilityOf(preferences),
            "protocol": "web",
            **values,
        }
        raw = self.target.path + name
        try:
            return self.reception.offer(raw, self.sender.identity, rule, **values)
        except TransferError as e:
            self.reception.refuse(displayName(raw), self.sender.peer, e)
            raise


#: Answers the requests of one kind and method; fails with a L{TransferError} that becomes a
#: problem document.  Every such error but a L{Problem} has been counted and logged by the
#: reception, with the file that it is about.
Resource = Callable[[Request], Awaitable[Answer]]
