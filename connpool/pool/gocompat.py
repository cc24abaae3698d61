"""
The face of the Go package C{rocket049/connpool}: C{NewPool}, C{Get}, C{Put},
C{Close}.  Only its semantics are kept, none of its bugs.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IStreamClientEndpoint,
)
from zope.interface import Interface, directlyProvides, implementer

from connpool.errors import DoubleRelease, ForeignLease
from connpool.pool.arguments import checkCallable
from connpool.pool.lease import Lease
from connpool.pool.pool import ConnectionPool

__all__ = ["SeedPool", "newPool"]


def newPool(max: int, timeout: float, connect: Callable[[], Any], reactor: Any = None) -> SeedPool:  # noqa: A002 - the name it has in Go
    """
    A pool of connections that are made by calling C{connect}.

    @param max: connections at once.
    @param timeout: a connection is used again if it was idle for less than
        this, in seconds; an older one is closed, and C{get} dials a new one.
    @param connect: returns a connected protocol, or a Deferred of one, such as
        C{lambda: connectProtocol(endpoint, Redis())}.
    @param reactor: the clock; the global reactor if left out.
    @raise ValueError: for C{max} less than 1 or C{timeout} not more than 0.
    """
    if reactor is None:
        from twisted.internet import reactor
    return SeedPool(reactor, max, timeout, connect)


class SeedPool:
    """
    See L{newPool}.

    @ivar pool: the L{ConnectionPool} behind it, for everything else.
    """

    def __init__(self, reactor: Any, size: int, timeout: float, connect: Callable[[], Any]) -> None:
        checkCallable("connect", connect, "one that returns a connected protocol")
        self.pool = ConnectionPool(
            reactor, _Calling(connect), _Adopter(self._lost), maxSize=size, idleTimeout=timeout
        )
        # id() because a protocol may compare equal to another
        self._leases: dict[int, Lease] = {}
        self._broken: dict[int, weakref.ref[Any]] = {}

    def get(self) -> Deferred[Any]:
        """
        @return: fires with a connected protocol; cancelling it leaves the queue.
        """

        def got(lease: Lease) -> Any:
            protocol = lease.protocol.adopted
            self._leases[id(protocol)] = lease
            return protocol

        return self.pool.acquire().addCallback(got)

    def put(self, protocol: Any) -> None:
        """
        Give back what L{get} gave.  A broken connection is closed, not kept.

        @raise DoubleRelease: it was given back before.
        @raise ForeignLease: it is not of this pool.
        """
        lease = self._leases.pop(id(protocol), None)
        broken = self._broken.pop(id(protocol), None)
        if lease is not None:
            lease.release()
        elif broken is not None and broken() is protocol:
            pass  # it broke while it was out, and was given up then
        elif any(each is protocol for each in self._known()):
            raise DoubleRelease(f"{protocol!r} was put already; put each connection once")
        else:
            raise ForeignLease(f"{protocol!r} is not of this pool; put it where it came from")

    def _lost(self, protocol: Any) -> None:
        """
        A connection ended while it was out: keep nothing of it alive, but know it if
        it is put.
        """
        lease = self._leases.pop(id(protocol), None)
        if lease is None:
            return
        if not lease.released:
            lease.release()
        key = id(protocol)
        with contextlib.suppress(TypeError):  # some classes have no weak references
            self._broken[key] = weakref.ref(protocol, lambda _: self._broken.pop(key, None))

    def _known(self) -> list[Any]:
        slots: Any = self.pool.shell.core.inventory.slots
        return [slot.protocol.adopted for slot in slots if slot.protocol is not None]

    def close(self) -> Deferred[None]:
        """
        Close every connection; who waits gets L{PoolClosed}.  Idempotent.

        @return: fires when no connection is left.
        """
        return self.pool.close()


@implementer(IStreamClientEndpoint)
class _Calling:
    """
    An endpoint that calls a function which connects.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect

    def connect(self, factory: Any) -> Deferred[Any]:
        """
        Connect, and put C{factory}'s protocol in front of the one that came.
        """

        def adopt(protocol: Any) -> Any:
            guard = factory.buildProtocol(protocol)
            guard.protocol.takeOver(guard)
            return guard

        return maybeDeferred(self._connect).addCallback(adopt)

    def __repr__(self) -> str:
        return f"<{self._connect!r}>"


class _Adopter:
    """
    A factory for protocols that were connected before.
    """

    def __init__(self, lost: Callable[[Any], None]) -> None:
        self._lost = lost

    def buildProtocol(self, protocol: Any) -> _Adopted:
        """
        @param protocol: in place of an address, what to adopt.
        """
        return _Adopted(protocol, self._lost)


@implementer(IProtocol)
class _Adopted:
    """
    A connected protocol under the eyes of a pool.

    Its transport delivers to it and not to the pool's guard, so what matters
    to the pool is turned aside on the instance.
    """

    def __init__(self, protocol: Any, lost: Callable[[Any], None]) -> None:
        self.adopted: Any = protocol
        self.dataReceived = protocol.dataReceived
        self._told = protocol.connectionLost
        self._lost = lost
        if IHalfCloseableProtocol.providedBy(protocol):
            directlyProvides(self, IHalfCloseableProtocol)
            self.readConnectionLost = protocol.readConnectionLost
            self.writeConnectionLost = protocol.writeConnectionLost

    def takeOver(self, guard: Any) -> None:
        """
        Let the transport deliver to C{guard}, and that to the protocol.
        """
        protocol: Any = self.adopted
        guard.makeConnection(protocol.transport)
        # connect() delivered it: a handshake is its own business
        guard.handshaken = True
        protocol.dataReceived = guard.dataReceived
        protocol.connectionLost = guard.connectionLost
        if IHalfCloseableProtocol.providedBy(protocol):
            vars(protocol)["readConnectionLost"] = guard.readConnectionLost

    def connectionLost(self, reason: Any) -> None:
        """
        Tell the protocol, then forget it.
        """
        try:
            self._told(reason)
        finally:
            self._lost(self.adopted)

    def makeConnection(self, transport: Any) -> None:
        """
        It is connected.
        """

    def connectionMade(self) -> None:
        """
        It was told.
        """

    def __conform__(self, interface: type[Interface]) -> Any:
        """
        Its adapters are the protocol's.
        """
        return interface(self.adopted, None)
