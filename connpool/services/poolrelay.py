"""
C{twistd connpool}: the options of a pool in front of an upstream.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.application.service import IService

from connpool.services.options import AccessOptions, asCount, asSeconds, defaultOf
from connpool.services.relay import HEADER_VERSIONS, PoolRelay, checkRelay
from connpool.services.status import StatusOptions, observed

__all__ = ["Options", "makeService"]

_default = partial(defaultOf, PoolRelay)


def _asLevel(text: str) -> int:
    """
    @return: a whole number, 0 included.
    """
    return 0 if text == "0" else asCount(text)


class Options(StatusOptions, AccessOptions):
    pluginName = "connpool"
    synopsis = "--listen ENDPOINT --upstream ENDPOINT… [options]"
    longdesc = (
        "Gives each client an upstream connection made ahead of time, and never makes "
        "more than --max-size of them. Clients wait in a queue for a free one."
    )

    optParameters = [
        ["min-idle", None, _default("minIdle"), "Upstream connections kept ready."],
        [
            *("max-size", None, _default("maxSize")),
            "Upstream connections at once, ready ones included.",
        ],
        [
            *("max-connecting", None, _default("maxConnecting")),
            "Upstream connections being made at once.",
        ],
        [
            *("idle-timeout", None, _default("idleTimeout")),
            "Seconds after which a ready connection is replaced.",
        ],
        [
            *("acquire-timeout", None, _default("acquireTimeout")),
            "Seconds that a client waits for a connection.",
        ],
        [
            *("connect-timeout", None, _default("connectTimeout")),
            "Seconds for connect and TLS handshake.",
        ],
        ["max-waiting", None, _default("maxWaiting"), "Clients that wait at once."],
        ["proxy-header", None, None, "Tell the upstream who the client is: v1 or v2."],
        [
            *("close-timeout", None, _default("closeTimeout")),
            "Seconds of silence after which a half-closed one ends.",
        ],
        [
            *("drain-timeout", None, _default("drainTimeout")),
            "Seconds a stop waits for clients to finish.",
        ],
        ["name", None, _default("name"), "Name in logs and metrics."],
    ]

    def opt_upstream(self, endpoint: str) -> None:
        """
        Connect there, as tcp:db.example:5432; more for fail-over (repeatable).
        """
        self.collect("upstream", endpoint)

    def postOptions(self) -> None:
        super().postOptions()
        self.setdefault("upstream", [])
        for name in ("min-idle", "max-waiting"):
            self.convert(name, _asLevel)
        for name in ("max-size", "max-connecting"):
            self.convert(name, asCount)
        for name in ("idle", "acquire", "connect", "close", "drain"):
            self.convert(f"{name}-timeout", asSeconds)
        if self["proxy-header"] is not None:
            self.choice("proxy-header", list(HEADER_VERSIONS))
        # not the whole service: endpoints of others may want a reactor to be made
        self.attempt(
            lambda _: checkRelay(
                self["listen"],
                self["upstream"],
                self["min-idle"],
                self["max-size"],
                self["proxy-header"],
            )
        )

    def make(self, reactor: Any) -> PoolRelay:
        return PoolRelay(
            reactor,
            self["listen"],
            self["upstream"],
            access=self.access,
            minIdle=self["min-idle"],
            maxSize=self["max-size"],
            maxConnecting=self["max-connecting"],
            idleTimeout=self["idle-timeout"],
            acquireTimeout=self["acquire-timeout"],
            connectTimeout=self["connect-timeout"],
            maxWaiting=self["max-waiting"],
            proxyHeader=self["proxy-header"],
            closeTimeout=self["close-timeout"],
            drainTimeout=self["drain-timeout"],
            name=self["name"],
        )


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    @param options: parsed.
    @param reactor: the global one unless given.
    """
    if reactor is None:
        from twisted.internet import reactor
    return observed(options, options.make(reactor), reactor)
