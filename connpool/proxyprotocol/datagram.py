"""
Datagrams that come through a proxy: each begins with a header of its own.

Pure: what a datagram's bytes and its sender say about who asks.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from zope.interface import implementer

from connpool.errors import HeaderError
from connpool.interfaces import IStatsSource
from connpool.proxyprotocol.connection import Policy
from connpool.proxyprotocol.header import MAX_HEADER, V2_START, NotAHeader, parseDatagram
from connpool.proxyprotocol.server import ProxyStats, Trusted

__all__ = ["DatagramHeaders", "Unwrapped"]


@attrs.frozen
class Unwrapped:
    """
    A datagram out of its envelope.

    @ivar client: who asks; L{None} for the sender itself.  An answer goes to
        the sender in any case.
    """

    payload: bytes
    client: IPv4Address | IPv6Address | None


@implementer(IStatsSource)
class DatagramHeaders:
    """
    Takes headers off the datagrams of one port.

    A datagram whose header names no IP address (LOCAL, UNSPEC, unix) is
    refused: there would be nobody to limit.
    """

    kind = "proxy"
    name = "proxy"

    def __init__(
        self, trusted: Trusted, policy: Policy = Policy.REQUIRE, maxHeader: int = MAX_HEADER
    ) -> None:
        self.policy = policy
        self._maxHeader = maxHeader
        self._counts: Counter[str] = Counter()
        # forged senders only push one another out
        self._trusts = lru_cache(maxsize=1024)(lambda host: host in trusted.networks)

    def unwrap(self, datagram: bytes, sender: str) -> Unwrapped | None:
        """
        @param sender: the IP address that it came from.
        @return: L{None} for a datagram that must not be answered; it has been
            counted.
        """
        trusted = self._trusts(sender)
        if self.policy is Policy.REQUIRE and not trusted:
            return self._refuse("untrusted")
        if not trusted or self.policy is Policy.REJECT:
            if datagram.startswith(V2_START):
                return self._refuse("rejected")
            return Unwrapped(datagram, None)
        try:
            header, payload = parseDatagram(datagram, self._maxHeader)
        except NotAHeader:
            if self.policy is Policy.REQUIRE:
                return self._refuse("missing")
            self._counts["bare"] += 1
            return Unwrapped(datagram, None)
        except HeaderError:
            return self._refuse("malformed")
        self._counts["headers"] += 1
        if self.policy is Policy.IGNORE:
            return Unwrapped(payload, None)
        if not isinstance(header.source, IPv4Address | IPv6Address):
            return self._refuse("local" if header.local else "unknown")
        return Unwrapped(payload, header.source)

    def _refuse(self, counter: str) -> Unwrapped | None:
        self._counts[counter] += 1
        return None

    def stats(self) -> ProxyStats:
        """
        As of now; C{pending}, C{late}, C{lost} and C{crowded} stay 0.
        """
        return ProxyStats(**self._counts)
