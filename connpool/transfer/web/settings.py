"""
The operator's choices for the web door, and its counts.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import attrs
from zope.interface import implementer

from connpool.interfaces import IStatsSource

__all__ = ["WebCounts", "WebSettings"]


@attrs.frozen(kw_only=True)
class WebSettings:
    """
    The operator's choices.

    @ivar hosts: names under which the receiver is asked, beside addresses and this machine's
        own names.
    @ivar origins: origins of other sites whose pages may send; C{*} for all.
    @ivar url: URL of the receiver as clients see it, with a slash at its end; empty if only
        they know it.
    @ivar sha256: every file's SHA-256 is computed and told.
    @ivar download: files are given to identities that may read.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    url: str = ""
    sha256: bool = False
    download: bool = False


@implementer(IStatsSource)
@attrs.define(eq=False)
class WebCounts:
    """
    The counts of a web door, there before the door itself is loaded.

    @ivar connections: open now.
    @ivar requests: answered, by the class of the status.
    @ivar refused: answered with an error, by its code.
    @ivar interim: answers that were not final, C{100 Continue} and others.
    @ivar sentBytes: bytes of files that were written.
    @ivar unanswered: requests whose client left before it had its answer.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset({"connections"})
    kind: ClassVar[str] = "web"
    name: ClassVar[str] = "web"

    connections: int = 0
    requests: dict[str, int] = attrs.field(factory=Counter)
    refused: dict[str, int] = attrs.field(factory=Counter)
    interim: int = 0
    sentBytes: int = 0
    unanswered: int = 0

    def answered(self, status: int, code: str) -> None:
        """
        Count a final answer; C{code} is the error's, empty if it is none.
        """
        self.requests[f"{status // 100}xx"] += 1
        if code:
            self.refused[code] += 1

    def stats(self) -> WebCounts:
        return attrs.evolve(self, requests=dict(self.requests), refused=dict(self.refused))
