"""
One module for each C{twistd} plugin, what they share, and the services themselves, to
embed: L{FileReceiver}, L{FileSender} and the rest of C{__all__}.

Each is imported when it is asked for: C{twistd --help} looks at this package, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from connpool.later import importLater

if TYPE_CHECKING:
    from connpool.services.access import Access
    from connpool.services.filereceiver import FileReceiver
    from connpool.services.filesender import FileSender
    from connpool.services.probetargets import Target
    from connpool.services.probing import UDPProbe
    from connpool.services.relay import PoolRelay
    from connpool.services.status import ObservedService
    from connpool.services.udpecho import UDPEcho

__all__ = [
    "Access",
    "FileReceiver",
    "FileSender",
    "ObservedService",
    "PoolRelay",
    "Target",
    "UDPEcho",
    "UDPProbe",
]

_HOMES = {
    "Access": "access",
    "FileReceiver": "filereceiver",
    "FileSender": "filesender",
    "ObservedService": "status",
    "PoolRelay": "relay",
    "Target": "probetargets",
    "UDPEcho": "udpecho",
    "UDPProbe": "probing",
}

__getattr__ = importLater(__name__, _HOMES)
