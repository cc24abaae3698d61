"""
The arguments of a pool, judged when they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from connpool.interfaces import IPoolable, ISingleUseEndpoint
from connpool.pool.settings import Settings

__all__ = ["asEndpoints", "checkFactory", "checkSingleUse", "lacking"]


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
