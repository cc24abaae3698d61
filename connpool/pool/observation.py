"""
Services for those who want to see every lease: observers,
C{leakThreshold}, C{debug}.  None of them can harm the pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.logger import Logger

from connpool.pool.acquire import Acquire
from connpool.pool.arguments import asObservers
from connpool.pool.connection import Connection, site
from connpool.pool.core import Core
from connpool.pool.lease import Lease
from connpool.pool.owners import Holder, currentHolder, whole
from connpool.pool.states import State

__all__ = ["Watch"]


class Watch:
    """
    The watchers of one pool.
    """

    _log = Logger()

    def __init__(self, pool: Any, core: Core, observers: Iterable[Any]) -> None:
        self._pool = pool
        self._core = core
        self._observers = asObservers(observers)
        self.configured()

    def configured(self) -> None:
        """
        The settings may have changed: see whether anybody watches.
        """
        settings = self._core.settings
        self._core.watched = bool(
            self._observers
            or settings.leakThreshold is not None
            or settings.leaseTimeout is not None
            or settings.debug
        )

    def tell(self, event: str, *args: Any) -> None:
        """
        Tell the observers.
        """
        for observer in self._observers:
            try:
                getattr(observer, event)(self._pool, *args)
            except Exception:
                self._log.failure("{observer!r}.{event} failed", observer=observer, event=event)

    def waits(self, waiter: Acquire) -> None:
        """
        C{waiter} is about to wait.
        """
        if self._core.settings.debug:
            waiter.stack = whole()
            waiter.holder = currentHolder()
            if waiter.holder is not None:
                waiter.holder.waiting += 1

    def waited(self, waiter: Acquire) -> None:
        """
        C{waiter} waits no more.
        """
        if waiter.holder is not None:
            waiter.holder.waiting -= 1
            waiter.holder.changed()

    def began(self, connection: Connection, now: float, waiter: Acquire | None = None) -> None:
        """
        A lease began, through the queue or (C{waiter} is L{None}) without.
        """
        core = self._core
        if not core.watched:
            return
        core.inventory.watch(connection, now)
        if core.settings.debug:
            connection.stack = whole() if waiter is None else waiter.stack
            holder: Holder | None = currentHolder() if waiter is None else waiter.holder
            if holder is not None:
                connection.holder = holder
                holder.connections[connection] = None
        self.tell("acquired", connection.number, 0.0 if waiter is None else now - waiter.since)

    def ended(self, connection: Connection, now: float, lease: Lease | None = None) -> None:
        """
        A lease is about to end.
        """
        if not self._core.watched:
            return
        held = now - connection.since
        if connection.suspected:
            connection.suspected = False
            self._log.info(
                "pool {name}: the lease acquired at {where} came back after {held:.3g} s",
                name=self._core.name,
                where=site(connection.code, connection.offset),
                held=held,
            )
        if connection.holder is not None:
            connection.holder.connections.pop(connection, None)
            connection.holder.changed()
            connection.holder = None
        if lease is not None and self._core.settings.debug:
            lease.stack = whole()
        self.tell("released", connection.number, held)

    def leak(self, connection: Connection, now: float) -> None:
        """
        A lease is held for suspiciously long.
        """
        connection.suspected = True
        where = site(connection.code, connection.offset)
        self._log.warn(
            "pool {name}: the lease acquired at {where} is held for {held:.3g} s; "
            "is it given back on every path?{stack}",
            name=self._core.name,
            where=where,
            held=now - connection.since,
            stack=connection.stack and f" Acquired here:\n{connection.stack}",
        )
        self.tell("leakSuspected", connection.number, where, now - connection.since)

    def expired(self, connection: Connection, limit: float) -> None:
        """
        The pool ends a lease that is held for longer than C{limit} seconds.
        """
        self._log.warn(
            "pool {name}: the lease acquired at {where} was held for more than "
            "leaseTimeout={limit:g} s; its connection is closed{stack}",
            name=self._core.name,
            where=site(connection.code, connection.offset),
            limit=limit,
            stack=connection.stack and f". Acquired here:\n{connection.stack}",
        )

    def leaked(self, connection: Connection) -> None:
        """
        A lease was garbage-collected.
        """
        self._core.inventory.counts["leasesLostToGC"] += 1
        self._log.warn(
            "pool {name}: a lease acquired at {where} was never given back; "
            "its connection is closed{stack}",
            name=self._core.name,
            where=site(connection.code, connection.offset),
            stack=connection.stack and f". Acquired here:\n{connection.stack}",
        )

    def nested(self, waiter: Acquire) -> None:
        """
        With C{debug}, C{waiter} has to wait: say so if everybody who could give
        something back is waiting too.
        """
        core = self._core
        if waiter.holder is None or core.inventory.leased < core.settings.maxSize:
            return
        leased: list[Any] = [slot for slot in core.inventory.slots if slot.state is State.LEASED]
        if not all(each.holder is not None and each.holder.waiting for each in leased):
            return
        self._log.warn(
            "pool {name}: deadlock: every one of its {count} connections is held by a task that "
            "waits for another one, the last at {where}; acquire once and pass the protocol on, "
            "or raise maxSize. They were acquired at {held}",
            name=core.name,
            count=len(leased),
            where=site(waiter.code, waiter.offset),
            held=", ".join(site(each.code, each.offset) for each in leased),
        )
