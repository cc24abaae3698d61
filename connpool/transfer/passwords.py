"""
The connections that a password may cross.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import ISSLTransport

from connpool.addresses import clientOf

__all__ = ["credentialsAreSafe"]


def credentialsAreSafe(transport: Any) -> bool:
    """
    Tell whether a password may cross this connection: TLS, a unix socket, or a
    loopback connection that came directly.
    """
    return ISSLTransport.providedBy(transport) or clientOf(transport).local
