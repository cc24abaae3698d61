"""
The arguments of a pool, judged when they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from connpool.interfaces import IPoolable, IPoolObserver, ISingleUseEndpoint
from connpool.pool.settings import Settings

__all__ = [
    "asEndpoints",
    "asObservers",
    "checkCallable",
    "checkCount",
    "checkFactory",
    "checkLimits",
    "checkReactor",
    "checkSingleUse",
    "lacking",
]


def asEndpoints(endpoint: Any) -> list[Any]:
    """
    @param endpoint: one endpoint or several.
    @return: a list of them.
    @raise TypeError: for what is none.
    @raise ValueError: for an empty list.
    """
    if _connects(endpoint):
        return [endpoint]
    if not isinstance(endpoint, Sequence) or isinstance(endpoint, (str, bytes)):
        raise _noEndpoint("endpoint", endpoint)
    if not endpoint:
        raise ValueError("endpoint=[] is out of range: it must be one endpoint or several")
    for index, each in enumerate(endpoint):
        if not _connects(each):
            raise _noEndpoint(f"endpoint[{index}]", each)
    return list(endpoint)


def _connects(value: Any) -> bool:
    return not isinstance(value, type) and callable(getattr(value, "connect", None))


def _noEndpoint(name: str, value: Any) -> TypeError:
    if isinstance(value, str):
        remedy = f"pass clientFromString(reactor, {value!r})"
    elif isinstance(value, Deferred):
        remedy = "wait for the Deferred, and pass the endpoint that it fires with"
    else:
        remedy = "pass an IStreamClientEndpoint, or a list of them"
    return TypeError(f"{name}={value!r} is no endpoint; {remedy}")


def checkFactory(factory: Any) -> None:
    """
    @raise TypeError: C{factory} builds no protocols.
    """
    if isinstance(factory, type) or not callable(getattr(factory, "buildProtocol", None)):
        name = getattr(factory, "__name__", "MyProtocol")
        raise TypeError(
            f"factory={factory!r} is no protocol factory; pass Factory.forProtocol({name})"
        )


def checkReactor(reactor: Any) -> None:
    """
    @raise TypeError: C{reactor} has no time.
    """
    if not callable(getattr(reactor, "callLater", None)):
        raise TypeError(f"reactor={reactor!r} is no reactor; pass twisted.internet.reactor")


def checkCallable(name: str, value: Any, remedy: str) -> None:
    """
    @raise TypeError: C{value} cannot be called.
    """
    if not callable(value):
        raise TypeError(f"{name}={value!r} is no function; pass {remedy}")


def checkCount(name: str, value: Any, most: int, limit: str) -> None:
    """
    @raise ValueError: C{value} is no number of connections, at most C{most}.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        allowed = f"a whole number of at most {limit}={most}"
        raise ValueError(f"{name}={value!r} is out of range: it must be {allowed}")


def checkLimits(names: Iterable[str]) -> None:
    """
    @raise TypeError: one of C{names} is no limit of a pool.
    """
    known = [each.name for each in attrs.fields(Settings)]
    for name in names:
        if name not in known:
            near = get_close_matches(name.lower(), [each.lower() for each in known], 1)
            meant = [each for each in known if each.lower() in near]
            remedy = f"did you mean {meant[0]}?" if meant else f"there are {', '.join(known)}"
            raise TypeError(f"{name} is no limit of a pool; {remedy}")


def asObservers(observers: Any) -> list[Any]:
    """
    @param observers: several, or none.
    @return: a list of them.
    @raise TypeError: for what is none.
    """
    if not isinstance(observers, Iterable):
        raise TypeError(f"observers={observers!r} is no list; pass [{observers!r}]")
    found = []
    for index, each in enumerate(observers):
        observer = IPoolObserver(each, None)
        if observer is None:
            raise TypeError(
                f"observers[{index}]={each!r} is no observer; declare @implementer(IPoolObserver)"
            )
        found.append(observer)
    return found


def checkSingleUse(endpoints: Sequence[Any], settings: Settings) -> None:
    """
    @raise ValueError: connections that speak for one client would be kept for others.
    """
    if settings.maxUses == 1:
        return
    for each in endpoints:
        if ISingleUseEndpoint.providedBy(each):
            raise ValueError(
                f"endpoint={each!r} is out of range: its connections speak for one client, "
                f"so maxUses must be 1, not {settings.maxUses!r}"
            )


def lacking(poolable: Any) -> list[str]:
    """
    @return: the methods of L{IPoolable} that C{poolable} does not have.
    """
    return [name for name in IPoolable if not callable(getattr(poolable, name, None))]
