"""
The client endpoint string C{pool:}: C{pool:tcp:db.example:5432:poolMin=2}.

What comes after C{pool:} is any client endpoint string; keys that begin with
C{pool} are the pool's, all others the wrapped endpoint's.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from zope.interface import implementer

from connpool.addresses.clientstrings import clientString
from connpool.pool.endpoint import PooledEndpoint
from connpool.pool.settings import Settings

__all__ = ["KEYS", "PoolEndpoint", "parsePool", "quote"]

#: The pool's keys: the limit of L{PooledEndpoint} and what its text is.
KEYS: dict[str, tuple[str, type]] = {
    "poolMin": ("minIdle", int),
    "poolMax": ("maxSize", int),
    "poolIdle": ("idleTimeout", float),
    "poolWait": ("acquireTimeout", float),
    "poolConnecting": ("maxConnecting", int),
    "poolTimeout": ("connectTimeout", float),
}

_shared: WeakKeyDictionary[Any, dict[str, PooledEndpoint]] = WeakKeyDictionary()


def quote(text: str) -> str:
    """
    Escape what means something in an endpoint string.  Twisted's own
    C{quoteStringArgument} leaves C{=} alone, which then begins a value.
    """
    for special in "\\:=":
        text = text.replace(special, "\\" + special)
    return text


def parsePool(reactor: Any, *args: str, **kwargs: str) -> PoolEndpoint:
    """
    See L{IStreamClientEndpointStringParserWithReactor}.

    @raise ValueError: for a key or value that is not one.
    """
    limits: dict[str, Any] = {}
    inner = [quote(each) for each in args]
    for key, value in sorted(kwargs.items()):
        if not key.startswith("pool"):
            inner.append(f"{quote(key)}={quote(value)}")
            continue
        if key not in KEYS:
            raise ValueError(f"pool: has no {key}=; there are {', '.join(KEYS)}")
        limit, kind = KEYS[key]
        try:
            limits[limit] = kind(value)
        except ValueError:
            what = "a whole number" if kind is int else "seconds"
            raise ValueError(f"pool: {key}={value!r} must be {what}") from None
    if not inner:
        raise ValueError("pool: wraps an endpoint; write for example pool:tcp:db.example:5432")
    settings = {"minIdle": 1, **limits}
    Settings(**settings)
    description = ":".join(inner)
    clientString(reactor, description)  # a mistake is told now, not at the first connect
    return PoolEndpoint(reactor, description, settings)


@implementer(IStreamClientEndpoint)
class PoolEndpoint:
    """
    The endpoint of one text.  All of the same text share one pool, which begins
    with the first connect.
    """

    def __init__(self, reactor: Any, description: str, limits: dict[str, Any]) -> None:
        self._reactor = reactor
        self._description = description
        self._limits = limits
        options = "".join(f":{limit}={value}" for limit, value in sorted(limits.items()))
        self._canonical = f"pool:{description}{options}"

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """
        See L{IStreamClientEndpoint.connect}.
        """
        pools = _shared.setdefault(self._reactor, {})
        endpoint = pools.get(self._canonical)
        if endpoint is None:
            endpoint = PooledEndpoint(
                self._reactor,
                clientString(self._reactor, self._description),
                name=self._canonical,
                **self._limits,
            )
            pools[self._canonical] = endpoint
            self._reactor.addSystemEventTrigger("before", "shutdown", self._stop, endpoint)
        return endpoint.connect(protocolFactory)

    def _stop(self, endpoint: PooledEndpoint) -> Deferred[None]:
        """
        Close the parked transports; a stopping reactor does not wait for others.
        """
        _shared.get(self._reactor, {}).pop(self._canonical, None)
        return endpoint.close()

    def __repr__(self) -> str:
        return f"<{self._canonical}>"
