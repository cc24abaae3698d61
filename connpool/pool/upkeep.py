"""
The deadlines of single connections: lifetime, keepalive, and whatever takes too long.
"""

from __future__ import annotations

from collections.abc import Callable

from connpool.pool.inventory import Inventory
from connpool.pool.states import Action, Lifetime, Pulse, Slot, State

__all__ = ["Upkeep"]

CONNECTING, IDLE, LEASED, RETURNING, CHECKING, CLOSING, GONE = State


class Upkeep:
    """
    Decides what becomes of a connection whose time has come.

    @param uniform: a random number from 0 to 1.
    @param slack: deadlines this close are due, seconds.
    """

    def __init__(self, inventory: Inventory, uniform: Callable[[], float], slack: float) -> None:
        self._inventory = inventory
        self._uniform = uniform
        self._slack = slack

    def began(self, slot: Slot, now: float) -> None:
        """
        A slot is ready for its first use: its lifetime begins.
        """
        settings = self._inventory.settings
        if settings.maxLifetime is not None:
            slot.lifetime = Lifetime(slot)
            jitter = 1 - settings.lifetimeJitter * self._uniform()
            self._inventory.agenda.enter(slot.lifetime, now + settings.maxLifetime * jitter)
        self._pulse(slot, now)

    def _pulse(self, slot: Slot, now: float) -> None:
        """
        Set the time of the next validation in the background, not the same for all.
        """
        every = self._inventory.settings.keepaliveTime
        if every is not None:
            slot.pulse = slot.pulse or Pulse(slot)
            self._inventory.agenda.enter(slot.pulse, now + every * (1 - self._uniform() / 5))

    def overdue(self, slot: Slot, now: float) -> None:
        """
        A slot is in its state for too long.
        """
        if slot.state is CONNECTING:
            self._inventory.todo.append(Action("fail", slot))
        elif slot.state is CHECKING:
            self._inventory.todo.append(Action("overdue", slot))
        elif slot.state is LEASED:
            limit = self._inventory.settings.leaseTimeout
            if limit is not None and now - slot.since >= limit - self._slack:
                self._inventory.counts["leasesExpired"] += 1
                self._inventory.todo.append(Action("expire", slot))
                return
            self._inventory.counts["leaksSuspected"] += 1
            self._inventory.todo.append(Action("leak", slot))
            self._inventory.watch(slot, now + self._slack)
        elif slot.doom != "aborted":
            self._inventory.abort(slot, now)
        else:
            self._inventory.forget(slot, None)
            self._inventory.counts["writtenOff"] += 1
            self._inventory.todo.append(Action("lost", slot))

    def keepAlive(self, slot: Slot, now: float) -> None:
        """
        Validate a slot in the background if nobody used it for C{keepaliveTime}, and
        few are being validated already.
        """
        every = self._inventory.settings.keepaliveTime
        if every is None:
            return
        inventory = self._inventory
        if slot.state is not IDLE:
            self._pulse(slot, now)
        elif now - slot.since < every * 0.8 - self._slack:
            self._pulse(slot, slot.since)
        elif slot.unread is not None and slot.unread(0):
            self._pulse(slot, now - every * 0.75)  # the reactor is about to deliver something
        elif inventory.checking >= inventory.settings.maxConnecting:
            self._pulse(slot, now - every * 0.75)
        else:
            self._pulse(slot, now)
            inventory.counts["keepalives"] += 1
            inventory.check(slot, now, shelve=True)
            inventory.todo.append(Action("check", slot))
