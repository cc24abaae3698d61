"""
Every order in which things can happen to a pool.

A pool lives in one thread and sees time and the network only through a clock
and an endpoint.  With a L{Clock} and a L{FakeEndpoint}, I{what happens next} is
a choice of the test; L{checkInterleavings} makes every choice, to a depth, and
looks after each step whether the pool's promises hold.  It is how the bugs are
found that other pools met in production: a waiter that is cancelled in the
turn in which it is served, a connection that dies between two callbacks.

Theory of operation
===================

The search is breadth first, so the first violation has a shortest story.  A
state is reached by replaying its story on a new pool: pools cannot be copied.
Two stories that lead to the same state (L{fingerprint}: everything that the
pool's future depends on, times relative to now) are continued once.  From
every new state the pool is also brought to an end, in which no slot may be
missing, no waiter unanswered and nothing left on the clock.

Run it on a pool with your own factory and L{IPoolable}; C{extra} adds events,
such as the answers that your C{reset} waits for::

    def build(clock, endpoint):
        return ConnectionPool(clock, endpoint, MyFactory(), maxSize=2)

    print(checkInterleavings(build, depth=5))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
from twisted.internet.task import Clock

from connpool.pool.pool import ConnectionPool
from connpool.pool.states import State
from connpool.pool.timers import NEVER
from connpool.testing.endpoints import FakeEndpoint
from connpool.testing.events import EVENTS
from connpool.testing.world import Event, World

__all__ = [
    "Exploration",
    "Violation",
    "checkInterleavings",
]


class Violation(AssertionError):
    """
    The pool broke a promise.

    @ivar story: the events that lead to it, a shortest sequence.
    """

    def __init__(self, what: str, story: Sequence[str]) -> None:
        super().__init__(f"{what}; after: {', '.join(story) or 'nothing'}")
        self.story = tuple(story)


@attrs.frozen
class Exploration:
    """
    The extent of an exploration.

    @ivar depth: the length of the longest stories.
    @ivar states: how many different states there were.
    @ivar steps: how many times something happened in one of them.
    """

    depth: int
    states: int
    steps: int


def fingerprint(world: World) -> Any:
    """
    Everything that the future of C{world} depends on.  Counters, names and
    absolute times are no part of it.
    """
    core: Any = world.pool.shell.core
    now = world.clock.seconds()

    def ahead(when: float) -> float:
        return when if when == NEVER else round(when - now, 6)

    index = {slot.number: index for index, slot in enumerate(core.inventory.slots)}
    number = {slot: index for index, slot in enumerate(core.inventory.slots)}
    order = {slot: index for index, slot in enumerate(core.inventory.idle)}
    owners = [index.get(held.lease.number) for held in world.held]
    attempts = {id(attempt): index for index, attempt in enumerate(world.endpoint.pending)}
    slots = []
    for slot in core.inventory.slots:
        transport = slot.guard.transport if slot.guard is not None else None
        slots.append(
            (
                slot.state,
                ahead(slot.since) if slot.state in {State.IDLE, State.CONNECTING} else 0,
                order.get(slot),
                slot.uses if core.settings.maxUses else 0,
                slot.doom,
                slot.plain,
                slot.fit,
                slot.asked,
                slot.shelved,
                slot.proven and slot.destination.barren,
                slot.delays if slot.delayedAt == slot.uses else 0,
                world.pool.shell.turns.waiting.get(slot),
                core.supply.wasted and ahead(slot.bornAt),
                ahead(slot.deadline),
                slot.lifetime and ahead(slot.lifetime.deadline),
                number.get(slot.replaces[0]) if slot.replaces else None,
                slot in core.inventory.dials,
                slot.destination.retryAt and core.supply.destinations.index(slot.destination),
                slot.pending is not None and not slot.pending.called,
                transport
                and (
                    transport.connected,
                    transport.disconnecting,
                    transport.aborting,
                    transport.reading,
                    transport in world.dirty,
                    transport.kernel,
                    transport.kernelEnd,
                ),
            )
        )
    return (
        core.phase,
        core.calm,
        core.refusing,
        core.supply.started,
        tuple(slots),
        tuple(owners),
        len(attempts),
        len(world.live()),
        tuple((ahead(waiter.since), ahead(waiter.until)) for waiter in core.queue),
        tuple(
            (
                destination.failures,
                destination.barren,
                destination.slow,
                destination.early,
                ahead(destination.retryAt) if destination.down(now) else 0,
                destination.window,
                destination.connecting,
            )
            for destination in core.supply.destinations
        ),
        core.supply.owed,
        core.supply.wasted,
        core.supply.wasted and core.supply.acquiresThen != core.acquires,
        max(0.0, ahead(core.supply.refillAt)),
        max(0.0, ahead(core.supply.wastedUntil)),
        tuple((number.get(slot), reason) for slot, reason in core.supply.retiring),
        ahead(core.end.deadline),
        tuple(sorted(ahead(call.getTime()) for call in world.clock.getDelayedCalls())),
        len(world.closed),
    )


def checkInterleavings(
    build: Callable[[Clock, FakeEndpoint], ConnectionPool],
    depth: int,
    *,
    actors: int = 3,
    without: Iterable[str] = (),
    extra: Sequence[Event] = (),
    state: Callable[[World], Any] = lambda _: None,
) -> Exploration:
    """
    Let everything happen in every order.

    @param build: makes the pool, from a clock and an endpoint.
    @param depth: how many events in a row.
    @param actors: how many acquires may be waiting or leased at once.
    @param without: names of L{EVENTS} to leave out.
    @param extra: more events, in the form of L{EVENTS}' values; of several
        choices, the one that goes well comes first.
    @param state: what the future depends on beside the pool, such as the
        state of your protocols: hashable.
    @return: how much that was.
    @raise Violation: with the shortest story that breaks a promise.
    """
    omitted = set(without)
    events = [event for name, event in EVENTS.items() if name not in omitted]
    events.extend(extra)

    def replay(story: Sequence[str]) -> World:
        world = World(build, actors, extra)
        for label in story:
            perform(world, label)
        return world

    def choices(world: World) -> list[str]:
        return [label for event in events for label, _ in event(world)]

    def perform(world: World, wanted: str) -> None:
        next(act for event in events for label, act in event(world) if label == wanted)()

    def arrive(story: tuple[str, ...]) -> tuple[Any, list[str]]:
        try:
            world = replay(story)
            world.check()
            place = hash((fingerprint(world), state(world)))
            if place in seen:
                return place, []
            seen.add(place)
            further = choices(world) if len(story) < depth else []
            world.end()
        except AssertionError as error:
            raise Violation(str(error), story) from error
        return place, further

    seen: set[int] = set()
    steps = 0
    frontier: list[tuple[tuple[str, ...], str]] = [((), label) for label in arrive(())[1]]
    while frontier:
        ahead: list[tuple[tuple[str, ...], str]] = []
        for before, label in frontier:
            story = (*before, label)
            steps += 1
            ahead.extend((story, label) for label in arrive(story)[1])
        frontier = ahead
    return Exploration(depth=depth, states=len(seen), steps=steps)
