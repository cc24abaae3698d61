"""
What there is to see under a service: sources of numbers, transfers, troubles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.application.service import IService, IServiceCollection
from twisted.logger import Logger

from connpool.interfaces import ILiveTransfers, IReadiness, IStatsSource
from connpool.observe.fields import Field, describeFields

__all__ = ["Reading", "findTransfers", "findTroubles", "readSources", "walk"]

_log = Logger()


@attrs.frozen
class Reading:
    """
    What one source said.

    @ivar kind: the source's.
    @ivar name: unique among the readings of this kind; see L{walk}.
    @ivar snapshot: what its C{stats()} returned.
    """

    kind: str
    name: str
    snapshot: Any

    @property
    def fields(self) -> tuple[Field, ...]:
        """
        What there is in the snapshot.
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


def _below(collection: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    children = IServiceCollection(collection, None)
    for child in list(children) if children is not None else ():
        name = getattr(child, "name", None)
        childPath = path if name is None or path[-1:] == (name,) else (*path, str(name))
        yield "/".join(childPath), child
        yield from _below(child, childPath)


def _ask(label: str, question: Callable[[], Any], otherwise: Any) -> Any:
    """
    What C{question()} returns.  A source that fails must not hide the others.
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
        readings.append(Reading(kind, label if count == 1 else f"{label}#{count}", snapshot))
    return readings


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


def findTroubles(roots: Sequence[Any]) -> list[str]:
    """
    @return: a line for each reason why not all work can be done now; empty
        when everything under C{roots} is ready.
    """
    troubles = []
    for label, service in walk(roots):
        where = label or type(service).__name__
        if not getattr(service, "running", True):
            troubles.append(f"{where}: not running")
        elif IReadiness.providedBy(service):
            trouble = _ask(where, service.trouble, "cannot say how it is; see the log")
            if trouble is not None:
                troubles.append(f"{where}: {trouble}")
    return troubles
