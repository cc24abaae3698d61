"""
The right to use one connection, given back exactly once.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from zope.interface import implementer

from connpool.errors import DoubleRelease, LeaseError, LeaseReleased
from connpool.interfaces import ILease
from connpool.pool.states import State

if TYPE_CHECKING:
    from connpool.pool.connection import Connection
    from connpool.pool.pool import ConnectionPool

__all__ = ["Lease", "Scope"]

LEASED = State.LEASED


@implementer(ILease)
class Lease:
    """
    See L{ILease}.

    A lease that is garbage-collected without having been given back is logged
    and its connection closed: the slot is never lost, not even if an asyncio
    task is cancelled between getting the lease and looking at it.
    """

    __slots__ = ("__weakref__", "_connection", "_pool", "_released")

    def __init__(self, pool: ConnectionPool, connection: Connection) -> None:
        self._pool = pool
        self._connection: Connection | None = connection

    _released: str  # with debug, the stack of the release

    def __del__(self) -> None:
        connection = self._connection
        if connection is not None and connection.state is LEASED:
            self._pool._later(self._pool._reclaim, connection)

    @property
    def protocol(self) -> Any:
        """
        See L{ILease.protocol}.
        """
        if self._connection is None:
            raise LeaseReleased(
                f"this lease of pool {self._pool.name} was given back{self._where()}; "
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
        self._pool._giveBack(connection, self)

    def discard(self) -> None:
        """
        See L{ILease.discard}.
        """
        connection = self._owned()
        self._connection = None
        self._pool._throwAway(connection, self)

    def detach(self) -> Any:
        """
        See L{ILease.detach}.
        """
        connection = self._owned()
        self._connection = None
        return self._pool._detach(connection, self)

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
            if kind is GeneratorExit:
                self._pool._later(self._pool._throwAway, connection, None)
            else:
                self._pool._leave(connection, self, failed=kind is not None)

    def _owned(self) -> Connection:
        if self._connection is None:
            raise self._twice()
        return self._connection

    def _twice(self) -> DoubleRelease:
        self._pool._core.counts["doubleReleases"] += 1
        return DoubleRelease(
            f"this lease of pool {self._pool.name} was given back already{self._where()}; "
            "give each lease back once"
        )

    def _where(self) -> str:
        """
        With C{debug}, where the lease was given back.
        """
        stack = getattr(self, "_released", "")
        return f", here:\n{stack}\n" if stack else ""


class Scope:
    """
    What C{async with pool.lease() as protocol} enters: the connection goes
    back when the block ends, and is discarded when it ends by an exception.

    It can be entered again after it was left.
    """

    __slots__ = ("_code", "_connection", "_offset", "_pool", "_timeout")

    def __init__(self, pool: ConnectionPool, timeout: Any, code: Any, offset: int) -> None:
        self._pool = pool
        self._timeout = timeout
        self._code = code
        self._offset = offset
        self._connection: Connection | None = None

    async def __aenter__(self) -> Any:
        if self._connection is not None:
            raise LeaseError("this scope is entered already; call lease() once for each block")
        pool = self._pool
        core = pool._core
        if core.calm and (connection := core.take(pool._seconds())) is not None:
            connection.code = self._code  # type: ignore[attr-defined]
            connection.offset = self._offset  # type: ignore[attr-defined]
            if not core.calm:
                pool.settle()
        else:
            lease = await pool._acquire(self._timeout, self._code, self._offset)
            connection = lease._connection
            lease._connection = None
        self._connection = connection  # type: ignore[assignment]
        return connection.protocol  # type: ignore[union-attr]

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        connection = self._connection
        assert connection is not None
        self._connection = None
        if kind is None:
            self._pool._giveBack(connection, None)
        elif kind is GeneratorExit:
            # the coroutine is closed, maybe by the garbage collector
            self._pool._later(self._pool._throwAway, connection, None)
        else:
            self._pool._leave(connection, None, failed=True)
