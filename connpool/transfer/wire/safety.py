"""
Where a password may go.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import ISSLTransport

from connpool.addresses import clientOf

__all__ = ["credentialsAreSafe"]


def credentialsAreSafe(transport: Any) -> bool:
    """
    Whether a password may cross this connection: TLS, a unix socket, or a
    loopback connection that came directly.
    """
    if ISSLTransport.providedBy(transport):
        return True
    return clientOf(transport).local
