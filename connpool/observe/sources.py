"""
Sources of numbers, transfers and troubles under a service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.application.service import IService, IServiceCollection
from twisted.logger import Logger

from connpool.addresses import placeOf
from connpool.errors import StartFailed
from connpool.interfaces import (
    IConnecting,
    ILiveTransfers,
    IReadiness,
    IRecentTransfers,
    IStatsSource,
)
from connpool.observe.fields import Field, describeFields

__all__ = [
    "Reading",
    "findEnded",
    "findTransfers",
    "findTroubles",
    "isStopping",
    "readSources",
    "walk",
]

_log = Logger()

#: A container without a name, in the words of somebody who did not write it.
NAMELESS = "the service"

#: The trouble of a service that has not started, or has begun to stop.
NOT_RUNNING = "not running"


@attrs.frozen
class Reading:
    """
    The numbers of one source at one moment.

    @ivar kind: the source's.
    @ivar name: unique among the readings of this kind; see L{walk}.
    @ivar snapshot: the result of its C{stats()}.
    @ivar places: its addresses, each as C{HOST:PORT} or the path of a socket.
    @ivar destinations: the places to which it connects, in the same form.
    @ivar trouble: why it cannot do its work now; L{None} if it can.
    """

    kind: str
    name: str
    snapshot: Any
    places: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    trouble: str | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        """
        The fields of the snapshot.
        """
        snapshotClass: Any = type(self.snapshot)
        return describeFields(self.kind, snapshotClass)


def walk(roots: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """
    C{roots} and every service below them, each with its label: the names on
    the way to it, joined by a slash, a root's own and names that repeat their
    parent's left out.  A label stays what it is when a neighbour comes or goes.
    """
    for root in roots:
        service = IService(root, root)
        yield str(getattr(service, "name", None) or ""), service
        yield from _below(root, ())


def _children(collection: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    children = IServiceCollection(collection, None)
    for child in list(children) if children is not None else ():
        name = getattr(child, "name", None)
        childPath = path if name is None or path[-1:] == (name,) else (*path, str(name))
        yield "/".join(childPath), child, childPath


def _below(collection: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for label, child, childPath in _children(collection, path):
        yield label, child
        yield from _below(child, childPath)


def _ask(label: str, question: Callable[[], Any], otherwise: Any) -> Any:
    """
    Return the result of C{question()}.  A source that fails must not hide the others.
    """
    try:
        return question()
    except Exception:
        _log.failure("{label} cannot say how it is", label=label)
        return otherwise


def readSources(roots: Sequence[Any]) -> list[Reading]:
    """
    @return: a reading of every L{IStatsSource} under C{roots}.
    """
    readings: list[Reading] = []
    seen: dict[tuple[str, str], int] = {}
    for label, service in walk(roots):
        if not IStatsSource.providedBy(service):
            continue
        snapshot = _ask(label, service.stats, None)
        if snapshot is None or not attrs.has(type(snapshot)):
            continue
        kind = service.kind
        label = label or kind  # noqa: PLW2901 - a source without any name
        count = seen[kind, label] = seen.get((kind, label), 0) + 1
        name = label if count == 1 else f"{label}#{count}"
        readings.append(
            Reading(
                kind,
                name,
                snapshot,
                _placesOf(service),
                _destinations(name, service),
                _trouble(name, service),
            )
        )
    return readings


def _placesOf(service: Any) -> tuple[str, ...]:
    """
    @return: the addresses at which a service listens now, if it tells them.
    """
    try:
        return tuple(placeOf(host) for host in service.getHosts())
    except (AttributeError, StartFailed):
        return ()


def _destinations(where: str, service: Any) -> tuple[str, ...]:
    if not IConnecting.providedBy(service):
        return ()
    return tuple(_ask(where, service.destinations, ()))


def _trouble(where: str, service: Any) -> str | None:
    if not getattr(service, "running", True):
        return NOT_RUNNING
    if not IReadiness.providedBy(service):
        return None
    trouble: str | None = _ask(where, service.trouble, "cannot say how it is; see the log")
    return trouble


def findTransfers(roots: Sequence[Any], limit: int) -> list[tuple[str, Any]]:
    """
    @return: at most C{limit} transfers under way, each with the label of its
        service.
    """
    found: list[tuple[str, Any]] = []
    for label, service in walk(roots):
        if len(found) >= limit:
            break
        if ILiveTransfers.providedBy(service):
            transfers = _ask(label, partial(service.liveTransfers, limit - len(found)), ())
            found += [(label, transfer) for transfer in transfers]
    return found


def findEnded(roots: Sequence[Any]) -> list[tuple[str, Any]]:
    """
    @return: the last transfers and refusals, each with the label of its service.
    """
    return [
        (label, ended)
        for label, service in walk(roots)
        if IRecentTransfers.providedBy(service)
        for ended in _ask(label, service.recentTransfers, ())
    ]


def findTroubles(roots: Sequence[Any]) -> list[str]:
    """
    @return: a line for each reason why not all work can be done now; empty
        when everything under C{roots} is ready.  A service that stops says so once,
        not again for each of its parts.
    """
    troubles: list[str] = []
    for root in roots:
        service = IService(root, root)
        label = str(getattr(service, "name", None) or NAMELESS)
        _findTroubles(label, service, (), troubles)
    return list(dict.fromkeys(troubles))


def isStopping(roots: Sequence[Any]) -> bool:
    """
    Tell whether a service under C{roots} has begun to stop, or has not started.
    """
    return any(not getattr(service, "running", True) for _, service in walk(roots))


def _findTroubles(where: str, service: Any, path: tuple[str, ...], troubles: list[str]) -> None:
    trouble = _trouble(where, service)
    if trouble is not None:
        troubles.append(f"{where}: {trouble}")
    if trouble != NOT_RUNNING:
        for label, child, childPath in _children(service, path):
            _findTroubles(label or NAMELESS, child, childPath, troubles)
