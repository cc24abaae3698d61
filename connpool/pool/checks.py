"""
The checks of L{IPoolable} that a pool runs on connections that no lease has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import DestinationBad
from connpool.pool import outcomes
from connpool.pool.connection import Connection, Owner

__all__ = ["reset", "run"]

_log = Logger()


def run(owner: Owner, connection: Connection, what: str, check: Callable[[], Any]) -> None:
    """
    Run a reset or validation that the core has booked.

    @param what: C{reset} or C{validate}.
    """
    core = owner.core

    def passed(result: Any) -> None:
        refused = what == "validate" and not result
        ended(what if refused else None)

    def failed(reason: Failure) -> None:
        _log.info(
            "{what}() of {protocol!r} failed: {error}",
            what=what,
            protocol=connection.protocol,
            error=reason.getErrorMessage(),
        )
        if reason.check(DestinationBad) is not None:
            outcomes.condemn(core, connection, owner.seconds())
        ended(what)

    def ended(failure: str | None) -> None:
        if connection.pending is pending:
            connection.pending = None
            core.checked(connection, owner.seconds(), failure)
            owner.settle()

    connection.validating = what == "validate"
    pending = maybeDeferred(check)
    connection.pending = pending
    pending.addCallbacks(passed, failed)


def reset(owner: Owner, connection: Connection) -> None:
    """
    Ask the protocol whether its connection may be used again, and have it reset.
    """
    before = connection.state
    try:
        reusable = connection.poolable.isReusable()
    except DestinationBad:
        outcomes.condemn(owner.core, connection, owner.seconds())
        reusable = False
    except Exception:
        _log.failure("isReusable() of {protocol!r} failed", protocol=connection.protocol)
        reusable = False
    connection.unreset = False
    if connection.state is not before:
        return
    if not reusable:
        owner.core.discard(connection, owner.seconds())
        return
    connection.resume()
    owner.core.check(connection, owner.seconds())
    run(owner, connection, "reset", connection.poolable.reset)
