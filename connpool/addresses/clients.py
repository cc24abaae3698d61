"""
The other end of a connection, for decisions that depend on it.
"""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from zope.interface import implementer

from connpool.addresses.networks import Networks

__all__ = ["Client", "UnknownAddress", "clientOf"]

_LOOPBACK = Networks.parse(["127.0.0.0/8", "::1"])


@implementer(IAddress)
@attrs.frozen
class UnknownAddress:
    """
    The peer of a connection whose client nobody knows: the proxy in front
    spoke for itself (a health check), or did not know.

    Its C{host} is in no network, so no allow-list matches it.

    @ivar healthCheck: whether the proxy spoke for itself.  HAProxy does so by version 2
        for the clients of its unix sockets, too.
    """

    type: str = "TCP"
    host: str = "unknown"
    port: int = 0
    healthCheck: bool = attrs.field(default=False, eq=False)


@attrs.frozen
class Client:
    """
    The other end of a connection, as L{clientOf} found it.

    @ivar host: the client's IP address; L{None} if it has none that is known
        (a unix socket, or a proxy that did not say).
    @ivar viaProxy: the connection came from a trusted proxy of a C{proxied:}
        endpoint, whether it sent a header or not.
    @ivar local: the client runs on this machine and connected directly: from
        a loopback address or through a unix socket.  Never true through a
        proxy, whatever its header says.
    """

    host: str | None
    viaProxy: bool
    local: bool


def clientOf(transport: Any) -> Client:
    """
    Find out about the other end of C{transport}.

    Privileges of a direct local connection hang on C{local}; allow and deny
    rules on C{host}, with L{None} in no network.

    @param transport: a connected transport, TLS and C{proxied:} included.
    """
    peer = transport.getPeer()
    # ProxiedConnection has it; TLS over one hands attributes through
    info = getattr(transport, "proxyInfo", None)
    viaProxy = info is not None and info.trusted
    host = peer.host if isinstance(peer, IPv4Address | IPv6Address) else None
    here = host in _LOOPBACK if host is not None else isinstance(peer, UNIXAddress)
    return Client(host, viaProxy, here and not viaProxy)
