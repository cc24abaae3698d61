"""
What the sessions of one receiver share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from connpool.interfaces import IAuthenticator
from connpool.transfer.digests import digestNamed
from connpool.transfer.hashing import HashLane, InThread, inThread
from connpool.transfer.names import displayName
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.session import ReceiverSession
from connpool.transfer.receive.stream import Delivery
from connpool.transfer.wire.frames import PREAMBLE
from connpool.transfer.wire.link import Link

__all__ = ["NativeReceiver"]


class NativeReceiver:
    """
    Makes sessions for connections that begin with the preamble.

    @param reactor: times, threads and descriptors.
    @param digests: algorithms in order of preference.
    @param authenticator: L{None} if everybody may send, as C{anonymous}.
    @param run: how to hash elsewhere; the reactor's threads unless given.
    @ivar tickets: the sessions that further connections may join.
    @ivar claims: (principal, hash of the resume key) to the delivery that has
        it, for a newer one to find.
    """

    signature = PREAMBLE

    def __init__(
        self,
        reactor: Any,
        reception: Reception,
        digests: Sequence[str] = ("blake3", "sha256"),
        authenticator: IAuthenticator | None = None,
        run: InThread | None = None,
    ) -> None:
        self.clock = reactor
        self.reception = reception
        self.digests = tuple(digests)
        for name in self.digests:
            digestNamed(name)
        self.authenticator = authenticator
        run = run or inThread(reactor)
        self.lanes = lambda: HashLane(run)
        self.tickets: dict[bytes, ReceiverSession] = {}
        self.claims: dict[Any, Delivery] = {}

    def build(self, transport: Any) -> Link:
        """
        A protocol for one connection.
        """
        policy = self.reception.policy
        session = ReceiverSession(self, displayName(_host(transport.getPeer())))
        return Link(self.clock, session, policy.idleTimeout, policy.minimumRate)


def _host(address: Any) -> str:
    return getattr(address, "host", None) or getattr(address, "name", None) or "unix"
