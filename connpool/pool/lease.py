"""
The right to use one connection, given back exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import DoubleRelease, LeaseError, LeaseReleased
from connpool.interfaces import ILease
from connpool.pool.connection import Connection, Owner
from connpool.pool.states import State

__all__ = ["Lease", "Scope", "use"]

LEASED = State.LEASED


@implementer(ILease)
class Lease:
    """
    See L{ILease}.

    A lease that is garbage-collected without having been given back is logged
    and its connection closed: the slot is never lost, not even if an asyncio
    task is cancelled between getting the lease and looking at it.

    @param owner: whose lease it is.
    @ivar stack: with C{debug}, where it was given back.
    @ivar running: the Deferred of a C{run}, cancelled when the pool ends the lease.
    @ivar limit: the C{leaseTimeout} after which the pool ended it.
    """

    __slots__ = ("__weakref__", "_connection", "limit", "owner", "running", "stack")

    def __init__(self, owner: Owner, connection: Connection) -> None:
        self.owner = owner
        self._connection: Connection | None = connection

    # set only where they are needed
    stack: str
    running: Deferred[Any]
    limit: float

    def __del__(self) -> None:
        connection = self._connection
        if connection is not None and connection.state is LEASED:
            self.owner.later(self.owner.reclaim, connection)

    @property
    def protocol(self) -> Any:
        """
        See L{ILease.protocol}.
        """
        if self._connection is None:
            raise self._expired() or LeaseReleased(
                f"this lease of pool {self.owner.name} was given back{self._where()}; "
                "acquire another one"
            )
        return self._connection.protocol

    @property
    def number(self) -> int:
        """
        See L{ILease.number}.
        """
        return self._owned().number

    @property
    def uses(self) -> int:
        """
        See L{ILease.uses}.
        """
        return self._owned().uses

    @property
    def released(self) -> bool:
        """
        See L{ILease.released}.
        """
        return self._connection is None

    def release(self) -> None:
        """
        See L{ILease.release}.
        """
        connection = self._connection
        if connection is None:
            raise self._twice()
        self._connection = None
        self.owner.giveBack(connection, self)

    def discard(self, *, destinationBad: bool = False) -> None:
        """
        See L{ILease.discard}.
        """
        connection = self._owned()
        self._connection = None
        if destinationBad:
            self.owner.condemn(connection)
        self.owner.throwAway(connection, self)

    def detach(self) -> Any:
        """
        See L{ILease.detach}.
        """
        connection = self._owned()
        self._connection = None
        return self.owner.detach(connection, self)

    async def __aenter__(self) -> Any:
        return self.protocol

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        connection = self._connection
        if connection is not None:
            self._connection = None
            _leave(self.owner, connection, self, kind)

    def _owned(self) -> Connection:
        if self._connection is None:
            raise self._twice()
        return self._connection

    def expire(self, seconds: float) -> None:
        """
        The pool ends the lease: it was held for longer than C{seconds}.
        """
        self._connection = None
        self.limit = seconds
        if (running := getattr(self, "running", None)) is not None:
            running.cancel()

    def _expired(self) -> LeaseReleased | None:
        limit = getattr(self, "limit", None)
        if limit is None:
            return None
        return LeaseReleased(
            f"pool {self.owner.name} ended this lease after leaseTimeout={limit:g} s; "
            "acquire another one, or raise leaseTimeout"
        )

    def _twice(self) -> LeaseError:
        if error := self._expired():
            return error
        self.owner.releasedTwice()
        return DoubleRelease(
            f"this lease of pool {self.owner.name} was given back already{self._where()}; "
            "give each lease back once"
        )

    def _where(self) -> str:
        """
        With C{debug}, where the lease was given back.
        """
        stack = getattr(self, "stack", "")
        return f", here:\n{stack}\n" if stack else ""


def use(lease: Lease, f: Callable[[Any], Any]) -> Deferred[Any]:
    """
    Call C{f} with the lease's protocol, and give the lease back when it is done.
    """

    def used(result: Any) -> Any:
        connection, lease._connection = lease._connection, None
        if connection is not None:
            lease.owner.leave(connection, lease, failed=isinstance(result, Failure))
        elif isinstance(result, Failure) and (expired := lease._expired()) is not None:
            return Failure(expired)
        return result

    lease.running = running = maybeDeferred(f, lease.protocol)
    return running.addBoth(used)


def _leave(
    owner: Owner, connection: Connection, lease: Lease | None, kind: type[BaseException] | None
) -> None:
    """
    An C{async with} block ended.
    """
    if kind is None:
        owner.giveBack(connection, lease)
    elif kind is GeneratorExit:
        # the coroutine is closed, maybe by the garbage collector
        owner.later(owner.throwAway, connection, None)
    else:
        owner.leave(connection, lease, failed=True)


def _forsake(waiting: Deferred[Any]) -> None:
    """
    Nobody waits for an acquire any more.  What it was served meanwhile is unused.
    """
    waiting.addCallbacks(Lease.release, lambda _: None)
    waiting.cancel()


class Scope:
    """
    The object that C{async with pool.lease() as protocol} enters: the connection
    goes back when the block ends, and is discarded when it ends by an exception.

    It can be entered again after it was left.
    """

    __slots__ = ("_code", "_held", "_offset", "_timeout", "owner")

    def __init__(self, owner: Owner, timeout: Any, code: Any, offset: int) -> None:
        self.owner = owner
        self._timeout = timeout
        self._code = code
        self._offset = offset
        # the connection, or its lease; meanwhile the Deferred that is waited for
        self._held: Any = None

    def __del__(self) -> None:
        held = self._held
        if held is not None and isinstance(held, Connection) and held.state is LEASED:
            self.owner.later(self.owner.reclaim, held)

    async def __aenter__(self) -> Any:
        if self._held is not None:
            raise LeaseError("this scope is entered already; call lease() once for each block")
        owner = self.owner
        core = owner.core
        connection: Any
        if core.calm and core.idle and (connection := core.take(owner.seconds())) is not None:
            self._held = connection
            connection.code = self._code
            connection.offset = self._offset
            if not core.calm:
                owner.settle()
            return connection.protocol
        self._held = waiting = owner.acquire(self._timeout, self._code, self._offset, self)
        try:
            got = await waiting
        except BaseException:
            self._held = None
            if not waiting.called:
                # the coroutine is closed, or an asyncio task that cannot wait for this
                owner.later(_forsake, waiting)
            raise
        self._held = got
        return got.protocol

    def hold(self, waiting: Any, connection: Connection) -> bool:
        """
        Take the connection that the scope waits for: from now on it is the scope that
        gives it back, whatever becomes of the coroutine.

        @return: whether it still waits.
        """
        if self._held is not waiting:
            return False
        self._held = connection
        return True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held = self._held
        self._held = None
        if kind is None and held.__class__ is Connection:
            self.owner.giveBack(held, None)
            return
        if held is None:
            raise LeaseError("this scope was left already; call lease() once for each block")
        lease = None
        if isinstance(held, Lease):
            lease = held
            held, lease._connection = lease._connection, None
        if held is not None:  # else the pool has ended it
            _leave(self.owner, held, lease, kind)
