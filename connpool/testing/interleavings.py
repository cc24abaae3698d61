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
from functools import partial
from typing import Any

import attrs
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from connpool.pool.pool import ConnectionPool
from connpool.pool.states import Phase, State
from connpool.pool.timers import NEVER
from connpool.testing.endpoints import FakeEndpoint, FakeTransport

__all__ = [
    "EVENTS",
    "Event",
    "Exploration",
    "Violation",
    "World",
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


#: What a L{World} can do next: pairs of a label and an action.
Event = Callable[["World"], Iterable[tuple[str, Any]]]


class _Held:
    """
    One acquire of the test's: waiting, then a lease, or an error.
    """

    def __init__(self) -> None:
        self.lease: Any = None
        self.error: BaseException | None = None
        self.answers = 0
        self.deferred: Any = None


class World:
    """
    A pool and everything around it.

    @ivar pool: the pool, and
    @ivar clock: its clock, and
    @ivar endpoint: its endpoint.
    @ivar asked: acquires that wait, the oldest first.
    @ivar held: leases not given back.
    @ivar actors: how many acquires may be waiting or leased at once.
    """

    def __init__(
        self,
        build: Callable[[Clock, FakeEndpoint], ConnectionPool],
        actors: int,
        extra: Sequence[Event] = (),
    ) -> None:
        self._extra = extra
        self.clock = Clock()
        self.endpoint = FakeEndpoint(answer="hold")
        self.pool = build(self.clock, self.endpoint)
        self.actors = actors
        self.asked: list[_Held] = []
        self.held: list[_Held] = []
        self.dirty: set[FakeTransport] = set()
        self.closed: list[Any] = []
        self.reading: FakeTransport | None = None
        self.trouble: str | None = None

    # -- acquires

    def acquire(self) -> None:
        """
        Somebody acquires.
        """
        held = _Held()
        self.asked.append(held)
        held.deferred = self.pool.acquire()
        held.deferred.addCallbacks(self._got, self._failed, (held,), None, (held,))

    def _got(self, lease: Any, held: _Held) -> None:
        self._answered(held)
        held.lease = lease
        self.held.append(held)
        self._examine(lease)

    def _failed(self, reason: Failure, held: _Held) -> None:
        self._answered(held)
        held.error = reason.value

    def _answered(self, held: _Held) -> None:
        held.answers += 1
        if held.answers > 1:
            self.trouble = "an acquire was answered twice"
        self.asked.remove(held)

    def tryAcquire(self) -> None:
        """
        Somebody takes what is there.
        """
        lease = self.pool.tryAcquire()
        if lease is not None:
            held = _Held()
            held.lease = lease
            self.held.append(held)
            self._examine(lease)

    def _examine(self, lease: Any) -> None:
        transport = lease.protocol.transport
        if not transport.connected or transport.disconnecting:
            self.trouble = "a connection was handed out that is closed or closing"
        elif transport is self.reading:
            self.trouble = "a connection was handed out inside a read"
        elif transport.kernelEnd or transport.kernel:
            self.trouble = "a connection was handed out while the kernel held something for it"
        elif transport in self.dirty:
            self.trouble = "a connection was handed out on which bytes came while it was idle"
        elif any(
            other.lease is not lease and other.lease.protocol is lease.protocol
            for other in self.held
            if other.lease is not None
        ):
            self.trouble = "a connection has two owners"

    def giveBack(self, index: int, how: str) -> None:
        """
        Release or discard a lease.
        """
        held = self.held.pop(index)
        getattr(held.lease, how)()

    # -- the network

    def live(self) -> list[FakeTransport]:
        """
        The open transports.
        """
        return [each for each in self.endpoint.transports if each.connected]

    def receive(self, transport: FakeTransport) -> None:
        """
        A byte comes.
        """
        self._soil(transport)
        transport.receive(b"x")

    def _soil(self, transport: FakeTransport) -> None:
        slots: Any = self.pool.shell.core.inventory.slots
        unused = {State.IDLE, State.RETURNING}
        if any(slot.state in unused and slot.guard.transport is transport for slot in slots):
            self.dirty.add(transport)

    def answer(self, index: int, how: str, *, more: bool = False, end: bool = False) -> None:
        """
        An answer comes, and ends the lease that waits for it inside the read.

        @param how: C{release} or C{discard}.
        @param more: a second one lies in the kernel behind it, and
        @param end: the peer's end.
        """
        protocol = self.held[index].lease.protocol
        transport: FakeTransport = protocol.transport
        if more or end:
            transport.arrive(b"x" if more else b"", end=end)

        def dataReceived(data: bytes) -> None:
            del protocol.dataReceived
            self.reading = transport
            self.giveBack(index, how)
            protocol.dataReceived(data)  # there was more than one answer in it
            self.reading = None

        protocol.dataReceived = dataReceived
        transport.receive(b"xx")

    def deliver(self, transport: FakeTransport) -> None:
        """
        The reactor delivers what the kernel holds.
        """
        if transport.kernel and transport.reading:
            self._soil(transport)
        transport.deliver()

    def tick(self) -> None:
        """
        Time passes until something is due.  What was aborted is gone by then, what
        the kernel had is delivered.
        """
        for transport in self.live():
            self.deliver(transport)
        for transport in self.live():
            if transport.aborting:
                transport.finish()
        calls = self.clock.getDelayedCalls()
        if calls:
            first = min(call.getTime() for call in calls)
            self.clock.advance(max(0.0, first - self.clock.seconds()))

    # -- what must hold

    def check(self) -> None:
        """
        @raise AssertionError: if a promise is broken now.
        """
        assert self.trouble is None, self.trouble
        stats = self.pool.stats()
        cap = stats.maxSize
        sockets = self.endpoint.opened + len(self.endpoint.pending)
        assert sockets <= cap, f"{sockets} sockets with maxSize={cap}"
        parts = [stats.leased, stats.idle, stats.connecting, stats.returning]
        parts += [stats.checking, stats.closing]
        assert min(parts) >= 0, f"a gauge is negative: {stats}"
        assert sum(parts) == stats.size, f"the gauges are not the size: {stats}"
        transports = [held.lease.protocol.transport for held in self.held]
        # one that is aborted was in the way of a close() that had to end
        owned = sum(each.connected and not each.aborting for each in transports)
        assert stats.leased == owned, f"{stats.leased} counted as leased, {owned} are"
        assert stats.waiting == len(self.asked), f"{stats.waiting} counted, {len(self.asked)} wait"
        core = self.pool.shell.core
        if (
            stats.state == "open"
            and core.supply.started
            and stats.size < cap
            and stats.connecting < core.settings.maxConnecting
            and not any(each.failures or each.window for each in core.supply.destinations)
        ):
            coming = stats.idle + stats.connecting + stats.returning + stats.checking
            refilled = self.clock.seconds() >= core.supply.refillAt
            wanted = stats.waiting + (core.settings.minIdle if refilled else 0)
            assert coming >= wanted, f"{coming} connections are there or coming, {wanted} wanted"
        if stats.state == "closed":
            assert not self.clock.getDelayedCalls(), "a closed pool has a timer"
        if self.asked and stats.state == "open":
            assert not stats.idle, "an acquire waits beside an idle connection"
            coming = stats.size
            assert coming or self.clock.getDelayedCalls(), "nobody will ever serve who waits"

    def end(self) -> None:
        """
        Bring the pool to an end in which every slot must turn up.

        @raise AssertionError: if a promise is broken on the way.
        """
        cap = self.pool.settings.maxSize
        if self.pool.shell.core.phase in {Phase.OPEN, Phase.PAUSED}:
            self.pool.resume()
            self.endpoint.answer = "accept"
            while self.held:
                self.giveBack(0, "release")
            for attempt in list(self.endpoint.pending):
                if attempt.pending:
                    attempt.succeed()
            for held in list(self.asked):
                held.deferred.cancel()
            while self.held:
                self.giveBack(0, "release")
            self._quiet()
            for _ in range(cap):
                self.acquire()
                self._quiet()
            assert len(self.held) == cap, f"{cap - len(self.held)} of {cap} slots are lost"
            while self.held:
                self.giveBack(0, "release")
        self.pool.close(0).addBoth(self.closed.append)
        self._quiet(4)
        assert self.closed, "close() does not end"
        assert not self.asked, "an acquire was never answered"
        left = self.clock.getDelayedCalls()
        assert not left, f"left on the clock: {left}"
        assert not self.endpoint.opened, "a socket is left open"
        assert not self.endpoint.pending, "a dial is left"

    def _quiet(self, ticks: int = 1) -> None:
        """
        Let what was asked to close be gone, and time pass.
        """
        for turn in range(ticks + 1):
            for transport in self.live():
                self.deliver(transport)
            for transport in self.live():
                if transport.disconnecting:
                    transport.finish()
            for _ in range(100):  # the first choice is the one that goes well
                choice = next((act for event in self._extra for _, act in event(self)), None)
                if choice is None:
                    break
                choice()
            if turn:
                self.clock.advance(60)


def _indexed(name: str, count: int, act: Callable[[int], Any]) -> Iterable[tuple[str, Any]]:
    for index in range(count):
        yield f"{name} {index}", partial(act, index)


def _acquire(world: World) -> Iterable[tuple[str, Any]]:
    if len(world.asked) + len(world.held) < world.actors:
        yield "acquire", world.acquire


def _tryAcquire(world: World) -> Iterable[tuple[str, Any]]:
    if (
        len(world.asked) + len(world.held) < world.actors
        and world.pool.shell.core.inventory.idleCount
    ):
        yield "tryAcquire", world.tryAcquire


def _release(world: World) -> Iterable[tuple[str, Any]]:
    return _indexed("release", len(world.held), lambda n: world.giveBack(n, "release"))


def _discard(world: World) -> Iterable[tuple[str, Any]]:
    return _indexed("discard", len(world.held), lambda n: world.giveBack(n, "discard"))


def _cancel(world: World) -> Iterable[tuple[str, Any]]:
    return _indexed("cancel", len(world.asked), lambda n: world.asked[n].deferred.cancel())


def _accept(world: World) -> Iterable[tuple[str, Any]]:
    pending = list(world.endpoint.pending)
    return _indexed("accept", len(pending), lambda n: pending[n].succeed())


def _refuse(world: World) -> Iterable[tuple[str, Any]]:
    pending = list(world.endpoint.pending)
    return _indexed("refuse", len(pending), lambda n: pending[n].fail())


def _lose(world: World) -> Iterable[tuple[str, Any]]:
    """
    The peer closes, or a closing that was asked for ends.
    """
    live = world.live()
    return _indexed("lose", len(live), lambda n: live[n].finish())


def _hangUp(world: World) -> Iterable[tuple[str, Any]]:
    """
    The user's protocol closes its transport, whoever has it.
    """
    live = [each for each in world.live() if not each.disconnecting]
    return _indexed("hangUp", len(live), lambda n: live[n].loseConnection())


def _byte(world: World) -> Iterable[tuple[str, Any]]:
    live = [each for each in world.live() if each.reading and not each.disconnecting]
    return _indexed("byte", len(live), lambda n: world.receive(live[n]))


def _answer(world: World) -> Iterable[tuple[str, Any]]:
    """
    A read in which a lease ends: with more answers in it than one, with one more or
    an end in the kernel behind it.
    """
    for index, held in enumerate(world.held):
        transport = held.lease.protocol.transport
        if transport.connected and transport.reading and not transport.disconnecting:
            yield f"answer {index}", partial(world.answer, index, "release")
            yield f"answer {index} and more", partial(world.answer, index, "release", more=True)
            yield f"answer {index} and end", partial(world.answer, index, "release", end=True)
            yield f"answer {index} and discard", partial(world.answer, index, "discard")


def _tick(world: World) -> Iterable[tuple[str, Any]]:
    unread = any(each.kernel or each.kernelEnd for each in world.live())
    if unread or world.clock.getDelayedCalls():
        yield "tick", world.tick


def _purge(world: World) -> Iterable[tuple[str, Any]]:
    if world.pool.shell.core.inventory.size:
        yield "purge", world.pool.purge


def _pause(world: World) -> Iterable[tuple[str, Any]]:
    phase = world.pool.shell.core.phase
    if phase is Phase.OPEN:
        yield "pause", world.pool.pause
    elif phase is Phase.PAUSED:
        yield "resume", world.pool.resume


def _close(world: World) -> Iterable[tuple[str, Any]]:
    if world.pool.shell.core.phase in {Phase.OPEN, Phase.PAUSED}:
        yield "close", lambda: world.pool.close().addBoth(world.closed.append)
        yield "drain", lambda: world.pool.drain(3.0).addBoth(world.closed.append)


#: What can happen: name to a function from a L{World} to C{(label, action)} pairs.
EVENTS: dict[str, Event] = {
    "acquire": _acquire,
    "tryAcquire": _tryAcquire,
    "release": _release,
    "discard": _discard,
    "cancel": _cancel,
    "accept": _accept,
    "refuse": _refuse,
    "lose": _lose,
    "hangUp": _hangUp,
    "byte": _byte,
    "answer": _answer,
    "tick": _tick,
    "purge": _purge,
    "pause": _pause,
    "close": _close,
}


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
        core.refusing,
        core.supply.started,
        tuple(slots),
        tuple(owners),
        len(attempts),
        len(world.live()),
        tuple((ahead(waiter.since), ahead(waiter.deadline)) for waiter in core.queue),
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
