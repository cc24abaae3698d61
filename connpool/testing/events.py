"""
The events of a L{World}: what users, the network and time can do next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from connpool.pool.states import Phase
from connpool.testing.world import Event, World

__all__ = ["EVENTS"]


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
    an end in the kernel behind it, or with somebody who acquires at once.
    """
    free = world.actors - len(world.asked) - len(world.held) + 1
    for index, held in enumerate(world.held):
        transport = held.lease.protocol.transport
        if transport.connected and transport.reading and not transport.disconnecting:
            yield f"answer {index}", partial(world.answer, index, "release")
            yield f"answer {index} and more", partial(world.answer, index, "release", more=True)
            yield f"answer {index} and end", partial(world.answer, index, "release", end=True)
            yield f"answer {index} and discard", partial(world.answer, index, "discard")
            for again in range(1, free + 1):
                yield (
                    f"answer {index} and acquire {again}",
                    partial(world.answer, index, "release", again=again),
                )


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
