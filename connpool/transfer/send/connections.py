"""
Connections to a receiver: made one by one, or leased from a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure

from connpool.errors import NetworkFailed, TransferError
from connpool.transfer.digests import digestNamed
from connpool.transfer.send.credentials import Credentials
from connpool.transfer.send.session import SenderLink, SenderSession

if TYPE_CHECKING:
    from connpool.transfer.send.pace import Pace

__all__ = [
    "Connection",
    "Connections",
    "Dialled",
    "Pooled",
    "SessionFactory",
    "connectionFailure",
    "greetingError",
    "hello",
]


class SessionFactory(ClientFactory):
    """
    Makes the sender's end of connections, for an endpoint or a pool.

    @param digests: algorithms this side can compute and trusts.
    @param idleTimeout: seconds of silence from the receiver that end a connection; fewer if
        the receiver's are fewer.
    @param pace: of all that is sent; L{None} for no limit.
    @param more: capabilities of this side beside those of every sender.
    @ivar refusal: why the last connection that was not let in was not.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        digests: Sequence[str] = ("blake3", "sha256"),
        credentials: Credentials | None = None,
        idleTimeout: float = 60.0,
        pace: Pace | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self._reactor = reactor
        for name in digests:
            digestNamed(name)
        self._digests = tuple(digests)
        self._credentials = credentials
        self._idleTimeout = idleTimeout
        self.pace = pace
        self._more = tuple(more)
        self.refusal: TransferError | None = None

    def buildProtocol(self, addr: Any) -> SenderLink:
        session = SenderSession(
            self._reactor,
            self._digests,
            self._credentials,
            self._idleTimeout,
            self.pace,
            self._more,
        )
        session.onRefused = partial(setattr, self, "refusal")
        return SenderLink(self._reactor, session, self._idleTimeout)


def hello(link: SenderLink) -> Deferred[SenderSession]:
    """
    Wait for the greeting after connecting: a pool's C{prepare}.
    """
    return link.session.ready()


@attrs.frozen(eq=False)
class Connection:
    """
    A session that has been let in.

    @ivar release: gives it back, fit for another use.
    @ivar discard: ends it.
    """

    session: SenderSession
    release: Callable[[], Any]
    discard: Callable[[], Any]


class Connections(Protocol):
    """
    A way to the receiver; a plain Python protocol.
    """

    async def open(self) -> Connection:
        """
        Connect and be let in.
        """


@attrs.frozen
class Dialled:
    """
    Connections made one by one.
    """

    endpoint: Any
    factory: SessionFactory

    async def open(self) -> Connection:
        link = await self.endpoint.connect(self.factory)
        session = link.session
        try:
            await hello(link)
        except BaseException:
            session.close()
            raise
        return Connection(session, session.close, session.close)


@attrs.frozen
class Pooled:
    """
    Connections leased from a pool.

    @ivar pool: one over a L{SessionFactory} with C{prepare=hello}: a lease is one
        authenticated session.
    """

    pool: Any

    async def open(self) -> Connection:
        lease = await self.pool.acquire()
        session = lease.protocol.session

        def discard() -> None:
            session.close()
            lease.discard()

        return Connection(session, lease.release, discard)


def greetingError(why: BaseException | None) -> TransferError | None:
    """
    Find the error of a peer that answered in what a connection attempt raised.
    """
    # a pool's own error says why in its cause
    while why is not None and not isinstance(why, TransferError):
        why = why.__cause__
    return why


def connectionFailure(why: Exception) -> NetworkFailed:
    """
    Say in one line why nobody answered a connection attempt.
    """
    cause = getattr(why, "reasons", None)
    text = str(cause[0].value if cause and isinstance(cause[0], Failure) else why)
    text = " ".join(text.split()).rstrip(".") or type(why).__name__
    failed = NetworkFailed(f"cannot connect: {text}")
    failed.__cause__ = why
    return failed
