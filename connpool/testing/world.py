"""
A pool whose clock, network and users are a test's: the promises that must hold in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure

from connpool.pool.pool import ConnectionPool
from connpool.pool.states import Phase, State
from connpool.pool.timers import NEVER
from connpool.testing.endpoints import FakeEndpoint, FakeTransport

__all__ = ["Event", "World"]

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
        if held is not self.asked[0] and self.pool.settings.queue == "fifo":
            self.trouble = "an acquire was overtaken"
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

    def answer(
        self, index: int, how: str, *, more: bool = False, end: bool = False, again: int = 0
    ) -> None:
        """
        An answer comes, and ends the lease that waits for it inside the read.

        @param how: C{release} or C{discard}.
        @param more: a second one lies in the kernel behind it, and
        @param end: the peer's end.
        @param again: how many acquire in the same read, after it ended.
        """
        protocol = self.held[index].lease.protocol
        transport: FakeTransport = protocol.transport
        if more or end:
            transport.arrive(b"x" if more else b"", end=end)

        def dataReceived(data: bytes) -> None:
            del protocol.dataReceived
            self.reading = transport
            self.giveBack(index, how)
            for _ in range(again):
                self.acquire()
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
            ends = min(waiter.until for waiter in core.queue)
            wakes = min((call.getTime() for call in self.clock.getDelayedCalls()), default=NEVER)
            assert wakes <= ends, "nobody tells who waits that its time is over"

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
