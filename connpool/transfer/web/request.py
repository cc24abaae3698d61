"""
A request whose head was taken, as its resource sees it.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import TransferError
from connpool.transfer.names import displayName
from connpool.transfer.receive.reception import Reception
from connpool.transfer.records import ASKABLE_DURABILITIES, IF_EXISTS, Offer
from connpool.transfer.web.answers import Answer, Problem
from connpool.transfer.web.body import Sink
from connpool.transfer.web.gate import Sender
from connpool.transfer.web.head import FieldValues, Head
from connpool.transfer.web.settings import WebSettings
from connpool.transfer.web.target import Target

__all__ = ["Request", "Resource", "preferencesOf"]


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
        Make the offer of a file with a C{name} below the target, on the terms that the request asks
        for; a refusal is counted and logged.
        """
        rule, durability = _termsOf(self.head)
        values = {
            "transferId": secrets.token_hex(16),
            "durability": durability,
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


def _termsOf(head: Head) -> tuple[str, str]:
    """
    Return the rule for a name that is taken, empty for that of the receiver, and the durability.
    """
    if head.all(b"if-match") or head.all(b"if-unmodified-since"):
        raise Problem(412, "files have no versions here that a condition could name", "exists")
    preferred = preferencesOf(head)
    for name, choices in (("if-exists", IF_EXISTS), ("durability", ASKABLE_DURABILITIES)):
        if preferred.get(name, choices[0]) not in choices:
            raise Problem(400, f"Prefer: {name} is one of {', '.join(choices)}")
    # another value names versions that the client knows, and none of ours is among them
    refuses = b"*" in head.words(b"if-none-match")
    rule = "refuse" if refuses else preferred.get("if-exists", "")
    return rule, preferred.get("durability", "full")


def preferencesOf(head: Head) -> Mapping[str, str]:
    """
    Return the preferences of C{Prefer} (RFC 7240), without their parameters; of one that comes
    twice the first counts.
    """
    return _preferencesIn(b",".join(head.all(b"prefer")))


@lru_cache(maxsize=64)  # clients say the same in each request
def _preferencesIn(value: bytes) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for part in value.decode("latin-1").split(","):
        name, _, content = part.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower(), content.strip().strip('"'))
    return found
