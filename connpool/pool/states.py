"""
The words in which the core and the shell of a pool talk.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from connpool.errors import PoolError
from connpool.pool.destination import Destination
from connpool.pool.timers import NEVER
from connpool.pool.wires import NO_WIRE

__all__ = [
    "Action",
    "End",
    "Entry",
    "Lifetime",
    "Phase",
    "Probation",
    "Pulse",
    "Slot",
    "Slowness",
    "State",
    "Waiter",
]


class State(Enum):
    """
    The state of one slot.
    """

    __hash__ = object.__hash__  # Enum's own is Python and hashes the name

    CONNECTING = "connecting"
    IDLE = "idle"
    LEASED = "leased"
    RETURNING = "returning"  # given back while a read was being delivered
    CHECKING = "checking"  # being reset or validated; the pool owns it
    CLOSING = "closing"
    GONE = "gone"


class Phase(Enum):
    """
    The state of the whole pool.
    """

    __hash__ = object.__hash__

    OPEN = "open"
    PAUSED = "paused"
    DRAINING = "draining"
    CLOSING = "closing"
    CLOSED = "closed"


class Slot:
    """
    One connection, as far as the core knows it.

    @ivar state: see L{State}.
    @ivar number: 1, 2, … in the order of dialling, unique in the pool.
    @ivar generation: how often the pool had been purged when it was dialled.
    @ivar since: when the state began (not kept exact for C{CHECKING}).
    @ivar bornAt: when it became ready; C{0.0} before.
    @ivar uses: how often it was leased.
    @ivar wire: what may say that it is C{disconnecting} although nobody told
        the pool: the user's protocol hung up by itself, or TLS was shut down
        and the socket is about to follow; see L{connpool.pool.wires}.
    @ivar unread: asks the kernel for what the reactor has not delivered, see
        L{connpool.pool.unread.unreadOf}; L{None}: it cannot be asked.
    @ivar asked: whether anybody has asked the server for anything: else bytes in
        the kernel are a greeting.
    @ivar reading: whether a read is being delivered: what is given back meanwhile
        cannot be handed on.
    @ivar delays: how often it was held back since its last lease, C{delayedAt}
        that lease.
    @ivar proven: whether the server has sent anything.
    @ivar doom: why it must not become idle again, or L{None}.
    @ivar plain: whether a return needs no decision: no doom, no use limit, no
        C{IPoolable}.
    @ivar fit: whether it is new or passed a check, and was not leased since.
    @ivar destination: where it was dialled.
    @ivar replaces: the slot that retires when this one is ready, and the reason.
    @ivar deadline: of the state it is in.
    @ivar lifetime: the agenda's entry for the end of its life.
    @ivar probation: the agenda's entry for the time after which it proves its
        server, or L{None}.
    @ivar pulse: the agenda's entry for the next validation in the background.
    @ivar shelved: whether it is validated in the background, and its place among
        the idle ones is kept.
    """

    __slots__ = (
        "asked",
        "bornAt",
        "deadline",
        "delayedAt",
        "delays",
        "destination",
        "doom",
        "fit",
        "generation",
        "lifetime",
        "number",
        "plain",
        "probation",
        "proven",
        "pulse",
        "reading",
        "replaces",
        "shelved",
        "since",
        "state",
        "unread",
        "uses",
        "wire",
    )

    def __init__(self, number: int, generation: int, destination: Destination, now: float) -> None:
        self.state = State.CONNECTING
        self.number = number
        self.generation = generation
        self.destination = destination
        self.since = now
        self.bornAt = 0.0
        self.uses = 0
        self.wire: Any = NO_WIRE
        self.unread: Callable[[int], list[Any]] | None = None
        self.asked = False
        self.reading = False
        self.delays = 0
        self.delayedAt = 0
        self.proven = False
        self.doom: str | None = None
        self.plain = True
        self.fit = False
        self.replaces: tuple[Slot, str] | None = None
        self.deadline = NEVER
        self.lifetime: Lifetime | None = None
        self.probation: Entry | None = None
        self.pulse: Pulse | None = None
        self.shelved = False


class Entry:
    """
    An entry of a slot on the agenda, beside its own deadline.
    """

    __slots__ = ("deadline", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.deadline = NEVER


class Lifetime(Entry):
    """
    The end of a slot's life.

    @ivar reason: why it ends: C{lifetime}, C{stale} (a purge that is spread) or
        C{failback}.
    """

    __slots__ = ("reason",)

    def __init__(self, slot: Slot, reason: str = "lifetime") -> None:
        super().__init__(slot)
        self.reason = reason


class Probation(Entry):
    """
    The time after which a connection proves that its server is there again.
    """

    __slots__ = ()


class Pulse(Entry):
    """
    The next validation in the background.
    """

    __slots__ = ()


class Slowness(Entry):
    """
    The time after which a dial counts as slow.
    """

    __slots__ = ()


class End:
    """
    The agenda's entry for the end of the pool's patience while it closes.
    """

    __slots__ = ("deadline",)

    def __init__(self) -> None:
        self.deadline = NEVER


class Waiter:
    """
    An acquire that waits.

    @ivar since: when it began.
    @ivar until: when it is over.
    @ivar deadline: the same if that is on the agenda, see L{FifoQueue.join}.
    """

    since: float
    until: float
    deadline: float


class Action(NamedTuple):
    """
    Something for the shell to do.

    - C{serve}: give C{slot} to C{waiter}.
    - C{reject}: fail C{waiter} with C{error}.
    - C{dial}: connect C{slot}.
    - C{fail}: C{slot} is out of time; end its dial.
    - C{check}: validate C{slot}.
    - C{overdue}: C{slot}'s reset or validation is out of time.
    - C{close}: close C{slot} for C{detail}; C{abort}: at once.
    - C{hold}: let the reactor deliver what the kernel holds for C{slot}.
    - C{leak}: C{slot} is leased for suspiciously long.
    - C{expire}: C{slot}'s lease took longer than C{leaseTimeout}.
    - C{lost}: write C{slot} off: not even aborting ended it.
    - C{closed}: the pool has no connection left and is closed.
    """

    verb: str
    slot: Any = None
    waiter: Any = None
    error: PoolError | None = None
    detail: str = ""
