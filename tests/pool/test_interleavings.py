"""
Everything in every order, and that it is noticed when something is wrong.

C{CONNPOOL_DEPTH=9 pytest tests/pool/test_interleavings.py -m "slow or not slow"}
looks deeper.
"""

import os
from functools import partial

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from connpool.interfaces import IPoolable
from connpool.pool import ConnectionPool
from connpool.pool.connection import Connection
from connpool.pool.core import Core
from connpool.pool.guard import Guard
from connpool.pool.inventory import Inventory
from connpool.pool.shell import Shell
from connpool.pool.states import State
from connpool.pool.wires import NO_WIRE
from connpool.testing import Violation, checkInterleavings


@implementer(IPoolable)
class Resetting(Protocol):
    """
    Resets and validates as slowly as the test wants.
    """

    pending = None

    def isReusable(self):
        return True

    def reset(self):
        self.pending = Deferred()
        return self.pending

    validate = reset

    def idleDataReceived(self, data):
        return False

    def goodbye(self):
        return None


class Leaving(Resetting):
    """
    Says goodbye as slowly as well.
    """

    goodbye = Resetting.reset


def answers(world):
    """
    The outcomes of resets and validations.
    """
    for index, transport in enumerate(world.live()):
        pending = getattr(transport.protocol.protocol, "pending", None)
        if pending is not None and not pending.called:
            yield f"pass {index}", partial(pending.callback, True)
            yield f"flunk {index}", partial(pending.errback, ValueError("flunked"))


def pools(protocol=Protocol, *, abrupt=False, **limits):
    """
    A builder of small pools whose times all differ.
    """
    limits = {
        "maxSize": 2,
        "idleTimeout": 20.0,
        "acquireTimeout": 7.0,
        "connectTimeout": 5.0,
        "closeTimeout": 2.0,
        "resetTimeout": 3.0,
        "backoff": lambda failures: 1.0 * failures,
    } | limits

    def build(clock, endpoint):
        endpoint.abrupt = abrupt
        return ConnectionPool(clock, endpoint, Factory.forProtocol(protocol), name="test", **limits)

    return build


KINDS = {
    "plain": {},
    "one": {"maxSize": 1},
    "fifo": {"order": "fifo", "maxSize": 3, "maxConnecting": 1},
    "lifetime": {"maxLifetime": 10.0, "lifetimeJitter": 0.0},
    "minIdle": {"minIdle": 1, "onDown": "wait"},
    "full": {"maxSize": 1, "minIdle": 1, "maxLifetime": 10.0, "lifetimeJitter": 0.0},
    "codel": {"queue": "codel", "queueTarget": 0.5, "queueInterval": 1.0, "maxUses": 2},
    "debug": {"debug": True, "leakThreshold": 3.0},
    "reset": {"protocol": Resetting},
    "abrupt": {"protocol": Leaving, "abrupt": True},
    "validate": {"protocol": Resetting, "validateAfterIdle": 0.0, "maxUses": 3},
}


def explore(kind, depth, without=("answer",)):
    """
    @return: what was explored.
    """
    depth = int(os.environ.get("CONNPOOL_DEPTH", depth))
    return checkInterleavings(pools(**KINDS[kind]), depth, extra=[answers], without=without)


@pytest.mark.parametrize("kind", KINDS)
def test_noOrderOfEventsBreaksAPromise(kind):
    assert explore(kind, 5).states > 100


@pytest.mark.parametrize("kind", ["plain", "one", "minIdle", "reset", "abrupt", "validate"])
def test_noReadReachesTheNextLease(kind):
    without = ["hangUp", "pause", "purge", "close", "byte", "refuse", "cancel"]
    assert explore(kind, 6, without).states > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_noLongOrderOfEventsBreaksAPromise(kind):
    assert explore(kind, 7, ()).states > 500


def test_theSearchIsExhaustiveToItsDepth():
    exploration = checkInterleavings(
        pools(), 2, without=["tick", "purge", "pause", "close", "byte", "hangUp", "discard"]
    )
    # nothing; acquire; then: two acquires, cancelled, accepted, refused
    assert exploration.states == 6
    assert exploration.steps == 5


# -- planted bugs: each is one that another pool had


closeInventory = Inventory.close
forget = Inventory.forget


def freeWhenAskedToClose(self, slot, reason, now, *, popped=False, abort=False):
    """
    pgx #2425: the slot is free before the socket is gone.
    """
    closeInventory(self, slot, reason, now, popped=popped, abort=abort)
    self.forget(slot, None)


def forwardEverything(self, data):
    """
    redis-py #2624: bytes of an abandoned request stay for the next lease.
    """
    self.protocol.dataReceived(data)


def keepCancelled(self, waiter):
    """
    psycopg #509: a connection is handed to a waiter that has left.
    """


def keepFailed(self, slot, reason):
    """
    zendesk/txconnpool: a failed dial keeps its slot.
    """
    if slot.state is State.CONNECTING:
        self.agenda.cancel(slot)
    else:
        forget(self, slot, reason)


def lookAtNobody(self, connection, now):
    """
    bb8 #122: whoever waits is not looked at when a connection comes back.
    """
    if connection.state is not State.LEASED:
        return passedOn(self, connection, now)
    self.core.give(connection, now)
    return True


passedOn = Shell._passedOn


def overtake(self, slot, now):
    """
    golang/go#31708: a connection goes to any of those who wait.
    """
    self.queue.move_to_end(next(reversed(self.queue)), last=False)
    return passOn(self, slot, now)


passOn = Core.passOn


def trustTheKernel(self, slot, now):
    """
    This pool, half done: nobody asks the kernel where somebody waits.
    """
    slot.unread = None
    return passOn(self, slot, now)


def lookAway(self):
    """
    HikariCP, in spirit: nobody dials while the idle are taken one by one.
    """
    settle(self)
    self.floor = 0


settle = Core.settle


def trustTheDead(self, guard):
    """
    twisted #7843: a connection that is going away is handed out.
    """
    adopt(self, guard)
    self.wire = NO_WIRE


adopt = Connection._adopt


def forgetTheRead(self, data):
    """
    This pool, before: who releases inside a read hands on what the read still holds.
    """
    connection = self._connection
    if connection.state is State.IDLE:
        connection.owner.idleData(connection, data)
    else:
        self.protocol.dataReceived(data)


def doNotAsk(self, slot, news, now):
    """
    This pool, before: nobody asks the kernel.
    """
    return False


MUTANTS = {
    "freed too early": (Inventory, "close", freeWhenAskedToClose, "sockets with maxSize"),
    "bytes kept": (
        Guard,
        "dataReceived",
        forwardEverything,
        "bytes came while it was idle|inside a read",
    ),
    "read forgotten": (Guard, "dataReceived", forgetTheRead, "inside a read"),
    "kernel not asked": (Core, "_held", doNotAsk, "kernel held something"),
    "waiter kept": (Core, "leave", keepCancelled, "counted, 0 wait"),
    "slot leaked": (Inventory, "forget", keepFailed, "slots are lost|does not end"),
    "waiter forgotten": (Shell, "_passedOn", lookAtNobody, "waits beside an idle connection"),
    "waiter overtaken": (Core, "passOn", overtake, "was overtaken"),
    "kernel trusted": (Core, "passOn", trustTheKernel, "kernel held something"),
    "level not kept": (Core, "settle", lookAway, "wanted"),
    "dead handed out": (Connection, "_adopt", trustTheDead, "closed or closing"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_aPlantedBugIsFound(name, monkeypatch):
    cls, method, mutant, symptom = MUTANTS[name]
    monkeypatch.setattr(cls, method, mutant)
    with pytest.raises(Violation, match=symptom) as caught:
        checkInterleavings(pools(minIdle=1) if mutant is lookAway else pools(), 6)
    assert 1 <= len(caught.value.story) <= 6
